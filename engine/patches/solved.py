r"""Changes of weights that were solved for, as factors, with the keys of what was learned before.

.. math::  W + B A, \qquad A \in R^{r \times I},\ B \in R^{O \times r}

Each update adds its factors beside the earlier ones; once there are more than the change can have directions, they
become one dense change. ``keys`` are rows whose products sum to :math:`K K^T`, at most I of them, so that a
later update can leave earlier facts alone.

Shapes: E edits, r factors, m keys, R rows of a batch, T tokens, I/O a site's input/output width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..model.sites import Site
from ..shapes import fitted
from .branches import Factors, LowRankBranch, WeightSitePatch
from .patch import Patch, Report
from .rows import Rows


@dataclass(frozen=True)
class Change:
    """What an update adds to one site."""

    a: Tensor  # (E, r, I)
    b: Tensor  # (E, O, r)
    keys: Tensor | None = None  # (E, m, I), which later updates are to leave alone


class Solved(LowRankBranch):
    """B A x beside W x."""

    keys: Tensor  # (E, m, I)

    def __init__(self, edits: int, site: Site) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(edits, 0, site.inputs))
        self.b = nn.Parameter(torch.zeros(edits, site.outputs, 0))
        self.register_buffer("keys", torch.zeros(edits, 0, site.inputs))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y + rows.linear(rows.linear(x, self.a), self.b)

    def turn(self, turned: Callable[[Tensor], Tensor]) -> None:
        self.a = nn.Parameter(turned(self.a))

    def delta(self, edit: int) -> Tensor:
        return self.b[edit] @ self.a[edit]

    def factors(self, edit: int) -> Factors:
        used = _used(self.a[edit : edit + 1], self.b[edit : edit + 1])
        return Factors(self.a[edit, :used], self.b[edit, :, :used], float(used))

    @torch.no_grad()
    def add(self, change: Change) -> None:
        """W + B A becomes W + B A + B' A'."""
        a, b = torch.cat([self.a, change.a.to(self.a)], 1), torch.cat([self.b, change.b.to(self.b)], 2)
        (edits, r, inputs), outputs = a.shape, b.shape[1]
        if r > min(inputs, outputs):
            one = torch.eye(min(inputs, outputs), dtype=a.dtype, device=a.device).repeat(edits, 1, 1)
            a, b = (b @ a, one) if outputs <= inputs else (one, b @ a)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        if change.keys is not None:
            keys = torch.cat([self.keys, change.keys.to(self.keys)], 1)
            # Q R = keys has R^T R = keys^T keys.
            self.keys = torch.linalg.qr(keys, mode="r").R if keys.shape[1] > inputs else keys


def _used(a: Tensor, b: Tensor) -> int:
    """How many of the factors are not zero in all edits, counted to the last that is not."""
    used = (a.any(2) | b.any(1)).any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 0


B = TypeVar("B", bound=Solved, covariant=True)


class SolvedPatch(WeightSitePatch[B]):
    """Factors at each site; edits may differ in their number."""

    resizes = True

    def report(self, edit: int) -> Report:
        """``ranks``: how many factors the change has, by site."""
        return {"ranks": {site.name: branch.factors(edit).rank for site, branch in self.items()}}

    def trimmed(self) -> Patch:
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (site, branch) in enumerate(self.items()):
            r, m = _used(branch.a, branch.b), _used(branch.keys, branch.keys.mT)
            shapes |= {f"branches.{i}.a": (r, site.inputs), f"branches.{i}.b": (site.outputs, r)}
            shapes |= {f"branches.{i}.keys": (m, site.inputs)}
        return self.rebuilt({name: fitted(t, shapes.get(name, t.shape[1:])) for name, t in self.tensors().items()})
