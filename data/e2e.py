"""The E2E NLG challenge (Novikova et al., 2017, https://arxiv.org/abs/1706.09254): restaurants as attributes and texts.

Read are ``e2e-dataset.zip`` as it was released, a folder that holds it, a folder with its CSV files, or the hub. Each
row has a meaning representation such as ``name[Blue Spice], area[riverside]`` and one text. Training takes each row as
a pair; in dev and test the texts of one representation are the references of one item (630 in the test set).
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from .examples import DataError, folder_of, parsed_rows, sha256_of, text_of
from .pairs import GenerationData, Metric, Pair, Written, from_hub, grouped, learned

_ZIP = "e2e-dataset.zip"
_FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
_HUB, _HUB_SPLITS = "tuetschek/e2e_nlg", {"train": "train", "dev": "validation", "test": "test"}
_ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]")

METRICS: tuple[Metric, ...] = ("bleu", "nist", "meteor", "rouge_l", "cider")


def load(source: str, *, skip_bad: bool = False) -> GenerationData:
    """E2E from a zip file or folder, or from the hub where ``source`` is "hub".

    Raises:
        DataError: there is no such file, or it has faulty rows; the message says which.
    """
    if source == "hub":
        rows, identity = from_hub("E2E", _HUB, _of_hub, splits=_HUB_SPLITS)
        splits = {split: learned(own) for split, own in rows.items()}
    else:
        splits, identity = _from_files(source, skip_bad)
    scored = {name: grouped(own) for name, own in splits.items() if name != "train"}
    return GenerationData("e2e", splits["train"], scored, METRICS, identity)


def linear(representation: str) -> str:
    """A meaning representation as running text, as it is usual for language models. Raises ValueError.

    Example:
        >>> linear("name[Blue Spice], eatType[coffee shop], area[riverside]")
        'name : Blue Spice | eatType : coffee shop | area : riverside'
    """
    found = _ATTRIBUTE.findall(representation)
    if not found or ", ".join(f"{key.strip()}[{value}]" for key, value in found) != representation.strip():
        raise ValueError(f"expected attributes such as name[Blue Spice], area[riverside], found {representation!r}")
    return " | ".join(f"{key.strip()} : {value.strip()}" for key, value in found)


def _from_files(source: str, skip_bad: bool) -> tuple[dict[str, tuple[Pair, ...]], str]:
    path = Path(source)
    if not path.is_file():
        path = folder_of(source, "e2e", (_ZIP, _FILES["train"]))
        path = path / _ZIP if (path / _ZIP).is_file() else path
    contents = _zipped(path) if path.is_file() else {split: text_of(path / name) for split, name in _FILES.items()}
    rows = {split: _rows(path / _FILES[split], content, skip_bad) for split, content in contents.items()}
    return rows, sha256_of(contents.values())


def _zipped(path: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            if lacking := [name for name in _FILES.values() if name not in names]:
                raise DataError(f"{path} lacks {', '.join(lacking)}; expected is {_ZIP} as it was released")
            return {split: archive.read(names[name]).decode("utf-8-sig") for split, name in _FILES.items()}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no zip file with CSV files in UTF-8: {error}") from None


def _rows(path: Path, content: str, skip_bad: bool) -> tuple[Pair, ...]:
    lines = csv.reader(io.StringIO(content, newline=""))
    header = next(lines, [])
    if header[:2] != ["mr", "ref"]:
        raise DataError(f"{path}: expected the columns mr, ref in its first line; it has {', '.join(header)}")
    return parsed_rows(path, ((lines.line_num, cells) for cells in lines if cells), _pair, skip_bad=skip_bad)


def _pair(cells: list[str]) -> Pair:
    if len(cells) != 2:
        raise ValueError(f"{len(cells)} cells, expected mr and ref")
    if not cells[1].strip():
        raise ValueError("field 'ref' is empty")
    return Pair(linear(cells[0]), cells[1].strip())


def _of_hub(row: dict[str, Any]) -> Written:
    source, text = _pair([row["meaning_representation"], row["human_reference"]])
    return source, (text,), ""
