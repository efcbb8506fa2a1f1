r"""UltraEdit (Gu et al., 2025, https://arxiv.org/abs/2505.14679): a change from one backward pass, normalised over all.

A turn takes facts together. With h the site's input where a token of an answer is predicted and g the gradient of the
loss in its output there, normalised over all turns so far, feature by feature, to :math:`\hat h, \hat g`:

.. math::
    v_j = - \eta \, \|\hat h_j\|^2 \, \hat g_j, \qquad
    \Delta^T = (H^T H + I)^{-1} H^T V

The rows of H and V are the h and v of the turn. No subject is needed, no statistics of text, no training. Stored is
the running mean and variance, each site's own.

A feature that has been seen once has no spread: a first turn of one fact whose answer is a single token changes
nothing, and its outcome says so. ``contexts`` give a fact more predictions, lists give a turn more facts.

Numbers of an edit: I + O for each predicted token at each site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.model.sites import Site
from ..engine.patches.solved import Change, Solved, SolvedPatch
from ..hparams.ultraedit import UltraEditHparams
from .base import TurnedEditor


class Normalised(Solved):
    """B A x, with the mean and the spread of all inputs and gradients that it was made from."""

    count: Tensor  # (E,), predictions seen
    mean: Tensor  # (E, I + O)
    spread: Tensor  # (E, I + O), sum of squared distances from the mean

    def __init__(self, edits: int, site: Site) -> None:
        super().__init__(edits, site)
        self.register_buffer("count", torch.zeros(edits))
        self.register_buffer("mean", torch.zeros(edits, site.inputs + site.outputs))
        self.register_buffer("spread", torch.zeros(edits, site.inputs + site.outputs))

    def observe(self, z: Tensor) -> Tensor:
        """(K, I + O) -> (K, I + O), normalised over these and all before (Chan et al., 1979), for one edit."""
        before, mean, spread = self.count.double(), self.mean.double(), self.spread.double()
        count, distance = before + len(z), z.mean(0) - mean
        mean = mean + distance * (len(z) / count)[:, None]
        spread = spread + (z - z.mean(0)).square().sum(0) + distance.square() * (before * len(z) / count)[:, None]
        self.count, self.mean, self.spread = (
            new.to(old) for new, old in ((count, self.count), (mean, self.mean), (spread, self.spread))
        )
        deviation = (spread / (count - 1).clamp(min=1)[:, None]).sqrt()
        return torch.where(deviation > 0, (z - mean) / deviation, 0.0)


class UltraEdit(TurnedEditor):
    """Normalised gradients as the values of a least-squares solve."""

    Hparams = UltraEditHparams
    hparams: UltraEditHparams

    def patch(self, seeds: Sequence[int]) -> SolvedPatch[Normalised]:
        return SolvedPatch(seeds, self.sites, [Normalised(len(seeds), site) for site in self.sites])

    def turn(self, branch: Any, inputs: Tensor, gradients: Tensor) -> None:
        width = inputs.shape[1]
        h, g = branch.observe(torch.cat([inputs, gradients], 1)).split([width, gradients.shape[1]], 1)
        v = -self.hparams.lr * h.square().sum(1, keepdim=True) * g
        # The same by the smaller system: (H^T H + I)^-1 H^T = H^T (H H^T + I)^-1.
        system = inputs @ inputs.T + torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
        a = torch.linalg.solve(system, inputs)
        branch.add(Change(a[None], v.T[None]))
