"""Work on several workers: whatever happens to them, each piece of it comes back once.

A :class:`Workers` hands pieces out to processes, on this machine (:class:`Processes`) or on a cluster
(``loredit.backends.ray``). What comes back is used by the one who asked, who alone writes files. A worker that dies or
hangs costs the piece that it had, which another one does again; since a piece's numbers depend on the piece alone, it
does not matter which, nor in which order pieces are finished.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread
from types import TracebackType
from typing import Any, Generic, TypeVar, final

import torch

from ..engine.model.loading import without_bars
from .folder import RunError
from .work import Conditions, Spec, conditions, edit_and_score

PATIENCE = 60.0
"""Seconds that any piece may take before its worker is held to hang."""

# As long as none is finished nobody knows what is long.
_FIRST = 3600.0
# A piece may take so many times as long as the longest so far, or as loading the model; twice as many each time that
# this was too short.
_LONGER = 10
# A piece whose workers die so often is what kills them. One that hangs may only wait for its turn on a busy cluster.
_DEATHS = 5
# How often we look whether workers were added, lost, or hang.
_SECONDS = 1.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_W = TypeVar("_W", bound="Workers")


@dataclass(frozen=True)
class Piece(Generic[_T]):
    """What one worker does at a time: a call of a function that it can import, whose result depends on it alone."""

    name: str
    """What it is called in messages."""
    work: Callable[..., _T]
    arguments: tuple[object, ...]
    least: float = 0.0
    """Seconds that it may take in any case, where others of its kind say little about it."""


class LostWorkerError(Exception):
    """A worker has died with its piece; the message says what is known of it."""


@dataclass
class _Running:
    """A piece that a worker has."""

    piece: int
    begun: float


class Workers(ABC):
    """Processes that edit and score facts, used in a ``with`` block."""

    _loading = 0.0
    """Seconds that a worker has taken to load the model; others have to, too."""

    @final
    def __enter__(self: _W) -> _W:
        return self

    @final
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End what the workers do, and let them go."""

    @abstractmethod
    def free(self, busy: int) -> int:
        """How many pieces can be handed out now, beside those that workers are busy with."""

    @abstractmethod
    def submit(self, work: Callable[..., _T], *arguments: object) -> Future[_T]:
        """Have a free worker call a function that it can import. The future's errors: :meth:`fetch`."""

    @abstractmethod
    def fetch(self, future: Future[_T]) -> _T:
        """What a future that is done gives. Raises LostWorkerError, or what the function raised."""

    @abstractmethod
    def drop(self, future: Future[_T]) -> None:
        """Be rid of a worker that hangs."""

    @final
    def conditions(self, spec: Spec) -> Conditions:
        """The conditions that the first worker finds; the others have to find the same. Raises ValueError."""
        for tried in range(_DEATHS):
            begun, limit = time.monotonic(), _FIRST * 2**tried
            future = self.submit(conditions, spec)
            if not wait([future], limit).done:
                self.drop(future)
                _log.warning("a worker has been loading the model for %.0f s; another one does it", limit)
                continue
            try:
                found = self.fetch(future)
            except LostWorkerError as lost:
                _log.warning("%s; going on with another worker", lost)
            else:
                self._loading = time.monotonic() - begun
                return found
        raise RunError(
            f"{_DEATHS} workers died or hung while they loaded the model {spec.hparams['model']!r}; is it too large?"
        )

    @final
    def results(self, pieces: Sequence[Piece[_T]]) -> Iterator[tuple[int, _T]]:
        """The pieces' results with the pieces' indices, each once, as they are finished.

        Raises:
            RunError: a piece cannot be done anywhere; or what its function raises.
        """
        waiting = deque(range(len(pieces)))
        running: dict[Future[_T], _Running] = {}
        deaths, late = [0] * len(pieces), [0] * len(pieces)
        longest: float | None = None

        def limit(i: int) -> float:
            usual = _FIRST if longest is None else _LONGER * longest
            return max(PATIENCE, pieces[i].least, _LONGER * self._loading, usual) * 2 ** late[i]

        while waiting or running:
            while waiting and self.free(len(running)) > 0:
                i = waiting.popleft()
                running[self.submit(pieces[i].work, *pieces[i].arguments)] = _Running(i, time.monotonic())
            if not running:
                time.sleep(_SECONDS)  # no worker is left, for now
            for future in wait(running, _SECONDS, FIRST_COMPLETED).done:
                i, begun = running[future].piece, running[future].begun
                del running[future]
                try:
                    result = self.fetch(future)
                except LostWorkerError as lost:
                    deaths[i] += 1
                    if deaths[i] == _DEATHS:
                        raise RunError(
                            f"{_DEATHS} workers died with {pieces[i].name}: {lost}. What is finished is kept, and "
                            "--resume goes on; where memory is short, begin anew with fewer --edits-at-once"
                        ) from None
                    _log.warning("a worker died with %s, which another one does again: %s", pieces[i].name, lost)
                    waiting.appendleft(i)
                else:
                    longest = max(longest or 0.0, time.monotonic() - begun)
                    yield i, result
            for future, job in list(running.items()):
                i, seconds = job.piece, time.monotonic() - job.begun
                if future.done() or seconds <= limit(i):
                    continue
                del running[future]
                self.drop(future)
                late[i] += 1
                _log.warning(
                    "a worker hangs: it has had %s for %.0f s%s; another one does it",
                    pieces[i].name,
                    seconds,
                    "" if longest is None else f", and the longest so far took {longest:.0f} s",
                )
                waiting.append(i)


class Processes(Workers):
    """Processes of this machine, which share its cores.

    Example:
        >>> with Processes(4) as workers:  # doctest: +SKIP
        ...     loredit.run("lora", "smollm2", workers=workers)
    """

    def __init__(self, number: int) -> None:
        if number < 1:
            raise RunError(f"workers are processes, 1 or more, not {number}")
        self._number = number
        self._idle: list[_Process] = []
        self._busy: dict[Future[Any], _Process] = {}

    def close(self) -> None:
        for process in (*self._idle, *self._busy.values()):
            process.end()
        self._idle, self._busy = [], {}

    def free(self, busy: int) -> int:
        return self._number - busy

    def submit(self, work: Callable[..., _T], *arguments: object) -> Future[_T]:
        process = self._idle.pop() if self._idle else _Process(max(1, torch.get_num_threads() // self._number))
        future = process.call(work, arguments)
        self._busy[future] = process
        return future

    def fetch(self, future: Future[_T]) -> _T:
        process = self._busy.pop(future)
        if isinstance(future.exception(), LostWorkerError):
            process.end()
        else:
            self._idle.append(process)
        return future.result()

    def drop(self, future: Future[_T]) -> None:
        self._busy.pop(future).end()


class _Process:
    """A process that does one call after another."""

    def __init__(self, threads: int) -> None:
        # Forked from a process that has only imported: CUDA, and torch's threads and locks, survive no fork of this
        # one, and a process begun anew would import for seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([edit_and_score.__module__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()  # the other end is the process's alone, so that the pipe ends with it

    def call(self, work: Callable[..., _T], arguments: tuple[object, ...]) -> Future[_T]:
        future: Future[_T] = Future()
        Thread(target=self._call, args=(future, work, arguments), daemon=True).start()
        return future

    def _call(self, future: Future[_T], work: Callable[..., _T], arguments: tuple[object, ...]) -> None:
        try:
            self._pipe.send((work, arguments))
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            future.set_exception(LostWorkerError(f"process {self._process.pid} ended"))
        except Exception as unreadable:  # whatever else fails is told to the one who waits
            future.set_exception(unreadable)
        else:
            future.set_exception(error) if error else future.set_result(result)

    def end(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    without_bars()  # of loading weights; what of all of them is finished is the driver's to show
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a terminal's Ctrl-C is to end is told to the driver alone
    Thread(target=_end_with_driver, daemon=True).start()
    while True:
        work, arguments = pipe.recv()
        try:
            pipe.send((work(*arguments), None))
        except Exception as error:
            pipe.send((None, error))


def _end_with_driver() -> None:
    """Nobody would end a process whose driver was killed."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
