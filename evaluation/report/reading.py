"""A run's folder as it is read for a report: also one that is not finished, and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..retention import Checkpoint
from ..scores import FactScores

RUN, RESULTS, EXAMPLES = "run.json", "results.jsonl", "examples.jsonl"
CHECKPOINTS, CLASSIFICATION = "checkpoints.jsonl", "metrics.json"

_T = TypeVar("_T", bound=BaseModel)


class UnreadableRunError(ValueError):
    """A folder that holds no run, or a damaged one; the message says which."""


@dataclass(frozen=True)
class EditingRun:
    """What a run of knowledge editing has found so far."""

    folder: Path
    record: dict[str, object]
    """``run.json``."""
    scores: Sequence[FactScores]
    checkpoints: Sequence[Checkpoint]
    examples: Sequence[FactScores]
    """Facts whose answers were generated though the run does not measure that."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def expected(self) -> int:
        """How many facts the run has when it is finished."""
        data = self.record.get("data")
        return data["facts"] if isinstance(data, dict) and isinstance(data.get("facts"), int) else len(self.scores)


@dataclass(frozen=True)
class ClassificationRun:
    """What a classification run has found."""

    folder: Path
    record: dict[str, object]
    metrics: dict[str, Any]
    """``metrics.json``."""


def read_run(folder: Path) -> EditingRun | ClassificationRun:
    """What stands in a run's folder. Nothing is written: the run may still be going on.

    Args:
        folder: with a ``run.json``.

    Raises:
        UnreadableRunError: there is no run, none of its results, or a file is damaged.

    Example:
        >>> read_run(Path("no-such-folder"))
        Traceback (most recent call last):
        ...
        loredit.evaluation.report.reading.UnreadableRunError: no-such-folder holds no run (there is no run.json)
    """
    if not (folder / RUN).is_file():
        raise UnreadableRunError(f"{folder} holds no run (there is no {RUN})")
    record = _object(folder / RUN)
    if "task" in record:
        if not (folder / CLASSIFICATION).exists():
            raise UnreadableRunError(f"{folder} holds a classification run without results (no {CLASSIFICATION})")
        return ClassificationRun(folder, record, _object(folder / CLASSIFICATION))
    scores = lines(folder / RESULTS, FactScores)
    if not scores:
        raise UnreadableRunError(f"{folder} holds a run without results so far (nothing in {RESULTS})")
    if all(fact.case_id.isdecimal() for fact in scores):  # edits that take long to learn are finished later
        scores.sort(key=lambda fact: int(fact.case_id))
    return EditingRun(
        folder,
        record,
        scores,
        lines(folder / CHECKPOINTS, Checkpoint),
        lines(folder / EXAMPLES, FactScores),
    )


def lines(path: Path, kind: type[_T]) -> list[_T]:
    """The lines of a file, without a last one that is being written; none where there is no file.

    Raises UnreadableRunError.
    """
    found = []
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise UnreadableRunError(
                    f"{path}, line {number}: not a result of this version ({error.error_count()} faults)"
                ) from None
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableRunError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UnreadableRunError(f"{path} is damaged: it holds no object")
    return found
