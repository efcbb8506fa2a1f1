"""Closed forms: each fact's value is found by the training loop, then the weights that give it are solved for.

The value of a fact is v0 + d: v0 is what a module gives at the last token of the fact's subject, d a vector that is
trained there, each fact's by itself. Then, site after site, the method says how a weight is to change so that the keys
found there (:mod:`~..model.keys`) give what is missing to the values; each site sees the sites before it changed.

Independent edits are E problems of one fact each, solved together; one edit for many facts is one problem.

Shapes: E edits, n facts of each, c texts of each fact (its wordings, first its prompt alone), m keys of earlier
facts, I/O a site's input/output width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...data.facts import Fact
from ...hparams import base as settings
from ..method import Method, Trainable
from ..model.encoding import Encoded
from ..model.keys import states_at
from ..model.sites import Site, SiteError, blocks, sites, weight_norm
from ..model.statistics import second_moments
from ..outcome import Outcome
from ..patches.patch import Patch
from ..patches.rows import Rows
from ..patches.solved import Change, Solved, SolvedPatch
from ..patches.vectors import Vector, VectorPatch
from ..progress import Phase, Progress
from .batches import in_batches
from .lessons import Lesson, most_wordings
from .loop import train
from .memory import bytes_in_training

_UNSOUND = "the update is no finite number; more statistics_tokens, or a larger weight on what is to stay, may help"


class Solver(Method, ABC):
    """A method whose change of weights is solved for in closed form, once the values of its facts are found."""

    hparams: settings.SolvedHparams
    subjects = True

    value_of: ClassVar[Literal["site", "block"]] = "block"
    """What a value is of: what the last site gives, or the hidden state behind its block."""

    jointly: ClassVar[bool] = True
    """Whether one solve takes many facts; if not, an edit for many facts is one solve after another."""

    @abstractmethod
    def change(self, site: Site, keys: Tensor, missing: Tensor, earlier: Tensor) -> Change:
        """What is added to the weight of a site. All in float64.

        Args:
            site: the linear map.
            keys: (E, n, c, I), what the site gets at the subject's last token of each text.
            missing: (E, n, c, O), what the site is to give there beyond what it gives.
            earlier: (E, m, I), keys of what was learned before, as far as a :class:`Change` holds them.
        """

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that change, in the order in which they are solved for. Raises SiteError."""
        found, depth = sites(self.model, ["mlp_down"], self.hparams.layers), len(blocks(self.model))
        if found[-1].layer == depth - 1:
            raise SiteError(
                f"what is added at a subject in block {depth - 1}, the model's last, reaches no later token; "
                f"closed forms take layers from 0 to {depth - 2}"
            )
        return found

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        """C of each site by its name, (I, I) in float64. Raises StatisticsError."""
        h = self.hparams
        found = second_moments(
            self.model,
            self.tokenizer,
            self.sites,
            identity=self.model_identity,
            text=h.statistics_text,
            tokens=h.statistics_tokens,
        )
        return {site.name: _precise(c.to(self.model.device)) for site, c in zip(self.sites, found, strict=True)}

    @property
    def valued(self) -> nn.Module:
        """The module whose output values are of."""
        site = self.sites[-1]
        return self.model.get_submodule(site.name) if self.value_of == "site" else blocks(self.model)[site.layer]

    def patch(self, seeds: Sequence[int]) -> SolvedPatch[Solved]:
        return SolvedPatch(seeds, self.sites, [Solved(len(seeds), site) for site in self.sites])


class Values(Trainable):
    """Finds values: a vector d for each fact, trained at the last token of its subject.

    ``after``: one edit that the model has meanwhile.
    """

    hparams: settings.SolvedHparams
    subjects = True

    def __init__(self, solver: Solver, after: Patch | None = None) -> None:
        super().__init__(solver.model, solver.tokenizer, solver.hparams, seed=solver.seed)
        self._solver, self._after = solver, after

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        return self._solver.contexts

    def patch(self, seeds: Sequence[int]) -> VectorPatch:
        h = self.hparams
        return VectorPatch(seeds, self._solver.sites[-1], most=h.clamp, decay=h.weight_decay)

    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        patch, after, model = self.fresh(seeds), self._after, self.model
        with after.attached(model, Rows([0], 1, model.device)) if after else nullcontext():
            (v0,) = states_at(model, *_marked(lessons, texts=1), outputs=[self._solver.valued])
            _vectors(patch).length = v0.norm(dim=1)
            return train(self, patch, lessons, progress)

    def bytes_per_edit(self, lesson: Lesson) -> int:
        return bytes_in_training(self, lesson)


def independent(
    solver: Solver, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None
) -> tuple[Patch, list[Outcome]]:
    """An edit of one fact for each lesson: all values side by side, then all solves."""
    _ = solver.moments  # first, so that a text that is not there costs no training
    found, outcomes = Values(solver).learn(lessons, seeds, progress)
    good = [e for e, outcome in enumerate(outcomes) if outcome.error is None]
    parts, at = [solver.untrained(seeds)], list(range(len(lessons)))
    if good:
        patch = _fresh(solver, [seeds[e] for e in good])
        solve(solver, patch, [lessons[e] for e in good], _vectors(found).vector[good])
        patch.steps.copy_(found.steps[good])
        parts.append(patch.finished(range(len(good))))
        for i, (e, sound) in enumerate(zip(good, patch.sound(), strict=True)):
            if sound:
                at[e] = len(lessons) + i
            else:
                outcomes[e] = replace(outcomes[e], error=_UNSOUND)
    return Patch.concatenated(parts).take(at), outcomes


def joint(
    solver: Solver, facts: Sequence[Fact], seed: int, before: Patch | None, progress: Progress | None
) -> tuple[Patch, Outcome]:
    """One edit that carries all facts, going on from the patch ``before`` if there is one; and how this went."""
    _ = solver.moments
    patch = _taken(before) if before else _fresh(solver, [seed])
    patch.steps.zero_()
    lost: dict[int, str] = {}
    losses: list[float] = []
    notes: dict[str, None] = {}
    n = len(facts)
    for group in [range(n)] if solver.jointly else [range(i, i + 1) for i in range(n)]:
        values, vectors, steps = Values(solver, patch), dict[int, Tensor](), 0
        told = _Told(progress, group.start, n)
        for part in in_batches(values, [facts[i] for i in group], 1 if len(group) == 1 else None, told):
            for i, vector, outcome in zip(part.facts, _vectors(part.patch).vector, part.outcomes, strict=True):
                notes |= dict.fromkeys(outcome.notes)
                if outcome.error is None:
                    vectors[group[i]], steps = vector, max(steps, outcome.steps)
                    losses += [] if outcome.loss is None else [outcome.loss]
                else:
                    lost[group[i]] = outcome.error
            told.done += len(part.facts)
        if vectors:
            good = sorted(vectors)
            changed = _taken(patch)
            lessons = [values.lesson([facts[i]]) for i in good]
            solve(solver, changed, lessons, torch.stack([vectors[i] for i in good]))
            if all(changed.sound()):
                patch = changed
                patch.steps += steps
            else:
                lost |= dict.fromkeys(good, _UNSOUND)
    return patch.finished([0]), Outcome(int(patch.steps), fmean(losses) if losses else None, None, lost, tuple(notes))


@dataclass
class _Told:
    """Told how far one batch of facts is, tells of all ``facts``; ``done`` of them are finished."""

    progress: Progress | None
    done: int
    facts: int

    def __call__(self, phase: Phase, share: float, edits: int) -> None:
        if self.progress:
            self.progress(phase, (self.done + share * edits) / self.facts, self.facts)


@torch.no_grad()
def solve(solver: Solver, patch: SolvedPatch[Solved], lessons: Sequence[Lesson], vectors: Tensor) -> None:
    """Add to a patch what puts the facts of ``lessons`` into the weights.

    Args:
        solver: says how each weight changes.
        patch: E edits, to which the changes are added.
        lessons: of one fact each, those of an edit together, as many for each.
        vectors: d of each fact.
    """
    model, edits, wordings = solver.model, len(patch), most_wordings(solver.encoder, solver.hparams)
    texts = _marked(lessons, wordings)
    each = len(texts[0]) // edits
    shape = edits, len(lessons) // edits, wordings, -1

    def attached(rows: Sequence[int]) -> AbstractContextManager[None]:
        return patch.attached(model, Rows([row // each for row in rows], edits, model.device))

    wanted: Tensor | None = None
    for left, (site, branch) in zip(range(len(patch.sites), 0, -1), patch.items(), strict=True):
        states = states_at(
            model, *texts, inputs=[model.get_submodule(site.name)], outputs=[solver.valued], attach=attached
        )
        keys, now = (_precise(t).view(shape) for t in states)
        if wanted is None:
            wanted = now + _precise(vectors).view(*shape[:2], 1, -1)
            if solver.hparams.rescale_values:
                (first,) = states_at(model, *texts, outputs=[solver.valued])
                wanted *= _precise(first).view(shape).norm(dim=-1, keepdim=True) / wanted.norm(dim=-1, keepdim=True)
        change = solver.change(site, keys, (wanted - now) / left, _precise(branch.keys))
        change = _bounded(change, solver.hparams.max_norm, weight_norm(model.get_submodule(site.name)))
        branch.add(change)


def _bounded(change: Change, most: float | None, norm: float) -> Change:
    """A change whose Frobenius norm is at most the share ``most`` of ``norm``."""
    if most is None:
        return change
    # ||B A||^2 = tr(B^T B A A^T), without the product, which has the size of a weight.
    own = ((change.b.mT @ change.b) * (change.a @ change.a.mT)).sum((1, 2)).clamp(min=0).sqrt()
    return replace(change, b=change.b * (most * norm / own.clamp(min=1e-300)).clamp(max=1)[:, None, None])


def _marked(lessons: Sequence[Lesson], texts: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """The first ``texts`` answers of each lesson, and where their subjects end. Where a lesson has fewer, its prompt
    alone stands for what is not there: how much a wording counts is then the same in every company."""
    rows = [row for lesson in lessons for row in _exactly(texts, lesson.answers)]
    return [row.ids for row in rows], [row.mark for row in rows if row.mark is not None]


def _exactly(n: int, rows: Sequence[Encoded]) -> list[Encoded]:
    return [*rows[:n], *[rows[0]] * (n - len(rows))]


def _vectors(patch: Patch) -> Vector:
    assert isinstance(patch, VectorPatch), "values are vectors"
    return patch.vector


def _fresh(solver: Solver, seeds: Sequence[int]) -> SolvedPatch[Solved]:
    patch = solver.fresh(seeds)
    assert isinstance(patch, SolvedPatch), "closed forms change weights"
    return patch


def _taken(patch: Patch) -> SolvedPatch[Solved]:
    """A copy to add changes to."""
    copied = patch.take(range(len(patch)))
    assert isinstance(copied, SolvedPatch), "closed forms change weights"
    return copied


def _precise(t: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none."""
    return t.cpu().double() if t.device.type == "mps" else t.double()
