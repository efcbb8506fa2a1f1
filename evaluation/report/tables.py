"""Summaries for people: tables for the terminal, Markdown for documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from rich.table import Table
from rich.text import Text

from ...data.messages import lines
from ..metrics import Comparison, Failure, PairedDifference, Summary
from ..retention import Checkpoint
from ..scores import Perplexity

NUMBERS = ("unedited", "edited", "95 % interval", "facts / probes")
NOTHING = "–"


def table(summary: Summary, *, title: str | None = None) -> Table:
    """A run's metrics by mode, unedited beside edited, for the terminal; failed facts are listed below."""
    return _grid(title, NUMBERS, _rows(summary), [*_run_lines(summary), *_failed_lines(summary.failed)])


def comparison_table(
    comparison: Comparison, *, names: tuple[str, str] = ("first", "second"), title: str | None = None
) -> Table:
    """Two runs pair by pair: second minus first, green where it is better and red where it is worse, both only where
    the 95 % interval of the difference leaves out zero."""
    rows = [
        (
            metric.mode,
            f"{metric.label} ↑",
            _number(metric.a),
            _number(metric.b),
            Text(_number(metric.difference, "+.1f"), style=_verdict(metric)),
            _interval(metric.low, metric.high, "+.1f"),
            str(metric.pairs),
        )
        for metric in comparison.metrics.values()
    ]
    counts = f"Cases in both runs: {comparison.common}; in one only: {comparison.unpaired}"
    headings = (*names, "difference", "95 % interval", "pairs")
    return _grid(title, headings, rows, [counts, *_failed_lines(comparison.failed)])


def markdown(summary: Summary) -> str:
    """The same as :func:`table` as a Markdown table, with what stands below it as paragraphs."""
    rows = [("mode", "metric", *NUMBERS), ("---", "---", *["---:"] * len(NUMBERS)), *_rows(summary)]
    parts = [
        [f"| {' | '.join(row)} |" for row in rows],
        _run_lines(summary),
        [" ".join(line.split()) for line in _failed_lines(summary.failed, indent="- ")],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def retention_table(checkpoints: Sequence[Checkpoint], *, title: str | None = None) -> Table:
    """What is left of all edits so far, checkpoint by checkpoint, for the terminal."""
    last = checkpoints[-1]
    names = [name for name, metric in last.summary.metrics.items() if metric.mode in ("token_em", "fluency")]
    grid = Table(title=title, title_justify="left")
    for heading in ("edits", *(last.summary.metrics[name].label for name in names), "perplexity (unedited)"):
        grid.add_column(heading, justify="right")
    for point in checkpoints:
        metrics = point.summary.metrics
        grid.add_row(
            str(point.edits),
            *(_number(metrics[name].edited.mean) if name in metrics else NOTHING for name in names),
            _perplexities(point.perplexity),
        )
    return grid


def _rows(summary: Summary) -> list[tuple[str, ...]]:
    return [
        (
            metric.mode,
            f"{metric.label} ↑",
            _number(metric.base.mean) if metric.base else NOTHING,
            _number(metric.edited.mean),
            _interval(metric.edited.low, metric.edited.high),
            f"{metric.edited.facts} / {metric.edited.probes}",
        )
        for metric in summary.metrics.values()
    ]


def _grid(
    title: str | None, headings: Sequence[str], rows: Sequence[Sequence[str | Text]], below: Sequence[str]
) -> Table:
    grid = Table(title=title, caption=Text("\n".join(below)), title_justify="left", caption_justify="left")
    grid.add_column("mode", style="dim")
    grid.add_column("metric")
    for heading in headings:
        grid.add_column(Text(heading), justify="right", no_wrap=True)
    for _, section in groupby(rows, key=itemgetter(0)):
        for i, (mode, *cells) in enumerate(section):
            grid.add_row(mode if i == 0 else "", *cells)
        grid.add_section()
    return grid


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
        f"Failed, and counted in no mean: {len(failed)}",
        *(f"{indent}{line}" for line in lines(f"{case.case_id}: {case.message}" for case in failed)),
    ]


def _perplexities(measured: Perplexity | None) -> str:
    if measured is None:
        return NOTHING
    edited, base = ("inf" if value is None else f"{value:.1f}" for value in (measured.edited, measured.base))
    return f"{edited} ({base})"
