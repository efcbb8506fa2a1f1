"""The tasks of a run on one model, without and with what may be attached to it; results come task by task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.ability import AbilityTask
from ...engine.files import replacing
from ...engine.model.encoding import Encoded
from ...engine.model.passes import context_of
from ..tuning.methods import sample
from . import metrics
from .metrics import Likelihoods, Score
from .scoring import Read, continued, pieces, read

Edited = Callable[[Sequence[Sequence[int]]], AbstractContextManager[object]]
"""Given the token ids of prompts, attaches what belongs to the rows of a batch that has one for each."""

Told = Callable[[str, int, int], None]
"""Told the task, how many more rows were read, and of how many."""

RESULTS = "ability.json"


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: AbilityTask,
    *,
    edited: Edited | None = None,
    limit: int | None = None,
    reserved: int = 0,
    progress: Told = lambda task, done, total: None,
) -> dict[str, Score]:
    """One task's scores, by metric.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        task: questions or texts.
        edited: attaches edits to a batch; None: the model alone is scored.
        limit: score a sample of this many items, and of a long text so many windows; None: all.
        reserved: positions of the context that the edits take.
        progress: told what is read.

    Returns:
        A :class:`Score` for each metric, see :mod:`.metrics`.
    """
    context = context_of(model) - reserved
    questions = sample(task.questions, limit)
    parts: list[list[Encoded]] = [
        *([continued(tokenizer, q.text, option, context) for option in q.options] for q in questions),
        *(pieces(tokenizer, text, context)[:limit] for text in sample(task.texts, limit)),
    ]
    parts = [part for part in parts if part]
    rows = [row for part in parts for row in part]
    total = len(rows) * (1 if edited is None else 2)

    def seen(attached: Edited | None) -> list[list[Read]]:
        attach = {"attach": lambda some: attached([rows[i].ids[: rows[i].start] for i in some])} if attached else {}
        flat = iter(read(model, rows, progress=lambda done: progress(task.name, done, total), **attach))
        return [[next(flat) for _ in part] for part in parts]

    both = [seen(None), *([seen(edited)] if edited else [])]
    if questions:
        items = [[Likelihoods(tuple(r.log_prob for r in own), own[0].likeliest) for own in state] for state in both]
        return metrics.of_questions(questions, items[0], items[1] if len(items) > 1 else None)
    counts = [sum(len(row.wanted) for row in part) for part in parts]
    sums = [[sum(r.log_prob for r in own) for own in state] for state in both]
    return metrics.of_texts(counts, sums[0], sums[1] if len(sums) > 1 else None)


def evaluate_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[AbilityTask],
    *,
    edited: Edited | None = None,
    limit: int | None = None,
    reserved: int = 0,
    record: Mapping[str, object],
    output: Path | None = None,
    progress: Told = lambda task, done, total: None,
) -> dict[str, dict[str, Score]]:
    """Tasks one after another.

    Args:
        output: a file that has each task's scores as soon as they are known; tasks that it has already, of a run with
            the same ``record``, are not scored again.
        record: what the scores are of.

    Other arguments and the scores are those of :func:`evaluate`.

    Raises:
        ValueError: ``output`` holds scores of something else.
    """
    wanted = json.loads(json.dumps({**record, "limit": limit}))
    found: dict[str, dict[str, Score]] = {}
    if output and output.is_file():
        before = json.loads(output.read_text(encoding="utf-8"))
        if before.get("of") != wanted:
            raise ValueError(f"{output} holds scores of something else; --output names another file")
        found = {
            name: {metric: Score(**score) for metric, score in scores["scores"].items()}
            for name, scores in before["tasks"].items()
            if any(task.name == name and task.identity == scores["data"] for task in tasks)
        }
    for task in tasks:
        if task.name not in found:
            found[task.name] = evaluate(
                model, tokenizer, task, edited=edited, limit=limit, reserved=reserved, progress=progress
            )
        if output:
            data = {one.name: one.identity for one in tasks}
            scored = {
                name: {"data": data[name], "scores": {metric: asdict(score) for metric, score in own.items()}}
                for name, own in found.items()
            }
            output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(output) as path:
                path.write_text(json.dumps({"of": wanted, "tasks": scored}, indent=1), encoding="utf-8")
    return {task.name: found[task.name] for task in tasks}
