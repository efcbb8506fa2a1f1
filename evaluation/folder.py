"""A run's folder: what was asked for, what has been found out so far, and how an interrupted run finds both again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError

from ..engine.files import named, replacing, tidy
from ..engine.version import VERSION

RUN = "run.json"

# What is being written has a dot before its name: files as `replacing` and figures call them, and saved edits.
_UNFINISHED = re.compile(r"\..+\.(jsonl?|png|html)\..+|\.edits(-\d+)?")

_T = TypeVar("_T", bound=BaseModel)


class RunError(ValueError):
    """A run that cannot begin or go on; the message says what to do."""


def open_folder(
    record: dict[str, object], output: Path | None, name: str, resume: bool, command: str | None = None
) -> Path:
    """The folder of the run that ``record`` describes: a new one, or with ``resume`` the one that it has begun in.

    ``output`` None: one below ``results/`` that is called ``name`` and a number. To be called with the folder locked
    where ``output`` is given; a folder that is made anew is nobody else's. ``command``: the line that does it again.
    """
    if output is None:
        numbered = _numbered(Path("results"), name)
        if resume:
            same = [path for path in numbered.values() if _differences(path / RUN, record) == []]
            if not same:
                raise RunError("nothing to resume: no run below results/ has these settings")
            output = max(same, key=lambda path: (path / RUN).stat().st_mtime)
        else:
            output = _made(Path("results"), name, 1 + max(numbered, default=0))
    if (output / RUN).exists():
        if not resume:
            raise RunError(f"{output} already holds a run; --resume goes on with it, --output names another folder")
        differing = _differences(output / RUN, record)
        if differing is None:
            raise RunError(f"{output / RUN} is damaged, so the run cannot go on; --output names another folder")
        if differing:
            raise RunError(
                f"{output} holds a run with other settings ({', '.join(differing)}); it cannot be resumed with these"
            )
        _tidy(output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        tidy(output, RUN)
        with replacing(output / RUN) as path:
            path.write_text(json.dumps({**record, "command": command, **_surroundings()}, indent=1), encoding="utf-8")
    return output


def _numbered(parent: Path, name: str) -> dict[int, Path]:
    """The folders that are called ``name`` and a number; others that begin alike are somebody's own."""
    own = re.compile(re.escape(name) + r"-(\d{1,9})")
    found = ((own.fullmatch(path.name), path) for path in (parent.iterdir() if parent.is_dir() else ()))
    return {int(match[1]): path for match, path in found if match and path.is_dir()}


def _made(parent: Path, name: str, number: int) -> Path:
    """A new folder with the number, or with the next that no run which began meanwhile has taken."""
    while True:
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def append(path: Path, lines: Iterable[BaseModel]) -> None:
    """Add a line for each, all at once, and see them onto the disk."""
    with named(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(line.model_dump_json() + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, kind: type[_T]) -> list[_T]:
    """The lines so far. A last one that was cut off while it was written is taken out of the file."""
    if not path.exists():
        return []
    lines: Sequence[bytes] = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
        with replacing(path) as whole:
            whole.write_bytes(b"".join(lines))
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            faults = f"{error.error_count()} faults"
            raise RunError(
                f"{path}, line {number}: not a result of this version ({faults}); use a new --output"
            ) from None
    return found


def _tidy(folder: Path) -> None:
    """Remove what was being written when the run was killed."""
    for path in folder.iterdir():
        if not _UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _differences(path: Path, record: dict[str, object]) -> list[str] | None:
    """The settings in which a run differs from ``record``; None where there is no run to read."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return [key for key, value in record.items() if before.get(key) != value] if isinstance(before, dict) else None


def versions() -> dict[str, str]:
    """Of what computes here."""
    return {"loredit": VERSION, **{name: version(name) for name in ("torch", "transformers", "numpy")}}


def _surroundings() -> dict[str, object]:
    return {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
