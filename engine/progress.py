"""How long work tells how far it is: one contract from the engine to the bar."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Phase(str, Enum):
    """What is being done; the value is what a bar shows."""

    TRAINING = "training"
    SCORING = "scoring"
    ANSWERS = "generating answers"
    TEXTS = "generating texts"
    PERPLEXITY = "perplexity"
    FINISHED = "finished"


Progress = Callable[[Phase, float, int], None]
"""Told what is being done, which share of it (0 to 1) is finished, and for how many edits at once."""
