"""Folders of edits, stores and adapters of strangers."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostility import SAVED, changed, damaged, examples, inside, rule
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from loredit import editors
from loredit.bridges.peft import PeftError, from_peft
from loredit.engine.storage.manifest import EditsError, Manifest, read_both, remove, write
from loredit.engine.storage.packed import Packed
from loredit.store.store import EditStore

MANIFEST = "edits.json"
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 48, 2**32, 2**62]), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with a change: one tensor of another shape, dtype or number, one more, or one less."""
    state = load(content)
    name = draw(st.sampled_from(sorted(state)))
    how = draw(st.integers(0, 6))
    t = state[name]
    if how == 0:
        del state[name]
    elif how == 1:
        state[draw(st.sampled_from(["x", "store.keys", f"{name}.mask", "../x"]))] = t.clone()
    elif how == 2:
        state[name] = t.to(draw(st.sampled_from([torch.float64, torch.int8, torch.bool, torch.bfloat16])))
    elif how == 3:
        state[name] = t[:1].clone() if t.dim() else t.clone()
    elif how == 4:
        state[name] = t.unsqueeze(0).clone()
    elif how == 5 and t.is_floating_point():
        state[name] = torch.full_like(t, draw(st.sampled_from([float("nan"), float("inf"), -0.0])))
    else:
        state[name] = (t.flatten()[: draw(st.integers(0, 3))]).clone()
    return save(state)


def other(draw: Callable[[st.SearchStrategy], object], folder: Path) -> None:
    """One change of a folder of edits."""
    manifest, (weights,) = folder / MANIFEST, folder.glob("*.safetensors")
    how = draw(st.integers(0, 5))
    if how == 0:
        manifest.write_text(json.dumps(draw(changed(json.loads(manifest.read_text())))))
    elif how == 1:
        manifest.write_bytes(draw(damaged(manifest.read_bytes())))
    elif how == 2:
        weights.write_bytes(draw(damaged(weights.read_bytes())))
    elif how == 3:
        (weights if draw(st.booleans()) else manifest).unlink()
    elif how == 4:
        values = json.loads(manifest.read_text())
        values["packed"] = values["packed"] | {draw(st.sampled_from(["x", *values["packed"]])): draw(SHAPES)}
        manifest.write_text(json.dumps(values))
    else:  # of the right name, so that what is inside is looked at
        content = draw(tensors(weights.read_bytes()))
        named = folder / f"edits-{hashlib.sha256(content).hexdigest()}.safetensors"
        named.write_bytes(content)
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": named.name}))


def used(model: torch.nn.Module, ids: Tensor, attached: object) -> None:
    with attached, torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()


@examples(120)
@given(drawn=st.data(), method=st.sampled_from(SAVED))
def test_a_changed_folder_gives_edits_or_one_error(drawn, method, small, folders):
    model, tokenizer = small
    ids = torch.tensor([tokenizer("Water is")["input_ids"]])
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "edits")
        shutil.copytree(folders[method], folder)
        other(drawn.draw, folder)

        def work() -> None:
            with rule():
                edits = editors.load(folder, model, tokenizer)
                for edit in range(len(edits)):
                    used(model, ids, edits.on(edit))
            with rule():  # it looks at the folder itself, without a model
                remove(folder, "water")

        inside(folder, work)


@examples(50)
@given(drawn=st.data())
def test_a_changed_store_gives_answers_or_one_error(drawn, small, stored):
    model, tokenizer = small
    ids = torch.tensor([tokenizer("Water is")["input_ids"]])
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "store")
        shutil.copytree(stored, folder)
        other(drawn.draw, folder)
        with rule():
            manifest = read_both(folder)[0]
            if (manifest.routing or {}).get("encoder", "base") == "base":  # others are fetched
                used(model, ids, EditStore.load(folder, model, tokenizer, encoder="base").on(["Water is"]))


@examples(100)
@given(drawn=st.data())
def test_a_changed_adapter_gives_an_edit_or_one_error(drawn, small, adapter):
    model, tokenizer = small
    ids = torch.tensor([tokenizer("Water is")["input_ids"]])
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "adapter")
        shutil.copytree(adapter, folder)
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        how = drawn.draw(st.integers(0, 4))
        if how == 0:
            config.write_text(json.dumps(drawn.draw(changed(json.loads(config.read_text())))))
        elif how == 1:
            config.write_bytes(drawn.draw(damaged(config.read_bytes())))
        elif how == 2:
            weights.write_bytes(drawn.draw(damaged(weights.read_bytes())))
        elif how == 3:
            weights.write_bytes(drawn.draw(tensors(weights.read_bytes())))
        else:
            pattern = drawn.draw(st.sampled_from(["(a+)+$", "(.*)*x", "[", "(?P<n>a)", ".*", "\\", "(x?){50}x{50}"]))
            values = json.loads(config.read_text()) | {"alpha_pattern": {pattern: drawn.draw(st.integers(-1, 10**400))}}
            config.write_text(json.dumps(values))
        with rule():
            used(model, ids, from_peft(folder, model, tokenizer).on(0))


@examples(200)
@given(
    shape=SHAPES, bits=st.binary(max_size=24), size=st.lists(st.integers(0, 6), max_size=2), count=st.integers(0, 40)
)
def test_packed_parts_of_any_sizes_are_a_tensor_or_have_faults(shape, bits, size, count):
    mask = torch.from_numpy(np.frombuffer(bits, np.uint8).copy())
    if len(size) == 2 and size[0] * size[1] <= len(mask):
        mask = mask[: size[0] * size[1]].view(*size)
    packed = Packed(shape, mask, torch.ones(count))
    with rule():
        if not packed.faults():
            assert packed.dense().shape == shape


@examples(200)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_manifest_or_one(content):
    with tempfile.TemporaryDirectory() as outer:
        Path(outer, MANIFEST).write_bytes(content)
        with rule(MANIFEST):
            read_both(Path(outer))


def test_a_small_folder_cannot_ask_for_much_memory(small, folders, tmp_path):
    folder = tmp_path / "edits"
    shutil.copytree(folders["lora"], folder)
    values = json.loads((folder / MANIFEST).read_text())
    values["hparams"]["rank"] = 10**9
    (folder / MANIFEST).write_text(json.dumps(values))
    with rule(), pytest.raises(EditsError, match="take a smaller rank"):
        editors.load(folder, *small)


def test_zero_edits_are_none():
    with pytest.raises(ValueError, match="there is no edit"):
        Manifest(editor="lora", hparams={}, seed=0, base_model="x", dtype="float32", facts=(), outcomes=())


def test_a_store_with_a_number_that_is_none_is_refused(small, stored, tmp_path):
    folder = tmp_path / "store"
    manifest, tensors = read_both(stored)
    (name,) = [name for name in tensors if name.startswith("branches.2.") and name.endswith(".a")]
    tensors[name][1].view(-1)[3] = math.nan
    write(folder, manifest, tensors)
    with rule(), pytest.raises(EditsError, match="edits 1 have numbers that are NaN or infinite"):
        EditStore.load(folder, *small, encoder="base")


@pytest.mark.parametrize("alpha", [10**400, 10**12, -(10**12), math.nan, "4"])
def test_an_alpha_that_no_model_can_be_computed_with_is_told(alpha, small, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {".*": alpha}}))
    with rule(), pytest.raises(PeftError, match="no number alpha in lora_alpha and alpha_pattern"):
        from_peft(folder, *small)
