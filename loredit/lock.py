"""One model, one user at a time: those who wait come in their order, and long work gives way between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from torch import nn

from .engine.model.hooks import set_aside


class ModelLock:
    """A fair lock around a model.

    Example:
        >>> lock = ModelLock(model)  # doctest: +SKIP
        >>> with lock.held():  # doctest: +SKIP
        ...     for part in work:
        ...         part()
        ...         lock.give_way()
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._queue: deque[object] = deque()  # the first has the lock, the others wait
        self._changed = Condition()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The model is the caller's alone, while open."""
        me = object()
        with self._changed:
            self._queue.append(me)
            self._changed.wait_for(lambda: self._queue[0] is me)
        try:
            yield
        finally:
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def give_way(self) -> None:
        """Let those who wait have the model first, as it is without what the caller has attached to it.

        For whoever has the lock, between two forward passes; costs nothing where nobody waits.
        """
        if len(self._queue) < 2:
            return
        with set_aside(self._model), self._changed:
            me = self._queue[0]
            self._queue.rotate(-1)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue[0] is me)
