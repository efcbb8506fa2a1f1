"""BitFit against a plain loop over the biases themselves."""

from __future__ import annotations

import copy

import methods
import pytest
import slow
import tiny
import torch
from torch import nn

from loredit.engine.model.sites import sites
from loredit.engine.storage.manifest import EditsError

ALL = ["qkv", "attention_output", "mlp_up", "mlp_down"]


def test_an_edit_is_what_a_plain_loop_over_the_biases_trains(tokenizer, facts):
    model = tiny.model("gpt2")
    editor = methods.editor("bitfit", model, tokenizer, steps=10)
    edit, theirs = editor.edit(facts[:2]), copy.deepcopy(model)
    biases = {name: theirs.get_parameter(name) for name in edit.patch.delta_weights(0)}
    losses = slow.train(theirs, tokenizer, biases.values(), facts[:2], lr=editor.hparams.lr, steps=10)
    assert edit.outcomes[0].loss == pytest.approx(losses[-1], rel=1e-9)
    for name, delta in edit.patch.delta_weights(0).items():
        torch.testing.assert_close(delta, biases[name].detach() - model.get_parameter(name), rtol=1e-7, atol=1e-9)


def test_a_model_without_biases_gets_them(tokenizer, facts):
    model = tiny.model("llama")
    editor = methods.editor("bitfit", model, tokenizer, steps=10, norms=False)
    edit, theirs = editor.edit(facts[:2]), copy.deepcopy(model)
    maps = [theirs.get_submodule(site.name) for site in sites(theirs, editor.hparams.sites, editor.hparams.layers)]
    for linear in maps:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=model.dtype))
    slow.train(theirs, tokenizer, [linear.bias for linear in maps], facts[:2], lr=editor.hparams.lr, steps=10)
    for (_, branch), linear in zip(edit.patch.items(), maps, strict=True):
        torch.testing.assert_close(branch.delta[0], linear.bias.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_the_biases_are_all_of_the_chosen_blocks(family, tokenizer):
    model = tiny.model(family)
    patch = methods.editor("bitfit", model, tokenizer, sites=ALL, layers=[1]).fresh([0])
    names = {name for name, _ in model.named_parameters() if ".1." in name and name.endswith(".bias")}
    assert patch.delta_weights(0).keys() == names
    assert sum(p.numel() for p in patch.parameters()) == sum(model.get_parameter(name).numel() for name in names)
    assert patch.first_layer == 1


def test_norms_are_left_alone_on_request(tokenizer):
    patch = methods.editor("bitfit", tiny.model("gpt2"), tokenizer, sites=["mlp_up"], layers=[1], norms=False).fresh(
        [0]
    )
    assert [*patch.delta_weights(0)] == ["transformer.h.1.mlp.c_fc.bias"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_fresh_edit_changes_nothing_and_a_trained_one_does(family, tokenizer, facts):
    model, ids = tiny.model(family), tokenizer(facts[0].prompt)["input_ids"]
    editor = methods.editor("bitfit", model, tokenizer, sites=ALL, steps=1)
    assert not any(p.any() for p in editor.fresh([0]).parameters())
    edits = editor.edit_each(facts[:1])
    with edits.on([0]):
        edited = slow.logits(model, ids)
    assert not torch.allclose(edited, slow.logits(model, ids), atol=1e-3)


@pytest.mark.parametrize("sites", [["qkv"], ["qkv", "mlp_down"]])
def test_only_biases_that_the_model_has_can_be_merged_into(sites, tokenizer, facts):
    model = tiny.model("qwen2")  # biases in its query, key and value maps only
    edits = methods.editor("bitfit", model, tokenizer, sites=sites, norms=False, steps=2).edit_each(facts[:1])
    if sites != ["qkv"]:
        with pytest.raises(EditsError, match="bitfit is no change of weights and cannot be merged"):
            edits.merged(0)
        return
    ids = tokenizer(facts[0].prompt)["input_ids"]
    with edits.on([0]):
        attached = slow.logits(model, ids)
    torch.testing.assert_close(slow.logits(edits.merged(0), ids), attached, rtol=1e-9, atol=1e-10)
