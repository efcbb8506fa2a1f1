"""``python -m loredit``."""

from __future__ import annotations

from .cli import app

app(prog_name="loredit")
