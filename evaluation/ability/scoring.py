"""Log-likelihoods of options and texts, from whatever is attached to a model.

Shapes: N predictions of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...engine.model.encoding import Batch, Encoded, chunks
from ...engine.model.generation import Attach
from ...engine.model.passes import frozen, logits_at
from ..perplexity import windows

_TOKENS_AT_ONCE = 2048
WINDOW = 512
"""Tokens of a window of a long text, as for :func:`~..perplexity.perplexity`."""


class Read(NamedTuple):
    """Of the wanted part of a text: its log-probability, and whether each of its tokens is the likeliest."""

    log_prob: float
    likeliest: bool


def continued(tokenizer: PreTrainedTokenizerBase, text: str, option: str, context: int) -> Encoded:
    """A text and what follows it behind a blank, cut as lm-evaluation-harness cuts them.

    Both are encoded together; what is longer than the encoded text alone is the option. Where they do not fit into the
    context, the text loses its beginning.
    """
    stripped = text.rstrip()
    whole = list(tokenizer(stripped + text[len(stripped) :] + " " + option, verbose=False)["input_ids"])
    start = len(tokenizer(stripped, verbose=False)["input_ids"])
    cut = max(0, len(whole) - context)
    return Encoded(tuple(whole[cut:]), max(1, start - cut))


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, context: int) -> list[Encoded]:
    """A text's windows, in which each of its tokens but the first is predicted once."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return windows(ids, min(WINDOW, context)) if len(ids) > 1 else []


@torch.no_grad()
def read(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    attach: Attach = lambda rows: nullcontext(),
    progress: Callable[[int], None] = lambda done: None,
) -> list[Read]:
    """What the model thinks of the wanted part of each row, in their order.

    Args:
        model: a causal LM.
        rows: texts whose part from ``start`` on is wanted.
        attach: given rows by number, attaches what belongs to them while they are read.
        progress: told how many more rows are read.

    Returns:
        A :class:`Read` for each row.
    """
    found: dict[int, Read] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with frozen(model):
        for chunk in chunks(order, [len(rows[i].ids) for i in order], _TOKENS_AT_ONCE):
            with attach(chunk):
                found |= zip(chunk, _read(model, [rows[i] for i in chunk]), strict=True)
            progress(len(chunk))
    return [found[i] for i in range(len(rows))]


def _read(model: PreTrainedModel, rows: Sequence[Encoded]) -> Iterator[Read]:
    batch = Batch.of(rows, model.device)
    logits: Tensor = logits_at(model, batch.ids, batch.at)
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    nll = F.cross_entropy(logits, batch.labels, reduction="none")
    missed = (logits.argmax(-1) != batch.labels).to(nll.dtype)
    of_row, wrong = batch.table(nll).sum(1), batch.table(missed).sum(1)
    return (Read(-cost, not off) for cost, off in zip(of_row.tolist(), wrong.tolist(), strict=True))
