"""The one training loop: many edits at once, each as if it were alone.

Shapes: E edits, R rows of a batch, T tokens, N predictions of all rows together, V vocabulary.

The loss is the *sum* over edits of each edit's mean, so edit e's gradient is what it would be alone, and Adam is
element-wise. Rows belong to one edit; blocks below the first edited one are run once and replayed; logits are computed
for target tokens only; an edit that is finished leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..method import Trainable
from ..model.attention import trainable_attention
from ..model.encoding import Batch, Encoded, Table
from ..model.passes import frozen, input_of, logits_at, replayed
from ..outcome import Outcome
from ..patches.adam import Adam
from ..patches.patch import Patch
from ..patches.rows import Rows
from ..progress import Phase, Progress
from .lessons import Lesson

# The loss is seen before a step is taken; what the last step did shows in the weights alone.
SICK = "the last step made a weight NaN or infinite; a lower lr may help"


def train(
    method: Trainable, patch: Patch, lessons: Sequence[Lesson], progress: Progress | None = None
) -> tuple[Patch, list[Outcome]]:
    """Train edit e of the patch on ``lessons[e]``; the trained patch and how each edit ended."""
    h = method.hparams
    ended: list[tuple[list[int], Patch]] = []
    outcomes: dict[int, Outcome] = {}
    with frozen(method.model), trainable_attention(method.model):
        work = Work(method, patch, lessons)
        for step in range(h.steps):
            loss, sure = work.losses()
            failed = ~loss.isfinite()
            done = failed if h.sure is None else failed | ((sure >= h.sure) & method.may_stop(work.patch.steps))
            last, flags = torch.stack([loss, done.to(loss.dtype)]).tolist()  # the one wait for the device in a step
            over, left = [i for i, flag in enumerate(flags) if flag], [i for i, flag in enumerate(flags) if not flag]
            for i in over:
                error = None if isfinite(last[i]) else f"the loss became {last[i]} at step {step}; a lower lr may help"
                outcomes[work.edits[i]] = Outcome(step, last[i], error, notes=lessons[work.edits[i]].notes)
            if over:
                ended.append(([work.edits[i] for i in over], work.patch.finished(over)))
            if left:
                work.step(loss[left].sum())
            if over:
                work.keep(left)
                last = [last[i] for i in left]
            if progress:
                progress(Phase.TRAINING, (step + 1) / h.steps, len(lessons))
            if not left:
                break
        if work.edits:
            sound = work.patch.sound()
            for i, e in enumerate(work.edits):
                outcomes[e] = Outcome(h.steps, last[i], None if sound[i] else SICK, notes=lessons[e].notes)
            ended.append((work.edits, work.patch.finished(range(len(work.edits)))))
    if lost := [e for e, outcome in outcomes.items() if outcome.error]:
        ended.append((lost, method.untrained([int(patch.seeds[e]) for e in lost])))
    place = {e: i for i, e in enumerate(e for edits, _ in ended for e in edits)}  # a lost edit's second place counts
    every = Patch.concatenated([part for _, part in ended])
    return every.take([place[e] for e in range(len(lessons))]), [outcomes[e] for e in range(len(lessons))]


class Work:
    """The edits in training: their patch, optimizer state and rows, and what stays the same while they train."""

    def __init__(self, method: Trainable, patch: Patch, lessons: Sequence[Lesson]) -> None:
        self.method, self.patch, self.edits = method, patch.train(), list(range(len(lessons)))
        self._precision = torch.promote_types(torch.float32, method.model.dtype)
        self.adam = Adam(self._parameters(), patch.rates(method.hparams.lr))
        self._lay_out(list(lessons))
        first = patch.first_layer
        self._hidden = input_of(method.model, first, self._batch.ids) if first else None
        self._unedited = self._unedited_log_probs() if self._anchor.any() else None

    def losses(self) -> tuple[Tensor, Tensor]:
        """(E,) each edit's loss, and (E,) how sure it is: the lowest probability among its target tokens; 1 where
        each is the likeliest, if that is to end an edit (``stop_at_rank_1``)."""
        loss, _, sure = self.losses_leaving(None)
        return loss, sure

    def losses_leaving(self, leave_at: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`losses`, and between the two (E,) the loss without the answers of the facts that are there, which
        are so sure of all of their target tokens; what they hold stays in it."""
        rows = Rows(self._owner, len(self.edits), self.patch.seeds.device, self._batch.marks)
        with self.patch.attached(self.method.model, rows):
            logits = self._logits()
        cost = nll = F.cross_entropy(logits, self._batch.labels, reduction="none")
        if self._unedited is not None:
            # KL(p || q) = sum p (log p - log q), on the predictions that are to stay.
            log_q = logits[self._held].log_softmax(-1)
            cost = nll.index_put(
                (self._held,), F.kl_div(log_q, self._unedited, reduction="none", log_target=True).sum(-1)
            )
        of_row = self._batch.table(cost).sum(1) / self._batch.table.counts
        worst = self._batch.table(nll.detach()).amax(1).masked_fill(self._anchor, 0.0)
        if self.method.hparams.stop_at_rank_1:
            beaten = self._batch.table((logits.argmax(-1) != self._batch.labels).to(nll.dtype)).amax(1)
            worst = worst.masked_fill(beaten == 0, 0.0)
        penalty = self.patch.penalty()
        loss = left = self._rows(of_row * self._weights).sum(1) + penalty
        if leave_at is not None:
            left = self._rows(of_row * self._weights * self._staying(worst, leave_at)).sum(1) + penalty
        return loss, left, (-self._rows(worst).amax(1)).exp()

    def _staying(self, worst: Tensor, leave_at: float) -> Tensor:
        """(R,), 0 for the answers of a fact all of whose target tokens have this probability, else 1."""
        rows = [of_fact for lesson in self._lessons for of_fact in _by_fact(lesson)]
        counts = [len(of_fact) for of_fact in rows if of_fact]
        is_there = (-Table(counts, worst.device)(worst).amax(1)).exp() >= leave_at
        of_row = is_there.repeat_interleave(torch.tensor(counts, device=worst.device))
        return (~of_row | self._anchor).to(worst.dtype)

    def step(self, loss: Tensor) -> None:
        """One optimizer step on the sum over edits."""
        for p in self.patch.parameters():
            p.grad = None
        loss.backward()
        if self.method.hparams.clip_norm is not None:
            clip(self.patch, self.method.hparams.clip_norm)
        with torch.no_grad():
            self.patch.before_step()
            self.adam.step(self._parameters())
            self.patch.steps += 1
            for name, edits in self.patch.after_step().items():
                self.adam.restart(name, edits)

    def keep(self, left: Sequence[int]) -> None:
        """Let the other edits go: their rows, parameters and optimizer state leave the batch."""
        self.edits = [self.edits[i] for i in left]
        if not left:
            return
        device = self.patch.seeds.device
        rows = torch.tensor([r for r, owner in enumerate(self._owner) if owner in set(left)], device=device)
        held = torch.isin(self._batch.at[0][self._held], rows)
        self.patch = self.patch.take(left).train()
        self.adam.take(torch.tensor(left, device=device))
        self._lay_out([self._lessons[i] for i in left])
        if self._hidden is not None:
            self._hidden = self._hidden[rows, : self._batch.ids.shape[1]]
        if self._unedited is not None:
            self._unedited = self._unedited[held]

    def _lay_out(self, lessons: list[Lesson]) -> None:
        device, kl_weight = self.patch.seeds.device, self.method.hparams.kl_weight
        rows = [row for lesson in lessons for of_fact in _by_fact(lesson) for row in of_fact]
        counts = [(len(lesson.answers), len(lesson.anchors)) for lesson in lessons]
        self._lessons = lessons
        self._owner = [e for e, (answers, anchors) in enumerate(counts) for _ in range(answers + anchors)]
        self._batch, self._rows = Batch.of(rows, device), Table([sum(n) for n in counts], device)
        weights = [
            w
            for answers, anchors in counts
            for w in (*[1 / answers] * answers, *[kl_weight / max(anchors, 1)] * anchors)
        ]
        self._weights = torch.tensor(weights, dtype=self._precision, device=device)
        self._anchor = torch.tensor([i >= n for n, m in counts for i in range(n + m)], device=device)
        self._held = self._anchor[self._batch.at[0]].nonzero().flatten()

    def _logits(self) -> Tensor:
        """(N, V), at least in float32."""
        model = self.method.model
        with replayed(model, self.patch.first_layer, self._hidden) if self._hidden is not None else nullcontext():
            logits = logits_at(model, self._batch.ids, self._batch.at)
        return logits.to(self._precision)

    @torch.no_grad()
    def _unedited_log_probs(self) -> Tensor:
        return self._logits()[self._held].log_softmax(-1)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.patch.named_parameters())


def _by_fact(lesson: Lesson) -> list[tuple[Encoded, ...]]:
    """A lesson's rows in the order in which they are laid out: the answers of each fact, then the anchors of each."""
    return [*(part.answers for part in lesson.parts), *(part.anchors for part in lesson.parts)]


def clip(patch: Patch, most: float) -> None:
    """Scale each edit's own gradient to a norm of at most ``most``."""
    grads = [p.grad for p in patch.parameters() if p.grad is not None]
    norm = torch.stack([grad[:, None].flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()
    scale = (most / norm.clamp(min=most)).to(grads[0].dtype)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
