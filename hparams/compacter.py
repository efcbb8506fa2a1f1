"""What can be set of :mod:`..editors.compacter`."""

from __future__ import annotations

from pydantic import Field

from .adapter import BottleneckHparams, NonLinearity


class CompacterHparams(BottleneckHparams):
    reduction_factor: float = Field(32, gt=0, description="The bottleneck is the model's width divided by this")
    non_linearity: NonLinearity = Field("gelu", description="Activation in the bottleneck")
    scaling: float = Field(1.0, gt=0, description="What the bottleneck adds is multiplied by this")
    phm_dim: int = Field(4, gt=0, description="Number n of Kronecker products in a sum, and the size of each A")
    phm_rank: int = Field(1, gt=0, description="Rank r of each B")
