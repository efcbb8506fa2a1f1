"""Writing about E2E's restaurants: every method after the same training, in docs/generation.md.

    python benchmarks/generation_table.py --data e2e-dataset.zip

Each method is a run of its own in the output folder; what is finished is not run again, what was interrupted goes on.
The rows are collected in benchmarks/results/generation-e2e.json, from which the page's table is made after each run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit.data.messages import unknown  # noqa: E402
from loredit.evaluation.generation.runs import run  # noqa: E402
from loredit.evaluation.tuning.methods import in_proportion, settings  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PAGE = ROOT / "docs" / "generation.md"
RESULTS = ROOT / "benchmarks" / "results" / "generation-e2e.json"

UNTRAINED = "untrained"
PRESETS = {
    "lora": "lora",
    "roselora": "roselora",
    "simplexlora": "simplexlora",
    "adalora": "adalora",
    "adapter": "adapter",
    "adapter-small": "adapter",
    "prefix": "prefix",
    "ft-top2": "ft-top2",
}
"""The rows' presets in ``hparams/generation/``, and the method of each; the model as it is comes last."""
METHODS = (*PRESETS, UNTRAINED)

SCORES = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
DECIMALS = {"nist": 2, "cider": 2}
BATCH = 8


class Budget(BaseModel):
    """What every method gets, and what it writes about."""

    pairs: int
    epochs: float
    seeds: int
    items: int


class Row(BaseModel):
    """What a method writes."""

    trained: int
    """Numbers that training changes."""
    seconds: float
    """Of training."""
    scores: dict[str, tuple[float, float | None]]
    """Mean over seeds, and standard deviation."""


class Results(BaseModel):
    """What the page is made from."""

    budget: Budget
    rows: dict[str, Row]


def measured(method: str, budget: Budget, data: str, device: str, folder: Path) -> Row:
    """Run a method, or go on with its run."""
    train = method != UNTRAINED
    preset = method if train else "lora"
    editor = PRESETS[preset]
    steps = max(1, round(budget.pairs * budget.epochs / BATCH))
    found = run(
        "e2e",
        editor,
        data=data,
        hparams=preset,
        overrides=in_proportion(settings(editor, "generation", preset, {}), steps),
        seeds=range(budget.seeds if train else 1),
        batch_size=BATCH,
        limit=budget.pairs,
        items=budget.items,
        train=train,
        device=device,
        output=folder,
        resume=folder.is_dir(),
        progress=True,
    ).metrics
    return Row(
        trained=found["parameters"]["trained"] if train else 0,
        seconds=found["seconds"] if train else 0.0,
        scores={name: (value["mean"], value["std"]) for name, value in found["scores"].items()},
    )


def before(budget: Budget) -> Results:
    """The results so far. Leaves where they are of another budget."""
    if not RESULTS.is_file():
        return Results(budget=budget, rows={})
    found = Results.model_validate_json(RESULTS.read_text(encoding="utf-8"))
    if found.budget != budget:
        sys.exit(f"{RESULTS} holds rows of another budget ({found.budget}); move it away for a new table")
    return found


def table(results: Results) -> str:
    """The page's table, and what its rows were given."""
    rows = []
    for method, row in sorted(results.rows.items(), key=lambda item: METHODS.index(item[0])):
        cells = []
        for name in SCORES:
            mean, std = row.scores[name]
            places = DECIMALS.get(name, 1)
            cells.append(f"{mean:.{places}f}" + ("" if std is None else f" ± {std:.{places}f}"))
        rows.append([method, f"{row.trained:,}", *cells, f"{row.seconds:.0f}"])
    own = results.budget
    given = f"{own.pairs:,} pairs, {own.epochs:g} epochs, seeds: {own.seeds}; {own.items} items of the test set:"
    return f"{given}\n\n{pages.table(['', 'trained numbers', *SCORES.values(), 'seconds to train'], rows)}"


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
    names, budget = methods.split(","), Budget(pairs=limit, epochs=epochs, seeds=seeds, items=items)
    if wrong := [name for name in names if name not in METHODS]:
        sys.exit(unknown("method", wrong[0], METHODS))
    before(budget)  # so that rows which cannot stand together cost no training
    for method in names:
        row = measured(method, budget, data, device, output / method)
        results = before(budget)
        results.rows[method] = row
        pages.keep(RESULTS, results)
        pages.fill(PAGE, "results", table(results))
        typer.echo(table(results))


if __name__ == "__main__":
    app()
