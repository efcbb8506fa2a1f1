"""Sources and the texts that are written about them: what a generator learns from and is scored against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Metric = Literal["bleu", "nist", "meteor", "rouge_l", "cider", "ter", "rouge"]


class Pair(NamedTuple):
    """A source and a text that says it, to learn from."""

    source: str
    target: str


class Item(NamedTuple):
    """A source to write about, and every text that people wrote about it."""

    source: str
    references: tuple[str, ...]
    category: str = ""
    """Items may be scored by category too, such as those seen in training and those not."""


@dataclass(frozen=True)
class GenerationData:
    """A generation task: pairs to learn from, items to be scored on."""

    task: str
    train: tuple[Pair, ...]
    splits: Mapping[str, tuple[Item, ...]]
    metrics: tuple[Metric, ...]
    """What the task is usually scored by."""
    identity: str
    """SHA-256 of all that was read."""


def grouped(pairs: Iterable[Pair], categories: Mapping[str, str] | None = None) -> tuple[Item, ...]:
    """An item for each source, in the order in which sources first occur, with all its texts.

    Example:
        >>> grouped([Pair("a", "x"), Pair("b", "y"), Pair("a", "z")])
        (Item(source='a', references=('x', 'z'), category=''), Item(source='b', references=('y',), category=''))
    """
    texts: dict[str, list[str]] = {}
    for source, target in pairs:
        texts.setdefault(source, []).append(target)
    return tuple(Item(source, tuple(own), (categories or {}).get(source, "")) for source, own in texts.items())
