"""Running the frozen model: only the logits that are asked for, only the blocks that can have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

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
