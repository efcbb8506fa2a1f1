"""Where a command puts the batches of edits that are finished, until all are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .common import err

UNFINISHED, _FINISHED = ".unfinished", ".finished"


@contextmanager
def unfinished(folder: Path, resume: bool) -> Iterator[Path]:
    """Where finished batches of edits lie until all are finished; gone once the block has ended without an error.

    Raises:
        ValueError: an interrupted run has left some, and ``resume`` is not asked for.
    """
    batches, over = folder / UNFINISHED, folder / _FINISHED
    shutil.rmtree(over, ignore_errors=True)  # of a run that was killed at its very end
    if batches.exists() and not resume:
        raise ValueError(f"{folder} holds edits of an interrupted run; --resume goes on with it, or delete {batches}")
    try:
        yield batches
    except KeyboardInterrupt:
        if batches.exists():
            err.print("interrupted; the batches that are finished are stored. The same command with --resume goes on.")
        raise
    if batches.exists():
        shutil.rmtree(batches.rename(over))  # renamed first, so that there are always all batches or none
