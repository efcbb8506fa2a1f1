"""Patches that train on whitened inputs compute y + B A S x, and hold S in their own numbers once they are finished.

Planted faults these tests catch: S on the wrong side; S folded in twice when training goes on; S forgotten in a merge.
"""

from __future__ import annotations

import methods
import pytest
import torch

from loredit import editors
from loredit.engine.model.statistics import second_moments, whitening
from loredit.engine.patches.branches import Whitening
from loredit.engine.patches.rows import Rows

WEIGHTS = ("adalora", "finetune", "lora", "roselora", "simplexlora")
OPTIONS = {"whiten": 0.1, "statistics_tokens": 600}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOREDIT_CACHE", str(tmp_path / "cache"))


def bound(method, model, tokenizer, **more):
    return methods.editor(method, model, tokenizer, **OPTIONS | more)


def test_a_patch_in_training_computes_the_formula(model, tokenizer):
    editor = bound("lora", model, tokenizer, sites=["mlp_down"], layers=[1])
    patch = editor.begun([3])
    (site,), (branch,) = patch.sites, patch.branches
    with torch.no_grad():
        branch.b.normal_()
    (c,) = second_moments(model, tokenizer, [site], identity=editor.model_identity, tokens=600)
    eps = 0.1 * c.diagonal().mean()
    values, vectors = torch.linalg.eigh(c + eps * torch.eye(len(c), dtype=c.dtype))
    s = vectors @ torch.diag(values**-0.5) @ vectors.T
    seen = {}
    module = model.get_submodule(site.name)
    handle = module.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    ids = torch.tensor([tokenizer("Water is")["input_ids"]])
    model(input_ids=ids)
    handle.remove()
    with patch.attached(model, Rows([0], 1, "cpu")):
        handle = module.register_forward_hook(lambda _, args, out: seen.update(edited=out))
        model(input_ids=ids)
        handle.remove()
    wanted = seen["y"] + branch.scale * seen["x"] @ s @ branch.a[0].T @ branch.b[0].T
    torch.testing.assert_close(seen["edited"], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", WEIGHTS)
def test_finished_edits_have_it_in_their_own_numbers(method, model, tokenizer, facts, tmp_path):
    editor = bound(method, model, tokenizer)
    edits = editor.edit_each(facts[:2])
    assert edits.patch.whitening is None
    ids = torch.tensor([tokenizer(facts[0].prompt)["input_ids"]])
    with torch.no_grad(), edits.on(0):
        attached = model(input_ids=ids).logits
    torch.testing.assert_close(edits.merged(0)(input_ids=ids).logits, attached, rtol=1e-7, atol=1e-7)
    edits.save(tmp_path / "edits")
    again = editors.load(tmp_path / "edits", model, tokenizer)
    with torch.no_grad(), again.on(0):
        torch.testing.assert_close(model(input_ids=ids).logits, attached, rtol=0, atol=0)
    plain = methods.editor(method, model, tokenizer).edit_each(facts[:2])
    assert not all(
        torch.allclose(t, plain.patch.lasting()[name].to(t.dtype))
        for name, t in edits.patch.lasting().items()
        if name not in ("seeds", "steps") and t.shape == plain.patch.lasting()[name].shape
    ), "training took another way"


@pytest.mark.parametrize("method", WEIGHTS)
def test_training_goes_on_from_the_function_that_it_had(method, model, tokenizer, facts):
    editor = bound(method, model, tokenizer)
    (one,) = editor.edit_stream(facts[:1])
    patch = editor.begun([int(one.patch.seeds[0])], before=one.patch)
    assert patch.whitening is not None
    ids = torch.tensor([tokenizer(facts[0].prompt)["input_ids"]])
    with torch.no_grad(), one.on(0):
        wanted = model(input_ids=ids).logits
    with torch.no_grad(), patch.eval().attached(model, Rows([0], 1, "cpu")):
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-6, atol=1e-6)


def test_together_is_alone_on_whitened_inputs_too(model, tokenizer, facts):
    editor = bound("lora", model, tokenizer)
    together = editor.edit_each(facts[:3])
    for i in range(3):
        alone = editor.edit_each(facts[i : i + 1])
        for name, t in alone.patch.lasting().items():
            torch.testing.assert_close(together[i].patch.lasting()[name], t, rtol=1e-6, atol=1e-8)


def test_folding_and_unfolding_are_inverse():
    c = torch.randn(8, 40, dtype=torch.float64)
    turn = Whitening([whitening(c @ c.T / 40, 0.05)])
    rows = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(turn.unfold(0, turn.fold(0, rows)), rows)
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(turn(0, x) @ rows[0].T, x @ turn.fold(0, rows)[0].T)
