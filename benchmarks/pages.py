"""Generated parts of documents: tables between two marker comments, so that no number is copied by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from loredit.engine.files import replacing
from loredit.evaluation.metrics import Estimate, PairedDifference, Summary
from loredit.evaluation.report.figures import plot_generalization_locality, unplaced

NOTHING = "–"


def keep(path: Path, results: BaseModel) -> None:
    """Write what a page is made from, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")


def fill(page: Path, part: str, text: str) -> None:
    """Replace what stands between ``<!-- part -->`` and ``<!-- end of part -->`` in a page.

    Raises ValueError if the page does not hold both, once and in this order.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    whole = page.read_text(encoding="utf-8")
    before, _, rest = whole.partition(begin)
    old, _, after = rest.partition(end)
    if whole != f"{before}{begin}{old}{end}{after}" or whole.count(begin) + whole.count(end) != 2:
        raise ValueError(f"{page}: needs the lines {begin} and {end}, once each, for the text to stand between")
    with replacing(page) as path:
        path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(summaries: Mapping[str, Summary], path: Path, text: str) -> list[str]:
    """Draw generalization against locality of those that have both; the page's line for it, none if none has."""
    placed = {name: summary for name, summary in summaries.items() if not unplaced({name: summary})}
    if not placed:
        return []
    plot_generalization_locality(placed, path)
    return [f"![{text}](figures/{path.name})"]


def mean(estimate: Estimate | None) -> str:
    """``99.3 (98.1 … 100.0)``: the mean with its interval."""
    if estimate is None:
        return NOTHING
    return _with_interval(f"{estimate.mean:.1f}", estimate.low, estimate.high, ".1f")


def difference(paired: PairedDifference | None) -> str:
    """The same of a paired difference, bold where the interval leaves out zero."""
    if paired is None:
        return NOTHING
    sure = paired.low is not None and paired.high is not None and not paired.low <= 0 <= paired.high
    value = f"{paired.difference:+.1f}"
    return _with_interval(f"**{value}**" if sure else value, paired.low, paired.high, "+.1f")


def _with_interval(value: str, low: float | None, high: float | None, form: str) -> str:
    return value if low is None or high is None else f"{value} ({low:{form}} … {high:{form}})"
