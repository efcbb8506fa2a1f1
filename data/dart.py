"""DART (Nan et al., 2021, https://arxiv.org/abs/2007.02871): triples of tables and of other sets, as sentences.

Read is a folder with its JSON files (``dart-v1.1.1-full-train.json``, ...; a split that is not there has no items), or
the hub. Training takes each sentence as a pair; the sentences of one set of triples are the references of one item.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .examples import DataError, parsed_rows, sha256_of, text_of
from .pairs import GenerationData, Metric, Written, files_of, from_hub, learned, linear, scored

_HUB, _REVISION = "Yale-LILY/dart", "refs/convert/parquet"
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}

METRICS: tuple[Metric, ...] = ("bleu", "meteor", "ter")


def load(source: str, *, skip_bad: bool = False) -> GenerationData:
    """DART from a folder, or from the hub where ``source`` is "hub".

    Raises:
        DataError: there is no such file, or it has faulty records; the message says which.
    """
    if source == "hub":
        rows, identity = from_hub("DART", _HUB, _of_hub, revision=_REVISION, splits=_HUB_SPLITS)
    else:
        files = files_of(source, "dart", ".json")
        contents = {split: text_of(path) for split, path in files.items()}
        rows = {split: _entries(files[split], content, skip_bad) for split, content in contents.items()}
        identity = sha256_of(contents.values())
    items = {split: scored(own) for split, own in rows.items() if split != "train"}
    return GenerationData("dart", learned(rows.get("train", ())), items, METRICS, identity)


def _entries(path: Path, content: str, skip_bad: bool) -> tuple[Written, ...]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON, line {error.lineno}: {error.msg}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of entries with the fields tripleset and annotations")
    return parsed_rows(path, enumerate(entries, 1), _written, skip_bad=skip_bad, unit="record")


def _written(entry: object) -> Written:
    found = entry if isinstance(entry, dict) else {}
    triples, notes = found.get("tripleset"), found.get("annotations")
    notes = notes if isinstance(notes, list) else []
    if not isinstance(triples, list) or not triples or not all(_is_triple(triple) for triple in triples):
        raise ValueError("field 'tripleset' is no list of [subject, relation, object]")
    texts = [text for note in notes if isinstance(note, dict) and isinstance(text := note.get("text"), str)]
    if not texts or len(texts) < len(notes) or not all(text.strip() for text in texts):
        raise ValueError("field 'annotations' is no list of objects with a text each")
    return _said(triples), tuple(" ".join(text.split()) for text in texts), ""


def _is_triple(triple: object) -> bool:
    return isinstance(triple, list) and len(triple) == 3 and all(isinstance(part, str) for part in triple)


def _said(triples: list[list[str]]) -> str:
    """Relations in lower case, as results are published."""
    return linear((subject, relation.lower(), thing) for subject, relation, thing in triples)


def _of_hub(row: dict[str, Any]) -> Written:
    return _said(row["tripleset"]), tuple(" ".join(text.split()) for text in row["annotations"]["text"]), ""
