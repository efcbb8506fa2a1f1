"""How much work is put on a device at once, and how much memory it has left."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

# Where a container's limit stands and what it uses: control groups of version 2, and of version 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Budget:
    """An amount of work by kind of device: of the CPU, of Apple's GPUs, and of every other accelerator."""

    cpu: int
    mps: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        """The amount for a device; one that torch knows and this class does not is an accelerator."""
        return {"cpu": self.cpu, "mps": self.mps}.get(device.type, self.accelerator)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_free_in_container()])


def _free_in_container() -> list[int]:
    """What a control group still allows this process; psutil sees the whole machine."""
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max" for no limit
            return [max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))]
    return []
