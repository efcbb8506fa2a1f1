"""Writing about E2E's restaurants: every method after the same training, beside published rows, in docs/generation.md.

    python benchmarks/generation_table.py --data e2e-dataset.zip

Each method is a run of its own in the output folder; what is finished is not run again, what was interrupted goes on.
The rows are collected in benchmarks/results/generation-e2e.json, from which the page's table is made after each run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit.engine.files import replacing  # noqa: E402
from loredit.evaluation.generation.runs import run  # noqa: E402
from loredit.evaluation.tuning.methods import settings  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PAGE = ROOT / "docs" / "generation.md"
RESULTS = ROOT / "benchmarks" / "results" / "generation-e2e.json"

UNTRAINED = "untrained"
METHODS = ("lora", "roselora", "simplexlora", "adalora", "adapter", "adapter-small", "prefix", "ft-top2", UNTRAINED)
"""Editors, presets of editors (``adapter-small``), and the model as it is."""

SCORES = ("bleu", "nist", "meteor", "rouge_l", "cider")
DECIMALS = {"nist": 2, "cider": 2}
BATCH = 8


class Row(BaseModel):
    """What a method writes."""

    method: str
    pairs: int
    epochs: float
    items: int
    seeds: int
    trained: int
    """Numbers that training changes."""
    seconds: float
    """Of training."""
    scores: dict[str, tuple[float, float | None]]
    """Mean over seeds, and standard deviation."""


class Results(BaseModel):
    """What the page is made from."""

    rows: list[Row] = []


def overrides(editor: str, preset: str, steps: int) -> dict[str, object]:
    """A run of so many steps, with what the preset's schedule counts in steps in proportion."""
    own = settings(editor, "generation", preset, {})
    counted = {name: getattr(own, name) for name in own.in_steps}
    return {name: max(1, round(n * steps / own.steps)) for name, n in counted.items() if n is not None}


def measured(
    method: str, data: str, folder: Path, *, limit: int, epochs: float, items: int, seeds: int, device: str
) -> Row:
    """Run a method, or go on with its run."""
    train = method != UNTRAINED
    preset = method if train else "lora"
    editor = preset.removesuffix("-small")
    steps = max(1, round(limit * epochs / BATCH))
    done = folder / method
    found = run(
        "e2e",
        editor,
        data=data,
        hparams=preset,
        overrides=overrides(editor, preset, steps),
        seeds=range(seeds if train else 1),
        batch_size=BATCH,
        limit=limit,
        items=items,
        train=train,
        device=device,
        output=done,
        resume=done.is_dir(),
        progress=True,
    ).metrics
    return Row(
        method=method,
        pairs=limit if train else 0,
        epochs=epochs if train else 0,
        items=items,
        seeds=seeds if train else 1,
        trained=found["parameters"]["trained"] if train else 0,
        seconds=found["seconds"] if train else 0.0,
        scores={name: (value["mean"], value["std"]) for name, value in found["scores"].items()},
    )


def table(results: Results) -> str:
    """The page's table."""
    rows = []
    for row in results.rows:
        cells = []
        for name in SCORES:
            mean, std = row.scores[name]
            places = DECIMALS.get(name, 1)
            cells.append(f"{mean:.{places}f}" + ("" if std is None else f" ± {std:.{places}f}"))
        rows.append([row.method, f"{row.trained:,}", *cells, f"{row.seconds:.0f}"])
    named = [name.upper().replace("_", "-") if name != "cider" else "CIDEr" for name in SCORES]
    return pages.table(["", "trained numbers", *named, "seconds to train"], rows)


def read() -> Results:
    return Results.model_validate_json(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else Results()


def joined(results: Results, row: Row, order: Sequence[str] = METHODS) -> Results:
    """With a row in place of an older one of the same method."""
    rows = {own.method: own for own in [*results.rows, row]}
    return Results(rows=sorted(rows.values(), key=lambda own: order.index(own.method)))


@app.command(help=__doc__)
def main(
    data: Annotated[str, typer.Option(help="e2e-dataset.zip, or the folder of its files.")],
    methods: Annotated[str, typer.Option(help="Methods with commas between.")] = ",".join(METHODS),
    limit: Annotated[int, typer.Option(min=1, help="Train on a sample of this many pairs.")] = 1260,
    epochs: Annotated[float, typer.Option(min=0.1)] = 2,
    items: Annotated[int, typer.Option(min=1, help="Write about a sample of this many items of test.")] = 100,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option()] = "auto",
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("results/generation-e2e"),
) -> None:
    for method in methods.split(","):
        row = measured(method, data, output, limit=limit, epochs=epochs, items=items, seeds=seeds, device=device)
        results = joined(read(), row)
        with replacing(RESULTS) as path:
            path.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
        pages.fill(PAGE, "results", table(results))
        typer.echo(table(results))


if __name__ == "__main__":
    app()
