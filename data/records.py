"""From a file's bytes to its records: JSON, JSONL or CSV, told apart by looking at them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from .facts import FactError


def read_bytes(path: Path) -> bytes:
    """The file's content; a FactError says what there is instead."""
    if path.is_dir():
        raise FactError(f"{path} is a folder; name one of its files: {_listed(_names(path))}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        names = _names(path.parent)
        near = get_close_matches(path.name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{path.parent.resolve()} holds {_listed(names)}"
        raise FactError(f"no such file: {path}; {hint}") from None
    except OSError as error:
        raise FactError(f"{path} cannot be read: {error.strerror}") from error


def records(name: str, content: bytes) -> Iterator[tuple[int, object]]:
    """(line, record) for each record; a ValueError stands for a record that cannot be read.

    The suffix of ``name`` decides where it is .csv, .tsv, .json or .jsonl, the first character elsewhere. Raises
    FactError where the whole cannot be read.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FactError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    suffix, first_line = Path(name).suffix.lower(), text.lstrip().partition("\n")[0]
    if suffix in (".csv", ".tsv") or not (suffix in (".json", ".jsonl") or first_line.startswith(("[", "{"))):
        return _csv(name, text)
    if not first_line.startswith("[") and (suffix == ".jsonl" or isinstance(_parsed(first_line), dict)):
        return ((line, _parsed(row)) for line, row in enumerate(text.split("\n"), 1) if row.strip())
    return _json(name, text)


def _parsed(row: str) -> object:
    try:
        return _loads(row)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON, column {error.colno}: {error.msg}")
    except ValueError as error:
        return error


def _loads(text: str) -> object:
    """JSON, refusing what would be lost or would not be written again: ValueError, JSONDecodeError where it is none."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = dict.fromkeys(name for name in names if names.count(name) > 1)
        raise ValueError(f"a field occurs twice in one record: {', '.join(twice)}")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _json(name: str, text: str) -> Iterator[tuple[int, object]]:
    """The records of a list, or the one record that the text is, each with the line where it begins."""
    try:
        whole = _loads(text)
    except json.JSONDecodeError as error:
        raise FactError(f"{name}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except ValueError as error:  # also a number of more digits than Python reads
        raise FactError(f"{name}: {error}") from error
    if not isinstance(whole, list):
        yield 1, whole
        return
    line, last, position = 1, 0, text.index("[") + 1
    for record in whole:
        while text[position] in ", \t\r\n":
            position += 1
        line, last = line + text.count("\n", last, position), position
        _, position = json.JSONDecoder().raw_decode(text, position)
        yield line, record


def _csv(name: str, text: str) -> Iterator[tuple[int, object]]:
    """Rows as dictionaries; an empty cell is an absent field, a space after a separator is no part of the cell.

    The separator is whichever of comma, semicolon and tab the header has most of.
    """
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] = []
    begin = end = 0
    try:
        for row in rows:
            begin, end = end + 1, rows.line_num
            if not any(row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                if len(set(header)) < len(header):
                    raise FactError(f"{name}, line {begin}: a column occurs twice: {', '.join(header)}")
            elif len(row) > len(header):
                yield begin, ValueError(f"{len(row)} cells for {len(header)} columns; quote text with {separator!r}")
            else:
                yield begin, {column: cell for column, cell in zip(header, row, strict=False) if cell}
    except csv.Error as error:
        raise FactError(f"{name}, line {end + 1}: not CSV: {error}") from error


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "nothing"
