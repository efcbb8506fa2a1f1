r"""BitFit (Ben Zaken et al., 2022, https://arxiv.org/abs/2106.10199): only bias terms are trained.

.. math::  y = W x + b + \Delta b, \qquad \Delta b \in R^{O}

The paper trains all biases. Here they are those of the blocks: of the linear maps with the chosen roles and, with
``norms``, of the layer norms; the norm behind the last block stays as it is. A fresh patch changes nothing. Where
positions are learned (GPT-2), a key's bias has no effect on attention; rounding noise is all that moves it.

Where the model has no bias (all maps of Llama, all RMS norms), one is added while an edit is attached. Such an edit is
no change of weights that the model has and cannot be merged; with a bias at every chosen site (GPT-2, OPT) it can.

Trained numbers of an edit: the sum of the widths O.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..engine.model.sites import Site, blocks, sites
from ..engine.patches.branches import Branch, SitePatch
from ..engine.patches.patch import WeightPatch
from ..engine.patches.rows import Rows
from ..hparams.bitfit import BitFitHparams
from .base import TrainedEditor


class Bias(Branch):
    """y + delta."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = nn.Parameter(delta)  # (E, O)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y + rows.per_row(self.delta, y.dtype)[:, None]


class BiasPatch(SitePatch[Bias], WeightPatch):
    """Changes of biases that the model has."""

    def delta_weights(self, edit: int) -> dict[str, Tensor]:
        return {f"{site.name}.bias": branch.delta[edit] for site, branch in self.items()}


class BitFit(TrainedEditor):
    """Biases, a set for each edit."""

    Hparams = BitFitHparams
    hparams: BitFitHparams

    def patch(self, seeds: Sequence[int]) -> SitePatch[Bias]:
        chosen = sites(self.model, self.hparams.sites, self.hparams.layers)
        if self.hparams.norms:
            chosen += _norms(self.model, {site.layer for site in chosen})
        owned = all(getattr(self.model.get_submodule(site.name), "bias", None) is not None for site in chosen)
        kind = BiasPatch if owned else SitePatch[Bias]
        return kind(seeds, chosen, [Bias(torch.zeros(len(seeds), site.outputs)) for site in chosen])


def _norms(model: nn.Module, layers: set[int]) -> list[Site]:
    """The norms of these blocks, known by their weight being a vector."""
    names = {module: name for name, module in model.named_modules()}
    found = [(layer, m, getattr(m, "weight", None)) for layer in sorted(layers) for m in blocks(model)[layer].modules()]
    return [
        Site(names[m], layer, "norm", len(weight), len(weight))
        for layer, m, weight in found
        if isinstance(weight, Tensor) and weight.dim() == 1
    ]
