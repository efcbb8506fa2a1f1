"""What people see in tables: rows, counts, failures, colours."""

from __future__ import annotations

import io
import math
import re

import pytest
from observed import reached, summary
from rich.console import Console
from rich.table import Table

from loredit.evaluation.metrics import (
    Comparison,
    Failure,
    PairedDifference,
)
from loredit.evaluation.report.tables import comparison_table, markdown, retention_table, runs_table, table


def difference(value: float, low: float | None, high: float | None) -> PairedDifference:
    return PairedDifference(
        label="locality",
        mode="token_em",
        a=50.0,
        b=50.0 + value,
        difference=value,
        low=low,
        high=high,
        pairs=9,
    )


def shown(grid: Table, **options) -> str:
    console = Console(width=120, file=io.StringIO(), **options)
    console.print(grid)
    return console.file.getvalue()


def cells(grid: Table) -> list[list[str]]:
    """The rows under the line, the modes among them, each as its cells."""
    lines = shown(grid).splitlines()
    line = next(i for i, text in enumerate(lines) if "──" in text)
    below = (re.split(r"\s{2,}", text.strip()) for text in lines[line + 1 :])
    return [row for row in below if row[0]]


FAILED = (
    Failure(case_id="7", message="the prompt [bold]is[/bold]\ntoo long"),
    Failure(case_id="9", message="NaN loss"),
)


def test_runs_stand_one_below_the_other_with_intervals_in_80_columns():
    name = "lora-smollm2-lr=1e-3-seed=0"
    console = Console(width=80, file=io.StringIO())
    console.print(runs_table({name: summary(), "a" * 40: summary()}))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    first = next(i for i, line in enumerate(lines) if name in line)
    assert lines[first].split() == [name, "99.0", "77.0", "45.0", "88.0"]
    assert re.split(r"\s{2,}", lines[first + 1].strip()) == ["97 … 101", "75 … 79", "43 … 47", "86 … 90"]
    assert max(map(len, lines)) <= 80
    assert sum(line.count("a") for line in lines[first + 2 : first + 4]) == 40, "a longer name is folded, not cut"


def test_table_shows_mode_both_models_interval_and_counts():
    assert cells(table(summary()))[:7] == [
        ["token_em"],
        ["edit success", "24.0", "99.0", "97.0 … 101.0", "30/60"],
        ["generalization", "22.0", "77.0", "75.0 … 79.0", "30/60"],
        ["portability", "20.0", "45.0", "43.0 … 47.0", "30/60"],
        ["locality", "–", "88.0", "86.0 … 90.0", "30/60"],
        ["strict"],
        ["locality", "–", "0.0", "–", "1/4"],
    ]


def test_failed_facts_stand_under_the_table_as_they_are():
    text = shown(table(summary(failed=FAILED), title="RoseLoRA"))
    below = text[text.rindex("Higher is better") :]
    assert text.startswith("RoseLoRA")
    assert "Failed, and counted in no mean but those with 'failed as 0': 2" in " ".join(below.split())
    assert "7: the prompt [bold]is[/bold]" in below, "brackets in messages are text, not markup"
    assert "9: NaN loss" in below
    assert "12.5 steps, 10.0 %" in below


def test_long_lists_of_failures_are_cut_and_counted():
    failed = tuple(Failure(case_id=f"case-{i}", message="NaN loss") for i in range(15))
    text = shown(table(summary(failed=failed)))
    assert "with 'failed as 0': 15" in " ".join(text.split())
    assert "case-9:" in text
    assert "case-10:" not in text
    assert "and 5 more" in text


def test_a_run_where_all_failed_still_has_a_table():
    empty = summary(metrics={}, failed=FAILED, steps=None, nonzero_share=None)
    assert "9: NaN loss" in shown(table(empty))
    assert "- 9: NaN loss" in markdown(empty)


def test_markdown_holds_the_tables_rows_and_one_line_per_failure():
    text = markdown(summary(failed=FAILED))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["family", "metric", "unedited", "edited", "95 % interval", "facts/probes"]
    assert all(len(row) == 6 for row in rows)
    assert rows[2] == ["token_em", "edit success", "24.0", "99.0", "97.0 … 101.0", "30/60"]
    assert rows[5][:2] == ["token_em", "locality"], "each row stands for itself"
    assert "- 7: the prompt [bold]is[/bold] too long" in text.splitlines()


@pytest.mark.parametrize(
    ("metric", "colour"),
    [
        (difference(5, 1, 9), "green"),
        (difference(-5, -9, -1), "red"),
        (difference(5, -1, 9), None),
        (difference(5, 0, 9), None),
        (difference(5, None, None), None),
    ],
)
def test_comparison_colours_only_what_leaves_out_zero(metric, colour):
    grid = comparison_table(Comparison(common=9, unpaired=0, failed=(), metrics={"locality": metric}))
    codes = {name: f"\x1b[3{digit}m" for name, digit in (("red", 1), ("green", 2))}
    text = shown(grid, force_terminal=True, color_system="standard")
    assert [name for name, code in codes.items() if code in text] == ([colour] if colour else [])


def test_comparison_table_names_both_runs_and_counts_pairs():
    comparison = Comparison(common=11, unpaired=3, failed=FAILED, metrics={"locality": difference(5, 1, 9)})
    grid = comparison_table(comparison, names=("LoRA", "[RoseLoRA]"))
    assert cells(grid)[:2] == [["token_em"], ["locality", "50.0", "55.0", "+5.0", "+1.0 … +9.0", "9"]]
    text = shown(grid)
    assert "first: LoRA" in text
    assert "[RoseLoRA]" in text, "names are text, not markup"
    assert "in both runs: 11; in one only: 3" in text
    assert "9: NaN loss" in text


def test_the_retention_table_has_a_line_for_each_checkpoint():
    assert cells(retention_table([reached(1), reached(3)], title="what is left")) == [["1", "100.0"], ["3", "33.3"]]
    measured = retention_table([reached(1), reached(3, 11.25), reached(4, math.inf)])
    assert cells(measured)[:3] == [["1", "100.0", "–"], ["3", "33.3", "11.2"], ["4", "50.0", "inf"]]
    assert "Perplexity of the unedited model: 10.0." in " ".join(shown(measured).split())
