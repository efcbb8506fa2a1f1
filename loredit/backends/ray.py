"""Workers on a Ray cluster (the extra ``ray``).

Pieces of work are Ray *tasks*, whose processes keep the model that they have loaded. An actor would tie pieces to one
process, and those whose node is lost would wait for it; a task goes to any other.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..engine.version import VERSION
from ..evaluation.folder import RunError
from ..evaluation.spreading import LostWorkerError, Workers

# Nothing about the cluster goes to Ray's makers. Read when ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray import exceptions
except ImportError as missing:
    raise RunError(f"{missing}; pip install 'loredit[ray]' brings it") from None

# How long a cluster may take to answer; Ray itself would try for minutes to join one that is not there.
_SECONDS = 10.0

_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.TaskCancelledError,
)

_T = TypeVar("_T")


class RayWorkers(Workers):
    """Worker processes of a Ray cluster, as many as it has room for.

    Args:
        address: auto, the cluster that this machine is a node of; ``ray://HOST:PORT`` or ``HOST:PORT``, another one;
            local, one of this machine alone, which ends with the workers.
        number: workers at most; None: as many as the cluster has CPUs or, where it has any, GPUs for.
        gpus_per_worker: None: one, where the cluster has any.

    Raises:
        RunError: there is no such cluster.

    Example:
        >>> with RayWorkers("auto") as workers:  # doctest: +SKIP
        ...     loredit.run("lora", "smollm2", workers=workers)
    """

    def __init__(self, address: str, number: int | None = None, gpus_per_worker: float | None = None) -> None:
        self._number, self._refs = number, dict[Future[Any], Any]()
        self._ours = not ray.is_initialized()
        if self._ours:
            _join(address)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        self._gpus = min(1.0, gpus) if gpus_per_worker is None else gpus_per_worker
        if self._gpus > gpus:
            self.close()
            raise RunError(f"{self._gpus:g} GPUs a worker are more than the cluster's {gpus:g}")
        self._task = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0)(_called)

    def close(self) -> None:
        for future in [*self._refs]:
            self.drop(future)
        if self._ours:
            ray.shutdown()

    def free(self, busy: int) -> int:
        room = ray.cluster_resources()  # nodes come and go
        slots = int(room.get("CPU", 0.0))
        if self._gpus:
            slots = min(slots, int(room.get("GPU", 0.0) / self._gpus))
        return (slots if self._number is None else min(slots, self._number)) - busy

    def submit(self, work: Callable[..., _T], *arguments: object) -> Future[_T]:
        ref = self._task.remote(VERSION, pickle.dumps((work, arguments)))
        future: Future[Any] = ref.future()
        self._refs[future] = ref
        return future

    def fetch(self, future: Future[_T]) -> _T:
        del self._refs[future]
        try:
            return future.result()
        except _LOST as error:
            raise LostWorkerError(str(error).partition("\n")[0]) from None
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise

    def drop(self, future: Future[_T]) -> None:
        ray.cancel(self._refs.pop(future), force=True)


def _called(version: str, pickled: bytes) -> object:
    """On a node: what the driver asks for, read only where it is of the same version."""
    if version != VERSION:
        raise RunError(f"the node {platform.node()} has loredit {VERSION}, not {version}; all nodes need the same")
    work, arguments = pickle.loads(pickled)
    return work(*arguments)


def _join(address: str) -> None:
    """Become a driver of the cluster. Raises RunError."""
    if address not in ("auto", "local"):
        _reach(address)
    dashboard = False if address == "local" else None  # another cluster's is its own
    try:
        ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of whichever kind; what they say is what is known
        raise RunError(f"no Ray cluster at {address!r} that could be joined: {error}") from None


def _reach(address: str) -> None:
    """Raise RunError where nobody listens."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise RunError(f"a Ray cluster is auto, local, HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, port), _SECONDS).close()
    except OSError as error:
        raise RunError(f"no Ray cluster answers at {address}: {error}. `ray start --head` begins one") from None
