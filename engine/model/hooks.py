"""Forward hooks of edits: known by their class, so that a model can be asked whether it is edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class EditHook:
    """A forward hook through which an edit works. Those that passes need for themselves are plain functions."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def before(module: nn.Module, function: Callable[..., Any]) -> RemovableHandle:
    """Run ``function(module, args, kwargs)`` before the module; it may return other arguments, as a pair."""
    return module.register_forward_pre_hook(EditHook(function), with_kwargs=True)


def after(module: nn.Module, function: Callable[..., Any]) -> RemovableHandle:
    """Run ``function(module, args, output)`` after the module; what it returns is the module's output."""
    return module.register_forward_hook(EditHook(function))


def attached_to(model: nn.Module) -> bool:
    """Whether an edit is attached to the model."""
    for module in model.modules():
        hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()  # noqa: SLF001 - torch lists no hooks
        if any(isinstance(hook, EditHook) for hook in hooks):
            return True
    return False
