"""Runs of ``loredit classify`` as Markdown tables: of one task, every method on five GLUE sets, or who wrote essays.

    python benchmarks/classification_table.py runs results/mrpc-*
    python benchmarks/classification_table.py glue --data DIR
    python benchmarks/classification_table.py essays --data ESSAYS.jsonl.gz

``runs``: a row for each run's folder, for an ensemble one for each way to join its members. ``glue``: trains what has
no results yet, the smallest set first, and prints the table after each run; stopped, it goes on where it was.
``essays``: the same of one classifier and of the ensemble, with what calibration makes of both, a run for each seed.
Means over seeds, in percent, with the standard deviation behind ±.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from loredit.data import human_vs_machine
from loredit.evaluation.classification.figures import plot_by_class
from loredit.evaluation.classification.runs import BOTH, FITTED, run
from loredit.evaluation.tuning.methods import FULL, PROBE, in_proportion, over_seeds, settings, ways

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

BATCH = 16

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
    splits = [ways(scores) for scores in metrics["splits"].values()]
    found = []
    for way in dict.fromkeys(way for split in splits for way in split):
        cells = []
        for split in splits:
            shown = _shown(next(iter(split.values())))
            # What is fitted on dev has no score there.
            cells += [_percent(split[way][metric]) if way in split else "" for metric in shown]
        said = f"{name}{', ensemble' * run['ensemble']}"
        found.append([f"{said} ({way})" if way else said, *cells, *rest])
    return found


def header(folder: Path) -> list[str]:
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = {split: ways(scores) for split, scores in metrics["splits"].items()}
    cells = [f"{split} {metric}" for split, part in parts.items() for metric in _shown(next(iter(part.values())))]
    return ["method", *cells, "trained numbers", "non-zero", "seconds"]


def _shown(scores: dict[str, Any]) -> list[str]:
    return [m for m in ("accuracy", "f1", "matthews_correlation", "pearson", "spearman") if m in scores]


def _percent(value: dict[str, Any]) -> str:
    std = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{std}"


def overrides(method: str, steps: int) -> dict[str, int]:
    """The length of a run, and what the preset's schedule counts in steps in proportion to it."""
    return in_proportion(settings(method, "classification", None, {}), steps)


def trained(task: str, method: str, folder: Path, **given: Any) -> None:
    """Run what has no results yet; one that was stopped begins anew."""
    if (folder / "metrics.json").is_file():
        return
    if (folder / "run.json").is_file():
        shutil.rmtree(folder)
    run(task, method, output=folder, progress=True, **given)


def glue_folder(folder: Path, task: str, method: str, steps: int) -> Path:
    """Where a run of this length lies."""
    return folder / f"{task}-{method}-{steps}"


def glue_table(folder: Path, lengths: Mapping[str, int], methods: Sequence[str]) -> list[list[str]]:
    """A row for each method: the dev score of each set, after so many steps on it."""
    table = [["method", *(f"{task}, {SETS[task].metric.replace('_', ' ')}" for task in lengths)]]
    table += [[name, *(scores[task] for task in lengths)] for name, scores in PUBLISHED.items()]
    for method in methods:
        cells = []
        for task, steps in lengths.items():
            path = glue_folder(folder, task, method, steps) / "metrics.json"
            found = json.loads(path.read_text())["splits"]["dev"][SETS[task].metric] if path.is_file() else None
            cells.append(_percent(found) if found else "")
        table.append([method, *cells])
    return table


KINDS = ("one", "ensemble")
BY_CLASS = ("precision", "recall", "f1")


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of runs of one seed each, over their seeds."""

    def only(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return value["seeds"][0] if "seeds" in value else {name: only(part) for name, part in value.items()}

    splits = [only(found["splits"]) for found in runs]
    return {
        "splits": {name: over_seeds([split[name] for split in splits]) for name in splits[0]},
        "seconds": sum(found["seconds"] for found in runs),
        "calibration": {kind: [one for found in runs for one in found["calibration"][kind]] for kind in FITTED[BOTH]},
    }


def essays_found(folder: Path) -> dict[str, dict[str, Any]]:
    """What there is of each kind of run."""
    paths = {kind: sorted(folder.glob(f"{kind}-*/metrics.json")) for kind in KINDS}
    return {kind: joined([json.loads(path.read_text()) for path in each]) for kind, each in paths.items() if each}


def essays_ways(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, Any, float]]:
    """By the way to an answer: its scores on test, those on dev (None for what is fitted there), and seconds."""
    return {
        f"{kind}, {way}" if way else kind: (part, ways(runs["splits"]["dev"]).get(way), runs["seconds"])
        for kind, runs in found.items()
        for way, part in ways(runs["splits"]["test"]).items()
    }


def essays_tables(found: Mapping[str, Mapping[str, Any]]) -> list[list[list[str]]]:
    """All ways to an answer on test; their scores by class; and the members of the ensemble."""
    numbers, by_class = essays_ways(found), list[list[str]]()
    classes = [*next(iter(numbers.values()))[0]["by_class"]]
    metrics = ("accuracy", "macro_f1", "log_loss", "calibration_error")
    whole = [["test", "dev accuracy", "accuracy", "macro F1", "log loss", "calibration error", "seconds"]]
    for name, (test, dev, seconds) in numbers.items():
        cells = [_percent(test[m]) if m != "log_loss" else _plain(test[m]) for m in metrics]
        whole.append([name, _percent(dev["accuracy"]) if dev else "", *cells, f"{seconds:.0f}"])
        each = [" / ".join(f"{100 * test['by_class'][c][m]['mean']:.0f}" for m in BY_CLASS) for c in classes]
        by_class.append([name, *each])
    tables = [whole, [["precision / recall / F1", *classes], *by_class]]
    if "ensemble" in found:
        members = [["member", "dev accuracy", "test accuracy", "temperature"]]
        for m, name in enumerate(classes[1:]):
            scores = [found["ensemble"]["splits"][split]["members"][name]["accuracy"] for split in ("dev", "test")]
            fitted = [one["temperatures"][m] for one in found["ensemble"]["calibration"]["temperature"]]
            members.append(
                [f"{classes[0]} against {name}", *map(_percent, scores), ", ".join(f"{t:.2f}" for t in fitted)]
            )
        tables.append(members)
    return tables


def _plain(value: dict[str, Any]) -> str:
    return f"{value['mean']:.2f}" + ("" if value["std"] is None else f" ± {value['std']:.2f}")


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
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every run; else three to five epochs, of SST-2's sample one.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str, typer.Option()] = "auto",
    only_table: Annotated[bool, typer.Option("--table", help="Of what there is; train nothing.")] = False,
) -> None:
    """Every method on every set."""
    lengths = {task: steps or SETS[task].steps for task in tasks.split(",")}
    names = methods.split(",")
    for task, length in () if only_table else lengths.items():
        for method in names:
            trained(
                task,
                method,
                glue_folder(output, task, method, length),
                data=data,
                overrides=overrides(method, length),
                seeds=range(seeds),
                limit=SETS[task].limit,
                device=device,
            )
            _print(glue_table(output, lengths, names))
    if only_table:
        _print(glue_table(output, lengths, names))


@app.command()
def essays(
    data: Annotated[str, typer.Option(help="JSONL file of essays, or its folder.")],
    output: Annotated[Path, typer.Option(help="Folder of all runs, one for each choice of settings.")] = Path(
        "results/essays"
    ),
    method: Annotated[str, typer.Option(help="An editor, full or probe.")] = "lora",
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    limit: Annotated[int, typer.Option(min=1, help="Train on a sample of this many essays.")] = 1200,
    epochs: Annotated[int, typer.Option(min=1, help="Of the one classifier, and of each member over its essays.")] = 2,
    layers: Annotated[str, typer.Option(help="Blocks that an editor patches.")] = "3-5",
    max_length: Annotated[int | None, typer.Option(min=4, help="Tokens of an essay; else the task's own.")] = None,
    dtype: Annotated[str, typer.Option()] = "float32",
    device: Annotated[str, typer.Option()] = "auto",
    figure: Annotated[Path | None, typer.Option(help="Draw the scores by class to this file.")] = None,
    only_table: Annotated[bool, typer.Option("--table", help="Of what there is; train nothing.")] = False,
) -> None:
    """One classifier of all authors beside the one-against-human ensemble, each as it is and calibrated on dev."""
    classes = len(human_vs_machine.load(data).classes)
    for seed in [] if only_table else range(seeds):
        for kind in KINDS:
            essays_each = limit * 2 // classes if kind == "ensemble" else limit
            trained(
                "human-vs-machine",
                method,
                output / f"{kind}-{seed}",
                data=data,
                overrides={"steps": math.ceil(essays_each * epochs / BATCH)}
                | ({} if method in (FULL, PROBE) else {"layers": layers}),
                seeds=[seed],
                batch_size=BATCH,
                limit=limit,
                max_length=max_length,
                ensemble=kind == "ensemble",
                calibrate=BOTH,
                dtype=dtype,
                device=device,
            )
    found = essays_found(output)
    for table in essays_tables(found) if found else []:
        _print(table)
        print()
    if found and figure:
        by_class = {name: test["by_class"] for name, (test, *_) in essays_ways(found).items()}
        plot_by_class(by_class, "who wrote an essay, test", figure)


if __name__ == "__main__":
    app()
