"""Metrics of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    precision_recall_fscore_support,
)

from ..tuning.methods import over_seeds

__all__ = ["classification", "from_first", "one_of_many", "over_seeds", "regression"]

Numbers = NDArray[np.float64]
_BINS = 15  # of the calibration error, as Guo et al. have it


def classification(truth: Sequence[int], probabilities: Numbers, classes: Sequence[str]) -> dict[str, Any]:
    """What probabilities (N, C) are worth, the likeliest class being the answer.

    Accuracy, Matthews correlation, F1, log loss, calibration error, precision, recall and F1 by class, confusion matrix
    (a row for each truth). ``f1`` is that of the second of two classes, as GLUE has it; of more classes, ``macro_f1``
    is the mean.
    """
    labels, answers = range(len(classes)), probabilities.argmax(1).tolist()
    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=labels, zero_division=0)
    binary = {"f1": float(f1_score(truth, answers, zero_division=0))} if len(classes) == 2 else {}
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        # 0 where nothing varies; scikit-learn says so with a warning.
        "matthews_correlation": float(matthews_corrcoef(truth, answers)) if len({*truth, *answers}) > 1 else 0.0,
        **binary,
        "macro_f1": float(np.mean(f1)),
        "log_loss": float(-np.log(_of(probabilities, truth).clip(np.finfo(float).tiny)).mean()),
        "calibration_error": calibration_error(truth, probabilities),
        "by_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "examples": int(n)}
            for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        },
        "confusion": confusion_matrix(truth, answers, labels=labels).tolist(),
    }


def regression(truth: Sequence[float], answers: Sequence[float]) -> dict[str, Any]:
    """Pearson and Spearman correlation (0 where all answers are alike), mean squared error."""
    alike = len(set(answers)) == 1
    return {
        "pearson": 0.0 if alike else float(pearsonr(truth, answers).statistic),
        "spearman": 0.0 if alike else float(spearmanr(truth, answers).statistic),
        "mean_squared_error": float(mean_squared_error(truth, answers)),
    }


def calibration_error(truth: Sequence[int], probabilities: Numbers) -> float:
    """How far the answers' probabilities are from how often they are right (Guo et al., 2017).

    The mean over the texts of |share of right answers - mean probability of the answer| among the texts whose answer's
    probability is in the same fifteenth of 0 to 1.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    return float(np.abs(np.bincount(bins, right - sure)).sum() / len(sure))


def from_first(odds: Numbers) -> Numbers:
    """(N, C - 1) log-odds of each other class against the first -> (N, C) probabilities, which sum to 1."""
    return np.exp(log_softmax(np.concatenate([np.zeros((len(odds), 1)), odds], axis=1), axis=1))


def one_of_many(odds: Numbers, rule: str) -> Numbers:
    """(N, M) members' log-odds of their machine against human -> (N, 1 + M) P(human), P(machine).

    With p = P(machine m | machine m or human), ``mean``: the members' own distributions over human and their machine,
    averaged, so P(human) is the mean of 1 - p and P(m) is p / M. ``odds``: p / (1 - p) is the odds of m against human;
    all odds share the human class, so P(m) = odds / (1 + sum of odds), as in a multinomial logit with human as
    reference.
    """
    if rule == "odds":
        return from_first(odds)
    machine = expit(odds)
    return np.concatenate([(1 - machine).mean(1, keepdims=True), machine / odds.shape[1]], axis=1)


def _of(probabilities: Numbers, truth: Sequence[int]) -> Numbers:
    return probabilities[np.arange(len(probabilities)), np.asarray(truth)]
