"""Running the frozen model: only the logits that are asked for, only the blocks that can have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ._sites import blocks


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients of its own; both as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, flag in flags:
            p.requires_grad = flag


def trainable_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The attention to train with. On a CPU in bfloat16, going backward through the fused one takes several times as
    long as through plain products (2.6 times at 64 rows of 24 tokens); elsewhere it is the model's own."""
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def _one_query(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of one token a row, (R, H, 1, D), as two products over all rows and heads at once."""
    rows, heads, tokens, width = query.shape
    if tokens > 1 or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or width**-0.5
    grouped = query.reshape(rows * key.shape[1], -1, width) * scale  # query heads that share a key head
    scores = torch.bmm(grouped, key.flatten(0, 1).mT).view(rows, key.shape[1], -1, key.shape[2])
    if attention_mask is not None:
        mask = attention_mask.view(rows, -1, 1, key.shape[2])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    share = scores.softmax(-1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(value.dtype)
    out = torch.bmm(share.flatten(0, 1), value.flatten(0, 1))
    return out.view(rows, 1, heads, width), None


_ONE_QUERY = "loredit_one_query"


@contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention to generate with. On a CPU, the fused one takes several times as long for a single token a row as
    plain products (docs/performance.md); elsewhere it is the model's own."""
    own = model.config._attn_implementation
    if model.device.type != "cpu" or own != "sdpa":
        yield
        return
    AttentionInterface.register(_ONE_QUERY, _one_query)
    AttentionMaskInterface.register(_ONE_QUERY, sdpa_mask)
    model.config._attn_implementation = _ONE_QUERY
    try:
        yield
    finally:
        model.config._attn_implementation = own


@contextmanager
def head_sees(model: PreTrainedModel, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The output layer gets ``select(hidden)`` instead of all hidden states (R, T, d), so other logits cost nothing."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output layer"
    # Contiguous, or the product with the vocabulary would copy the output weights for each row.
    handle = head.register_forward_pre_hook(lambda _, args: (select(args[0]).contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: PreTrainedModel, ids: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """(R, T) ids, N places (row, position) -> (N, V) logits."""
    with head_sees(model, lambda hidden: hidden[at].unsqueeze(0)):
        return model(input_ids=ids, use_cache=False).logits.squeeze(0)


@contextmanager
def rows_counted(model: nn.Module, rows: int) -> Iterator[None]:
    """Refuses a batch of another number of rows, which would silently be cut into rows of another length."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        found = len(kwargs["inputs_embeds"] if ids is None else ids)
        if found != rows:
            raise ValueError(
                f"edits are attached for {rows} rows, but the batch has {found}: name one, or -1, for each"
            )

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def hooked(model: nn.Module) -> bool:
    """Whether something of this package is attached to the model."""
    hooks = (h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return any(str(getattr(hook, "__module__", "")).startswith(str(__package__)) for hook in hooks)


class _Reached(Exception):  # noqa: N818, it is no error
    """Raised at a block to end a forward pass that has gone far enough."""


@contextmanager
def kept(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """Collects the input of block ``layer`` of every forward pass inside."""
    seen: list[Tensor] = []
    handle = blocks(model)[layer].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(_input(args, kwargs)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def input_of(model: PreTrainedModel, layer: int, ids: Tensor, **more: Tensor) -> Tensor:
    """(R, T) ids -> (R, T, d), what block ``layer`` gets; the blocks from there on are not run.

    ``more``: what else the model takes, such as a mask.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(_input(args, kwargs))

    handle = blocks(model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False, **more)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise AssertionError("the model ran without its blocks")


@contextmanager
def replayed(model: nn.Module, layer: int, hidden: Tensor) -> Iterator[None]:
    """Block ``layer`` gets ``hidden``; the blocks below, unchanged since :func:`kept`, are skipped."""
    below = [block for depth, block in enumerate(blocks(model)) if depth < layer]

    def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    own = [(block, vars(block).get("forward")) for block in below]  # None: the class's, as it should be
    handle = blocks(model)[layer].register_forward_pre_hook(swap, with_kwargs=True)
    try:
        for block in below:
            block.forward = lambda hidden_states, *_, **__: hidden_states
        yield
    finally:
        handle.remove()
        for block, forward in own:
            del block.forward
            if forward is not None:
                block.forward = forward


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
