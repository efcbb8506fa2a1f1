"""``loredit``: edits as things that are made, measured, looked at, asked, merged, exported and undone."""

from __future__ import annotations

import typer

from .commands.apply import apply
from .commands.ask import ask, chat
from .commands.classify import HELP as CLASSIFY
from .commands.classify import classify
from .commands.edits import export, merge, remove
from .commands.grow import add, calibrate, update
from .commands.run import HELP as RUN
from .commands.run import run
from .commands.show import show

# \b keeps the lines of a paragraph as they are.
HELP = """
Change facts in a language model, and keep the changes as small folders that can be asked, merged, shared and undone.

\b
Learn each fact of a list as an edit of its own; look at what the folder holds.
  loredit apply my-edits --data facts.json
  loredit show my-edits

\b
More facts, and other answers to facts that the folder holds.
  loredit add my-edits --data more.json
  loredit update my-edits --data corrected.json

\b
Answers without and with the edits, side by side; undo one fact.
  loredit ask my-edits "The capital of France is"
  loredit remove my-edits france

\b
A model with one edit in its weights; an adapter for PEFT.
  loredit merge my-edits model-out --case water
  loredit export my-edits adapter --case water

\b
Edit the facts of a benchmark set or of a list, and measure what each edit did
(as run_edit.py does).
  loredit run --editor roselora --hparams smollm2.yaml

\b
What the same methods give outside editing.
  loredit classify --task mrpc --editor roselora --data GLUE_DIR

"""

app = typer.Typer(
    help=HELP, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
for command in (apply, add, update, remove, show, ask, chat, calibrate, merge, export):
    app.command()(command)
app.command(help=RUN)(run)
app.command(help=CLASSIFY)(classify)
