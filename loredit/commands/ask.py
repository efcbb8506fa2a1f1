"""``loredit ask`` and ``loredit chat``: what the model says without and with edits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .common import Case, Device, EncoderName, Folder, ModelName, Tokens, explained, out, quiet

if TYPE_CHECKING:
    from ..session import Answer

NOTHING = "(nothing)"
"""Shown where the model ends its text at once."""


def ask(
    folder: Folder,
    prompts: Annotated[list[str], typer.Argument(help="What the model is to continue.", show_default=False)],
    case: Case = None,
    tokens: Tokens = 20,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="As a user's turn in the model's chat template, or as it is.")
    ] = False,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """Continue prompts without and with the edits, side by side.

    Of several edits, each prompt gets the one that it is about, or none; the last column says which, and how likely the
    prompt is about that fact (for none: about the nearest).

    loredit ask my-edits "The capital of France is" "Water is"
    """
    with explained():
        quiet()

        from ..session import Session

        session = Session(folder, case=case, model=model, device=device, encoder=encoder)
        table = Table("prompt", "without", "with", "edit")
        for answer in session.ask(prompts, tokens=tokens, chat=chat):
            table.add_row(answer.prompt, answer.without or NOTHING, answer.edited or NOTHING, _used(answer))
        out.print(table)


def chat(
    folder: Folder,
    case: Case = None,
    tokens: Tokens = 40,
    template: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="In the model's chat template, or as it is; by default as a chat where the model has a template.",
            show_default=False,
        ),
    ] = None,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """As `ask`, for line after line of input; an empty line ends it. A line is a turn of its own."""
    with explained():
        quiet()

        from ..session import Session

        session = Session(folder, case=case, model=model, device=device, encoder=encoder)
        turns = session.has_chat_template if template is None else template
        while line := _line():
            (answer,) = session.ask([line], tokens=tokens, chat=turns)
            said = (
                f"  without  {answer.without or NOTHING}\n"
                f"  with     {answer.edited or NOTHING}  ({' '.join(_used(answer).split())})"
            )
            out.print(said, soft_wrap=True)


def _used(answer: Answer) -> str:
    """Which edit was used, how surely, and what is known of it."""
    names = ", ".join(fact.case_id for fact in answer.facts[:3])
    if answer.route is not None and answer.route.fact is None:
        nearest = answer.route.nearest
        return f"none\nnearest {nearest.case_id}: {_share(answer.route.score)}" if nearest else "none"
    if answer.route is not None and answer.route.fact is not None:
        names = f"{answer.route.fact.case_id} {_share(answer.route.score)}"
    return f"{names}\nnot learned" if answer.learned is False else names


def _share(score: float) -> str:
    return f"{min(score, 0.999):.1%}" if score < 1 - 1e-9 else "100%"


def _line() -> str:
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    line = sys.stdin.readline().strip()
    if line:
        out.print(f"> {line}", soft_wrap=True)
    return line
