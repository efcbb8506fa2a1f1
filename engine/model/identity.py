"""What makes a model the same model: its weights, and those parts of its config that change what is computed with them.

An identity is the number of a rule, a colon and a sha256. Edits that were saved under an earlier rule are still
recognised by it: rule 1 (without a number) took the whole config and so changed whenever transformers added a default,
rule 2 did not know all keys. Rule 3 names those models alone that have more keys than rule 2 knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from .quantized import parts, quantization_of
from .sources import ModelError

# Config keys that say what is computed, by all names that families have for them. A key that is missing counts as None,
# and keys that are not here count for nothing, so that a default that transformers adds changes no identity.
_ARCHITECTURE = (
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
_LATER = (
    *("no_rope_layers", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor"),
    *("clip_qkv", "logits_scaling", "use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale"),
    *("num_kv_heads", "multi_query", "new_decoder_architecture", "apply_residual_connection_post_layernorm"),
    *("qk_layernorm", "norm_epsilon", "activation"),
    *("num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "use_bidirectional_attention"),
)
_KNOWN = {"2:": _ARCHITECTURE, "3:": (*_ARCHITECTURE, *_LATER)}


def identity_of(model: PreTrainedModel) -> str:
    """The identity of a model in memory: its weights with their names and dtypes, and its architecture.

    It changes with the dtype that a model is loaded in, and with what it is quantized to, since the weights do.
    """
    return _by_rule("2:" if _architecture(model, "2:") == _architecture(model, "3:") else "3:", model)


def is_identity_of(recorded: str, model: PreTrainedModel) -> bool:
    """Whether a recorded identity, of whichever rule, is that of this model."""
    rule = recorded[:2]
    return recorded == (_by_rule(rule, model) if rule in _KNOWN else _by_rule_1(model))


def _by_rule(rule: str, model: PreTrainedModel) -> str:
    digest = hashlib.sha256(json.dumps(_architecture(model, rule), sort_keys=True, default=str).encode())
    _add_tensors(digest.update, sorted(model.named_parameters()))
    return rule + digest.hexdigest()


def _architecture(model: PreTrainedModel, rule: str) -> dict[str, object]:
    """What the config says about what is computed, as far as a rule knows."""
    config = model.config.to_dict()
    rope = config["rope_parameters"] if isinstance(config.get("rope_parameters"), dict) else {}
    known = _KNOWN[rule]
    used = {key: value for key in known if (value := rope.get(key, config.get(key))) is not None}
    if quantized := quantization_of(model):
        used["quantized"] = quantized
    if rule == "2:":
        return used
    # Some families have other positions for some kinds of layers.
    kinds = {kind: own for kind, own in rope.items() if isinstance(own, dict)}
    return used | {
        f"{kind}.{key}": value for kind, own in kinds.items() for key in known if (value := own.get(key)) is not None
    }


def _by_rule_1(model: PreTrainedModel) -> str:
    """sha256 over the whole config but for a few keys, and all parameters and buffers."""
    volatile = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    _add_tensors(digest.update, sorted(model.state_dict().items()))
    return digest.hexdigest()


def _add_tensors(add: Callable[[bytes | memoryview], None], named: list[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in (part for weight in named for part in parts(*weight)):
        if tensor.device.type == "meta":
            raise ModelError(
                f"{name} is on no device but offloaded, so nothing can be edited; load the model on devices"
            )
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
