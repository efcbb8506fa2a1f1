"""Files appear whole or not at all, and a folder has one writer at a time."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

LOCK = ".lock"


class LockedError(ValueError):
    """Another process writes to the folder."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside says which file it is about; what is raised while a file is written to does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, beside ``path``, which takes its place when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    unfinished.open("xb").close()  # with the rights that the umask gives, which a temporary file would not have
    try:
        with named(path):
            yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with suppress(FileNotFoundError):
            unfinished.unlink()
        raise


def tidy(folder: Path, names: str) -> None:
    """Remove what processes that were killed have left of files that they were :func:`replacing`.

    Args:
        folder: where.
        names: a glob pattern of the files' names.
    """
    for path in folder.glob(f".{names}.*"):
        pid, dash, _ = path.name.rpartition(".")[2].partition("-")
        if dash and pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` when the block ends without an error.

    What a killed process has left of the same is removed. Raises ValueError where the target is there already, and
    LockedError where another process is making it.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; name a folder that does not")
    work = target.with_name(f".{target.name}.unfinished")
    with locked(work):
        made = work / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            yield made
            made.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this process's to write to, while open. Raises LockedError where it is another's.

    The system takes the lock away from a process that dies, however it dies.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{error.filename} is a file, where a folder is to be; name another folder") from None
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
