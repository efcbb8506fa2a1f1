"""The one training loop: many edits at once, each as if it were alone.

Shapes: E edits, R rows of a batch, T tokens, N predictions of all rows together, V vocabulary.

The loss is the *sum* over edits of each edit's mean, so edit e's gradient is what it would be alone, and Adam is
element-wise. Rows belong to one edit; blocks below the first edited one are run once and replayed; logits are computed
for target tokens only; an edit that is finished leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..devices import Budget
from ..method import Trainable
from ..model.attention import trainable_attention
from ..model.encoding import Batch, Encoded, Passes, Table
from ..model.kept import Kept
from ..model.passes import frozen, input_of, logits_at, logits_from, outputs_at, replayed
from ..outcome import Outcome
from ..patches.adam import Adam
from ..patches.patch import Patch
from ..patches.prefixes import Behind
from ..patches.rows import Rows
from ..progress import Phase, Progress
from .lessons import Lesson, parted

_TOKENS = Budget(cpu=512, mps=4096, accelerator=1 << 15)  # padded, of one pass
_LIKELY = 0.5  # standard deviations of the logits: what is so near to the largest counts as likely (OVERTONE's n)

Row = tuple[Literal["input", "output"], Encoded]
"""A state of the unedited model: what the first edited block gets of a row, or the output layer."""

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
    at = {e: i for i, e in enumerate(e for edits, _ in ended for e in edits)}  # of a lost edit the second one counts
    every = Patch.concatenated([part for _, part in ended])
    return every.take([at[e] for e in range(len(lessons))]), [outcomes[e] for e in range(len(lessons))]


class Work:
    """The edits in training: their patch, optimizer state and lessons, and what stays the same while they train.

    Where a step takes but some of a lesson's rows (``wordings_per_step``, ``held_per_step``), they are drawn anew for
    each, and an answer's probability is that of the last time that it was drawn.
    """

    def __init__(
        self, method: Trainable, patch: Patch, lessons: Sequence[Lesson], kept: Kept[Row] | None = None
    ) -> None:
        self.method, self.patch, self.edits = method, patch.train(), list(range(len(lessons)))
        self._precision = torch.promote_types(torch.float32, method.model.dtype)
        self.adam = Adam(self._parameters(), patch.rates(method.hparams.lr))
        self._steps, self._lessons = 0, list(lessons)
        self._unedited = Unedited(method, patch.first_layer, self._lessons, kept or Kept(None))
        self._draws = any(lesson.drawn(method.hparams, 0, 0) is not lesson for lesson in lessons)
        self._lay_out()

    def losses(self) -> tuple[Tensor, Tensor]:
        """(E,) each edit's loss, and (E,) how sure it is: the lowest probability among its target tokens; 1 where
        each is the likeliest, if that is to end an edit (``stop_at_rank_1``)."""
        loss, _, sure = self.losses_leaving(None)
        return loss, sure

    def losses_leaving(self, leave_at: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`losses`, and between the two (E,) the loss without the answers of the facts that are there, which
        are so sure of all of their target tokens; what they hold stays in it."""
        if self._draws:
            self._lay_out()
        logits, dropped = self._logits()
        cost = nll = F.cross_entropy(logits, self._batch.labels, reduction="none")
        if self.method.hparams.smooth is not None:
            cost = smoothed(logits, self._batch.labels, self.method.hparams.smooth)
        if len(self._held):
            # KL(p || q) = sum p (log p - log q), on the predictions that are to stay.
            log_q = logits[self._held].log_softmax(-1)
            cost = cost.index_put((self._held,), F.kl_div(log_q, self._said, reduction="none", log_target=True).sum(-1))
        of_row = self._batch.table(cost).sum(1) / self._batch.table.counts
        if dropped and self.method.hparams.sure is not None:
            logits = self._without_dropout()
            nll = F.cross_entropy(logits, self._batch.labels, reduction="none")
        worst = self._batch.table(nll.detach()).amax(1).masked_fill(self._anchor, 0.0)
        if self.method.hparams.stop_at_rank_1:
            beaten = self._batch.table((logits.argmax(-1) != self._batch.labels).to(nll.dtype)).amax(1)
            worst = worst.masked_fill(beaten == 0, 0.0)
        penalty = self.patch.penalty()
        loss = left = self._rows(of_row * self._weights).sum(1) + penalty
        if leave_at is not None:
            left = self._rows(of_row * self._weights * self._staying(worst, leave_at)).sum(1) + penalty
        return loss, left, (-self._unedited.worst_of_edits(self._chosen, worst)).exp()

    def _staying(self, worst: Tensor, leave_at: float) -> Tensor:
        """(R,), 0 for the answers of a fact all of whose target tokens have this probability, else 1."""
        rows = [of_fact for lesson in self._drawn for of_fact in _by_fact(lesson)]
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
            self._steps += 1
            self.patch.steps += 1
            for name, edits in self.patch.after_step().items():
                self.adam.restart(name, edits)

    def keep(self, left: Sequence[int]) -> None:
        """Let the other edits go: their rows, parameters and optimizer state leave the batch."""
        self.edits = [self.edits[i] for i in left]
        if not left:
            return
        self.patch = self.patch.take(left).train()
        self.adam.take(torch.tensor(left, device=self.patch.seeds.device))
        self._lessons = [self._lessons[i] for i in left]
        self._unedited.keep(left)
        self._lay_out()

    def _lay_out(self) -> None:
        """The rows of the next step, and what goes with them."""
        h, device = self.method.hparams, self.patch.seeds.device
        drawn = zip(self._lessons, self.patch.seeds.tolist(), strict=True)
        self._drawn = [lesson.drawn(h, seed, self._steps) for lesson, seed in drawn]
        of_edit = [[parted(h, row)[1] for of_fact in _by_fact(lesson) for row in of_fact] for lesson in self._drawn]
        counts = [(len(lesson.answers), len(lesson.anchors)) for lesson in self._drawn]
        self._owner = [e for e, rows in enumerate(of_edit) for _ in rows]
        rows = [row for rows in of_edit for row in rows]
        self._batch = Batch.of(rows, device)
        # Of uneven edits one pass: as many rows of each in a pass are one matrix for each.
        even = len({len(rows) for rows in of_edit}) == 1
        self._passes = Passes.of(rows, device, _TOKENS.on(device) if even else None, len(self.edits))
        self._within = [i for rows in of_edit for i in range(len(rows))]
        self._rows = Table([sum(n) for n in counts], device)
        weights = [
            w
            for answers, anchors in counts
            for w in (*[1 / answers] * answers, *[h.kl_weight / max(anchors, 1)] * anchors)
        ]
        self._weights = torch.tensor(weights, dtype=self._precision, device=device)
        self._anchor = torch.tensor([i >= n for n, m in counts for i in range(n + m)], device=device)
        self._held = self._anchor[self._batch.at[0]].nonzero().flatten()
        self._chosen = self._unedited.rows_of(self._drawn)
        of_pass = [[self._chosen[r] for r in some] for some in self._passes.rows]
        self._hidden = [
            self._unedited.hidden_of(chosen, batch.ids.shape[1])
            for chosen, batch in zip(of_pass, self._passes.batches, strict=True)
        ]
        self._begun = [self._unedited.begun(chosen) for chosen in of_pass]
        self._said = self._unedited.said_after(self._chosen)

    def _logits(self) -> tuple[Tensor, bool]:
        """(N, V), of the edits as they are; and whether dropout had a part in them."""
        behind, dropped = iter(zip(self._hidden, self._begun, strict=True)), False

        def run(rows: list[int], batch: Batch) -> Tensor:
            nonlocal dropped
            hidden, begun = next(behind)
            within = [self._within[r] for r in rows]
            owner = [self._owner[r] for r in rows]
            attached = Rows(owner, len(self.edits), self.patch.seeds.device, batch.marks, within)
            with run_behind(begun), self.patch.attached(self.method.model, attached):
                logits = logits_of(self.method.model, self.patch.first_layer, hidden, batch)
            dropped |= attached.dropped
            return logits

        return self._passes(run), dropped

    @torch.no_grad()
    def _without_dropout(self) -> Tensor:
        """(N, V), of the edits as they will be used: whether one is sure must not hang on what a mask leaves of it."""
        self.patch.eval()
        logits, _ = self._logits()
        self.patch.train()
        return logits

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.patch.named_parameters())


class Unedited:
    """What the unedited model makes of all rows of some lessons, computed once: what the first edited block gets, and
    what is predicted where it is to stay; beside it, how the answers stood when they were last seen. States that are
    ``kept`` from lessons before are not computed again.

    Shapes: R all rows, N all predictions that are to stay.
    """

    def __init__(self, method: Trainable, first: int, lessons: Sequence[Lesson], kept: Kept[Row]) -> None:
        self._device = device = method.model.device
        self._of_edit = [[row for of_fact in _by_fact(lesson) for row in of_fact] for lesson in lessons]
        self._anchors = [
            [i >= len(lesson.answers) for i in range(len(rows))]
            for lesson, rows in zip(lessons, self._of_edit, strict=True)
        ]
        self._hparams = method.hparams
        texts = [row for rows in self._of_edit for row in rows]
        begun, rows = zip(*(parted(self._hparams, row) for row in texts), strict=True)
        whole = Behind.of(method.model, begun) if any(begun) else None
        self._begun = whole and whole.above(first)
        self._hidden: Tensor | None = None  # (R, T, d)
        if first:
            inputs = self._inputs(method.model, first, rows, whole)
            self._hidden = pad_sequence(kept.of([("input", row) for row in texts], inputs), batch_first=True)
        self._worst = torch.zeros(
            len(rows), dtype=torch.promote_types(torch.float32, method.model.dtype), device=device
        )
        self._index()
        answers = [r for (_, is_anchor, _), r in self._row.items() if not is_anchor]
        self._worst[self._tensor(answers)] = torch.inf  # not seen yet
        held = [r for r, is_anchor in enumerate(a for anchors in self._anchors for a in anchors) if is_anchor]
        self._said: Tensor | None = None  # (N, V) log-probabilities of what comes where it is to stay
        if held:
            outputs = self._outputs(method.model, first, rows, held)
            last = torch.cat(kept.of([("output", texts[r]) for r in held], outputs))
            self._said = logits_from(method.model, last).to(self._worst.dtype).log_softmax(-1)

    def _inputs(
        self, model: PreTrainedModel, first: int, rows: Sequence[Encoded], whole: Behind | None
    ) -> Callable[[list[int]], list[Tensor]]:
        """Of some rows (T, d) each, what the first edited block gets."""

        def of(chosen: list[int]) -> list[Tensor]:
            found: dict[int, Tensor] = {}
            passes = Passes.of([rows[r] for r in chosen], self._device, _TOKENS.on(self._device))
            for some, batch in zip(passes.rows, passes.batches, strict=True):
                here = [chosen[i] for i in some]
                with run_behind(whole and whole.rows(self._tensor(here))):
                    states = input_of(model, first, batch.ids)
                found |= {r: text[: len(rows[r].ids)] for r, text in zip(here, states, strict=True)}
            return [found[r] for r in chosen]

        return of

    def _outputs(
        self, model: PreTrainedModel, first: int, rows: Sequence[Encoded], held: Sequence[int]
    ) -> Callable[[list[int]], Sequence[Tensor]]:
        """Of some held rows (N', d) each, what the output layer gets where predictions are to stay."""

        def of(chosen: list[int]) -> Sequence[Tensor]:
            here = [held[i] for i in chosen]

            def run(some: list[int], batch: Batch) -> Tensor:
                now = [here[i] for i in some]
                hidden = self.hidden_of(now, batch.ids.shape[1])
                with run_behind(self.begun(now)), nullcontext() if hidden is None else replayed(model, first, hidden):
                    return outputs_at(model, batch.ids, batch.at)

            some = [rows[r] for r in here]
            every = Passes.of(some, self._device, _TOKENS.on(self._device))(run)
            return every.split([len(row.wanted) for row in some])

        return of

    def begun(self, chosen: list[int]) -> Behind | None:
        """What of these rows is run once; None where nothing is."""
        return self._begun and self._begun.rows(self._tensor(chosen))

    def keep(self, left: Sequence[int]) -> None:
        """Let the rows of other edits go."""
        rows = self._tensor([r for e in left for r in range(*self._spans[e])])
        if self._said is not None:
            said = [i for e in left for span in self._said_spans[slice(*self._spans[e])] for i in range(*span)]
            self._said = self._said[self._tensor(said)]
        self._worst = self._worst[rows]
        self._begun = self._begun and self._begun.rows(rows)
        self._of_edit, self._anchors = [self._of_edit[e] for e in left], [self._anchors[e] for e in left]
        if self._hidden is not None:
            width = max(len(parted(self._hparams, row)[1].ids) for rows in self._of_edit for row in rows)
            self._hidden = self._hidden[rows, :width]
        self._index()

    def rows_of(self, lessons: Sequence[Lesson]) -> list[int]:
        """Where the rows of each edit's lesson, which may be a part of its whole one, are among all."""
        return [
            self._row[e, is_anchor, row]
            for e, lesson in enumerate(lessons)
            for is_anchor, rows in ((False, lesson.answers), (True, lesson.anchors))
            for row in rows
        ]

    def hidden_of(self, chosen: list[int], width: int) -> Tensor | None:
        """(R', T, d), what the first edited block gets of these rows; None where it is the model's first."""
        if self._hidden is None or chosen == [*range(len(self._hidden))]:
            return self._hidden
        return self._hidden[self._tensor(chosen), :width]

    def said_after(self, chosen: list[int]) -> Tensor:
        """(N', V) log-probabilities, in the order of the rows."""
        if self._said is None:
            return self._worst.new_zeros(0, 0)
        return self._said[self._tensor([i for r in chosen for i in range(*self._said_spans[r])])]

    def worst_of_edits(self, chosen: list[int], worst: Tensor) -> Tensor:
        """(E,) the largest of all rows' costs, after those of some, (R',), have been seen anew."""
        self._worst[self._tensor(chosen)] = worst
        return self._table(self._worst).amax(1)

    def _tensor(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.long, device=self._device)

    def _index(self) -> None:
        counts = [len(rows) for rows in self._of_edit]
        self._table = Table(counts, self._device)
        ends = [*accumulate(counts, initial=0)]
        self._spans = [*pairwise(ends)]
        keys = [
            (e, is_anchor, row)
            for e, (rows, anchors) in enumerate(zip(self._of_edit, self._anchors, strict=True))
            for row, is_anchor in zip(rows, anchors, strict=True)
        ]
        self._row = {key: r for r, key in enumerate(keys)}
        held = [len(parted(self._hparams, row)[1].wanted) if is_anchor else 0 for _, is_anchor, row in keys]
        self._said_spans = [*pairwise(accumulate(held, initial=0))]


def run_behind(begun: Behind | None) -> AbstractContextManager[None]:
    """While open, rows are run behind their beginnings, if these have been run."""
    return nullcontext() if begun is None else begun.attached()


def logits_of(model: PreTrainedModel, first: int, hidden: Tensor | None, batch: Batch) -> Tensor:
    """(N, V), at least in float32; from what block ``first`` gets on, where that is known."""
    with nullcontext() if hidden is None else replayed(model, first, hidden):
        logits = logits_at(model, batch.ids, batch.at)
    return logits.to(torch.promote_types(torch.float32, model.dtype))


def smoothed(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    r"""(N, V), (N,) -> (N,), each prediction's loss against a target of which its token is a ``share``
    (OVERTONE, https://arxiv.org/abs/2502.00602):

    .. math:: KL(q \| p), \qquad q = \lambda \delta_y + (1 - \lambda) \tilde p

    where :math:`\tilde p` is what the model now finds likely there, without a gradient of its own. Where y would not be
    the likeliest of q, q is y alone.
    """
    with torch.no_grad():
        likely = logits >= logits.amax(1, keepdim=True) - _LIKELY * logits.std(1, keepdim=True)
        one = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        q = share * one + (1 - share) * logits.masked_fill(~likely, -torch.inf).softmax(1)
        q = torch.where((q.argmax(1) == labels)[:, None], q, one)
    return F.kl_div(logits.log_softmax(1), q, reduction="none").sum(1)


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
