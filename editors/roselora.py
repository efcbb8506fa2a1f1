r"""RoseLoRA (Wang et al., 2024, https://arxiv.org/abs/2406.10777): LoRA with row-wise sparse A, column-wise sparse B.

.. math::
    I_t &= |w_t \, \partial L / \partial w_t|, \qquad
    \bar I_t = \beta \bar I_{t-1} + (1 - \beta) I_t \\
    \tau_t &= 1 \ (t \le t_i), \qquad
    \tau + (1 - \tau) \left(1 - \tfrac{t - t_i}{t_f - t_i}\right)^3 \ (t_i < t < t_f), \qquad
    \tau \ (t \ge t_f)

After step t, each row of A keeps its :math:`\lceil \tau_t I \rceil` entries of largest :math:`\bar I_t`, each
column of B its :math:`\lceil \tau_t O \rceil`; the others become zero. Of equal entries those with the lower index are
kept. With share tau kept, at least :math:`1 - r \tau^2` of B A is zero, so an edit touches few weights.

Trained numbers of an edit: r (I + O) at each site, of which the share tau is left. No edit stops before t_f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ..engine.patches.branches import WeightSitePatch
from ..engine.patches.patch import Report, nonzero_share
from ..hparams.roselora import RoseLoRAHparams
from .base import TrainedEditor
from .lora import LowRank, low_rank_patch


class SparseLowRank(LowRank):
    """A LoRA branch that prunes its factors by sensitivity after each step."""

    a_sensitivity: Tensor  # as A; empty until the first step
    b_sensitivity: Tensor  # as B

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float, salt: int, *, h: RoseLoRAHparams) -> None:
        super().__init__(a, b, scale, dropout, salt)
        self.h = h
        for name in ("a_sensitivity", "b_sensitivity"):
            self.register_buffer(name, a.new_zeros(len(a), 0), persistent=False)

    def before_step(self, steps: Tensor) -> None:
        if self.h.sensitivity == "before_step":
            self._observe()

    def after_step(self, steps: Tensor) -> None:
        if self.h.sensitivity == "after_step":
            self._observe()
        share = [self.h.share(step) for step in steps.tolist()]
        if min(share) == 1:
            return
        self.a.mul_(_largest(self.a_sensitivity, share))
        self.b.mul_(_largest(self.b_sensitivity.mT, share).mT)
        if self.h.max_abs is not None:
            self.a.clamp_(-self.h.max_abs, self.h.max_abs)
            self.b.clamp_(-self.h.max_abs, self.h.max_abs)

    def _observe(self) -> None:
        self.a_sensitivity = self._smoothed(self.a_sensitivity, self.a)
        self.b_sensitivity = self._smoothed(self.b_sensitivity, self.b)

    def _smoothed(self, before: Tensor, w: Tensor) -> Tensor:
        assert w.grad is not None, "sensitivities are taken of weights that have a gradient"
        now = (w * w.grad).abs_().mul_(1 - self.h.beta)
        return now.add_(before, alpha=self.h.beta) if before.numel() else now


def _largest(score: Tensor, share: Sequence[float]) -> Tensor:
    """(E, G, n) -> bool: exactly ceil(share[e] n) entries of each of edit e's rows, ties going to the lower index."""
    n = score.shape[-1]
    keep = [math.ceil(round(s * n, 9)) for s in share]  # rounded first: 0.07 * 100 is 7.000000000000001
    runs = [(k, len(list(run))) for k, run in groupby(keep)]  # one, where edits have begun together
    parts = zip(score.split([edits for _, edits in runs]), runs, strict=True)
    # Not sorted: sorting those that are kept would take longer than finding them.
    least = torch.cat([part.topk(k, sorted=False).values.amin(-1, keepdim=True) for part, (k, _) in parts])
    above, tied = score > least, score == least
    room = torch.tensor(keep, device=score.device).view(-1, 1, 1) - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


class SparsePatch(WeightSitePatch[LowRank]):
    """Sparse factors at every site."""

    def report(self, edit: int) -> Report:
        """By site, ``nonzero_share``: of A and B together; ``changed_share``: of the weight that they change."""
        factors = {site.name: (branch.a[edit], branch.b[edit]) for site, branch in self.items()}
        return {
            "nonzero_share": {name: round(nonzero_share([a, b]), 5) for name, (a, b) in factors.items()},
            "changed_share": {name: round(nonzero_share([b @ a]), 5) for name, (a, b) in factors.items()},
        }


class RoseLoRA(TrainedEditor):
    """Row- and column-wise sparse LoRA."""

    Hparams = RoseLoRAHparams
    hparams: RoseLoRAHparams
    merges = True

    def patch(self, seeds: Sequence[int]) -> SparsePatch:
        fresh = low_rank_patch(self.model, self.hparams, seeds, partial(SparseLowRank, h=self.hparams))
        return SparsePatch(seeds, fresh.sites, [*fresh.branches])

    def may_stop(self, steps: Tensor) -> Tensor:
        return steps >= round(self.hparams.t_f * self.hparams.steps)
