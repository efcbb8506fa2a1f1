r"""A vector of each edit's own, added at marked tokens to what one linear map gives.

.. math::  y_t + d \quad \text{at marked } t, \qquad \|d\| \le c \|v_0\|, \qquad
           \text{penalty} = w \, \frac{\|d\|}{\|v_0\|^2}

Training it is how a fact's value v0 + d is found (ROME, https://arxiv.org/abs/2202.05262).

Shapes: E edits, R rows of a batch, T tokens, I/O the map's input/output width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model.sites import Site
from .branches import Branch, SitePatch
from .rows import Rows


class Vector(Branch):
    """y + d at the tokens that the rows mark; nothing elsewhere."""

    length: Tensor  # (E,), ||v0||

    def __init__(self, edits: int, site: Site, most: float) -> None:
        super().__init__()
        self.vector, self.most = nn.Parameter(torch.zeros(edits, site.outputs)), most
        self.register_buffer("length", torch.ones(edits), persistent=False)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        assert rows.marks is not None, "the rows say where the vectors are to be added"
        return y.index_put(rows.marks, rows.per_row(self.vector, y.dtype)[rows.marks[0]], accumulate=True)

    def after_step(self, steps: Tensor) -> None:
        norm = self.vector.norm(dim=1)
        self.vector.mul_((self.most * self.length / norm.clamp(min=1e-30)).clamp(max=1)[:, None])


class VectorPatch(SitePatch[Vector]):
    """One vector for each edit at one site."""

    def __init__(self, seeds: Sequence[int], site: Site, *, most: float, decay: float) -> None:
        super().__init__(seeds, [site], [Vector(len(seeds), site, most)])
        self.decay = decay

    @property
    def vector(self) -> Vector:
        ((_, branch),) = self.items()
        return branch

    def penalty(self) -> Tensor:
        return self.decay * self.vector.vector.norm(dim=1) / self.vector.length.square()
