"""Whole runs on a tiny model through the library call and the command line: results, resuming, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from where import ROOT

from loredit import editors
from loredit.data import Fact
from loredit.engine.files import LockedError, locked
from loredit.engine.progress import Phase
from loredit.evaluation import runs
from loredit.evaluation.scores import FactScores

TIMES = {"edit_seconds", "score_seconds"}


def _run(**options: Any) -> runs.RunResult:
    return runs.run(
        "lora",
        "tiny.yaml",
        **{"data": "facts.json", "dtype": "float32", "fluency": False, "edits_at_once": 2} | options,
    )


def _results(folder: Path, name: str = runs.RESULTS) -> dict[str, dict[str, Any]]:
    lines = (folder / name).read_text().splitlines()
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
    records[0]["locality"]["other"][0]["ground_truth"] = ""
    (place / "facts.json").write_text(json.dumps(records))
    result = _run(skip_bad=True)
    assert [(bad.field, "record 1" in bad.where) for bad in result.bad] == [("target_new", True)]
    assert result.unanswered == 1
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


def test_resume_removes_what_the_killed_run_left_and_nothing_else(place: Path) -> None:
    _run(limit=1, output=place)  # a folder that holds other things as well
    ours, others = [".edits", ".edits-3", ".results.jsonl.x1"], [".git", ".env", "notes.txt"]
    for name in (*ours, *others):
        path = place / name
        path.mkdir() if "." not in name[1:] else path.write_text("")
    _run(limit=1, output=place, resume=True)
    assert not any((place / name).exists() for name in ours)
    assert all((place / name).exists() for name in others)


def test_resume_with_other_settings_is_refused(place: Path) -> None:
    _run(limit=2, output="mine")
    with pytest.raises(runs.RunError, match="other settings \\(hparams, seed\\)"):
        _run(limit=2, output="mine", resume=True, seed=1, overrides={"rank": 1})


# One process that forks, so that imports are paid for once; each child kills itself at a random moment.
KILLED = """
import json, os, random, sys, threading, time
from pathlib import Path
from loredit.evaluation import runs

mode, text = sys.argv[1], "facts.json" if sys.argv[1] != "single" else None
moments = random.Random(mode)

def killed_after(calls):  # progress is told of each step of training and of all scoring, and of all that is written
    def progress(phase, done, total):
        nonlocal calls
        calls -= 1
        if calls == 0:  # in another thread, so that the signal comes while the run goes on
            wait = moments.random() * 0.005
            threading.Thread(target=lambda: (time.sleep(wait), os.kill(os.getpid(), 9))).start()
    return progress

def finished():  # facts that need not be edited again; every file under its own name is whole
    folder = Path("killed")
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    saved = [int(path.name[6:]) for path in folder.glob("edits-*") if json.loads((path / "edits.json").read_text())]
    results = folder / runs.RESULTS
    return max([*saved, results.read_bytes().count(b"\\n") if results.exists() else 0])

for calls in [1, *(moments.randrange(1, 14) for _ in range(9)), 10**6]:  # first before anything is saved
    child = os.fork()
    if child == 0:
        runs.run("lora", "tiny.yaml", data="facts.json", dtype="float32", fluency=False, edits_at_once=1, mode=mode,
                 perplexity_text=text, output="killed", resume=True, progress=killed_after(calls))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), finished())
"""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(place: Path, mode: runs.EditMode) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, mode], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended, finished = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert {*ended[:-1]} <= {-signal.SIGKILL, 0}, done.stderr
    assert ended.count(-signal.SIGKILL) > 3
    assert ended[-1] == 0, done.stderr
    assert list(finished) == sorted(finished), "what is finished stays finished"
    assert len({*finished}) > 2, "the run is to be killed at different moments"
    options = {"edits_at_once": 1, "perplexity_text": None if mode == "single" else "facts.json"}
    whole, resumed = (_run(mode=mode, output=name, resume=True, **options) for name in ("whole", "killed"))
    assert (resumed.summary, resumed.checkpoints) == (whole.summary, whole.checkpoints)
    assert _results(resumed.folder) == _results(whole.folder)
    assert _names(resumed.folder) == _names(whole.folder), "nothing unfinished is left"
    assert [path.read_bytes() for path in sorted(resumed.folder.glob("edits-*/*.safetensors"))] == [
        path.read_bytes() for path in sorted(whole.folder.glob("edits-*/*.safetensors"))
    ]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Batch and sequential


def test_a_batch_is_one_edit_for_all_facts(place: Path) -> None:
    result = _run(mode="batch", perplexity_text="facts.json")
    scores = _results(result.folder)
    assert list(scores) == ["france", "water", "sum", "ada", "sky"]
    assert len({score["loss"] for score in scores.values()}) == 1
    (point,) = result.checkpoints
    assert (point.edits, point.summary) == (5, result.summary)
    assert point.perplexity is not None
    assert point.perplexity.edited != point.perplexity.base
    norms = scores["sky"]["report"]["norms"].values()
    assert point.norm == pytest.approx(sum(norm**2 for norm in norms) ** 0.5)
    assert (result.folder / "edits-5" / "edits.json").exists()


def test_a_batch_that_was_interrupted_while_it_was_scored_is_not_trained_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_SCORED_AT_ONCE", 2)
    whole = _run(mode="batch", output="whole")
    part = _run(mode="batch", output="part")
    lines = (part.folder / runs.RESULTS).read_bytes().splitlines(keepends=True)
    (part.folder / runs.RESULTS).write_bytes(b"".join(lines[:2]))
    (part.folder / runs.CHECKPOINTS).unlink()
    monkeypatch.setattr(editors.Editor, "edit", lambda *_, **__: pytest.fail("it is trained again"))
    resumed = _run(mode="batch", output="part", resume=True)
    assert (resumed.summary, resumed.checkpoints) == (whole.summary, whole.checkpoints)


def test_a_sequential_run_scores_all_facts_so_far_at_its_checkpoints(place: Path) -> None:
    result = _run(mode="sequential", checkpoints=[3, 1, 99])
    assert [point.edits for point in result.checkpoints] == [1, 3, 5]
    assert result.checkpoints[-1].summary == result.summary
    assert _names(result.folder) >= {"checkpoint-1.jsonl", "checkpoint-3.jsonl", "edits-5", runs.RETENTION}
    first, then = (_results(result.folder, f"checkpoint-{n}.jsonl") for n in (1, 3))
    assert (list(first), list(then)) == (["france"], ["france", "water", "sum"])
    assert first["france"]["probes"] != then["france"]["probes"] != _results(result.folder)["france"]["probes"]
    alone = _run(limit=1, output="alone")
    assert _results(alone.folder)["france"] == first["france"]
    ages = [(group.youngest, group.oldest) for group in result.checkpoints[-1].by_age]
    assert ages == [(0, 0), (1, 2), (3, 4)]
    newest = result.checkpoints[-1].by_age[0].metrics["edit_success"]
    correct = _results(result.folder)["sky"]["probes"][0]["edited"]["answers"][0]["correct"]
    assert (newest.mean, newest.facts) == (100 * sum(correct) / len(correct), 1)


def test_one_bad_fact_does_not_cost_the_others_their_edit(place: Path) -> None:
    records = json.loads((place / "facts.json").read_text())
    records[1]["prompt"] = "so " * tiny.CONTEXT
    (place / "facts.json").write_text(json.dumps(records))
    for mode in ("single", "batch", "sequential"):
        result = _run(mode=mode, output=mode)
        assert [failed.case_id for failed in result.summary.failed] == ["water"]
        assert "context is 192" in result.summary.failed[0].message
        assert result.summary.metrics["edit_success"].edited.facts == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": [1]}, "checkpoints are for sequential editing; in single mode"),
        ({"mode": "sequential", "checkpoints": [0]}, "1 or more, not 0"),
        ({"perplexity_text": "facts.json"}, "Use mode batch or sequential"),
        ({"mode": "batch", "perplexity_text": "nowhere.txt"}, "cannot be read from nowhere.txt"),
        ({"mode": "batch", "perplexity_text": "empty.txt"}, "empty.txt, is empty"),
    ],
)
def test_options_of_other_modes_are_refused_before_anything_is_done(
    place: Path, options: dict[str, Any], message: str
) -> None:
    (place / "empty.txt").write_text("\n")
    with pytest.raises(runs.RunError, match=message):
        _run(**options)
    assert not (place / "results").exists()


# What a library call takes


def test_facts_and_an_editor_are_taken_as_objects(place: Path, facts: tuple[Fact, ...]) -> None:
    named = _run(limit=2, output="named", seed=3)
    method = editors.editor("lora", "tiny.yaml", seed=3, dtype="float32")
    given = runs.run(method, facts=facts[:2], fluency=False, edits_at_once=2, progress=False)
    assert given.folder.name == "lora-001"
    record = json.loads((given.folder / runs.RUN).read_text())
    assert (record["data"]["source"], record["data"]["facts"], record["seed"]) == ("facts", 2, 3)
    for case_id, scores in _results(given.folder).items():
        ours = {probe["prompt"]: probe for probe in scores["probes"]}
        theirs = {probe["prompt"]: probe for probe in _results(named.folder)[case_id]["probes"]}
        assert theirs.keys() <= ours.keys(), "the list has no portability"
        for prompt, probe in theirs.items():
            own, expected = (each["edited"]["answers"][0] for each in (ours[prompt], probe))
            assert own["correct"] == expected["correct"]
            # In float32, beside other rows: the portability probes of the facts are not in the list.
            assert own["log_prob"] == pytest.approx(expected["log_prob"], rel=1e-3)


def test_what_an_editor_brings_along_cannot_be_given_twice(place: Path, facts: tuple[Fact, ...]) -> None:
    method = editors.editor("lora", "tiny.yaml", dtype="float32")
    for options in ({"preset": "tiny.yaml"}, {"overrides": {"rank": 1}}, {"model": "tiny"}):
        with pytest.raises(runs.RunError, match="has its settings and model already; leave out others"):
            runs.run(method, facts=facts[:1], **options)
    with pytest.raises(runs.RunError, match=r"needs a preset: run\('lora', 'smollm2'\)"):
        runs.run("lora", facts=facts[:1])
    assert not (place / "results").exists()


def test_two_runs_do_not_write_to_one_folder(place: Path) -> None:
    with locked(Path("mine")), pytest.raises(LockedError, match="another process is writing to mine"):
        _run(limit=1, output="mine")
    assert _run(limit=1, output="mine").facts == 1


def test_progress_is_told_of_all_facts_up_to_the_end(place: Path) -> None:
    told: list[tuple[Any, float, int]] = []
    _run(limit=2, progress=lambda *args: told.append(args))
    assert all(isinstance(phase, Phase) and facts == 2 for phase, _, facts in told)
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
