"""Model folders and indices of strangers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hostility import JUNK, TEXT, changed, damaged, examples, rule
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loredit.engine.model.cache import sha256_of
from loredit.engine.model.loading import load
from loredit.engine.model.sources import ModelError, check

INDEX = "model.safetensors.index.json"
SHARDS = st.one_of(
    st.sampled_from(["pytorch_model.bin", "../model.safetensors", "/dev/zero", "a/b.safetensors", "x\\y.safetensors"]),
    TEXT,
)


def linked(source: Path, target: Path) -> Path:
    """A folder with the same files, by links; a test replaces those that it changes."""
    target.mkdir()
    for path in source.iterdir():
        os.link(path, target / path.name)
    return target


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@examples(300)
@given(
    index=st.one_of(
        JUNK,
        st.fixed_dictionaries({"weight_map": st.dictionaries(TEXT, SHARDS, max_size=3), "metadata": st.just({})}),
        st.fixed_dictionaries({"weight_map": JUNK, "metadata": JUNK}),
    )
)
def test_an_index_names_safetensors_of_the_folder_or_is_refused(index, model_folder):
    with tempfile.TemporaryDirectory() as outer:
        folder = linked(model_folder, Path(outer, "model"))
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        put(folder / INDEX, json.dumps(index).encode())
        with rule(str(folder)):
            check("m", folder)
            named = set(index["weight_map"].values())
            assert named == {"a.safetensors"}


@examples(40)
@given(drawn=st.data())
def test_a_changed_model_is_loaded_or_refused(drawn, model_folder):
    with tempfile.TemporaryDirectory() as outer:
        folder = linked(model_folder, Path(outer, "model"))
        file = drawn.draw(
            st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
        )
        content = (folder / file).read_bytes()
        if file == "config.json" and drawn.draw(st.booleans()):
            put(folder / file, json.dumps(drawn.draw(changed(json.loads(content)))).encode())
        else:
            put(folder / file, drawn.draw(damaged(content)))
        with rule(str(folder)):
            loaded = load(str(folder), dtype="float32")
            assert all(bool(p.isfinite().all()) for p in loaded.model.parameters())


def test_a_pickle_that_an_index_names_is_not_read(model_folder, tmp_path):
    folder = linked(model_folder, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    put(folder / INDEX, json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model.bin")}).encode())
    with pytest.raises(ModelError, match=r"names 'pytorch_model\.bin', which is no safetensors file of this folder"):
        load(str(folder))


def test_weights_that_a_config_names_are_not_read(model_folder, tmp_path):
    folder = linked(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    put(folder / "config.json", json.dumps(config | {"transformers_weights": "adapter_model.bin"}).encode())
    with pytest.raises(ModelError, match="transformers_weights"):
        load(str(folder))


def test_a_depth_that_no_model_has_is_told_before_it_is_built(model_folder, tmp_path):
    folder = linked(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    put(folder / "config.json", json.dumps(config | {"num_hidden_layers": 10**6}).encode())
    with pytest.raises(ModelError, match="num_hidden_layers is 1000000, not 1 to 1000"):
        load(str(folder))


def test_an_adapter_beside_the_weights_is_not_loaded_with_them(model_folder, adapter, tmp_path):
    folder = linked(model_folder, tmp_path / "model")
    for path in adapter.iterdir():
        shutil.copy(path, folder)
    with pytest.raises(ModelError, match="an adapter lies beside the weights"):
        load(str(folder))


def test_weights_that_are_no_numbers_are_refused(model_folder, tmp_path):
    folder = linked(model_folder, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = sorted(state)[0]
    state[name] = torch.full_like(state[name], torch.nan)
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"NaN or infinite in .*: {name}"):
        load(str(folder))


def test_a_damaged_model_of_the_cache_can_be_made_anew(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOREDIT_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    folder = linked(model_folder, tmp_path / "models" / "some-model")
    put(folder / "model.safetensors", b"cut off")
    with pytest.raises(ModelError, match=f"Delete {folder}, and it is made anew"):
        load(str(folder))


def test_a_hash_is_taken_anew_when_a_file_has_changed_whatever_its_time_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LOREDIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    file.write_bytes(b"aaaa")
    seen = file.stat()
    before = sha256_of(file)
    file.write_bytes(b"abaa")
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert sha256_of(file) != before
