"""What can be set of :mod:`..editors.simplexlora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .lora import LoRAHparams

RankRule = Literal["floor", "ceil", "largest_remainder"]


class SimplexLoRAHparams(LoRAHparams):
    in_steps = ("steps", "T")

    rank: int = Field(gt=0, description="Rank r_0 at each site in the beginning, and the largest mean in the end")
    omega_lr: float = Field(gt=0, description="Learning rate of the weights omega, which take plain gradient steps")
    T: int = Field(gt=0, description="Steps of a round; ranks follow omega at its end")
    K: int = Field(gt=0, description="Rounds, after which ranks are frozen")
    rank_rule: RankRule = Field(
        "floor", description="From omega r_0 to a rank; largest_remainder uses up the budget, ceil may exceed it"
    )
    project_every: int = Field(1, gt=0, description="Steps from one projection of omega to the next")
    resize: Literal["svd", "reinit"] = Field("svd", description="svd keeps what was learned, reinit begins anew")

    @model_validator(mode="after")
    def _in_time(self) -> SimplexLoRAHparams:
        if self.steps < self.T * self.K:
            raise ValueError(f"K ({self.K}) rounds of T ({self.T}) steps are more than steps ({self.steps})")
        return self
