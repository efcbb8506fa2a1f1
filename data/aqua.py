"""AQuA-RAT (Ling et al., 2017, https://arxiv.org/abs/1705.04146): algebra questions with five options.

A folder holds ``train.json``, ``dev.json`` and ``test.json`` as published, one JSON object a line. Each option is
scored with its question; rationales are not used. Training questions that occur in dev or test are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from .examples import DataError, Example, TaskData, folder_of, json_object, read_rows, sha256_of, text_of

_LETTERS = ("A", "B", "C", "D", "E")
_FILES = {"train": ("train.json", "train-flan.json"), "dev": ("dev.json",), "test": ("test.json",)}
_HUB = "deepmind/aqua_rat"


def load(source: str, *, skip_bad: bool = False) -> TaskData:
    """AQuA from a folder, or from the hub where ``source`` is "hub"."""
    if source == "hub":
        splits, identity = _from_hub()
    else:
        splits, identity = _from_folder(source, skip_bad)
    scored = {_question(e) for split, examples in splits.items() if split != "train" for e in examples}
    splits["train"] = tuple(e for e in splits["train"] if _question(e) not in scored)
    return TaskData("aqua", splits, _LETTERS, "accuracy", identity, options=True)


def _from_folder(source: str, skip_bad: bool) -> tuple[dict[str, tuple[Example, ...]], str]:
    folder = folder_of(source, "aqua", _FILES["train"])
    paths = {
        split: next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
        for split, names in _FILES.items()
    }
    contents = {split: text_of(path) for split, path in paths.items()}
    splits = {s: read_rows(path, contents[s], _example, skip_bad=skip_bad) for s, path in paths.items()}
    return splits, sha256_of(contents.values())


def _from_hub() -> tuple[dict[str, tuple[Example, ...]], str]:
    from datasets import load_dataset  # noqa: PLC0415 - takes seconds to import, and the hub alone needs it

    try:
        parts = load_dataset(_HUB, "raw")
    except Exception as error:  # as for GLUE
        raise DataError(
            f"AQuA cannot be had from the hub ({type(error).__name__}: {error}). Pass a folder with train.json, "
            "dev.json and test.json as published (--data DIR)"
        ) from error
    names = {"train": "train", "dev": "validation", "test": "test"}
    splits = {split: tuple(map(_from_record, parts[name])) for split, name in names.items()}
    return splits, sha256_of(repr(example) for examples in splits.values() for example in examples)


def _example(line: str) -> Example:
    return _from_record(json_object(line))


def _from_record(record: Mapping[str, object]) -> Example:
    question, options, correct = (record.get(key) for key in ("question", "options", "correct"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"field 'question' is {question!r}, expected a text")
    if not isinstance(options, list) or len(options) != len(_LETTERS) or not all(isinstance(o, str) for o in options):
        raise ValueError(f"field 'options' is {options!r}, expected five texts")
    if correct not in _LETTERS:
        raise ValueError(f"field 'correct' is {correct!r}; there are {', '.join(_LETTERS)}")
    texts = tuple((question, _without_letter(option, letter)) for option, letter in zip(options, _LETTERS, strict=True))
    return Example(texts, _LETTERS.index(correct))


def _without_letter(option: str, letter: str) -> str:
    return option.removeprefix(f"{letter})").strip()


def _question(example: Example) -> str:
    return " ".join(example.texts[0][0].lower().split())
