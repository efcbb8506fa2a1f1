"""Keys and values before a text's own, in every layer.

Shapes: R rows of a batch, T tokens, l positions of the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..model.hooks import before
from ..model.passes import frozen


@contextmanager
def prepended(model: PreTrainedModel, kv: Tensor, edited: Tensor) -> Iterator[None]:
    """While open, texts are attended to behind a prefix.

    Args:
        model: any causal LM whose cache is a ``DynamicCache``.
        kv: (layers, 2, R, heads, l, head width), keys and values; R may be 1, for all rows.
        edited: (R, 1), 1 for rows that see the prefix, 0 for those that do not.
    """
    length = kv.shape[4]

    def prepend(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = args[0] if args else kwargs.get("input_ids")
        ids = (
            kwargs["inputs_embeds"] if ids is None else ids
        )  # (R, T) or (R, T, d): rows and tokens are all that is read
        cache, mask, places = (kwargs.get(key) for key in ("past_key_values", "attention_mask", "position_ids"))
        cache = DynamicCache(config=model.config) if cache is None else cache
        past = cache.get_seq_length()
        if not past:  # a new text; else the prefix is already there
            for layer, (keys, values) in enumerate(kv.expand(-1, -1, len(ids), -1, -1, -1)):
                cache.update(keys, values, layer)
            past = length
        seen = past - length + ids.shape[1]
        mask = edited.new_ones(len(ids), seen) if mask is None else mask
        places = torch.arange(seen - ids.shape[1], seen, device=ids.device) if places is None else places
        return args, kwargs | {
            "past_key_values": cache,
            "attention_mask": torch.cat([edited.expand(len(ids), length), mask], 1),
            "position_ids": places + length * edited,
        }

    handle = before(model, prepend)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(l, layers, 2, heads, head width), what the model computes for l tokens, on the CPU and at least in float32."""
    cache = DynamicCache()
    with frozen(model):
        model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
    kv = torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])  # type: ignore[union-attr, list-item]
    return kv.permute(3, 0, 1, 2, 4).cpu().to(torch.promote_types(torch.float32, model.dtype))
