"""One edit that carries many facts: all of them in one training, or one after another on the same patch.

The facts of one optimizer step are a *mini-batch*. ``breadth_first``, every fact is learned from once in a pass, in
mini-batches that are drawn anew for each pass; ``depth_first``, each mini-batch is learned to its end before the next,
with an optimizer of its own. ``steps`` is how often each fact is learned from, at most, and what a method's schedule
counts in steps it counts in passes (``Hparams.in_steps``).

A fact that is there (all its target tokens have reached ``stop_at``, and the method's schedule is over) leaves the loss
of its step, and what it holds stays in; a mini-batch whose facts are all there takes no step. An edit is finished after
a pass without a step: then all facts have reached it with the same weights. Which wordings and which held predictions
of a fact are in a step (``wordings_per_step``, ``held_per_step``), and which earlier facts are learned again
(``replay``), is drawn from the edit's own seed. What the unedited model makes of a text is stored while there is room,
for the next time that it is drawn; nothing else of a mini-batch stays, so memory is bounded whatever the list.

A fact whose loss is not finite is left out. If that is so of all facts of a mini-batch, and was not so before the
latest pass that began well, the weights are to blame: the patch goes back to where it was then. Of a single mini-batch
no earlier state is stored: where all its facts fail, the edit has failed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean

import torch

from ...data.facts import Fact
from ..method import Method, Trained
from ..model.attention import trainable_attention
from ..model.encoding import EncodingError
from ..model.kept import Kept
from ..model.passes import frozen
from ..outcome import Outcome
from ..patches.adam import Adam
from ..patches.patch import Patch
from ..progress import Phase, Progress
from ..seeds import seed_of
from .lessons import Lesson, Part
from .loop import SICK, Row, Work

NULL_ALONE = "other subjects' inputs are taken from what a patch sees (null_subjects) only if it is of a single fact"


def together(
    method: Trained,
    facts: Sequence[Fact],
    seed: int,
    before: Patch | None,
    earlier: Sequence[Fact],
    progress: Progress | None,
) -> tuple[Patch, Outcome]:
    """One edit that carries all facts, going on from the patch ``before`` and its ``earlier`` facts if there is one."""
    h = method.hparams
    patch = before and before.take([0])  # training changes tensors in place
    _ = method.whitening  # made once, and not anew by each copy that is paced
    parts, lost = _parts(method, facts)
    alone = [NULL_ALONE] * any(part.nulls for part in parts.values())
    notes = tuple(dict.fromkeys([*alone, *(note for part in parts.values() for note in part.notes)]))
    good = [*parts]
    replayed = [*_parts(method, earlier)[0].values()] if h.replay else []
    depth_first = h.order == "depth_first"
    courses = [good[i : i + h.batch_size] for i in range(0, len(good), h.batch_size)] if depth_first else [good]
    steps, losses = 0, []
    with frozen(method.model), trainable_attention(method.model):
        for number, indices in enumerate(filter(None, courses)):
            paced = _paced(method, -(-len(indices) // h.batch_size))
            course = _Course(paced, paced.begun([seed], before=patch), {i: parts[i] for i in indices}, replayed)
            course.run(partial(_tell, progress, len(facts), number, len(courses)))
            lost |= course.lost
            if not all(course.patch.sound()):  # a single step can do that, and the next loss is never seen
                lost |= dict.fromkeys(course.parts, SICK)
            elif course.parts:
                patch = course.patch.finished([0])
                steps += int(patch.steps)
                losses.append(course.loss)
    outcome = Outcome(steps, fmean(losses) if losses else None, None, lost, notes)
    return patch or method.untrained([seed]), outcome


def _parts(method: Method, facts: Sequence[Fact]) -> tuple[dict[int, Part], dict[int, str]]:
    """What facts bring into the lesson, by index; and why others cannot be learned."""
    parts, lost = {}, {}
    for i, fact in enumerate(facts):
        try:
            (parts[i],) = method.lesson([fact]).parts
        except EncodingError as error:
            lost[i] = str(error)
    return parts, lost


def _paced(method: Trained, batches: int) -> Trained:
    """The method with schedules that last as long as all passes over so many mini-batches."""
    paced = copy.copy(method)
    paced.hparams = method.hparams.model_copy(
        update={name: getattr(method.hparams, name) * batches for name in method.hparams.in_steps}
    )
    return paced


def _tell(progress: Progress | None, facts: int, course: int, courses: int, share: float) -> None:
    if progress:
        progress(Phase.TRAINING, (course + share) / courses, facts)


class _Course:
    """A patch in training on facts in mini-batches, and on some of those that it carries already."""

    def __init__(self, method: Trained, patch: Patch, parts: dict[int, Part], earlier: Sequence[Part]) -> None:
        self.method, self.patch, self.parts, self.earlier = method, patch, parts, earlier
        self.lost: dict[int, str] = {}
        self._seed, self._size = int(patch.seeds[0]), method.hparams.batch_size
        self._adam: Adam | None = None
        self._good: tuple[Patch, Adam | None] = (patch, None)
        self._work: tuple[Lesson, Work] | None = None
        self._kept = Kept[Row](method.model.device)
        self._losses: list[float] = []

    @property
    def loss(self) -> float:
        """The mean over the mini-batches of the latest pass."""
        return fmean(self._losses)

    def run(self, told: Callable[[float], None]) -> None:
        """Pass after pass, until one takes no step."""
        n = -(-len(self.parts) // self._size)
        passes = self.method.hparams.steps // n
        for number in range(passes):
            moved, seen = False, []
            for i, batch in enumerate(self._batches(number)):
                taken, loss = self._learn(batch, number, moved)
                moved |= taken
                seen += [] if loss is None else [loss]
                told((number + (i + 1) / n) / passes)
            self._losses = seen or self._losses
            if not moved:
                break

    def _batches(self, number: int) -> Iterator[list[int]]:
        """The facts in mini-batches, in an order of this pass."""
        order = [*self.parts]
        if len(order) > self._size:
            random.Random(seed_of("order", self._seed, number)).shuffle(order)
        for i in range(0, len(order), self._size):
            yield order[i : i + self._size]

    def _learn(self, batch: list[int], number: int, moved: bool) -> tuple[bool, float | None]:
        """One step on a mini-batch, unless its facts are all there: whether it was taken, and the loss before it.
        ``moved``: the pass has taken a step before."""
        while batch := [i for i in batch if i in self.parts]:
            work = self._working(self._lesson(batch, number))
            enough = self.method.hparams.sure if self.method.may_stop(self.patch.steps) else None
            loss, left, sure = work.losses_leaving(enough)
            if loss.isfinite():
                break
            self._leave_out(batch, f"the loss became {loss.item()} at step {number}; a lower lr may help")
        else:
            return False, None
        if enough is not None and sure >= enough:
            return False, loss.item()
        if not moved and len(self.parts) > self._size:  # a single mini-batch that fails leaves nothing
            self._good = copy.deepcopy((self.patch, self._adam))
        work.step(left.sum())
        return True, loss.item()

    def _lesson(self, batch: Sequence[int], number: int) -> Lesson:
        """What is learned from in a step of pass ``number``."""
        h = self.method.hparams
        draw = random.Random(seed_of("replay", self._seed, number, *batch))
        again = draw.sample(self.earlier, min(h.replay, len(self.earlier)))
        parts = [*(self.parts[i] for i in batch), *again]
        return Lesson(tuple(parts)).drawn(h, self._seed, number)

    def _leave_out(self, batch: Sequence[int], message: str) -> None:
        """Give up those facts of a mini-batch whose loss is not finite."""
        sick = [i for i in batch if not self._is_finite(i, self.patch)] or [*batch]
        if len(sick) == len(batch) and any(self._is_finite(i, self._good[0]) for i in sick):
            self.patch, self._adam = copy.deepcopy(self._good)
        self.lost |= dict.fromkeys(sick, message)
        for i in sick:
            del self.parts[i]
        self._work = None

    @torch.no_grad()
    def _is_finite(self, i: int, patch: Patch) -> bool:
        loss, _ = Work(self.method, patch, [Lesson((self.parts[i],))]).losses()
        return bool(loss.isfinite())

    def _working(self, lesson: Lesson) -> Work:
        """The lesson, set to work on the patch as it is; what stays the same from step to step is not made anew."""
        if self._work is None or self._work[0] != lesson:
            self._work = lesson, Work(self.method, self.patch, [lesson], self._kept)
        work = self._work[1]
        self._adam = self._adam or work.adam
        work.patch, work.adam = self.patch.train(), self._adam
        return work
