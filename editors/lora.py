r"""LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685): a low-rank change of chosen linear maps.

.. math::  y = W x + \tfrac{\alpha}{r} B A x, \qquad A \in R^{r \times I},\ B \in R^{O \times r}

A starts uniform in :math:`\pm I^{-1/2}` (as PEFT's), B at zero, so a fresh patch changes nothing.
Trained numbers of an edit: r (I + O) at each site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..engine.model.sites import sites
from ..engine.patches.branches import Factors, LowRankBranch, WeightSitePatch
from ..engine.patches.rows import Rows
from ..engine.seeds import PerEdit
from ..hparams.lora import LoRAHparams
from .base import TrainedEditor


class LowRank(LowRankBranch):
    """(alpha / r) B A x beside W x, with the paper's names: ``a`` is A, ``b`` is B."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float, salt: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)  # (E, r, I), (E, O, r)
        self.scale, self.dropout, self.salt = scale, dropout, salt

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        x = rows.dropout(x, self.dropout, self.salt)
        return torch.add(y, rows.linear(rows.linear(x, self.a), self.b), alpha=self.scale)

    def turn(self, turned: Callable[[Tensor], Tensor]) -> None:
        self.a = nn.Parameter(turned(self.a))

    def delta(self, edit: int) -> Tensor:
        return self.scale * self.b[edit] @ self.a[edit]

    def factors(self, edit: int) -> Factors:
        a, b = self.a[edit], self.b[edit]
        return Factors(a, b, self.scale * len(a))


def scale_of(model: PreTrainedModel, alpha: float, rank: float) -> float:
    """alpha / rank. Raises ValueError where the model's own numbers do not reach so far."""
    most = torch.finfo(model.dtype).max
    if alpha / rank > most:
        raise ValueError(
            f"alpha / rank is {alpha / rank:g}, and a {str(model.dtype).removeprefix('torch.')} model's numbers end at "
            f"{most:g}; choose a smaller alpha"
        )
    return alpha / rank


def low_rank_patch(
    model: PreTrainedModel, h: LoRAHparams, seeds: Sequence[int], branch: Callable[..., LowRank] = LowRank
) -> WeightSitePatch[LowRank]:
    """Fresh factors at every site of ``h``, A drawn per edit and B zero."""
    draw, chosen, scale = PerEdit(seeds), sites(model, h.sites, h.layers), scale_of(model, h.alpha, h.rank)
    a = [draw.uniform((h.rank, site.inputs), site.inputs**-0.5) for site in chosen]
    b = [torch.zeros(len(seeds), site.outputs, h.rank) for site in chosen]
    return WeightSitePatch(seeds, chosen, [branch(a[i], b[i], scale, h.dropout, i) for i in range(len(chosen))])


class LoRA(TrainedEditor):
    """Low-rank adaptation of linear maps, one pair of factors for each edit."""

    Hparams = LoRAHparams
    hparams: LoRAHparams
    merges = True

    def patch(self, seeds: Sequence[int]) -> WeightSitePatch[LowRank]:
        return low_rank_patch(self.model, self.hparams, seeds)
