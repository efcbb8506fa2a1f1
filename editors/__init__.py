"""Editing methods. Each module here without an underscore is one method, and its name is the method's name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from ._models import load as load_model
from .base import Editor, Edits, Hparams, Outcome, Patch, WeightPatch

__all__ = ["Editor", "Edits", "Hparams", "Outcome", "Patch", "WeightPatch", "available", "find", "load_model"]


def available() -> list[str]:
    """The names of all methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def find(name: str) -> type[Editor[Any]]:
    """The editor class of a method, imported when it is asked for."""
    if name not in available():
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown editor {name!r}{hint} There are: {', '.join(available())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (editor,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Editor) and member.__module__ == module.__name__
    )
    return editor


def __getattr__(name: str) -> Any:
    """``from loredit.editors import RoseLoRA``: each class by its own name, imported on first use."""
    if name == "EditStore":
        from ._store import EditStore

        return EditStore
    for method in available():
        if method == name.lower():
            return find(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
