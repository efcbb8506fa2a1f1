"""Rows of a batch and the edits that they belong to."""

from __future__ import annotations

import pytest
import tiny
import torch

from loredit.engine.patches import rows as rows_of
from loredit.engine.patches.rows import Rows


@pytest.mark.parametrize("limit", [rows_of._COPY_LIMIT, 0])  # parameters gathered once per row, rows edit by edit
@pytest.mark.parametrize("edits", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0, 0], [1, -1, 2, 1, 0], [-1], [1]])
def test_every_row_is_multiplied_by_its_own_edits_matrix(edits, limit, monkeypatch):
    monkeypatch.setattr(rows_of, "_COPY_LIMIT", limit)
    weight, x = tiny.randn(3, 5, 4), tiny.randn(len(edits), 7, 4, seed=1)
    rows = Rows(edits, 3, "cpu")
    y, copies = rows.linear(x, weight), rows.per_row(weight.clone())
    for r, e in enumerate(edits):
        if e >= 0:
            torch.testing.assert_close(y[r], x[r] @ weight[e].T)
            assert torch.equal(copies[r], weight[e])
    assert y.shape == (len(edits), 7, 5)
    assert rows.edited.flatten().tolist() == [e >= 0 for e in edits]
    assert rows.any_unedited == (-1 in edits)


def test_gradients_of_rows_reach_their_own_edit_alone():
    weight, x = tiny.randn(3, 5, 4).requires_grad_(), tiny.randn(4, 7, 4, seed=1)
    Rows([2, 0, 2, -1], 3, "cpu").linear(x, weight)[[0, 2]].sum().backward()
    assert [g.any().item() for g in weight.grad] == [False, False, True]


def test_rows_count_within_their_edit():
    assert Rows([1, 0, 1, -1, 1, 0], 2, "cpu").within.tolist() == [0, 0, 1, 0, 2, 1]


def test_rows_are_computed_in_the_dtype_of_the_model():
    x, weight = tiny.randn(2, 3, 4).bfloat16(), tiny.randn(2, 5, 4).float()
    assert Rows([0, 1], 2, "cpu").linear(x, weight).dtype is torch.bfloat16
