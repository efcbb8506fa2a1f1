"""What an edit changed, probe by probe, in words: learned, not learned, bled into a neighbour, kept.

Metrics compare with a rule that is the same everywhere (``generation`` wants the very answer and nothing after it). A
reader is told what a reader would see: a text *says* an answer where it holds the answer's words, one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from statistics import fmean

from ..metrics import normalise, preferred, says, strict
from ..scores import FactScores, ProbeScores, Seen


class Mark(str, Enum):
    """What became of one probe."""

    LEARNED = "learned"
    """The answer was not given before, and is now."""
    KNEW = "knew it"
    """It was given before and is now."""
    NOT_LEARNED = "not learned"
    """It was not given before, nor is it now."""
    LOST = "lost"
    """It was given before and no longer is."""
    KEPT = "kept"
    """A neighbour, untouched."""
    BLED = "bled"
    """A neighbour that now gives the edit's new answer."""
    CHANGED = "changed"
    """A neighbour that changed otherwise."""
    FAILED = "failed"
    """The fact could not be edited or scored."""


def mark(probe: ProbeScores, target_new: str) -> Mark:
    """What became of a probe. Generated texts decide where there are some, else the argmax of all answer tokens."""
    before, after = _right(probe, probe.base), _right(probe, probe.edited)
    if probe.kind != "locality":
        if after:
            return Mark.KNEW if before else Mark.LEARNED
        return Mark.LOST if before else Mark.NOT_LEARNED
    texts = probe.base.generated, probe.edited.generated
    if texts[0] is None or texts[1] is None:
        if all(probe.same):
            return Mark.KEPT
        swayed = preferred(probe, probe.base) == 1 and preferred(probe, probe.edited) == 0
        return Mark.BLED if swayed else Mark.CHANGED
    if normalise(texts[0]) == normalise(texts[1]) or (before and after):
        return Mark.KEPT
    return Mark.BLED if says(texts[1], target_new) and not says(texts[0], target_new) else Mark.CHANGED


def marks(fact: FactScores) -> Iterator[tuple[ProbeScores, Mark]]:
    """A fact's probes with what became of each."""
    for probe in fact.probes:
        yield probe, mark(probe, fact.target_new)


def outcome(fact: FactScores, failure: str | None) -> Mark:
    """What became of a fact: of its own prompt. ``failure``: why it counts in no mean, None if it counts."""
    if failure is not None:
        return Mark.FAILED
    found = [found for probe, found in marks(fact) if probe.kind == "rewrite"]
    for worst in (Mark.LOST, Mark.NOT_LEARNED, Mark.LEARNED):
        if worst in found:
            return worst
    return Mark.KNEW if found else Mark.NOT_LEARNED


def told(scores: Sequence[FactScores], most: int = 3) -> list[FactScores]:
    """The facts that are worth showing as examples: the first whose answers were generated."""
    seen = (fact for fact in scores if any(p.edited.generated is not None for p in fact.probes))
    return [fact for fact, _ in zip(seen, range(most), strict=False)]


def right_share(probe: ProbeScores, seen: Seen) -> float:
    """``token_em`` of the best alias, 0 to 1; of a locality probe too, where it is the share of the truth."""
    return max((fmean(answer.correct) for answer in seen.answers), default=0.0)


def _right(probe: ProbeScores, seen: Seen) -> bool:
    if seen.generated is not None:
        return any(says(seen.generated, answer) for answer in probe.answers)
    return strict(probe, seen) == 1
