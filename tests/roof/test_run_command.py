"""``run_edit.py`` as a user calls it, on a tiny model in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from where import ROOT

from loredit.evaluation import runs


def test_the_command_line_prints_a_table_and_where_the_results_are(place: Path) -> None:
    done = _command(
        "--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--limit", "2", "--eval", "all"
    )
    assert done.returncode == 0, done.stderr
    for words in ("edit success", "locality", "fluency", "unedited", "results in results"):
        assert words in done.stdout
    assert "2.0/2" in done.stderr


def test_the_command_line_edits_standard_input_one_after_another(place: Path) -> None:
    rows = "subject;prompt;target_new\nFrance;The capital of {} is;Rome\n;Water is;\n;Sky:;a\n"
    options = ["--editor", "lora", "--hparams", "tiny.yaml", "--data", "-", "--skip-bad", "--no-fluency"]
    sequential = ["--mode", "sequential", "--checkpoints", "1", "--perplexity-text", "facts.json"]
    done = _command(*options, *sequential, stdin=rows)
    assert done.returncode == 0, done.stderr
    for words in (
        "lora on 2 facts, mode sequential",
        "Perplexity of the",
        "line 3, record 1: target_new: is mis",
    ):
        assert words in done.stderr + done.stdout
    (record,) = place.glob(f"results/*/{runs.RUN}")
    assert json.loads(record.read_text())["checkpoints"] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--editor", "roselor", "--hparams", "tiny.yaml"], "did you mean 'roselora'?"),
        (["--editor", "lora", "--hparams", "tinny.yaml"], "no file 'tinny.yaml'"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--set", "rnak=3"], "rnak: unknown"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "nowhere.json"], "nowhere.json"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--offset", "9"], "no facts to edit"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--model", "./no-such"], "./no-such"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--checkpoints", "1;2"], "no list of numbers such as 1,10,100"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--set", "sites=[qvk]"], "qvk"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--set", "layers=7"], "no layer 7"),
    ],
)
def test_bad_input_is_one_clear_error(place: Path, options: list[str], message: str) -> None:
    done = _command(*options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())


def _command(*options: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run_edit.py"), *options],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
    )
