"""How many edits fit into memory side by side: measured on one edit, not guessed from its sizes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from ..devices import Budget
from ..method import Method
from ..model.attention import trainable_attention
from ..model.passes import frozen
from .lessons import Lesson
from .loop import Work

# More edits than this make neither training nor sampled texts faster per edit (docs/performance.md).
_MOST = Budget(cpu=128, mps=64, accelerator=1024)
# Of the memory that is free; the rest is for the allocator's gaps and for evaluation.
_SHARE = 0.5
# Copies of each trained number while training: value, gradient, two Adam moments, one working copy, two sensitivities.
_COPIES = 7
# Where a container's limit stands and what it uses: control groups of version 2, and of version 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# What torch's CPU allocator says on Linux ("can't allocate memory") and on Windows ("not enough memory").
_CPU_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def edits_that_fit(method: Method, lesson: Lesson) -> int:
    """Edits like this one that fit beside each other on the model's device."""
    device = method.model.device
    try:
        return max(1, min(_MOST.on(device), int(_free(device) * _SHARE) // bytes_per_edit(method, lesson)))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return 1
        raise


def bytes_per_edit(method: Method, lesson: Lesson) -> int:
    """Peak bytes that one more edit costs: what its graph keeps for the backward pass, its logits and its state."""
    own = {p.untyped_storage().data_ptr() for p in method.model.parameters()}
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    patch = method.fresh([0])
    with frozen(method.model), trainable_attention(method.model):
        work = Work(method, patch, [lesson])
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss, _ = work.losses()
    del loss
    trained = sum(p.numel() * p.element_size() for p in patch.parameters())
    predictions = sum(len(row.wanted) for row in (*lesson.answers, *lesson.anchors))
    logits = 3 * 4 * predictions * method.model.config.vocab_size
    return sum(saved.values()) + logits + _COPIES * trained


def _free(device: torch.device) -> int:
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


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU allocator only messages."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(m in str(error) for m in _CPU_MESSAGES)
