r"""Compacter (Mahabadi et al., 2021, https://arxiv.org/abs/2106.04647): adapters of Kronecker products.

An adapter (see :mod:`~loredit.editors.adapter`) whose two maps are low-rank parametrized hypercomplex layers:

.. math::
    W = \sum_{i=1}^{n} A_i \otimes B_i, \qquad A_i \in R^{n \times n}, \quad
    B_i = s_i t_i^T \in R^{O/n \times I/n}, \quad s_i \in R^{O/n \times r},\ t_i \in R^{I/n \times r}

One set of A is shared by both maps of all adapters of an edit; s and t are each map's own. n must divide the model's
width d and the bottleneck m. Names and defaults are AdapterHub's: n is ``phm_dim`` (4), r ``phm_rank`` (1), reduction
factor 32, gelu; placement houlsby is Compacter, pfeiffer Compacter++.

With A from N(0, 1/n), s from N(0, 1/(r n)) and t uniform in :math:`\pm (I/n)^{-1/2}`, the entries of W start with the
variance of an adapter's. The s of the maps up start at zero, so a fresh patch changes nothing.

Trained numbers of an edit: n^3 + K (2 r (m + d) + m + d) with K adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..engine.patches.branches import SitePatch
from ..engine.patches.rows import Rows
from ..engine.seeds import PerEdit
from ..hparams.compacter import CompacterHparams
from .adapter import Bottleneck, bottleneck_patch
from .base import TrainedEditor


class PHM(nn.Module):
    """(sum_i A_i kron s_i t_i^T) x + b for each edit, without ever forming the matrix."""

    def __init__(self, a: nn.Parameter, s: Tensor, t: Tensor) -> None:
        super().__init__()
        self.a = a  # (E, n, n, n), A_i is a[:, i]
        self.s = nn.Parameter(s)  # (E, O/n, n r), r columns for each i
        self.t = nn.Parameter(t)  # (E, n r, I/n), r rows for each i
        self.bias = nn.Parameter(s.new_zeros(len(s), a.shape[1] * s.shape[1]))  # (E, O)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """(R, T, I) -> (R, T, O)."""
        count, tokens, n = *x.shape[:2], self.a.shape[1]
        seen = rows.linear(x.reshape(count, tokens * n, -1), self.t)  # t_i^T of each of the n parts of x
        mixed = torch.einsum("ripq,rtqik->rtpik", rows.per_row(self.a, x.dtype), seen.view(count, tokens, n, n, -1))
        y = rows.linear(mixed.reshape(count, tokens * n, -1), self.s)
        return y.view(count, tokens, -1) + rows.per_row(self.bias, x.dtype)[:, None]


class Compacter(TrainedEditor):
    """Adapters of Kronecker products, a set for each edit."""

    Hparams = CompacterHparams
    hparams: CompacterHparams

    def patch(self, seeds: Sequence[int]) -> SitePatch[Bottleneck]:
        draw, n, r = PerEdit(seeds), self.hparams.phm_dim, self.hparams.phm_rank
        a = nn.Parameter(draw.normal((n, n, n), n**-0.5))

        def projections(m: int, d: int) -> tuple[nn.Module, nn.Module]:
            if m % n or d % n:
                raise ValueError(
                    f"phm_dim ({n}) must divide the model's width ({d}) and the bottleneck ({m}, which is the width "
                    f"divided by reduction_factor {self.hparams.reduction_factor:g}); change one of the two"
                )
            down = PHM(a, draw.normal((m // n, n * r), (r * n) ** -0.5), draw.uniform((n * r, d // n), (d / n) ** -0.5))
            up = PHM(a, torch.zeros(len(seeds), d // n, n * r), draw.uniform((n * r, m // n), (m / n) ** -0.5))
            return down, up

        return bottleneck_patch(self.model, self.hparams, seeds, projections)
