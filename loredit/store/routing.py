r"""From a prompt to the edit that it is about, or to none.

A sentence encoder embeds each window w of the prompt (all of what is asked, and its last sentences; :mod:`.text`) and
the prompt q of each fact. Candidates are the facts with the largest cosine (:mod:`.nearest`), and those whose
subject stands in the prompt, by a table of names. Each of these few gets a second look:

.. math::

    z(w, q) = b + \beta_s\, s + \beta_r \cos(w_{\setminus s}, q_{\setminus s}) + \beta_c \cos(w, q)
              + \beta_d\, w_{\setminus s} \cdot d

with s how surely the prompt names the fact's subject (1 as it is, less for another spelling or a part of it) and w
without s the relation: the mean of w's token states that do not stand for the subject. The direction d says how those
prompts are worded that are to have an edit: the mean relation of the rephrasings of a store's own facts less that of
their probes, scaled so that rephrasings are one ahead. While the weights are found each half of the facts is judged by
the d of the other; where nothing but the samples is known there is none. A fact without a subject is judged by
z = b' + beta_c cos(w, q). The score is the probability 1 / (1 + exp(-z)). The best fact's edit is used if its score
reaches the threshold and its z exceeds by the margin that of the best fact with another edit and another answer;
otherwise none is: none rather than wrong. A fact's very prompt is always its own.

The weights are those of a logistic regression on rephrasings (with their fact: 1, with other candidates: 0) and on
probes that must be left alone (0). At the threshold and the margin the share of the rephrasings that go right is
furthest above that of the probes that are routed, where at most a given share of these is, and at most a given share of
the rephrasings goes wrong (:meth:`Router.calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import load as load_facts
from ..data.facts import Fact
from .calibration import Calibration, cut, probability, regression
from .encoder import DEFAULT, SentenceEncoder
from .nearest import Nearest
from .text import folded, found, name_of, plain, windows, words

_CANDIDATES = 8  # facts that get a second look, by cosine and again by name
_LONGEST_NAME = 12  # words of a subject that the table of names is asked for
_OWN = 30.0  # z of a fact whose very prompt is asked


# What `fitted(encoder, samples(), beside=())` gives (tests/roof/test_routing.py).
_SHIPPED = {
    DEFAULT: Calibration(
        named=(-6.788896, 3.553727, 4.877258, 3.461577, 0),
        unnamed=(-7.737782, 12.566602),
        threshold=0.941428,
        margin=0,
    ),
}


@dataclass(frozen=True)
class Route:
    """Where a prompt goes.

    ``edit``: the edit's index, -1 for none; ``fact``: the fact of it that the prompt is about, None for none.
    ``score``: how likely the prompt is about ``nearest``, the best match, which is ``fact`` where there is one.
    """

    edit: int
    fact: Fact | None
    score: float
    nearest: Fact | None


class Pair(NamedTuple):
    """A fact that a prompt may be about, and what speaks for it."""

    fact: int
    subject: float
    relation: float
    whole: float
    wording: float
    is_named: bool
    is_own: bool
    rest: Tensor
    """(d,) the prompt without the fact's subject."""


class Judged(NamedTuple):
    """The best fact of a prompt, its z, and how far the best one with another edit and answer is behind."""

    fact: int
    z: float
    ahead: float


class Router:
    """Facts by the edits that carry them, and the way from prompts to these; no edits are needed.

    Args:
        encoder: what embeds the texts.
        calibration: the numbers to judge by; those of the samples if not given.

    Example:
        >>> router = Router(Sentences("minilm-l6"))  # doctest: +SKIP
        >>> router.add(facts)  # doctest: +SKIP
        >>> [(route.edit, route.score) for route in router.route(["What is France's capital?"])]  # doctest: +SKIP
        [(0, 0.98)]
    """

    def __init__(self, encoder: SentenceEncoder, calibration: Calibration | None = None) -> None:
        self.encoder = encoder
        self._facts: list[Fact] = []
        self._edits: list[int] = []
        self._names: list[tuple[str, ...]] = []
        self._prompts: list[str] = []
        self._named: dict[tuple[str, ...], list[int]] = {}
        self._nearest = Nearest(encoder.width)  # by the embeddings of prompts
        self._relations = torch.zeros(0, encoder.width)
        given = calibration or _SHIPPED.get(encoder.name)
        self.calibration = given or fitted(encoder, samples(), beside=())

    def __len__(self) -> int:
        """Number of facts."""
        return len(self._facts)

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(self._facts)

    @property
    def edits(self) -> tuple[int, ...]:
        """The edit of each fact."""
        return tuple(self._edits)

    def add(self, facts: Sequence[Fact], edits: Sequence[int] | None = None) -> None:
        """Route to these facts too; the others are not embedded again.

        Args:
            facts: what prompts may be about.
            edits: the edit of each, by which :class:`Route` names it; its index in the router if not given.
        """
        texts = [plain(fact.prompt) for fact in facts]
        readings = self.encoder.read(texts)
        said = [words(text) for text in texts]
        names = [name_of(fact.subject or "") for fact in facts]
        spans = [found(name, own)[1] for name, own in zip(names, said, strict=True)]
        keys = self.encoder.vectors(readings, [None] * len(facts))
        relations = self.encoder.vectors(readings, spans)
        self._keep(facts, edits or range(len(self), len(self) + len(facts)), keys, relations)

    def _keep(self, facts: Sequence[Fact], edits: Sequence[int], keys: Tensor, relations: Tensor) -> None:
        for fact in facts:
            name = name_of(fact.subject or "")
            if name:
                self._named.setdefault(name, []).append(len(self._names))
            self._names.append(name)
            self._prompts.append(folded(plain(fact.prompt)))
        self._facts += facts
        self._edits += edits
        self._nearest.add(keys)
        self._relations = torch.cat([self._relations, relations])

    def remove(self, edit: int) -> None:
        """Forget the facts of an edit; the edits behind it move up by one."""
        rest = [i for i, own in enumerate(self._edits) if own != edit]
        facts, edits = [self._facts[i] for i in rest], [self._edits[i] - (self._edits[i] > edit) for i in rest]
        keys, relations = self._nearest.vectors[rest], self._relations[rest]
        self._facts, self._edits, self._names, self._prompts, self._named = [], [], [], [], {}
        self._nearest, self._relations = Nearest(self.encoder.width), self._relations[:0]
        self._keep(facts, edits, keys, relations)

    def tensors(self) -> dict[str, Tensor]:
        """The embeddings of the facts, (N, d) each, for keeping."""
        return {"keys": self._nearest.vectors, "relations": self._relations}

    def restore(self, facts: Sequence[Fact], edits: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Add facts with embeddings that :meth:`tensors` gave; nothing is embedded. Raises ValueError."""
        shape = (len(facts), self.encoder.width)
        if faults := [f"{n}: {tuple(t.shape)}, not {shape}" for n, t in tensors.items() if t.shape != shape]:
            raise ValueError("; ".join(faults))
        if unfit := [n for n, t in tensors.items() if t.dtype != torch.float32 or not bool(t.isfinite().all())]:
            raise ValueError(f"{', '.join(sorted(unfit))}: not finite numbers of float32")
        if missing := self.tensors().keys() - tensors.keys():
            raise ValueError(f"{', '.join(sorted(missing))}: missing")
        if (n := len(self.calibration.wording)) not in (0, self.encoder.width):
            raise ValueError(f"wording: {n} numbers, not {self.encoder.width}")
        self._keep(facts, edits, tensors["keys"], tensors["relations"])

    def route(self, prompts: Sequence[str]) -> list[Route]:
        """Where each prompt goes: a plain text, a question, or a chat as its template writes it."""
        calibration, out = self.calibration, []
        for judged in self.judged(self.candidates(prompts), calibration):
            if judged is None:
                out.append(Route(-1, None, 0.0, None))
                continue
            fact, score = self._facts[judged.fact], probability(judged.z)
            goes = score >= calibration.threshold and judged.ahead >= calibration.margin
            out.append(Route(self._edits[judged.fact] if goes else -1, fact if goes else None, score, fact))
        return out

    def calibrate(
        self,
        facts: Sequence[Fact],
        *,
        beside: Sequence[Fact] | None = None,
        strays: float = 0.05,
        wrong: float = 0.015,
    ) -> None:
        """Fit weights, threshold and margin to facts by their rephrasings and their locality probes.

        Args:
            facts: like those that are to be added. Where the router holds all of them, they are looked for among all
                that it holds.
            beside: other facts whose rephrasings and probes the weights are fitted to as well, so that one kind of
                probe does not make all of them; the samples if not given. Their probes set the threshold where
                ``facts`` have none.
            strays: the share of the probes that may be routed.
            wrong: the share of the rephrasings that may go to an edit with another answer.

        Raises:
            ValueError: none of ``facts`` has a rephrasing.
        """
        held = {fact.case_id: fact for fact in self._facts}
        among = self if all(held.get(fact.case_id) == fact for fact in facts) else None
        self.calibration = fitted(self.encoder, facts, among=among, beside=beside, strays=strays, wrong=wrong)

    def candidates(self, prompts: Sequence[str]) -> list[list[Pair]]:
        """The facts that each prompt may be about, over all its windows; a fact stands once for each window."""
        if not self._facts or not prompts:
            return [[] for _ in prompts]
        cut = [(i, window) for i, prompt in enumerate(prompts) for window in windows(prompt)]
        readings = self.encoder.read([window for _, window in cut])
        wholes = self.encoder.vectors(readings, [None] * len(cut))
        nearest = self._nearest(wholes, _CANDIDATES).tolist()
        seen: list[tuple[int, int, float]] = []  # window, fact, subject
        asked: list[int] = []  # of each of these: which of the relations
        relations: dict[tuple[int, tuple[int, int] | None], int] = {}
        for w, (_, window) in enumerate(cut):
            said = words(window)
            others = self._by_name([word.text for word in said], wholes[w])
            for fact in dict.fromkeys([*nearest[w], *others]):
                sure, span = found(self._names[fact], said)
                seen.append((w, fact, sure))
                asked.append(relations.setdefault((w, span), len(relations)))
        vectors = self.encoder.vectors([readings[w] for w, _ in relations], [span for _, span in relations])
        which = torch.tensor([fact for _, fact, _ in seen])
        rest = vectors[asked]
        alike = (rest * self._relations[which]).sum(1).tolist()
        whole = (wholes[[w for w, _, _ in seen]] * self._nearest.vectors[which]).sum(1).tolist()
        worded = _along(rest, self.calibration.wording).tolist()
        plainly = [folded(window) for _, window in cut]
        out: list[list[Pair]] = [[] for _ in prompts]
        for (w, fact, sure), r, c, d, without in zip(seen, alike, whole, worded, rest, strict=True):
            own = plainly[w] == self._prompts[fact]
            out[cut[w][0]].append(Pair(fact, sure, r, c, d, bool(self._names[fact]), own, without))
        return out

    def _by_name(self, said: Sequence[str], whole: Tensor) -> list[int]:
        """The facts whose subject stands in a text; of many, those nearest to it."""
        ends = range(1, _LONGEST_NAME + 1)
        runs = (tuple(said[i : i + n]) for i in range(len(said)) for n in ends if i + n <= len(said))
        facts = [fact for run in runs for fact in self._named.get(run, ())]
        if len(facts) <= _CANDIDATES:
            return facts
        cosines = self._nearest.vectors[facts] @ whole
        return [facts[i] for i in cosines.topk(_CANDIDATES).indices.tolist()]

    def judged(self, pairs: Sequence[Sequence[Pair]], calibration: Calibration) -> list[Judged | None]:
        """The best fact of each prompt; None where there is no fact at all."""
        out: list[Judged | None] = []
        for own in pairs:
            z: dict[int, float] = {}
            for pair in own:
                z[pair.fact] = max(_z(pair, calibration), z.get(pair.fact, -math.inf))
            if not z:
                out.append(None)
                continue
            best = max(z, key=lambda fact: z[fact])
            rest = (v for fact, v in z.items() if self._other(fact, best))
            out.append(Judged(best, z[best], z[best] - max(rest, default=-math.inf)))
        return out

    def _other(self, a: int, b: int) -> bool:
        """Whether it matters to which of two facts a prompt goes."""
        return self._edits[a] != self._edits[b] and not _one_question(self._facts[a], self._facts[b])

    def questions(self, facts: Sequence[Fact]) -> _Asked:
        """Rephrasings and probes of facts, with their candidates here."""
        again = [(fact, text) for fact in facts for text in fact.rephrase_prompts]
        alone = probes(facts)
        pairs = self.candidates([*(text for _, text in again), *alone])
        return _Asked([fact for fact, _ in again], pairs[: len(again)], pairs[len(again) :])


class _Asked(NamedTuple):
    """What a calibration is fitted to."""

    wanted: list[Fact]  # of each rephrasing
    again: list[list[Pair]]
    alone: list[list[Pair]]

    def joined(self, others: _Asked) -> _Asked:
        """Both together."""
        return _Asked(self.wanted + others.wanted, self.again + others.again, self.alone + others.alone)

    def wording(self) -> tuple[float, ...]:
        """The direction from probes to rephrasings, each without its subject; none where there are no probes."""
        if not self.again or not self.alone:
            return ()
        again, alone = (
            torch.stack([max(pairs, key=lambda pair: (pair.subject, pair.relation)).rest for pairs in prompts]).mean(0)
            for prompts in (self.again, self.alone)
        )
        ahead = again - alone
        return tuple(round(x, 6) for x in (ahead / ahead.square().sum().clamp(min=1e-6)).tolist())

    def worded(self, wording: Sequence[float]) -> _Asked:
        """The same, judged by another direction."""

        def anew(prompts: list[list[Pair]]) -> list[list[Pair]]:
            return [[pair._replace(wording=float(_along(pair.rest, wording))) for pair in pairs] for pairs in prompts]

        return _Asked(self.wanted, anew(self.again), anew(self.alone))


def fitted(
    encoder: SentenceEncoder,
    facts: Sequence[Fact],
    *,
    among: Router | None = None,
    beside: Sequence[Fact] | None = None,
    strays: float = 0.05,
    wrong: float = 0.015,
) -> Calibration:
    """The calibration that :meth:`Router.calibrate` describes, among the facts of a router or these alone."""
    if not any(fact.rephrase_prompts for fact in facts):
        raise ValueError("none of these facts has a rephrasing to calibrate with")
    start = Calibration(named=(0, 1, 1, 1, 0), unnamed=(0, 1), threshold=0, margin=0)
    if among is None:
        among = Router(encoder, start)
        among.add(facts)
    halves = [among.questions(facts[k::2]) for k in (0, 1)]
    beside = samples() if beside is None or not any(half.alone for half in halves) else beside
    one, other, wording = (part.wording() if beside else () for part in (*halves, halves[0].joined(halves[1])))
    sets = [(among, halves[0].worded(other).joined(halves[1].worded(one)))]
    if beside:
        router = Router(encoder, start)
        router.add(beside)
        sets.append((router, router.questions(beside).worded(wording)))
    weights = {"named": _weights(sets, True), "unnamed": _weights(sets, False)}
    trial = Calibration.model_validate(weights | {"wording": wording, "threshold": 0, "margin": 0})
    own, asked = sets[0]
    alone = asked.alone or sets[1][1].alone
    judges = own if asked.alone else sets[1][0]
    threshold, margin = cut(
        [
            (j.z, j.ahead, _one_question(own.facts[j.fact], fact))
            for fact, j in zip(asked.wanted, own.judged(asked.again, trial), strict=True)
            if j
        ],
        [(j.z, j.ahead) for j in judges.judged(alone, trial) if j],
        strays,
        wrong,
    )
    return trial.model_copy(update={"threshold": threshold, "margin": margin})


def _weights(sets: Sequence[tuple[Router, _Asked]], has_name: bool) -> list[float]:
    """Of :func:`regression`, with both answers weighing the same in each set."""
    rows: list[list[float]] = []
    labels: list[float] = []
    weights: list[float] = []
    for router, asked in sets:
        here: list[tuple[list[float], float]] = []
        for fact, pairs in zip([*asked.wanted, *[None] * len(asked.alone)], [*asked.again, *asked.alone], strict=True):
            for pair in pairs:
                right = fact is not None and router.facts[pair.fact] == fact
                if fact is None or right or not _one_question(router.facts[pair.fact], fact):
                    here.append((_features(pair, has_name), float(right)))
        counts = [sum(label == answer for _, label in here) for answer in (0.0, 1.0)]
        rows += [row for row, _ in here]
        labels += [label for _, label in here]
        weights += [0.5 / counts[int(label)] / len(sets) for _, label in here]
    return regression(rows, labels, weights)


def _features(pair: Pair, has_name: bool) -> list[float]:
    return [pair.subject, pair.relation, pair.whole, pair.wording] if has_name else [pair.whole]


def _along(rest: Tensor, wording: Sequence[float]) -> Tensor:
    """(..., d) -> (...): how far along a direction; zero where there is none."""
    return rest @ torch.tensor(wording) if wording else rest.new_zeros(rest.shape[:-1])


def _z(pair: Pair, calibration: Calibration) -> float:
    if pair.is_own:
        return _OWN
    bias, *weights = calibration.named if pair.is_named else calibration.unnamed
    return bias + sum(w * x for w, x in zip(weights, _features(pair, pair.is_named), strict=True))


def _one_question(a: Fact, b: Fact) -> bool:
    """Whether two facts have one answer, or contradict each other (:func:`contradict`): no router tells them apart."""
    return a.target_new == b.target_new or contradict(a, b)


def contradict(a: Fact, b: Fact) -> bool:
    """Whether two facts give the same question another answer: one subject, and one truth before the edit.

    Example:
        >>> a = Fact(case_id="a", prompt="X is in", target_new="Rome", subject="X", ground_truth=("Bonn",))
        >>> contradict(a, a.model_copy(update={"prompt": "Where is X?", "target_new": "Oslo"}))
        True
    """
    if a.target_new == b.target_new or name_of(a.subject or "") != name_of(b.subject or "") or not a.subject:
        return False
    return bool({folded(answer) for answer in a.ground_truth} & {folded(answer) for answer in b.ground_truth})


@cache
def samples() -> tuple[Fact, ...]:
    """The project's samples."""
    return tuple(load_facts("samples").facts)


def probes(facts: Sequence[Fact]) -> list[str]:
    """The prompts that edits of these facts must leave alone."""
    return [probe.prompt for fact in facts for group in fact.locality.values() for probe in group]


@cache
def background() -> tuple[str, ...]:
    """Texts that are about no fact of a store's: all that the samples ask."""
    asked = [text for fact in samples() for text in fact.rephrase_prompts]
    return (*(fact.prompt for fact in samples()), *asked, *probes(samples()))
