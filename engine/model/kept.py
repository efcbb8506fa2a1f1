"""States of the unedited model that are met again, stored while there is room."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..devices import free_memory

K = TypeVar("K", bound=Hashable)

_SHARE = 4  # of the memory that is free at first, one part in so many


class Kept(Generic[K]):
    """Tensors by key, computed when they are first asked for, and again only if there was no room.

    Args:
        device: where they lie; a quarter of the memory that is free there now is taken, at most. None: nothing is
            stored.

    Example:
        >>> kept = Kept[str](torch.device("cpu"))
        >>> computed = []
        >>> def double(new):
        ...     computed.extend(new)
        ...     return [torch.tensor([2.0 * i]) for i in new]
        >>> [t.item() for t in kept.of(["a", "b", "a"], double)], [t.item() for t in kept.of(["b"], double)]
        ([0.0, 2.0, 0.0], [2.0])
        >>> computed
        [0, 1]
    """

    def __init__(self, device: torch.device | None) -> None:
        self._room = 0 if device is None else free_memory(device) // _SHARE  # bytes
        self._states: dict[K, Tensor] = {}

    def of(self, keys: Sequence[K], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """The tensor of each key; ``compute`` gets the places of those that are missing and gives theirs."""
        new: dict[K, int] = {}
        for i, key in enumerate(keys):
            if key not in self._states:
                new.setdefault(key, i)
        fresh = dict(zip(new, compute([*new.values()]), strict=True)) if new else {}
        found = [self._states[key] if key in self._states else fresh[key] for key in keys]
        for key, state in fresh.items():
            if state.nbytes <= self._room:
                self._states[key] = state.clone()  # it may be a part of a larger tensor
                self._room -= state.nbytes
        return found
