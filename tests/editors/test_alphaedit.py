"""AlphaEdit against the paper's formula, solved densely."""

from __future__ import annotations

import methods
import numpy as np
import pytest
import torch

from loredit import editors
from loredit.editors.alphaedit import null_space
from loredit.editors.memit import ridge


def moments(width: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(50, width).double() * torch.logspace(-3, 0, width).double()
    mixed = x @ torch.linalg.qr(torch.randn(width, width).double()).Q
    return mixed.T @ mixed / 50


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.2])
def test_the_free_directions_hold_their_share_of_the_energy_at_most(share):
    c = moments()
    u, largest = null_space(c, share)
    p = u @ u.T
    torch.testing.assert_close(p @ p, p, rtol=1e-10, atol=1e-12)
    values = torch.linalg.eigvalsh(c)
    m = u.shape[1]
    assert 0 < m < 8
    assert torch.trace(p @ c) <= share * torch.trace(c) < values[: m + 1].sum()
    assert largest == pytest.approx(values[m - 1].item(), rel=1e-6)


def test_a_space_may_be_empty():
    u, largest = null_space(moments(), 1e-12)
    assert (u.shape, largest) == ((8, 0), 0.0)


@pytest.mark.parametrize(("n", "earlier"), [(1, 0), (3, 2), (9, 4)])
def test_a_solve_is_the_papers_formula(n, earlier):
    torch.manual_seed(1)
    k, r, k_e = torch.randn(1, n, 8).double(), torch.randn(1, n, 5).double(), torch.randn(1, earlier, 8).double()
    u, _ = null_space(moments(), 1e-2)
    found = ridge(k, r, u, 0.5, k_e)
    p, k, r, k_e = (u @ u.T).numpy(), k[0].T.numpy(), r[0].T.numpy(), k_e[0].T.numpy()
    x = np.linalg.solve(p @ (k @ k.T + k_e @ k_e.T) + 0.5 * np.eye(8), p @ k @ r.T)
    np.testing.assert_allclose((found.b[0] @ found.a[0]).numpy(), x.T, rtol=1e-8, atol=1e-11)


def test_what_lies_outside_of_the_free_directions_is_left_alone(model, tokenizer, facts, tmp_path):
    editor = methods.editor("alphaedit", model, tokenizer)
    edits = editor.edit(facts[:3])
    for site, branch in edits.patch.items():
        u, _ = editor.spaces[site.name]
        delta, p = branch.delta(0), u @ u.T
        assert delta.norm() > 1e-3
        torch.testing.assert_close(delta @ p, delta, rtol=1e-9, atol=1e-10)
        outside = torch.randn(site.inputs).double()
        outside -= p @ outside
        assert (delta @ outside).norm() < 1e-9 * delta.norm() * outside.norm()
    report = edits.patch.report(0)
    assert report["directions"] == {name: u.shape[1] for name, (u, _) in editor.spaces.items()}
    assert report["largest"] == pytest.approx({name: largest for name, (_, largest) in editor.spaces.items()})
    assert report["ranks"] == dict.fromkeys(report["directions"], 3)
    edits.save(tmp_path)
    assert editors.load(tmp_path, model, tokenizer).patch.report(0) == report
