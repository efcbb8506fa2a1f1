r"""Prefix tuning (Li & Liang, 2021, https://arxiv.org/abs/2101.00190): learned keys and values in every layer.

Each layer attends to l more positions, whose keys and values P are trained; all else stays. In training they are
computed by an MLP (section 4.3), beside what they start as:

.. math::  P_i = P^0_i + W_2 \tanh(W_1 P'_i + b_1) + b_2, \qquad i = 1 ... l

W_2 and b_2 start at zero and P^0 is what the model itself computes for ``init_text`` (section 7.4: real words rather
than random numbers), so a fresh patch is the model with that text before every prompt. A finished edit holds P alone.
Edited further, as in sequential editing, its P is the new P^0, beside a fresh MLP.

Positions: the prefix is at 0 ... l - 1 and a text begins at l, for learned and for rotary positions, so a text may be l
tokens shorter than the context. As in PEFT's prefix tuning, P is a key as attention sees it, after rotation. Rows
without an edit keep their positions and do not see the prefix. A sliding window leaves the prefix behind as it leaves
text. No weights change, so an edit cannot be merged.

Numbers, with L layers and d = key-value heads times head width (the model's width but for grouped-query attention):
2 L d l are kept by an edit; trained with the MLP of m hidden units are l d + (d + 1) m + (m + 1) 2 L d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ._forward import frozen
from ._random import PerEdit
from ._rows import Rows
from .base import Editor, Hparams, Patch


class PrefixHparams(Hparams):
    length: int = Field(gt=0, description="Number l of positions before every text")
    hidden: int | None = Field(
        gt=0, description="Hidden units m of the MLP in training; null: no MLP, P itself is trained"
    )
    init_text: str = Field(
        min_length=1,
        description="The prefix starts as what the model computes for this text, repeated to `length` tokens",
    )


class MLP(nn.Module):
    """W_2 tanh(W_1 P' + b_1) + b_2, one for each edit: () -> (E, l, N)."""

    def __init__(self, inputs: Tensor, w1: Tensor, outputs: int) -> None:
        super().__init__()
        edits, _, hidden = w1.shape
        self.inputs, self.w1 = nn.Parameter(inputs), nn.Parameter(w1)  # (E, l, d), (E, d, m)
        self.b1 = nn.Parameter(w1.new_zeros(edits, 1, hidden))
        self.w2 = nn.Parameter(w1.new_zeros(edits, hidden, outputs))
        self.b2 = nn.Parameter(w1.new_zeros(edits, 1, outputs))

    def forward(self) -> Tensor:
        hidden = torch.baddbmm(self.b1, self.inputs, self.w1).tanh()
        return torch.baddbmm(self.b2, hidden, self.w2)


class PrefixPatch(Patch):
    """Keys and values P, which are ``kv`` and, in training, what the MLP adds to it."""

    kv: Tensor  # (E, l, layers, 2, heads, head width); trained itself if there is no MLP

    def __init__(self, seeds: Sequence[int], kv: Tensor, mlp: MLP | None) -> None:
        super().__init__(seeds)
        self.mlp = mlp
        if mlp is None:
            self.kv = nn.Parameter(kv)
        else:
            self.register_buffer("kv", kv)

    @property
    def first_layer(self) -> int:
        return 0

    def keys_and_values(self) -> Tensor:
        """P, (E, l, layers, 2, heads, head width)."""
        return self.kv if self.mlp is None else self.kv + self.mlp().view_as(self.kv)

    def settle(self) -> None:
        kv = self.keys_and_values()
        self.mlp = None
        del self.kv
        self.kv = nn.Parameter(kv)

    @contextmanager
    def attached(self, model: PreTrainedModel, rows: Rows) -> Iterator[None]:
        # (layers, 2, R, heads, l, head width)
        kv = rows.per_row(self.keys_and_values(), model.dtype).permute(2, 3, 0, 4, 1, 5)
        length, edited = kv.shape[4], rows.edited.flatten(1).long()

        def prepend(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            ids = args[0] if args else kwargs["input_ids"]
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

        handle = model.register_forward_pre_hook(prepend, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class Prefix(Editor[PrefixHparams]):
    """Keys and values before every layer's own, a set for each edit."""

    Hparams = PrefixHparams

    @property
    def positions(self) -> int:
        return self.hparams.length

    def patch(self, seeds: Sequence[int]) -> PrefixPatch:
        h, draw = self.hparams, PerEdit(seeds)
        start = _keys_and_values(self.model, self.encoder.prompt(h.init_text).ids, h.length)
        kv = start.expand(len(seeds), *start.shape).clone()
        if h.hidden is None:
            return PrefixPatch(seeds, kv, None)
        width = kv.shape[4] * kv.shape[5]
        inputs = draw.normal((h.length, width), 1.0)
        w1 = draw.uniform((width, h.hidden), width**-0.5)
        return PrefixPatch(seeds, kv, MLP(inputs, w1, kv[0, 0].numel()))


@torch.no_grad()
def _keys_and_values(model: PreTrainedModel, ids: Sequence[int], length: int) -> Tensor:
    """(l, layers, 2, heads, head width), what the model computes for these tokens, repeated or cut to ``length``."""
    repeated = torch.tensor([list(islice(cycle(ids), length))], device=model.device)
    cache = DynamicCache()
    with frozen(model):
        model(input_ids=repeated, past_key_values=cache, use_cache=True)
    kv = torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])  # type: ignore[union-attr, list-item]
    return kv.permute(3, 0, 1, 2, 4).cpu().to(torch.promote_types(torch.float32, model.dtype))
