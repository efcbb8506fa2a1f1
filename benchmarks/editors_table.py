"""The table of docs/editors.md: every editor at its tuned preset, and LoRA and RoseLoRA at the published values.

    python benchmarks/editors_table.py --data ZsRE-test-1001.json

Each editor is a run of its own in the output folder; what is finished there is kept, so the same command goes on after
an interruption. The numbers are collected in benchmarks/results/editors-zsre.json, from which ``--render`` makes the
table and the figures again. ``--editors roselora lora:smollm2-published lora:my.yaml`` runs these alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit.editors import available, find  # noqa: E402
from loredit.editors import editor as editor_of  # noqa: E402
from loredit.evaluation.metrics import Summary  # noqa: E402
from loredit.evaluation.report.figures import plot_sites  # noqa: E402
from loredit.evaluation.runs import run  # noqa: E402
from loredit.evaluation.scores import FactScores  # noqa: E402

PRESET = "smollm2"
EDITORS = [*available(), "roselora:smollm2-fluent", "lora:smollm2-published", "roselora:smollm2-published"]
PAGE = ROOT / "docs" / "editors.md"
FIGURES = ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results" / "editors-zsre.json"
SHOWN = ("edit_success", "generalization", "portability", "locality", "fluency")


class Row(BaseModel):
    """One editor at one preset."""

    label: str
    hparams: dict[str, Any]
    summary: Summary
    trainable: int
    """Numbers that one edit trains."""
    edit_seconds: float
    """Wall time of training a fact ..."""
    score_seconds: float
    """... and of scoring it, the unedited and the edited model's sampled texts included; both means."""
    ranks: dict[str, float]
    """Mean rank by site, for editors that allocate it."""
    machine: str
    versions: dict[str, str]


class Results(BaseModel):
    """What the page is made from."""

    settings: dict[str, Any]
    """What all rows share: model, data, seed, dtype."""
    rows: dict[str, Row]


def row(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], Row]:
    """Run one editor, or go on with its run, and collect its numbers; beside them, the settings of the run."""
    editor, _, hparams = name.partition(":")
    hparams = hparams or PRESET
    stem = Path(hparams).stem
    result = run(
        editor,
        hparams,
        data=options.data,
        limit=options.limit,
        output=options.output / f"{editor}-{stem}",
        resume=True,
        progress=True,
    )
    record = json.loads((result.folder / "run.json").read_text(encoding="utf-8"))
    lines = (result.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [FactScores.model_validate_json(line) for line in lines]
    ranks = [one.report["ranks"] for one in scores if "ranks" in one.report]
    data = record["data"] | {"source": Path(options.data).name}
    return {"data": data} | {key: record[key] for key in ("model", "seed", "dtype")}, Row(
        label=", ".join(filter(None, [find(editor).__name__, stem.removeprefix(PRESET).lstrip("-")])),
        hparams=record["hparams"],
        summary=result.summary,
        trainable=trainable(editor, hparams),
        edit_seconds=fmean(one.edit_seconds for one in scores),
        score_seconds=fmean(one.score_seconds for one in scores),
        ranks={site: fmean(edit[site] for edit in ranks) for site in (ranks[0] if ranks else ())},
        machine=record["machine"],
        versions=record["versions"],
    )


def trainable(editor: str, hparams: str) -> int:
    return sum(p[0].numel() for p in editor_of(editor, hparams).fresh([0]).parameters())


def added(settings: dict[str, Any], new: Row, name: str) -> Results:
    """The results so far with one row more, or another in its place."""
    before = Results(settings=settings, rows={})
    if RESULTS.exists():
        before = Results.model_validate_json(RESULTS.read_text(encoding="utf-8"))
    if differing := [key for key in settings if before.settings.get(key) != settings[key]]:
        sys.exit(f"{RESULTS} holds rows with other settings ({', '.join(differing)}); move it away for a new table")
    rows = before.rows | {name: new}
    order = [*EDITORS, *rows]
    return Results(settings=settings, rows=dict(sorted(rows.items(), key=lambda item: order.index(item[0]))))


def render(results: Results) -> None:
    """The page's table and figures, from the numbers alone."""
    rows, data = list(results.rows.values()), results.settings["data"]
    metrics = rows[0].summary.metrics
    labels = [metrics[name].label for name in SHOWN]
    headings = ("", *labels, "trained numbers", "not zero", "s to train", "s to score")
    lines = [
        ("unedited", *(pages.mean(metrics[name].base) for name in SHOWN), *[pages.NOTHING] * 4),
        *(_cells(each) for each in rows),
    ]
    failed = [
        f"{each.label}: {len(each.summary.failed)} edits failed and count in no mean"
        for each in rows
        if each.summary.failed
    ]
    text = [
        f"The first {data['facts']} cases of {data['source']}, the model in {results.settings['dtype']}.",
        pages.table(headings, lines),
        *failed,
        *pages.figure(
            {each.label: each.summary for each in rows},
            FIGURES / "editors.png",
            "generalization against locality, and portability, by editor",
        ),
    ]
    for name, each in results.rows.items():
        if each.ranks:
            figure = f"ranks-{name.replace(':', '-')}.png"
            plot_sites([each.ranks], FIGURES / figure, title=f"{each.label}: mean rank")
            text.append(f"![mean rank of {each.label} by site](figures/{figure})")
    pages.fill(PAGE, "table", "\n\n".join(text))


def _cells(each: Row) -> Sequence[str]:
    return (
        each.label,
        *(pages.mean(found.edited) if (found := each.summary.metrics.get(name)) else pages.NOTHING for name in SHOWN),
        f"{each.trainable:,}",
        f"{100 * (each.summary.nonzero_share or 0):.0f} %",
        f"{each.edit_seconds:.2f}",
        f"{each.score_seconds:.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="samples", help="facts, as for run_edit.py")
    parser.add_argument("--limit", type=int, default=100, help="how many of them")
    parser.add_argument("--editors", nargs="+", default=EDITORS, metavar="EDITOR[:HPARAMS]", help="rows to run")
    parser.add_argument("--output", type=Path, default=Path("results/editors-table"), help="folder of the runs")
    parser.add_argument("--render", action="store_true", help=f"only make the page again from {RESULTS.name}")
    options = parser.parse_args(arguments)
    if options.render:
        render(Results.model_validate_json(RESULTS.read_text(encoding="utf-8")))
        return
    disable_progress_bar()  # "Loading weights" is over in a second; the bar that matters is ours
    for name in options.editors:
        print(name, file=sys.stderr)
        try:
            results = added(*row(name, options), name)
        except ValueError as error:
            sys.exit(f"{name}: {error}")
        pages.keep(RESULTS, results)
        render(results)


if __name__ == "__main__":
    main()
