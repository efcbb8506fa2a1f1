"""One edit that carries many facts: all of them in one training, or one after another on the same patch.

The facts of one optimizer step are a *mini-batch*. ``breadth_first``, mini-batches are learned from in turn, pass after
pass; ``depth_first``, each is learned to its end before the next, with an optimizer of its own. Sequential editing is
depth first, one fact at a time. ``steps`` is how often each fact is learned from, at most: a pass is one step on every
mini-batch, and what a method's schedule counts in steps it counts in passes (``Hparams.in_steps``).

A mini-batch whose facts have all reached ``stop_at`` takes no step. An edit is finished after a pass without a step:
then all facts have reached it with the same weights.

A fact whose loss is not finite is left out. If that is so of all facts of a mini-batch, and was not so before the
latest pass that began well, the weights are to blame: the patch goes back to where it was then. Of a single mini-batch
no earlier state is kept: where all its facts fail, the edit has failed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

import torch

from ...data.facts import Fact
from ..method import Method
from ..model.attention import trainable_attention
from ..model.encoding import EncodingError
from ..model.passes import frozen
from ..outcome import Outcome
from ..patches.adam import Adam
from ..patches.patch import Patch
from ..progress import Phase, Progress
from .loop import SICK, Work

# Mini-batches whose unchanging part (ids, the output of the blocks below the edit) is kept from pass to pass.
_WORKS_KEPT = 64


def together(
    method: Method, facts: Sequence[Fact], seed: int, before: Patch | None, progress: Progress | None
) -> tuple[Patch, Outcome]:
    """One edit that carries all facts, going on from the patch ``before`` if there is one; and how this went."""
    h = method.hparams
    patch = before and before.take([0])  # training changes tensors in place
    lost, notes = _looked_through(method, facts)
    good = [i for i in range(len(facts)) if i not in lost]
    batches = [good[i : i + h.batch_size] for i in range(0, len(good), h.batch_size)]
    courses = [batches] if h.order == "breadth_first" else [[batch] for batch in batches]
    steps, losses = 0, []
    with frozen(method.model), trainable_attention(method.model):
        for number, part in enumerate(filter(None, courses)):
            paced = _paced(method, len(part))
            course = _Course(paced, _begun(paced, seed, patch), facts, part)
            course.run(partial(_tell, progress, len(facts), number, len(courses)))
            lost |= course.lost
            if not all(course.patch.sound()):  # a single step can do that, and the next loss is never seen
                lost |= {fact: SICK for batch in course.batches for fact in batch}
            elif any(course.batches):
                patch = course.patch.finished([0])
                steps += int(patch.steps)
                losses.append(course.loss)
    outcome = Outcome(steps, fmean(losses) if losses else None, None, lost, notes)
    return patch or method.untrained([seed]), outcome


def _looked_through(method: Method, facts: Sequence[Fact]) -> tuple[dict[int, str], tuple[str, ...]]:
    """Why facts cannot be learned, by index; and what there is to say of those that can."""
    lost: dict[int, str] = {}
    notes: dict[str, None] = {}
    for i, fact in enumerate(facts):
        try:
            notes |= dict.fromkeys(method.lesson([fact]).notes)
        except EncodingError as error:
            lost[i] = str(error)
    return lost, tuple(notes)


def _paced(method: Method, batches: int) -> Method:
    """The method with schedules that last as long as all passes over so many mini-batches."""
    paced = copy.copy(method)
    paced.hparams = method.hparams.model_copy(
        update={name: getattr(method.hparams, name) * batches for name in method.hparams.in_steps}
    )
    return paced


def _begun(method: Method, seed: int, before: Patch | None) -> Patch:
    """A fresh patch, or one that goes on from ``before``."""
    patch = method.fresh([seed])
    if before is not None:
        patch = patch.rebuilt(patch.tensors() | before.lasting())
        patch.steps.zero_()
    return patch


def _tell(progress: Progress | None, facts: int, course: int, courses: int, share: float) -> None:
    if progress:
        progress(Phase.TRAINING, (course + share) / courses, facts)


class _Course:
    """A patch in training on mini-batches in turn, which are lists of indices into ``facts``."""

    def __init__(self, method: Method, patch: Patch, facts: Sequence[Fact], batches: list[list[int]]) -> None:
        self.method, self.patch, self.facts, self.batches = method, patch, facts, batches
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
        passes = self.method.hparams.steps // n
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
        stop_at = self.method.hparams.stop_at
        if stop_at is not None and lowest >= stop_at and self.method.may_stop(self.patch.steps):
            return False
        if not moved and len(self.batches) > 1:  # of a single mini-batch that fails nothing is kept
            self._good = copy.deepcopy((self.patch, self._adam))
        work.step(loss.sum())
        return True

    def _leave_out(self, i: int, message: str) -> None:
        """Give up those facts of mini-batch i whose loss is not finite."""
        indices = self.batches[i]
        sick = [fact for fact in indices if not self._is_finite(fact, self.patch)] or indices
        if len(sick) == len(indices) and any(self._is_finite(fact, self._good[0]) for fact in sick):
            self.patch, self._adam = copy.deepcopy(self._good)
        self.lost |= dict.fromkeys(sick, message)
        self.batches[i] = [fact for fact in indices if fact not in sick]
        self._works.pop(i, None)
        self._losses.pop(i, None)

    @torch.no_grad()
    def _is_finite(self, fact: int, patch: Patch) -> bool:
        loss, _ = Work(self.method, patch, [self.method.lesson([self.facts[fact]])]).losses()
        return bool(loss.isfinite())

    def _work(self, i: int) -> Work:
        """Mini-batch i, set to work on the patch as it is."""
        work = self._works.get(i)
        if work is None:
            facts = [self.facts[fact] for fact in self.batches[i]]
            work = Work(self.method, self.patch, [self.method.lesson(facts)])
            if len(self._works) < _WORKS_KEPT:
                self._works[i] = work
        self._adam = self._adam or work.adam
        work.patch, work.adam = self.patch.train(), self._adam
        return work
