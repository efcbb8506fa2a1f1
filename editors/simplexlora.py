r"""SimplexLoRA (Shalygin et al., 2025, https://openreview.net/forum?id=ujl64U8wij): LoRA whose ranks follow learned
weights of the sites.

.. math::
    y = W x + \omega_i \tfrac{\alpha}{r_0} B_i A_i x, \qquad
    A_i \in R^{r_i \times I},\ B_i \in R^{O \times r_i},\ \omega \in
    \Delta = \{\omega : \omega_i \ge 0,\ \textstyle\sum_i \omega_i = n\}

over the n sites of an edit. Ranks r_i start at r_0 (``rank``), :math:`\omega` at 1, A and B as LoRA's. With each step
of Adam on A and B, :math:`\omega` takes a plain one, :math:`-\eta_\omega \partial L / \partial \omega`, as the authors'
(Adam's would be alike for all sites), and is moved to the nearest point of :math:`\Delta`. After every T steps
:math:`r_i = \lfloor \omega_i r_0 \rfloor`, so that :math:`\sum_i r_i \le n r_0`. After K such rounds :math:`\omega` is
folded into B and stays 1, ranks are frozen, and training goes on as LoRA's, also with facts that are edited later on
the same patch. The scale stays :math:`\alpha / r_0` whatever r_i.

A smaller rank keeps the product's largest singular values, which is the least error there is in the Frobenius norm: QR
of both factors, SVD of the small core :math:`R_B R_A^T = U S V^T`, then :math:`B = Q_B U S / l`,
:math:`A = l V^T Q_A^T`, where l is the length of a row of LoRA's first A, so that a step of Adam moves old and new
directions alike. A larger rank keeps both factors and adds rows to A, drawn like the first ones, and zero columns to B:
the product is the same. Where a rank has changed, Adam's moments of A and B, and its count of their steps, begin anew;
so they do at all sites when :math:`\omega` is folded in. :math:`\omega` has no moments. A rank of 0 removes the adapter
for good: its :math:`\omega_i` is 0 from the next projection on, and the others still share all of n.

Trained numbers of an edit: r_i (I + O) at each site, and n for :math:`\omega`. Edits are padded to the largest rank at
a site; a padded row of A and column of B are both zero, hence so are their gradients, and they stay zero.
An edit stops early only from step T K on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..engine.model.sites import Site
from ..engine.patches.branches import Factors, WeightSitePatch
from ..engine.patches.patch import Patch, Report
from ..engine.patches.rows import Rows
from ..engine.seeds import mixed, uniform
from ..engine.shapes import fitted
from ..hparams.simplexlora import RankRule, SimplexLoRAHparams
from .base import TrainedEditor
from .lora import LowRank, low_rank_patch

_SALT = 0x51ED270B  # other random numbers than dropout's


class WeightedLowRank(LowRank):
    """omega (alpha / r_0) B A x beside W x; beyond an edit's rank, rows of A and columns of B are zero."""

    rank: Tensor  # (E,) int64

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float, salt: int) -> None:
        super().__init__(a, b, scale, dropout, salt)
        self.omega = nn.Parameter(a.new_ones(len(a)))  # (E,)
        self.register_buffer("rank", torch.full((len(a),), a.shape[1]))

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        h = rows.linear(rows.dropout(x, self.dropout, self.salt), self.a)
        omega = rows.per_row(self.omega, x.dtype).view(-1, 1, 1)
        return torch.add(y, rows.linear(h * omega, self.b), alpha=self.scale)

    def delta(self, edit: int) -> Tensor:
        return self.omega[edit] * super().delta(edit)

    def factors(self, edit: int) -> Factors:
        r = int(self.rank[edit])
        return Factors(self.a[edit, :r], self.b[edit, :, :r] * self.omega[edit], self.scale * r)

    def resize(self, rank: Tensor, keys: Tensor, *, keep: bool) -> Tensor:
        """Give each edit its rank, (E,); (E,) bool, the edits where it is another one than before.

        ``keys`` (E,) int32 seed new rows; without ``keep`` they replace the old ones.
        """
        changed = rank != self.rank
        if not changed.any():
            return changed
        a, b, inputs = self.a.detach(), self.b.detach(), self.a.shape[2]
        smaller = (rank < self.rank).nonzero().flatten()
        if keep and len(smaller):
            new_a, new_b = _by_singular_value(a[smaller], b[smaller])
            a, b = a.index_copy(0, smaller, new_a), b.index_copy(0, smaller, new_b)
        old = torch.minimum(rank, self.rank) if keep else self.rank.masked_fill(changed, 0)
        rows = torch.arange(int(rank.max()), device=rank.device)
        is_old, is_used = rows < old[:, None], rows < rank[:, None]  # (E, r)
        fresh = uniform(mixed(keys + self.salt), (len(rows), inputs), inputs**-0.5).to(a.dtype)
        fresh = fresh.masked_fill(~is_used[:, :, None], 0)
        self.a = nn.Parameter(torch.where(is_old[:, :, None], fitted(a, fresh.shape[1:]), fresh))
        self.b = nn.Parameter(fitted(b, (b.shape[1], len(rows))).masked_fill(~is_old[:, None], 0))
        self.rank = rank
        return changed


class SimplexPatch(WeightSitePatch[WeightedLowRank]):
    """Weighted factors at n sites, whose weights share n within each edit."""

    resizes = True

    rounds: Tensor  # (E,) int64, how often ranks have been chosen

    def __init__(
        self, seeds: Sequence[int], sites: Sequence[Site], branches: Sequence[WeightedLowRank], h: SimplexLoRAHparams
    ) -> None:
        super().__init__(seeds, sites, branches)
        self.h = h
        self.register_buffer("rounds", torch.zeros(len(seeds), dtype=torch.long))

    def rates(self, lr: float) -> dict[str, float]:
        # The patch takes the steps of omega itself.
        own = {id(branch.omega) for _, branch in self.items()}
        return {name: 0.0 if id(p) in own else lr for name, p in self.named_parameters()}

    def after_step(self) -> Mapping[str, Tensor]:
        h, branches = self.h, [branch for _, branch in self.items()]
        omega = torch.stack([branch.omega - h.omega_lr * _grad(branch.omega) for branch in branches], 1)  # (E, n)
        learning = self.rounds < h.K
        # An edit that has become NaN keeps its ranks (no SVD of it); its next loss ends it.
        ends = learning & (self.steps % h.T == 0) & omega.isfinite().all(1)
        rank = torch.stack([branch.rank for branch in branches], 1)
        nearest = project(omega, rank > 0)
        omega = torch.where((ends | (self.steps % h.project_every == 0))[:, None], nearest, omega)
        omega = torch.where(learning[:, None], omega, 1.0)
        restarts: dict[str, Tensor] = {}
        if ends.any():
            rank = torch.where(ends[:, None], ranks(omega, h.rank, h.rank_rule), rank)
            self.rounds += ends
            last = ends & (self.rounds == h.K)
            keys = mixed(self.seeds.to(torch.int32) + mixed(self.steps.to(torch.int32) + _SALT))
            for i, branch in enumerate(branches):
                changed = branch.resize(rank[:, i], keys, keep=h.resize == "svd") | last
                branch.b.mul_(torch.where(last, omega[:, i], 1.0)[:, None, None])
                restarts |= {f"branches.{i}.a": changed, f"branches.{i}.b": changed}
            omega = omega.masked_fill(last[:, None], 1.0)
        for branch, own in zip(branches, omega.unbind(1), strict=True):
            branch.omega.copy_(own)
        return restarts

    def trained(self, edit: int) -> list[Tensor]:
        ranked = [(branch, int(branch.rank[edit])) for _, branch in self.items()]
        return [t for b, r in ranked for t in (b.a[edit, :r], b.b[edit, :, :r], b.omega[edit])]

    def report(self, edit: int) -> Report:
        """``ranks``: r_i, by site."""
        return {"ranks": {site.name: int(branch.rank[edit]) for site, branch in self.items()}}

    def trimmed(self) -> Patch:
        widest = torch.stack([branch.rank.max() for _, branch in self.items()]).tolist()
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (site, r) in enumerate(zip(self.sites, widest, strict=True)):
            shapes |= {f"branches.{i}.a": (r, site.inputs), f"branches.{i}.b": (site.outputs, r)}
        return self.rebuilt({name: fitted(t, shapes.get(name, t.shape[1:])) for name, t in self.tensors().items()})


def _grad(w: Tensor) -> Tensor:
    assert w.grad is not None
    return w.grad


def project(v: Tensor, free: Tensor) -> Tensor:
    """(E, n) -> (E, n), the nearest point with omega >= 0, sum n, and 0 where not ``free``: max(v - theta, 0), exact
    by sorting (Held, Wolfe & Crowder, 1974; Duchi et al., 2008)."""
    v, n = v.masked_fill(~free, -torch.inf), v.shape[1]
    u = v.sort(dim=1, descending=True).values
    theta = (u.cumsum(1) - n) / torch.arange(1, n + 1, device=v.device)
    last = ((u > theta).sum(1, keepdim=True) - 1).clamp(min=0)  # -1 where NaN
    return (v - theta.gather(1, last)).clamp(min=0)


def ranks(omega: Tensor, r0: int, rule: RankRule) -> Tensor:
    """(E, n) -> (E, n) int64, from omega r_0 to whole numbers."""
    # Rounded first: an omega of 3 may have come out as 2.9999998.
    share = (omega * r0).round(decimals=4)
    if rule == "ceil":
        return share.ceil().long()
    whole = share.floor()
    if rule == "largest_remainder":
        # Whose remainder is among the largest gets one more; of equal ones, the site with the lower index.
        rank = (share - whole).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        whole += rank < omega.shape[1] * r0 - whole.sum(1, keepdim=True)
    return whole.long()


def _by_singular_value(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(E, r, I), (E, O, r) -> factors of the same product, whose rows and columns come in order of singular value."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    length = 3**-0.5  # expected, of a row drawn uniformly from +-I^-1/2
    # The SVD leaves the sign of each pair of vectors open; here the largest number of v is positive.
    sign = vh.gather(2, vh.abs().argmax(2, keepdim=True)).sign()  # (E, r, 1)
    return (vh * sign * length) @ q_a.mT, q_b @ (u * (s[:, None] * sign.mT / length))


class SimplexLoRA(TrainedEditor):
    """Low-rank adaptation that learns how much rank each site is worth."""

    Hparams = SimplexLoRAHparams
    hparams: SimplexLoRAHparams
    merges = True

    def patch(self, seeds: Sequence[int]) -> SimplexPatch:
        fresh = low_rank_patch(self.model, self.hparams, seeds, WeightedLowRank)
        return SimplexPatch(seeds, fresh.sites, [*fresh.branches], self.hparams)

    def may_stop(self, steps: Tensor) -> Tensor:
        return steps >= self.hparams.T * self.hparams.K
