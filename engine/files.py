"""Files appear whole or not at all, and a folder has one writer at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


class LockedError(ValueError):
    """Another process writes to the folder."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, beside ``path``, which takes its place when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    unfinished.open("xb").close()  # with the rights that the umask gives, which a temporary file would not have
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(FileNotFoundError):
            unfinished.unlink()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's to write to, while open. Raises LockedError where it is another's.

    The system takes the lock away from a process that dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(
            f"another process is writing to {folder}; wait for it to end, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
