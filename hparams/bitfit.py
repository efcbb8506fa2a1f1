"""What can be set of :mod:`..editors.bitfit`."""

from __future__ import annotations

from pydantic import Field

from .base import SiteHparams


class BitFitHparams(SiteHparams):
    norms: bool = Field(True, description="Also the biases of the blocks' layer norms")
