r"""MEMIT (Meng et al., 2023, https://arxiv.org/abs/2210.07229): many facts at once, spread over several blocks.

A fact's value :math:`z` is the hidden state behind the last of the blocks, at the last token of the fact's subject,
with which the model gives the answer. Block after block, with n blocks left, the down-projection W changes by

.. math::
    \Delta = R K^T (\lambda C + K_e K_e^T + K K^T)^{-1}, \qquad
    R = \tfrac{1}{n} (Z - H)

K are the facts' keys at this block and H their hidden states behind the last block, both as the blocks changed before
make them; C = E[k k^T] is the mean second moment of keys over text, so lambda is how many of the text's tokens weigh as
much as one fact. :math:`K_e` are the keys of all facts of earlier updates: with them, updates one after another sum to
the one update for all facts together, given the same values and keys (https://arxiv.org/abs/2605.26670); MEMIT's own
code leaves them out.

Numbers of an edit: I + O for each fact at each block, and I for its key.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..engine.model.sites import Site
from ..engine.model.statistics import inverse_root
from ..engine.patches.solved import Change
from ..hparams.memit import MEMITHparams
from .base import SolvedEditor


def ridge(keys: Tensor, missing: Tensor, root: Tensor, weight: float, earlier: Tensor) -> Change:
    r"""argmin over D of :math:`\|R - D K\|^2 + \|D K_e\|^2 + w \|D N^{-T}\|^2`, as factors.

    .. math::  D = R Q^T (w I + Q_e Q_e^T + Q Q^T)^{-1} N^T, \qquad Q = N^T K

    Args:
        keys: (E, n, I), K as rows.
        missing: (E, n, O), R as rows.
        root: (I, m), N with :math:`N N^T` the inverse of what is to stay: of C, for second moments C.
        weight: w.
        earlier: (E, h, I), :math:`K_e` as rows, whose outputs are to stay.

    Returns:
        a (E, n, I) and b (E, O, n), D = b a; the keys are for later updates.
    """
    q, q_e = keys @ root, earlier @ root
    n, known, width = q.shape[1], q_e.shape[1], q.shape[2]
    every = torch.cat([q_e, q], 1)
    if n + known <= width:
        # The same by the smaller of two systems: Q^T (w I + Q Q^T)^-1 = (w I + Q^T Q)^-1 Q^T.
        system = every @ every.mT
        system.diagonal(dim1=1, dim2=2).add_(weight)
        solved = torch.linalg.solve_ex(system, every).result[:, known:]
    else:
        system = every.mT @ every
        system.diagonal(dim1=1, dim2=2).add_(weight)
        solved = torch.linalg.solve_ex(system, q.mT).result.mT
    return Change(solved @ root.T, missing.mT, keys)


class MEMIT(SolvedEditor):
    """Least squares over the facts and all that the model knows, block after block."""

    Hparams = MEMITHparams
    hparams: MEMITHparams

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """N with N N^T = C^-1, by the name of the site."""
        return {name: inverse_root(c) for name, c in self.moments.items()}

    def change(self, site: Site, keys: Tensor, missing: Tensor, earlier: Tensor) -> Change:
        if self.hparams.keys == "mean":
            keys, missing = keys.mean(2), missing[:, :, 0]
        else:
            keys, missing = keys.flatten(1, 2), missing.flatten(1, 2)
        return ridge(keys, missing, self.roots[site.name], self.hparams.mom2_update_weight, earlier)
