"""From what was observed to numbers: pure functions :class:`~.scores.FactScores` -> :class:`Summary`.

Every metric is a mean over facts of one number per fact, times 100 as the field prints it, and higher is better for
all of them. Within a fact, probes are averaged by group, then over groups; a fact without such probes does not count.
Each is given for the edited model and, where that means something, for the unedited one beside it.

=====================  =============  =====================================================================
name                   family         per probe
=====================  =============  =====================================================================
edit_success           token_em       :func:`token_em` of ``target_new`` after the edited prompt
generalization         token_em       the same after each rephrased prompt
chat                   token_em       the same after each question in the model's chat template
portability            token_em       the same for the answers of each portability probe
locality               token_em       :func:`unchanged`: the edited model's argmax against the unedited one's
locality_truth         token_em       :func:`token_em` of each locality probe's true answers
strict_*               strict         :func:`strict`, :func:`strict_unchanged`: all of an answer's tokens at once
generation_*           generation     :func:`generated`, :func:`generated_unchanged`: what a reader would see
contains_*             generation     :func:`contained`: the same, with other words around the answer
rouge_l_*              generation     :func:`rouge_l`: how much of a long answer comes back
probability_*          probabilities  :func:`preferred`: the right answer is likelier than its rival
margin_*               probabilities  :func:`margin`: by how much
claim_*                strict         :func:`strict` of the probes of each claim, joined by its rule
contains_claim_*       generation     :func:`contained` of them, likewise
fluency                fluency        :func:`ngram_entropy` of sampled text
=====================  =============  =====================================================================

``token_em`` and ``fluency`` are EasyEdit's metrics (zjunlp/EasyEdit, ``evaluate/evaluate_utils.py``), the
``probabilities`` are ROME's (arXiv 2202.05262; kmeng01/rome, ``experiments/summarize.py``), ``generation`` compares
as SQuAD does (arXiv 1606.05250). Unlike there, a NaN never leaves a mean in silence: its case is a :class:`Failure`.

A group of claims (:class:`~..data.facts.Claim`) has a number of its own, named after it: the share of its claims that
are true, of those whose given probes the unedited model answers, for it and for the edited model alike.

A fact that failed has no observations, so means are of the others; a method that gives up on hard facts would gain.
Beside them, edit success and generalization are therefore given once more with failed facts as 0
(:attr:`MetricSummary.with_failures`). Intervals are those of :func:`interval`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from scipy.special import betaincinv

from .scores import AnswerScore, FactScores, Kind, Place, ProbeScores, Seen

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

Family = Literal["token_em", "strict", "generation", "probabilities", "fluency"]

RESAMPLES = 1000
TAIL = 0.025  # what a 95 % interval leaves out at each end
_LONG = 20  # words
_PUNCTUATION = str.maketrans("", "", string.punctuation)
PICKS_AT_ONCE = 1_000_000  # bounds the bootstrap's memory to some ten megabytes, however many facts there are


# One probe through one model


def token_em(probe: ProbeScores, seen: Seen) -> float | None:
    """Share of the answer's tokens that are the argmax with the answer teacher-forced; the best of several aliases.

    None where nobody wrote an answer down. Higher is better. Source: EasyEdit, ``test_prediction_acc``.
    """
    return max((fmean(answer.correct) for answer in seen.answers), default=None)


def unchanged(probe: ProbeScores, seen: Seen) -> float | None:
    """Share of the answer's positions where the edited model's argmax is the unedited model's, right or wrong.

    None where nobody wrote an answer down. Higher is better. Source: EasyEdit, ``test_prediction_acc(locality=True)``
    before and after the edit.
    """
    return fmean(probe.same) if probe.same else None


def strict(probe: ProbeScores, seen: Seen) -> float:
    """1 if all tokens of some accepted answer are the argmax at once. Higher is better; never above ``token_em``."""
    return float(any(all(answer.correct) for answer in seen.answers))


def strict_unchanged(probe: ProbeScores, seen: Seen) -> float | None:
    """1 if the argmax changed at none of the answer's positions. Higher is better; never above ``unchanged``."""
    return float(all(probe.same)) if probe.same else None


def generated(probe: ProbeScores, seen: Seen) -> float | None:
    """1 if the greedy continuation equals an accepted answer after :func:`normalise`; None where none was made.

    Higher is better. Source: SQuAD's exact match.
    """
    if seen.generated is None:
        return None
    return float(normalise(seen.generated) in map(normalise, probe.answers))


def contained(probe: ProbeScores, seen: Seen) -> float | None:
    """1 if the greedy continuation :func:`says` an accepted answer, "The capital is Rome." for one; None where none was
    made. Higher is better; never below :func:`generated`.
    """
    if seen.generated is None:
        return None
    return float(any(says(seen.generated, answer) for answer in probe.answers))


def rouge_l(probe: ProbeScores, seen: Seen) -> float | None:
    """F of the longest common subsequence of words of the greedy continuation and of an accepted answer, the best of
    several; None where no continuation was made or no answer has more than 20 words, so that :func:`contained` says it.

    Higher is better. Source: ROUGE-L (Lin, 2004), without stemming.
    """
    long = [words for answer in probe.answers if len(words := normalise(answer).split()) > _LONG]
    if seen.generated is None or not long:
        return None
    written = normalise(seen.generated).split()
    return max(2 * _in_common(written, words) / (len(written) + len(words)) for words in long)


def _in_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    longest = [0] * (len(b) + 1)
    for word in a:
        above = 0  # of a without this word, and one word of b less
        for j, other in enumerate(b, 1):
            above, longest[j] = longest[j], above + 1 if word == other else max(longest[j], longest[j - 1])
    return longest[-1]


def generated_unchanged(probe: ProbeScores, seen: Seen) -> float | None:
    """1 if both models' greedy continuations are equal after :func:`normalise`. Higher is better."""
    if probe.base.generated is None or probe.edited.generated is None:
        return None
    return float(normalise(probe.base.generated) == normalise(probe.edited.generated))


def preferred(probe: ProbeScores, seen: Seen) -> float | None:
    """1 if P(right) > P(rival): ``target_new`` over ``ground_truth`` on the prompt and its rephrasings, the true
    answer over ``target_new`` on locality probes; None where the fact has no rival.

    P is the geometric mean of the answer's token probabilities, exp(-mean NLL), so that a long answer can win against
    a short one; the likeliest of several aliases counts. Higher is better. Source: ROME's efficacy, paraphrase and
    neighborhood *score*.
    """
    if seen.contrast is None:
        return None
    return float(_best_log_prob(seen) > _token_log_prob(seen.contrast))


def margin(probe: ProbeScores, seen: Seen) -> float | None:
    """P(right) - P(rival), the P of :func:`preferred`, in -1 .. 1. Higher is better. Source: ROME's *magnitude*."""
    if seen.contrast is None:
        return None
    return math.exp(_best_log_prob(seen)) - math.exp(_token_log_prob(seen.contrast))


def _best_log_prob(seen: Seen) -> float:
    return max(map(_token_log_prob, seen.answers))


def _token_log_prob(answer: AnswerScore) -> float:
    return answer.log_prob / len(answer.correct)


# Text


@lru_cache(maxsize=100_000)  # a report asks for the same texts several times
def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles (a, an, the), single spaces.

    A text made of articles keeps them, and one made of punctuation is only stripped, so that the answers "A" or "?"
    do not equal silence.
    """
    bare = text.lower().translate(_PUNCTUATION)
    words = re.sub(r"\b(a|an|the)\b", " ", bare).split() or bare.split() or text.lower().split()
    return " ".join(words)


def says(text: str, answer: str) -> bool:
    """Whether a text holds the words of an answer one after another, whatever the case, punctuation and articles.

    Example:
        >>> says("created by Stan Lee, who was a legend", "Stan Lee")
        True
        >>> says("Romania", "Rome")
        False
    """
    return f" {normalise(answer)} " in f" {normalise(text)} "


@lru_cache(maxsize=10_000)
def ngram_entropy(text: str) -> float:
    """Fluency: mean of 2/3 H_2 and 4/3 H_3, where H_n = -sum p log2 p over the text's word n-grams, in bits.

    Repetition lowers it; higher is better. A text of fewer than n words has H_n = 0. Source: EasyEdit and ROME,
    ``compute_n_gram_entropy``.

    Words are those of ``nltk.word_tokenize``, except that sentences are split by Punkt's rules without its trained
    list of abbreviations, which would be a download: the period after "Dr." is then a word of its own.
    """
    words = _words(text)
    return fmean([2 / 3 * _entropy(words, 2), 4 / 3 * _entropy(words, 3)])


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def _words(text: str) -> list[str]:
    sentences, words = _tokenizers()
    return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


@lru_cache(maxsize=1)
def _tokenizers() -> tuple[PunktSentenceTokenizer, NLTKWordTokenizer]:
    from nltk.tokenize import NLTKWordTokenizer  # noqa: PLC0415 - takes a second, and only fluency needs it
    from nltk.tokenize.punkt import PunktSentenceTokenizer  # noqa: PLC0415

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


# One fact


class Value(NamedTuple):
    """One fact's number, 0 .. 100 for a share, and how many probes (or texts) it was averaged from."""

    mean: float
    probes: int


PerFact = Callable[[FactScores], tuple[Value | None, Value | None]]
"""A fact's value with the edited and with the unedited model; None where it was not observed or means nothing."""


def _averaged(kind: Kind, score: Callable[[ProbeScores, Seen], float | None], *, against_base: bool = False) -> PerFact:
    """Mean of ``score`` over the fact's probes of one kind: within each group, then over groups.

    A score ``against_base`` compares both models already, so the unedited one has none of its own.
    """

    def per_fact(fact: FactScores) -> tuple[Value | None, Value | None]:
        probes = [probe for probe in fact.probes if probe.kind == kind]
        edited = _group_mean((probe.group, score(probe, probe.edited)) for probe in probes)
        base = None if against_base else _group_mean((probe.group, score(probe, probe.base)) for probe in probes)
        return edited, base

    return per_fact


def _group_mean(scored: Iterable[tuple[str, float | None]]) -> Value | None:
    groups = defaultdict(list)
    for group, score in scored:
        if score is not None:
            groups[group].append(score)
    if not groups:
        return None
    return Value(100 * fmean(map(fmean, groups.values())), sum(map(len, groups.values())))


def _claimed(group: str, score: Callable[[ProbeScores, Seen], float | None]) -> PerFact:
    """The share of a group's claims that are true, of those that count."""

    def per_fact(fact: FactScores) -> tuple[Value | None, Value | None]:
        claims: dict[int, list[tuple[Place, ProbeScores]]] = defaultdict(list)
        for probe in fact.probes:
            if probe.group == group and probe.place is not None:
                claims[probe.place.claim].append((probe.place, probe))
        counting = [
            [(place.way, probe) for place, probe in claim if place.way is not None]
            for claim in claims.values()
            if all(score(probe, probe.base) == 1 for place, probe in claim if place.way is None)
        ]

        def true(edited: bool) -> Value | None:
            found = []
            for claim in counting:
                ways: dict[int, list[float | None]] = defaultdict(list)
                for way, probe in claim:
                    ways[way].append(score(probe, probe.edited if edited else probe.base))
                if not any(None in way for way in ways.values()):
                    found.append(float(any(all(way) for way in ways.values())))
            return Value(100 * fmean(found), sum(map(len, counting))) if found else None

        return true(True), true(False)

    return per_fact


def _fluency(fact: FactScores) -> tuple[Value | None, Value | None]:
    edited, base = (
        None if text is None else Value(100 * ngram_entropy(text), 1) for text in (fact.edited_text, fact.base_text)
    )
    return edited, base


SHARE, MARGIN = (0.0, 100.0), (-100.0, 100.0)
"""Between what a fact's number lies."""


@dataclass(frozen=True)
class Metric:
    """One row of every report."""

    name: str
    label: str
    family: Family
    per_fact: PerFact
    bounds: tuple[float, float] | None = SHARE
    """Between what a fact's number lies; None where nothing is known of it, as of an entropy."""
    failed: Kind | None = None
    """Of a metric that a failed fact fails too (with 0), the kind of probe that it is about."""

    @property
    def difference_bounds(self) -> tuple[float, float] | None:
        """Between what the difference of two runs lies."""
        return None if self.bounds is None else (self.bounds[0] - self.bounds[1], self.bounds[1] - self.bounds[0])


METRICS = (
    Metric("edit_success", "edit success", "token_em", _averaged("rewrite", token_em), failed="rewrite"),
    Metric("generalization", "generalization", "token_em", _averaged("rephrase", token_em), failed="rephrase"),
    Metric("chat", "chat", "token_em", _averaged("chat", token_em), failed="chat"),
    Metric("portability", "portability", "token_em", _averaged("portability", token_em)),
    Metric("locality", "locality", "token_em", _averaged("locality", unchanged, against_base=True)),
    Metric("locality_truth", "locality (truth)", "token_em", _averaged("locality", token_em)),
    Metric("strict_edit_success", "edit success", "strict", _averaged("rewrite", strict), failed="rewrite"),
    Metric("strict_generalization", "generalization", "strict", _averaged("rephrase", strict), failed="rephrase"),
    Metric("strict_chat", "chat", "strict", _averaged("chat", strict), failed="chat"),
    Metric("strict_portability", "portability", "strict", _averaged("portability", strict)),
    Metric("strict_locality", "locality", "strict", _averaged("locality", strict_unchanged, against_base=True)),
    Metric("generation_edit_success", "edit success", "generation", _averaged("rewrite", generated), failed="rewrite"),
    Metric(
        "generation_generalization", "generalization", "generation", _averaged("rephrase", generated), failed="rephrase"
    ),
    Metric("generation_chat", "chat", "generation", _averaged("chat", generated), failed="chat"),
    Metric("generation_portability", "portability", "generation", _averaged("portability", generated)),
    Metric(
        "generation_locality",
        "locality",
        "generation",
        _averaged("locality", generated_unchanged, against_base=True),
    ),
    Metric(
        "contains_edit_success",
        "edit success, contained",
        "generation",
        _averaged("rewrite", contained),
        failed="rewrite",
    ),
    Metric(
        "contains_generalization",
        "generalization, contained",
        "generation",
        _averaged("rephrase", contained),
        failed="rephrase",
    ),
    Metric("contains_chat", "chat, contained", "generation", _averaged("chat", contained), failed="chat"),
    Metric(
        "rouge_l_edit_success", "edit success, ROUGE-L", "generation", _averaged("rewrite", rouge_l), failed="rewrite"
    ),
    Metric(
        "rouge_l_generalization",
        "generalization, ROUGE-L",
        "generation",
        _averaged("rephrase", rouge_l),
        failed="rephrase",
    ),
    Metric(
        "probability_edit_success", "edit success", "probabilities", _averaged("rewrite", preferred), failed="rewrite"
    ),
    Metric(
        "probability_generalization",
        "generalization",
        "probabilities",
        _averaged("rephrase", preferred),
        failed="rephrase",
    ),
    Metric("probability_locality", "locality", "probabilities", _averaged("locality", preferred)),
    Metric("margin_edit_success", "edit success, margin", "probabilities", _averaged("rewrite", margin), bounds=MARGIN),
    Metric(
        "margin_generalization", "generalization, margin", "probabilities", _averaged("rephrase", margin), bounds=MARGIN
    ),
    Metric("margin_locality", "locality, margin", "probabilities", _averaged("locality", margin), bounds=MARGIN),
    Metric("fluency", "fluency", "fluency", _fluency, bounds=None),
)
"""What every run may have, in the order in which it is shown; the claims' come behind the rest of their family."""

_CLAIMED: tuple[tuple[str, str, Family, Callable[[ProbeScores, Seen], float | None]], ...] = (
    ("claim_{}", "{}", "strict", strict),
    ("contains_claim_{}", "{}, contained", "generation", contained),
)


def _metrics(scores: Iterable[FactScores]) -> list[Metric]:
    """:data:`METRICS` and those of the claims that there are, families together."""
    groups = dict.fromkeys(probe.group for fact in scores for probe in fact.probes if probe.kind == "claim")
    claims = [
        Metric(name.format(group), label.format(group.replace("_", " ")), family, _claimed(group, score))
        for name, label, family, score in _CLAIMED
        for group in groups
    ]
    families = [*dict.fromkeys(metric.family for metric in METRICS)]
    return sorted([*METRICS, *claims], key=lambda metric: families.index(metric.family))


# All facts


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Family = Annotated[Family, Field(validation_alias=AliasChoices("family", "mode"))]  # earlier files say mode


class Estimate(_Result):
    """A mean over facts with its 95 % interval (:func:`interval`)."""

    mean: float
    low: float | None
    """None, like ``high``, where the facts say nothing about others: where there is only one, say."""
    high: float | None
    facts: int
    probes: int
    """Probes behind the mean, over all its facts; texts for fluency."""


class Failure(_Result):
    """A fact that counts in no mean, and why."""

    case_id: str
    message: str


class MetricSummary(_Result):
    label: str
    family: _Family
    edited: Estimate
    base: Estimate | None
    """The unedited model's; None where the metric compares with it already."""
    with_failures: Estimate | None = None
    """As ``edited``, with each failed fact as 0; None where none failed, or where a failure says nothing about it."""


class Summary(_Result):
    """What ``summary.json`` says of a run's scores."""

    facts: int
    """All of them, the failed ones too."""
    failed: tuple[Failure, ...]
    steps: float | None
    """Mean number of optimizer steps; None, like ``nonzero_share``, where every fact failed."""
    nonzero_share: float | None
    """Mean share of an edit's trained numbers that are not zero, 0 .. 1."""
    metrics: dict[str, MetricSummary]
    """By :attr:`Metric.name`, in the order of :data:`METRICS`, then claims; only those that were observed."""


class PairedDifference(_Result):
    label: str
    family: _Family
    a: float
    b: float
    difference: float
    """Mean of b - a over the pairs: above zero, b is higher."""
    low: float | None
    high: float | None
    pairs: int
    with_failures: PairedDifference | None = None
    """The same with each failed fact as 0; None where none failed, or where a failure says nothing about it."""


class Comparison(_Result):
    """Two runs on the same facts, case by case."""

    common: int
    """Cases that both runs have, the failed ones too."""
    unpaired: int
    """Cases that only one of them has."""
    failed: tuple[Failure, ...]
    """Common cases that failed in the first run, then those that failed in the second; they count for neither, but in
    :attr:`PairedDifference.with_failures`."""
    metrics: dict[str, PairedDifference]


def summarise(scores: Sequence[FactScores], *, seed: int = 0) -> Summary:
    """All metrics that ``scores`` hold observations for.

    Args:
        scores: of one run, each fact once.
        seed: of the intervals' resamples.

    Returns:
        Means over the facts that did not fail, and beside them what failures make of edit success and generalization.

    Example:
        >>> from loredit.evaluation.scores import AnswerScore, FactScores, ProbeScores, Seen
        >>> seen = Seen(answers=(AnswerScore(correct=(True, False), log_prob=-1.0),))
        >>> probe = ProbeScores(kind="rewrite", group="rewrite", prompt="The capital of France is",
        ...     answers=("Rome",), base=seen, edited=seen, same=(True, True))
        >>> fact = FactScores(case_id="france", prompt=probe.prompt, target_new="Rome", probes=(probe,), steps=9,
        ...     loss=0.1, nonzero_share=1.0)
        >>> summarise([fact]).metrics["edit_success"].edited.mean
        50.0
    """
    sound: list[FactScores] = []
    failed: list[FactScores] = []
    for fact in scores:
        (sound if failure(fact) is None else failed).append(fact)
    metrics = {}
    for metric in _metrics(scores):
        observed = [metric.per_fact(fact) for fact in sound]
        edited = [value for value, _ in observed if value is not None]
        base = [value for _, value in observed if value is not None]
        lost = [Value(0.0, 0) for fact in failed if _fails(fact, metric)]
        if edited:
            metrics[metric.name] = MetricSummary(
                label=metric.label,
                family=metric.family,
                edited=estimate(edited, metric.bounds, seed),
                base=estimate(base, metric.bounds, seed) if base else None,
                with_failures=estimate([*edited, *lost], metric.bounds, seed) if lost else None,
            )
    return Summary(
        facts=len(scores),
        failed=tuple(_failures(scores)),
        steps=fmean(fact.steps for fact in sound) if sound else None,
        nonzero_share=fmean(fact.nonzero_share for fact in sound) if sound else None,
        metrics=metrics,
    )


def compare(a: Sequence[FactScores], b: Sequence[FactScores], *, seed: int = 0) -> Comparison:
    """Paired differences b - a of the edited models over the cases that both runs have.

    Args:
        a: one run's scores.
        b: another's.
        seed: of the intervals' resamples.

    Returns:
        Differences over the cases that failed in neither run, and beside them what failures make of edit success and
        generalization.

    Raises:
        ValueError: a run holds a case twice.

    Example:
        >>> compare([], []).common
        0
    """
    first, second = _by_case(a), _by_case(b)
    common = [case_id for case_id in first if case_id in second]
    failed = (
        *_failures((first[case_id] for case_id in common), "first run: "),
        *_failures((second[case_id] for case_id in common), "second run: "),
    )
    out = {case.case_id for case in failed}
    sound = [(first[case_id], second[case_id]) for case_id in common if case_id not in out]
    unsound = [[(fact, failure(fact) is None) for fact in (first[i], second[i])] for i in common if i in out]
    metrics = {}
    for metric in _metrics([*a, *b]):
        pairs = [pair for x, y in sound if (pair := _pair(metric, (x, True), (y, True)))]
        if pairs:
            lost = [pair for x, y in unsound if (pair := _pair(metric, x, y))]
            both = _difference(metric, [*pairs, *lost], seed) if lost else None
            metrics[metric.name] = _difference(metric, pairs, seed).model_copy(update={"with_failures": both})
    unpaired = len(first) + len(second) - 2 * len(common)
    return Comparison(common=len(common), unpaired=unpaired, failed=failed, metrics=metrics)


def _pair(metric: Metric, *runs: tuple[FactScores, bool]) -> tuple[float, float] | None:
    """Both runs' numbers of one case, where both have one; with each, whether the fact is sound."""
    values = []
    for fact, sound in runs:
        if sound:
            value = metric.per_fact(fact)[0]
            values.append(None if value is None else value.mean)
        else:
            values.append(0.0 if _fails(fact, metric) else None)
    x, y = values
    return None if x is None or y is None else (x, y)


def _difference(metric: Metric, pairs: Sequence[tuple[float, float]], seed: int) -> PairedDifference:
    before, after = np.array(pairs).T
    low, high = interval(after - before, metric.difference_bounds, seed)
    return PairedDifference(
        label=metric.label,
        family=metric.family,
        a=float(before.mean()),
        b=float(after.mean()),
        difference=float((after - before).mean()),
        low=low,
        high=high,
        pairs=len(pairs),
    )


def _fails(fact: FactScores, metric: Metric) -> bool:
    """Whether a failed fact fails this metric too. One that was lost before it was scored has no probes, and is taken
    to have had the kind that the metric is about."""
    return metric.failed is not None and (not fact.probes or any(p.kind == metric.failed for p in fact.probes))


def failure(fact: FactScores) -> str | None:
    """Why the fact counts in no mean: its own ``error``, or a number that is none; None if it does count."""
    if fact.error is not None:
        return fact.error
    for probe in fact.probes:
        for model, seen in (("unedited", probe.base), ("edited", probe.edited)):
            for answer in (*seen.answers, *([seen.contrast] if seen.contrast else [])):
                where = f"{probe.kind} probe {probe.prompt!r}, {model} model"
                if not answer.correct:
                    return f"an answer without tokens ({where})"
                if math.isnan(answer.log_prob):
                    return f"an answer's log-probability is NaN ({where})"
    return None


def interval(
    values: np.ndarray, bounds: tuple[float, float] | None, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean that facts have, of which these are a sample.

    A bootstrap knows nothing but what was seen: of 8 facts that all have 100 it says 100 to 100. So where values are
    plain successes, or there is nothing to resample, the interval is exact:

    - every value is at one of the bounds: k of n successes, Clopper and Pearson (Biometrika 26, 1934). Of 8 of 8 that
      is 63 to 100;
    - all values are alike, wherever they lie: of other facts a share u could be otherwise, as far as the bounds let
      them, where u is Clopper and Pearson's upper bound for 0 of n;
    - otherwise percentiles of the bootstrap (:func:`bootstrap_interval`).

    Args:
        values: (N,) one number for each fact.
        bounds: between what each lies; None where nothing is known.
        seed: of the resamples.

    Returns:
        Both ends; None where nothing can be said: of one value, or of equal ones without bounds.

    Example:
        >>> low, high = interval(np.full(8, 100.0), (0.0, 100.0), seed=0)
        >>> round(low), round(high)
        (63, 100)
    """
    n = len(values)
    if n < 2:
        return None, None
    if bounds is not None:
        bottom, top = bounds
        if np.isin(values, bounds).all():
            low, high = exact_interval(int((values == top).sum()), n)
            return bottom + (top - bottom) * low, bottom + (top - bottom) * high
        if (values == values[0]).all():
            every, otherwise = float(values[0]), exact_interval(0, n)[1]
            return every + otherwise * (bottom - every), every + otherwise * (top - every)
    elif (values == values[0]).all():
        return None, None
    return bootstrap_interval(values, seed)


def exact_interval(successes: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share of which ``successes`` of ``n`` were seen.

    Example:
        >>> low, high = exact_interval(100, 100)
        >>> round(low, 3), high
        (0.964, 1.0)
    """
    low = float(betaincinv(successes, n - successes + 1, TAIL)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - TAIL)) if successes < n else 1.0
    return low, high


def bootstrap_interval(values: np.ndarray, seed: int) -> tuple[float, float] | tuple[None, None]:
    """2.5th and 97.5th percentile of the mean of ``values`` (N,) over resamples; None for a single value.

    The same seed and number of values draw the same resamples, whatever the metric.
    """
    n = len(values)
    if n < 2:
        return None, None
    rng = np.random.default_rng(seed)
    at_once = max(1, PICKS_AT_ONCE // n)
    sizes = (min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once))
    means = np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    low, high = np.percentile(means, (100 * TAIL, 100 * (1 - TAIL)))
    return float(low), float(high)


def estimate(values: Sequence[Value], bounds: tuple[float, float] | None, seed: int) -> Estimate:
    """The mean over facts of one number for each, with its interval."""
    means = np.array([value.mean for value in values])
    low, high = interval(means, bounds, seed)
    return Estimate(
        mean=float(means.mean()), low=low, high=high, facts=len(values), probes=sum(v.probes for v in values)
    )


def _failures(scores: Iterable[FactScores], prefix: str = "") -> Iterator[Failure]:
    for fact in scores:
        if (message := failure(fact)) is not None:
            yield Failure(case_id=fact.case_id, message=prefix + message)


def _by_case(scores: Sequence[FactScores]) -> dict[str, FactScores]:
    twice = [case_id for case_id, count in Counter(fact.case_id for fact in scores).items() if count > 1]
    if twice:
        raise ValueError(f"runs are compared case by case, but these cases stand twice in one run: {', '.join(twice)}")
    return {fact.case_id: fact for fact in scores}
