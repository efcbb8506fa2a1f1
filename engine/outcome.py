"""How the learning of one edit ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True)
class Outcome:
    """How the learning of one edit ended.

    Attributes:
        steps: optimizer steps that were taken.
        loss: the last training loss that was seen, before the last step was taken; None where none was seen, or where
            it was no finite number.
        error: why there is no edit; its rows are to be computed unedited.
        lost: the facts that an edit of many does not carry, by their index among its facts, and why.
        notes: what was done otherwise than the settings say, and why.
    """

    steps: int
    loss: float | None
    error: str | None = None
    lost: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loss is not None and not isfinite(self.loss):  # JSON has no such numbers; earlier files wrote NaN
            object.__setattr__(self, "loss", None)
