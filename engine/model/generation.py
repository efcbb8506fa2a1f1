"""Continuing prompts, many rows at once, with the key-value cache; a row's text never depends on its neighbours.

transformers' ``generate`` draws one random stream for the whole batch and cannot change the edits attached to the rows
while it runs; this loop gives each row its own stream and lets finished rows go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
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


@torch.no_grad()
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
    running, finished = list(range(len(prompts))), set[int]()
    ids, mask = padded(prompts, model.device, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    last = head_sees(model, lambda hidden: hidden[:, -1:])
    with frozen(model), plain_attention(model), last, ExitStack() as attached:
        attached.enter_context(attach(running))
        for step in range(tokens):
            full = False  # a row has filled the context: another token of it would be at a position that there is not
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits[:, 0]
            chosen = choose(logits, running, step)
            for row, token in zip(running, chosen.tolist(), strict=True):
                if row not in finished:
                    out[row].append(token)
                filled = len(prompts[row]) + len(out[row]) >= context
                full |= filled
                if filled or (stop and stop(row, token)):
                    finished.add(row)
            live = [i for i, row in enumerate(running) if row not in finished]
            if progress:
                progress((step + 1) / tokens if live else 1.0)
            if not live:
                break
            if full or len(live) <= len(running) // 2:  # dropping rows copies the cache, so not for every single one
                index = torch.tensor(live, device=model.device)
                cache.batch_select_indices(index)
                mask, chosen, running = mask[index], chosen[index], [running[i] for i in live]
                attached.close()
                attached.enter_context(attach(running))
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
            ids, positions = chosen[:, None], mask.sum(1, keepdim=True) - 1
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
