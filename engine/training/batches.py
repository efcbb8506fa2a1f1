"""Independent edits in batches that fit into memory; a batch that does not is halved and tried again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...data.facts import Fact
from ..devices import Budget
from ..method import Method
from ..model.encoding import EncodingError, chunks
from ..outcome import Outcome
from ..patches.patch import Patch
from ..progress import Progress
from .lessons import Lesson
from .memory import edits_that_fit, is_out_of_memory

# Padded tokens of one training step: enough to keep the device busy, and so few that texts of like length are together.
_TOKENS = Budget(cpu=512, mps=4096, accelerator=1 << 15)

_log = logging.getLogger(__name__)


class Learned(NamedTuple):
    """Finished edits: the indices of their facts, the patch that has them in this order, and how each ended."""

    facts: list[int]
    patch: Patch
    outcomes: list[Outcome]


def in_batches(
    method: Method, facts: Sequence[Fact], edits_at_once: int | None, progress: Progress | None
) -> Iterator[Learned]:
    """Independent edits of all facts, facts of like length together.

    ``edits_at_once`` None: as many as memory allows. Facts that cannot be encoded come first, as failed edits.
    """
    lessons: dict[int, Lesson] = {}
    errors: dict[int, str] = {}
    for i, fact in enumerate(facts):
        try:
            lessons[i] = method.lesson([fact])
        except EncodingError as error:
            errors[i] = str(error)
    seeds = {i: method.seed_for([fact]) for i, fact in enumerate(facts)}

    def failed(errors: dict[int, str]) -> Learned:
        outcomes = [Outcome(0, None, message) for message in errors.values()]
        return Learned([*errors], method.untrained([seeds[i] for i in errors]), outcomes)

    if errors:
        yield failed(errors)
    # The longest first: if memory does not suffice, that shows at once.
    left = sorted(lessons, key=lambda i: lessons[i].longest, reverse=True)
    size = edits_at_once
    while left:
        size = size or edits_that_fit(method, lessons[left[0]])
        batch = left[:size]
        learned = _learned(method, [lessons[i] for i in batch], [seeds[i] for i in batch], progress)
        if learned:
            yield Learned(batch, *learned)
        elif len(batch) > 1:
            size = len(batch) // 2
            _log.warning("out of memory with %d edits at once; going on with %d", len(batch), size)
            continue
        else:
            yield failed({batch[0]: "out of memory with this edit alone; take fewer sites or a smaller rank"})
            size = edits_at_once  # the others may be smaller
        del left[: len(batch)]


def _learned(
    method: Method, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None
) -> tuple[Patch, list[Outcome]] | None:
    """All lessons learned, those of like length at a time; None if memory does not suffice."""
    parts = []
    try:
        for group in chunks(
            range(len(lessons)), [part.tokens(method.hparams) for part in lessons], _TOKENS.on(method.model.device)
        ):
            told = _of_all(progress, group[0], len(group), len(lessons))
            parts.append(method.learn([lessons[i] for i in group], [seeds[i] for i in group], told))
        return Patch.concatenated([patch for patch, _ in parts]), [outcome for _, part in parts for outcome in part]
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _of_all(progress: Progress | None, first: int, n: int, edits: int) -> Progress | None:
    """Told of n edits from the ``first`` on, tells of all."""
    return progress and (lambda phase, share, _: progress(phase, (first + share * n) / edits, edits))
