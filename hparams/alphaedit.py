"""What can be set of :mod:`..editors.alphaedit`."""

from __future__ import annotations

from pydantic import Field

from .base import SolvedHparams


class AlphaEditHparams(SolvedHparams):
    null_energy: float = Field(
        gt=0, lt=1, description="Share of the keys' energy tr C that lies in the directions an edit may use, at most"
    )
    ridge: float = Field(10.0, gt=0, description="w: the weight of the change's own size (L2 in the paper's code)")
