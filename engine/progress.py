"""How long work tells how far it is: one contract from the engine to the bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from tqdm.auto import tqdm


class Phase(str, Enum):
    """What is being done; the value is what a bar shows."""

    TRAINING = "training"
    SCORING = "scoring"
    ANSWERS = "generating answers"
    TEXTS = "generating texts"
    PERPLEXITY = "perplexity"
    FINISHED = "finished"


Progress = Callable[[Phase, float, int], None]
"""Told what is being done, which share of it (0 to 1) is finished, and of how many edits or facts."""

Shown = Progress | bool | None
"""What callers may ask for: a function of their own, a bar (True), nothing (False), or a bar where somebody is there to
see it, in a terminal or a notebook (None)."""


@contextmanager
def shown(progress: Shown, unit: str = "edit") -> Iterator[Progress]:
    """What is to be told of progress, while open; ``unit`` is what a bar counts."""
    if callable(progress):
        yield progress
    elif progress or (progress is None and _is_watched()):
        bar = Bar(unit)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield lambda phase, share, edits: None


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Bar:
    """A progress bar that counts edits or the like, with a rate; it appears when it is first told something."""

    def __init__(self, unit: str) -> None:
        self._bar: tqdm | None = None
        self._unit = unit

    def __call__(self, phase: Phase, share: float, edits: int) -> None:
        done = share * edits
        if self._bar is None:  # what an earlier session did counts as done, but not in the rate
            layout = "{desc:<18} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
            self._bar = tqdm(total=edits, initial=done, unit=self._unit, bar_format=layout)
        self._bar.set_description_str(phase.value, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Let go of the line; what is printed next comes below it."""
        if self._bar is not None:
            self._bar.close()
