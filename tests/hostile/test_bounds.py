"""Work grows with the list, not with its square; and each bound of docs/errors.md is the code's."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from where import ROOT

from loredit import data
from loredit.data.facts import LONGEST
from loredit.engine.model.sources import MOST_BLOCKS
from loredit.engine.seeds import MOST_DRAWN
from loredit.hparams.base import MOST_COUNT, MOST_LAYERS, MOST_NUMBER

_spec = importlib.util.spec_from_file_location("lists", ROOT / "benchmarks" / "lists.py")
lists = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lists)


def seconds(path: Path) -> float:
    """Of the processor, whatever else the machine does; the least of three."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        data.load(path, skip_bad=True)
        taken.append(time.process_time() - begun)
    return min(taken)


@pytest.mark.parametrize("name", lists.CASES)
def test_a_list_of_eight_times_the_length_takes_about_eight_times_as_long(name, tmp_path):
    file, write, _ = lists.CASES[name]
    n = 5000 if "aliases" in name else 250
    (tmp_path / "short").mkdir()
    write(tmp_path / "short" / file, n)
    write(tmp_path / file, 8 * n)
    assert seconds(tmp_path / file) < 24 * seconds(tmp_path / "short" / file)  # 64 times, were it the square


def test_the_bounds_on_the_page_are_the_codes():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for bound in (MOST_DRAWN, MOST_LAYERS, MOST_BLOCKS, LONGEST):
        assert f"{bound:,}" in text
    assert (MOST_COUNT, MOST_NUMBER) == (10**9, 1e30)
    assert "1e9; 1e30" in text
