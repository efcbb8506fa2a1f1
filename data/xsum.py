"""XSum (Narayan et al., 2018, https://arxiv.org/abs/1808.08745): news articles, each summed up in one sentence.

Read is a folder with JSON lines (``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, fields ``document`` and
``summary``), or the hub. An article is cut to 512 tokens, as usual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .examples import json_object, read_rows, sha256_of, text_of
from .pairs import GenerationData, Metric, Written, files_of, from_hub, learned, scored

_HUB, _REVISION = "EdinburghNLP/xsum", "refs/convert/parquet"
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_LONGEST = 512

METRICS: tuple[Metric, ...] = ("rouge",)


def load(source: str, *, skip_bad: bool = False) -> GenerationData:
    """XSum from a folder, or from the hub where ``source`` is "hub".

    Raises:
        DataError: there is no such file, or it has faulty lines; the message says which.
    """
    if source == "hub":
        rows, identity = from_hub("XSum", _HUB, _written, revision=_REVISION, splits=_HUB_SPLITS)
    else:
        files = files_of(source, "xsum", ".jsonl", ".json")
        contents = {split: text_of(path) for split, path in files.items()}
        rows = {split: _lines(files[split], content, skip_bad) for split, content in contents.items()}
        identity = sha256_of(contents.values())
    items = {split: scored(own) for split, own in rows.items() if split != "train"}
    return GenerationData("xsum", learned(rows.get("train", ())), items, METRICS, identity, _LONGEST)


def _lines(path: Path, content: str, skip_bad: bool) -> tuple[Written, ...]:
    return read_rows(path, content, lambda line: _written(json_object(line)), skip_bad=skip_bad)


def _written(row: dict[str, Any]) -> Written:
    document, summary = row.get("document"), row.get("summary")
    for name, text in (("document", document), ("summary", summary)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"field {name!r} is missing, empty or no text")
    return " ".join(str(document).split()), (" ".join(str(summary).split()),), ""
