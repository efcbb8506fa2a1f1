"""Independent edits in batches: their order, their size, and a batch that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import methods
import pytest
import torch

from loredit.data import Fact
from loredit.editors import base
from loredit.engine.devices import Budget
from loredit.engine.training import batches


def test_other_errors_are_not_taken_for_out_of_memory(model, tokenizer, facts, monkeypatch):
    def wrong(*_: Any) -> Callable[..., None]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(methods.editors.base.Editor, "fresh", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        methods.editor("lora", model, tokenizer).edit_each(facts, edits_at_once=2)


def test_edits_that_are_trained_in_groups_of_like_length_are_the_same(model, tokenizer, facts, monkeypatch):
    editor, told = methods.editor("lora", model, tokenizer), []
    together = editor.edit_each(facts)
    monkeypatch.setattr(batches, "_TOKENS", Budget(cpu=60, mps=60, accelerator=60))
    sizes, train = [], base.train

    def noted(editor: Any, patch: Any, lessons: Sequence[Any], progress: Any) -> Any:
        sizes.append(len(lessons))
        return train(editor, patch, lessons, progress)

    monkeypatch.setattr(base, "train", noted)
    grouped = editor.edit_each(facts, progress=lambda *args: told.append(args))
    assert len(sizes) > 2
    assert sum(sizes) == len(facts)
    for a, b in zip(together.patch.parameters(), grouped.patch.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    shares = [share for _, share, edits in told if edits == len(facts)]
    assert shares == sorted(shares)
    assert len(shares) == len(told)
    assert shares[-1] == 1.0


def test_an_edit_too_large_for_memory_alone_is_that_facts_error(model, tokenizer, facts, monkeypatch):
    editor, train = methods.editor("lora", model, tokenizer), base.train
    expected = editor.edit_each(facts)
    longest = max(editor.lesson([fact]).longest for fact in facts)

    def small(editor: Any, patch: Any, lessons: Sequence[Any], progress: Any = None) -> Any:
        if any(part.longest == longest for part in lessons):
            raise MemoryError
        return train(editor, patch, lessons, progress)

    monkeypatch.setattr(base, "train", small)
    edits = editor.edit_each(facts, edits_at_once=4)
    assert [outcome.error is not None for outcome in edits.outcomes] == [
        editor.lesson([fact]).longest == longest for fact in facts
    ]
    for e, outcome in enumerate(edits.outcomes):
        if outcome.error:
            assert "out of memory with this edit alone" in outcome.error
            continue
        for a, b in zip(expected.patch.parameters(), edits.patch.parameters(), strict=True):
            torch.testing.assert_close(a[e], b[e], rtol=1e-9, atol=1e-12)


def test_batches_come_as_they_are_finished_the_longest_first(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, steps=1)
    broken = Fact(case_id="x", prompt="y " * 200, target_new="z")
    batches = list(editor.edit_batches([*facts, broken], edits_at_once=2))
    ids = [[fact.case_id for (fact,) in edits.facts] for edits in batches]
    assert ids == [["x"], ["ada", "sum"], ["france", "water"], ["sky"]]


def test_progress_is_told_up_to_the_end(model, tokenizer, facts):
    told: list[tuple[Any, ...]] = []
    methods.editor("lora", model, tokenizer, steps=4).edit_each(facts[:2], progress=lambda *args: told.append(args))
    assert told == [*(("training", share, 2) for share in (0.25, 0.5, 0.75, 1.0)), ("finished", 1.0, 2)]
    told.clear()
    editor = methods.editor("lora", model, tokenizer, steps=4)
    editor.edit_each(facts[:3], edits_at_once=2, progress=lambda *args: told.append(args))
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
