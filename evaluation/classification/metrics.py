"""Metrics of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
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

__all__ = ["classification", "one_of_many", "over_seeds", "regression"]

Numbers = NDArray[np.float64]


def classification(truth: Sequence[int], answers: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, Matthews correlation, F1, precision, recall and F1 by class, confusion matrix (a row for each truth).

    ``f1`` is that of the second of two classes, as GLUE has it; of more classes, ``macro_f1`` is the mean.
    """
    labels = range(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=labels, zero_division=0)
    binary = {"f1": float(f1_score(truth, answers, zero_division=0))} if len(classes) == 2 else {}
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        # 0 where nothing varies; scikit-learn says so with a warning.
        "matthews_correlation": float(matthews_corrcoef(truth, answers)) if len({*truth, *answers}) > 1 else 0.0,
        **binary,
        "macro_f1": float(np.mean(f1)),
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


def one_of_many(machine: Numbers, rule: str) -> Numbers:
    """(N, M) P(machine m | machine m or human) -> (N, 1 + M) scores of human and the M machines; the largest wins.

    ``mean``: the members' own distributions over human and their machine, averaged, so P(human) is the mean of 1 - p
    and P(m) is p / M. ``odds``: p / (1 - p) is the odds of m against human; all odds share the human class, so
    P(m) = odds / (1 + sum of odds), as in a multinomial logit with human as reference.
    """
    members = machine.shape[1]
    if rule == "mean":
        return np.concatenate([(1 - machine).mean(1, keepdims=True), machine / members], axis=1)
    odds = machine / np.clip(1 - machine, 1e-12, None)
    return np.concatenate([np.ones((len(machine), 1)), odds], axis=1) / (1 + odds.sum(1, keepdims=True))
