"""Closed forms that need one backward pass and no training: what a loss asks of each site is turned into a change.

A *turn* takes facts together: their inputs and gradients at the tokens of their answers, from one pass, with earlier
turns in place. Independent edits are turns of one fact, all from one pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...data.facts import Fact
from ...hparams import base as settings
from ..method import Method
from ..model.encoding import EncodingError
from ..model.keys import Gradients, gradients_at
from ..model.sites import Site, sites
from ..outcome import Outcome
from ..patches.patch import Patch
from ..patches.rows import Rows
from ..patches.solved import Solved, SolvedPatch
from ..progress import Phase, Progress
from .lessons import Lesson

LOST = "the loss is {}, so nothing can be made of the fact"
UNSOUND = "the update is no finite number; a lower lr may help"
UNCHANGED = "a turn changed nothing, since its first prediction has no spread; take contexts, or more facts in a turn"


class Turner(Method, ABC):
    """A method whose change of weights follows from one backward pass."""

    hparams: settings.TurnHparams

    @abstractmethod
    def turn(self, branch: Any, inputs: Tensor, gradients: Tensor) -> None:
        """Add to one edit's branch what a turn asks of its site.

        Args:
            branch: of one edit, of this method's patch.
            inputs: (K, I), what the site gets where the answers' tokens are predicted, in float64.
            gradients: (K, O), of the loss in what it gives there, in float64.
        """

    @cached_property
    def sites(self) -> list[Site]:
        return sites(self.model, self.hparams.sites, self.hparams.layers)


def turned_each(turner: Turner, lessons: Sequence[Lesson], seeds: Sequence[int]) -> tuple[Patch, list[Outcome]]:
    """An edit for each lesson, from one pass over all."""
    rows = [row for lesson in lessons for row in lesson.answers]
    owner = torch.tensor([e for e, lesson in enumerate(lessons) for _ in lesson.answers], device=turner.model.device)
    found = gradients_at(turner.model, turner.sites, rows)
    parts, outcomes = [], []
    for e, seed in enumerate(seeds):
        patch, loss = _one(turner.fresh([seed])), float(found.losses[owner == e].mean())
        error = None if isfinite(loss) else LOST.format(loss)
        if error is None:
            _turn(turner, patch, found, owner[found.rows] == e)
            error = None if all(patch.sound()) else UNSOUND
        notes = (*lessons[e].notes, *[UNCHANGED] * (error is None and not _changes(patch)))
        parts.append(turner.untrained([seed]) if error else patch.finished([0]))
        outcomes.append(Outcome(int(parts[-1].steps), loss, error, notes=notes))
    return Patch.concatenated(parts), outcomes


def turned(
    turner: Turner, facts: Sequence[Fact], seed: int, before: Patch | None, progress: Progress | None
) -> tuple[Patch, Outcome]:
    """One edit that carries all facts, turn after turn, going on from ``before``; and how this went."""
    h, model = turner.hparams, turner.model
    patch = _one(before or turner.fresh([seed]))
    patch.steps.zero_()
    lost: dict[int, str] = {}
    lessons: dict[int, Lesson] = {}
    for i, fact in enumerate(facts):
        try:
            lessons[i] = turner.lesson([fact])
        except EncodingError as error:
            lost[i] = str(error)
    seen: list[float] = []
    notes = dict.fromkeys(note for lesson in lessons.values() for note in lesson.notes)

    def attached(_: Sequence[int]) -> AbstractContextManager[None]:
        return patch.attached(model, Rows([0], 1, model.device))

    good = [*lessons]
    for begin in range(0, len(good), h.batch_size):
        now = good[begin : begin + h.batch_size]
        rows = [row for i in now for row in lessons[i].answers]
        fact_of = torch.tensor([i for i in now for _ in lessons[i].answers], device=model.device)
        found = gradients_at(model, turner.sites, rows, attached)
        losses = {i: float(found.losses[fact_of == i].mean()) for i in now}
        lost |= {i: LOST.format(loss) for i, loss in losses.items() if not isfinite(loss)}
        sound = torch.tensor([i for i in now if i not in lost], device=model.device)
        changed = _one(patch)
        if len(sound):
            _turn(turner, changed, found, torch.isin(fact_of[found.rows], sound))
            if all(changed.sound()):
                patch = changed
                notes |= dict.fromkeys([UNCHANGED] * (not _changes(patch)))
                seen += [loss for loss in losses.values() if isfinite(loss)]
            else:
                lost |= dict.fromkeys(sound.tolist(), UNSOUND)
        if progress:
            progress(Phase.TRAINING, (begin + len(now)) / len(good), len(facts))
    return patch.finished([0]), Outcome(int(patch.steps), fmean(seen) if seen else None, None, lost, tuple(notes))


@torch.no_grad()
def _turn(turner: Turner, patch: SolvedPatch[Solved], found: Gradients, chosen: Tensor) -> None:
    """One turn of these predictions, (K,) bool, in place."""
    for (_, branch), x, g in zip(patch.items(), found.inputs, found.gradients, strict=True):
        turner.turn(branch, _precise(x[chosen]), _precise(g[chosen]))
    patch.steps += 1


def _changes(patch: SolvedPatch[Solved]) -> bool:
    return any(bool(branch.b.any()) for _, branch in patch.items())


def _one(patch: Patch) -> SolvedPatch[Solved]:
    """A copy of an edit to add changes to."""
    copied = patch.take([0])
    assert isinstance(copied, SolvedPatch), "closed forms change weights"
    return copied


def _precise(t: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none."""
    return t.cpu().double() if t.device.type == "mps" else t.double()
