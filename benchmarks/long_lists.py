"""Long lists of facts in one set of weights, at once or one after another: what is learned, kept and lost.

    python benchmarks/long_lists.py --data zsre-2000.json --text wikitext2/valid.txt --editors finetune:smollm2-list
    python benchmarks/long_lists.py --data counterfact-2000.json --text wikitext2/valid.txt \\
        --editors memit alphaedit --mode sequential --chunk 100 --numbers 100 300 1000 2000

Each editor and number of facts is a run of its own in the output folder (a sequence one run, scored at each number);
what is finished is not run again, and what was interrupted goes on. The rows are collected in
benchmarks/results/long-lists.json, from which ``--render`` makes the table of docs/fact-lists.md and its figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.figure import Figure
from pydantic import BaseModel
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit import hparams as presets  # noqa: E402
from loredit.editors import find  # noqa: E402
from loredit.engine.files import replacing  # noqa: E402
from loredit.evaluation.retention import Checkpoint  # noqa: E402
from loredit.evaluation.runs import RESULTS as LINES  # noqa: E402
from loredit.evaluation.runs import run  # noqa: E402
from loredit.evaluation.scores import FactScores  # noqa: E402

PAGE = ROOT / "docs" / "fact-lists.md"
FIGURE = ROOT / "docs" / "figures" / "long-lists.png"
RESULTS = ROOT / "benchmarks" / "results" / "long-lists.json"
CHARACTERS = 60_000
SHOWN = (
    "edit_success",
    "strict_edit_success",
    "generalization",
    "portability",
    "locality",
    "contains_edit_success",
    "contains_generalization",
)
DRAWN = ("edit_success", "generalization", "locality")


class Row(BaseModel):
    """What one set of weights is after so many facts."""

    label: str
    data: str
    first: int
    """The number of the first fact in the file."""
    mode: str
    state: Checkpoint
    seconds: float
    """A fact, to edit."""

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        return self.label, self.data, self.first, self.mode, self.state.edits


class Results(BaseModel):
    """What the page is made from."""

    rows: list[Row] = []


def measured(name: str, facts: int, points: Sequence[int], options: argparse.Namespace) -> list[Row]:
    """Run one editor on so many facts, or go on with its run."""
    editor, _, hparams = name.partition(":")
    stem, data = Path(hparams or "smollm2").stem, Path(options.data).stem
    mode = options.mode if options.chunk == 1 else f"{options.mode} by {options.chunk}"
    short = options.output / "text.txt"
    short.parent.mkdir(parents=True, exist_ok=True)
    short.write_text(Path(options.text).read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
    result = run(
        editor,
        hparams or "smollm2",
        data=options.data,
        offset=options.offset,
        limit=facts,
        mode=options.mode,
        chunk=options.chunk,
        checkpoints=points if options.mode == "sequential" else None,
        perplexity_text=short,
        overrides=presets.parsed(options.set),
        measures=("generation",) if options.free else (),
        fluency=False,
        output=options.output / "-".join([editor, stem, *options.set, data, str(options.offset), mode, str(facts)]),
        resume=True,
        progress=True,
    )
    lines = (result.folder / LINES).read_text(encoding="utf-8").splitlines()
    seconds = fmean(FactScores.model_validate_json(line).edit_seconds for line in lines)
    label = ", ".join([find(editor).__name__, *([stem] if stem != "smollm2" else []), *options.set])
    return [
        Row(label=label, data=data, first=options.offset, mode=mode, state=state, seconds=seconds)
        for state in result.checkpoints
    ]


def added(rows: Iterable[Row]) -> Results:
    """The results so far with these rows, which take the place of older ones of the same kind."""
    before = Results()
    if RESULTS.exists():
        before = Results.model_validate_json(RESULTS.read_text(encoding="utf-8"))
    found = {row.key: row for row in (*before.rows, *rows)}
    return Results(
        rows=sorted(found.values(), key=lambda row: (row.data, row.first, row.mode, row.label, row.state.edits))
    )


def render(results: Results) -> None:
    """The page's table and figure, from the numbers alone."""
    metrics = {name: m.label for row in results.rows for name, m in row.state.summary.metrics.items()}
    names = [name for name in SHOWN if name in metrics]
    labels = [("strict: " if name.startswith("strict") else "") + metrics[name] for name in names]
    cells = []
    for row in results.rows:
        state = row.state
        found = [state.summary.metrics.get(name) for name in names]
        numbers = [pages.NOTHING if metric is None else f"{metric.edited.mean:.1f}" for metric in found]
        text = state.perplexity
        rise = pages.NOTHING if text is None else f"{text.edited:.2f} ({100 * (text.edited / text.base - 1):+.1f} %)"
        norm = pages.NOTHING if state.norm is None else f"{state.norm:.1f}"
        where = f"{row.data} from {row.first + 1}, {row.mode}"
        cells.append((row.label, where, str(state.edits), *numbers, rise, norm, f"{row.seconds:.2f}"))
    table = pages.table(("", "facts", "number", *labels, "perplexity", "norm", "s a fact"), cells)
    draw(results.rows)
    pages.fill(PAGE, "long lists", f"{table}\n\n![What is left of long lists](figures/{FIGURE.name})")


def draw(rows: Sequence[Row]) -> None:
    """Each metric against the number of facts, a line for each editor and mode."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row.label}, {row.data}, {row.mode}", []).append(row)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        axes = figure.subplots(1, len(DRAWN), sharey=True)
        for axis, name in zip(axes, DRAWN, strict=True):
            for label, own in groups.items():
                seen = [(row.state.edits, row.state.summary.metrics.get(name)) for row in own]
                points = [(n, metric.edited.mean) for n, metric in seen if metric is not None]
                axis.plot([n for n, _ in points], [value for _, value in points], marker="o", label=label)
            axis.set(title=name.replace("_", " "), xscale="log", xlabel="facts", ylim=(0, 102))
            axis.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        FIGURE.parent.mkdir(exist_ok=True)
        with replacing(FIGURE) as path:
            figure.savefig(path, dpi=120, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="facts, as for run_edit.py")
    parser.add_argument("--text", help=f"a file, whose first {CHARACTERS:,} characters the perplexity is taken on")
    parser.add_argument("--editors", nargs="+", default=["finetune:smollm2-list"], metavar="EDITOR[:HPARAMS]")
    parser.add_argument("--numbers", nargs="+", type=int, default=[100, 300, 1000], help="of facts")
    parser.add_argument("--offset", type=int, default=0, help="skip this many facts first")
    parser.add_argument(
        "--mode", choices=["batch", "sequential"], default="batch", help="at once, or one after another"
    )
    parser.add_argument("--chunk", type=int, default=1, help="facts that are learned together in a sequence")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in place of the presets' values")
    parser.add_argument("--free", action="store_true", help="also what the model writes by itself")
    parser.add_argument("--output", type=Path, default=Path("results/long-lists"), help="folder of the runs")
    parser.add_argument("--render", action="store_true", help=f"only make the page again from {RESULTS.name}")
    options = parser.parse_args(arguments)
    if options.render:
        render(Results.model_validate_json(RESULTS.read_text(encoding="utf-8")))
        return
    if not options.data or not options.text:
        parser.error("--data and --text are needed")
    disable_progress_bar()  # "Loading weights" is over in a second; the bar that matters is ours
    sizes = [max(options.numbers)] if options.mode == "sequential" else sorted(options.numbers)
    for size in sizes:
        for name in options.editors:
            print(f"{name}, {size} facts", file=sys.stderr)
            try:
                results = added(measured(name, size, options.numbers, options))
            except ValueError as error:
                sys.exit(f"{name}: {error}")
            pages.keep(RESULTS, results)
            render(results)


if __name__ == "__main__":
    main()
