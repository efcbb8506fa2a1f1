"""One editor on several sets: what is run, what is run again, and what the table says."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from typer.testing import CliRunner

from loredit.cli import app
from loredit.evaluation import suite
from loredit.evaluation.folder import RunError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny model, a preset and one of the sets."""
    tiny.model("gpt2", torch.float32).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    preset = {"model": "model", "sites": ["mlp_down"], "layers": [1, 2], "rank": 2, "alpha": 4, "lr": 1e-2, "steps": 3}
    (tmp_path / "tiny.yaml").write_text(json.dumps(preset))
    (tmp_path / "sets" / "counterfact").mkdir(parents=True)
    rewrite = {
        "prompt": "{} was born in",
        "subject": "Ada",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "York"},
    }
    record = {
        "case_id": 1,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Ada comes from"],
        "neighborhood_prompts": ["Bob was born in"],
    }
    (tmp_path / "sets" / suite.SETS["counterfact"]).write_text(json.dumps([record]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(place, **more):
    options = {"output": place / "out", "limit": 2, "dtype": "float32", "progress": False} | more
    return list(suite.bench("lora", "tiny.yaml", place / "sets", **options))


def test_each_set_that_is_there_is_run_once(place):
    results = bench(place)
    assert [(one.name, one.summary.facts) for one in results] == [("counterfact", 1), ("samples", 2)]
    written = {one.name: (one.folder / "results.jsonl").stat().st_mtime_ns for one in results}
    again = bench(place)
    assert written == {one.name: (one.folder / "results.jsonl").stat().st_mtime_ns for one in again}
    assert suite.rows(again) == suite.rows(results)
    first = results[0]
    assert first.values["PS"] == first.summary.metrics["probability_generalization"].edited.mean
    assert first.values["port."] is None
    parts = [
        first.summary.metrics[f"probability_{p}"].edited.mean for p in ("edit_success", "generalization", "locality")
    ]
    assert first.score == pytest.approx(3 / sum(1 / p for p in parts) if all(parts) else 0.0)


def test_sets_that_are_not_there_are_told(place):
    with pytest.raises(RunError, match=r"the set zsre is a file, .*ZsRE-test-1001.json"):
        bench(place, sets=["zsre"])
    with pytest.raises(RunError, match=r"unknown set 'zsrre'.*zsre"):
        bench(place, sets=["zsrre"])


def test_the_command_ends_with_one_table(place):
    options = ["--editor", "lora", "--hparams", "tiny.yaml", "--limit", "1", "--dtype", "float32", "--sets", "samples"]
    ended = CliRunner().invoke(app, ["bench", *options, "--output", "out"])
    assert ended.exit_code == 0, ended.output
    head, _, line = [text for text in ended.output.splitlines() if text.strip()][-3:]
    assert head.split()[:4] == ["set", "facts", "succ.", "gen."]
    assert line.split()[:2] == ["samples", "1"]
