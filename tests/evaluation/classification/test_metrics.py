"""Metrics of classification, on confusions made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loredit.evaluation.classification import metrics


def test_metrics_of_a_hand_made_confusion():
    answers = [0, 0, 1, 1, 1, 1, 0, 1]
    got = metrics.classification([0, 0, 0, 1, 1, 1, 1, 1], np.eye(2)[answers], ["no", "yes"])
    assert got["confusion"] == [[2, 1], [1, 4]]
    assert got["accuracy"] == 6 / 8
    assert got["f1"] == pytest.approx(0.8)
    assert got["matthews_correlation"] == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3))
    assert got["by_class"]["no"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "examples": 3}
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert metrics.regression([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])["pearson"] == pytest.approx(1)
    assert metrics.regression([1.0, 2.0], [3.0, 3.0])["spearman"] == 0


def test_over_seeds_metrics_have_mean_and_deviation_and_confusions_are_summed():
    merged = metrics.over_seeds([{"accuracy": 0.5, "confusion": [[1, 2]]}, {"accuracy": 0.7, "confusion": [[0, 3]]}])
    assert merged["accuracy"] == {"mean": 0.6, "std": pytest.approx(math.sqrt(0.02)), "seeds": [0.5, 0.7]}
    assert merged["confusion"] == [[1, 5]]
    assert metrics.over_seeds([{"accuracy": 0.5}])["accuracy"]["std"] is None


def test_log_loss_and_calibration_error_are_what_slow_loops_give():
    draw = np.random.default_rng(0)
    odds, truth = 3 * draw.normal(size=(300, 2)), draw.integers(3, size=300).tolist()
    probabilities = metrics.from_first(odds)
    got = metrics.classification(truth, probabilities, ["a", "b", "c"])
    assert got["log_loss"] == pytest.approx(
        sum(-math.log(p[label]) for p, label in zip(probabilities.tolist(), truth, strict=True)) / 300
    )
    error = 0.0
    for k in range(15):
        inside = [
            (max(p), label == p.index(max(p)))
            for p, label in zip(probabilities.tolist(), truth, strict=True)
            if k / 15 <= max(p) < (k + 1) / 15
        ]
        if inside:
            sure, right = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            error += len(inside) / 300 * abs(right - sure)
    assert got["calibration_error"] == pytest.approx(error)
    certain = metrics.classification([1, 1], np.array([[0.0, 1.0], [1.0, 0.0]]), ["a", "b"])
    assert certain["calibration_error"] == 0.5, "certain, and right half the time"
    assert math.isfinite(certain["log_loss"])


def test_odds_recover_the_distribution_that_the_binary_members_come_from():
    full = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])  # human and two machines
    odds = np.log(full[:, 1:] / full[:, :1])
    assert np.allclose(metrics.one_of_many(odds, "odds"), full)
    mean = metrics.one_of_many(odds, "mean")
    assert np.allclose(mean.sum(1), 1)
    assert np.allclose(mean[:, 1:], full[:, 1:] / (full[:, 1:] + full[:, :1]) / 2)
