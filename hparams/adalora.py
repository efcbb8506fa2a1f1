"""What can be set of :mod:`..editors.adalora`."""

from __future__ import annotations

from pydantic import Field, model_validator

from .base import WeightHparams


class AdaLoRAHparams(WeightHparams):
    in_steps = ("steps", "tinit", "tfinal", "deltaT")

    init_r: int = Field(gt=0, description="Rank at each site in the beginning")
    target_r: int = Field(gt=0, description="Rank in the end, on average over the sites")
    alpha: float = Field(gt=0, description="The change is scaled by alpha / init_r")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the branch's input while training")
    tinit: int = Field(0, ge=0, description="Steps before the budget begins to shrink")
    tfinal: int = Field(0, ge=0, description="Steps at the end, in which the ranks stay")
    deltaT: int = Field(1, gt=0, description="Steps from one choice of triplets to the next")  # noqa: N815
    beta1: float = Field(0.85, gt=0, lt=1, description="Smoothing of the importance over steps")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smoothing of its uncertainty over steps")
    orth_reg_weight: float = Field(0.5, ge=0, description="Weight gamma of the orthogonality penalty")

    @model_validator(mode="after")
    def _in_order(self) -> AdaLoRAHparams:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r ({self.target_r}) is more than init_r ({self.init_r})")
        # After the first step triplets have an importance, and after the second they can be chosen by it.
        if self.target_r < self.init_r and self.settled_at < max(2, self.tinit + 1):
            raise ValueError(
                f"steps ({self.steps}) less tfinal ({self.tfinal}) is {self.settled_at}; it must be more than tinit "
                f"({self.tinit}) and more than 1, or no step is left to choose triplets"
            )
        return self

    @property
    def settled_at(self) -> int:
        """The step after which the choice of triplets stays."""
        return self.steps - self.tfinal

    def budget(self, step: int, n: int) -> int | None:
        """Triplets that n sites keep together after ``step``; None: as before."""
        if self.target_r == self.init_r or not self.tinit < step <= self.settled_at:
            return None
        if step < self.settled_at and step % self.deltaT:
            return None
        left = 1 - (step - self.tinit) / (self.settled_at - self.tinit)
        return int(n * (self.init_r - self.target_r) * left**3 + n * self.target_r)
