"""The cache: ``$LOREDIT_CACHE``, else ``~/.cache/loredit``. What is built there appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ..files import replacing


def cache() -> Path:
    """The cache's folder, which need not exist."""
    return Path(os.environ.get("LOREDIT_CACHE") or "~/.cache/loredit").expanduser()


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder ``key``, filled by ``build`` at first use.

    It is built under another name and renamed when complete: a stop half-way leaves no broken model, and of two
    processes that build at once the first to finish wins.
    """
    folder = cache() / "models" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
            built = Path(temporary) / key
            built.mkdir()
            build(built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def sha256_of(file: Path) -> str:
    """sha256 of a file, remembered in the cache as long as the file's size and time of change stay the same."""
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()
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
