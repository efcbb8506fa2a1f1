"""How the learning of one edit ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True)
class Check:
    """What the edited model says to a fact's own prompt.

    Attributes:
        learned: every token of the answer is the model's first choice.
        probability: of the whole answer.
    """

    learned: bool
    probability: float


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
        checks: for each fact whether it has been learned, seen when the edit was finished; None where it could not be
            asked. Empty for edits that were not checked (those of an earlier version, say).

    Example:
        >>> Outcome(steps=3, loss=float("nan"), error="the loss became nan").learned()
        False
    """

    steps: int
    loss: float | None
    error: str | None = None
    lost: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checks: tuple[Check | None, ...] = ()

    def __post_init__(self) -> None:
        if self.loss is not None and not isfinite(self.loss):  # JSON has no such numbers; earlier files wrote NaN
            object.__setattr__(self, "loss", None)

    def learned(self, fact: int = 0) -> bool | None:
        """Whether a fact is answered as it should be, by its index among the edit's facts; None where nobody looked.

        Example:
            >>> Outcome(10, 0.03, checks=(Check(True, 0.97),)).learned()
            True
        """
        if self.error or fact in self.lost:
            return False
        check = self.checks[fact] if self.checks else None
        return None if check is None else check.learned
