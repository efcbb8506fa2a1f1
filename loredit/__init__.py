"""Knowledge editing for GPT-2-style language models: many independent edits, trained and scored side by side.

The public names below are imported when they are first used, so that ``import loredit`` itself costs nothing:

>>> import loredit
>>> loaded = loredit.load_model("smollm2-135m")
>>> from loredit.editors import RoseLoRA
>>> hparams = loredit.hparams.load(RoseLoRA, "smollm2", ["lr=2e-3"])
>>> editor = RoseLoRA(loaded.model, loaded.tokenizer, hparams)
>>> edits = editor.edit_each(loredit.load_facts("samples").facts[:8])
>>> scores = loredit.evaluate(edits)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Fact": ("data", "Fact"),
    "Probe": ("data", "Probe"),
    "load_facts": ("data", "load"),
    "load_model": ("editors", "load_model"),
    "EditStore": ("editors", "EditStore"),
    "Edits": ("editors", "Edits"),
    "evaluate": ("evaluation", "evaluate"),
    "run": ("evaluation", "run"),
    "summarise": ("evaluation", "summarise"),
}
_MODULES = ("data", "easyedit", "editors", "evaluation", "hparams")

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
