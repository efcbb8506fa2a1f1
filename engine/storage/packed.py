"""Tensors with many zeros, as one bit for each number and the numbers that are not zero.

A share s of numbers that are not zero takes s + 1/32 of a dense float32 tensor. Positions as integers would take 2 s,
which is more wherever s is above 3 %.

Shapes: E edits, n numbers of one edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..shapes import fitted


@dataclass(frozen=True)
class Packed:
    """A tensor (E, ...) whose numbers at the bits of ``mask`` are ``values``, in order, and whose others are zero."""

    shape: tuple[int, ...]
    mask: Tensor  # (E, ceil(n / 8)) uint8, the first number in the highest bit
    values: Tensor  # (numbers that are not zero,)

    @staticmethod
    def of(t: Tensor) -> Packed:
        flat = t.detach().cpu().flatten(1)
        bits = flat != 0
        return Packed(tuple(t.shape), torch.from_numpy(np.packbits(bits.numpy(), axis=1)), flat[bits])

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes + self.values.nbytes

    @cached_property
    def _ends(self) -> list[int]:
        """(E + 1,), where each edit's values begin and end."""
        each = np.unpackbits(self.mask.numpy(), axis=1).sum(1, dtype=np.int64)
        return [0, *each.cumsum().tolist()]

    @property
    def size(self) -> int:
        """Count of all numbers, zero or not."""
        return math.prod(self.shape)

    def faults(self) -> list[str]:
        """What keeps this from being a tensor; for what was read from a file."""
        if len(self.shape) < 2:
            return [f"its shape is {self.shape}, expected edits and more"]
        numbers = math.prod(self.shape[1:])
        if self.mask.dtype != torch.uint8 or tuple(self.mask.shape) != (self.shape[0], -(-numbers // 8)):
            return [f"its mask is {tuple(self.mask.shape)}, which does not fit the shape {self.shape}"]
        if (self.mask[:, -1:].numpy() & (0xFF >> (numbers % 8 or 8))).any():
            return [f"its mask has bits outside of the shape {self.shape}"]
        if self.values.dim() != 1 or self._ends[-1] != len(self.values):
            return [f"its mask is for {self._ends[-1]} values, but there are {tuple(self.values.shape)}"]
        return []

    def dense(self) -> Tensor:
        numbers = math.prod(self.shape[1:])
        bits = np.unpackbits(self.mask.numpy(), axis=1, count=numbers)
        whole = self.values.new_zeros(bits.size)
        whole[torch.from_numpy(np.flatnonzero(bits))] = self.values  # in less than half the time of masked_scatter_
        return whole.view(self.shape)

    def take(self, edits: Sequence[int]) -> Packed:
        """These edits alone, in this order."""
        values = [self.values[self._ends[e] : self._ends[e + 1]] for e in edits]
        return Packed(
            (len(edits), *self.shape[1:]),
            self.mask[list(edits)],
            torch.cat(values) if values else self.values[:0],
        )


Stored = Tensor | Packed


def packed(t: Tensor) -> Stored:
    """The smaller one of a tensor and its packed form."""
    t = t.detach().cpu().contiguous()
    if t.dim() < 2 or not t.is_floating_point():
        return t
    p = Packed.of(t)
    return p if p.nbytes < t.nbytes else t


def dense(t: Stored) -> Tensor:
    return t.dense() if isinstance(t, Packed) else t


def taken(t: Stored, edits: Sequence[int]) -> Stored:
    """These edits of a tensor, in this order."""
    return t.take(edits) if isinstance(t, Packed) else t[list(edits)]


def joined(parts: Sequence[Stored]) -> Stored:
    """The edits of all parts, in order; where they differ in size, the smaller are padded with zeros."""
    same = [p for p in parts if isinstance(p, Packed) and p.shape[1:] == parts[0].shape[1:]]
    if len(same) == len(parts):
        edits = sum(p.shape[0] for p in same)
        return Packed(
            (edits, *same[0].shape[1:]), torch.cat([p.mask for p in same]), torch.cat([p.values for p in same])
        )
    shape = [max(lengths) for lengths in zip(*(p.shape[1:] for p in parts), strict=True)]
    return packed(torch.cat([fitted(dense(p), shape) for p in parts]))


def nonzero_share(tensors: Iterable[Stored]) -> float:
    """Share of the numbers of floating-point tensors that are not zero, 0 to 1; 1 where there are none."""
    numbers = [t for t in tensors if isinstance(t, Packed) or t.is_floating_point()]
    total = sum(t.size if isinstance(t, Packed) else t.numel() for t in numbers)
    filled = sum(len(t.values) if isinstance(t, Packed) else int(t.count_nonzero()) for t in numbers)
    return filled / total if total else 1.0
