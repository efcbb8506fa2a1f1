"""Tensors of edits that differ in size, padded to one shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def fitted(t: Tensor, shape: Sequence[int]) -> Tensor:
    """(E, ...) -> (E, *shape): axes that grow end in zeros, of those that shrink the end is cut off."""
    if tuple(t.shape[1:]) == tuple(shape):
        return t
    return F.pad(t, [n for have, want in zip(t.shape[:0:-1], shape[::-1], strict=True) for n in (0, want - have)])
