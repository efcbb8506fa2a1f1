"""Keys and values of facts: what a site gets, and what a module gives, at one token of each text.

A fact's key is the mean over contexts of the site's input at the last token of its subject (ROME,
https://arxiv.org/abs/2202.05262). Where that token stands is the encoder's affair
(:meth:`~.encoding.Encoder.answered`, ``marked``).

Shapes: N texts, I/O a module's input/output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..devices import Budget
from .encoding import chunks, padded
from .generation import Attach
from .passes import frozen, seen
from .sites import Site

# Padded tokens of one pass, which keeps nothing for a backward one.
_TOKENS = Budget(cpu=2048, mps=8192, accelerator=1 << 16)


def inputs_at(
    model: PreTrainedModel,
    site: Site,
    texts: Sequence[Sequence[int]],
    places: Sequence[int],
    attach: Attach = lambda rows: nullcontext(),
) -> Tensor:
    """What a site gets at one token of each text.

    Args:
        model: any known family.
        site: the linear map.
        texts: token ids; what stands behind a text's place is not run.
        places: a position in each text.
        attach: given the indices of texts that are computed at once, attaches the edits that belong to them.

    Returns:
        (N, I), in the model's dtype.

    Example:
        >>> keys = inputs_at(model, site, [(464, 3139, 286, 4881)], [3])  # doctest: +SKIP
    """
    return states_at(model, texts, places, inputs=[model.get_submodule(site.name)], attach=attach)[0]


def states_at(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    places: Sequence[int],
    *,
    inputs: Sequence[nn.Module] = (),
    outputs: Sequence[nn.Module] = (),
    attach: Attach = lambda rows: nullcontext(),
) -> list[Tensor]:
    """As :func:`inputs_at`, of several modules: what the modules of ``inputs`` get, then what those of ``outputs``
    give, (N, width) each."""
    cut = [tuple(text[: place + 1]) for text, place in zip(texts, places, strict=True)]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i]))
    parts: list[list[Tensor]] = []
    with frozen(model):
        for rows in chunks(order, [len(cut[i]) for i in order], _TOKENS.on(model.device)):
            ids, _ = padded([cut[i] for i in rows], model.device)
            last = torch.tensor([places[i] for i in rows], device=model.device)
            with attach(rows):
                states = seen(model, ids, inputs=inputs, outputs=outputs)
            parts.append([t[torch.arange(len(rows), device=model.device), last] for t in states])
    back = torch.tensor(order, device=model.device).argsort()
    return [torch.cat(same)[back] for same in zip(*parts, strict=True)]
