"""Adapters against their formula, written into a copy of the model by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor, nn

from loredit.editors.adapter import AdapterHparams
from loredit.engine.model.sites import SiteError, blocks
from loredit.engine.patches.rows import Rows

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: z.clamp(min=0),
    "swish": lambda z: z / (1 + (-z).exp()),
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "tanh": lambda z: 2 / (1 + (-2 * z).exp()) - 1,
}


class Wrapped(nn.Module):
    """A sublayer with one edit's adapter behind it, one token at a time."""

    def __init__(self, sublayer: nn.Module, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.sublayer, self.add = sublayer, add

    def forward(self, *args, **kwargs):
        x, out = args[0] if args else kwargs["hidden_states"], self.sublayer(*args, **kwargs)
        y, *rest = out if isinstance(out, tuple) else (out,)
        tokens = [self.add(a, b) for a, b in zip(x.flatten(0, -2), y.flatten(0, -2), strict=True)]
        y = torch.stack(tokens).view_as(y)
        return (y, *rest) if isinstance(out, tuple) else y


def by_hand(model, branches, edit, h):
    """A copy of the model with the adapters of one edit, which are in the order of blocks and sublayers."""
    model, left, f = copy.deepcopy(model), iter(branches), FUNCTIONS[h.non_linearity]

    def adder(branch):
        (w1, b1), (w2, b2) = ((p.weight[edit], p.bias[edit]) for p in (branch.down, branch.up))
        return lambda x, y: y + h.scaling * (w2 @ f(w1 @ (x if h.placement == "parallel" else y) + b1) + b2)

    for block in list(blocks(model))[1:]:
        if h.placement == "houlsby":
            name = "attn" if hasattr(block, "attn") else "self_attn"
            setattr(block, name, Wrapped(getattr(block, name), adder(next(left))))
        block.mlp = Wrapped(block.mlp, adder(next(left)))
    assert next(left, None) is None
    return model


def filled(patch):
    """The patch with no number at its start value."""
    torch.manual_seed(1)
    return patch.rebuilt(
        {name: torch.randn_like(t) / 4 if t.is_floating_point() else t for name, t in patch.tensors().items()}
    )


@pytest.mark.parametrize("non_linearity", FUNCTIONS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_each_row_is_computed_by_the_formula(placement, non_linearity, model, tokenizer):
    editor = methods.editor("adapter", model, tokenizer, placement=placement, non_linearity=non_linearity, scaling=1.5)
    patch = filled(editor.fresh([1, 2, 3]))
    texts = [tokenizer(text)["input_ids"] for text in ("Water is", "Paris is", "Ada says")]
    with patch.attached(model, Rows([2, -1, 0], 3, "cpu")), torch.no_grad():
        logits = model(torch.tensor(texts)).logits
    for row, edit, ids in zip(logits, [2, -1, 0], texts, strict=True):
        theirs = model if edit < 0 else by_hand(model, patch.branches, edit, editor.hparams)
        torch.testing.assert_close(row, slow.logits(theirs, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_a_fresh_edit_changes_nothing_and_a_filled_one_does(placement, family, tokenizer):
    if (placement, family) == ("parallel", "opt"):
        pytest.skip("refused; tested below")
    model, ids = tiny.model(family), tokenizer("The capital of France")["input_ids"]
    patch = methods.editor("adapter", model, tokenizer, placement=placement).fresh([1, 2])
    before = slow.logits(model, ids)
    with patch.attached(model, Rows([1], 2, "cpu")):
        assert torch.equal(slow.logits(model, ids), before)
    with filled(patch).attached(model, Rows([1], 2, "cpu")):
        assert not torch.allclose(slow.logits(model, ids), before, atol=1e-2)


def test_parallel_needs_an_mlp_of_its_own(tokenizer):
    with pytest.raises(SiteError, match="no modules of their own, as placement 'parallel' needs; take 'pfeiffer'"):
        methods.editor("adapter", tiny.model("opt"), tokenizer, placement="parallel").fresh([1])


@pytest.mark.parametrize(("placement", "each"), [("houlsby", 2), ("pfeiffer", 1), ("parallel", 1)])
@pytest.mark.parametrize(("factor", "m"), [(16, 2), (5, 6), (0.5, 64), (100, 1)])
def test_an_adapter_has_2md_d_m_numbers(placement, each, factor, m, model, tokenizer, facts):
    editor = methods.editor("adapter", model, tokenizer, placement=placement, reduction_factor=factor, steps=1)
    d = model.config.hidden_size
    edits = editor.edit_each(facts[:1])
    assert edits.num_trainable_parameters() == 2 * each * (2 * m * d + d + m)
    assert sum(p[0].numel() for p in edits.patch.branches[0].parameters()) == 2 * m * d + d + m


def test_maps_down_differ_by_edit_and_place_and_not_by_company(model, tokenizer):
    editor = methods.editor("adapter", model, tokenizer)
    both, alone = editor.fresh([1, 2]), editor.fresh([2])
    downs = [branch.down.weight[e] for branch in both.branches for e in (0, 1)]
    assert len({tuple(w.flatten().tolist()) for w in downs}) == len(downs)
    for ours, own in zip(both.branches, alone.branches, strict=True):
        assert torch.equal(ours.down.weight[1], own.down.weight[0])
        assert ours.down.weight.abs().max() <= 32**-0.5


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("houlsby", (16, "swish", 1.0)), ("pfeiffer", (16, "relu", 1.0)), ("parallel", (2, "relu", 4.0))],
)
def test_a_placement_brings_its_defaults(placement, expected):
    def seen(**changes):
        h = AdapterHparams(model="tiny", steps=1, lr=1e-3, placement=placement, **changes)
        return h.reduction_factor, h.non_linearity, h.scaling

    assert seen() == expected
    assert seen(scaling=2.0, non_linearity="tanh") == (expected[0], "tanh", 2.0)
