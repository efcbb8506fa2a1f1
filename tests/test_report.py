"""What people see: the table's rows, the Markdown, the plot's marks."""

from __future__ import annotations

import io

import matplotlib
import pytest
from rich.console import Console
from rich.table import Table

from loredit.evaluation import report
from loredit.evaluation.metrics import (
    Comparison,
    Estimate,
    Failure,
    MetricSummary,
    PairedDifference,
    Summary,
)
from loredit.evaluation.report import comparison_table, markdown, plot_locality_success, table


def estimate(mean: float, spread: float | None = 2.0, facts: int = 30, probes: int = 60) -> Estimate:
    low, high = (None, None) if spread is None else (mean - spread, mean + spread)
    return Estimate(mean=mean, low=low, high=high, facts=facts, probes=probes)


def summary(success: float = 99.0, locality: float = 88.0, portability: float | None = 45.0, **more) -> Summary:
    metrics = {
        "edit_success": ("edit success", "token_em", estimate(success), estimate(24.0)),
        "portability": ("portability", "token_em", estimate(portability or 0), estimate(20.0)),
        "locality": ("locality", "token_em", estimate(locality), None),
        "strict_locality": ("locality", "strict", estimate(-0.01, None, facts=1, probes=4), None),
    }
    if portability is None:
        del metrics["portability"]
    given = {
        "facts": 32,
        "failed": (),
        "steps": 12.5,
        "nonzero_share": 0.1,
        "metrics": {
            name: MetricSummary(label=label, mode=mode, better="higher", edited=edited, base=base)
            for name, (label, mode, edited, base) in metrics.items()
        },
    }
    return Summary(**given | more)


def difference(value: float, low: float | None, high: float | None, better: str = "higher") -> PairedDifference:
    return PairedDifference(
        label="locality",
        mode="token_em",
        better=better,
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
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in shown(grid).splitlines() if "│" in line]


FAILED = (
    Failure(case_id="7", message="the prompt [bold]is[/bold]\ntoo long"),
    Failure(case_id="9", message="NaN loss"),
)


def test_table_shows_mode_direction_both_models_interval_and_counts():
    assert cells(table(summary())) == [
        ["token_em", "edit success ↑", "24.0", "99.0", "97.0 … 101.0", "30 / 60"],
        ["", "portability ↑", "20.0", "45.0", "43.0 … 47.0", "30 / 60"],
        ["", "locality ↑", "–", "88.0", "86.0 … 90.0", "30 / 60"],
        ["strict", "locality ↑", "–", "0.0", "–", "1 / 4"],
    ]


def test_lower_is_better_points_down():
    lower = summary().metrics["locality"].model_copy(update={"better": "lower"})
    assert "locality ↓" in shown(table(summary(metrics={"locality": lower})))


def test_failed_facts_stand_under_the_table_as_they_are():
    text = shown(table(summary(failed=FAILED), title="RoseLoRA"))
    below = text[text.rindex("┘") :]
    assert text.startswith("RoseLoRA")
    assert "Failed, and counted in no mean: 2" in below
    assert "7: the prompt [bold]is[/bold]" in below, "brackets in messages are text, not markup"
    assert "9: NaN loss" in below
    assert "12.5 steps, 10.0 %" in below


def test_long_lists_of_failures_are_cut_and_counted():
    failed = tuple(Failure(case_id=f"case-{i}", message="NaN loss") for i in range(15))
    text = shown(table(summary(failed=failed)))
    assert "counted in no mean: 15" in text
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
    assert rows[0] == ["mode", "metric", "unedited", "edited", "95 % interval", "facts / probes"]
    assert all(len(row) == 6 for row in rows)
    assert rows[2] == ["token_em", "edit success ↑", "24.0", "99.0", "97.0 … 101.0", "30 / 60"]
    assert rows[4][:2] == ["token_em", "locality ↑"], "each row stands for itself"
    assert "- 7: the prompt [bold]is[/bold] too long" in text.splitlines()


@pytest.mark.parametrize(
    ("metric", "colour"),
    [
        (difference(5, 1, 9), "green"),
        (difference(-5, -9, -1), "red"),
        (difference(5, 1, 9, better="lower"), "red"),
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
    assert cells(grid) == [["token_em", "locality ↑", "50.0", "55.0", "+5.0", "+1.0 … +9.0", "9"]]
    text = shown(grid)
    assert "[RoseLoRA]" in text, "names are text, not markup"
    assert "in both runs: 11; in one only: 3" in text
    assert "9: NaN loss" in text


# Plot


def test_plot_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "plots" / "editors.png"
    plot_locality_success({"LoRA": summary(), "RoseLoRA": summary(locality=20.0, portability=None)}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes().rstrip().endswith(b"IEND\xaeB`\x82")
    assert [each.name for each in path.parent.iterdir()] == ["editors.png"]


def test_plot_shows_every_editor_by_name_and_both_axes_modes(tmp_path):
    path = tmp_path / "editors.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        plot_locality_success({"LoRA": summary(), "FT-M": summary(success=50.0, portability=None)}, path)
    text = path.read_text()
    for name in ("LoRA", "FT-M"):
        assert text.count(f">{name}<") == 2, "once at the point, once at the bar"
    for metric in ("edit success", "locality", "portability"):
        assert f"{metric} (token_em" in text
    assert "no portability probes" in text


def test_a_plot_that_fails_keeps_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "editors.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nosuch"):
        plot_locality_success({"LoRA": summary()}, path.with_suffix(".nosuch"))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        plot_locality_success({"LoRA": summary()}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["editors.png"]
    assert path.read_bytes() == b"old"


def test_plot_names_the_summaries_it_cannot_place():
    with pytest.raises(ValueError, match=r"no edit success or locality in broken$"):
        plot_locality_success({"LoRA": summary(), "broken": summary(metrics={})}, "unused.png")
    with pytest.raises(ValueError, match="no summaries"):
        plot_locality_success({}, "unused.png")


def test_names_at_the_same_height_are_moved_apart_within_the_frame():
    heights = report._spread([50.0, 97.0, 98.0, 100.0], gap=6, ceiling=100)
    assert heights == [50.0, 88.0, 94.0, 100.0]
    assert report._spread([10.0, 11.0, 30.0], gap=6, ceiling=100) == [10.0, 16.0, 30.0]
