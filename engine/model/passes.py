"""Running the frozen model: only the logits that are asked for, only the blocks that can have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .sharing import guarded
from .sites import blocks, returned, roles, sites


def context_of(model: PreTrainedModel) -> int:
    """Tokens that a model can see at once. Models with ALiBi (BLOOM) name no bound; theirs is what they saw in
    training, 2048."""
    return getattr(model.config, "max_position_embeddings", None) or 2048


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients of its own; both as they were afterwards. Other threads wait."""
    with guarded(model):
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


@contextmanager
def head_sees(model: PreTrainedModel, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The output layer gets ``select(hidden)`` instead of all hidden states (R, T, d), so other logits cost nothing."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output layer"
    # Laid out anew (a single row counts as contiguous wherever it lies), or the product with the vocabulary would copy
    # the output weights for each row.
    handle = head.register_forward_pre_hook(
        lambda _, args: (select(args[0]).clone(memory_format=torch.contiguous_format), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: PreTrainedModel, ids: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """(R, T) ids, N predictions (row, position) -> (N, V) logits."""

    def wanted(hidden: Tensor) -> Tensor:
        return hidden[at[0].to(hidden.device), at[1].to(hidden.device)].unsqueeze(0)

    with _last_maps_at(model, at[0] * ids.shape[1] + at[1]), head_sees(model, wanted):
        return model(input_ids=ids, use_cache=False).logits.squeeze(0)


@torch.no_grad()
def outputs_at(model: PreTrainedModel, ids: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """(R, T) ids, N predictions (row, position) -> (N, d), what the output layer gets for them; it is not run."""

    def stop(hidden: Tensor) -> Tensor:
        raise _Reached(hidden[at[0].to(hidden.device), at[1].to(hidden.device)])

    with _last_maps_at(model, at[0] * ids.shape[1] + at[1]), head_sees(model, stop):
        try:
            model(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.args[0]
    raise AssertionError("the model ran without its output layer")


@torch.no_grad()
def logits_from(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(N, d), what the output layer gets -> (N, V) logits, with what the family does behind that layer."""
    with ExitStack() as stack:
        for block in blocks(model):
            stack.enter_context(_forwarded(block, lambda hidden_states, *_, **__: returned(model, hidden_states)))
        stack.enter_context(head_sees(model, lambda _: hidden.unsqueeze(0)))
        return model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits[0]


@contextmanager
def _last_maps_at(model: PreTrainedModel, at: Tensor) -> Iterator[None]:
    """The last block's linear maps give zero but at these tokens, row * T + position; only its keys and values are
    seen from others."""

    def at_places(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def mapped(x: Tensor) -> Tensor:
            here = at.to(x.device)
            y = forward(x.flatten(0, -2).index_select(0, here))
            return y.new_zeros(x[..., 0].numel(), y.shape[-1]).index_copy_(0, here, y).view(*x.shape[:-1], -1)

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

    def check(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        assert isinstance(given, Tensor), "a model is called with ids, or with embeddings in their place"
        found = len(given)
        if found != rows:
            raise ValueError(
                f"edits are attached for {rows} rows, but the batch has {found}: name one, or -1, for each"
            )

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Reached(Exception):  # noqa: N818, it is no error
    """Raised at a block to end a forward pass that has gone far enough."""


@contextmanager
def recorded(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
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

    def stop(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        raise _Reached(_input(args, kwargs))

    handle = blocks(model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False, **more)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise AssertionError("the model ran without its blocks")


@torch.no_grad()
def seen(
    model: PreTrainedModel, ids: Tensor, *, inputs: Sequence[nn.Module] = (), outputs: Sequence[nn.Module] = ()
) -> list[Tensor]:
    """(R, T) ids -> (R, T, width) each: what the modules of ``inputs`` get, then what those of ``outputs`` give, with
    edits that are attached. The pass ends where the last of them has been seen.
    """
    found: dict[int, Tensor] = {}

    def note(i: int, value: Tensor) -> None:
        found[i] = value.reshape(*ids.shape, -1).to(ids.device)  # OPT's MLP has rows and tokens in one axis
        if len(found) == len(inputs) + len(outputs):
            raise _Reached

    def entered(i: int) -> Callable[..., None]:
        return lambda _, args: note(i, args[0])

    def left(i: int) -> Callable[..., None]:
        return lambda _, args, output: note(i, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for i, module in enumerate(inputs):
            stack.callback(module.register_forward_pre_hook(entered(i)).remove)
        for i, module in enumerate(outputs, len(inputs)):
            stack.callback(module.register_forward_hook(left(i)).remove)
        with suppress(_Reached):
            model(input_ids=ids, use_cache=False)
    return [found[i] for i in range(len(found))]


@contextmanager
def taped(modules: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects what modules get and what they give, edits included, in the one forward pass inside; the loss can be
    differentiated in what they give."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    tape: list[tuple[Tensor, Tensor]] = []

    def note(i: int) -> Callable[..., None]:
        def noted(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # nothing below it does, in a frozen model
                output.requires_grad_()
            seen[i] = args[0].detach(), output

        return noted

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            stack.callback(module.register_forward_hook(note(i)).remove)
        yield tape
        tape += [seen[i] for i in range(len(modules))]


@contextmanager
def replayed(model: nn.Module, layer: int, hidden: Tensor) -> Iterator[None]:
    """Block ``layer`` gets ``hidden``; the blocks below, unchanged since :func:`recorded`, are skipped."""
    below = [block for depth, block in enumerate(blocks(model)) if depth < layer]

    def swap(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    with ExitStack() as stack:
        stack.callback(blocks(model)[layer].register_forward_pre_hook(swap, with_kwargs=True).remove)
        for block in below:
            stack.enter_context(_forwarded(block, lambda hidden_states, *_, **__: returned(model, hidden_states)))
        yield


@contextmanager
def _forwarded(module: nn.Module, forward: Callable[..., Tensor | tuple[Tensor]]) -> Iterator[None]:
    """The module computes this, between its hooks."""
    own = vars(module).get("forward")  # None: the class's, as it should be
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _input(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    assert isinstance(hidden, Tensor), "a block gets hidden states, first or by name"
    return hidden
