"""WebNLG 2017 (Gardent et al., 2017, https://aclanthology.org/W17-3518): triples of DBpedia as texts.

Read is a folder with the challenge's XML files (in folders train, dev and test, as deep as they lie), one with the same
as JSON (``train.json``, ...: ``{"entries": [{"1": {"category": "Food", "modifiedtripleset": [...], "lexicalisations":
[...]}}, ...]}``), or the hub. Training takes each text as a pair; the texts of one set of triples are the references of
one item. Half of the test set is of categories that training has none of: items count by whether theirs was *seen*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .examples import DataError, parsed_rows, sha256_of, text_of
from .pairs import GenerationData, Metric, Written, files_of, from_hub, learned, linear, scored

_HUB, _CONFIG, _REVISION = "webnlg-challenge/web_nlg", "webnlg_challenge_2017", "refs/convert/parquet"
_SPLITS = ("train", "dev", "test")
_WORDS = re.compile(r"_+")
_DECLARED = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)

METRICS: tuple[Metric, ...] = ("bleu", "meteor", "ter")


def load(source: str, *, skip_bad: bool = False) -> GenerationData:
    """WebNLG from a folder, or from the hub where ``source`` is "hub".

    Raises:
        DataError: there is no such file, or it has faulty records; the message says which.
    """
    if source == "hub":
        splits = {split: split for split in _SPLITS}
        rows, identity = from_hub("WebNLG", _HUB, _of_hub, config=_CONFIG, revision=_REVISION, splits=splits)
    elif found := _xml_of(source):
        contents = {path: text_of(path) for paths in found.values() for path in paths}
        rows = {
            split: tuple(row for p in paths for row in _xml(p, contents[p], skip_bad)) for split, paths in found.items()
        }
        identity = sha256_of(contents.values())
    else:
        files = files_of(source, "webnlg", ".json")
        told = {split: text_of(path) for split, path in files.items()}
        rows = {split: _json(files[split], content, skip_bad) for split, content in told.items()}
        identity = sha256_of(told.values())
    known = {category for _, _, category in rows.get("train", ())}
    items = {
        split: scored(own, lambda name: "seen" if name in known else "unseen")
        for split, own in rows.items()
        if split != "train"
    }
    return GenerationData("webnlg", learned(rows.get("train", ())), items, METRICS, identity)


def _xml_of(source: str) -> dict[str, list[Path]]:
    for folder in (Path(source), Path(source) / "webnlg"):
        found = {split: sorted((folder / split).rglob("*.xml")) for split in _SPLITS}
        if any(found.values()):
            return {split: paths for split, paths in found.items() if paths}
    return {}


def _xml(path: Path, content: str, skip_bad: bool) -> tuple[Written, ...]:
    if _DECLARED.search(content):  # entities can grow without bound
        raise DataError(f"{path} declares entities or a document type, which the challenge's files do not")
    try:
        entries = ElementTree.fromstring(content).iter("entry")
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no XML: {error}") from None
    return parsed_rows(path, enumerate(entries, 1), _of_element, skip_bad=skip_bad, unit="record")


def _of_element(entry: ElementTree.Element) -> Written:
    triples = [(triple.text or "").split(" | ") for triple in entry.findall("modifiedtripleset/mtriple")]
    texts = [lex.text or "" for lex in entry.findall("lex") if lex.get("lang", "en") == "en"]
    return _written(triples, texts, entry.get("category", ""))


def _json(path: Path, content: str, skip_bad: bool) -> tuple[Written, ...]:
    try:
        read = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON, line {error.lineno}: {error.msg}") from None
    entries = read.get("entries") if isinstance(read, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected an object with a list of entries")
    return parsed_rows(path, enumerate(entries, 1), _of_object, skip_bad=skip_bad, unit="record")


def _of_object(entry: object) -> Written:
    """``{"1": {...}}``, or what is in it."""
    own = entry if isinstance(entry, dict) else {}
    if len(own) == 1:
        (own,) = own.values()
    if not isinstance(own, dict):
        raise ValueError("expected an object with the fields category, modifiedtripleset and lexicalisations")
    triples = [
        [_field(t, name) for name in ("subject", "property", "object")] for t in _objects(own, "modifiedtripleset")
    ]
    texts = [_field(text, "lex") for text in _objects(own, "lexicalisations")]
    return _written(triples, texts, str(own.get("category", "")))


def _objects(own: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    found = own.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"field {name!r} is no list of objects")
    yield from found


def _field(found: dict[str, Any], name: str) -> str:
    if not isinstance(value := found.get(name), str):
        raise ValueError(f"field {name!r} is no text")
    return value


def _written(triples: list[list[str]], texts: list[str], category: str) -> Written:
    if not triples or not all(len(triple) == 3 for triple in triples):
        raise ValueError("the triples are not subject | property | object")
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("there is no text about the triples, or an empty one")
    return (
        linear([_plain(part) for part in triple] for triple in triples),
        tuple(" ".join(t.split()) for t in texts),
        category,
    )


def _plain(part: str) -> str:
    """A name of DBpedia as words."""
    return _WORDS.sub(" ", part.strip().strip('"'))


def _of_hub(row: dict[str, Any]) -> Written:
    (sets,) = row["modified_triple_sets"]["mtriple_set"][:1]
    return _written([triple.split(" | ") for triple in sets], [*row["lex"]["text"]], row["category"])
