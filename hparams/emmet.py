"""What can be set of :mod:`..editors.emmet`."""

from __future__ import annotations

from pydantic import Field

from .base import SolvedHparams


class EMMETHparams(SolvedHparams):
    damping: float = Field(0.1, ge=0, description="a: what is added to K^T C^-1 K; 0: each fact gets its value exactly")
