"""Texts by people and by machines: JSONL (also gzipped) with ``text`` and ``label``, one class called human.

Splits are by topic, so that no essay's subject is met in training: the topic's hash decides, 70 % of topics being for
training, 10 % dev and 20 % test, and adding rows moves none of the others. Few topics may leave none for dev, which
calibration alone needs. The topic is the field ``topic``, or ``split`` and ``index`` together (OUTFOX's files), or else
the text itself.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from .examples import DataError, Example, TaskData, json_object, read_rows, sha256_of

HUMAN = "human"
_TOKENS = 256  # essays have some 500


def load(source: str, *, skip_bad: bool = False) -> TaskData:
    """The texts of a file, or of the only JSONL file of a folder; the human class comes first, the others by name."""
    path = _file(Path(source))
    content = _text(path)
    records = read_rows(path, content, _record, skip_bad=skip_bad)
    labels = {record.label for record in records}
    people = [label for label in labels if label.lower() == HUMAN]
    if len(people) != 1 or len(labels) < 2:
        raise DataError(f"{path}: the labels are {', '.join(sorted(labels))}; expected 'human' and at least one more")
    classes = (people[0], *sorted(label for label in labels if label != people[0]))
    splits: dict[str, list[Example]] = defaultdict(list)
    for text, label, topic in records:
        splits[split_of(topic)].append(Example(((text, None),), classes.index(label)))
    if lacking := {"train", "test"} - splits.keys():
        raise DataError(f"{path}: too few topics, none is left for {', '.join(sorted(lacking))}")
    ordered = {split: tuple(splits[split]) for split in ("train", "dev", "test") if splits[split]}
    identity = sha256_of([content])
    return TaskData(
        "human-vs-machine", ordered, classes, "accuracy", identity, weighted=True, reference=0, tokens=_TOKENS
    )


def split_of(topic: str) -> str:
    """train, dev or test, by the topic's name alone."""
    tenth = int.from_bytes(hashlib.sha256(topic.encode()).digest()[:8], "big") % 10
    return "train" if tenth < 7 else "dev" if tenth < 8 else "test"


class _Record(NamedTuple):
    text: str
    label: str
    topic: str


def _record(line: str) -> _Record:
    fields = json_object(line)

    def said(field: str) -> str:
        found = fields.get(field)
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"field {field!r} is {found!r}, expected a text")
        return found

    text, label = said("text"), said("label")
    if "topic" in fields:
        return _Record(text, label, str(fields["topic"]))
    if "split" in fields and "index" in fields:
        return _Record(text, label, f"{fields['split']} {fields['index']}")
    return _Record(text, label, text)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [file for folder in (path, path / "human_vs_machine") for file in sorted(folder.glob("*.jsonl*"))]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"{path} holds {len(found)} JSONL files ({names}); name one (--data FILE)")
    return found[0]


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"no such file: {path}. --data takes JSONL (or .jsonl.gz) with the fields text and label, "
            "and is always a file of your own"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:  # gzip's too
        raise DataError(f"{path} cannot be read: {error}") from None
