"""Running the frozen model: only the logits that are asked for, only the blocks that can have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ._sites import blocks, roles, sites


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients of its own; both as they were afterwards."""
    # Only what is not so already: a prompt that is routed on its way to an edit passes here each time.
    training = [module for module in model.modules() if module.training]
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for module in training:
            module.training = False
        for p in trained:
            p.requires_grad = False
        yield
    finally:
        for module in training:
            module.training = True
        for p in trained:
            p.requires_grad = True


def _plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """(R, H, T, D), twice (R, K, S, D) -> (R, T, H, D), as two products over all rows at once. The H / K query heads
    that share a key head are one matrix."""
    (rows, heads, tokens, width), (_, shared, seen, _) = query.shape, key.shape
    if kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = (query * (kwargs.get("scaling") or width**-0.5)).reshape(rows * shared, -1, width)
    scores = torch.bmm(grouped, key.flatten(0, 1).mT).view(rows, heads, tokens, seen)
    causal = kwargs.get("is_causal")
    if attention_mask is None and tokens > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        attention_mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    share = scores.softmax(-1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(value.dtype)
    out = torch.bmm(share.view(rows * shared, -1, seen), value.flatten(0, 1))
    return out.view(query.shape).transpose(1, 2), None


_PLAIN = "loredit_plain"


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention as plain products on a CPU, where the fused one takes several times as long for a single token a row
    and backward (docs/performance.md); elsewhere, and where the model's own is not fused, the model's own."""
    own = model.config._attn_implementation
    if model.device.type != "cpu" or own != "sdpa":
        yield
        return
    AttentionInterface.register(_PLAIN, _plain_attention)
    AttentionMaskInterface.register(_PLAIN, sdpa_mask)
    model.config._attn_implementation = _PLAIN
    try:
        yield
    finally:
        model.config._attn_implementation = own


def trainable_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The attention to train with: in float32 the fused one goes backward as fast, and keeps no scores for it."""
    return plain_attention(model) if model.dtype == torch.bfloat16 else nullcontext()


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
    with _last_maps_at(model, at[0] * ids.shape[1] + at[1]), head_sees(model, lambda hidden: hidden[at].unsqueeze(0)):
        return model(input_ids=ids, use_cache=False).logits.squeeze(0)


@contextmanager
def _last_maps_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """The last block's linear maps give zero but at these places, row * T + position; only its keys and values are
    seen from others."""

    def at_places(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def mapped(x: Tensor) -> Tensor:
            y = forward(x.flatten(0, -2).index_select(0, places))
            return y.new_zeros(x[..., 0].numel(), y.shape[-1]).index_copy_(0, places, y).view(*x.shape[:-1], -1)

        return mapped

    own = [role for role in roles(model) if role not in ("key", "value", "qkv")]
    with ExitStack() as stack:
        for site in sites(model, own, [len(blocks(model)) - 1]):
            module = model.get_submodule(site.name)
            stack.enter_context(_forwarded(module, at_places(module.forward)))
        yield


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

    with ExitStack() as stack:
        stack.callback(blocks(model)[layer].register_forward_pre_hook(swap, with_kwargs=True).remove)
        for block in below:
            stack.enter_context(_forwarded(block, lambda hidden_states, *_, **__: hidden_states))
        yield


@contextmanager
def _forwarded(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """The module computes this, between its hooks."""
    own = vars(module).get("forward")  # None: the class's, as it should be
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
