r"""AdaLoRA (Zhang et al., 2023, https://arxiv.org/abs/2303.10512): a change in the form of a singular value
decomposition, whose rank goes where it matters.

.. math::
    y &= W x + \tfrac{\alpha}{r_0} P \Lambda Q x, \qquad
         P \in R^{O \times r_0},\ \Lambda \in R^{r_0}\ \text{(a diagonal)},\ Q \in R^{r_0 \times I} \\
    L &= \text{loss} + \gamma \operatorname{mean}_{\text{sites}}
         \tfrac12 \left( \lVert P^T P - 1 \rVert_F + \lVert Q Q^T - 1 \rVert_F \right) \\
    I_t &= |w_t \, \partial L / \partial w|, \qquad
    \bar I_t = \beta_1 \bar I_{t-1} + (1 - \beta_1) I_t, \qquad
    \bar U_t = \beta_2 \bar U_{t-1} + (1 - \beta_2) |I_t - \bar I_t| \\
    S_i &= s(\Lambda_i) + \operatorname{mean}_j s(P_{ji}) + \operatorname{mean}_j s(Q_{ij}), \qquad
    s = \bar I_t \bar U_t \\
    b_t &= \text{init\_r} \ (t \le t_i), \qquad
    \text{target\_r} + (\text{init\_r} - \text{target\_r}) \left(1 - \tfrac{t - t_i}{T - t_f - t_i}\right)^3
    \ (t_i < t \le T - t_f)

Step t = 1 ... T (``steps``), :math:`t_i` is ``tinit`` and :math:`t_f` ``tfinal``. P and Q start normal with deviation
0.02, :math:`\Lambda` at zero. After each step with :math:`t_i < t < T - t_f` that ``deltaT`` divides, and after step
T - t_f, the :math:`\lfloor n b_t \rfloor` triplets :math:`(P_{\cdot i}, \Lambda_i, Q_{i \cdot})` of largest S keep
their :math:`\Lambda_i`, counted over all n sites of an edit together; the others' becomes zero, from where it may grow
again. From step T - t_f on the choice stays, also for facts that are edited later on the same patch.

The paper leaves open what PEFT decides, and here it is as in PEFT's AdaLoraModel, step for step: the norms are not
squared, and are averaged over the 2 n matrices; w is taken after the optimizer's step, its gradient (the penalty's
included) before it; r_0 = init_r + 1e-5 at every rank; of equal scores at the threshold none is kept; init_r and
target_r are means over the sites.

Trained numbers of an edit: init_r (I + O + 1) at each site; those of triplets that are left out count as zero.
An edit stops early only from step T - t_f on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..engine.model.sites import Site, sites
from ..engine.patches.branches import Factors, LowRankBranch, WeightSitePatch
from ..engine.patches.patch import Report
from ..engine.patches.rows import Rows
from ..engine.seeds import PerEdit
from ..hparams.adalora import AdaLoRAHparams
from .base import TrainedEditor
from .lora import scale_of

_DEVIATION, _EPSILON = 0.02, 1e-5  # PEFT's


class Triplets(LowRankBranch):
    """(alpha / r_0) P Lambda Q x beside W x, with the paper's names: ``p`` is P, ``lam`` Lambda, ``q`` Q."""

    def __init__(self, p: Tensor, q: Tensor, scale: float, dropout: float, salt: int) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(p), nn.Parameter(q)  # (E, O, r), (E, r, I)
        self.lam = nn.Parameter(p.new_zeros(len(p), q.shape[1]))  # (E, r)
        self.scale, self.dropout, self.salt = scale, dropout, salt
        for name, _ in [*self.named_parameters()]:  # of the same shapes; empty until the first step
            self.register_buffer(f"{name}_importance", p.new_zeros(len(p), 0), persistent=False)
            self.register_buffer(f"{name}_uncertainty", p.new_zeros(len(p), 0), persistent=False)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        h = rows.linear(rows.dropout(x, self.dropout, self.salt), self.q) * rows.per_row(self.lam, x.dtype)[:, None]
        return torch.add(y, rows.linear(h, self.p), alpha=self.scale)

    def turn(self, turned: Callable[[Tensor], Tensor]) -> None:
        self.q = nn.Parameter(turned(self.q))

    def delta(self, edit: int) -> Tensor:
        return self.scale * (self.p[edit] * self.lam[edit]) @ self.q[edit]

    def factors(self, edit: int) -> Factors:
        used = self.lam[edit] != 0
        a, b = self.q[edit, used], self.p[edit][:, used] * self.lam[edit, used]
        return Factors(a, b, self.scale * len(a))

    def penalty(self) -> Tensor:
        """(E,), how far P and Q are from orthogonality."""
        one = torch.eye(self.lam.shape[1], dtype=self.lam.dtype, device=self.lam.device)
        p, q = self.p.mT @ self.p, self.q @ self.q.mT
        return (torch.linalg.matrix_norm(p - one) + torch.linalg.matrix_norm(q - one)) / 2

    def observe(self, edits: Tensor, beta1: float, beta2: float) -> None:
        """Smooth the importance of each number and its uncertainty, in some edits, (E,) bool."""
        for name, w in self.named_parameters():
            new = edits.to(w.dtype).view(-1, *[1] * (w.dim() - 1))
            assert w.grad is not None
            now = (w * w.grad).abs_()
            mean, spread = self._smoothed(f"{name}_importance", w), self._smoothed(f"{name}_uncertainty", w)
            mean.lerp_(now, new * (1 - beta1))
            spread.lerp_(now.sub_(mean).abs_(), new * (1 - beta2))

    def _smoothed(self, name: str, w: Tensor) -> Tensor:
        if not getattr(self, name).numel():
            setattr(self, name, torch.zeros_like(w))
        return getattr(self, name)

    def scores(self) -> Tensor:
        """(E, r), the importance of each triplet."""
        p, lam, q = (getattr(self, f"{w}_importance") * getattr(self, f"{w}_uncertainty") for w in ("p", "lam", "q"))
        return lam + p.mean(1) + q.mean(2)


class AdaLoRAPatch(WeightSitePatch[Triplets]):
    """Triplets at n sites, which share one budget within each edit."""

    kept: Tensor  # (E, n, r) bool, the triplets of the last choice
    settled: Tensor  # (E,) bool, whether that choice stays

    def __init__(
        self, seeds: Sequence[int], sites: Sequence[Site], branches: Sequence[Triplets], h: AdaLoRAHparams
    ) -> None:
        super().__init__(seeds, sites, branches)
        self.h = h
        self.register_buffer("kept", torch.ones(len(seeds), len(branches), h.init_r, dtype=torch.bool))
        self.register_buffer("settled", torch.zeros(len(seeds), dtype=torch.bool))

    def penalty(self) -> Tensor:
        each = [branch.penalty() for _, branch in self.items()]
        return self.h.orth_reg_weight * torch.stack(each).mean(0)

    def after_step(self) -> Mapping[str, Tensor]:
        learning = ~self.settled & (self.steps < self.h.settled_at)
        branches = [branch for _, branch in self.items()]
        if learning.any():
            for branch in branches:
                branch.observe(learning, self.h.beta1, self.h.beta2)
        budgets = [self.h.budget(step, len(self.sites)) for step in self.steps.tolist()]
        chosen = torch.tensor([budget is not None for budget in budgets], device=self.settled.device) & ~self.settled
        if chosen.any():
            scores = torch.cat([branch.scores() for branch in branches], 1)
            out = torch.tensor([scores.shape[1] - (budget or 0) for budget in budgets], device=scores.device)
            kept = scores > _smallest(scores, out)
            self.kept = torch.where(chosen[:, None, None], kept.view_as(self.kept), self.kept)
        pruned = (chosen | self.settled)[:, None, None] & ~self.kept
        for branch, zero in zip(branches, pruned.unbind(1), strict=True):
            branch.lam.masked_fill_(zero, 0)
        self.settled |= self.steps >= self.h.settled_at
        return {}

    def trained(self, edit: int) -> list[Tensor]:
        parts = zip(self.items(), self.kept[edit], strict=True)
        return [t for (_, b), kept in parts for t in (b.p[edit] * kept, b.lam[edit] * kept, b.q[edit] * kept[:, None])]

    def report(self, edit: int) -> Report:
        """``ranks``: triplets kept, by site."""
        return {"ranks": {site.name: int(kept.sum()) for site, kept in zip(self.sites, self.kept[edit], strict=True)}}


def _smallest(scores: Tensor, k: Tensor) -> Tensor:
    """(E, N), (E,) -> (E, 1), the k[e]-th smallest of each row; less than all where k[e] is 0."""
    ascending = torch.cat([scores.new_full((len(scores), 1), -torch.inf), scores.sort().values], 1)
    return ascending.gather(1, k[:, None])


class AdaLoRA(TrainedEditor):
    """Low-rank adaptation whose budget of singular values is shared among the sites by importance."""

    Hparams = AdaLoRAHparams
    hparams: AdaLoRAHparams
    merges = True

    def patch(self, seeds: Sequence[int]) -> AdaLoRAPatch:
        h, draw = self.hparams, PerEdit(seeds)
        chosen = sites(self.model, h.sites, h.layers)
        branches = [
            Triplets(
                draw.normal((site.outputs, h.init_r), _DEVIATION),
                draw.normal((h.init_r, site.inputs), _DEVIATION),
                scale_of(self.model, h.alpha, h.init_r + _EPSILON),
                h.dropout,
                i,
            )
            for i, site in enumerate(chosen)
        ]
        return AdaLoRAPatch(seeds, chosen, branches, h)

    def may_stop(self, steps: Tensor) -> Tensor:
        return steps >= self.hparams.settled_at
