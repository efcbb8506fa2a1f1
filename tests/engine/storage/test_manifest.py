"""Edits as files: nothing is lost, little is written, and what is damaged or another model's is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import methods
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from where import ROOT

from loredit import editors
from loredit.engine.storage.manifest import EditsError, read_manifest, remove, write


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture
def llama():
    return tiny.model("llama", torch.float32)


@pytest.fixture
def edits(llama, tokenizer, facts):
    return methods.editor("roselora", llama, tokenizer, tau=0.1).edit_each(facts[:3])


@pytest.fixture
def saved(edits, tmp_path):
    edits.save(tmp_path / "edits")
    return tmp_path / "edits"


def rewritten(folder: Path, changes) -> None:
    """The folder's weights after ``changes(tensors)``, under the name that fits them."""
    manifest = read_manifest(folder)
    tensors = load_file(folder / manifest.weights)
    changes(tensors)
    write(folder, manifest.model_copy(update={"packed": {}}), tensors)
    text = json.loads((folder / "edits.json").read_text())
    text["packed"] = manifest.model_dump(mode="json")["packed"]
    (folder / "edits.json").write_text(json.dumps(text))


def test_a_pruned_edit_takes_its_share_and_a_bit_for_each_number(llama, tokenizer, edits, saved, tmp_path):
    dense = tmp_path / "dense"
    save_file({n: t.contiguous() for n, t in edits.patch.lasting().items()}, tmp_path / "dense.safetensors")
    share = max(edits.nonzero_share(i) for i in range(3))
    assert share < 0.15
    header = 4096
    assert folder_bytes(saved) < (share + 1 / 32) * (tmp_path / "dense.safetensors").stat().st_size + header
    again = editors.load(saved, llama, tokenizer)
    torch.testing.assert_close(again.patch.lasting(), edits.patch.lasting(), rtol=0, atol=0)
    assert not dense.exists()


def test_the_model_is_known_by_its_content_and_both_are_named(tokenizer, saved):
    other = tiny.model("llama", torch.float32, seed=1)
    with pytest.raises(EditsError, match=r"another model: theirs is 'tiny' in float32 \(contents .*this one is .* in"):
        editors.load(saved, other, tokenizer)
    with pytest.raises(EditsError, match=r"in float64.*Load it in float32"):
        editors.load(saved, tiny.model("llama"), tokenizer)


def _without(name):
    return lambda tensors: tensors.pop(name)


def _changed(name, change):
    def do(tensors):
        tensors[name] = change(tensors[name]).contiguous()

    return do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_without("seeds"), "seeds: missing"),
        (_without("branches.0.a.mask"), "branches.0.a: its mask or its values are missing"),
        (lambda t: t.update(more=torch.ones(3, 1)), "more: unknown"),
        (_changed("steps", lambda t: t[:2]), r"steps: \(2,\), expected 3 rows"),
        (_changed("steps", lambda t: t.float()), "steps: .* of float32, expected .* of int64"),
        (_changed("branches.0.b.values", lambda t: t[1:]), "branches.0.b: its mask is for"),
        (_changed("branches.0.b.mask", lambda t: t[:, 1:]), "branches.0.b: its mask is .* does not fit the shape"),
        (_changed("branches.0.b.mask", lambda t: t.int()), "branches.0.b: its mask is"),
    ],
)
def test_damaged_weights_are_one_clear_error(changes, message, llama, tokenizer, saved):
    rewritten(saved, changes)
    with pytest.raises(EditsError, match="damaged and cannot be used:\n  ") as error:
        editors.load(saved, llama, tokenizer)
    assert error.match(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"editor": "roslora"}, "did you mean 'roselora'"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"weights": "../edits.safetensors"}, "weights: String should match pattern"),
        ({"outcomes": []}, "3 edits have facts, but 0 have outcomes"),
        ({"packed": {"branches.0.a": [-1, 4, 32]}}, r"packed.branches.0.a.0: Input should be greater than or equal"),
        ({"packed": {"branches.0.a": [3, 4, 33]}}, r"branches.0.a: its mask is"),
        ({"hparams": {"model": "tiny"}}, "hparams: .* fault"),
        ({"format": 2}, "format: Input should be 1"),
    ],
)
def test_a_damaged_manifest_is_one_clear_error(changes, message, llama, tokenizer, saved):
    path = saved / "edits.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(EditsError, match=message):
        editors.load(saved, llama, tokenizer)


def test_files_that_are_cut_off_or_missing_are_one_clear_error(llama, tokenizer, saved):
    (weights,) = saved.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(EditsError, match="its content is not what its name says"):
        editors.load(saved, llama, tokenizer)
    weights.unlink()
    with pytest.raises(EditsError, match="safetensors is missing"):
        editors.load(saved, llama, tokenizer)
    text = (saved / "edits.json").read_text()
    (saved / "edits.json").write_text(text[: len(text) // 2])
    with pytest.raises(EditsError, match="the file: Invalid JSON"):
        editors.load(saved, llama, tokenizer)
    with pytest.raises(EditsError, match="holds no edits"):
        editors.load(saved / "nothing", llama, tokenizer)


def test_sizes_that_do_not_agree_with_the_ranks_are_refused(llama, tokenizer, facts, tmp_path):
    methods.editor("simplexlora", llama, tokenizer).edit_each(facts[:2]).save(tmp_path)
    rewritten(tmp_path, _changed("branches.0.rank", lambda t: t + 50))
    with pytest.raises(EditsError, match=r"branches.0.[ab]: .* but its edits need"):
        editors.load(tmp_path, llama, tokenizer)


def test_one_fact_is_undone_and_the_others_stay(llama, tokenizer, edits, saved):
    remove(saved, "water")
    left = editors.load(saved, llama, tokenizer)
    assert [fact.case_id for (fact,) in left.facts] == ["france", "sum"]
    torch.testing.assert_close(left.patch.lasting(), edits.taken([0, 2]).patch.lasting(), rtol=0, atol=0)
    with pytest.raises(EditsError, match="no case 'water'; there are: france, sum"):
        remove(saved, "water")
    remove(saved, "sum")
    with pytest.raises(EditsError, match=r"'france' is all that .* holds; delete the folder"):
        remove(saved, "france")


def test_one_fact_of_a_common_update_cannot_be_undone(llama, tokenizer, facts, tmp_path):
    methods.editor("lora", llama, tokenizer, steps=1).edit(facts[:3]).save(tmp_path)
    with pytest.raises(EditsError, match=r"'water' cannot be undone alone: .* with france, sum"):
        remove(tmp_path, "water")


# Kills the process when it is about to move the n-th file to its place.
KILLED = """
import os, signal, sys
from pathlib import Path
from loredit.engine.storage.manifest import remove
folder, case_id, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
replace = os.replace
def counted(*args):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = counted
remove(folder, case_id)
"""


@pytest.mark.parametrize(("moves", "left"), [(1, 3), (2, 3), (3, 2)])
def test_a_killed_write_leaves_the_old_edits_or_the_new(moves, left, llama, tokenizer, saved):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, saved, "water", str(moves)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == (-signal.SIGKILL if moves < 3 else 0)
    assert len(editors.load(saved, llama, tokenizer)) == left
    remove(saved, "france")  # and the folder is as usable as before
    assert len(list(saved.glob("edits-*.safetensors"))) == 1
