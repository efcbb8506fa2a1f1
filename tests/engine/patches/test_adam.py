"""Adam with an edit axis, against torch's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch
from torch import Tensor, nn

from loredit.engine.patches.adam import Adam


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_adam_is_torchs_adam_for_every_edit_from_its_own_first_step(dtype, tolerance):
    start = tiny.randn(3, 4, 5).to(dtype)
    grads, rate = [tiny.randn(3, 4, 5, seed=s).to(dtype) * 10.0**-s for s in range(1, 8)], 0.03
    p = nn.Parameter(start.clone())
    adam = Adam({"p": p}, {"p": rate})
    theirs = [nn.Parameter(one.clone()) for one in start]
    optimizers = [torch.optim.Adam([one], lr=rate) for one in theirs]

    def step(grad: Tensor, left: Sequence[int]) -> None:
        p.grad = grad[left]
        adam.step({"p": p})
        for e in left:
            theirs[e].grad = grad[e]
            optimizers[e].step()

    for grad in grads[:3]:
        step(grad, [0, 1, 2])
    adam.restart("p", torch.tensor([False, True, False]))
    optimizers[1] = torch.optim.Adam([theirs[1]], lr=rate)
    step(grads[3], [0, 1, 2])
    gone = p[1].detach().clone()
    torch.testing.assert_close(gone, theirs[1].detach(), rtol=tolerance, atol=tolerance)

    p = nn.Parameter(p.detach()[[0, 2]])
    adam.take(torch.tensor([0, 2]))
    for grad in grads[4:]:
        step(grad, [0, 2])
    torch.testing.assert_close(p.detach(), torch.stack([theirs[0], theirs[2]]).detach(), rtol=tolerance, atol=tolerance)


def test_rates_belong_to_parameters_by_name():
    p = {name: nn.Parameter(torch.zeros(1, 2)) for name in ("slow", "fast")}
    adam = Adam(p, {"slow": 0.1, "fast": 0.5})
    for one in p.values():
        one.grad = torch.ones(1, 2)
    adam.step(p)
    assert [one[0, 0].item() for one in p.values()] == pytest.approx([-0.1, -0.5])
