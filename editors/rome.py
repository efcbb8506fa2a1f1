r"""ROME (Meng et al., 2022, https://arxiv.org/abs/2202.05262): one fact as one rank-one change of one down-projection.

.. math::
    W \leftarrow W + \frac{(v_* - W k_*) (C^{-1} k_*)^T}{k_*^T C^{-1} k_*}

so that :math:`W k_* = v_*`, and what the model usually sees, of second moment C = E[k k^T], changes least.
:math:`k_*` is the mean, over the prompt alone and behind contexts, of the site's input at the last token of the
subject; :math:`v_* = W k_* + d` with the vector d that makes the model give the answer when it is added there.

This is R-ROME (Gupta et al., 2024, https://arxiv.org/abs/2403.07175), which uses :math:`k_*` throughout. ROME's own
code (``form: original``) takes the key k of the prompt alone twice of the three times,

.. math::
    W \leftarrow W + \frac{d \, (C^{-1} k_*)^T}{k^T C^{-1} k_*}

which makes a few edits so large that they destroy the model: those whose k is nearly orthogonal to :math:`C^{-1} k_*`.

Numbers of an edit: I + O. Several facts in one edit are one change after another.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from ..engine.model.sites import Site
from ..engine.model.statistics import inverse_root
from ..engine.patches.solved import Change
from ..hparams.rome import ROMEHparams
from .base import SolvedEditor


class ROME(SolvedEditor):
    """A rank-one change that gives one key its value."""

    Hparams = ROMEHparams
    hparams: ROMEHparams
    value_of = "site"
    jointly = False

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """N with N N^T = C^-1, by the name of the site."""
        return {name: inverse_root(c) for name, c in self.moments.items()}

    def change(self, site: Site, keys: Tensor, missing: Tensor, earlier: Tensor) -> Change:
        root, key = self.roots[site.name], keys.mean(2)  # (E, 1, I)
        direction = key @ root @ root.T
        divided = key if self.hparams.form == "r_rome" else keys[:, :, 0]
        return Change(direction / (divided * direction).sum(-1, keepdim=True), missing.mean(2).mT)
