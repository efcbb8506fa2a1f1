"""How many edits fit into memory side by side: measured on one edit, not guessed from its sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import Budget, free_memory
from ..method import Method, Trainable
from ..model.attention import trainable_attention
from ..model.passes import frozen
from ..model.quantized import parts
from .lessons import Lesson
from .loop import Work

# More edits than this make neither training nor sampled texts faster per edit (docs/performance.md).
_MOST = Budget(cpu=128, mps=64, accelerator=1024)
# Of the memory that is free; the rest is for the allocator's gaps and for evaluation.
_SHARE = 0.5
# Copies of each trained number while training: value, gradient, two Adam moments, one working copy, two sensitivities.
_COPIES = 7
# What torch's CPU allocator says on Linux ("can't allocate memory") and on Windows ("not enough memory").
_CPU_MESSAGES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def edits_that_fit(method: Method, lesson: Lesson) -> int:
    """Edits like this one that fit beside each other on the model's device."""
    device = method.model.device
    try:
        return max(1, min(_MOST.on(device), int(free_memory(device) * _SHARE) // method.bytes_per_edit(lesson)))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return 1
        raise


def bytes_in_training(method: Trainable, lesson: Lesson) -> int:
    """Peak bytes that one more edit costs: what its graph keeps for the backward pass, its logits and its state."""
    weights = (part for named in method.model.named_parameters() for _, part in parts(*named))
    own = {part.untyped_storage().data_ptr() for part in weights}
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


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU allocator only messages."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(m in str(error) for m in _CPU_MESSAGES)
