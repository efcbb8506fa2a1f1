"""What a held-out split teaches: how sure a classifier may be, and how members of an ensemble are to be joined.

Shapes: N texts, C classes. All is about log-odds (N, C - 1): of each class but the first against the first, as one
classifier of C classes or C - 1 members of an ensemble give them.

- **Temperature** (Guo et al., 2017, https://arxiv.org/abs/1706.04599): z / T, one T for a classifier, by the least
  negative log-likelihood of the texts that it is for: a member's are those of its own two classes.
- **Stacking** (Wolpert, 1992, https://doi.org/10.1016/S0893-6080(05)80023-1): a multinomial logistic regression from
  all log-odds to the class. It is where members are set against each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from .metrics import from_first

Numbers = NDArray[np.float64]
_WIDEST = 1e3  # a temperature, or one over it


class Calibration(ABC):
    """What was fitted for one seed."""

    @classmethod
    @abstractmethod
    def fitted(cls, odds: Numbers, truth: Sequence[int], *, members: bool, weighted: bool) -> Calibration:
        """From log-odds (N, C - 1) and the classes of the texts, every class being there.

        ``members``: each of the log-odds is a classifier of its own. ``weighted``: all classes weigh the same in all.
        """

    @abstractmethod
    def __call__(self, odds: Numbers) -> Numbers:
        """(N, C - 1) log-odds -> (N, C) probabilities."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What was fitted, for JSON."""


@dataclass(frozen=True)
class Temperatures(Calibration):
    """One for all log-odds, or one for each member's."""

    values: tuple[float, ...]

    @classmethod
    def fitted(cls, odds: Numbers, truth: Sequence[int], *, members: bool, weighted: bool) -> Temperatures:
        classes = np.asarray(truth)
        if not members:
            return cls((_temperature(odds, classes, weighted),))
        own = [np.isin(classes, (0, m + 1)) for m in range(odds.shape[1])]
        return cls(
            tuple(_temperature(odds[rows, m : m + 1], np.sign(classes[rows]), weighted) for m, rows in enumerate(own))
        )

    def __call__(self, odds: Numbers) -> Numbers:
        return from_first(odds / np.array(self.values))

    def record(self) -> dict[str, Any]:
        return {"temperatures": [*self.values]}


@dataclass(frozen=True)
class Stacking(Calibration):
    """softmax(W z + b)."""

    weight: Numbers  # (C, C - 1)
    bias: Numbers  # (C,)

    @classmethod
    def fitted(cls, odds: Numbers, truth: Sequence[int], *, members: bool, weighted: bool) -> Stacking:
        # scikit-learn's own strength of the ridge: log-odds are of the size of a few units, and dev is small.
        model = LogisticRegression(class_weight="balanced" if weighted else None, max_iter=1000).fit(odds, truth)
        if len(model.classes_) > 2:
            return cls(model.coef_, model.intercept_)
        return cls(np.concatenate([0 * model.coef_, model.coef_]), np.append(0 * model.intercept_, model.intercept_))

    def __call__(self, odds: Numbers) -> Numbers:
        return np.exp(log_softmax(odds @ self.weight.T + self.bias, axis=1))

    def record(self) -> dict[str, Any]:
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist()}


CALIBRATIONS: dict[str, type[Calibration]] = {"temperature": Temperatures, "stacking": Stacking}


def _temperature(odds: Numbers, truth: NDArray[np.int64], weighted: bool) -> float:
    """T of the least negative log-likelihood of softmax(0, z / T).

    The targets are Platt's: of N texts of a class, N + 1 in N + C are taken to be of it. A classifier without a fault
    on few texts would want a temperature of 0 otherwise, and its odds would drown all others.
    """
    classes = odds.shape[1] + 1
    counts = np.bincount(truth, minlength=classes)
    targets = np.where(np.eye(classes, dtype=bool), counts[:, None] + 1, 1) / (counts[:, None] + classes)
    weights = 1 / counts[truth] if weighted else np.ones(len(truth))
    zero = np.zeros((len(odds), 1))

    def loss(log_temperature: float) -> float:
        told = log_softmax(np.concatenate([zero, odds / np.exp(log_temperature)], axis=1), axis=1)
        return float(-(weights * (targets[truth] * told).sum(1)).sum() / weights.sum())

    widest = np.log(_WIDEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-widest, widest), method="bounded").x))
