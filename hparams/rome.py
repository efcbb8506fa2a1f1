"""What can be set of :mod:`..editors.rome`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import SolvedHparams


class ROMEHparams(SolvedHparams):
    form: Literal["r_rome", "original"] = Field(
        "r_rome", description="One key throughout, or ROME's own mixture of two, which lets single edits collapse"
    )
