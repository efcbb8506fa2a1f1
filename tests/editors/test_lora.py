"""LoRA against PEFT's in a plain loop, and against its own formula."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit.data import Fact
from loredit.editors.lora import LowRank
from loredit.engine.patches.branches import WeightSitePatch
from loredit.engine.patches.rows import Rows
from loredit.engine.training.loop import Work

# PEFT asks the model for this property, which transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def peft_training(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    start: WeightSitePatch[LowRank],
    facts: Sequence[Fact],
    h: Any,
) -> tuple[list[float], dict[str, tuple[Tensor, Tensor]]]:
    """The losses, and A and B by site, of PEFT's LoRA trained from ``start``, one fact of the mean at a time."""
    names = [site.name for site, _ in start.items()]
    config = LoraConfig(
        r=h.rank, lora_alpha=h.alpha, target_modules=names, fan_in_fan_out=model.config.model_type == "gpt2"
    )
    theirs = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False)
    layers = {name: theirs.base_model.model.get_submodule(name) for name in names}
    with torch.no_grad():
        for site, branch in start.items():
            layers[site.name].lora_A["default"].weight.copy_(branch.a[0])
            assert not layers[site.name].lora_B["default"].weight.any()
    trained = [p for p in theirs.parameters() if p.requires_grad]
    losses = slow.train(theirs, tokenizer, trained, facts, lr=h.lr, steps=h.steps)
    return losses, {n: (x.lora_A["default"].weight, x.lora_B["default"].weight) for n, x in layers.items()}


@pytest.mark.parametrize("carried", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_is_what_peft_trains_in_a_plain_loop(family, dtype, carried, tokenizer, facts, monkeypatch):
    model, ours, losses = tiny.model(family, dtype), [], Work.losses_leaving

    def noted(work: Work, leave_at: float | None) -> tuple[Tensor, ...]:
        seen = losses(work, leave_at)
        ours.append(seen[0].item())
        return seen

    monkeypatch.setattr(Work, "losses_leaving", noted)
    editor = methods.editor("lora", model, tokenizer, steps=10, lr=5e-3, layers="all")
    facts = facts[:carried]
    start = editor.fresh([editor.seed_for(facts)])
    edit = editor.edit(facts)
    theirs, factors = peft_training(model, tokenizer, start, facts, editor.hparams)
    assert ours == pytest.approx(theirs, rel=0, abs=1e-5 if dtype is torch.float32 else 1e-10)
    if dtype is torch.float64:
        for site, branch in edit.patch.items():
            torch.testing.assert_close((branch.a[0], branch.b[0]), factors[site.name], rtol=1e-8, atol=1e-10)


def test_a_fresh_edit_changes_nothing(model, tokenizer, facts):
    patch = methods.editor("lora", model, tokenizer).fresh([1, 2])
    ids = tokenizer(facts[0].prompt)["input_ids"]
    before = slow.logits(model, ids)
    with patch.attached(model, Rows([1], 2, "cpu")):
        assert torch.equal(slow.logits(model, ids), before)
    for site, branch in patch.items():
        assert branch.a.abs().max() <= site.inputs**-0.5
        assert branch.a.std().item() == pytest.approx((site.inputs * 3) ** -0.5, rel=0.2)  # of a uniform distribution


def test_trained_numbers_are_r_times_inputs_and_outputs(tokenizer, facts):
    counts = {"gpt2": 2 * 4 * ((32 + 96) + (128 + 32)), "llama": 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (48 + 32))}
    for family, count in counts.items():
        edits = methods.editor("lora", tiny.model(family), tokenizer, steps=1).edit_each(facts[:1])
        assert edits.num_trainable_parameters() == count


def test_the_change_of_a_weight_is_alpha_over_r_times_b_a(model, tokenizer, facts):
    edits = methods.editor("lora", model, tokenizer, alpha=6, rank=3).edit_each(facts[:2])
    deltas = edits.patch.delta_weights(1)
    assert deltas.keys() == {f"{site.name}.weight" for site, _ in edits.patch.items()}
    for site, branch in edits.patch.items():
        torch.testing.assert_close(deltas[f"{site.name}.weight"], 2 * branch.b[1] @ branch.a[1])


def test_dropout_is_of_the_branch_and_of_training_alone():
    eye, x, y = torch.eye(64)[None].repeat(2, 1, 1), torch.randn(4, 50, 64), torch.randn(4, 50, 64)
    branches = [LowRank(eye, eye, 2.0, 0.25, place) for place in (0, 1)]
    rows = Rows([0, 0, 1, 1], 2, "cpu")
    torch.testing.assert_close(branches[0](x, y, rows), y + 2 * x)

    rows.keys = torch.tensor([5, 6, 7, 8], dtype=torch.int32)
    kept = [(branch(x, y, rows) - y) / (2 * x) for branch in branches]
    for mask in kept:
        zero, scaled = mask.abs() < 1e-3, (mask - 1 / 0.75).abs() < 1e-3
        assert (zero | scaled).all()
        assert zero.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.allclose(kept[0], kept[1], atol=0.1)  # another site, another mask
    assert not torch.allclose(kept[0][0], kept[0][1], atol=0.1)  # another row


def test_dropout_masks_change_with_step_seed_and_row(model, tokenizer):
    patch = methods.editor("lora", model, tokenizer).fresh([1, 2])
    rows = Rows([0, 0, 1, -1], 2, "cpu")
    first = patch._keys(rows)
    patch.steps += 1
    keys = torch.cat([first, patch._keys(rows)])[[0, 1, 2, 4, 5, 6]]
    assert len({*keys.tolist()}) == 6


def test_an_edit_trained_with_dropout_is_used_without(model, tokenizer, facts):
    edits = methods.editor("lora", model, tokenizer, dropout=0.5).edit_each(facts[:1])
    ids = tokenizer(facts[0].prompt)["input_ids"]
    merged = slow.logits(edits.merged(0), ids)
    with edits.on([0]):
        torch.testing.assert_close(slow.logits(model, ids), merged, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["lora", "roselora", "simplexlora", "adalora"])
def test_a_scale_beyond_the_models_numbers_is_told(method, tokenizer, facts):
    editor = methods.editor(method, tiny.model("llama", torch.float16), tokenizer, alpha=1e6)
    with pytest.raises(ValueError, match="a float16 model's numbers end at 65504; choose a smaller alpha"):
        editor.edit_each(facts[:1])
