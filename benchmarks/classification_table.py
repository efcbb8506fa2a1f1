"""Runs of ``loredit classify`` side by side, as a Markdown table.

    python benchmarks/classification_table.py results/mrpc-*

A row for each run's folder, for an ensemble one for each way to join its members. Mean over seeds, in percent, with the
standard deviation behind ±.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


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


def main(folders: Annotated[list[Path], typer.Argument(help="Folders of runs on one task.")]) -> None:
    table = [header(folders[0]), *(row for folder in folders for row in rows(folder))]
    table.insert(1, ["---", *["---:"] * (len(table[0]) - 1)])
    print("\n".join(f"| {' | '.join(row)} |" for row in table))


if __name__ == "__main__":
    typer.run(main)
