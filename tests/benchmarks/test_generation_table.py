"""The table of writers: rows of runs that are gone on with, the page made from their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import generation_table
from loredit.evaluation.generation.runs import GenerationResult
from loredit.evaluation.tuning.methods import in_proportion, settings


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The command with a page of its own and runs that are told instead of done."""
    told: list[dict[str, object]] = []

    def run(task: str, editor: str, **given: object) -> GenerationResult:
        folder = Path(str(given["output"]))
        told.append({"task": task, "editor": editor, "went_on": given["resume"], **given})
        folder.mkdir(parents=True, exist_ok=True)
        scores = {name: {"mean": 12.345, "std": None} for name in generation_table.SCORES}
        trained = {"parameters": {"trained": 1234, "model": 9999}, "seconds": 5.4} if given["train"] else {}
        return GenerationResult({"scores": scores, **trained}, folder)

    monkeypatch.setattr(generation_table, "run", run)
    for name in ("PAGE", "RESULTS"):
        monkeypatch.setattr(generation_table, name, tmp_path / getattr(generation_table, name).name)
    generation_table.PAGE.write_text("Before.\n\n<!-- results -->\n<!-- end of results -->\n")

    def command(methods: str) -> list[dict[str, object]]:
        told.clear()
        arguments = ["--data", "e2e.zip", "--methods", methods, "--output", str(tmp_path / "runs")]
        result = CliRunner().invoke(generation_table.app, [*arguments, "--limit", "80", "--epochs", "0.5"])
        assert result.exit_code == 0, result.output
        return told

    return command


def rows() -> list[list[str]]:
    lines = [line for line in generation_table.PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_method_is_a_run_and_a_row(ran):
    writer, plain = ran("adapter-small,untrained")
    assert (writer["editor"], writer["hparams"], writer["overrides"]["steps"]) == ("adapter", "adapter-small", 5)
    assert (plain["train"], plain["went_on"], list(plain["seeds"])) == (False, False, [0])
    assert [row[0] for row in rows()] == ["adapter-small", "untrained"]
    assert rows()[0][1:] == ["1,234", "12.3", "12.35", "12.3", "12.3", "12.35", "5"]
    (again,) = ran("lora")
    assert not again["went_on"]
    assert ran("lora")[0]["went_on"]
    assert [row[0] for row in rows()] == ["lora", "adapter-small", "untrained"], "in one order, none twice"


def test_what_cannot_stand_in_the_table_costs_no_training(ran, tmp_path):
    ran("lora")
    command = ["--data", "e2e.zip", "--output", str(tmp_path / "runs"), "--limit", "80", "--epochs"]
    for arguments, said in (
        ([*command, "0.5", "--methods", "lora,loar"], "did you mean 'lora'"),
        ([*command, "1", "--methods", "prefix"], "rows of another budget"),
    ):
        result = CliRunner().invoke(generation_table.app, arguments)
        assert result.exit_code == 1
        assert said in result.output
    assert [row[0] for row in rows()] == ["lora"]
    assert not (tmp_path / "runs" / "prefix").exists()


def test_schedules_keep_their_shares():
    own = settings("adalora", "generation", None, {})
    whole, half = in_proportion(own, 790), in_proportion(own, 395)
    assert all(half[name] == pytest.approx(n / 2, abs=1) for name, n in whole.items())
