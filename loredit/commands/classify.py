"""``loredit classify``: the editing methods on text classification and multiple choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import hparams as presets
from ..evaluation.tuning.methods import settings, ways
from .common import Device, Dtype, Set, explained, out, quiet

# \b keeps the lines of a paragraph as they are.
HELP = """
Train a text classifier or multiple-choice answerer with one of the editors, several seeds side by side, and score it.

\b
MRPC from GLUE's own files in DIR (or DIR/mrpc), on MiniLM-L6; without --data
from the hub.
  loredit classify --task mrpc --editor roselora --data DIR

\b
A binary classifier for each machine against human, joined to one answer.
  loredit classify --task human-vs-machine --editor lora --ensemble \\
      --data texts.jsonl

Tasks: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, aqua, human-vs-machine.
"""


def classify(
    task: Annotated[str, typer.Option(help="Data set; an unknown name lists all.")],
    editor: Annotated[
        str, typer.Option(help="lora, roselora, ...; full: fine-tune all weights; probe: train the head alone.")
    ],
    data: Annotated[str, typer.Option(help="Folder or file with the data, or hub.")] = "hub",
    model: Annotated[
        str | None, typer.Option(help="Hub id, local folder or short name (minilm-l6); else the preset's.")
    ] = None,
    hparams: Annotated[
        str | None, typer.Option(help="YAML file, or a preset in hparams/classification/; the editor's if not given.")
    ] = None,
    set_: Set = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train with this many seeds: 0, 1, ...")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a step, for each seed.")] = 16,
    head_lr: Annotated[
        float, typer.Option(min=0, help="Learning rate of the head beside an editor; full and probe use their own.")
    ] = 3e-4,
    max_length: Annotated[
        int | None,
        typer.Option(min=4, help="Texts are cut to this many tokens; else to 128, for human-vs-machine to 256."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on a sample of this many examples.")] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="One binary classifier for each machine against human.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Fit temperature, stacking, both or none on dev, to be scored on test; else both with --ensemble, "
            "none without."
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Score the model as it is, with fresh heads.")
    ] = True,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty lines of the data.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; a new one below results/ if not given.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a model brings along.")
    ] = False,
) -> None:
    with explained():
        overrides = presets.parsed(set_ or [])
        settings(editor, "classification", hparams, overrides)

        from transformers.utils.logging import set_verbosity_error

        try:
            from ..evaluation.classification.runs import run
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}; pip install 'loredit[classification]' brings it") from None
        quiet()
        set_verbosity_error()  # a fresh head is what is wanted, and transformers would warn of it
        result = run(
            task,
            editor,
            data=data,
            hparams=hparams,
            overrides=overrides,
            model=model,
            seeds=range(seeds),
            batch_size=batch_size,
            head_lr=head_lr,
            max_length=max_length,
            limit=limit,
            ensemble=ensemble,
            calibrate=calibrate,
            train=train,
            skip_bad=skip_bad,
            device=device,
            dtype=dtype,
            output=output,
            trust_remote_code=trust_remote_code,
            progress=True,
        )
    out.print(_table(result.metrics, f"{editor} on {task}, {seeds} seeds"))
    for split, scores in result.metrics["splits"].items():
        for way, part in ways(scores).items():
            if "by_class" in part:
                out.print(_by_class(part, f"{split} {way}".strip()))
    parameters = result.metrics["parameters"]
    out.print(
        f"trained {parameters['update']:,} + {parameters['head']:,} in the head "
        f"({100 * parameters['share']:.2f} % of the model) in {result.metrics['seconds']:.0f} s"
    )
    out.print(f"results in {result.folder}; to look at: {result.folder / 'report.html'}", soft_wrap=True)


def _table(metrics: dict[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("split", "metric", "mean", "std"):
        table.add_column(column, justify="left" if column in ("split", "metric") else "right")
    for split, scores in metrics["splits"].items():
        for name, part in {**ways(scores), **scores.get("members", {})}.items():
            for metric, value in part.items():
                if isinstance(value, dict) and "mean" in value:
                    std = "" if value["std"] is None else f"{value['std']:.4f}"
                    table.add_row(f"{split} {name}".strip(), metric, f"{value['mean']:.4f}", std)
    return table


def _by_class(scores: dict[str, Any], title: str) -> Table:
    """Scores of each class, and what its examples were taken for: counts over all seeds."""
    table = Table(title=f"{title}, by class", title_justify="left")
    table.add_column("class")
    for column in ("precision", "recall", "F1", *(f"as {name}" for name in scores["by_class"])):
        table.add_column(column, justify="right")
    for (name, part), row in zip(scores["by_class"].items(), scores["confusion"], strict=True):
        means = [f"{part[metric]['mean']:.4f}" for metric in ("precision", "recall", "f1")]
        table.add_row(name, *means, *map(str, row))
    return table
