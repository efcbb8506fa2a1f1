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
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
)

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


RULE_2 = (
    *("model_type", "vocab_size", "hidden_size", "n_embd", "intermediate_size", "n_inner", "ffn_dim"),
    *("num_hidden_layers", "n_layer", "num_layers", "num_attention_heads", "n_head", "num_heads"),
    *("num_key_value_heads", "head_dim", "word_embed_proj_dim", "max_position_embeddings", "n_positions"),
    *("hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    *("rope_theta", "rope_type", "factor", "rotary_dim", "rotary_pct", "partial_rotary_factor"),
    *("sliding_window", "window_size", "attention_types", "layer_types", "tie_word_embeddings"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "parallel_attn", "use_parallel_residual"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "logit_scale"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "do_layer_norm_before", "alibi"),
)


def rule_2(model: PreTrainedModel) -> str:
    """As earlier releases have written it: the keys that they knew, and all parameters."""
    config = model.config.to_dict()
    config |= {key: value for key, value in (config.get("rope_parameters") or {}).items() if key in RULE_2}
    used = {key: config[key] for key in RULE_2 if config.get(key) is not None}
    digest = hashlib.sha256(json.dumps(used, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"2:{digest.hexdigest()}"


SHAPE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "head_dim": 8}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
YARN |= {"beta_fast": 4.0, "beta_slow": 1.0, "attention_factor": 0.9}
KINDS = {kind: {"rope_type": "default", "rope_theta": 100.0} for kind in ("sliding_attention", "full_attention")}

LATER: dict[str, PreTrainedConfig] = {
    "llama 3": LlamaConfig(rope_parameters=LLAMA_3, **SHAPE),
    "yarn": LlamaConfig(rope_parameters=YARN, **SHAPE),
    "smollm 3": SmolLM3Config(no_rope_layers=[1, 0, 1, 0], **SHAPE),
    "gemma 3": Gemma3TextConfig(rope_parameters=KINDS, sliding_window_pattern=2, **SHAPE),
}
"""Models whose configs have keys that rule 2 does not know."""


def later(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LATER[name], dtype=torch.float64).eval()


# Families that rule 2 never named.
NEWER = ("bloom", "falcon", "gemma3_text", "phi", "phi3", "starcoder2")


@pytest.fixture
def named_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return later(request.param) if request.param in LATER else tiny.model(request.param)


@pytest.mark.parametrize("family", sorted({*tiny.FAMILIES} - {*NEWER}))
def test_a_model_without_later_keys_is_called_as_ever(family):
    model = tiny.model(family)
    assert identity_of(model) == rule_2(model)


@pytest.mark.parametrize("name", LATER)
def test_a_model_with_later_keys_is_recognised_by_the_identity_that_it_had(name):
    model = later(name)
    recorded = rule_2(model)
    assert identity_of(model).startswith("3:")
    assert is_identity_of(recorded, model)
    assert is_identity_of(identity_of(model), model)
    next(model.parameters()).data[3, 0] += 1e-6
    assert not is_identity_of(recorded, model)


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
        elif isinstance(value, list) and value and all(one in (0, 1) for one in value):
            yield {key: [1 - one for one in value]}
        elif value in ("gelu_new", "silu", "gelu", "relu"):
            yield {key: "tanh"}


@pytest.mark.parametrize("named_model", [*tiny.FAMILIES, *LATER], indirect=True)
def test_whatever_changes_the_predictions_of_the_same_weights_is_another_model(named_model):
    model = named_model
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
