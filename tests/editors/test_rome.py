"""ROME against its constrained least squares, solved densely."""

from __future__ import annotations

import methods
import numpy as np
import pytest
import torch
from torch import Tensor

from loredit.editors import find
from loredit.engine.model.keys import states_at
from loredit.engine.training.solving import Values, solve


def keys_of(editor, fact) -> tuple[Tensor, Tensor]:
    """(c, I) and (c, O), what the edited site gets and gives in each text."""
    rows = editor.lesson([fact]).answers
    module = editor.model.get_submodule(editor.sites[0].name)
    k, v = states_at(editor.model, [r.ids for r in rows], [r.mark for r in rows], inputs=[module], outputs=[module])
    return k, v


def test_the_key_gets_its_value(model, tokenizer, facts):
    editor = methods.editor("rome", model, tokenizer, contexts=3)
    lessons = [editor.lesson([fact]) for fact in facts[:3]]
    found, _ = Values(editor).learn(lessons, [editor.seed_for([fact]) for fact in facts[:3]])
    edits = editor.edit_each(facts[:3])
    for e, fact in enumerate(facts[:3]):
        k, v = keys_of(editor, fact)
        delta = edits.patch.branches[0].delta(e)
        torch.testing.assert_close(delta @ k.mean(0), found.vector.vector[e], rtol=1e-9, atol=1e-9)
        # W_new k* = v*, in the model that really has the new weights: what the site gives is linear in what it gets.
        merged = edits.merged(e).get_submodule(editor.sites[0].name)
        with torch.no_grad():
            new = merged(k.mean(0)[None])[0]
        torch.testing.assert_close(new, v.mean(0) + found.vector.vector[e], rtol=1e-9, atol=1e-9)


def test_what_the_model_knows_changes_least(model, tokenizer, facts):
    """min tr(D C D^T) with D k* = d, from the dense system of its Lagrangian."""
    editor = methods.editor("rome", model, tokenizer, contexts=2)
    k = keys_of(editor, facts[0])[0].mean(0).numpy()
    c = editor.moments[editor.sites[0].name].numpy()
    system = np.block([[2 * c, k[:, None]], [k[None], np.zeros((1, 1))]])
    delta = editor.edit_each(facts[:1]).patch.branches[0].delta(0).detach().numpy()
    d = delta @ k
    rows = np.linalg.solve(system, np.vstack([np.zeros((len(k), len(d))), d[None]]))[: len(k)]
    np.testing.assert_allclose(delta, rows.T, rtol=1e-6, atol=1e-9)


def test_the_original_mixes_two_keys(model, tokenizer, facts):
    r_rome, original = (
        methods.editor("rome", model, tokenizer, contexts=3, form=form) for form in ("r_rome", "original")
    )
    lesson = original.lesson(facts[:1])
    d = torch.linspace(-1, 1, 32).double()[None]
    deltas = {}
    for editor in (r_rome, original):
        patch = editor.fresh([0])
        solve(editor, patch, [lesson], d)
        deltas[editor.hparams.form] = patch.branches[0].delta(0)
    k, _ = keys_of(original, facts[0])
    u = torch.linalg.solve(original.moments[original.sites[0].name], k.mean(0))
    torch.testing.assert_close(deltas["original"], torch.outer(d[0], u) / (k[0] @ u), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(deltas["r_rome"], torch.outer(d[0], u) / (k.mean(0) @ u), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(deltas["original"] @ k[0], d[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(deltas["original"] @ k.mean(0), d[0], rtol=1e-2)


def test_several_facts_are_one_change_after_another(model, tokenizer, facts):
    editor = methods.editor("rome", model, tokenizer)
    together = editor.edit(facts[:3])
    *_, stream = editor.edit_stream(facts[:3])
    assert together.patch.report(0) == {"ranks": {editor.sites[0].name: 3}}
    for name, delta in together.patch.delta_weights(0).items():
        torch.testing.assert_close(delta, stream.patch.delta_weights(0)[name], rtol=1e-7, atol=1e-9)
    # The second is learned with the first in the weights.
    first = editor.edit(facts[:1])
    merged = type(editor)(first.merged(0), tokenizer, editor.hparams)
    merged.moments = editor.moments  # of the model as it was
    merged.contexts = editor.contexts
    second = merged.edit(facts[1:2])
    both = editor.edit(facts[:2])
    for name, delta in both.patch.delta_weights(0).items():
        own = first.patch.delta_weights(0)[name] + second.patch.delta_weights(0)[name]
        torch.testing.assert_close(delta, own, rtol=1e-6, atol=1e-8)


def test_published_values_are_those_of_the_authors():
    for name, layer, clamp in (("gpt2-xl", 17, 4), ("gptj", 5, 4), ("gpt2-medium", 8, 3)):
        h = find("rome").Hparams
        preset = pytest.importorskip("loredit.editors").settings("rome", name)
        assert isinstance(preset, h)
        assert (preset.layers, preset.steps, preset.lr, preset.clamp) == ([layer], 20, 0.5, clamp)
        assert (preset.weight_decay, preset.kl_weight, preset.kl_prompts) == (0.5, 0.0625, ("{} is a",))
        assert (preset.contexts, preset.form) == (20, "r_rome")
