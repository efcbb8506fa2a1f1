r"""EMMET (Gupta et al., 2024, https://arxiv.org/abs/2403.14236): ROME for many facts in one solve.

.. math::
    \Delta = R (K^T C^{-1} K + a I)^{-1} K^T C^{-1}

With a = 0 each fact gets its value exactly, :math:`(W + \Delta) K = V`, and what the model usually sees, of second
moment C = E[k k^T], changes least; the a that is added keeps facts with like keys from tearing the weights apart.

For one update this is MEMIT with lambda = a, of which it takes keys, values and blocks too. Keys of earlier updates
are not stored: each update is solved by itself, as published.

Numbers of an edit: I + O for each fact at each block.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from ..engine.model.sites import Site
from ..engine.model.statistics import inverse_root
from ..engine.patches.solved import Change
from ..hparams.emmet import EMMETHparams
from .base import SolvedEditor
from .memit import ridge


class EMMET(SolvedEditor):
    """Facts as constraints, what the model knows as the distance."""

    Hparams = EMMETHparams
    hparams: EMMETHparams

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """N with N N^T = C^-1, by the name of the site."""
        return {name: inverse_root(c) for name, c in self.moments.items()}

    def change(self, site: Site, keys: Tensor, missing: Tensor, earlier: Tensor) -> Change:
        found = ridge(keys.mean(2), missing[:, :, 0], self.roots[site.name], self.hparams.damping, earlier)
        return replace(found, keys=None)
