"""One edit that carries many facts: all of them in one training, or one after another on the same patch.

The facts of one optimizer step are a *mini-batch*. ``breadth_first``, mini-batches are learned from in turn, pass after
pass; ``depth_first``, each is learned to its end before the next, with an optimizer of its own. Sequential editing is
depth first, one fact at a time. ``steps`` is how often each fact is learned from, at most: a pass is one step on every
mini-batch, and what a method's schedule counts in steps it counts in passes (``Hparams.in_steps``).

A mini-batch whose facts have all reached ``stop_at`` takes no step. An edit is finished after a pass without a step:
then all facts have reached it with the same weights.

A fact whose loss is not finite is left out. If that is so of all facts of a mini-batch, and was not so before the
latest pass that began well, the weights are to blame: the patch goes back to where it was then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch

from ..data.facts import Fact
from ._adam import Adam
from ._encoding import EncodingError
from ._forward import frozen, trainable_attention
from ._training import Work, lesson
from .base import Editor, Edits, Outcome, Patch, Progress

# Mini-batches whose unchanging part (ids, the output of the blocks below the edit) is kept from pass to pass.
_KEPT = 64


def together(editor: Editor[Any], facts: Sequence[Fact], before: Edits | None, progress: Progress | None) -> Edits:
    """One edit that carries all facts, going on from ``before`` if there is one."""
    if not facts:
        raise ValueError("an edit carries at least one fact; the list is empty")
    h = editor.hparams
    seed = editor.seed_for(facts) if before is None else int(before.patch.seeds[0])
    patch = before.patch.take([0]) if before else None
    lost = _unusable(editor, facts)
    good = [place for place in range(len(facts)) if place not in lost]
    batches = [good[i : i + h.batch_size] for i in range(0, len(good), h.batch_size)]
    courses = [batches] if h.order == "breadth_first" else [[batch] for batch in batches]
    steps, losses = 0, []
    with frozen(editor.model), trainable_attention(editor.model):
        for number, part in enumerate(filter(None, courses)):
            paced = _paced(editor, len(part))
            course = _Course(paced, _begun(paced, seed, patch), facts, part)
            course.run(partial(_tell, progress, len(facts), number, len(courses)))
            lost |= course.lost
            if any(course.batches):
                patch = course.patch.finished([0])
                steps += int(patch.steps)
                losses.append(course.loss)
    return _joined(editor, patch or editor.untrained([seed]), facts, before, steps, losses, lost)


def _unusable(editor: Editor[Any], facts: Sequence[Fact]) -> dict[int, str]:
    """Why facts cannot be learned, by place."""
    lost = {}
    for place, fact in enumerate(facts):
        try:
            lesson(editor, [fact])
        except EncodingError as error:
            lost[place] = str(error)
    return lost


def _paced(editor: Editor[Any], batches: int) -> Editor[Any]:
    """The editor with schedules that last as long as all passes over so many mini-batches."""
    paced = copy.copy(editor)
    paced.hparams = editor.hparams.model_copy(
        update={name: getattr(editor.hparams, name) * batches for name in editor.hparams.in_steps}
    )
    return paced


def _begun(editor: Editor[Any], seed: int, before: Patch | None) -> Patch:
    """A fresh patch, or one that goes on from ``before``."""
    patch = editor.fresh([seed])
    if before is not None:
        patch = patch.rebuilt(patch.tensors() | before.lasting())
        patch.steps.zero_()
    return patch


def _tell(progress: Progress | None, facts: int, course: int, courses: int, share: float) -> None:
    if progress:
        progress("training", (course + share) / courses, facts)


def _joined(
    editor: Editor[Any],
    patch: Patch,
    facts: Sequence[Fact],
    before: Edits | None,
    steps: int,
    losses: Sequence[float],
    lost: dict[int, str],
) -> Edits:
    """The edit with the facts it has carried before, and how the training of all of them went."""
    earlier, past = (before.facts[0], before.outcomes[0]) if before else ((), Outcome(0, float("nan")))
    lost = {**past.lost, **{len(earlier) + place: message for place, message in lost.items()}}
    carried = (*earlier, *facts)
    outcome = Outcome(
        past.steps + steps,
        fmean(losses) if losses else float("nan"),
        None if len(lost) < len(carried) else next(iter(lost.values())),
        lost,
    )
    return Edits(editor, patch, (carried,), (outcome,))


class _Course:
    """A patch in training on mini-batches in turn, which are lists of places in ``facts``."""

    def __init__(self, editor: Editor[Any], patch: Patch, facts: Sequence[Fact], batches: list[list[int]]) -> None:
        self.editor, self.patch, self.facts, self.batches = editor, patch, facts, batches
        self.lost: dict[int, str] = {}
        self._adam: Adam | None = None
        self._good: tuple[Patch, Adam | None] = (patch, None)
        self._works: dict[int, Work] = {}
        self._losses: dict[int, float] = {}

    @property
    def loss(self) -> float:
        """The mean over mini-batches of the loss each had when it was last seen."""
        return fmean(self._losses.values())

    def run(self, told: Callable[[float], None]) -> None:
        n = len(self.batches)
        passes = self.editor.hparams.steps // n
        for number in range(passes):
            moved = False
            for i in range(n):
                moved |= self._learn(i, number, moved)
                told((number + (i + 1) / n) / passes)
            if not moved:
                break

    def _learn(self, i: int, number: int, moved: bool) -> bool:
        """One step on mini-batch i, unless its facts are all there; whether it was taken. ``moved``: the pass has
        taken a step before."""
        while self.batches[i]:
            work = self._work(i)
            loss, lowest = work.losses()
            if loss.isfinite():
                break
            self._leave_out(i, f"the loss became {loss.item()} at step {number}; a lower lr may help")
        else:
            return False
        self._losses[i] = loss.item()
        stop_at = self.editor.hparams.stop_at
        if stop_at is not None and lowest >= stop_at and self.editor.may_stop(self.patch.steps):
            return False
        if not moved and len(self.batches) > 1:  # of a single mini-batch that fails nothing is kept
            self._good = copy.deepcopy((self.patch, self._adam))
        work.step(loss.sum())
        return True

    def _leave_out(self, i: int, message: str) -> None:
        """Give up those facts of mini-batch i whose loss is not finite."""
        places = self.batches[i]
        sick = [place for place in places if not self._is_finite(place, self.patch)] or places
        if len(sick) == len(places) and any(self._is_finite(place, self._good[0]) for place in sick):
            self.patch, self._adam = copy.deepcopy(self._good)
        self.lost |= dict.fromkeys(sick, message)
        self.batches[i] = [place for place in places if place not in sick]
        self._works.pop(i, None)
        self._losses.pop(i, None)

    @torch.no_grad()
    def _is_finite(self, place: int, patch: Patch) -> bool:
        loss, _ = Work(self.editor, patch, [lesson(self.editor, [self.facts[place]])]).losses()
        return bool(loss.isfinite())

    def _work(self, i: int) -> Work:
        """Mini-batch i, set to work on the patch as it is."""
        work = self._works.get(i)
        if work is None:
            facts = [self.facts[place] for place in self.batches[i]]
            work = Work(self.editor, self.patch, [lesson(self.editor, facts)])
            if len(self._works) < _KEPT:
                self._works[i] = work
        self._adam = self._adam or work.adam
        work.patch, work.adam = self.patch.train(), self._adam
        return work
