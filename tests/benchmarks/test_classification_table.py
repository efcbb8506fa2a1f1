"""Tables of classification: schedules go with the length of a run, what has results is not run again, and runs of one
seed each are joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from classified import essays
from typer.testing import CliRunner

from benchmarks import classification_table as table


def test_schedules_in_steps_are_stretched_with_the_run():
    assert table.overrides("lora", 780) == {"steps": 780}
    stretched = table.overrides("adalora", 1605)
    assert stretched == {"steps": 1605, "tinit": 140, "tfinal": 535, "deltaT": 23}
    assert table.overrides("simplexlora", 690) == {"steps": 690, "T": 90}
    assert table.overrides("full", 1000) == {"steps": 1000}


@pytest.mark.parametrize("method", table.METHODS)
@pytest.mark.parametrize("task", table.SETS)
def test_every_preset_takes_the_length_of_every_set(task, method):
    changes = table.overrides(method, table.SETS[task].steps)
    whole = table.settings(method, "classification", None, changes)
    assert whole.steps == table.SETS[task].steps


def test_runs_with_results_are_left_and_one_that_was_stopped_begins_anew(monkeypatch, tmp_path):
    ran = []

    def run(task: str, method: str, *, output: Path, seeds: Any, limit: int | None, overrides: Any, **_: Any) -> None:
        assert not output.exists()
        ran.append((task, method, len(seeds), limit, overrides["steps"]))
        output.mkdir(parents=True)
        score = {"mean": 0.8, "std": 0.01, "seeds": [0.8]}
        scores = {"accuracy": score, "pearson": score, "matthews_correlation": score}
        (output / "metrics.json").write_text(json.dumps({"splits": {"dev": scores}}))

    monkeypatch.setattr(table, "run", run)
    (tmp_path / "rte-lora-780").mkdir()
    (tmp_path / "rte-lora-780" / "run.json").write_text("{}")
    command = ["glue", "--data", "x", "--output", str(tmp_path), "--tasks", "rte,sst2", "--methods", "lora,full"]
    first = CliRunner().invoke(table.app, command)
    assert first.exit_code == 0, first.output
    assert ran == [
        ("rte", "lora", 3, None, 780),
        ("rte", "full", 3, None, 780),
        ("sst2", "lora", 3, 16_000, 1000),
        ("sst2", "full", 3, 16_000, 1000),
    ]
    again = CliRunner().invoke(table.app, command)
    assert len(ran) == 4
    lines = again.output.strip().splitlines()[-6:]
    assert lines[0] == "| method | rte, accuracy | sst2, accuracy |"
    assert lines[3] == "| RoBERTa-base, LoRA, published | 86.6 ± 0.7 | 95.1 ± 0.2 |"
    assert lines[4] == "| lora | 80.0 ± 1.0 | 80.0 ± 1.0 |"
    # Runs of another length have results of their own.
    shorter = CliRunner().invoke(table.app, [*command, "--steps", "30"])
    assert shorter.exit_code == 0, shorter.output
    assert [length for *_, length in ran[4:]] == [30] * 4
    CliRunner().invoke(table.app, [*command, "--steps", "30", "--table"])
    assert len(ran) == 8


def test_essays_are_run_seed_by_seed_and_joined(monkeypatch, tmp_path):
    ran = []

    def leaf(value: float) -> dict[str, Any]:
        return {"mean": value, "std": None, "seeds": [value]}

    def scores(value: float) -> dict[str, Any]:
        whole = {name: leaf(value) for name in ("accuracy", "macro_f1", "log_loss", "calibration_error")}
        each = {m: leaf(value) for m in ("precision", "recall", "f1")} | {"examples": leaf(9)}
        return whole | {"by_class": dict.fromkeys(("Human", "Beta", "Zeta"), each), "confusion": [[1, 2], [3, 4]]}

    def run(task: str, method: str, *, output: Path, seeds: list[int], ensemble: bool, **given: Any) -> None:
        value = 0.5 + seeds[0] / 5 + ensemble / 10
        ran.append((output.name, given["overrides"]["steps"], given["limit"], given["calibrate"]))
        output.mkdir(parents=True)
        rules = {"temperature": scores(value), "stacking": scores(value + 0.01)}
        test = scores(value) | {"rules": rules}
        dev = scores(value)
        if ensemble:
            members = dict.fromkeys(("Beta", "Zeta"), scores(0.9))
            own = dict.fromkeys(("mean", "odds"), scores(value))
            test, dev = {"rules": own | rules, "members": members}, {"rules": own, "members": members}
        calibration = {"temperature": [{"temperatures": [1.0 + seeds[0], 3.0]}], "stacking": [{}]}
        found = {"splits": {"dev": dev, "test": test}, "seconds": 10.0, "calibration": calibration}
        (output / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(table, "run", run)
    data = essays(tmp_path / "essays.jsonl.gz", 20)
    output = tmp_path / "runs"
    command = ["essays", "--data", str(data), "--output", str(output), "--limit", "96", "--epochs", "2"]
    first = CliRunner().invoke(table.app, [*command, "--seeds", "1"])
    assert first.exit_code == 0, first.output
    # A member has the essays of two classes in three.
    assert ran == [("one-0", 12, 96, "both"), ("ensemble-0", 8, 96, "both")]
    again = CliRunner().invoke(table.app, [*command, "--seeds", "2", "--figure", str(tmp_path / "classes.png")])
    assert [name for name, *_ in ran] == ["one-0", "ensemble-0", "one-1", "ensemble-1"]
    lines = again.output.strip().splitlines()
    spread = "± 14.1"  # of 50 and 70
    assert f"| one | 60.0 {spread} | 60.0 {spread} | 60.0 {spread} | 0.60 ± 0.14 | 60.0 {spread} | 20 |" in lines
    assert f"| ensemble, stacking |  | 71.0 {spread} | 71.0 {spread} | 0.71 ± 0.14 | 71.0 {spread} | 20 |" in lines
    assert "| ensemble, odds | 70 / 70 / 70 | 70 / 70 / 70 | 70 / 70 / 70 |" in lines
    assert "| Human against Beta | 90.0 ± 0.0 | 90.0 ± 0.0 | 1.00, 2.00 |" in lines
    assert (tmp_path / "classes.png").is_file()
