"""What makes a model the same model: its weights, and those parts of its config that change what is computed with them.

An identity is ``2:`` and a sha256. The number is the version of the rule: edits that were saved under rule 1, which
took the whole config and so changed whenever transformers added a default, are still recognised where its hash is the
same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

_RULE = "2:"
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
    *("num_kv_heads", "multi_query", "new_decoder_architecture", "apply_residual_connection_post_layernorm"),
    *("qk_layernorm", "norm_epsilon", "use_bidirectional_attention", "activation"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "do_layer_norm_before", "alibi"),
)


def identity_of(model: PreTrainedModel) -> str:
    """The identity of a model in memory: its weights with their names and dtypes, and its architecture.

    It changes with the dtype that a model is loaded in, since the weights do.
    """
    config = model.config.to_dict()
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    config |= {key: value for key, value in rope.items() if key in _ARCHITECTURE}
    used = {key: value for key in _ARCHITECTURE if (value := config.get(key)) is not None}
    used |= {key: value for key, value in rope.items() if isinstance(value, dict)}  # of each kind of layer
    digest = hashlib.sha256(json.dumps(used, sort_keys=True, default=str).encode())
    _add_tensors(digest.update, sorted(model.named_parameters()))
    return _RULE + digest.hexdigest()


def is_identity_of(recorded: str, model: PreTrainedModel) -> bool:
    """Whether a recorded identity, of whichever rule, is that of this model."""
    return recorded == (identity_of(model) if recorded.startswith(_RULE) else _by_rule_1(model))


def _by_rule_1(model: PreTrainedModel) -> str:
    """sha256 over the whole config but for a few keys, and all parameters and buffers."""
    volatile = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
    config = {key: value for key, value in model.config.to_dict().items() if key not in volatile}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    _add_tensors(digest.update, sorted(model.state_dict().items()))
    return digest.hexdigest()


def _add_tensors(add: Callable[[bytes | memoryview], None], named: list[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in named:
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
