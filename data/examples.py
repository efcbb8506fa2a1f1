"""Labelled examples for classification and multiple choice, and how faults in their files are told."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

_log = logging.getLogger(__name__)
_SHOWN = 10
R = TypeVar("R")
T = TypeVar("T")


class DataError(ValueError):
    """A data set that cannot be used; the message names file, line and field, and the remedy."""


class Example(NamedTuple):
    """One row: the texts that are scored for it, and its label.

    A classification example is one text or pair of texts; a multiple-choice example has one for each option. The label
    is the number of the class or of the right option, in regression the value itself.
    """

    texts: tuple[tuple[str, str | None], ...]
    label: float


@dataclass(frozen=True)
class TaskData:
    """A task's examples in fixed splits; ``train`` is one of them, the others are for scoring."""

    task: str
    splits: Mapping[str, tuple[Example, ...]]
    classes: tuple[str, ...]
    """Names of the classes, or of the options; none for regression."""
    metric: str
    """The metric by which the task is usually compared."""
    identity: str
    """SHA-256 of all that was read."""
    options: bool = False
    """Multiple choice: each option is scored, the best one is the answer."""
    weighted: bool = False
    """Classes are weighted in the loss, each by the inverse of its share."""
    reference: int | None = None
    """The class that every other one can be told apart from by a classifier of its own (an ensemble)."""
    tokens: int = 128
    """Texts are cut to this many where nothing else is said."""


def read_rows(
    path: Path, content: str, parse: Callable[[str], T], *, skip: int = 0, skip_bad: bool = False
) -> tuple[T, ...]:
    """What ``parse`` makes of each line behind the first ``skip`` ones; it raises ValueError for a faulty one.

    Raises DataError with the first faults and their number; with ``skip_bad`` such lines are left out and counted in
    the log.
    """
    rows = [
        (number, line.rstrip("\r"))
        for number, line in enumerate(content.split("\n"), 1)
        if number > skip and line.strip()
    ]
    return parsed_rows(path, rows, parse, skip_bad=skip_bad)


def parsed_rows(
    path: Path | str,
    rows: Iterable[tuple[int, R]],
    parse: Callable[[R], T],
    *,
    skip_bad: bool = False,
    unit: str = "line",
) -> tuple[T, ...]:
    """What ``parse`` makes of each row, all of whose faults are told together.

    Args:
        path: the file that the rows are of, for messages.
        rows: the line of each, and the row.
        parse: raises ValueError for a faulty row.
        skip_bad: leave faulty rows out and count them in the log.
        unit: what the number of a row counts.

    Raises:
        DataError: there are faulty rows, or no rows; the message has the first faults and their number.
    """
    found: list[T] = []
    faults: list[str] = []
    for number, row in rows:
        try:
            found.append(parse(row))
        except ValueError as error:
            faults.append(f"{path}, {unit} {number}: {error}")
    if faults and not skip_bad:
        more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise DataError(
            "\n  ".join([f"{len(faults)} bad {unit}s (--skip-bad leaves them out):", *faults[:_SHOWN], *more])
        )
    if faults:
        _log.warning("%s: %d bad %ss left out, the first: %s", path, len(faults), unit, faults[0])
    if not found:
        raise DataError(f"{path} holds no examples")
    return tuple(found)


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def sha256_of(contents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content.encode()).digest())
    return digest.hexdigest()


def folder_of(source: str, task: str, needs: Iterable[str]) -> Path:
    """The folder with a task's files, which ``source`` is or holds under the task's name."""
    for folder in (Path(source), Path(source) / task):
        if any((folder / name).is_file() for name in needs):
            return folder
    raise DataError(
        f"{source} holds no {task} data: expected {' or '.join(needs)} there or in {Path(source) / task}. "
        "--data hub takes it from the Hugging Face hub"
    )


def json_object(line: str) -> dict[str, object]:
    """A line's JSON object. Raises ValueError saying what it is instead."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, column {error.colno}: {error.msg}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with fields, found {record!r}")
    return record
