"""What can be set of :mod:`..editors.adapter`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Layers, TrainedHparams

Placement = Literal["houlsby", "pfeiffer", "parallel"]
NonLinearity = Literal["relu", "swish", "gelu", "tanh"]

_DEFAULTS: dict[str, dict[str, object]] = {
    "houlsby": {"reduction_factor": 16, "non_linearity": "swish", "scaling": 1.0},
    "pfeiffer": {"reduction_factor": 16, "non_linearity": "relu", "scaling": 1.0},
    "parallel": {"reduction_factor": 2, "non_linearity": "relu", "scaling": 4.0},
}


class BottleneckHparams(TrainedHparams):
    placement: Placement = Field(
        description="houlsby: after attention and MLP; pfeiffer: after MLP; parallel: beside it"
    )
    layers: Layers = Field(
        "all", description='Which blocks: a list, a range "20-24", shares of the depth "0.66-0.83", or "all"'
    )
    reduction_factor: float = Field(gt=0, description="The bottleneck is the model's width divided by this")
    non_linearity: NonLinearity = Field(description="Activation in the bottleneck")
    scaling: float = Field(gt=0, description="What the bottleneck adds is multiplied by this")


class AdapterHparams(BottleneckHparams):
    @model_validator(mode="before")
    @classmethod
    def _as_the_placement_has_it(cls, values: dict[str, object]) -> dict[str, object]:
        return {**_DEFAULTS.get(str(values.get("placement")), {}), **values}
