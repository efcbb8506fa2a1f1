"""Edit facts in a language model and measure what each edit did; ``python run_edit.py --help`` shows how."""

from __future__ import annotations

import typer

from loredit.commands.run import HELP, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(help=HELP)(run)

if __name__ == "__main__":
    app()
