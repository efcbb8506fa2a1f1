"""Fine-tuning against a plain loop over the weights themselves."""

from __future__ import annotations

import copy

import methods
import pytest
import slow
import tiny
import torch

from loredit.engine.model.sites import sites, transposed

BOUND = 0.01


def weights_of(model, layers):
    modules = [model.get_submodule(site.name) for site in sites(model, ["mlp_down"], layers)]
    return [module.weight for module in modules], [transposed(module) for module in modules]


@pytest.mark.parametrize("bound", [None, BOUND])
def test_an_edit_is_what_a_plain_loop_over_the_weights_trains(bound, model, tokenizer, facts):
    theirs = copy.deepcopy(model)
    weights, turned = weights_of(theirs, [1, 2])
    before = [weight.detach().clone() for weight in weights]

    def bring_back():
        for weight, original in zip(weights, before, strict=True):
            if bound:
                weight.clamp_(original - bound, original + bound)

    losses = slow.train(theirs, tokenizer, weights, facts[:2], lr=5e-3, steps=10, after_step=bring_back)
    edit = methods.editor("finetune", model, tokenizer, lr=5e-3, steps=10, norm_constraint=bound).edit(facts[:2])
    assert edit.outcomes[0].loss == pytest.approx(losses[-1], rel=1e-9)
    for delta, weight, original, turn in zip(
        edit.patch.delta_weights(0).values(), weights, before, turned, strict=True
    ):
        change = weight.detach() - original
        torch.testing.assert_close(delta, change.T if turn else change, rtol=1e-7, atol=1e-9)


def test_the_constraint_binds_each_weight(model, tokenizer, facts):
    loose, tight = (
        methods.editor("finetune", model, tokenizer, norm_constraint=bound).edit_each(facts[:2])
        for bound in (None, BOUND)
    )
    for name, delta in tight.patch.delta_weights(1).items():
        assert delta.abs().max() == BOUND
        assert loose.patch.delta_weights(1)[name].abs().max() > BOUND


def test_in_sequential_editing_the_bound_is_around_the_unedited_weights(model, tokenizer, facts):
    *_, last = methods.editor("finetune", model, tokenizer, norm_constraint=BOUND).edit_stream(facts[:3])
    assert max(delta.abs().max() for delta in last.patch.delta_weights(0).values()) == BOUND


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_weight_of_the_chosen_maps_is_trained(family, tokenizer, facts):
    edits = methods.editor("finetune", tiny.model(family), tokenizer, layers=[1], steps=1).edit_each(facts[:1])
    assert edits.num_trainable_parameters() == 32 * {"gpt2": 4 * 32, "llama": 48}[family]
    assert edits.nonzero_share(0) == 1


def test_a_fresh_edit_is_zero(model, tokenizer):
    patch = methods.editor("finetune", model, tokenizer).fresh([0, 1])
    assert not any(p.any() for p in patch.parameters())
