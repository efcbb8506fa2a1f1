"""What can be set of :mod:`..editors.lora`."""

from __future__ import annotations

from pydantic import Field

from .base import WeightHparams


class LoRAHparams(WeightHparams):
    rank: int = Field(gt=0, description="Rank r of the change at each site")
    alpha: float = Field(gt=0, description="The change is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the branch's input while training")
