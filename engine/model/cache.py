"""The cache: ``$LOREDIT_CACHE``, else ``~/.cache/loredit``. What is built there appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from ..files import replacing


def cache() -> Path:
    """The cache's folder, which need not exist."""
    return Path(os.environ.get("LOREDIT_CACHE") or "~/.cache/loredit").expanduser()


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder ``key``, filled by ``build`` at first use.

    It is built under another name and renamed when complete: a stop half-way leaves no broken model. Of two processes
    that want it at once the second waits for the first.
    """
    folder, lock = cache() / "models" / key, cache() / "locks" / key
    if folder.is_dir():
        return folder
    lock.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    built = folder.with_name(f".building-{key}")
    with FileLock(lock):
        shutil.rmtree(built, ignore_errors=True)  # of a process that was killed
        if not folder.is_dir():
            built.mkdir()
            try:
                build(built)
                built.rename(folder)
            finally:
                shutil.rmtree(built, ignore_errors=True)
    return folder


def sha256_of(file: Path) -> str:
    """sha256 of a file, remembered in the cache as long as nothing has written to the file."""
    status = file.stat()
    # The time of change (ctime) too: that of modification can be set, and tools that copy files do.
    seen = (file.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = hashlib.sha256("\n".join(map(str, seen)).encode()).hexdigest()
    note = cache() / "sha256" / key
    with suppress(OSError):
        return note.read_text(encoding="ascii")
    digest = hash_of(file)
    with suppress(OSError):  # a cache that cannot be written costs time, no more
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as temporary:
            temporary.write_text(digest, encoding="ascii")
    return digest


def hash_of(file: Path) -> str:
    """sha256 of a file, with a bar where it takes long."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    with (
        file.open("rb") as raw,
        tqdm.wrapattr(raw, "read", total=size, desc=f"checking {file.name}", delay=2, leave=False) as stream,
    ):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
