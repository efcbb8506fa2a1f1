"""Adam (Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980) whose state has an edit axis, as the parameters have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..shapes import fitted

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """p <- p - lr m_hat / (sqrt(v_hat) + eps), element-wise, so edits never mix.

    Each edit counts its own steps (``t``, one count per parameter and edit), so edits may begin at different times
    and a method may restart the moments of single edits (:meth:`restart`). The moments follow a parameter that gets
    another shape as :func:`fitted` has it. The same numbers as ``torch.optim.Adam``.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
        self.rates = dict(rates)
        self.m = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.t = {name: torch.zeros(len(p), dtype=p.dtype, device=p.device) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, p in parameters.items():
            assert p.grad is not None, f"{name} took no part in the forward pass"
            m = self.m[name] = fitted(self.m[name], p.shape[1:])
            v = self.v[name] = fitted(self.v[name], p.shape[1:])
            t = self.t[name].add_(1)
            m.lerp_(p.grad, 1 - _BETA1)
            v.mul_(_BETA2).addcmul_(p.grad, p.grad, value=1 - _BETA2)
            per_edit = (-1, *[1] * (p.dim() - 1))
            size = (self.rates[name] / _one_minus_power(_BETA1, t)).view(per_edit)
            root = _one_minus_power(_BETA2, t).rsqrt().view(per_edit)
            p.sub_(m.mul(size).div_(v.sqrt().mul_(root).add_(_EPSILON)))

    def restart(self, name: str, edits: Tensor) -> None:
        """Let the moments of one parameter begin anew in some edits, (E,) bool."""
        for state in (self.m, self.v, self.t):
            state[name][edits] = 0

    def take(self, index: Tensor) -> None:
        """Keep these edits only."""
        for state in (self.m, self.v, self.t):
            for name, value in state.items():
                state[name] = value.index_select(0, index)


def _one_minus_power(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t without the cancellation that would cost float32 half its digits in the first steps."""
    return -torch.expm1(t * math.log(beta))
