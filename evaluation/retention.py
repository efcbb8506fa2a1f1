"""What is left of many edits made on one model: everything edited so far, scored together at chosen points.

A :class:`Checkpoint` is one line of ``checkpoints.jsonl``. The *age* of an edit is the number of edits made after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import hypot

from pydantic import BaseModel, ConfigDict

from .metrics import Estimate, Summary, summarise
from .scores import FactScores, Perplexity


class AgeGroup(BaseModel):
    """The facts after whose edits so many others were made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    youngest: int
    oldest: int
    """Ages, both ends included."""
    metrics: dict[str, Estimate]
    """The edited model's ``token_em`` metrics of these facts, by name."""


class Checkpoint(BaseModel):
    """The state of a model after so many edits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: int
    summary: Summary
    """Of all facts edited so far."""
    by_age: tuple[AgeGroup, ...]
    """From the newest facts to the oldest."""
    perplexity: Perplexity | None = None
    """On the text that was given for it."""
    norm: float | None = None
    """How far the weights have moved: the Frobenius norm of all sites' changes together. It grows with every edit and
    foretells when they break (https://arxiv.org/abs/2502.01636). None where no weight changes."""


def checkpoint(scores: Sequence[FactScores], perplexity: Perplexity | None) -> Checkpoint:
    """The state after ``scores``, which are in the order in which the facts were edited."""
    groups = []
    for youngest, oldest in _ages(len(scores)):
        group = summarise(scores[len(scores) - 1 - oldest : len(scores) - youngest])
        metrics = {name: metric.edited for name, metric in group.metrics.items() if metric.family == "token_em"}
        groups.append(AgeGroup(youngest=youngest, oldest=oldest, metrics=metrics))
    moved = next((one.report["norms"] for one in scores if "norms" in one.report), None)
    return Checkpoint(
        edits=len(scores),
        summary=summarise(scores),
        by_age=tuple(groups),
        perplexity=perplexity,
        norm=hypot(*moved.values()) if moved else None,
    )


def _ages(n: int) -> Iterator[tuple[int, int]]:
    """0, 1-2, 3-9, 10-29, 30-99, ...: groups that grow by half a power of ten, up to n - 1."""
    begin, end = 0, 1
    while begin < n:
        yield begin, min(end, n) - 1
        begin, end = end, end * 10 // 3 if str(end)[0] == "3" else end * 3
