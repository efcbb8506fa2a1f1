"""How the learning of one edit ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How the learning of one edit ended.

    Attributes:
        steps: optimizer steps that were taken.
        loss: the last training loss that was seen, before the last step was taken; None where none was seen, or where
            it was no finite number.
        error: why there is no edit; its rows are to be computed unedited.
        lost: the facts that an edit of many does not carry, by their index among its facts, and why.
    """

    steps: int
    loss: float | None
    error: str | None = None
    lost: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss is not None and not isfinite(self.loss):  # JSON has no such numbers; earlier files wrote NaN
            object.__setattr__(self, "loss", None)


def learned(outcome: Outcome, hparams: Mapping[str, Any], fact: int = 0) -> bool | None:
    """Whether an edit came to give a fact's answer, as far as its training knows.

    Args:
        outcome: of the edit.
        hparams: of the editor. Where ``stop_at`` is set, an edit ends before its last step once every token of its
            answers has that probability; after the last step, the mean loss speaks for it.
        fact: which of the edit's facts.

    Returns:
        None where that is not known.

    Example:
        >>> learned(Outcome(10, 0.03), {"steps": 40, "stop_at": 0.9})
        True
    """
    if outcome.error or fact in outcome.lost:
        return False
    stop_at, steps = hparams.get("stop_at"), hparams.get("steps")
    if stop_at is None or steps is None or outcome.loss is None:
        return None
    return outcome.steps < steps or exp(-outcome.loss) >= stop_at
