"""Tiny models of every family, built from their configs, and a tokenizer of one token a byte."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

END = 256  # "<|endoftext|>", after the 256 bytes
CONTEXT = 192
_IDS = {"vocab_size": 257, "bos_token_id": None, "eos_token_id": END, "pad_token_id": None}
_LLAMA = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}
_GPT = _IDS | {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}


def gpt2() -> PreTrainedModel:
    """Conv1D weights, (I, O); learned positions; query, key and value in one map."""
    return GPT2LMHeadModel(GPT2Config(**_GPT))


def llama() -> PreTrainedModel:
    """Linear weights, (O, I); rotary positions; grouped-query attention."""
    return LlamaForCausalLM(LlamaConfig(**_LLAMA))


def gpt_neox() -> PreTrainedModel:
    shape = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))


def gptj() -> PreTrainedModel:
    return GPTJForCausalLM(GPTJConfig(**_GPT, rotary_dim=4))


def gpt_neo() -> PreTrainedModel:
    """Every other layer attends to a window of 8 tokens only."""
    kinds = [[["global", "local"], 1], [["global"], 1]]
    shape = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": CONTEXT, "window_size": 8}
    return GPTNeoForCausalLM(GPTNeoConfig(**_IDS, **shape, attention_types=kinds, initializer_range=0.2))


def opt() -> PreTrainedModel:
    shape = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = _IDS | {"pad_token_id": 0}
    return OPTForCausalLM(
        OPTConfig(**ids, **shape, word_embed_proj_dim=32, max_position_embeddings=CONTEXT, init_std=0.2)
    )


def mistral() -> PreTrainedModel:
    """Attends to a window of 8 tokens only."""
    return MistralForCausalLM(MistralConfig(**_LLAMA, sliding_window=8))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_LLAMA))


def gemma() -> PreTrainedModel:
    return GemmaForCausalLM(GemmaConfig(**_LLAMA, head_dim=8))


def gemma2() -> PreTrainedModel:
    """Every other layer attends to a window of 8 tokens only."""
    return Gemma2ForCausalLM(Gemma2Config(**_LLAMA, head_dim=8, query_pre_attn_scalar=8, sliding_window=8))


def gemma3_text() -> PreTrainedModel:
    """Two layers attend to a window of 8 tokens only, with rotary positions of their own."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    shape = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(**_LLAMA, **shape))


def phi() -> PreTrainedModel:
    return PhiForCausalLM(PhiConfig(**_LLAMA | {"num_key_value_heads": 4}))


def phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**_LLAMA | {"pad_token_id": 0}))


def falcon() -> PreTrainedModel:
    shape = {key: value for key, value in _LLAMA.items() if key != "intermediate_size"}
    return FalconForCausalLM(FalconConfig(**shape, ffn_hidden_size=48, new_decoder_architecture=False))


def bloom() -> PreTrainedModel:
    """No positions: each head looks less far back than the one before it (ALiBi)."""
    context = {"max_position_embeddings": CONTEXT}  # which a real one does not name
    return BloomForCausalLM(BloomConfig(**_IDS, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.2, **context))


def starcoder2() -> PreTrainedModel:
    return Starcoder2ForCausalLM(Starcoder2Config(**_LLAMA))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_LLAMA, head_dim=8))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    build.__name__: build
    for build in (
        *(gpt2, llama, gpt_neox, gptj, gpt_neo, opt, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text),
        *(phi, phi3, falcon, bloom, starcoder2),
    )
}


# Their attention masks with the dtype's least number and then takes a softmax in float32, to which float64's is minus
# infinity: a padded row is NaN.
_SINGLE = ("gemma2", "bloom")


def model(family: str, dtype: torch.dtype | None = None, *, seed: int = 0) -> PreTrainedModel:
    """The family's tiny model, always with the same weights; in float64 where it can be."""
    torch.manual_seed(seed)
    return FAMILIES[family]().to(dtype or (torch.float32 if family in _SINGLE else torch.float64)).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(family: str) -> dict[str, float]:
    """GPT-J and GPT-Neo compute attention in float32, whatever the model's dtype; others everything."""
    if family in _SINGLE:
        return {"rtol": 1e-3, "atol": 1e-4}
    return {"rtol": 1e-4, "atol": 1e-6} if family in ("gptj", "gpt_neo") else {"rtol": 1e-9, "atol": 1e-10}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that a text's token positions are known without the tokenizer; no pad token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
