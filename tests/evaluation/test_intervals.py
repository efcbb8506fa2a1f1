"""Intervals that hold where everything went well, and what failures make of a mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from loredit.evaluation.metrics import (
    METRICS,
    MetricSummary,
    PairedDifference,
    Summary,
    bootstrap_interval,
    compare,
    exact_interval,
    interval,
    summarise,
)
from loredit.evaluation.scores import AnswerScore, FactScores, ProbeScores, Seen

SHARE = (0.0, 100.0)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def probe(
    kind: str, marks: str, generated: str | None = None, *, log_prob: float = -1.0, also: str = ""
) -> ProbeScores:
    answer = AnswerScore(correct=tuple(mark == "1" for mark in marks), log_prob=log_prob)
    rival = AnswerScore(correct=(False,), log_prob=-2.0)
    seen = Seen(answers=(answer,), contrast=rival, generated=generated)
    return ProbeScores(
        kind=kind,
        group=kind,
        prompt="p",
        answers=("Rome", also) if also else ("Rome",),
        base=seen,
        edited=seen,
        same=tuple(mark == "1" for mark in marks),
    )


def fact(case_id: str, *probes: ProbeScores, **more) -> FactScores:
    given = {"prompt": "p", "target_new": "Rome", "steps": 3, "loss": 0.1, "nonzero_share": 1.0} | more
    return FactScores(case_id=case_id, probes=probes, **given)


def right(case_id: str, marks: str = "1") -> FactScores:
    return fact(case_id, probe("rewrite", marks, "Rome"), probe("rephrase", marks, "Rome"))


def lost(case_id: str) -> FactScores:
    return fact(case_id, error="the loss is not a number")


@pytest.mark.parametrize("n", [2, 8, 100, 1001])
def test_exact_intervals_are_scipys(n):
    for k in {0, 1, n // 2, n - 1, n}:
        low, high = binomtest(k, n).proportion_ci(0.95, method="exact")
        assert exact_interval(k, n) == pytest.approx((low, high), rel=1e-9)


def test_eight_of_eight_do_not_show_that_all_would_be():
    low, high = interval(np.full(8, 100.0), SHARE, 0)
    assert (round(low, 1), high) == (63.1, 100)
    low, high = interval(np.zeros(8), SHARE, 0)
    assert (low, round(high, 1)) == (0, 36.9)


def test_seven_of_eight_leave_room_on_both_sides():
    values = np.array([100.0] * 7 + [0.0])
    assert bootstrap_interval(values, 0)[1] == 100, "what a bootstrap says of it"
    low, high = interval(values, SHARE, 0)
    assert (round(low, 1), round(high, 1)) == (47.3, 99.7)


def test_values_that_are_alike_between_the_bounds_have_an_interval_too():
    low, high = interval(np.full(8, 50.0), SHARE, 0)
    assert low == pytest.approx(50 - 36.9 / 2, abs=0.1)
    assert high == pytest.approx(50 + 36.9 / 2, abs=0.1)


def test_other_values_are_resampled():
    values = np.array([0.0, 100.0, 50.0, 75.0])
    assert interval(values, SHARE, 3) == bootstrap_interval(values, 3)


def test_nothing_is_said_where_nothing_can_be():
    assert interval(np.array([100.0]), SHARE, 0) == (None, None)
    assert interval(np.full(5, 600.0), None, 0) == (None, None), "equal entropies, which have no bounds"


@pytest.mark.parametrize("n", [2, 5, 30])
def test_no_interval_of_a_run_is_of_no_width(n):
    everything = [
        fact(
            str(i),
            *(
                probe(kind, "11", "Rome", also="Rome again " * 20)  # long enough for ROUGE-L
                for kind in ("rewrite", "rephrase", "chat", "locality", "portability")
            ),
            base_text="a b c",
            edited_text="a b c",
        )
        for i in range(n)
    ]
    summary = summarise(everything)
    assert summary.metrics.keys() == {metric.name for metric in METRICS}
    for name, metric in summary.metrics.items():
        assert metric.edited.low is None or metric.edited.low < metric.edited.high, name
        if metric.edited.low is not None:
            assert metric.edited.low <= metric.edited.mean <= metric.edited.high


def test_pairs_that_do_not_differ_show_only_so_much():
    run = [right(str(i)) for i in range(10)]
    difference = compare(run, run).metrics["edit_success"]
    assert (difference.difference, difference.low) == (0, -difference.high)
    assert difference.high == pytest.approx(100 * exact_interval(0, 10)[1])


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of many samples with a true share near the bound, where percentiles of a bootstrap fail."""
    rng = np.random.default_rng(0)
    held = {"exact": 0, "bootstrap": 0}
    for _ in range(300):
        values = 100.0 * (rng.random(20) < 0.97)
        for name, (low, high) in (
            ("exact", interval(values, SHARE, 0)),
            ("bootstrap", bootstrap_interval(values, 0)),
        ):
            held[name] += low <= 97 <= high
    assert held["exact"] >= 0.95 * 300
    assert held["bootstrap"] < 0.6 * 300


def test_failures_count_as_zero_beside_the_mean_without_them():
    summary = summarise([right("a"), right("b"), right("c"), lost("d")])
    for name in (
        "edit_success",
        "generalization",
        "strict_edit_success",
        "generation_edit_success",
        "generation_generalization",
        "probability_edit_success",
    ):
        metric = summary.metrics[name]
        assert (metric.edited.mean, metric.edited.facts) == (100, 3), name
        assert (metric.with_failures.mean, metric.with_failures.facts) == (75, 4), name
        assert metric.with_failures.low < 75 < metric.with_failures.high
    assert summary.metrics["margin_edit_success"].with_failures is None


def test_a_failure_says_nothing_about_locality_and_portability():
    other = fact("a", probe("locality", "1"), probe("portability", "1"), probe("rewrite", "1"))
    metrics = summarise([other, lost("b")]).metrics
    assert [name for name, metric in metrics.items() if metric.with_failures] == [
        "edit_success",
        "strict_edit_success",
        "probability_edit_success",
    ]


def test_a_failed_fact_that_has_no_rephrasing_does_not_lower_generalization():
    unscored = fact("b", probe("rewrite", "1", log_prob=float("nan")))
    metrics = summarise([right("a"), unscored]).metrics
    assert metrics["edit_success"].with_failures.mean == 50
    assert metrics["generalization"].with_failures is None


def test_without_failures_there_is_one_number():
    assert all(metric.with_failures is None for metric in summarise([right("a"), right("b")]).metrics.values())


def test_a_comparison_tells_what_failures_change():
    comparison = compare([right("a"), right("b", "0"), right("c")], [right("a"), right("b"), lost("c")])
    success = comparison.metrics["edit_success"]
    assert (success.pairs, success.difference) == (2, 50)
    assert (success.with_failures.pairs, success.with_failures.difference) == (3, 0)
    assert comparison.metrics["margin_edit_success"].with_failures is None


def test_json_holds_numbers_alone():
    nan = float("nan")
    broken = fact("x", probe("rewrite", "1", log_prob=nan), loss=nan)
    text = summarise([right("a"), broken]).model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the summary"))
    assert Summary.model_validate_json(text).failed[0].case_id == "x"


def test_summaries_written_before_are_read():
    older = {"label": "edit success", "mode": "token_em", "base": None}
    estimate = {"mean": 99.0, "low": 98.0, "high": 100.0, "facts": 30, "probes": 30}
    assert MetricSummary.model_validate({**older, "edited": estimate}).with_failures is None
    for path in (RESULTS / "editors-zsre.json", RESULTS / "roselora-study.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        for row in (found.get("rows") or found["arms"]).values():
            Summary.model_validate(row["summary"])
        for paired in found.get("differences", {}).values():
            for each in paired.values():
                PairedDifference.model_validate(each)
