"""``loredit generate``: the editing methods on writing about data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import hparams as presets
from ..evaluation.tuning.methods import settings
from .common import Device, Dtype, Set, explained, out, quiet

# \b keeps the lines of a paragraph as they are.
HELP = """
Train a model to write about data with one of the editors, seeds side by side, let it write by beam search, and score
the texts.

\b
E2E from its zip file as released, on SmolLM2-135M; without --data from the hub.
  loredit generate --task e2e --editor lora --data e2e-dataset.zip --limit 1260

\b
What the model writes untrained, about 50 items.
  loredit generate --task e2e --editor lora --data DIR --no-train --items 50

Tasks: e2e, webnlg, dart (triples), xsum (articles).
"""

RESUMABLE = "interrupted; the same command with --resume goes on"


def generate(
    task: Annotated[str, typer.Option(help="Data set; an unknown name lists all.")],
    editor: Annotated[
        str,
        typer.Option(help="lora, prefix, ...; full: fine-tune all weights; ft-top2: fine-tune the two last blocks."),
    ],
    data: Annotated[str, typer.Option(help="Zip file or folder with the data, or hub.")] = "hub",
    model: Annotated[
        str | None, typer.Option(help="Hub id, local folder or short name (smollm2-135m); else the preset's.")
    ] = None,
    hparams: Annotated[
        str | None, typer.Option(help="YAML file, or a preset in hparams/generation/; the editor's if not given.")
    ] = None,
    set_: Set = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train with this many seeds: 0, 1, ...")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step, for each seed.")] = 8,
    smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="Label smoothing.")] = 0.1,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on a sample of this many pairs.")] = None,
    split: Annotated[str, typer.Option(help="Whose items are written about: test or dev.")] = "test",
    items: Annotated[int | None, typer.Option(min=1, help="Write about a sample of this many items.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1: greedy.")] = 10,
    length_penalty: Annotated[float, typer.Option(help="Exponent of a text's length.")] = 0.9,
    no_repeat_ngram: Annotated[int, typer.Option(min=0, help="No n-gram of this length twice; 0: any.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="The longest text.")] = 100,
    decode_batch: Annotated[int, typer.Option(min=1, help="Items that are written about at once.")] = 8,
    metrics: Annotated[str | None, typer.Option(help="Scores, as in bleu,nist; the task's if not given.")] = None,
    train: Annotated[bool, typer.Option("--train/--no-train", help="Or let the model write as it is.")] = True,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty rows of the data.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; a new one below results/ if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a model brings along.")
    ] = False,
) -> None:
    with explained(RESUMABLE):
        overrides = presets.parsed(set_ or [])
        settings(editor, "generation", hparams, overrides)

        from ..evaluation.generation.decoding import Beam
        from ..evaluation.generation.metrics import named
        from ..evaluation.generation.runs import run

        quiet()
        result = run(
            task,
            editor,
            data=data,
            hparams=hparams,
            overrides=overrides,
            model=model,
            seeds=range(seeds),
            batch_size=batch_size,
            smoothing=smoothing,
            limit=limit,
            split=split,
            items=items,
            beam=Beam(beams, length_penalty, no_repeat_ngram, tokens),
            decode_batch=decode_batch,
            metrics=named(metrics.split(",")) if metrics else None,
            train=train,
            skip_bad=skip_bad,
            device=device,
            dtype=dtype,
            output=output,
            resume=resume,
            trust_remote_code=trust_remote_code,
            progress=True,
        )
    out.print(_table(result.metrics, f"{editor} on {task}, {result.metrics['items']} items of {split}"))
    if "parameters" in result.metrics:
        parameters = result.metrics["parameters"]
        out.print(
            f"trained {parameters['trained']:,} numbers ({100 * parameters['trained'] / parameters['model']:.2f} % of "
            f"the model's) in {result.metrics['seconds']:.0f} s"
        )
    out.print(f"results in {result.folder}", soft_wrap=True)


def _table(metrics: dict[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("metric", "mean", "std"):
        table.add_column(column, justify="left" if column == "metric" else "right")

    def add(scores: dict[str, Any], ending: str) -> None:
        for name, value in scores.items():
            if "mean" in value:
                std = "" if value["std"] is None else f"{value['std']:.2f}"
                table.add_row(f"{name}{ending}", f"{value['mean']:.2f}", std)
            else:
                add(value, f" ({name})")

    add(metrics["scores"], "")
    return table
