"""How many edits fit into memory side by side: measured on one edit, not guessed from its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from ._forward import frozen

if TYPE_CHECKING:
    from ._training import Lesson
    from .base import Editor

# More edits than this make neither training nor sampled texts faster per edit (docs/performance.md).
_MOST = {"cpu": 128, "cuda": 1024, "mps": 64}
# Of the memory that is free; the rest is for the allocator's gaps and for evaluation.
_SHARE = 0.5
# Copies of each trained number while training: value, gradient, two Adam moments, one working copy, two sensitivities.
_COPIES = 7


def edits_that_fit(editor: Editor[Any], lesson: Lesson) -> int:
    """Edits like this one that fit beside each other on the model's device."""
    device = editor.model.device
    try:
        return max(1, min(_MOST[device.type], int(_free(device) * _SHARE) // bytes_per_edit(editor, lesson)))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return 1
        raise


def bytes_per_edit(editor: Editor[Any], lesson: Lesson) -> int:
    """Peak bytes that one more edit costs: what its graph keeps for the backward pass, its logits and its state."""
    from ._training import Work

    own = {p.untyped_storage().data_ptr() for p in editor.model.parameters()}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    patch = editor.fresh([0])
    with frozen(editor.model):
        work = Work(editor, patch, [lesson])
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss, _ = work.losses()
    del loss
    trained = sum(p.numel() * p.element_size() for p in patch.parameters())
    predictions = sum(len(row.wanted) for row in (*lesson.answers, *lesson.anchors))
    logits = 3 * 4 * predictions * editor.model.config.vocab_size
    return sum(kept.values()) + logits + _COPIES * trained


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; the CPU allocator only a message."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)
