"""What makes a model the same model: what is computed, and nothing that transformers may call it by."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from loredit.engine.model.identity import identity_of, is_identity_of

IDS = torch.arange(48).view(2, 24)  # more than the windows of 8 tokens


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def rule_1(model: PreTrainedModel) -> str:
    """As earlier releases have written it: the whole config but for four keys, all parameters and buffers."""
    volatile = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_a_model_is_known_by_every_weight_and_its_dtype():
    identity = identity_of(tiny.model("gpt2"))
    assert identity == identity_of(tiny.model("gpt2"))
    assert identity.startswith("2:")
    assert len(identity) == 2 + 64
    changed = tiny.model("gpt2")
    changed.transformer.ln_f.bias.data[-1] += 1e-6
    others = [changed, tiny.model("gpt2", torch.float32), tiny.model("gpt2", seed=1), tiny.model("llama")]
    assert len({identity, *map(identity_of, others)}) == 5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_default_that_transformers_adds_changes_nothing(family):
    model = tiny.model(family)
    identity = identity_of(model)
    model.config.something_new = True
    model.config.use_cache = not model.config.use_cache
    model.config.transformers_version = "99.0"
    model.config.name_or_path = "elsewhere"
    assert identity_of(model) == identity
    assert is_identity_of(identity, model)


def test_rope_and_heads_are_part_of_what_a_model_is():
    model = tiny.model("llama")
    other = copy.deepcopy(model)
    other.config.rope_parameters["rope_theta"] *= 2
    fewer = copy.deepcopy(model)
    fewer.config.num_attention_heads = 2
    assert len({*map(identity_of, (model, other, fewer))}) == 3


def changes(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config with each of its numbers, switches and names changed, one at a time."""
    for key, value in values.items():
        if key == "output_attentions":  # computed in another order, where Falcon is asked for them
            continue
        if isinstance(value, dict):
            yield from ({key: value | change} for change in changes(value))
        elif isinstance(value, bool):
            yield {key: not value}
        elif isinstance(value, (int, float)):
            yield {key: value * 2}
        elif value in ("gelu_new", "silu", "gelu", "relu"):
            yield {key: "tanh"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_whatever_changes_the_predictions_of_the_same_weights_is_another_model(family):
    model = tiny.model(family)
    identity, before, unlike = identity_of(model), logits(model), 0
    for change in changes(model.config.to_dict()):
        try:
            other = type(model)(type(model.config).from_dict(model.config.to_dict() | change)).double().eval()
            other.load_state_dict(model.state_dict())
            after = logits(other)
        except Exception:
            continue
        if not torch.equal(before, after):
            unlike += 1
            assert identity_of(other) != identity, f"{change} is not seen"
    assert unlike > 1, "some change is to make a difference"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_identities_of_earlier_releases_are_still_recognised(family):
    model = tiny.model(family)
    recorded = rule_1(model)
    assert is_identity_of(recorded, model)
    next(model.parameters()).data[3, 0] += 1e-6
    assert not is_identity_of(recorded, model)
