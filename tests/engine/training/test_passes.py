"""Rows run in passes of like length, as if they were run in one."""

from __future__ import annotations

import methods
import pytest
import torch

from loredit.engine.devices import Budget
from loredit.engine.model.encoding import Batch, Encoded, Passes
from loredit.engine.training import loop
from loredit.engine.training.loop import Work

ROWS = [
    Encoded((1, 2, 3, 4, 5, 6, 7, 8, 9), 7),
    Encoded((1, 2), 1),
    Encoded((1, 2, 3), 1),
    Encoded((1, 2, 3, 4, 5, 6, 7, 8), 4),
]


@pytest.mark.parametrize("most", [None, 1, 6, 18, 1000])
def test_predictions_come_in_the_order_of_the_rows(most):
    passes = Passes.of(ROWS, "cpu", most)
    assert sorted(r for some in passes.rows for r in some) == [0, 1, 2, 3]
    assert passes(lambda rows, batch: batch.labels).tolist() == Batch.of(ROWS, "cpu").labels.tolist()
    of_row = torch.arange(4)
    assert passes(lambda rows, batch: of_row[rows][batch.at[0]]).tolist() == Batch.of(ROWS, "cpu").at[0].tolist()


def test_a_pass_has_rows_of_like_length():
    assert Passes.of(ROWS, "cpu", 18).rows == [[1, 2], [3, 0]]
    assert Passes.of(ROWS, "cpu", None).rows == [[0, 1, 2, 3]]


def test_a_pass_has_as_many_rows_of_each_edit():
    """The shortest two of each, then the longest."""
    rows = [ROWS[0], ROWS[1], ROWS[2], ROWS[2], ROWS[3], ROWS[1]]
    assert Passes.of(rows, "cpu", 24, edits=2).rows == [[1, 2, 5, 3], [0, 4]]
    passes = Passes.of(rows, "cpu", 24, edits=2)
    assert passes(lambda rows, batch: batch.labels).tolist() == Batch.of(rows, "cpu").labels.tolist()


@pytest.mark.parametrize("method", methods.TRAINED)
@pytest.mark.parametrize("together", [True, False])
def test_losses_and_gradients_are_those_of_one_pass(method, together, model, tokenizer, facts, monkeypatch):
    fields = type(methods.hparams(method)).model_fields
    more = {name: value for name, value in {"dropout": 0.3, "acts_from": "subject"}.items() if name in fields}
    editor = methods.editor(
        method, model, tokenizer, kl_weight=1.0, kl_prompts=["{} is a"], kl_positions="all", contexts=2, **more
    )
    lessons = [editor.lesson(facts[:3])] if together else [editor.lesson([fact]) for fact in facts[:3]]

    def seen(most):
        monkeypatch.setattr(loop, "_TOKENS", Budget(cpu=most, mps=most, accelerator=most))
        work = Work(editor, editor.begun([*range(len(lessons))]), lessons)
        loss, sure = work.losses()
        loss.sum().backward()
        assert len(work._passes.rows) > 2 if most < 100 else len(work._passes.rows) == 1
        return [loss, sure, *(p.grad for p in work.patch.parameters() if p.grad is not None)]

    for one, several in zip(seen(10_000), seen(48), strict=True):
        torch.testing.assert_close(several, one, rtol=1e-9, atol=1e-9)
