"""Random numbers that belong to one edit: the same alone as beside a thousand others, on every device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process (unlike ``hash``)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class PerEdit:
    """Draws (E, *shape) tensors; row e comes from ``seeds[e]`` alone, however many edits are drawn beside it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        out = torch.empty(len(self._generators), *shape)
        for row, generator in zip(out, self._generators, strict=True):
            row.normal_(0.0, std, generator=generator)
        return out

    def uniform(self, shape: Sequence[int], bound: float) -> Tensor:
        """U(-bound, bound)."""
        out = torch.empty(len(self._generators), *shape)
        for row, generator in zip(out, self._generators, strict=True):
            row.uniform_(-bound, bound, generator=generator)
        return out


def dropout(x: Tensor, p: float, keys: Tensor) -> Tensor:
    """Dropout of ``x`` (R, T, I) whose mask is a hash of ``keys[r]`` and the element's index (t, i) in its row.

    A generator's stream would depend on the batch and on padding; a counter-based mask does not, so an edit sees the
    same masks however it is batched, on every device. The keep-probability is exact to 2^-31.
    """
    index = torch.arange(x.shape[-2] * x.shape[-1], dtype=torch.int32, device=x.device)
    keep = mixed(index + keys[:, None]).bitwise_and_(0x7FFFFFFF) >= int(p * 0x80000000)
    return x * keep.view(x.shape).to(x.dtype).mul_(1 / (1 - p))


def uniform(keys: Tensor, shape: Sequence[int], bound: float) -> Tensor:
    """U(-bound, bound), (E, *shape): number i of edit e is a hash of ``keys[e]`` and i, whatever else is drawn."""
    index = torch.arange(math.prod(shape), dtype=torch.int32, device=keys.device)
    return mixed(index + keys[:, None]).view(len(keys), *shape) * (bound / 0x80000000)


def mixed(h: Tensor) -> Tensor:
    """int32 -> int32 in place, every bit depending on every other: Wellons' lowbias32
    (https://nullprogram.com/blog/2018/07/31/)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        # Shifting an int32 drags its sign along; the mask clears what came in.
        h.bitwise_xor_((h >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return h
