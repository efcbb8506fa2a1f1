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
2 L d l are stored with an edit; trained with the MLP of m hidden units are l d + (d + 1) m + (m + 1) 2 L d.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..engine.patches.patch import Patch
from ..engine.patches.prefixes import keys_and_values, prepended
from ..engine.patches.rows import Rows
from ..engine.seeds import PerEdit
from ..hparams.prefix import PrefixHparams
from .base import TrainedEditor


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

    def attached(self, model: PreTrainedModel, rows: Rows) -> AbstractContextManager[None]:
        # (layers, 2, R, heads, l, head width)
        kv = rows.per_row(self.keys_and_values(), model.dtype).permute(2, 3, 0, 4, 1, 5)
        return prepended(model, kv, rows.edited.flatten(1).long().expand(-1, kv.shape[4]))


class Prefix(TrainedEditor):
    """Keys and values before every layer's own, a set for each edit."""

    Hparams = PrefixHparams
    hparams: PrefixHparams

    @property
    def positions(self) -> int:
        return self.hparams.length

    def patch(self, seeds: Sequence[int]) -> PrefixPatch:
        h, draw = self.hparams, PerEdit(seeds)
        ids = [*islice(cycle(self.encoder.prompt(h.init_text).ids), h.length)]
        start = keys_and_values(self.model, ids)
        kv = start.expand(len(seeds), *start.shape).clone()
        if h.hidden is None:
            return PrefixPatch(seeds, kv, None)
        width = kv.shape[4] * kv.shape[5]
        inputs = draw.normal((h.length, width), 1.0)
        w1 = draw.uniform((width, h.hidden), width**-0.5)
        return PrefixPatch(seeds, kv, MLP(inputs, w1, kv[0, 0].numel()))
