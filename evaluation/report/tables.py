"""Summaries for people: tables for the terminal, of 80 columns at most, and Markdown for documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...data.messages import lines
from ..metrics import Comparison, Failure, PairedDifference, Summary
from ..retention import Checkpoint
from ..scores import FactScores, ProbeScores
from .changes import Mark, mark

NUMBERS = ("unedited", "edited", "95 % interval", "facts/probes")
NOTHING = "–"
HIGHER = "Higher is better, for all."
FAILED = "failed as 0"

COLOURS = {
    Mark.LEARNED: "green",
    Mark.KNEW: "green",
    Mark.KEPT: "green",
    Mark.NOT_LEARNED: "yellow",
    Mark.CHANGED: "yellow",
    Mark.LOST: "red",
    Mark.BLED: "red",
    Mark.FAILED: "red",
}


def table(summary: Summary, *, title: str | None = None) -> Group:
    """A run's metrics by family, unedited beside edited, for the terminal; failed facts are listed below.

    Args:
        summary: of a run.
        title: stands above the table.

    Returns:
        What ``rich`` prints; its widest table fits 80 columns.

    Example:
        >>> from rich import print
        >>> print(table(summary))  # doctest: +SKIP
    """
    below = [HIGHER, *_run_lines(summary), *_failed_lines(summary.failed)]
    return _grid(title, NUMBERS, _rows(summary), below)


def comparison_table(
    comparison: Comparison, *, names: tuple[str, str] = ("first", "second"), title: str | None = None
) -> Group:
    """Two runs pair by pair: second minus first, green where it is better and red where it is worse, both only where
    the 95 % interval of the difference leaves out zero.

    Args:
        comparison: what :func:`~..metrics.compare` found.
        names: of the runs; those that are too long for a column stand below the table.
        title: stands above it.

    Returns:
        What ``rich`` prints.

    Example:
        >>> print(comparison_table(compare(a, b), names=("LoRA", "RoseLoRA")))  # doctest: +SKIP
    """
    rows = [
        (
            metric.family,
            label,
            _number(metric.a),
            _number(metric.b),
            Text(_number(metric.difference, "+.1f"), style=_verdict(metric)),
            _interval(metric.low, metric.high, "+.1f"),
            str(metric.pairs),
        )
        for label, metric in _with_failures(comparison)
    ]
    columns = ("first", "second")
    below = [f"{column}: {name}" for column, name in zip(columns, names, strict=True) if name != column]
    if max(map(len, names)) <= 8:
        columns, below = names, []
    below += [HIGHER, f"Cases in both runs: {comparison.common}; in one only: {comparison.unpaired}"]
    headings = (*columns, "difference", "95 % interval", "pairs")
    return _grid(title, headings, rows, [*below, *_failed_lines(comparison.failed)])


def runs_table(summaries: Mapping[str, Summary]) -> Table:
    """Runs one below the other, their ``token_em`` and fluency, for the terminal; below each number its 95 % interval,
    rounded, so that 30 columns of 80 are left for the names.

    Args:
        summaries: by the name that is shown.

    Returns:
        What ``rich`` prints.

    Example:
        >>> print(runs_table({"LoRA": a, "RoseLoRA": b}))  # doctest: +SKIP
    """
    headings = {
        "edit_success": "edit\nsuccess",
        "generalization": "general-\nization",
        "portability": "porta-\nbility",
        "locality": "locality",
        "fluency": "fluency",
    }
    names = [name for name in headings if any(name in summary.metrics for summary in summaries.values())]
    grid = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption="Below each number its 95 % interval.")
    grid.add_column("run", overflow="fold", vertical="top")
    for name in names:
        grid.add_column(headings[name], justify="right", no_wrap=True, min_width=9)
    for run, summary in summaries.items():
        cells = []
        for found in (summary.metrics.get(name) for name in names):
            ends = _interval(found.edited.low, found.edited.high, ".0f") if found else ""
            cells.append(f"{_number(found.edited.mean)}\n{ends}" if found else NOTHING)
        grid.add_row(Text(run), *cells)
    return grid


def markdown(summary: Summary) -> str:
    """The same as :func:`table` as a Markdown table, with what stands below it as paragraphs."""
    rows = [("family", "metric", *NUMBERS), ("---", "---", *["---:"] * len(NUMBERS)), *_rows(summary, "{}, " + FAILED)]
    parts = [
        [f"| {' | '.join(row)} |" for row in rows],
        [" ".join([HIGHER, *_run_lines(summary)])],
        [" ".join(line.split()) for line in _failed_lines(summary.failed, indent="- ")],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def retention_table(checkpoints: Sequence[Checkpoint], *, title: str | None = None) -> Table:
    """What is left of all edits so far, checkpoint by checkpoint, for the terminal.

    Args:
        checkpoints: one or more, of one run.
        title: stands above the table.

    Returns:
        What ``rich`` prints.

    Example:
        >>> print(retention_table(result.checkpoints))  # doctest: +SKIP
    """
    last = checkpoints[-1]
    names = [name for name, metric in last.summary.metrics.items() if metric.family in ("token_em", "fluency")]
    measured = last.perplexity is not None
    base = next((_perplexity(point.perplexity.base) for point in checkpoints if point.perplexity), "")
    grid = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=0)
    if measured:
        grid.caption = f"Perplexity of the unedited model: {base}."
    labels = [last.summary.metrics[name].label for name in names]
    moved = last.norm is not None
    for heading in ("edits", *labels, *(["perplexity"] if measured else []), *(["norm of change"] if moved else [])):
        grid.add_column(heading.replace(" ", "\n"), justify="right", vertical="bottom")
    for point in checkpoints:
        metrics = point.summary.metrics
        grid.add_row(
            str(point.edits),
            *(_number(metrics[name].edited.mean) if name in metrics else NOTHING for name in names),
            *([NOTHING if point.perplexity is None else _perplexity(point.perplexity.edited)] if measured else []),
            *([NOTHING if point.norm is None else f"{point.norm:.2f}"] if moved else []),
        )
    return grid


def examples(scores: Sequence[FactScores]) -> Group:
    """Facts before and after their edits: the prompt, a rephrasing and a neighbour, for the terminal.

    Args:
        scores: facts whose answers were generated.

    Returns:
        What ``rich`` prints.

    Example:
        >>> print(examples(told(scores)))  # doctest: +SKIP
    """
    shown: list[RenderableType] = []
    for fact in scores:
        shown.append(Text.assemble((_line(fact.prompt), "bold"), " -> ", (_line(fact.target_new), "bold")))
        for label, probe in _chosen(fact):
            found = mark(probe, fact.target_new)
            grid = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
            grid.add_column(width=10, style="dim")
            grid.add_column(overflow="fold")
            if probe.kind != "rewrite":
                grid.add_row(label, _line(probe.prompt))
            grid.add_row("before", Text(_line(probe.base.generated or "") or "(nothing)"))
            after = Text(_line(probe.edited.generated or "") or "(nothing)", style="bold")
            grid.add_row("after", Text.assemble(after, "  ", (found.value, COLOURS[found])))
            shown.append(Padding(grid, (0, 0, 0, 2)))
        shown.append(Text())
    return Group(*shown)


def _chosen(fact: FactScores) -> Iterator[tuple[str, ProbeScores]]:
    """The prompt, a rephrasing, a question in a chat and a neighbour: another subject's fact rather than another of the
    subject's."""
    wanted = (("prompt", "rewrite"), ("rephrased", "rephrase"), ("in a chat", "chat"), ("neighbour", "locality"))
    for label, kind in wanted:
        probes = [probe for probe in fact.probes if probe.kind == kind]
        probes.sort(key=lambda probe: "neighb" not in probe.group.lower())
        yield from ((label, probe) for probe in probes[:1])


def _line(text: str, most: int = 300) -> str:
    """A text of one line, without what a terminal would obey."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _rows(summary: Summary, failed: str = f"  {FAILED}") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for metric in summary.metrics.values():
        base = _number(metric.base.mean) if metric.base else NOTHING
        for label, found in ((metric.label, metric.edited), (failed.format(metric.label), metric.with_failures)):
            if found is not None:
                ends = _interval(found.low, found.high)
                rows.append(
                    (metric.family, label, base, _number(found.mean), ends, f"{found.facts}/{found.probes}"),
                )
    return rows


def _with_failures(comparison: Comparison) -> Iterator[tuple[str, PairedDifference]]:
    for metric in comparison.metrics.values():
        yield metric.label, metric
        if metric.with_failures is not None:
            yield f"  {FAILED}", metric.with_failures


def _grid(
    title: str | None, headings: Sequence[str], rows: Sequence[Sequence[str | Text]], below: Sequence[str]
) -> Group:
    """A table, and below it lines that are as wide as the terminal."""
    grid = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("metric", overflow="fold")
    for heading in headings:
        grid.add_column(Text(heading), justify="right", overflow="fold")
    for i, (family, section) in enumerate(groupby(rows, key=itemgetter(0))):
        if i:
            grid.add_row()
        grid.add_row(Text(str(family), style="dim italic"))
        for _, *cells in section:
            grid.add_row(*cells)
    return Group(grid, Text("\n".join(below)))


def _interval(low: float | None, high: float | None, form: str = ".1f") -> str:
    return NOTHING if low is None or high is None else f"{_number(low, form)} … {_number(high, form)}"


def _number(value: float, form: str = ".1f") -> str:
    return format(round(value, 1) + 0.0, form)  # + 0.0: no "-0.0"


def _verdict(metric: PairedDifference) -> str:
    if metric.low is None or metric.high is None or metric.low <= 0 <= metric.high:
        return ""
    return "green" if metric.difference > 0 else "red"


def _run_lines(summary: Summary) -> list[str]:
    if summary.steps is None or summary.nonzero_share is None:
        return []
    return [
        f"Per edit, on average: {summary.steps:.1f} steps, {100 * summary.nonzero_share:.1f} % of its numbers not zero."
    ]


def _failed_lines(failed: Sequence[Failure], indent: str = "  ") -> list[str]:
    if not failed:
        return []
    return [
        f"Failed, and counted in no mean but those with {FAILED!r}: {len(failed)}",
        *(f"{indent}{line}" for line in lines(f"{case.case_id}: {case.message}" for case in failed)),
    ]


def _perplexity(value: float | None) -> str:
    return "inf" if value is None else f"{value:.1f}"
