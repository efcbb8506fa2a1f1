"""What can be set of :mod:`..editors.ultraedit`."""

from __future__ import annotations

from pydantic import Field

from .base import TurnHparams


class UltraEditHparams(TurnHparams):
    lr: float = Field(gt=0, description="eta: the size of what is asked of each output")
