"""``python -m loredit.evaluation.classification``."""

from __future__ import annotations

import typer

from .command import HELP, classify

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(help=HELP)(classify)

if __name__ == "__main__":
    app()
