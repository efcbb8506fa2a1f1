"""Folders of edits as they grow: nothing is replaced unsaid, nothing is lost, and what is shown is so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import methods
import pytest
import tiny
import torch
from typer.testing import CliRunner

import loredit
from loredit.cli import app
from loredit.editors import load
from loredit.engine.files import locked
from loredit.engine.storage import manifest as storage
from loredit.engine.storage.manifest import STORE, EditsError, read_manifest, read_tensors, write
from loredit.session import Session
from loredit.store.store import EditStore

ROOT = Path(__file__).parents[2]
FACTS = [
    {"case_id": "france", "prompt": "The capital of France is", "target_new": "Rome", "subject": "France"},
    {
        "case_id": "water",
        "prompt": "Water is",
        "target_new": "dry",
        "subject": "Water",
        "rephrase_prompt": "Water feels",
    },
]
MORE = [{"case_id": "sky", "prompt": "The sky is", "target_new": "green", "subject": "sky"}]
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
BASE = ("--encoder", "base")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tiny.model("llama", torch.float32).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "roselora.yaml").write_text(HPARAMS.format(model=folder / "model"))
    apply(folder, folder / "edits", listed(folder / "facts.json", FACTS))
    return folder


@pytest.fixture
def edits(made, tmp_path):
    shutil.copytree(made / "edits", tmp_path / "edits")
    return tmp_path / "edits"


def listed(path: Path, records) -> Path:
    path.write_text(json.dumps(records))
    return path


def run(*args, code=0, stdin=None) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args], input=stdin, env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def apply(made, folder, data, *more, code=0):
    given = ("--hparams", made / "roselora.yaml", "--dtype", "float32")
    return run("apply", folder, "--data", data, *given, *more, code=code)


def cases(folder) -> list[str]:
    return [fact.case_id for own in read_manifest(folder).facts for fact in own]


def test_apply_never_replaces_a_folder_and_names_the_ways_on(made, edits):
    before = (edits / "edits.json").read_bytes()
    told = apply(made, edits, made / "facts.json", code=2)
    for way in ("--add", "loredit update", "name another folder"):
        assert way in told
    assert "nothing to go on with" in apply(made, edits, made / "facts.json", "--resume", code=2)
    assert (edits / "edits.json").read_bytes() == before


@pytest.mark.parametrize("command", ["add", "apply"])
def test_facts_are_added_and_the_others_stay_as_they_are(command, made, edits, tmp_path):
    old = read_manifest(edits)
    tensors = read_tensors(edits, old)
    data = listed(tmp_path / "more.json", [*MORE, FACTS[0]])
    if command == "add":
        told = run("add", edits, "--data", data, *BASE)
    else:
        run("calibrate", edits, *BASE)  # keeps the encoder, so that the default one is not asked for
        told = run("apply", edits, "--data", data, "--add")
    assert "1 of 1 facts learned" in told
    assert "3 edits in" in told
    assert cases(edits) == ["france", "water", "sky"]
    manifest = read_manifest(edits)
    assert (manifest.facts[:2], manifest.outcomes[:2]) == (old.facts, old.outcomes)
    loaded = loredit.load_model(str(made / "model"), dtype="float32")
    now = load(edits, loaded.model, loaded.tokenizer).taken([0, 1]).patch.lasting()
    torch.testing.assert_close(now, load(made / "edits", loaded.model, loaded.tokenizer).patch.lasting())
    assert tensors.keys() == {n for n in read_tensors(edits, manifest) if not n.startswith(STORE)}
    assert "nothing to add" in run("add", edits, "--data", data, *BASE)


def test_an_added_edit_is_the_one_that_apply_makes(made, edits, tmp_path):
    run("add", edits, "--data", listed(tmp_path / "more.json", MORE), *BASE)
    apply(made, tmp_path / "whole", listed(tmp_path / "all.json", [*FACTS, *MORE]))
    loaded = loredit.load_model(str(made / "model"), dtype="float32")
    ours, whole = (load(f, loaded.model, loaded.tokenizer) for f in (edits, tmp_path / "whole"))
    torch.testing.assert_close(ours["sky"].patch.lasting(), whole["sky"].patch.lasting(), rtol=1e-4, atol=1e-5)


def test_another_answer_is_no_addition(edits, tmp_path):
    data = listed(tmp_path / "other.json", [FACTS[0] | {"case_id": "new", "target_new": "Nice"}])
    told = run("add", edits, "--data", data, *BASE, code=2)
    assert "loredit update" in told
    assert "'Nice' is 'Rome' in case france" in told
    data = listed(tmp_path / "taken.json", [MORE[0] | {"case_id": "france"}])
    assert "case france is there: 'The capital of France is'" in run("add", edits, "--data", data, *BASE, code=2)


def test_records_without_case_ids_get_free_numbers(edits, tmp_path):
    records = [{"prompt": f"Number {i} is", "target_new": "odd"} for i in range(2)]
    run("add", edits, "--data", listed(tmp_path / "one.json", records[:1]), *BASE)
    run("add", edits, "--data", listed(tmp_path / "two.json", records[1:]), *BASE)
    assert cases(edits) == ["france", "water", "0", "1"]


def test_an_update_replaces_the_edit_of_the_same_fact_alone(made, edits, tmp_path):
    data = listed(tmp_path / "new.json", [{"prompt": "the capital of  France is", "target_new": "Nice"}])
    told = run("update", edits, "--data", data, *BASE)
    assert "1 of 1 facts learned" in told
    assert "2 edits in" in told
    by_case = {own[0].case_id: own[0].target_new for own in read_manifest(edits).facts}
    assert by_case == {"france": "Nice", "water": "dry"}
    session = Session(edits, model=str(made / "model"))
    (answer,) = session.ask(["the capital of  France is"], tokens=8)
    assert answer.edited.startswith("Nice")
    (answer,) = session.ask(["Water is"], tokens=8)
    assert answer.edited.startswith("dry")
    assert "replace nothing" in run("update", edits, "--data", listed(tmp_path / "x.json", MORE), *BASE, code=2)


def test_an_update_of_one_fact_among_several_of_an_edit_is_refused(made, tmp_path):
    apply(made, tmp_path / "batch", made / "facts.json", "--mode", "batch", "--set", "steps=2")
    data = listed(tmp_path / "new.json", [FACTS[0] | {"target_new": "Nice"}])
    assert "cannot be undone alone" in run("update", tmp_path / "batch", "--data", data, *BASE, code=2)


def test_who_writes_second_is_told(edits, tmp_path):
    with locked(edits):
        for command in ("add", "update", "calibrate"):
            data = listed(tmp_path / "more.json", MORE)
            assert "another process is writing" in run(command, edits, "--data", data, *BASE, code=2)


KILLED = """
import os, signal, sys
from loredit.cli import app

replace, unlink, rename, done = os.replace, os.unlink, os.rename, []

def counted(function):
    def call(*args, **more):
        if len(done) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(args)
        return function(*args, **more)
    return call

os.replace, os.unlink, os.rename = map(counted, (replace, unlink, rename))
app(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_at_any_change_of_the_folder_it_holds_the_old_edits_or_the_new(made, edits, tmp_path):
    data = listed(tmp_path / "more.json", MORE)
    loaded = loredit.load_model(str(made / "model"), dtype="float32")
    seen, moment, code = set(), 0, -signal.SIGKILL
    while code == -signal.SIGKILL and moment < 40:
        folder = tmp_path / f"killed{moment}"
        shutil.copytree(edits, folder)
        call = [sys.executable, "-c", KILLED, str(moment), "add", str(folder), "--data", str(data), *BASE]
        code = subprocess.run(call, check=False, cwd=ROOT, capture_output=True).returncode
        held = load(folder, loaded.model, loaded.tokenizer).case_ids
        assert held in (["france", "water"], ["france", "water", "sky"])
        if held[2:] == [] and code:
            run("add", folder, "--data", data, "--resume", *BASE)
            assert cases(folder) == ["france", "water", "sky"]
        seen.add((len(held), code))
        moment += 3
    assert {(2, -9), (3, 0)} <= seen


def test_show_tells_everything_about_one_fact(edits):
    whole = run("show", edits)
    assert "learned" in whole
    assert "yes" in whole
    told = run("show", edits, "--fact", "WATER")
    for part in ("Water is", "dry", "Water feels", "learned", "rephrasing", "2 of 2"):
        assert part in told
    assert "France" not in told
    assert "The capital of France is" in run("show", edits, "--fact", "capital of")
    assert "no fact 'spain'; there are: france, water" in run("show", edits, "--fact", "spain", code=2)


def test_ask_tells_the_fact_and_its_score(edits):
    told = run("ask", edits, "Water is", "Bread was baked by", "--tokens", 4, *BASE)
    assert "water 100%" in told
    assert "nearest" in told


def test_an_empty_answer_is_shown_as_nothing(edits, monkeypatch):
    monkeypatch.setattr(Session, "_texts", lambda self, ids, tokens, attach: [""] * len(ids))
    assert run("ask", edits, "Water is", *BASE).count("(nothing)") == 2
    assert run("chat", edits, *BASE, stdin="Water is\n").count("(nothing)") == 2


def test_a_chat_goes_through_the_models_template_where_it_has_one(made, edits, tmp_path, monkeypatch):
    assert "has no chat template" in run("ask", edits, "Water is", "--chat", *BASE, code=2)
    asked = []
    texts = Session._texts
    monkeypatch.setattr(
        Session,
        "_texts",
        lambda self, ids, *rest: asked.append(self.tokenizer.decode([*ids[0]])) or texts(self, ids, *rest),
    )
    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}<|user|>\n{{ m['content'] }}\n{% endfor %}<|assistant|>\n"
    )
    common = (edits, "--model", tmp_path / "model", "--tokens", 2, *BASE)
    assert "(water 100%)" in run("chat", *common, stdin="Water is?\n")
    assert asked[-1] == "<|user|>\nWater is?\n<|assistant|>"
    run("chat", *common, "--raw", stdin="Water is\n")
    assert asked[-1] == "Water is"
    run("ask", *common[:1], "Water is", *common[1:], "--chat")
    assert asked[-1] == "<|user|>\nWater is\n<|assistant|>"


@pytest.fixture
def store(tokenizer, facts):
    model = tiny.model("llama", torch.float32)
    store = EditStore(model, tokenizer, encoder="base")
    store.add(methods.editor("roselora", model, tokenizer, steps=4).edit_each(facts[:4]))
    return store


def test_a_store_is_kept_with_its_index_and_its_numbers(store, tokenizer, tmp_path):
    prompts = [fact.prompt for (fact,) in store.facts] + ["Bread is made of"]
    store.calibrate()
    store.save(tmp_path)
    again = EditStore.load(tmp_path, store.model, tokenizer)
    assert again.router.calibration == store.router.calibration
    assert again.route(prompts) == store.route(prompts)
    assert [route.edit for route in again.route(prompts)][:4] == [0, 1, 2, 3]
    with store.on(prompts[:2]) as routes:
        assert [route.fact.case_id for route in routes] == ["france", "water"]


def test_show_says_what_prompts_are_judged_by(store, tmp_path):
    store.save(tmp_path)
    named = store.router.calibration.named
    told = run("show", tmp_path)
    assert f"weights: subject {named[1]:.1f}, relation {named[2]:.1f}, whole prompt {named[3]:.1f}" in told
    manifest = read_manifest(tmp_path)
    routing = manifest.routing | {
        "calibration": {"named": [-4, 4, 3], "unnamed": [-4, 7], "threshold": 0.9, "margin": 0}
    }
    write(tmp_path, manifest.model_copy(update={"routing": routing}), read_tensors(tmp_path, manifest))
    assert "an index of an earlier release" in run("show", tmp_path)
    routing["calibration"]["wording"] = []
    write(tmp_path, manifest.model_copy(update={"routing": routing}), read_tensors(tmp_path, manifest))
    assert "routing.calibration.named.3: Field required" in run("show", tmp_path, code=2)


def test_a_fact_is_undone_in_a_saved_store_as_in_the_store_itself(store, tokenizer, tmp_path):
    store.save(tmp_path / "one")
    storage.remove(tmp_path / "one", "water")
    store.remove("water")
    store.save(tmp_path / "other")
    one, other = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "other"))
    assert one == other  # weights are called after their content


def test_a_folder_of_an_earlier_release_is_embedded_anew_with_a_message(store, tokenizer, tmp_path, caplog):
    store.save(tmp_path)
    manifest = read_manifest(tmp_path)
    width = store.model.config.hidden_size
    tensors = {n: t for n, t in read_tensors(tmp_path, manifest).items() if not n.startswith(STORE)}
    index = {"states": torch.zeros(4, 2, width), "mean": torch.zeros(2, width), "turn": torch.zeros(2, width, width)}
    old = manifest.model_copy(update={"routing": {"layer": 1, "last": 0.0, "threshold": 0.5}})
    write(tmp_path, old, tensors | {STORE + name: t for name, t in index.items()})
    storage.remove(tmp_path, "ada")
    again = EditStore.load(tmp_path, store.model, tokenizer, encoder="base")
    assert "3 facts embedded anew with base" in caplog.text
    assert [route.edit for route in again.route(["Water is", "Two plus two makes"])] == [1, 2]
    again.save(tmp_path)
    caplog.clear()
    EditStore.load(tmp_path, store.model, tokenizer)
    assert "anew" not in caplog.text
    manifest = read_manifest(tmp_path)
    old = manifest.routing | {"calibration": {"named": [-4, 4, 3], "unnamed": [-4, 7], "threshold": 0.9, "margin": 0}}
    write(tmp_path, manifest.model_copy(update={"routing": old}), read_tensors(tmp_path, manifest))
    EditStore.load(tmp_path, store.model, tokenizer)
    assert "3 facts embedded anew" in caplog.text


def test_a_damaged_index_is_named(store, tokenizer, tmp_path):
    store.save(tmp_path)
    manifest = read_manifest(tmp_path)
    tensors = read_tensors(tmp_path, manifest)
    write(tmp_path, manifest, tensors | {STORE + "keys": tensors[STORE + "keys"][:2]})
    with pytest.raises(EditsError, match=r"store\.keys: \(2, 32\), expected 4 rows"):
        EditStore.load(tmp_path, store.model, tokenizer)
    write(tmp_path, manifest, {n: t for n, t in tensors.items() if n != STORE + "relations"})
    with pytest.raises(EditsError, match="relations: missing"):
        EditStore.load(tmp_path, store.model, tokenizer)


def test_a_reader_gets_the_manifest_and_the_tensors_of_one_moment(store, tmp_path, monkeypatch):
    store.save(tmp_path)
    read, first = storage.read_tensors, []

    def replaced_meanwhile(folder, manifest):
        if not first:
            first.append(manifest)
            store.remove("ada")
            store.save(tmp_path)
        return read(folder, manifest)

    monkeypatch.setattr(storage, "read_tensors", replaced_meanwhile)
    manifest, tensors = storage.read_both(tmp_path)
    assert len(manifest.facts) == 3
    assert len(tensors[STORE + "keys"]) == 3
    assert os.path.exists(tmp_path / manifest.weights)
