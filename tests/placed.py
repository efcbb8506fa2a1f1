"""Devices that there are not: tensors with real numbers that say to be elsewhere, and refuse to meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

_ALONE = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # what goes from one device to another


class Placed(Tensor):
    """A tensor on the CPU that says to be on ``device``. Those of "lazy" are differentiated in the CPU's thread."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Placed:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        given = index if isinstance(index, tuple) else (index,)
        here = tuple(torch.tensor(part, device=self.device) if isinstance(part, list) else part for part in given)
        return super().__getitem__(here)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """While open, what is made on a "lazy" device is :class:`Placed`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


def _called(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    found = {t.device for t in given if isinstance(t, Placed)}
    asked = kwargs.get("device")
    if not found and (asked is None or torch.device(asked).type != "lazy"):
        return func(*args, **kwargs)
    met = found | {t.device for t in given if not isinstance(t, Placed) and t.dim()}
    if func not in _ALONE and len(met) > 1 and not (func is torch.ops.aten.index.Tensor and _indices_on_cpu(args)):
        raise RuntimeError(f"{func} is given tensors on {', '.join(sorted(map(str, met)))}")
    if func is torch.ops.aten.copy_.default:
        device = args[0].device
    else:
        device = torch.device(asked) if asked is not None else next(iter(found))
    inner_args, inner_kwargs = tree_map(lambda t: t.inner if isinstance(t, Placed) else t, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = "cpu"
    out = func(*inner_args, **inner_kwargs)
    if device.type != "lazy":
        return out
    wrapped = tree_map(lambda t: Placed(t, device) if isinstance(t, Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if found else wrapped


def _indices_on_cpu(args: Any) -> bool:
    return all(index is None or index.device.type == "cpu" for index in args[1])


@contextmanager
def devices() -> Iterator[None]:
    """Everything inside knows ``lazy:0`` and ``lazy:1``."""
    tensor: Callable[..., Tensor] = torch.tensor

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        found = tensor(data, **options)
        return found if device is None else found.to(device)

    with pytest.MonkeyPatch.context() as patched, Devices():
        patched.setattr(torch, "tensor", made)  # which makes its numbers below what a mode sees
        yield


def place(module: nn.Module, device: str) -> None:
    """Put a module's parameters and buffers there."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, t in table.items():
                if t is not None and not isinstance(t, Placed):
                    moved = Placed(t.detach(), torch.device(device))
                    table[name] = nn.Parameter(moved, requires_grad=False) if isinstance(t, nn.Parameter) else moved
