"""How much work is put on a device at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Budget:
    """An amount of work by kind of device: of the CPU, of Apple's GPUs, and of every other accelerator."""

    cpu: int
    mps: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        """The amount for a device; one that torch knows and this class does not is an accelerator."""
        return {"cpu": self.cpu, "mps": self.mps}.get(device.type, self.accelerator)
