"""Compacter against the Kronecker products written out."""

from __future__ import annotations

import methods
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from loredit.editors.compacter import PHM
from loredit.engine.patches.rows import Rows


def written_out(layer: PHM, edit: int) -> Tensor:
    """(O, I), the sum over i of A_i kron s_i t_i^T."""
    n, r = layer.a.shape[1], layer.t.shape[1] // layer.a.shape[1]
    total = torch.zeros(layer.bias.shape[1], n * layer.t.shape[2], dtype=layer.a.dtype)
    for i in range(n):
        of_i = slice(i * r, (i + 1) * r)
        total += torch.kron(layer.a[edit, i], layer.s[edit][:, of_i] @ layer.t[edit][of_i])
    return total


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [0, 1, 2], [2, 0, 0, 1, 2]])
@pytest.mark.parametrize(("n", "r", "wide", "high"), [(4, 1, 8, 32), (2, 3, 32, 6), (1, 1, 5, 7)])
def test_a_layer_is_the_sum_of_kronecker_products(n, r, wide, high, rows):
    torch.manual_seed(0)
    shapes = (3, n, n, n), (3, high // n, n * r), (3, n * r, wide // n)
    a, s, t = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    layer = PHM(torch.nn.Parameter(a), s, t)
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(len(rows), 4, wide, dtype=torch.float64)
    y = layer(x, Rows(rows, 3, "cpu"))
    for row, edit in enumerate(rows):
        expected = x[row] @ written_out(layer, edit).T + layer.bias[edit]
        torch.testing.assert_close(y[row], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("placement", "adapters"), [("houlsby", 4), ("pfeiffer", 2), ("parallel", 2)])
@pytest.mark.parametrize(("n", "r"), [(4, 1), (2, 3)])
def test_numbers_are_counted_by_the_formula(placement, adapters, n, r, model, tokenizer, facts):
    editor = methods.editor(
        "compacter", model, tokenizer, placement=placement, reduction_factor=4, phm_dim=n, phm_rank=r, steps=1
    )
    d, m = model.config.hidden_size, 8
    edits = editor.edit_each(facts[:2])
    assert edits.num_trainable_parameters() == n**3 + adapters * (2 * r * (m + d) + m + d)
    each = {id(p): p[0].numel() for branch in edits.patch.branches for p in branch.parameters()}
    assert edits.num_trainable_parameters() == sum(each.values())


def test_one_set_of_a_is_shared_by_all_maps_of_an_edit(model, tokenizer, facts, tmp_path):
    edits = methods.editor("compacter", model, tokenizer, placement="houlsby").edit_each(facts[:2])
    for patch in (edits.patch, edits[1].patch):
        a = {id(layer.a) for branch in patch.branches for layer in (branch.down, branch.up)}
        assert len(a) == 1
    assert not torch.equal(edits.patch.branches[0].down.a[0], edits.patch.branches[0].down.a[1])
    edits.save(tmp_path)
    assert [name for name in load_file(next(tmp_path.glob("edits-*.safetensors"))) if name.endswith(".a")] == [
        "branches.0.down.a"
    ]


def test_a_fresh_edit_changes_nothing(model, tokenizer):
    for branch in methods.editor("compacter", model, tokenizer).fresh([1, 2]).branches:
        assert not any(written_out(branch.up, e).any() for e in (0, 1))
        assert not branch.up.bias.any()
        assert written_out(branch.down, 0).any()


def test_a_map_down_starts_with_the_variance_of_an_adapter(tokenizer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=256, n_layer=1, n_head=2))
    editor = methods.editor("compacter", model, tokenizer, layers="all", reduction_factor=4, phm_rank=2)
    down = editor.fresh(range(50)).branches[0].down
    entries = torch.stack([written_out(down, e) for e in range(50)]).detach()
    # 50 x 16 x 64 entries, of which those of an edit depend on each other.
    assert entries.var().item() == pytest.approx(1 / (3 * 256), rel=0.15)


def test_sizes_that_n_does_not_divide_are_refused(model, tokenizer):
    editor = methods.editor("compacter", model, tokenizer, reduction_factor=5)
    with pytest.raises(
        ValueError, match=r"phm_dim \(4\) must divide the model's width \(32\) and the bottleneck \(6, "
    ):
        editor.fresh([0])
