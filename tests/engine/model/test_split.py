"""A model over several devices: edits are on the first, sites wherever they are, and the numbers are those of one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import methods
import placed
import pytest
import tiny
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from loredit import editors
from loredit.data import Fact
from loredit.editors import Edits, TrainedEditor
from loredit.engine.model import loading
from loredit.engine.model.identity import identity_of
from loredit.engine.model.loading import load
from loredit.engine.model.sites import blocks
from loredit.engine.model.sources import ModelError
from loredit.evaluation.classification import runs as classification
from loredit.evaluation.generation import runs as generation
from loredit.evaluation.scoring import evaluate
from loredit.evaluation.tuning.training import TrainingError

FIRST, SECOND = "lazy:0", "lazy:1"
OTHERS = [name for name in methods.METHODS if name not in ("lora", "compacter")]
"""But for one that shares a parameter among its branches, of which `placed` makes several, as CUDA does not."""


class Hook(AlignDevicesHook):
    """As accelerate's, of weights that are where they are to be."""

    def init_hook(self, module):
        return module


def split(model: PreTrainedModel) -> PreTrainedModel:
    """Embeddings, output layer and first block on one device, the rest on another, as accelerate does it."""
    add_hook_to_module(model, Hook(execution_device=FIRST, io_same_device=True))
    later = [*blocks(model)[1:], *(m for name, m in model.named_modules() if name.endswith(("model.norm", ".ln_f")))]
    for module in later:
        placed.place(module, SECOND)
        add_hook_to_module(module, Hook(execution_device=SECOND))
    placed.place(model, FIRST)
    head = model.get_output_embeddings()
    add_hook_to_module(blocks(model)[0], Hook(execution_device=FIRST))
    add_hook_to_module(head, Hook(execution_device=FIRST))
    return model


@pytest.fixture
def spread() -> Iterator[None]:
    with placed.devices():
        yield


def some(method: str, facts: Sequence[Fact]) -> Sequence[Fact]:
    """Those of the contract's tests."""
    if issubclass(editors.find(method), TrainedEditor):
        return facts[:2]
    return tuple(
        fact.model_copy(update={"prompt": fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]})
        for fact in facts[:2]
    )


def edited(method: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact]) -> Edits:
    changes = {"contexts": 1, "kl_weight": 0.5, "kl_prompts": ("{} is a",), "clip_norm": 0.05}
    known = {key: value for key, value in changes.items() if key in editors.find(method).Hparams.model_fields}
    return methods.editor(method, model, tokenizer, steps=4, **known).edit_each(some(method, facts), edits_at_once=2)


def scored(edits: Edits) -> list[Any]:
    """Numbers to six digits, and what is written."""
    scores = evaluate(edits, measures=["generation"], fluency=False)
    return [json.loads(one.model_dump_json(), parse_float=lambda text: round(float(text), 6)) for one in scores]


@pytest.mark.usefixtures("spread")
@pytest.mark.parametrize(
    ("method", "family"),
    [("lora", "gpt2"), ("lora", "llama"), *(pytest.param(name, "llama", marks=pytest.mark.slow) for name in OTHERS)],
)
def test_every_method_edits_as_on_one_device(method, family, tokenizer, facts):
    whole = tiny.model(family)
    parts = split(copy.deepcopy(whole))
    expected, found = (edited(method, model, tokenizer, facts) for model in (whole, parts))
    assert not [outcome.error for outcome in found.outcomes if outcome.error]
    if method != "incontext":  # tokens, which are no part of what is computed
        assert {t.device for t in found.patch.tensors().values()} == {torch.device(FIRST)}
    for name, t in expected.patch.lasting().items():
        torch.testing.assert_close(found.patch.lasting()[name].cpu(), t, **tiny.close(family))
    assert scored(found) == scored(expected)


@pytest.mark.usefixtures("spread")
def test_tensors_that_are_apart_do_not_meet():
    """What this file's devices are worth."""
    a, b = torch.ones(3, device=FIRST), torch.ones(3).to(SECOND)
    with pytest.raises(RuntimeError, match="given tensors on lazy:0, lazy:1"):
        a + b
    assert (a + b.to(FIRST)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("method", ["lora", "prefix", "memit"])
def test_accelerates_own_hooks_change_nothing(method, tokenizer, facts):
    whole = tiny.model("llama")
    parts = dispatch_model(copy.deepcopy(whole), {name: "cpu" for name, _ in whole.named_children()}, force_hooks=True)
    expected, found = (edited(method, model, tokenizer, facts) for model in (whole, parts))
    for name, t in expected.patch.lasting().items():
        torch.testing.assert_close(found.patch.lasting()[name], t, rtol=0, atol=0)
    assert scored(found) == scored(expected)
    if method != "prefix":
        ids = torch.arange(12)[None]
        with torch.no_grad(), found.on(0):
            attached = parts(ids).logits
        with torch.no_grad():
            torch.testing.assert_close(found.merged(0)(ids).logits, attached, **tiny.close("llama"))


def test_without_several_gpus_nothing_is_split(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="device 'split' is for several GPUs, and here are 1"):
        load("tiny", device="split")


def test_a_model_is_asked_for_over_all_gpus_and_nowhere_else(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (100 + i, 200))
    assert loading.over_gpus() == {"device_map": "auto", "max_memory": {0: 100, 1: 101}}
    monkeypatch.setattr(loading, "over_gpus", lambda: {"device_map": {"": "cpu"}})
    model = load("tiny", device="split", dtype="float32").model
    assert identity_of(model) == identity_of(load("tiny", device="cpu", dtype="float32").model)


_HERE = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("run", [classification.run, generation.run])
def test_training_on_many_examples_wants_one_device(run):
    with pytest.raises(TrainingError, match="training on many examples wants one device"):
        run("mrpc", "lora", device="split")


AWAY = dict.fromkeys(_HERE, "cpu") | {"model.layers.2": "disk"}


def test_weights_that_find_no_room_are_refused(place, monkeypatch):
    monkeypatch.setattr(loading, "over_gpus", lambda: {"device_map": AWAY, "offload_folder": "away"})
    with pytest.raises(ModelError, match=r"than the devices' memory, and model\.layers\.2.*--quantize 8bit or 4bit"):
        load("tiny", device="split", dtype="float32")


def test_a_model_with_offloaded_weights_is_not_edited(place, tokenizer, facts):
    model = AutoModelForCausalLM.from_pretrained("tiny", device_map=AWAY, offload_folder="away")
    with pytest.raises(ModelError, match=r"model\.layers\.2.* is on no device but offloaded"):
        methods.editor("lora", model, tokenizer).edit_each(facts[:1])
