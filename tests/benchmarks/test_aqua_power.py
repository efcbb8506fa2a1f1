"""AQuA's learning curve and power analysis: exact sums agree with the formula, and runs go on where they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from classified import QUESTION, loaded, tokenizer

from benchmarks import aqua_power as power
from loredit.data import aqua


@pytest.mark.parametrize("accuracy", [0.23, 0.25, 0.291, 0.4])
def test_so_many_questions_find_the_effect_in_four_of_five_experiments(accuracy):
    n = power.needed(accuracy)
    assert n is not None
    beyond = 1.959964 * math.sqrt(n * 0.2 * 0.8)
    found = 0.0
    for right in range(n + 1):
        if abs(right - 0.2 * n) > beyond:
            log = math.lgamma(n + 1) - math.lgamma(right + 1) - math.lgamma(n - right + 1)
            found += math.exp(log + right * math.log(accuracy) + (n - right) * math.log(1 - accuracy))
    assert found == pytest.approx(0.8, abs=0.05)  # counts are whole: of 40 questions one is two points


def test_what_questions_can_show_is_what_would_need_as_many():
    for questions in (254, 508, 5000):
        assert abs(power.needed(power.detectable(questions)) - questions) <= 1
    assert power.detectable(508) == pytest.approx(0.2 + 2.8 * math.sqrt(0.16 / 508), abs=0.005)


def test_where_there_is_no_effect_no_number_of_questions_shows_one():
    assert power.needed(0.2) is None
    assert power.needed(0.15) is None
    assert "| 300 | 90 of 508 | 17.7 (14.5 … 21.3) | not above chance |" in power.tables([(300, 90, 508)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight questions to train on, three on dev and two on test; the tiny model beside them."""
    data = tmp_path / "aqua"
    data.mkdir()
    for name, count in {"train": 8, "dev": 3, "test": 2}.items():
        rows = [QUESTION | {"question": f"{name} {i} + 1?", "correct": "ABCDE"[i % 5]} for i in range(count)]
        (data / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    loaded(labels=1).model.float().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_curve_counts_dev_and_test_and_goes_on_where_it_was(folder, monkeypatch, capsys):
    ran: list[tuple[int | None, bool, int]] = []
    made = power.run

    def noted(*args: Any, **given: Any) -> Any:
        ran.append((given["limit"], given["train"], given["overrides"]["steps"]))
        return made(*args, **given)

    monkeypatch.setattr(power, "run", noted)
    command = ["--data", str(folder / "aqua"), "--model", str(folder / "model"), "--layers", "0-2"]
    command += ["--output", str(folder / "runs"), "--editor", "lora", "--epochs", "4", "--questions"]
    power.main([*command, "8", "0"])
    assert ran == [(None, False, 1), (8, True, 2)]
    (folder / "runs" / "lora-4").mkdir()  # of a run that was stopped
    power.main([*command, "0", "4", "8"])
    assert ran[2:] == [(4, True, 1)]
    lines = capsys.readouterr().out.splitlines()[-9:]
    assert [line.split(" | ")[0] for line in lines[:3]] == ["| 0", "| 4", "| 8"]
    for questions, line in zip((0, 4, 8), lines, strict=False):
        splits = json.loads((folder / "runs" / f"lora-{questions}" / "metrics.json").read_text())["splits"]
        right = round(3 * splits["dev"]["accuracy"]["mean"]) + round(2 * splits["test"]["accuracy"]["mean"])
        assert f"| {right} of 5 |" in line


def test_more_questions_than_there_are_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        power.main(["--data", str(folder / "aqua"), "--questions", "9"])
    assert f"--questions 9: {folder / 'aqua'} has {len(aqua.load(str(folder / 'aqua')).splits['train'])}" in (
        capsys.readouterr().err
    )
