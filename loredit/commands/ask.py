"""``loredit ask`` and ``loredit chat``: what the model says without and with edits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .common import Case, Device, Folder, ModelName, Tokens, explained, out, plain, printable, quiet

if TYPE_CHECKING:
    from ..session import Answer


def ask(
    folder: Folder,
    prompts: Annotated[list[str], typer.Argument(help="What the model is to continue.", show_default=False)],
    case: Case = None,
    tokens: Tokens = 20,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Continue prompts without and with the edits, side by side.

    Of several edits, each prompt gets the one that it is about, or none.

    loredit ask my-edits "The capital of France is" "Water is"
    """
    with explained():
        quiet()

        from ..session import Session

        table = Table("prompt", "without", "with", "edit")
        for answer in Session(folder, case=case, model=model, device=device).ask(prompts, tokens=tokens):
            table.add_row(*map(plain, (answer.prompt, answer.without, answer.edited, _used(answer))))
        out.print(table)


def chat(
    folder: Folder, case: Case = None, tokens: Tokens = 40, model: ModelName = None, device: Device = "auto"
) -> None:
    """As `ask`, for line after line of input; an empty line ends it."""
    with explained():
        quiet()

        from ..session import Session

        session = Session(folder, case=case, model=model, device=device)
        while line := _line():
            (answer,) = session.ask([line], tokens=tokens)
            said = f"  without  {answer.without}\n  with     {answer.edited}  ({_used(answer)})"
            out.print(printable(said), markup=False, soft_wrap=True)


def _used(answer: Answer) -> str:
    return ", ".join(fact.case_id for fact in answer.facts[:3]) or "none"


def _line() -> str:
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    line = sys.stdin.readline().strip()
    if line:
        out.print(f"> {printable(line)}", markup=False, soft_wrap=True)
    return line
