"""Figures: their marks, and that they are written whole or not at all."""

from __future__ import annotations

import math
import re

import matplotlib
import pytest
from observed import reached, summary

from loredit.engine import files
from loredit.evaluation.report import figures
from loredit.evaluation.report.figures import plot_generalization_locality, plot_sites


def test_plot_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "plots" / "editors.png"
    plot_generalization_locality({"LoRA": summary(), "RoseLoRA": summary(locality=20.0, portability=None)}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes().rstrip().endswith(b"IEND\xaeB`\x82")
    assert [each.name for each in path.parent.iterdir()] == ["editors.png"]


def test_plot_shows_every_editor_by_name_and_both_axes_modes(tmp_path):
    path = tmp_path / "editors.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        plot_generalization_locality({"LoRA": summary(), "FT-M": summary(generalization=50.0, portability=None)}, path)
    text = path.read_text()
    for name in ("LoRA", "FT-M"):
        assert text.count(f">{name}<") == 2, "once at the point, once at the bar"
    for metric in ("generalization", "locality", "portability"):
        assert f"{metric} (token_em" in text
    assert "no portability probes" in text


def test_a_plot_that_fails_keeps_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "editors.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nosuch"):
        plot_generalization_locality({"LoRA": summary()}, path.with_suffix(".nosuch"))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        plot_generalization_locality({"LoRA": summary()}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["editors.png"]
    assert path.read_bytes() == b"old"


def test_plot_names_the_summaries_it_cannot_place():
    with pytest.raises(ValueError, match=r"no generalization or locality in broken$"):
        plot_generalization_locality({"LoRA": summary(), "broken": summary(metrics={})}, "unused.png")
    with pytest.raises(ValueError, match="no summaries"):
        plot_generalization_locality({}, "unused.png")


@pytest.mark.parametrize("edited", [None, math.inf])
def test_retention_is_drawn_whatever_was_measured(edited: float | None, tmp_path):
    figures.plot_retention([reached(n, edited) for n in (1, 10, 30)], tmp_path / "figures" / "retention.png")
    assert (tmp_path / "figures" / "retention.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no checkpoint"):
        figures.plot_retention([], tmp_path / "none.png")


def test_the_allocation_is_drawn_by_block_and_map(tmp_path):
    one, other = ({"h.3.attn.q": r, "h.3.mlp.down": 9, "h.11.attn.q": 4 * r} for r in (0, 5))
    path = tmp_path / "plots" / "ranks.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        plot_sites([one, other], path, title="Rank")
        mean = re.findall(r">([^<>]+)</text>", path.read_text())
        plot_sites([other], path, title="Rank")
        single = re.findall(r">([^<>]+)</text>", path.read_text())
    labels = {"3", "11", "attn.q", "mlp.down", "block"}
    assert {*mean} == labels | {"2.5", "9", "10", "Rank by site (mean of 2 edits)"}
    assert {*single} == labels | {"5", "9", "20", "Rank by site"}
    with pytest.raises(ValueError, match="no edit has a number"):
        plot_sites([], path, title="Rank")
