"""What a model can do beside its facts: questions with options, last words, and texts.

One folder holds all, in the files' own forms, in ``ability/`` and beside it or itself:

=================  ==========================================  ========================================================
``arc_easy``       ``arc_easy_test.csv``                       question, four options, letter or number of the right one
``arc_challenge``  ``arc_challenge_test.csv``                  same
``hellaswag``      ``hellaswag_val_full.txt(.bz2)``            blocks of six lines: beginning, number, four ends
``piqa``           ``piqa-valid.jsonl``, ``...-labels.lst``    goal, sol1, sol2; a number a line
``lambada``        ``lambada_test.jsonl``                      text, whose last word is to be said
``wikitext2``      ``wikitext2/test.txt``                      one text
``me_ppl``         ``me_ppl/ME-PPL_1k.json``                   short texts
=================  ==========================================  ========================================================

Sources: ARC (https://arxiv.org/abs/1803.05457), HellaSwag (https://arxiv.org/abs/1905.07830), PIQA
(https://arxiv.org/abs/1911.11641), LAMBADA (https://arxiv.org/abs/1606.06031), WikiText
(https://arxiv.org/abs/1609.07843), ME-PPL (https://arxiv.org/abs/2402.09656). Questions are put as
lm-evaluation-harness puts them.
"""

from __future__ import annotations

import bz2
import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .examples import DataError, json_object, parsed_rows, sha256_of, text_of
from .messages import unknown

_LETTERS = "ABCD"
_SENTENCE = re.compile(r"(?<=[.!?] )(?=[^.!?]*$)")  # where the last, unfinished one begins


class Question(NamedTuple):
    """A text and what may follow it, a blank between; of one option alone, it is to be the likeliest there is."""

    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class AbilityTask:
    """Questions, or texts that are only read."""

    name: str
    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    identity: str
    """SHA-256 of what was read."""


def load(task: str, source: str | Path, *, skip_bad: bool = False) -> AbilityTask:
    """A task from its file below ``source``.

    Args:
        task: one of ``TASKS``.
        source: a folder with the files, or with folders that hold them.
        skip_bad: leave faulty rows out and count them in the log.

    Raises:
        DataError: there is no such task or file, or it has faulty rows.

    Example:
        >>> load("piqa", "data").questions[0].options  # doctest: +SKIP
        ('Fill it with water.', 'Fill it with sand.')
    """
    if task not in TASKS:
        raise DataError(unknown("task", task, TASKS))
    names, reader = TASKS[task]
    return reader(task, _found(Path(source), task, names), skip_bad)


def _found(source: Path, task: str, names: tuple[str, ...]) -> Path:
    folder = "ability" if "/" not in names[0] else ""
    for name in names:
        for path in (source / folder / name, source / name, source / Path(name).name):
            if path.is_file():
                return path
    raise DataError(f"{source} holds nothing of {task}: expected {' or '.join(names)} there or in {source / folder}")


def _choice(text: str, options: list[str], right: int) -> Question:
    """Raises ValueError where an option says nothing: it has no length to be likely for."""
    if right >= len(options) or not all(option.strip() for option in options):
        raise ValueError("an option is empty, or there is none where the right one is to be")
    return Question(text, tuple(options), right)


def _arc(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    content = text_of(path)
    lines = csv.reader(io.StringIO(content, newline=""))

    def parse(cells: list[str]) -> Question:
        question, *options, right = cells
        if len(options) != len(_LETTERS) or not question.strip():
            raise ValueError(f"expected a question, {len(_LETTERS)} options and a letter, found {len(cells)} cells")
        index = (_LETTERS if right.isalpha() else "1234").find(right) if right else -1
        if index < 0:
            raise ValueError(f"the right option is {right!r}; expected {', '.join(_LETTERS)} or 1, 2, 3, 4")
        while options and not options[-1].strip():  # some questions have three
            options.pop()
        return _choice(f"Question: {question}\nAnswer:", options, index)

    rows = parsed_rows(path, ((lines.line_num, cells) for cells in lines if cells), parse, skip_bad=skip_bad)
    return AbilityTask(task, rows, (), sha256_of([content]))


def _hellaswag(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    try:
        content = bz2.decompress(path.read_bytes()).decode("utf-8") if path.suffix == ".bz2" else text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    lines = content.rstrip("\n").split("\n")

    def parse(block: list[str]) -> Question:
        if len(block) != 6 or block[1] not in ("0", "1", "2", "3"):
            raise ValueError(f"expected a beginning, a number from 0 to 3 and four ends, found {block[:2]!r}")
        beginning = _SENTENCE.split(block[0], maxsplit=1)
        whole = "".join([*beginning[:-1], beginning[-1].capitalize()]) if len(beginning) > 1 else block[0]
        return _choice(_plain(whole), [*map(_plain, block[2:])], int(block[1]))

    blocks = ((i + 1, lines[i : i + 6]) for i in range(0, len(lines), 6))
    return AbilityTask(task, parsed_rows(path, blocks, parse, skip_bad=skip_bad), (), sha256_of([content]))


def _plain(text: str) -> str:
    """Without WikiHow's marks, as lm-evaluation-harness has it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    labels = path.with_name(path.name.replace(".jsonl", "-labels.lst"))
    content, right = text_of(path), text_of(labels).split()
    rows = [line for line in content.split("\n") if line.strip()]
    if len(rows) != len(right):
        raise DataError(f"{path} has {len(rows)} rows, {labels.name} {len(right)} labels")

    def parse(row: tuple[str, str]) -> Question:
        record = json_object(row[0])
        if lacking := [key for key in ("goal", "sol1", "sol2") if not isinstance(record.get(key), str)]:
            raise ValueError(f"field {lacking[0]!r} is no text")
        if row[1] not in ("0", "1"):
            raise ValueError(f"its label is {row[1]!r}; expected 0 or 1")
        return _choice(f"Question: {record['goal']}\nAnswer:", [str(record["sol1"]), str(record["sol2"])], int(row[1]))

    numbered = enumerate(zip(rows, right, strict=True), 1)
    return AbilityTask(task, parsed_rows(path, numbered, parse, skip_bad=skip_bad), (), sha256_of([content, *right]))


def _lambada(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    content = text_of(path)

    def parse(line: str) -> Question:
        text = json_object(line).get("text")
        if not isinstance(text, str) or " " not in text:
            raise ValueError("field 'text' is no text of two words or more")
        beginning, _, word = text.rpartition(" ")
        return Question(beginning, (word,), 0)

    rows = ((number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip())
    return AbilityTask(task, parsed_rows(path, rows, parse, skip_bad=skip_bad), (), sha256_of([content]))


def _one_text(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    content = text_of(path)
    return AbilityTask(task, (), (content,), sha256_of([content]))


def _texts(task: str, path: Path, skip_bad: bool) -> AbilityTask:
    content = text_of(path)
    try:
        records = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None

    def parse(record: object) -> str:
        text = record.get("Text") if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError("field 'Text' is no text")
        return text

    texts = parsed_rows(path, enumerate(records, 1), parse, skip_bad=skip_bad)
    return AbilityTask(task, (), texts, sha256_of([content]))


TASKS: Mapping[str, tuple[tuple[str, ...], Callable[[str, Path, bool], AbilityTask]]] = {
    "arc_easy": (("arc_easy_test.csv",), _arc),
    "arc_challenge": (("arc_challenge_test.csv",), _arc),
    "hellaswag": (("hellaswag_val_full.txt.bz2", "hellaswag_val_full.txt"), _hellaswag),
    "piqa": (("piqa-valid.jsonl",), _piqa),
    "lambada": (("lambada_test.jsonl",), _lambada),
    "wikitext2": (("wikitext2/test.txt",), _one_text),
    "me_ppl": (("me_ppl/ME-PPL_1k.json",), _texts),
}
