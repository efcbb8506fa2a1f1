"""Continuing prompts, many rows at once, with the key-value cache; a row's text never depends on its neighbours.

transformers' ``generate`` draws one random stream for the whole batch and cannot change the edits attached to the rows
while it runs; this loop gives each row its own stream and lets finished rows go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..seeds import seed_of
from .attention import plain_attention
from .encoding import padded
from .passes import context_of, frozen, head_sees

Attach = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Given the batch rows that are being computed, attaches what belongs to them."""


class TopK:
    """Samples among the k likeliest tokens; row r draws from ``seeds[r]`` alone."""

    def __init__(self, k: int, seeds: Sequence[int], tokens: int) -> None:
        self.k = k
        self._draws = torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """(R, V) -> (R,)"""
        top = logits.topk(self.k, dim=-1)
        below = top.values.float().softmax(-1).cumsum(-1) < self._draws[list(rows), step].to(logits.device)[:, None]
        choice = below.sum(-1, keepdim=True).clamp(max=self.k - 1)
        return top.indices.gather(-1, choice).squeeze(-1)


def greedy(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


class Decoder:
    """Prompts that are continued side by side, a token at a time; rows come and go between two steps. Used as a
    context.

    A row is a number that the caller gives it, by which ``attach`` knows what belongs to it. All layers keep the whole
    text: one that looks back a few tokens only is held to that by its mask.

    Example:
        >>> with Decoder(model, attach) as decoder:  # doctest: +SKIP
        ...     logits = decoder.join([0, 1], prompts)
        ...     logits = decoder.step(logits.argmax(-1))
    """

    def __init__(self, model: PreTrainedModel, attach: Attach = lambda rows: nullcontext()) -> None:
        self.rows: list[int] = []
        self._model, self._attach = model, attach
        self._running, self._attached = ExitStack(), ExitStack()
        self._now: list[int] = []  # the rows that are attached
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    def __enter__(self) -> Decoder:
        for context in (
            frozen(self._model),
            plain_attention(self._model),
            head_sees(self._model, lambda hidden: hidden[:, -1:]),
        ):
            self._running.enter_context(context)
        self._running.push(self._attached)
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def join(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Take up new rows, in one pass of their own; (R, V) what comes after their prompts."""
        ids, mask = padded(prompts, self._model.device, left=True)
        cache = DynamicCache()
        logits = self._run([*rows], ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        self._cache, self._mask = _side_by_side(self._cache, self._mask, cache, mask) if self.rows else (cache, mask)
        self.rows = [*self.rows, *rows]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """(R,) the next token of each row -> (R, V) what comes after it."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        return self._run(self.rows, tokens[:, None], self._mask, positions, self._cache)

    def keep(self, places: Sequence[int]) -> None:
        """Let the rows at all other places go."""
        index = torch.tensor(places, dtype=torch.long, device=self._model.device)
        for layer in self._cache.layers:  # each on its own device
            layer.batch_select_indices(index.to(layer.keys.device))  # type: ignore[union-attr]
        self._mask, self.rows = self._mask[index], [self.rows[place] for place in places]

    @torch.no_grad()
    def _run(self, rows: list[int], ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        if rows != self._now:
            self._attached.close()
            self._attached.enter_context(self._attach(rows))
            self._now = [*rows]
        return self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits[:, 0]


def _side_by_side(a: DynamicCache, mask_a: Tensor, b: DynamicCache, mask_b: Tensor) -> tuple[DynamicCache, Tensor]:
    """Two caches as one, and their masks, (R, T) each: texts end at the same place, whatever stands before them is
    masked. What an edit has put before all texts (a prefix, that no mask counts) stays at the very beginning."""
    begun = int(mask_a.any(0).nonzero()[0])  # the longest text may have left
    caches, masks = (a, b), (mask_a[:, begun:], mask_b)
    before = [cache.get_seq_length() - mask.shape[1] for cache, mask in ((a, mask_a), (b, mask_b))]
    width = max(mask.shape[1] for mask in masks)

    def laid(t: Tensor, which: int) -> Tensor:
        """(R, K, S, D): prefix, filler, text."""
        text = t[:, :, t.shape[2] - masks[which].shape[1] :]
        prefix = t[:, :, : before[which]]
        filler = t.new_zeros(*t.shape[:2], width + max(before) - text.shape[2] - prefix.shape[2], t.shape[3])
        return torch.cat([prefix, filler, text] if before[which] else [filler, text], dim=2)

    joined = DynamicCache()
    for depth, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = (
            torch.cat([laid(getattr(layer, name), i) for i, layer in enumerate(layers)]) for name in ("keys", "values")
        )
        joined.update(keys, values, depth)
    return joined, torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in masks])


def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    context: int | None = None,
    choose: Callable[[Tensor, Sequence[int], int], Tensor] = greedy,
    attach: Attach = lambda rows: nullcontext(),
    stop: Callable[[int, int], bool] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """The token ids that follow each prompt: ``tokens`` of them, or up to and with the first for which
    ``stop(row, token)`` holds; fewer where prompt and text together fill the ``context`` (None: the model's)."""
    context = context or context_of(model)
    out: list[list[int]] = [[] for _ in prompts]
    finished = set[int]()
    with Decoder(model, attach) as decoder:
        logits = decoder.join(range(len(prompts)), prompts)
        for step in range(tokens):
            full = False  # a row has filled the context: another token of it would be at a position that there is not
            chosen = choose(logits, decoder.rows, step)
            for row, token in zip(decoder.rows, chosen.tolist(), strict=True):
                if row not in finished:
                    out[row].append(token)
                filled = len(prompts[row]) + len(out[row]) >= context
                full |= filled
                if filled or (stop and stop(row, token)):
                    finished.add(row)
            live = [i for i, row in enumerate(decoder.rows) if row not in finished]
            if progress:
                progress((step + 1) / tokens if live else 1.0)
            if not live or step + 1 == tokens:
                break
            if full or len(live) <= len(decoder.rows) // 2:  # letting go copies the cache, so not for every single one
                decoder.keep(live)
                chosen = chosen[live]
            logits = decoder.step(chosen)
    return out


def sampled_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int) -> tuple[str, ...]:
    """n short texts of the model's own, to train prompts behind (ROME, https://arxiv.org/abs/2202.05262, appendix E.5:
    prefixes of about 10 tokens). Always the same for one model, so that edits can be repeated."""
    if not n:
        return ()
    beginnings = ["The", "Therefore", "Because", "I", "You"]
    prompts = [tuple(tokenizer(beginnings[i % len(beginnings)])["input_ids"]) for i in range(n)]
    choose = TopK(5, [seed_of("context", i) for i in range(n)], 10)
    texts = continuations(model, prompts, tokens=10, choose=choose)
    decoded = tokenizer.batch_decode([[*p, *t] for p, t in zip(prompts, texts, strict=True)], skip_special_tokens=True)
    return tuple(" ".join(text.split()).rstrip(".") + "." for text in decoded)
