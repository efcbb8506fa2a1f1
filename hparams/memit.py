"""What can be set of :mod:`..editors.memit`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import SolvedHparams


class MEMITHparams(SolvedHparams):
    mom2_update_weight: float = Field(
        gt=0, description="lambda: the weight of what the model knows, in tokens of text for each fact"
    )
    keys: Literal["mean", "each"] = Field(
        "mean", description="A fact's key: the mean over its prompt alone and behind contexts, or one for each of them"
    )
