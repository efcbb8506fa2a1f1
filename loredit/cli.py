"""``loredit``: edits as things that are made, measured, looked at, asked, merged, exported and undone."""

from __future__ import annotations

import typer

from .commands.ability import HELP as ABILITY
from .commands.ability import ability
from .commands.apply import apply
from .commands.ask import ask, chat
from .commands.bench import HELP as BENCH
from .commands.bench import bench
from .commands.classify import HELP as CLASSIFY
from .commands.classify import classify
from .commands.edits import export, merge, remove
from .commands.generate import HELP as GENERATE
from .commands.generate import generate
from .commands.grow import add, calibrate, update
from .commands.hub import pull, push
from .commands.report import compare, report
from .commands.run import HELP as RUN
from .commands.run import run
from .commands.serve import serve
from .commands.show import show
from .commands.sweep import HELP as SWEEP
from .commands.sweep import sweep
from .commands.tune import tune
from .commands.ui import ui

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
A model with one edit in its weights; an adapter for PEFT; edits on the hub.
  loredit merge my-edits model-out --case water
  loredit export my-edits adapter --case water
  loredit push my-edits me/my-edits
  loredit pull me/my-edits their-edits

\b
A page on this machine to do all of that; the edits over OpenAI's interface,
for any client of it.
  loredit ui my-edits
  loredit serve my-edits

\b
Edit the facts of a benchmark set or of a list, and measure what each edit did
(as run_edit.py does).
  loredit run --editor roselora --hparams smollm2.yaml

\b
A grid of runs, over many processes or a cluster, side by side at the end.
  loredit sweep sweep.yaml --workers 4

\b
Find values for another model; they become a preset.
  loredit tune my-model.yaml --editor roselora --model path/to/model --data facts.json

\b
The same on several benchmark sets, in one table.
  loredit bench --editor lora --hparams smollm2-general.yaml --data DIR

\b
Write a run's page again; put runs side by side, case by case.
  loredit report results/roselora-smollm2-001
  loredit compare results/lora-smollm2-001 results/roselora-smollm2-001

\b
What else a model could do, before and after an edit.
  loredit ability my-edits --case water --data DIR --tasks arc_easy,piqa

\b
What the same methods give outside editing.
  loredit classify --task mrpc --editor roselora --data GLUE_DIR
  loredit generate --task e2e --editor lora --data e2e-dataset.zip

"""

app = typer.Typer(
    help=HELP, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
for command in (apply, add, update, remove, show, ask, chat, calibrate, merge, export, push, pull, ui, serve):
    app.command()(command)
app.command(help=RUN)(run)
app.command(help=SWEEP)(sweep)
app.command()(tune)
app.command(help=BENCH)(bench)
app.command()(report)
app.command()(compare)
app.command(help=CLASSIFY)(classify)
app.command(help=GENERATE)(generate)
app.command(help=ABILITY)(ability)
