"""GLUE (Wang et al., 2019, https://arxiv.org/abs/1804.07461): folders in its own layout, or the hub.

A folder holds ``train.tsv`` and ``dev.tsv`` (MNLI: ``dev_matched.tsv``), tab-separated and unquoted, as GLUE ships
them. GLUE's own ``test.tsv`` has no labels; a labelled one is read where there is one (``test_labelled.tsv``, or the
corpus's own: ``msr_paraphrase_test.txt`` of MRPC, ``test-labeled.tsv`` of SST-2). STS-B is also read from
``stsb-en-train.csv`` and its like: two sentences and the score, comma-separated, no header.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .examples import DataError, Example, TaskData, folder_of, parsed_rows, read_rows, sha256_of, text_of

_HUB = "nyu-mll/glue"
_ENTAILMENT = ("entailment", "not_entailment")
_Files = dict[str, tuple[str, ...]]
# Split -> the files it may be in, first come first served.
_TRAIN: _Files = {"train": ("train.tsv", "msr_paraphrase_train.txt", "train_full.tsv")}
_SPLITS: _Files = _TRAIN | {
    "dev": ("dev.tsv",),
    "test": ("test_labelled.tsv", "test-labeled.tsv", "msr_paraphrase_test.txt"),
}
_STSB_SPLITS: _Files = {
    "train": ("train.tsv", "stsb-en-train.csv"),
    "dev": ("dev.tsv", "stsb-en-dev.csv"),
    "test": ("test_labelled.tsv", "stsb-en-test.csv"),
}
_MNLI_SPLITS: _Files = _TRAIN | {"dev": ("dev_matched.tsv",), "dev_mismatched": ("dev_mismatched.tsv",)}

_FILES = {"mnli": _MNLI_SPLITS, "stsb": _STSB_SPLITS}


@dataclass(frozen=True)
class Columns:
    """Where a GLUE task keeps its texts and label: columns of its files, or their numbers where there is no header."""

    texts: tuple[str | int, ...]
    label: str | int
    classes: tuple[str, ...]  # as the label column has them, in the hub's order; none for regression
    metric: str
    hub_texts: tuple[str, ...]

    def reader(self, header: str, separated: str = "tab-separated") -> Callable[[list[str]], Example]:
        """Reads the cells of a row of a file that begins with ``header``. Raises DataError if it lacks a column."""
        names = header.rstrip("\r\n").split("\t")
        wanted = (*self.texts, self.label)
        if lacking := [str(name) for name in wanted if isinstance(name, str) and name not in names]:
            raise DataError(f"no column {', '.join(map(repr, lacking))} in its first line; it has {', '.join(names)}")
        columns = {name: name if isinstance(name, int) else names.index(name) for name in wanted}
        return partial(self._example, columns, separated)

    def _example(self, columns: dict[str | int, int], separated: str, cells: list[str]) -> Example:
        if len(cells) <= max(columns.values()):
            raise ValueError(f"{len(cells)} {separated} fields, expected at least {max(columns.values()) + 1}")
        texts = [cells[columns[name]] for name in self.texts]
        for name, text in zip(self.texts, texts, strict=True):
            if not text.strip():
                raise ValueError(f"field {name!r} is empty")
        return Example(_one(texts), self._number(cells[columns[self.label]]))

    def _number(self, label: str) -> float:
        if self.classes:
            if label not in self.classes:
                raise ValueError(f"field {self.label!r}: {label!r} is no label; there are {', '.join(self.classes)}")
            return self.classes.index(label)
        try:
            return float(label)
        except ValueError:
            raise ValueError(f"field {self.label!r}: {label!r} is no number") from None


TASKS = {
    "cola": Columns((3,), 1, ("0", "1"), "matthews_correlation", ("sentence",)),
    "sst2": Columns(("sentence",), "label", ("0", "1"), "accuracy", ("sentence",)),
    "mrpc": Columns(("#1 String", "#2 String"), "Quality", ("0", "1"), "accuracy", ("sentence1", "sentence2")),
    "qqp": Columns(("question1", "question2"), "is_duplicate", ("0", "1"), "f1", ("question1", "question2")),
    "stsb": Columns(("sentence1", "sentence2"), "score", (), "pearson", ("sentence1", "sentence2")),
    "mnli": Columns(
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        ("premise", "hypothesis"),
    ),
    "qnli": Columns(("question", "sentence"), "label", _ENTAILMENT, "accuracy", ("question", "sentence")),
    "rte": Columns(("sentence1", "sentence2"), "label", _ENTAILMENT, "accuracy", ("sentence1", "sentence2")),
}


def load(task: str, source: str, *, skip_bad: bool = False) -> TaskData:
    """A GLUE task from a folder, or from the hub where ``source`` is "hub"."""
    return _from_hub(task) if source == "hub" else _from_folder(task, source, skip_bad)


def _from_folder(task: str, source: str, skip_bad: bool) -> TaskData:
    columns, files = TASKS[task], _FILES.get(task, _SPLITS)
    folder = folder_of(source, task, files["train"])
    found = {
        split: path
        for split, names in files.items()
        if (path := next((folder / name for name in names if (folder / name).is_file()), None))
    }
    if found.keys() == {"train"}:
        raise DataError(f"{folder} has nothing to score on: expected {files['dev'][0]} beside {found['train'].name}")
    contents = {split: text_of(path) for split, path in found.items()}
    splits = {}
    for split, path in found.items():
        try:
            splits[split] = _rows(columns, path, contents[split], skip_bad)
        except DataError as error:
            raise DataError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    return TaskData(task, splits, columns.classes, columns.metric, sha256_of(contents.values()))


def _rows(columns: Columns, path: Path, content: str, skip_bad: bool) -> tuple[Example, ...]:
    if path.suffix == ".csv":
        parse = replace(columns, texts=(0, 1), label=2).reader("", "comma-separated")
        lines = csv.reader(io.StringIO(content, newline=""))
        return parsed_rows(path, ((lines.line_num, cells) for cells in lines if cells), parse, skip_bad=skip_bad)
    parse = columns.reader(content.partition("\n")[0])
    headed = int(isinstance(columns.label, str))
    return read_rows(path, content, lambda line: parse(line.split("\t")), skip=headed, skip_bad=skip_bad)


def _from_hub(task: str) -> TaskData:
    from datasets import load_dataset  # noqa: PLC0415 - takes seconds to import, and the hub alone needs it

    columns = TASKS[task]
    names = {"dev": "validation_matched", "dev_mismatched": "validation_mismatched"} if task == "mnli" else {}
    try:
        parts = load_dataset(_HUB, task)
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        raise DataError(
            f"{task} cannot be had from the hub ({type(error).__name__}: {error}). Pass a folder with GLUE's own files "
            "(--data DIR)"
        ) from error
    splits = {
        split: tuple(Example(_one([row[name] for name in columns.hub_texts]), row["label"]) for row in parts[name])
        for split, name in ({"train": "train", "dev": "validation"} | names).items()
    }
    if task == "mrpc":  # the one test set whose labels GLUE gives out
        splits["test"] = tuple(Example(_one([r["sentence1"], r["sentence2"]]), r["label"]) for r in parts["test"])
    identity = sha256_of(repr(example) for examples in splits.values() for example in examples)
    return TaskData(task, splits, columns.classes, columns.metric, identity)


def _one(texts: list[str]) -> tuple[tuple[str, str | None], ...]:
    return ((texts[0], texts[1] if len(texts) > 1 else None),)
