"""The table of five GLUE sets: schedules go with the length of a run, and what has results is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import classification_table as table


def test_schedules_in_steps_are_stretched_with_the_run():
    assert table.overrides("lora", "rte") == {"steps": 780}
    stretched = table.overrides("adalora", "cola")
    assert stretched == {"steps": 1605, "tinit": 140, "tfinal": 535, "deltaT": 23}
    assert table.overrides("simplexlora", "mrpc") == {"steps": 690, "T": 90}
    assert table.overrides("full", "sst2") == {"steps": 1000}


@pytest.mark.parametrize("method", table.METHODS)
@pytest.mark.parametrize("task", table.SETS)
def test_every_preset_takes_the_length_of_every_set(task, method):
    changes = table.overrides(method, task)
    whole = table.settings(method, "classification", None, changes)
    assert whole.steps == table.SETS[task].steps


def test_runs_with_results_are_left_and_one_that_was_stopped_begins_anew(monkeypatch, tmp_path):
    ran = []

    def run(task: str, method: str, *, output: Path, seeds: Any, limit: int | None, **_: Any) -> None:
        assert not output.exists()
        ran.append((task, method, len(seeds), limit))
        output.mkdir(parents=True)
        score = {"mean": 0.8, "std": 0.01, "seeds": [0.8]}
        scores = {"accuracy": score, "pearson": score, "matthews_correlation": score}
        (output / "metrics.json").write_text(json.dumps({"splits": {"dev": scores}}))

    monkeypatch.setattr(table, "run", run)
    (tmp_path / "rte-lora").mkdir()
    (tmp_path / "rte-lora" / "run.json").write_text("{}")
    command = ["glue", "--data", "x", "--output", str(tmp_path), "--tasks", "rte,sst2", "--methods", "lora,full"]
    first = CliRunner().invoke(table.app, command)
    assert first.exit_code == 0, first.output
    assert ran == [
        ("rte", "lora", 3, None),
        ("rte", "full", 3, None),
        ("sst2", "lora", 3, 16_000),
        ("sst2", "full", 3, 16_000),
    ]
    again = CliRunner().invoke(table.app, command)
    assert len(ran) == 4
    lines = again.output.strip().splitlines()[-6:]
    assert lines[0] == "| method | rte, accuracy | sst2, accuracy |"
    assert lines[3] == "| RoBERTa-base, LoRA, published | 86.6 ± 0.7 | 95.1 ± 0.2 |"
    assert lines[4] == "| lora | 80.0 ± 1.0 | 80.0 ± 1.0 |"
