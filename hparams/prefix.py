"""What can be set of :mod:`..editors.prefix`."""

from __future__ import annotations

from pydantic import Field

from .base import TrainedHparams


class PrefixHparams(TrainedHparams):
    length: int = Field(gt=0, description="Number l of positions before every text")
    hidden: int | None = Field(
        gt=0, description="Hidden units m of the MLP in training; null: no MLP, P itself is trained"
    )
    init_text: str = Field(
        min_length=1,
        description="The prefix starts as what the model computes for this text, repeated to `length` tokens",
    )
