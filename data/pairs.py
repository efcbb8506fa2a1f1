"""Sources and the texts that are written about them: what a generator learns from and is scored against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .examples import DataError, sha256_of

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
    longest_source: int | None = None
    """Sources are cut to so many tokens; None: they are short."""


def linear(triples: Iterable[Sequence[str]]) -> str:
    """Subject, relation and object of each triple as running text, as it is usual for language models.

    Example:
        >>> linear([("Elm Hall", "location", "Norwich"), ("Elm Hall", "built", "1911")])
        'Elm Hall : location : Norwich | Elm Hall : built : 1911'
    """
    return " | ".join(" : ".join(" ".join(part.split()) for part in triple) for triple in triples)


def files_of(source: str, task: str, *endings: str) -> dict[str, Path]:
    """The files of a task's splits in a folder, by split.

    Args:
        source: the folder, or one that holds it under the task's name.
        task: the task's name.
        endings: of files, the preferred first; a split's file has the split's name before it.

    Raises:
        DataError: there is no such file.
    """
    names = {"train": ["train"], "dev": ["dev", "validation", "valid"], "test": ["test"]}
    for folder in (Path(source), Path(source) / task):
        found = {
            split: path
            for split, own in names.items()
            for path in [
                next((p for name in own for end in endings for p in sorted(folder.glob(f"*{name}{end}"))), None)
            ]
            if path is not None
        }
        if found:
            return found
    expected = " or ".join(f"train{end}, dev{end}, test{end}" for end in endings)
    raise DataError(
        f"{source} holds no {task} data: expected {expected} there or in {Path(source) / task}. "
        "--data hub takes it from the Hugging Face hub"
    )


Written = tuple[str, tuple[str, ...], str]
"""A source, all that is written about it, and its category."""


def from_hub(
    task: str,
    name: str,
    written: Callable[[dict[str, Any]], Written],
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: Mapping[str, str],
) -> tuple[dict[str, tuple[Written, ...]], str]:
    """A task's splits from the Hugging Face hub, and the SHA-256 of all texts. Raises DataError."""
    from datasets import load_dataset  # noqa: PLC0415 - takes seconds to import, and the hub alone needs it

    try:
        parts = load_dataset(name, config, revision=revision)
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        raise DataError(
            f"{task} cannot be had from the hub ({type(error).__name__}: {error}). Pass its files as they were "
            "released (--data)"
        ) from error
    found = {split: tuple(map(written, parts[theirs])) for split, theirs in splits.items()}
    return found, sha256_of(repr(one) for rows in found.values() for one in rows)


def learned(rows: Iterable[Written]) -> tuple[Pair, ...]:
    """A pair for each text."""
    return tuple(Pair(source, text) for source, texts, _ in rows for text in texts)


def scored(rows: Iterable[Written], category: Callable[[str], str] = lambda name: "") -> tuple[Item, ...]:
    """An item for each source, in the order in which sources first occur; ``category`` says what it counts under."""
    rows = [*rows]
    return grouped(learned(rows), {source: category(name) for source, _, name in rows})


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
