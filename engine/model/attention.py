"""Attention as plain products, where the fused one is slower. Everything that knows transformers' attention is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """(R, H, T, D), twice (R, K, S, D) -> (R, T, H, D), as two products over all rows at once. The H / K query heads
    that share a key head are one matrix."""
    (rows, heads, tokens, width), (_, shared, seen, _) = query.shape, key.shape
    if kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = (query * (kwargs.get("scaling") or width**-0.5)).reshape(rows * shared, -1, width)
    scores = torch.bmm(grouped, key.flatten(0, 1).mT).view(rows, heads, tokens, seen)
    causal = kwargs.get("is_causal")
    if attention_mask is None and tokens > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        attention_mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    share = scores.softmax(-1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(value.dtype)
    out = torch.bmm(share.view(rows * shared, -1, seen), value.flatten(0, 1))
    return out.view(query.shape).transpose(1, 2), None


_PLAIN = "loredit_plain"


def chosen_by_name(model: PreTrainedModel) -> bool:
    """Whether the model looks its attention up under a name. Falcon does not, and under another name than those it
    knows it would go without a mask."""
    return bool(model._supports_attention_backend)  # noqa: SLF001 - there is no public name for it


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention as plain products on a CPU, where the fused one takes several times as long for a single token a row
    and backward (docs/performance.md); elsewhere, and where the model's own is not fused, the model's own."""
    own = model.config._attn_implementation  # noqa: SLF001 - there is no public name for it that can be set back
    if model.device.type != "cpu" or own != "sdpa" or not chosen_by_name(model):
        yield
        return
    AttentionInterface.register(_PLAIN, products)
    AttentionMaskInterface.register(_PLAIN, sdpa_mask)
    model.config._attn_implementation = _PLAIN  # noqa: SLF001
    try:
        yield
    finally:
        model.config._attn_implementation = own  # noqa: SLF001


def trainable_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The attention to train with: in float32 the fused one goes backward as fast, and keeps no scores for it."""
    return plain_attention(model) if model.dtype == torch.bfloat16 else nullcontext()
