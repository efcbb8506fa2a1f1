"""Temperatures and stacking: what slow references find, from the texts that are theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loredit.evaluation.classification.calibration import Numbers, Stacking, Temperatures
from loredit.evaluation.classification.metrics import from_first


def drawn(texts: int, classes: int, scale: float, seed: int = 0) -> tuple[Numbers, list[int]]:
    """Log-odds that are ``scale`` times too large, and classes drawn from the true ones."""
    draw = np.random.default_rng(seed)
    true = 1.5 * draw.normal(size=(texts, classes - 1))
    return scale * true, [int(draw.choice(classes, p=p)) for p in from_first(true)]


def loss(odds: Numbers, truth: list[int], temperature: float, *, weighted: bool) -> float:
    """Negative log-likelihood with Platt's targets, text by text."""
    classes = odds.shape[1] + 1
    total = of_all = 0.0
    for z, label in zip(odds.tolist(), truth, strict=True):
        scores = [0.0, *(one / temperature for one in z)]
        normal = math.log(sum(map(math.exp, scores)))
        count = truth.count(label)
        weight = 1 / count if weighted else 1.0
        for c, score in enumerate(scores):
            target = (count + 1 if c == label else 1) / (count + classes)
            total -= weight * target * (score - normal)
        of_all += weight
    return total / of_all


@pytest.mark.parametrize("weighted", [False, True])
def test_a_temperature_is_the_best_of_a_fine_grid(weighted):
    odds, truth = drawn(60, 3, 2.0)
    (found,) = Temperatures.fitted(odds, truth, members=False, weighted=weighted).values
    grid = np.geomspace(0.2, 20, 1500)
    best = min(grid, key=lambda t: loss(odds, truth, t, weighted=weighted))
    assert found == pytest.approx(best, rel=5e-3)  # the grid's steps are 0.3 % wide


def test_a_temperature_undoes_a_scale_and_leaves_every_answer():
    odds, truth = drawn(4000, 4, 3.0)
    one = Temperatures.fitted(odds, truth, members=False, weighted=False)
    assert one.values == pytest.approx([3], rel=0.1)
    assert (one(odds).argmax(1) == from_first(odds).argmax(1)).all()
    assert one.record() == {"temperatures": [*one.values]}


def test_a_members_temperature_is_of_the_texts_of_its_two_classes_alone():
    odds, truth = drawn(2000, 3, 1.0)
    odds = odds * [4.0, 0.5]
    each = Temperatures.fitted(odds, truth, members=True, weighted=False)
    for m in range(2):
        own = [i for i, label in enumerate(truth) if label in (0, m + 1)]
        binary = [int(truth[i] > 0) for i in own]
        alone = Temperatures.fitted(odds[own, m : m + 1], binary, members=False, weighted=False)
        assert each.values[m] == pytest.approx(alone.values[0], rel=1e-6)
    assert np.allclose(each(odds), from_first(odds / each.values))


def test_a_member_without_a_fault_on_few_texts_gets_no_boundless_odds():
    odds = np.array([[-6.0], [-5.0], [-7.0], [6.0], [5.0], [8.0]] * 4)
    one = Temperatures.fitted(odds, [0, 0, 0, 1, 1, 1] * 4, members=True, weighted=True)
    assert 1 < one.values[0] < 4  # Platt's targets of 12 texts are 13 in 14: log-odds of 2.6


@pytest.mark.parametrize(("classes", "weighted"), [(2, False), (4, True)])
def test_stacking_is_a_ridge_regression_that_no_step_improves(classes, weighted):
    odds, truth = drawn(80, classes, 1.0)
    truth[:classes] = range(classes)
    found = Stacking.fitted(odds, truth, members=True, weighted=weighted)

    def objective(weight: Numbers, bias: Numbers) -> float:
        total = 0.0
        for z, label in zip(odds, truth, strict=True):
            scores = weight @ z + bias
            of_class = len(truth) / (classes * truth.count(label)) if weighted else 1.0
            total += of_class * (math.log(np.exp(scores).sum()) - scores[label])
        return total + 0.5 * float((weight**2).sum())

    least, draw = objective(found.weight, found.bias), np.random.default_rng(1)
    for _ in range(200):
        step = 0.05 * draw.normal(size=(classes, classes))
        # Of two classes scikit-learn has one row, that of the second.
        moved = step if classes > 2 else step * [[0], [1]]
        assert objective(found.weight + moved[:, 1:], found.bias + moved[:, 0]) > least - 1e-6
    given = found(odds)
    assert np.allclose(given.sum(1), 1)
    assert np.allclose(
        np.log(given),
        np.log(given)[:, :1] + (odds @ found.weight.T + found.bias) - (odds @ found.weight.T + found.bias)[:, :1],
    )


def test_stacking_tells_two_machines_apart_that_every_member_suspects():
    """Both members are sure of a machine, the first always surer; how much surer says which one it is."""
    draw = np.random.default_rng(0)
    truth = [i % 3 for i in range(600)]
    machine = np.array([[-4.0, -4.0] if c == 0 else [6.0, 2.0] if c == 1 else [6.0, 4.0] for c in truth])
    odds = machine + 0.5 * draw.normal(size=machine.shape)
    fit, score = slice(0, 300), slice(300, 600)

    def right(probabilities: Numbers) -> float:
        return float((probabilities.argmax(1) == truth[score]).mean())

    assert right(from_first(odds[score])) < 0.7
    assert right(Temperatures.fitted(odds[fit], truth[fit], members=True, weighted=True)(odds[score])) < 0.7
    assert right(Stacking.fitted(odds[fit], truth[fit], members=True, weighted=True)(odds[score])) > 0.95
