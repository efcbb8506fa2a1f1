"""Whole runs on a tiny model through the library call and the command line: results, resuming, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from loredit.data import Fact
from loredit.evaluation import FactScores, runs

ROOT = Path(__file__).parent.parent
TIMES = {"edit_seconds", "score_seconds"}


@pytest.fixture
def place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, facts: tuple[Fact, ...], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a tiny model, a preset for it and a fact list; the working directory is there."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny.yaml").write_text(
        f"model: {tmp_path}/tiny\nsites: [mlp_down]\nlayers: 1-2\nrank: 2\nalpha: 4\nlr: 1.0e-2\nsteps: 4\n"
    )
    records = [
        {
            "case_id": fact.case_id,
            "prompt": fact.prompt,
            "target_new": fact.target_new,
            "rephrase_prompt": list(fact.rephrase_prompts),
            "locality": {
                g: [{"prompt": p.prompt, "ground_truth": list(p.answers)} for p in ps]
                for g, ps in fact.locality.items()
            },
        }
        for fact in facts
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(**options: Any) -> runs.RunResult:
    return runs.run(
        "lora",
        "tiny.yaml",
        **{"data": "facts.json", "dtype": "float32", "fluency": False, "edits_at_once": 2} | options,
    )


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / runs.RESULTS).read_text().splitlines()
    return {scores.case_id: scores.model_dump(exclude=TIMES) for scores in map(FactScores.model_validate_json, lines)}


def test_a_run_writes_what_it_needs_to_be_repeated(place: Path) -> None:
    result = _run(offset=1, limit=3, seed=5)
    record = json.loads((result.folder / runs.RUN).read_text())
    assert (record["editor"], record["seed"], record["hparams"]["rank"]) == ("lora", 5, 2)
    assert record["data"]["offset"] == 1
    assert set(_results(result.folder)) == {"water", "sum", "ada"}
    assert json.loads((result.folder / runs.SUMMARY).read_text())["facts"] == 3
    assert result.summary.metrics["edit_success"].edited.facts == 3


def test_a_run_records_and_draws_the_ranks_of_its_edits(place: Path) -> None:
    (place / "ada.yaml").write_text(
        f"model: {place}/tiny\nsites: [mlp_down]\nlayers: 1-2\ninit_r: 2\ntarget_r: 1\nalpha: 4\nlr: 1.0e-2\nsteps: 4\n"
    )
    result = runs.run("adalora", "ada.yaml", data="facts.json", limit=2, dtype="float32", fluency=False)
    for scores in _results(result.folder).values():
        ranks = scores["report"]["ranks"]
        assert [*ranks] == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
        assert sum(ranks.values()) == 2
    assert (result.folder / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_results_in_easyedits_form_stand_beside_ours(place: Path) -> None:
    result = _run(limit=3, easyedit=True)
    written = json.loads((result.folder / runs.EASYEDIT).read_text())
    assert [entry["case_id"] for entry in written] == ["france", "water", "sum"]
    assert all({"pre", "post"} <= entry.keys() for entry in written)
    ours = _results(result.folder)["water"]["probes"][0]["edited"]["answers"][0]["correct"]
    assert written[1]["post"]["rewrite_acc"] == [sum(ours) / len(ours)]


def test_bad_records_are_left_out_only_on_request_and_are_listed(place: Path) -> None:
    records = json.loads((place / "facts.json").read_text())
    del records[1]["target_new"]
    (place / "facts.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="target_new"):
        _run()
    result = _run(skip_bad=True)
    assert [(bad.field, "record 1" in bad.where) for bad in result.bad] == [("target_new", True)]
    assert set(_results(result.folder)) == {"france", "sum", "ada", "sky"}


def test_a_models_name_is_taken_as_it_is(place: Path) -> None:
    (place / "tiny").rename(place / "1: tiny # one")  # YAML would read a mapping and a comment
    assert _run(limit=1, model="1: tiny # one").facts == 1


def test_each_run_has_a_folder_of_its_own(place: Path) -> None:
    assert _run(limit=1).folder != _run(limit=1).folder
    _run(limit=1, output="mine")
    with pytest.raises(runs.RunError, match="--resume goes on with it"):
        _run(limit=1, output="mine")


@pytest.mark.parametrize("cut", [0, 30])
def test_a_run_cut_off_in_the_middle_goes_on_to_the_same_results(place: Path, cut: int) -> None:
    whole = _run(output="whole")
    part = _run(output="part")
    lines = (part.folder / runs.RESULTS).read_bytes().splitlines(keepends=True)
    # Two facts are finished; of a third, ``cut`` bytes were written when the power failed.
    (part.folder / runs.RESULTS).write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    (part.folder / runs.SUMMARY).unlink()
    resumed = _run(output="part", resume=True)
    assert _results(resumed.folder) == _results(whole.folder)
    assert resumed.summary == whole.summary


def test_resume_finds_the_newest_run_with_the_same_settings(place: Path) -> None:
    first = _run(limit=2)
    _run(limit=3)
    assert _run(limit=2, resume=True).folder == first.folder
    with pytest.raises(runs.RunError, match="nothing to resume"):
        _run(limit=4, resume=True)


def test_resume_with_other_settings_is_refused(place: Path) -> None:
    _run(limit=2, output="mine")
    with pytest.raises(runs.RunError, match="other settings \\(hparams, seed\\)"):
        _run(limit=2, output="mine", resume=True, seed=1, overrides=["rank=1"])


def test_a_killed_process_loses_only_the_batch_in_flight(place: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "run_edit.py"),
        "--editor",
        "lora",
        "--hparams",
        "tiny.yaml",
        "--data",
        "facts.json",
    ]
    command += ["--dtype", "float32", "--no-fluency", "--edits-at-once", "1", "--output", "killed", "--set", "steps=40"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    results = place / "killed" / runs.RESULTS
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = results.read_bytes().count(b"\n")
    assert finished >= 2
    whole = _run(overrides=["steps=40"], output="whole")
    resumed = _run(overrides=["steps=40"], output="killed", resume=True)
    assert resumed.summary == whole.summary


def test_the_command_line_prints_a_table_and_where_the_results_are(place: Path) -> None:
    done = _command(
        "--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--limit", "2", "--eval", "all"
    )
    assert done.returncode == 0, done.stderr
    for words in ("edit success", "locality", "fluency", "unedited", "results in results"):
        assert words in done.stdout
    assert "2.0/2" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--editor", "roselor", "--hparams", "tiny.yaml"], "did you mean 'roselora'?"),
        (["--editor", "lora", "--hparams", "tinny.yaml"], "no file 'tinny.yaml'"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--set", "rnak=3"], "rnak: unknown"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "nowhere.json"], "nowhere.json"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--offset", "9"], "no facts to edit"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--model", "./no-such"], "./no-such"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--set", "sites=[qvk]"], "qvk"),
        (["--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json", "--set", "layers=7"], "no layer 7"),
    ],
)
def test_bad_input_is_one_clear_error(place: Path, options: list[str], message: str) -> None:
    done = _command(*options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())


def _command(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run_edit.py"), *options], capture_output=True, text=True, env=environment
    )
