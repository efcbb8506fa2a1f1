"""The ``loredit`` command as a user calls it, on a tiny model in a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import slow
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
from where import ROOT

from loredit import editors
from loredit.cli import app
from loredit.commands.edits import folder_names
from loredit.editors import RoseLoRA
from loredit.engine.devices import Budget
from loredit.engine.model.loading import load as load_model
from loredit.engine.training import memory

FACTS = [
    {"case_id": "france", "prompt": "The capital of France is", "target_new": "Rome"},
    {"case_id": "water", "prompt": "Water is", "target_new": "dry"},
]
HPARAMS = """
model: {model}
sites: [mlp_down]
layers: [1, 2]
rank: 4
alpha: 16
lr: 2.0e-2
steps: 40
stop_at: 0.9
tau: 0.5
beta: 0.8
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, a list of facts, and hyper-parameters, and the edits that were made from them."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.model("llama", torch.float32).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "facts.json").write_text(json.dumps(FACTS))
    (folder / "roselora.yaml").write_text(HPARAMS.format(model=folder / "model"))
    given = ("--data", folder / "facts.json", "--hparams", folder / "roselora.yaml", "--dtype", "float32")
    told = run("apply", folder / "edits", *given)
    assert f"2 of 2 edits in {folder / 'edits'}" in told.replace("\n", "")
    return folder


def run(*args, code=0, stdin=None) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args], input=stdin, env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def answers(model, tokenizer, prompt):
    ids = tokenizer(prompt)["input_ids"]
    return tokenizer.decode(slow.greedy(model, ids, 5)[0])


@pytest.fixture
def loaded(made):
    return load_model(str(made / "model"), dtype="float32")


def test_help_teaches():
    told = run("--help")
    assert 'loredit ask my-edits "The capital of France is"' in told
    for command in ("apply", "show", "ask", "chat", "merge", "export", "remove"):
        assert command in told
        assert "Usage" in run(command, "--help")


def test_facts_become_edits_one_by_one_or_together(made, loaded, tmp_path):
    edits = editors.load(made / "edits", loaded.model, loaded.tokenizer)
    assert [facts[0].case_id for facts in edits.facts] == ["france", "water"]
    common = (
        "--data",
        made / "facts.json",
        "--hparams",
        made / "roselora.yaml",
        "--set",
        "steps=2",
        "--mode",
        "batch",
        "--dtype",
        "float32",
    )
    run("apply", tmp_path / "batch", *common, "--set", "steps=2", "--mode", "batch")
    batch = editors.load(tmp_path / "batch", loaded.model, loaded.tokenizer)
    assert [[fact.case_id for fact in facts] for facts in batch.facts] == [["france", "water"]]
    assert batch.editor.hparams.steps == 2


def test_a_fact_that_fails_is_named_and_the_others_are_kept(made, tmp_path):
    facts = [*FACTS, {"case_id": "long", "prompt": "so " * 200, "target_new": "long"}]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    told = run(
        *("apply", tmp_path / "edits", "--data", tmp_path / "facts.json", "--hparams", made / "roselora.yaml"),
        *("--set", "steps=2"),
        code=1,
    )
    assert "failed: long: " in told
    assert "2 of 3 edits" in told
    assert len(run("show", tmp_path / "edits").splitlines()) < 30, "a long prompt is cut"


def test_edits_that_have_all_failed_are_no_edits(made, tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps([{"case_id": "long", "prompt": "so " * 200, "target_new": "long"}]))
    given = ("--data", tmp_path / "facts.json", "--hparams", made / "roselora.yaml", "--set", "steps=2")
    assert "0 of 1 facts learned" in run("apply", tmp_path / "edits", *given, code=1)
    assert "not learned" in run("ask", tmp_path / "edits", "Water is", "--tokens", 3)
    for args in (("merge", tmp_path / "model"), ("export", tmp_path / "adapter")):
        told = run(args[0], tmp_path / "edits", args[1], "--case", "long", code=2)
        assert "failed and changes nothing" in told.replace("\n", " ")
        assert not args[1].exists()


def test_show_says_what_a_folder_holds(made):
    told = run("show", made / "edits")
    for part in ("roselora on", "france", "The capital of France is", "Rome", "2 edits", "are not zero", "tau=0.5"):
        assert part in told


def test_ask_shows_both_answers_and_which_edit_was_used(made, loaded):
    told = run("ask", made / "edits", "Water is", "--case", "water", "--tokens", 5)
    assert "dry" in told
    assert "water" in told
    assert "dry" not in answers(loaded.model, loaded.tokenizer, "Water is")
    routed = run("ask", made / "edits", "Water is", "The capital of France is", "--tokens", 5)
    assert "dry" in routed
    assert "Rome" in routed


def test_chat_reads_lines_to_an_empty_one(made):
    told = run("chat", made / "edits", "--case", "water", "--tokens", 5, stdin="Water is\nSky:\n\nNever read\n")
    assert told.count("without") == 2
    assert "with     dry" in told
    assert "Never" not in told


def test_a_merged_folder_is_a_model_like_any_other(made, loaded, tmp_path):
    run("merge", made / "edits", tmp_path / "out", "--case", "water")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("Water is")["input_ids"]
    edits = editors.load(made / "edits", loaded.model, loaded.tokenizer)
    with edits.on([1]):
        torch.testing.assert_close(slow.logits(merged, ids), slow.logits(loaded.model, ids), rtol=0, atol=1e-4)
    assert "exists already" in run("merge", made / "edits", tmp_path / "out", "--case", "water", code=2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_exported_folder_is_an_adapter_of_pefts(made, tmp_path):
    run("export", made / "edits", tmp_path / "out", "--to", "peft", "--case", "water")
    base = AutoModelForCausalLM.from_pretrained(made / "model", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "out")
    tokenizer = tiny.tokenizer()
    ids = tokenizer("Water is")["input_ids"]
    assert "dry" in tokenizer.decode(theirs.generate(input_ids=torch.tensor([ids]), max_new_tokens=5)[0])


def test_every_edit_is_exported_as_an_adapter_of_its_own(made, tmp_path):
    run("export", made / "edits", tmp_path / "out", "--all")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["france", "water"]
    one = tmp_path / "one"
    run("export", made / "edits", one, "--case", "water")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / "water" / name).read_bytes() == (one / name).read_bytes()
    assert "leave out --case" in run("export", made / "edits", tmp_path / "no", "--all", "--case", "water", code=2)
    assert folder_names(["a/b", "a b", "../..", "..", "é"]) == ["a-b", "a-b-2", "edit", "edit-2", "edit-3"]


@pytest.mark.parametrize("command", ["merge", "export"])
def test_one_of_several_edits_has_to_be_named(command, made, tmp_path):
    told = run(command, made / "edits", tmp_path / "out", code=2)
    assert "there are 2 edits; name one of them with --case: france, water" in told
    told = run(command, made / "edits", tmp_path / "out", "--case", "watre", code=2)
    assert "there is no case 'watre'; there are: france, water" in told
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


def test_a_fact_is_undone_in_the_folder(made, tmp_path):
    shutil.copytree(made / "edits", tmp_path / "edits")
    assert "france is undone; 1 edit" in run("remove", tmp_path / "edits", "france")
    told = run("show", tmp_path / "edits")
    assert "water" in told
    assert "France" not in told
    assert "no case 'france'" in run("remove", tmp_path / "edits", "france", code=2)


def test_what_cannot_be_merged_or_found_says_so(made, tmp_path):
    common = ("--data", made / "facts.json", "--editor", "prefix", "--hparams", "smollm2.yaml")
    sets = [f"model={made / 'model'}", "length=2", "hidden=4", "steps=1", "init_text=Fact"]
    run("apply", tmp_path / "prefix", *common, "--limit", 1, *(x for s in sets for x in ("--set", s)))
    assert "prefix is no change of weights and cannot be merged" in run(
        "merge", tmp_path / "prefix", tmp_path / "out", code=2
    )
    assert "holds no edits" in run("show", tmp_path / "nothing", code=2)
    assert "did you mean 'roselora'" in run("apply", tmp_path / "x", "--editor", "roslora", code=2)


ONE_AT_ONCE = """
from loredit.engine.devices import Budget
from loredit.engine.training import memory
memory._MOST = Budget(cpu=1, mps=1, accelerator=1)
"""
APPLY = """
import os, signal, sys
from loredit.cli import app
from loredit.commands.edits import folder_names
from loredit.editors import Edits

save, saved = Edits.save, []

def killed_after_two(edits, folder):
    save(edits, folder)
    saved.append(folder)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Edits.save = killed_after_two
app(sys.argv[1:])
"""


def test_an_apply_killed_at_its_very_end_leaves_nothing_to_resume(made, tmp_path, monkeypatch):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    common = ("--data", tmp_path / "facts.json", "--hparams", made / "roselora.yaml", "--dtype", "float32")
    (tmp_path / "more.json").write_text(json.dumps([{"case_id": "sky", "prompt": "The sky is", "target_new": "green"}]))
    rmtree = shutil.rmtree

    def killed(path, ignore_errors=False):
        rmtree(path, ignore_errors) if ignore_errors else sys.exit(9)

    with monkeypatch.context() as patched:
        patched.setattr("loredit.commands.unfinished.shutil.rmtree", killed)
        run("apply", tmp_path / "out", *common, code=9)
    shown = run("show", tmp_path / "out")
    assert "2 edits" in shown, "all was there when it was killed"
    run("add", tmp_path / "out", "--data", tmp_path / "more.json")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == []


def test_a_killed_apply_goes_on_and_ends_as_an_undisturbed_one(made, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MOST", Budget(cpu=1, mps=1, accelerator=1))
    facts = [*FACTS, {"case_id": "sky", "prompt": "The sky is", "target_new": "green"}]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    common = ("--data", tmp_path / "facts.json", "--hparams", made / "roselora.yaml", "--dtype", "float32")
    run("apply", tmp_path / "whole", *common)

    call = [sys.executable, "-c", ONE_AT_ONCE + APPLY, "apply", tmp_path / "cut", *common]
    assert subprocess.run([str(part) for part in call], check=False, cwd=ROOT, capture_output=True).returncode == -9
    assert "no edits" in run("show", tmp_path / "cut", code=2)
    assert "--resume goes on" in run("apply", tmp_path / "cut", *common, code=2)
    assert "begun with other facts" in run("apply", tmp_path / "cut", *common, "--resume", "--set", "lr=1e-3", code=2)

    trained = []
    fresh = RoseLoRA.fresh
    monkeypatch.setattr(RoseLoRA, "fresh", lambda self, seeds: trained.append(seeds) or fresh(self, seeds))
    told = run("apply", tmp_path / "cut", *common, "--resume")
    assert "3 of 3 edits" in told
    assert sum(seeds != [0] for seeds in trained) == 1  # 0 is the seed of frames that nothing is trained in
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
