r"""Scores of a task before and after an edit, on the same items.

With the log-likelihood l(o) of an option o and its length in characters :math:`|o|`, as in lm-evaluation-harness:

- ``acc``: share of questions whose right option has the largest l(o); of a question with one option (LAMBADA), whose
  every token is the likeliest.
- ``acc_norm``: the same of :math:`l(o) / |o|`; questions with several options.
- ``perplexity``: of the one option, :math:`\exp(-\mathrm{mean}\; l(o))`; of texts, the mean over texts of
  :math:`\exp(-l / n)` with n predicted tokens. Lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ...data.ability import Question
from ..metrics import bootstrap_interval


@dataclass(frozen=True)
class Likelihoods:
    """Of one item: its options' log-likelihoods, and whether the first option is the likeliest text there is."""

    options: tuple[float, ...]
    likeliest: bool


@dataclass(frozen=True)
class Score:
    """A metric before and after, with what is known of the difference on the same items."""

    before: float
    after: float | None
    """None where there is no edit."""
    low: float | None
    high: float | None
    """95 % bootstrap interval of after - before (without an edit, of before), items resampled; not of perplexities."""
    lost: int
    """Items that were right before and are not after."""
    won: int
    items: int


def acc(question: Question, seen: Likelihoods) -> float:
    """1 where the right option is the likeliest.

    Example:
        >>> acc(Question("", ("ab", "c"), 1), Likelihoods((-1.0, -2.0), False))
        0.0
    """
    if len(seen.options) == 1:
        return float(seen.likeliest)
    return float(int(np.argmax(seen.options)) == question.right)


def acc_norm(question: Question, seen: Likelihoods) -> float:
    """1 where the right option is the likeliest for its length.

    Example:
        >>> acc_norm(Question("", ("abcd", "c"), 0), Likelihoods((-2.0, -1.0), False))
        1.0
    """
    lengths = [len(option) for option in question.options]
    return float(int(np.argmax(np.array(seen.options) / np.array(lengths))) == question.right)


def of_questions(
    questions: Sequence[Question], before: Sequence[Likelihoods], after: Sequence[Likelihoods] | None
) -> dict[str, Score]:
    """``acc`` and ``acc_norm``; where each question has one option, ``acc`` and ``perplexity``."""
    single = all(len(question.options) == 1 for question in questions)
    found = {"acc": _share([*map(acc, questions, before)], [*map(acc, questions, after)] if after else None)}
    if single:
        costs = [[-one.options[0] for one in seen] for seen in (before, after) if seen]
        means = [math.exp(min(fmean(own), 700.0)) for own in costs]
        found["perplexity"] = _pair(means, len(questions))
    else:
        found["acc_norm"] = _share(
            [*map(acc_norm, questions, before)], [*map(acc_norm, questions, after)] if after else None
        )
    return found


def of_texts(counts: Sequence[int], before: Sequence[float], after: Sequence[float] | None) -> dict[str, Score]:
    """``perplexity`` from each text's log-likelihood and number of predicted tokens."""
    means = [
        fmean(math.exp(min(-value / n, 700.0)) for value, n in zip(own, counts, strict=True))
        for own in (before, after)
        if own
    ]
    return {"perplexity": _pair(means, len(counts))}


def _pair(values: Sequence[float], items: int) -> Score:
    return Score(values[0], values[1] if len(values) > 1 else None, None, None, 0, 0, items)


def _share(before: Sequence[float], after: Sequence[float] | None) -> Score:
    old = np.array(before)
    if after is None:
        low, high = bootstrap_interval(old, 0)
        return Score(float(old.mean()), None, low, high, 0, 0, len(old))
    new = np.array(after)
    low, high = bootstrap_interval(new - old, 0)
    lost, won = int((old > new).sum()), int((new > old).sum())
    return Score(float(old.mean()), float(new.mean()), low, high, lost, won, len(old))
