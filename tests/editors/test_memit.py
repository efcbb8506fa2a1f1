"""MEMIT's and EMMET's solves against dense least squares; updates in sequence against one for all facts."""

from __future__ import annotations

import methods
import numpy as np
import pytest
import torch
from torch import Tensor

from loredit.editors import settings
from loredit.editors.memit import ridge
from loredit.engine.model.statistics import inverse_root
from loredit.engine.training.solving import solve

O, I = 5, 9  # noqa: E741


def problem(n: int, earlier: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K (2, n, I), R (2, n, O), K_e (2, earlier, I) of two edits, and C (I, I)."""
    torch.manual_seed(seed)
    x = torch.randn(40, I).double() * torch.linspace(0.1, 3, I).double()
    draw = [torch.randn(2, m, width).double() for m, width in ((n, I), (n, O), (earlier, I))]
    return (*draw, x.T @ x / 40)


@pytest.mark.parametrize(("n", "earlier"), [(1, 0), (4, 0), (4, 3), (12, 0), (3, 11), (12, 20)])
def test_a_solve_is_dense_least_squares(n, earlier):
    """The rows of numpy's system: each fact, each earlier key, and sqrt(w) C^(1/2) for what the model knows."""
    keys, missing, known, c = problem(n, earlier)
    found = ridge(keys, missing, inverse_root(c), 0.7, known)
    for e in range(2):
        rows = np.vstack([keys[e], known[e], np.sqrt(0.7) * np.linalg.cholesky(c).T])
        targets = np.vstack([missing[e], np.zeros((earlier + I, O))])
        delta = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        np.testing.assert_allclose(found.b[e] @ found.a[e], delta, rtol=1e-8, atol=1e-10)
    assert found.a.shape == (2, n, I)
    assert found.b.shape == (2, O, n)


def test_without_a_weight_each_fact_gets_its_value_exactly():
    keys, missing, known, c = problem(4, 0)
    found = ridge(keys, missing, inverse_root(c), 0.0, known)
    for e in range(2):
        delta = found.b[e] @ found.a[e]
        torch.testing.assert_close(delta @ keys[e].T, missing[e].T, rtol=1e-8, atol=1e-9)
        # min tr(D C D^T) under these constraints, from the dense system of its Lagrangian
        k = keys[e].numpy()
        system = np.block([[2 * c.numpy(), k.T], [k, np.zeros((4, 4))]])
        rows = np.linalg.solve(system, np.vstack([np.zeros((I, O)), missing[e]]))[:I]
        np.testing.assert_allclose(delta, rows.T, rtol=1e-7, atol=1e-9)


def test_updates_in_sequence_sum_to_the_one_for_all_facts():
    keys, values, _, c = problem(11, 0)
    root, weight = inverse_root(c), 0.3
    together = ridge(keys, values, root, weight, keys[:, :0])
    total, known = torch.zeros(2, O, I).double(), keys[:, :0]
    for begin, end in ((0, 1), (1, 5), (5, 11)):
        now, wanted = keys[:, begin:end], values[:, begin:end]
        found = ridge(now, wanted - now @ total.mT, root, weight, known)
        total, known = total + found.b @ found.a, torch.cat([known, now], 1)
    torch.testing.assert_close(total, together.b @ together.a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("keys", "contexts"), [("mean", 0), ("each", 2)])
@pytest.mark.parametrize("weight", [1e-3, 10.0])
def test_sequential_editing_is_batch_editing_with_the_same_values(weight, keys, contexts, model, tokenizer, facts):
    """On one block, whose keys no edit changes."""
    settings = {"layers": [1], "mom2_update_weight": weight, "keys": keys, "contexts": contexts}
    editor = methods.editor("memit", model, tokenizer, **settings)
    lessons = [editor.lesson([fact]) for fact in facts[:4]]
    torch.manual_seed(0)
    d = torch.randn(4, 32).double()
    together = editor.fresh([0])
    solve(editor, together, lessons, d)

    apart = editor.fresh([0])
    change = editor.change
    for i, lesson in enumerate(lessons):
        # A value is the same though the edits before have moved what is given now: d is counted from there.
        delta = apart.branches[0].delta(0)
        editor.change = lambda site, k, missing, earlier, delta=delta: change(site, k, missing - k @ delta.T, earlier)
        solve(editor, apart, [lesson], d[i : i + 1])
    torch.testing.assert_close(apart.branches[0].delta(0), together.branches[0].delta(0), rtol=1e-9, atol=1e-9)
    assert together.branches[0].delta(0).norm() > 1e-3


def test_what_was_edited_before_stays(model, tokenizer, facts):
    """With its key kept, the first fact's output moves less under the second edit than without."""
    editor = methods.editor("memit", model, tokenizer, layers=[1], mom2_update_weight=1e-6, contexts=0)
    first = editor.edit(facts[:1])
    second = editor.edit(facts[1:2], after=first)
    (key,) = first.patch.branches[0].keys[0]
    moved = (second.patch.branches[0].delta(0) - first.patch.branches[0].delta(0)) @ key
    alone = editor.edit_each(facts[1:2]).patch.branches[0].delta(0) @ key
    assert moved.norm() < 1e-2 * alone.norm()


def test_each_key_of_a_fact_counts(model, tokenizer, facts):
    mean, each = (methods.editor("memit", model, tokenizer, keys=keys, contexts=2) for keys in ("mean", "each"))
    assert mean.edit(facts[:2]).patch.report(0)["ranks"] == {site.name: 2 for site in mean.sites}
    assert each.edit(facts[:2]).patch.report(0)["ranks"] == {site.name: 6 for site in each.sites}


def test_emmet_is_memit_with_its_damping_as_the_weight(model, tokenizer, facts):
    emmet = methods.editor("emmet", model, tokenizer, damping=0.2).edit(facts[:3])
    memit = methods.editor("memit", model, tokenizer, mom2_update_weight=0.2).edit(facts[:3])
    for name, delta in emmet.patch.delta_weights(0).items():
        torch.testing.assert_close(delta, memit.patch.delta_weights(0)[name], rtol=1e-9, atol=1e-12)
    assert not emmet.patch.branches[0].keys.numel(), "as published, earlier facts are not kept"


def test_published_values_are_those_of_the_authors():
    for name, layers, steps, weight in (
        ("gpt2-xl", [13, 14, 15, 16, 17], 20, 20_000),
        ("gptj", [3, 4, 5, 6, 7, 8], 25, 15_000),
    ):
        for method in ("memit", "emmet", "alphaedit"):
            h = settings(method, name)
            assert (h.layers, h.steps, h.lr, h.clamp) == (layers, steps, 0.5, 0.75)
            assert (h.weight_decay, h.kl_weight, h.kl_prompts) == (0.5, 0.0625, ("{} is a",))
        assert settings("memit", name).mom2_update_weight == weight
        assert settings("emmet", name).damping == 0.1
        assert settings("alphaedit", name).ridge == 10
