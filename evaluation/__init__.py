"""Measuring what an edit did: probes are scored, scores become metrics, metrics become tables and plots."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics import Comparison, Summary, compare, summarise
    from .runs import RunResult, run
    from .scores import FactScores
    from .scoring import evaluate

__all__ = ["Comparison", "FactScores", "RunResult", "Summary", "compare", "evaluate", "run", "summarise"]

_MODULES = {"FactScores": "scores", "RunResult": "runs", "evaluate": "scoring", "run": "runs"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: torch and transformers take seconds that ``--help`` need not."""
    if name in __all__:
        return getattr(importlib.import_module(f".{_MODULES.get(name, 'metrics')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
