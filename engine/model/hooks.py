"""Forward hooks of edits: known by their class, so that a model can be asked whether it is edited."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .sharing import check_unattached_elsewhere, guarded, lent, taken_elsewhere


class EditHook:
    """A forward hook through which an edit works. Those that passes need for themselves are plain functions."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._function(*args, **kwargs)


def before(module: nn.Module, function: Callable[..., object]) -> RemovableHandle:
    """Run ``function(module, args, kwargs)`` before the module; it may return other arguments, as a pair."""
    return module.register_forward_pre_hook(EditHook(function), with_kwargs=True)


def after(module: nn.Module, function: Callable[..., object]) -> RemovableHandle:
    """Run ``function(module, args, output)`` after the module; what it returns is the module's output."""
    return module.register_forward_hook(EditHook(function))


def attached_to(model: nn.Module) -> bool:
    """Whether an edit is attached to the model."""
    for module in model.modules():
        hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()  # noqa: SLF001 - torch lists no hooks
        if any(isinstance(hook, EditHook) for hook in hooks):
            return True
    return False


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """The model without a hook, of an edit or of a pass, while open; afterwards with all of them again.

    So that somebody else can use it in the middle of something longer, between two forward passes.
    """
    tables = [table for module in model.modules() for table in _tables(module) if table]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        with lent(model):
            yield
    finally:
        for table, own in zip(tables, kept, strict=True):
            table.update(own)


def _tables(module: nn.Module) -> tuple[MutableMapping[int, Any], ...]:
    """What torch keeps of a module's forward hooks, and of how to call them."""
    return (
        module._forward_hooks,  # noqa: SLF001 - torch lists no hooks
        module._forward_hooks_with_kwargs,  # noqa: SLF001
        module._forward_hooks_always_called,  # noqa: SLF001
        module._forward_pre_hooks,  # noqa: SLF001
        module._forward_pre_hooks_with_kwargs,  # noqa: SLF001
    )


def check_free(model: nn.Module, doing: str) -> None:
    """Refuse a model that something is attached to, or that runs compiled code, which knows no hooks of later.

    Raises RuntimeError: "edits are attached to the model; <doing> outside of ..." or the like.
    """
    check_unattached_elsewhere(model, doing)
    if not taken_elsewhere(model) and attached_to(model):  # what another thread trains is waited for
        raise RuntimeError(f"edits are attached to the model; {doing} outside of `with edits.on(...)`")
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        raise RuntimeError(
            f"the model is compiled, and compiled code passes edits by; {doing} with the model as it was"
        )


@contextmanager
def attachable(model: nn.Module, doing: str) -> Iterator[None]:
    """The model is this thread's to attach edits to, while open.

    What ``torch.compile`` has made of a model before must be made anew once hooks have come or gone: it does not look
    at them by itself, and would go on computing without the edit.

    Raises RuntimeError as :func:`check_free` does.
    """
    check_free(model, doing)
    with guarded(model, attached=True):
        check_free(model, doing)  # again, now that no other thread is about to attach
        _forget_compiled()
        try:
            yield
        finally:
            _forget_compiled()


def _forget_compiled() -> None:
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and getattr(dynamo.eval_frame, "cached_backends", True):
        dynamo.reset()
