"""Runs of ``loredit classify`` as Markdown tables: of one task, or every method on five GLUE sets.

    python benchmarks/classification_table.py runs results/mrpc-*
    python benchmarks/classification_table.py glue --data DIR

``runs``: a row for each run's folder, for an ensemble one for each way to join its members. ``glue``: trains what has
no results yet, the smallest set first, and prints the table after each run; stopped, it goes on where it was. Means
over seeds, in percent, with the standard deviation behind ±.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from loredit.evaluation.classification.runs import run
from loredit.evaluation.tuning.methods import settings

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Set:
    """A GLUE set: how long it is trained on, and what it is usually scored by."""

    steps: int
    metric: str
    limit: int | None = None


SETS = {
    "rte": Set(780, "accuracy"),  # 5 epochs at 16 examples a step
    "mrpc": Set(690, "accuracy"),  # 3
    "stsb": Set(1080, "pearson"),  # 3
    "cola": Set(1605, "matthews_correlation"),  # 3
    "sst2": Set(1000, "accuracy", limit=16_000),  # 1, of a sample
}
METHODS = ("probe", "lora", "roselora", "simplexlora", "adalora", "adapter", "prefix", "bitfit", "full")

PUBLISHED = {
    # Hu et al. (2021), https://arxiv.org/abs/2106.09685, table 2, as in https://github.com/microsoft/LoRA. Dev sets.
    # Its LoRA on MRPC, RTE and STS-B begins from a model that was trained on MNLI before.
    "RoBERTa-base, full, published": {"rte": "78.7", "mrpc": "90.2", "stsb": "91.2", "cola": "63.6", "sst2": "94.8"},
    "RoBERTa-base, LoRA, published": {
        "rte": "86.6 ± 0.7",
        "mrpc": "89.7 ± 0.7",
        "stsb": "91.5 ± 0.2",
        "cola": "63.4 ± 1.2",
        "sst2": "95.1 ± 0.2",
    },
}


def rows(folder: Path) -> list[list[str]]:
    """Method, metrics of each scored split, trained numbers, non-zero share and training seconds."""
    run, metrics = (json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json"))
    name = run["editor"] + ("" if run["train"] else ", untrained")
    parameters = metrics["parameters"]
    nonzero = parameters["nonzero_share"]
    rest = [
        f"{parameters['update']:,}" if run["train"] else "0",
        f"{100 * sum(nonzero) / len(nonzero):.0f} %",
        f"{metrics['seconds']:.0f}",
    ]
    rules = next(iter(metrics["splits"].values())).get("rules", {"": None})
    found = []
    for rule in rules:
        cells = []
        for scores in metrics["splits"].values():
            part = scores["rules"][rule] if rule else scores
            cells += [_percent(part[metric]) for metric in _shown(part)]
        found.append([f"{name}, ensemble ({rule})" if rule else name, *cells, *rest])
    return found


def header(folder: Path) -> list[str]:
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = {split: scores.get("rules", {"": scores}) for split, scores in metrics["splits"].items()}
    cells = [f"{split} {metric}" for split, part in parts.items() for metric in _shown(next(iter(part.values())))]
    return ["method", *cells, "trained numbers", "non-zero", "seconds"]


def _shown(scores: dict[str, Any]) -> list[str]:
    return [m for m in ("accuracy", "f1", "matthews_correlation", "pearson", "spearman") if m in scores]


def _percent(value: dict[str, Any]) -> str:
    std = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{std}"


def overrides(method: str, task: str) -> dict[str, int]:
    """The length of a run on this set, and what the preset's schedule counts in steps in proportion to it."""
    preset = settings(method, "classification", None, {})
    share = SETS[task].steps / preset.steps
    counted = {name: getattr(preset, name) for name in preset.in_steps}
    return {name: max(1, round(n * share)) for name, n in counted.items() if n is not None}


def trained(task: str, method: str, data: str, folder: Path, seeds: int, device: str) -> None:
    """Run what has no results yet; one that was stopped begins anew."""
    if (folder / "metrics.json").is_file():
        return
    if (folder / "run.json").is_file():
        shutil.rmtree(folder)
    run(
        task,
        method,
        data=data,
        overrides=overrides(method, task),
        seeds=range(seeds),
        limit=SETS[task].limit,
        device=device,
        output=folder,
        progress=True,
    )


def glue_table(folder: Path, tasks: Sequence[str], methods: Sequence[str]) -> list[list[str]]:
    """A row for each method: the dev score of each set."""
    table = [["method", *(f"{task}, {SETS[task].metric.replace('_', ' ')}" for task in tasks)]]
    table += [[name, *(scores[task] for task in tasks)] for name, scores in PUBLISHED.items()]
    for method in methods:
        cells = []
        for task in tasks:
            path = folder / f"{task}-{method}" / "metrics.json"
            found = json.loads(path.read_text())["splits"]["dev"][SETS[task].metric] if path.is_file() else None
            cells.append(_percent(found) if found else "")
        table.append([method, *cells])
    return table


def _print(table: list[list[str]]) -> None:
    rows = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


@app.command()
def runs(folders: Annotated[list[Path], typer.Argument(help="Folders of runs on one task.")]) -> None:
    """The table of one task's runs."""
    _print([header(folders[0]), *(row for folder in folders for row in rows(folder))])


@app.command()
def glue(
    data: Annotated[str, typer.Option(help="Folder with GLUE's folders, or hub.")] = "hub",
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("results/glue"),
    tasks: Annotated[str, typer.Option(help="Sets with commas between.")] = ",".join(SETS),
    methods: Annotated[str, typer.Option(help="Methods with commas between.")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str, typer.Option()] = "auto",
    only_table: Annotated[bool, typer.Option("--table", help="Of what there is; train nothing.")] = False,
) -> None:
    """Every method on every set."""
    sets, names = tasks.split(","), methods.split(",")
    for task in [] if only_table else sets:
        for method in names:
            trained(task, method, data, output / f"{task}-{method}", seeds, device)
            _print(glue_table(output, sets, names))
    if only_table:
        _print(glue_table(output, sets, names))


if __name__ == "__main__":
    app()
