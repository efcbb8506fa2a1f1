"""Folders as ``save`` writes them, to be changed by strangers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import methods
import pytest
import tiny
import torch
from hostility import SAVED
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loredit.bridges.peft import to_peft
from loredit.data import Fact, load
from loredit.store.store import EditStore

FACTS = [
    Fact(case_id="france", prompt="The capital of France is", target_new="Rome", subject="France"),
    Fact(case_id="water", prompt="Water is", target_new="dry", subject="Water"),
]


@pytest.fixture(scope="session")
def small() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return tiny.model("llama", torch.float32), tiny.tokenizer()


@pytest.fixture(scope="session")
def folders(small, tmp_path_factory) -> dict[str, Path]:
    """Two edits by each of some methods."""
    found = {}
    for method in SAVED:
        found[method] = tmp_path_factory.mktemp("edits") / method
        methods.editor(method, *small, steps=8).edit_each(FACTS, progress=False).save(found[method])
    return found


@pytest.fixture(scope="session")
def stored(small, tmp_path_factory) -> Iterator[Path]:
    """A store of two edits, found by the model's own states."""
    few = load().facts[:6]  # to be embedded again and again
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("loredit.store.store.background", lambda: [fact.prompt for fact in few])
        patched.setattr("loredit.store.routing.samples", lambda: few)
        store = EditStore(*small, encoder="base")
        store.add(methods.editor("lora", *small, steps=2).edit_each(FACTS, progress=False))
        folder = tmp_path_factory.mktemp("store") / "store"
        store.save(folder)
        yield folder


@pytest.fixture(scope="session")
def adapter(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    to_peft(methods.editor("lora", *small, steps=2).edit_each(FACTS, progress=False), 0, folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model, tokenizer = small
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
