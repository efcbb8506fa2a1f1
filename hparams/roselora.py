"""What can be set of :mod:`..editors.roselora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .lora import LoRAHparams


class RoseLoRAHparams(LoRAHparams):
    tau: float = Field(gt=0, le=1, description="Share of each row of A and column of B that is left in the end")
    beta: float = Field(ge=0, lt=1, description="Smoothing of the sensitivity over steps")
    t_i: float = Field(0.1, ge=0, le=1, description="Pruning begins after this share of the steps")
    t_f: float = Field(0.8, ge=0, le=1, description="The share tau is reached after this share of the steps")
    sensitivity: Literal["before_step", "after_step"] = Field(
        "before_step", description="Weights that the sensitivity is taken of; the published EasyEdit port: after_step"
    )
    max_abs: float | None = Field(
        None, gt=0, description="Clamp A and B to this once pruning is on (3e-3 in the authors' code); null: no clamp"
    )

    @model_validator(mode="after")
    def _in_order(self) -> RoseLoRAHparams:
        if self.t_i > self.t_f:
            raise ValueError(f"t_i ({self.t_i}) comes after t_f ({self.t_f})")
        return self

    def share(self, step: int) -> float:
        """tau_t after ``step`` steps."""
        first, last = round(self.t_i * self.steps), round(self.t_f * self.steps)
        if step >= last:
            return self.tau
        if step <= first:
            return 1.0
        return self.tau + (1 - self.tau) * (1 - (step - first) / (last - first)) ** 3
