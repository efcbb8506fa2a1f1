"""Metrics against slow, obvious loops and hand-computed numbers; no model anywhere."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict

import nltk
import numpy as np
import pytest
from nltk.tokenize import NLTKWordTokenizer

from loredit.evaluation import metrics
from loredit.evaluation.metrics import (
    METRICS,
    RESAMPLES,
    Summary,
    bootstrap_interval,
    compare,
    failure,
    ngram_entropy,
    normalise,
    summarise,
)
from loredit.evaluation.scores import AnswerScore, FactScores, ProbeScores, Seen

NAN = float("nan")


def answer(correct: str, log_prob: float = -1.0) -> AnswerScore:
    """``answer("10")``: two tokens, the first right."""
    return AnswerScore(correct=tuple(mark == "1" for mark in correct), log_prob=log_prob)


def seen(*marks: str, contrast: AnswerScore | None = None, generated: str | None = None) -> Seen:
    return Seen(answers=tuple(map(answer, marks)), contrast=contrast, generated=generated)


def probe(
    kind: str, edited: Seen, base: Seen | None = None, *, same: str = "1", group: str = "", **more
) -> ProbeScores:
    return ProbeScores(
        **{"kind": kind, "group": group or kind, "prompt": f"a {kind} prompt", "answers": ("Paris",)} | more,
        base=base or seen(*("0" * len(score.correct) for score in edited.answers)),
        edited=edited,
        same=tuple(mark == "1" for mark in same),
    )


def fact(*probes: ProbeScores, case_id: str = "1", **more) -> FactScores:
    given = {"prompt": "p", "target_new": "Paris", "steps": 10, "loss": 0.1, "nonzero_share": 0.5} | more
    return FactScores(case_id=case_id, probes=probes, **given)


def edited(summary: Summary, name: str) -> float:
    return summary.metrics[name].edited.mean


def base(summary: Summary, name: str) -> float:
    estimate = summary.metrics[name].base
    assert estimate is not None
    return estimate.mean


def random_facts(count: int, seed: int = 0) -> list[FactScores]:
    """Facts with 1 to 3 rephrasings, 0 to 6 probes in 0 to 3 groups, 1 to 3 aliases of 1 to 4 tokens."""
    rng = random.Random(seed)

    def score(tokens: int) -> AnswerScore:
        return AnswerScore(
            correct=tuple(rng.random() < 0.6 for _ in range(tokens)),
            log_prob=sum(-2 * rng.random() for _ in range(tokens)),
        )

    def random_probe(kind: str, group: str, aliases: int) -> ProbeScores:
        lengths = [rng.randint(1, 4) for _ in range(aliases)]
        rival = rng.randint(1, 4) if rng.random() < 0.8 else None
        looks = [
            Seen(
                answers=tuple(map(score, lengths)),
                contrast=score(rival) if rival else None,
                generated=rng.choice(["Paris.", " the Paris", "It is Paris, of course", "Rome", ""]),
            )
            for _ in range(2)
        ]
        return ProbeScores(
            kind=kind,
            group=group,
            prompt="p",
            answers=("Paris", "City of Light", "Lutetia")[:aliases],
            base=looks[0],
            edited=looks[1],
            same=tuple(rng.random() < 0.7 for _ in range(lengths[0])),
        )

    facts = []
    for i in range(count):
        probes = [random_probe("rewrite", "rewrite", 1)]
        probes += [random_probe("rephrase", "rephrase", 1) for _ in range(rng.randint(1, 3))]
        probes += [random_probe("chat", "chat", 1) for _ in range(rng.randint(0, 2))]
        for kind in ("locality", "portability"):
            for group in "xyz"[: rng.randint(0, 3)]:
                probes += [random_probe(kind, group, rng.randint(1, 3)) for _ in range(rng.randint(1, 2))]
        facts.append(fact(*probes, case_id=str(i)))
    return facts


# Definitions


def reference_mean(facts: list[FactScores], kind: str, value_of) -> tuple[float, int, int] | None:
    """Mean by group, by fact, over facts; number of facts; number of probes: written as plain loops."""
    totals, probes = [], 0
    for each in facts:
        groups = defaultdict(list)
        for one in each.probes:
            value = value_of(one)
            if one.kind == kind and value is not None:
                groups[one.group].append(value)
                probes += 1
        if groups:
            totals.append(sum(sum(values) / len(values) for values in groups.values()) / len(groups))
    return (100 * sum(totals) / len(totals), len(totals), probes) if totals else None


def easyedit(side: str):
    def value_of(one: ProbeScores) -> float:
        best = 0.0
        for alias in getattr(one, side).answers:
            hits = 0
            for right in alias.correct:
                hits += right
            best = max(best, hits / len(alias.correct))
        return best

    return value_of


def all_right(side: str):
    return lambda one: float(max(min(alias.correct) for alias in getattr(one, side).answers))


def rome_nll(side: str, contrast: bool):
    """ROME's numbers: mean negative log-likelihood per token."""

    def nll(one: ProbeScores) -> float | None:
        look = getattr(one, side)
        if contrast:
            return None if look.contrast is None else -look.contrast.log_prob / len(look.contrast.correct)
        return min(-alias.log_prob / len(alias.correct) for alias in look.answers)

    return nll


def rome(side: str, magnitude: bool):
    def value_of(one: ProbeScores) -> float | None:
        right, rival = rome_nll(side, False)(one), rome_nll(side, True)(one)
        if rival is None:
            return None
        return math.exp(-right) - math.exp(-rival) if magnitude else float(rival > right)

    return value_of


def generation(side: str):
    return lambda one: float(getattr(one, side).generated in ("Paris.", " the Paris"))


def holding(side: str):
    return lambda one: float("paris" in getattr(one, side).generated.lower())


def changed_generation(_side: str):
    paris = ("Paris.", " the Paris")
    return lambda one: float(
        one.base.generated == one.edited.generated or (one.base.generated in paris and one.edited.generated in paris)
    )


REFERENCES = {
    "edit_success": ("rewrite", easyedit),
    "generalization": ("rephrase", easyedit),
    "chat": ("chat", easyedit),
    "portability": ("portability", easyedit),
    "locality": ("locality", lambda _: lambda one: sum(one.same) / len(one.same)),
    "locality_truth": ("locality", easyedit),
    "strict_edit_success": ("rewrite", all_right),
    "strict_generalization": ("rephrase", all_right),
    "strict_chat": ("chat", all_right),
    "strict_portability": ("portability", all_right),
    "strict_locality": ("locality", lambda _: lambda one: float(min(one.same))),
    "generation_edit_success": ("rewrite", generation),
    "generation_generalization": ("rephrase", generation),
    "generation_chat": ("chat", generation),
    "generation_portability": ("portability", generation),
    "generation_locality": ("locality", changed_generation),
    "contains_edit_success": ("rewrite", holding),
    "contains_generalization": ("rephrase", holding),
    "contains_chat": ("chat", holding),
    "probability_edit_success": ("rewrite", lambda side: rome(side, False)),
    "probability_generalization": ("rephrase", lambda side: rome(side, False)),
    "probability_locality": ("locality", lambda side: rome(side, False)),
    "margin_edit_success": ("rewrite", lambda side: rome(side, True)),
    "margin_generalization": ("rephrase", lambda side: rome(side, True)),
    "margin_locality": ("locality", lambda side: rome(side, True)),
}
AGAINST_BASE = {"locality", "strict_locality", "generation_locality"}


def test_every_metric_but_fluency_has_a_reference():
    of_long_answers = {"rouge_l_edit_success", "rouge_l_generalization"}  # held against rouge_score below
    assert {metric.name for metric in METRICS} == {*REFERENCES, *of_long_answers, "fluency"}


@pytest.mark.parametrize("name", REFERENCES)
def test_metric_equals_a_plain_loop_over_facts_groups_and_probes(name):
    facts = random_facts(40)
    kind, value_of = REFERENCES[name]
    result = summarise(facts).metrics[name]

    mean, count, probes = reference_mean(facts, kind, value_of("edited"))
    assert result.edited.mean == pytest.approx(mean, rel=1e-12)
    assert (result.edited.facts, result.edited.probes) == (count, probes)
    if name in AGAINST_BASE:
        assert result.base is None
    else:
        mean, count, probes = reference_mean(facts, kind, value_of("base"))
        assert result.base.mean == pytest.approx(mean, rel=1e-12)
        assert (result.base.facts, result.base.probes) == (count, probes)


def test_the_best_alias_counts_and_each_model_has_its_own():
    portability = probe("portability", seen("1000", "110"), seen("1110", "000"), answers=("a", "b"))
    summary = summarise([fact(portability)])
    assert edited(summary, "portability") == pytest.approx(100 * 2 / 3)
    assert base(summary, "portability") == pytest.approx(75)


def test_strict_needs_all_tokens_of_one_alias():
    halves = probe("portability", seen("10", "01"), answers=("a", "b"))
    whole = probe("portability", seen("10", "11"), answers=("a", "b"))
    assert edited(summarise([fact(halves)]), "strict_portability") == 0
    assert edited(summarise([fact(whole)]), "strict_portability") == 100


def test_groups_of_different_sizes_weigh_the_same():
    probes = [probe("locality", seen("1"), group="many", same="1") for _ in range(3)]
    summary = summarise([fact(*probes, probe("locality", seen("1"), group="one", same="0"))])
    assert edited(summary, "locality") == 50
    assert summary.metrics["locality"].edited.probes == 4


def test_facts_weigh_the_same_however_many_probes_they_have():
    many = fact(*(probe("rephrase", seen("1")) for _ in range(9)), case_id="1")
    one = fact(probe("rephrase", seen("0")), case_id="2")
    assert edited(summarise([many, one]), "generalization") == 50


def test_facts_without_portability_do_not_count_for_it():
    rewrite = probe("rewrite", seen("1"))
    summary = summarise([fact(rewrite, case_id="1"), fact(rewrite, probe("portability", seen("1")), case_id="2")])
    assert edited(summary, "portability") == 100
    assert summary.metrics["portability"].edited.facts == 1
    assert summary.metrics["edit_success"].edited.facts == 2


def test_only_observed_metrics_appear():
    assert list(summarise([fact(probe("rewrite", seen("1")))]).metrics) == ["edit_success", "strict_edit_success"]
    assert "fluency" in summarise([fact(base_text="a b c", edited_text="a b c")]).metrics
    assert summarise([]).metrics == {}


def test_locality_compares_with_the_unedited_model_and_locality_truth_with_the_answer():
    both_wrong_alike = probe("locality", seen("00"), seen("00"), same="11")
    summary = summarise([fact(both_wrong_alike)])
    assert edited(summary, "locality") == 100
    assert edited(summary, "locality_truth") == 0


def test_probability_is_per_token_as_in_rome():
    # three tokens at -1 each are likelier per token than one at -2, though less likely as a whole
    look = Seen(answers=(answer("111", -3.0),), contrast=answer("1", -2.0))
    summary = summarise([fact(probe("rewrite", look, look))])
    assert edited(summary, "probability_edit_success") == 100
    assert edited(summary, "margin_edit_success") == pytest.approx(100 * (math.exp(-1) - math.exp(-2)))


def test_equal_probabilities_are_no_success_and_tiny_ones_still_compare():
    tie = Seen(answers=(answer("1", -2.0),), contrast=answer("1", -2.0))
    tiny = Seen(answers=(answer("1", -1000.0),), contrast=answer("1", -1001.0))  # exp() of both is 0
    assert edited(summarise([fact(probe("rewrite", tie))]), "probability_edit_success") == 0
    assert edited(summarise([fact(probe("rewrite", tiny))]), "probability_edit_success") == 100


def test_impossible_answers_count_as_probability_zero():
    look = Seen(answers=(answer("1", -math.inf),), contrast=answer("1", 0.0))
    assert edited(summarise([fact(probe("rewrite", look))]), "margin_edit_success") == -100


# Text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" The  Eiffel Tower.\n", "eiffel tower"),
        ("A.C. Milan", "ac milan"),
        ("rock'n'roll, an anthem", "rocknroll anthem"),
        ("Theatre of Athens", "theatre of athens"),
        ("1,024", "1024"),
        ("Île-de-France", "îledefrance"),
        ("A", "a"),
        ("The", "the"),
        (" ? ", "?"),
        ("", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalise(text) == normal


def test_generation_matches_any_accepted_answer_but_not_a_part_of_it():
    def success(generated: str) -> float:
        one = probe(
            "portability", seen("1", "1", generated=generated), seen("1", "1"), answers=("Rome", "Eternal City")
        )
        return edited(summarise([fact(one)]), "generation_portability")

    assert success(" the eternal city.") == 100
    assert success("Rome") == 100
    assert success("Rome, Italy") == 0
    assert success("") == 0


def test_generated_locality_compares_both_models_whatever_the_truth():
    same = probe("locality", seen("1", generated="Rome."), seen("1", generated=" rome"))
    other = probe("locality", seen("1", generated="Paris"), seen("1", generated="Rome"))
    assert edited(summarise([fact(same)]), "generation_locality") == 100
    assert edited(summarise([fact(other)]), "generation_locality") == 0


def test_entropy_of_a_hand_computed_text():
    # "a b a b": bigrams ab ab ba, trigrams aba bab
    h2 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * h2 + 4 / 3 * 1) / 2)


def test_entropy_of_n_different_words_and_of_one_word_repeated():
    words = "one two three four five six seven eight nine"
    assert ngram_entropy(words) == pytest.approx((2 / 3 * math.log2(8) + 4 / 3 * math.log2(7)) / 2)
    assert ngram_entropy("no " * 100) == 0


@pytest.mark.parametrize(("text", "entropy"), [("", 0), ("  \n", 0), ("one", 0), ("one two", 0), ("a b c", 1 / 3)])
def test_texts_too_short_for_an_n_gram_have_no_entropy_in_it(text, entropy):
    assert ngram_entropy(text) == pytest.approx(entropy)


def test_entropy_equals_easyedits_formula_over_words_of_each_sentence():
    sentences = [
        "It's the city of Paris.",
        "The city of Paris isn't Rome!",
        '"Yes," he said, "it costs $3.50."',
        "and so",
    ]
    words = [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]
    weighted = []
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = np.array(list(nltk.FreqDist(nltk.ngrams(words, n)).values()))
        shares = counts / counts.sum()
        weighted.append(weight * np.sum(-shares * np.log(shares) / np.log(2)))
    assert ngram_entropy(" ".join(sentences)) == pytest.approx(np.mean(weighted))


def test_fluency_stands_beside_the_unedited_models_and_is_times_100():
    summary = summarise([fact(edited_text="a b a b", base_text="a b c d")])
    assert edited(summary, "fluency") == pytest.approx(100 * ngram_entropy("a b a b"))
    assert base(summary, "fluency") == pytest.approx(100 * ngram_entropy("a b c d"))


# Failures


def test_failed_facts_are_listed_and_count_in_no_mean():
    good = fact(probe("rewrite", seen("1")), case_id="good", steps=10, nonzero_share=0.2)
    bad = fact(case_id="bad", error="target longer than the context", steps=0, loss=NAN, nonzero_share=0.0)
    summary = summarise([bad, good])
    assert summary.facts == 2
    assert [(case.case_id, case.message) for case in summary.failed] == [("bad", "target longer than the context")]
    assert edited(summary, "edit_success") == 100
    assert (summary.steps, summary.nonzero_share) == (10, 0.2)


SOUND, BROKEN = answer("1"), answer("1", NAN)


@pytest.mark.parametrize(
    ("edited_look", "base_look", "message"),
    [
        (Seen(answers=(BROKEN,)), Seen(answers=(SOUND,)), "log-probability is NaN .*, edited model"),
        (Seen(answers=(SOUND,)), Seen(answers=(BROKEN,)), "log-probability is NaN .*, unedited model"),
        (Seen(answers=(SOUND, BROKEN)), Seen(answers=(SOUND, SOUND)), "log-probability is NaN"),
        (
            Seen(answers=(SOUND,), contrast=BROKEN),
            Seen(answers=(SOUND,), contrast=SOUND),
            "log-probability is NaN",
        ),
    ],
)
def test_a_nan_fails_its_case_and_no_mean_is_nan(edited_look, base_look, message):
    broken = fact(probe("rewrite", edited_look, base_look), case_id="7")
    summary = summarise([broken, fact(probe("rewrite", seen("1")), case_id="8")])
    assert [case.case_id for case in summary.failed] == ["7"]
    assert re.search(message, summary.failed[0].message)
    assert summary.metrics["edit_success"].edited.facts == 1


@pytest.mark.parametrize("loss", [NAN, math.inf, None])
def test_a_loss_that_nobody_saw_fails_nothing(loss):
    # An edit whose weights broke has an error of its own; one without a loss may be an adapter from elsewhere.
    unseen = fact(probe("rewrite", seen("1")), loss=loss)
    assert unseen.loss is None
    assert failure(unseen) is None
    assert edited(summarise([unseen]), "edit_success") == 100


def test_an_answer_without_tokens_fails_its_case():
    message = failure(fact(probe("locality", seen("1", ""), seen("1", "1"))))
    assert message == "an answer without tokens (locality probe 'a locality prompt', edited model)"


def test_nothing_but_failures_still_makes_a_summary():
    summary = summarise([fact(error="NaN loss")])
    assert (summary.facts, len(summary.failed), summary.metrics, summary.steps) == (1, 1, {}, None)


def test_summary_survives_json():
    summary = summarise([*random_facts(5), fact(case_id="x", error="no")])
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


# Intervals and comparisons


def test_interval_equals_a_plain_loop_over_resamples():
    values = np.array([0.0, 1.0, 4.0, 9.0, 25.0])
    rng = np.random.default_rng(3)
    means = sorted(sum(values[rng.integers(5)] for _ in range(5)) / 5 for _ in range(RESAMPLES))
    low, high = bootstrap_interval(values, 3)
    # the picks differ, so this is Monte Carlo error: the loop's own percentiles, give or take one percent of resamples
    assert means[14] <= low <= means[34]
    assert means[-35] <= high <= means[-15]


def test_interval_of_many_facts_is_the_normal_one():
    values = np.random.default_rng(0).normal(50, 10, 2000)
    low, high = bootstrap_interval(values, 0)
    half = 1.96 * values.std() / math.sqrt(2000)
    # the 2.5 % point of 1,000 resamples has a standard error of about 7 % of the half-width
    assert low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_interval_depends_on_the_seed_alone(monkeypatch):
    facts = random_facts(30)
    first = summarise(facts, seed=1)
    assert summarise(facts, seed=1) == first
    other = summarise(facts, seed=2).metrics["margin_locality"].edited
    assert other.low != first.metrics["margin_locality"].edited.low
    assert other.mean == first.metrics["margin_locality"].edited.mean
    monkeypatch.setattr(metrics, "PICKS_AT_ONCE", 70)  # two resamples of 30 at a time, and less than one elsewhere
    assert summarise(facts, seed=1) == first


def test_one_fact_has_no_interval():
    estimate = summarise([fact(probe("rewrite", seen("1")))]).metrics["edit_success"].edited
    assert (estimate.low, estimate.high) == (None, None)


def test_comparison_is_paired_case_by_case_and_not_by_position():
    def run(order: str, marks: dict[str, str]) -> list[FactScores]:
        return [fact(probe("rewrite", seen(marks[case])), case_id=case) for case in order]

    a = run("xyzu", {"x": "1000", "y": "1100", "z": "1110", "u": "1111"})
    b = run("zyxv", {"x": "1100", "y": "1110", "z": "1110", "v": "0000"})
    comparison = compare(a, b)
    result = comparison.metrics["edit_success"]
    assert (comparison.common, comparison.unpaired, result.pairs) == (3, 2, 3)
    assert (result.a, result.b, result.difference) == pytest.approx((50, 200 / 3, 50 / 3))
    # No pair differs by more than 25, nor the other way: unpaired, it would be wide.
    assert 0 <= result.low <= result.high <= 25


def test_of_a_long_answer_it_counts_how_much_comes_back():
    rouge = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    rng, words = random.Random(0), ["boat", "sea", "wind", "sail", "rope", "wave"]
    for _ in range(20):
        long, written = (" ".join(rng.choices(words, k=k)) for k in (25, rng.randint(1, 30)))
        told = probe("rewrite", seen("1", generated=written), answers=("boat", long))
        expected = rouge.score(long, written)["rougeL"].fmeasure
        assert metrics.rouge_l(told, told.edited) == pytest.approx(expected)
    assert edited(summarise([fact(told)]), "rouge_l_edit_success") == pytest.approx(100 * expected)
    short = probe("rewrite", seen("1", generated="boat"), answers=("boat",))
    assert metrics.rouge_l(short, short.edited) is None
    assert "rouge_l_edit_success" not in summarise([fact(short)]).metrics
    assert metrics.rouge_l(told, seen("1")) is None


def test_comparison_leaves_out_cases_that_failed_in_either_run_and_says_which():
    def good(case_id: str, mark: str) -> FactScores:
        return fact(probe("rewrite", seen(mark)), case_id=case_id)

    def bad(case_id: str, **why) -> FactScores:
        return fact(probe("rewrite", seen("1")), case_id=case_id, **why)

    comparison = compare(
        [good("x", "0"), bad("y", error="out of memory"), good("z", "1")],
        [good("x", "1"), good("y", "1"), bad("z", error="weights that are NaN")],
    )
    assert [(case.case_id, case.message) for case in comparison.failed] == [
        ("y", "first run: out of memory"),
        ("z", "second run: weights that are NaN"),
    ]
    assert comparison.metrics["edit_success"].difference == 100
    assert comparison.metrics["edit_success"].pairs == 1


def test_comparison_of_a_run_with_itself_is_zero():
    facts = random_facts(20)
    comparison = compare(facts, facts)
    assert comparison.metrics.keys() == summarise(facts).metrics.keys()
    for each in comparison.metrics.values():
        # Of other facts some could differ, as far as so few can tell: the same way in both directions.
        assert each.difference == 0
        assert each.low is None or each.low == -each.high


def test_comparison_refuses_a_case_that_stands_twice():
    with pytest.raises(ValueError, match="twice in one run: 1"):
        compare([fact(), fact()], [fact()])
