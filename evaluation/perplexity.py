r"""Perplexity on a text: a proxy for what an edit did to the model's general ability.

.. math::  \mathrm{PPL} = \exp \Big( -\tfrac{1}{T - 1} \sum_{t=2}^{T} \log p(x_t \mid x_{w(t)} \dots x_{t-1}) \Big)

The text is one sequence of T tokens, read through windows of W = 512 tokens (or the model's context, if that is less),
each S = W / 2 further on than the one before. Every token but the first is predicted once, in the first window that it
is in: x_w(t) is that window's first token, so from the second window on at least W - S tokens stand before it. Source:
Hugging Face's strided evaluation (https://huggingface.co/docs/transformers/perplexity). Lower is better, 1 the least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..editors.base import Edits
from ..engine.model.encoding import Encoded
from ..engine.model.passes import frozen
from .scores import Perplexity
from .scoring import both_passes

_WINDOW = 512
# Windows of one forward pass: 2048 tokens, of which half are predicted, so that the logits stay below a gigabyte.
_AT_ONCE = 4


def perplexity(
    edits: Edits, text: str, *, edit: int = 0, progress: Callable[[float], None] = lambda share: None
) -> Perplexity:
    """The perplexity of the unedited model and of ``edit`` on ``text``. Raises ValueError for less than two tokens."""
    encoder = edits.editor.encoder
    ids = encoder.tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"perplexity needs a text of two tokens or more; this one has {len(ids)}")
    rows = windows(ids, min(_WINDOW, encoder.context - encoder.reserved))
    base = edited = 0.0
    with frozen(edits.editor.model), torch.no_grad():
        for i in range(0, len(rows), _AT_ONCE):
            chunk = rows[i : i + _AT_ONCE]
            passes = both_passes(edits, [edit] * len(chunk), chunk)
            base += sum(unedited.log_prob for unedited, _ in passes)
            edited += sum(own.log_prob for _, own in passes)
            progress((i + len(chunk)) / len(rows))
    n = len(ids) - 1
    mean = torch.tensor([base, edited], dtype=torch.float64) / n
    return Perplexity(base=(-mean[0]).exp().item(), edited=(-mean[1]).exp().item(), tokens=n)


def windows(ids: Sequence[int], width: int) -> list[Encoded]:
    """A text's windows, each with the position from which on its tokens are predicted."""
    stride = width // 2
    rows, predicted = [], 1
    for begin in range(0, len(ids), stride):
        end = min(begin + width, len(ids))
        rows.append(Encoded(tuple(ids[begin:end]), predicted - begin))
        predicted = end
        if end == len(ids):
            break
    return rows
