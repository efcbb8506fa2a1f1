"""Passes of the frozen model: what is replayed, what is left out, and that both change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import slow
import tiny
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from loredit.engine.model.encoding import Batch, Encoded, padded
from loredit.engine.model.generation import continuations
from loredit.engine.model.passes import input_of, logits_at, logits_from, outputs_at, recorded, replayed
from loredit.engine.model.sites import roles, sites

TEXTS = ("The capital of France", "Water is", "One, two, three, and on to the next")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replaying_lower_blocks_is_a_full_pass(family, tokenizer):
    model = tiny.model(family)
    ids, _ = padded([tokenizer(text)["input_ids"] for text in TEXTS], "cpu")
    at = (torch.tensor([0, 1, 2, 2]), torch.tensor([3, 7, 0, 30]))
    # In float64 sums of fewer rows are the same to the last bit.
    near = {"rtol": 0, "atol": 0} if model.dtype == torch.float64 else tiny.close(family)
    with torch.no_grad():
        full = model(ids).logits[at]
        torch.testing.assert_close(logits_at(model, ids, at), full, **near)
        for layer in range(3):
            with recorded(model, layer) as seen:
                logits_at(model, ids, at)
            hidden = input_of(model, layer, ids)
            assert torch.equal(seen[0], hidden)
            with replayed(model, layer, hidden):
                torch.testing.assert_close(logits_at(model, ids, at), full, **near)
            with replayed(model, layer, hidden + 0.1 * tiny.randn(*hidden.shape).to(hidden)):
                assert not torch.allclose(logits_at(model, ids, at), full)
        torch.testing.assert_close(logits_at(model, ids, at), full, **near)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_last_blocks_maps_are_computed_only_where_logits_are_asked_for(family):
    model, ids = tiny.model(family), torch.arange(60).view(3, 20)
    needed = [role for role in roles(model) if role not in ("key", "value", "qkv")]
    maps = sum(site.inputs * site.outputs for site in sites(model, needed, [2]))
    at = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 9, 0, 1, 19])

    def operations(n: int) -> int:
        with FlopCounterMode(display=False) as count, torch.no_grad():
            logits_at(model, ids, (at[0][:n], at[1][:n]))
        return count.get_total_flops()

    head = model.get_output_embeddings().weight.numel()
    assert operations(5) - operations(2) == 2 * 3 * (maps + head)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_from_what_the_output_layer_gets_are_those_of_a_full_pass(family):
    model, ids = tiny.model(family), torch.arange(60).view(3, 20)
    at = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 9, 0, 1, 19])
    with torch.no_grad():
        full = model(ids).logits[at]
    torch.testing.assert_close(logits_from(model, outputs_at(model, ids, at)), full, **tiny.close(family))
    assert not any("forward" in vars(module) for module in model.modules())


def test_replayed_blocks_are_not_run(model, tokenizer):
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    hidden, ran = input_of(model, 2, ids), []
    handles = [m.register_forward_hook(lambda m, *_: ran.append(m)) for block in blocks for m in block.children()]
    with replayed(model, 2, hidden):
        logits_at(model, ids, (torch.tensor([0]), torch.tensor([1])))
    for handle in handles:
        handle.remove()
    assert {*ran} == {*blocks[2].children()}


def predictions(model: PreTrainedModel, rows: Sequence[Sequence[int]], *, left: bool) -> list[Tensor]:
    """What the engine has predicted after each row, in one padded batch."""
    if left:
        seen: list[Tensor] = []

        def choose(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
            seen.append(logits)
            return logits.argmax(-1)

        continuations(model, rows, tokens=1, choose=choose)
        return [*seen[0]]
    with torch.no_grad():
        batch = Batch.of([Encoded((*ids, 0), len(ids)) for ids in rows], "cpu")
        return [*logits_at(model, batch.ids, batch.at)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_on_either_side_predicts_as_a_row_alone(family):
    # Among the tokens are the filler's id and the end of text, which a tokenizer may use as its pad token.
    rows, model = [[5, 0, 7, 0], [tiny.END, 3], [*range(20, 60)], [0], [9, 8, tiny.END, tiny.END]], tiny.model(family)
    expected = [slow.logits(model, row)[-1] for row in rows]
    for left in (False, True):
        for actual, alone in zip(predictions(model, rows, left=left), expected, strict=True):
            torch.testing.assert_close(actual, alone, **tiny.close(family))
