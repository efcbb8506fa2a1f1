r"""AlphaEdit (Fang et al., 2025, https://arxiv.org/abs/2410.02355): changes that what the model knows does not see.

.. math::
    \Delta^T = \bigl(P (K K^T + K_e K_e^T) + w I\bigr)^{-1} P K R^T, \qquad P = U U^T

U are the eigenvectors of C = E[k k^T] with the smallest eigenvalues: directions that keys of text hardly have. A change
:math:`\Delta = \Delta P` leaves what lies outside of them exactly as it was. Keys, values and blocks are MEMIT's;
:math:`K_e` are the keys of all facts of earlier updates.

The eigenvalue below which a direction counts as free (2e-2 in the paper, for GPT-2 XL) says nothing about another
model, whose keys are of another size. Here U is what holds at most the share ``null_energy`` of tr C;
:meth:`AlphaEditPatch.report` tells how many directions that are, and their largest eigenvalue.

Numbers of an edit: I + O for each fact at each block, and I for its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..engine.model.sites import Site
from ..engine.patches.patch import Report
from ..engine.patches.solved import Change, Solved, SolvedPatch
from ..hparams.alphaedit import AlphaEditHparams
from .base import SolvedEditor
from .memit import ridge


def null_space(c: Tensor, share: float) -> tuple[Tensor, float]:
    """The directions of least second moment, which together hold at most ``share`` of all, and their largest moment.

    Args:
        c: (I, I).
        share: 0 to 1, of the trace.

    Returns:
        U (I, m), orthonormal, in float64; and the largest eigenvalue among them, 0 if there is none.
    """
    values, vectors = torch.linalg.eigh(c.double())
    values = values.clamp(min=0)
    m = int((values.cumsum(0) <= share * values.sum()).sum())
    return vectors[:, :m], float(values[m - 1]) if m else 0.0


@dataclass(frozen=True)
class ProjectedChange(Change):
    """A change within the free directions of a site."""

    directions: int = 0
    largest: float = 0.0


class Projected(Solved):
    """B A x with A in the free directions, of which it knows how many there are and how much text has of them."""

    directions: Tensor  # (E,) int64
    largest: Tensor  # (E,), the largest eigenvalue among them

    def __init__(self, edits: int, site: Site) -> None:
        super().__init__(edits, site)
        self.register_buffer("directions", torch.zeros(edits, dtype=torch.long))
        self.register_buffer("largest", torch.zeros(edits))

    def add(self, change: Change) -> None:
        super().add(change)
        assert isinstance(change, ProjectedChange)
        self.directions.fill_(change.directions)
        self.largest.fill_(change.largest)


class AlphaEditPatch(SolvedPatch[Projected]):
    """Changes within the free directions of each site."""

    def report(self, edit: int) -> Report:
        """``directions``: how many are free; ``largest``: the second moment of the least free one; by site."""
        own = {
            name: {site.name: getattr(branch, name)[edit].item() for site, branch in self.items()}
            for name in ("directions", "largest")
        }
        return super().report(edit) | own


class AlphaEdit(SolvedEditor):
    """Least squares over the facts, in the null space of what the model knows."""

    Hparams = AlphaEditHparams
    hparams: AlphaEditHparams

    @cached_property
    def spaces(self) -> dict[str, tuple[Tensor, float]]:
        """U and its largest eigenvalue, by the name of the site."""
        return {name: null_space(c, self.hparams.null_energy) for name, c in self.moments.items()}

    def change(self, site: Site, keys: Tensor, missing: Tensor, earlier: Tensor) -> Change:
        space, largest = self.spaces[site.name]
        found = ridge(keys.mean(2), missing[:, :, 0], space, self.hparams.ridge, earlier)
        return ProjectedChange(found.a, found.b, found.keys, space.shape[1], largest)

    def patch(self, seeds: Sequence[int]) -> AlphaEditPatch:
        return AlphaEditPatch(seeds, self.sites, [Projected(len(seeds), site) for site in self.sites])
