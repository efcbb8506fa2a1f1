"""The editing methods on text classification and multiple choice: what does each give outside editing?"""

from __future__ import annotations

from typing import Any

__all__ = ["ClassificationResult", "run"]


def __getattr__(name: str) -> Any:
    """Torch and transformers are imported when a run is, not with the command line."""
    if name in __all__:
        from . import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
