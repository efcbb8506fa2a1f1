"""What can be set of :mod:`..editors.finetune`."""

from __future__ import annotations

from pydantic import Field

from .base import WeightHparams


class FineTuneHparams(WeightHparams):
    norm_constraint: float | None = Field(
        None, gt=0, description="FT-L: the furthest that a weight may move (5e-4 in ROME); null: FT-M, any distance"
    )
