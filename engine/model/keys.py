"""Keys and values of facts: what sites get, what modules give, and what a loss asks of them, at single tokens.

A fact's key is the mean over contexts of the site's input at the last token of its subject (ROME,
https://arxiv.org/abs/2202.05262). Where that token stands is the encoder's affair
(:meth:`~.encoding.Encoder.answered`, ``marked``).

Shapes: N texts, K predicted tokens of all texts, I/O a module's input/output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..devices import Budget
from .attention import trainable_attention
from .encoding import Batch, Encoded, chunks, padded
from .generation import Attach
from .passes import frozen, logits_at, seen, taped
from .sites import Site

# Padded tokens of one pass: of one that keeps nothing for a backward pass, and of one that does.
_TOKENS = Budget(cpu=2048, mps=8192, accelerator=1 << 16)
_KEPT_TOKENS = Budget(cpu=512, mps=4096, accelerator=1 << 14)


def inputs_at(
    model: PreTrainedModel,
    site: Site,
    texts: Sequence[Sequence[int]],
    positions: Sequence[int],
    attach: Attach = lambda rows: nullcontext(),
) -> Tensor:
    """What a site gets at one token of each text.

    Args:
        model: any known family.
        site: the linear map.
        texts: token ids; what stands behind a text's position is not run.
        positions: one in each text.
        attach: given the indices of texts that are computed at once, attaches the edits that belong to them.

    Returns:
        (N, I), in the model's dtype.

    Example:
        >>> keys = inputs_at(model, site, [(464, 3139, 286, 4881)], [3])  # doctest: +SKIP
    """
    return states_at(model, texts, positions, inputs=[model.get_submodule(site.name)], attach=attach)[0]


def states_at(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    positions: Sequence[int],
    *,
    inputs: Sequence[nn.Module] = (),
    outputs: Sequence[nn.Module] = (),
    attach: Attach = lambda rows: nullcontext(),
) -> list[Tensor]:
    """As :func:`inputs_at`, of several modules: what the modules of ``inputs`` get, then what those of ``outputs``
    give, (N, width) each."""
    cut = [tuple(text[: position + 1]) for text, position in zip(texts, positions, strict=True)]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i]))
    parts: list[list[Tensor]] = []
    with frozen(model):
        for rows in chunks(order, [len(cut[i]) for i in order], _TOKENS.on(model.device)):
            ids, _ = padded([cut[i] for i in rows], model.device)
            last = torch.tensor([positions[i] for i in rows], device=model.device)
            with attach(rows):
                states = seen(model, ids, inputs=inputs, outputs=outputs)
            parts.append([t[torch.arange(len(rows), device=model.device), last] for t in states])
    back = torch.tensor(order, device=model.device).argsort()
    return [torch.cat(same)[back] for same in zip(*parts, strict=True)]


class Gradients(NamedTuple):
    """What a loss asks of sites where the tokens of answers are predicted."""

    rows: Tensor  # (K,), the text of each prediction
    losses: Tensor  # (N,), each text's mean negative log-likelihood
    inputs: list[Tensor]  # (K, I) of each site
    gradients: list[Tensor]  # (K, O) of each site, of the loss in what the site gives


def gradients_at(
    model: PreTrainedModel,
    sites: Sequence[Site],
    rows: Sequence[Encoded],
    attach: Attach = lambda rows: nullcontext(),
) -> Gradients:
    """What sites get, and how the loss depends on what they give, at the tokens that predict the answers' tokens.

    Args:
        model: any known family.
        sites: linear maps.
        rows: texts with their answers; each text's loss is by itself.
        attach: as in :func:`inputs_at`.

    Returns:
        All predictions, those of a text together and in order, texts in the order of ``rows``.
    """
    modules = [model.get_submodule(site.name) for site in sites]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    owners, losses, inputs, gradients = [], [], [], []
    with frozen(model), trainable_attention(model):
        for part in chunks(order, [len(rows[i].ids) for i in order], _KEPT_TOKENS.on(model.device)):
            batch = Batch.of([rows[i] for i in part], model.device)
            with attach(part), taped(modules) as tape:
                logits = logits_at(model, batch.ids, batch.at)
            nll = F.cross_entropy(
                logits.to(torch.promote_types(torch.float32, logits.dtype)), batch.labels, reduction="none"
            )
            loss = batch.table(nll).sum(1) / batch.table.counts
            asked = torch.autograd.grad(loss.sum(), [y for _, y in tape])
            at = batch.at[0] * batch.ids.shape[1] + batch.at[1]
            inputs.append([_rows(x, at) for x, _ in tape])
            gradients.append([_rows(g, at) for g in asked])
            owners.append(torch.tensor(part, device=model.device)[batch.at[0]])
            losses.append(loss.detach())
    owner = torch.cat(owners)
    back = owner.argsort(stable=True)
    return Gradients(
        owner[back],
        torch.cat(losses)[torch.tensor(order, device=model.device).argsort()],
        [torch.cat(same)[back] for same in zip(*inputs, strict=True)],
        [torch.cat(same)[back] for same in zip(*gradients, strict=True)],
    )


def _rows(t: Tensor, at: Tensor) -> Tensor:
    """(..., width) of a site, on whichever device -> those at ``at``, on its own."""
    return t.flatten(0, -2)[at.to(t.device)].to(at.device)
