"""One model, several threads: hooks are the model's, not a call's, so one thread at a time has it.

Passes of the engine (:func:`~.passes.frozen`) wait for each other. Edits that are attached stay for as long as a user
likes, so nobody waits for these: whoever asks for the model meanwhile gets a RuntimeError, and so does a plain call of
the model from another thread, which would be computed with what is this thread's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

import torch
from torch import nn


class _Use:
    """Who has a model."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.owner: int | None = None
        self.attached = False  # by a user, so that it lasts; only the owner changes it


_uses: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    # A forked process, such as a data loader's, has none of the threads that had a model.
    os.register_at_fork(after_in_child=_uses.clear)


def _use(model: nn.Module) -> _Use:
    return _uses.setdefault(model, _Use())


def taken_elsewhere(model: nn.Module) -> bool:
    """Whether another thread has the model."""
    return _use(model).owner not in (None, get_ident())


def check_unattached_elsewhere(model: nn.Module, doing: str) -> None:
    """Refuse a model that another thread has edits attached to, with a RuntimeError."""
    if taken_elsewhere(model) and _use(model).attached:
        raise RuntimeError(
            f"another thread has edits attached to the model; {doing} when it is done, or give each thread a model of "
            "its own (loredit.session.Session takes calls from several threads in turn)"
        )


@contextmanager
def owned(model: nn.Module) -> Iterator[None]:
    """The model is this thread's, while open; it is waited for. Plain calls from other threads are not seen."""
    use, me = _use(model), get_ident()
    if use.owner == me:
        yield
        return
    with use.lock:
        use.owner = me
        try:
            yield
        finally:
            use.owner = None


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """The model is anybody's, while open, in the middle of what this thread does with it; then it is waited for."""
    use, me = _use(model), get_ident()
    if use.owner != me:
        yield
        return
    attached, use.attached, use.owner = use.attached, False, None
    use.lock.release()
    try:
        yield
    finally:
        use.lock.acquire()
        use.owner, use.attached = me, attached


@contextmanager
def guarded(model: nn.Module, *, attached: bool = False) -> Iterator[None]:
    """As :func:`owned`, and a call of the model from another thread is a RuntimeError.

    ``attached``: edits are, so that nobody is to wait.
    """
    check_unattached_elsewhere(model, "use it")
    inner = _use(model).owner == get_ident()  # a pass that attaches edits is soon over
    with owned(model):
        use, me = _use(model), get_ident()

        def check(_: nn.Module, __: object) -> None:
            if not torch.compiler.is_compiling() and get_ident() != me:
                raise RuntimeError(
                    "another thread is using the model, and what it has attached would change this call; call the "
                    "model in the thread that attaches edits, or give each thread a model of its own"
                )

        handle = model.register_forward_pre_hook(check)
        before, use.attached = use.attached, use.attached or (attached and not inner)
        try:
            yield
        finally:
            use.attached = before
            handle.remove()
