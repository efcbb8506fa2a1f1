"""Knowledge editing for GPT-2-style language models: many independent edits, trained and scored side by side.

The public names are imported when they are first used, so that ``import loredit`` itself costs nothing:

>>> import loredit
>>> editor = loredit.editor("roselora", "smollm2", lr=2e-3)  # doctest: +SKIP
>>> edits = editor.edit_each(loredit.load_facts("samples").facts[:8])  # doctest: +SKIP
>>> scores = loredit.evaluate(edits)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import data, easyedit, editors, evaluation, hparams
    from .bridges.peft import from_peft, to_peft
    from .data import Fact, Probe
    from .data import load as load_facts
    from .editors import Edits, editor
    from .editors import load as load_edits
    from .engine.model.loading import load as load_model
    from .engine.version import VERSION as __version__  # noqa: N811 - the field's name for it
    from .evaluation.metrics import compare, summarise
    from .evaluation.runs import run
    from .evaluation.scoring import evaluate
    from .store.store import EditStore

# Where each name is found at run time; a test holds this against the imports above, which type checkers read.
_NAMES = {
    "EditStore": ("store.store", "EditStore"),
    "Edits": ("editors", "Edits"),
    "Fact": ("data", "Fact"),
    "Probe": ("data", "Probe"),
    "__version__": ("engine.version", "VERSION"),
    "compare": ("evaluation.metrics", "compare"),
    "editor": ("editors", "editor"),
    "evaluate": ("evaluation.scoring", "evaluate"),
    "from_peft": ("bridges.peft", "from_peft"),
    "load_edits": ("editors", "load"),
    "load_facts": ("data", "load"),
    "load_model": ("engine.model.loading", "load"),
    "run": ("evaluation.runs", "run"),
    "summarise": ("evaluation.metrics", "summarise"),
    "to_peft": ("bridges.peft", "to_peft"),
}
_MODULES = ("data", "easyedit", "editors", "evaluation", "hparams")

__all__ = [
    "EditStore",
    "Edits",
    "Fact",
    "Probe",
    "__version__",
    "compare",
    "data",
    "easyedit",
    "editor",
    "editors",
    "evaluate",
    "evaluation",
    "from_peft",
    "hparams",
    "load_edits",
    "load_facts",
    "load_model",
    "run",
    "summarise",
    "to_peft",
]


if not TYPE_CHECKING:  # a type checker would take every name for Any

    def __getattr__(name):
        if name in _NAMES:
            module, attribute = _NAMES[name]
            return getattr(import_module(f"{__name__}.{module}"), attribute)
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
