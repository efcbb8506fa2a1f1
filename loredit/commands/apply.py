"""``loredit apply``: learn facts and keep them in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .. import data as facts_of
from .. import hparams as presets
from ..data.messages import listed
from ..engine.files import locked
from .common import Device, Dtype, Set, check_names, err, explained, out, printable, quiet, size


class Mode(str, Enum):
    """How facts become edits."""

    single = "single"
    batch = "batch"


def apply(
    folder: Annotated[Path, typer.Argument(help="Folder to write; edits that it holds are replaced.")],
    data: Annotated[str, typer.Option(help="Facts: a JSON, JSONL or CSV file, - for standard input.")] = "samples",
    editor: Annotated[str, typer.Option(help="Editing method; an unknown name lists all.")] = "roselora",
    hparams: Annotated[str, typer.Option(help="YAML file, or a preset in hparams/<editor>/.")] = "smollm2.yaml",
    set_: Set = None,
    mode: Annotated[
        Mode, typer.Option(help="single: one edit for each fact; batch: one edit that carries all facts.")
    ] = Mode.single,
    limit: Annotated[int | None, typer.Option(min=1, help="Edit this many facts at most.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty records of the list.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; each finished batch of edits was kept.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder, GGUF file, smollm2-135m; else the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same numbers.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Learn facts and keep them in a folder.

    In mode single, a run that is interrupted or killed loses the batch of facts in flight, and --resume goes on.

    loredit apply my-edits --data facts.csv --set lr=1e-3
    """
    with explained():
        check_names(editor, hparams)
        overrides = presets.parsed(set_ or [])
        loaded_facts = facts_of.load(data, skip_bad=skip_bad)
        quiet()

        from .. import editors

        with locked(folder):
            method = editors.editor(editor, hparams, model=model, seed=seed, device=device, dtype=dtype, **overrides)
            facts = loaded_facts.facts[:limit]
            with _unfinished(folder, resume) as checkpoint:
                if mode is Mode.batch:
                    edits = method.edit(facts, progress=True)
                else:
                    edits = method.edit_each(facts, checkpoint=checkpoint, progress=True)
                edits.save(folder)
        for record in loaded_facts.bad:
            err.print(f"left out: {printable(str(record))}", markup=False)
        failed = [(e, o.error) for e, o in enumerate(edits.outcomes) if o.error]
        for e, error in failed:
            names = ", ".join(fact.case_id for fact in edits.facts[e])
            err.print(printable(f"failed: {names}: {error}"), markup=False)
        out.print(f"{len(edits) - len(failed)} of {len(edits)} edits in {folder}, {size(folder)}", markup=False)
        missed = edits.unlearned
        total = len(edits.case_ids)
        out.print(f"{total - len(missed)} of {total} facts learned", markup=False)
        if missed:
            out.print(printable(f"not learned: {listed(missed)}"), markup=False)
    if len(failed) == len(edits):
        raise typer.Exit(1)


@contextmanager
def _unfinished(folder: Path, resume: bool) -> Iterator[Path]:
    """Where finished batches of edits lie until all are finished."""
    unfinished, over = folder / ".unfinished", folder / ".finished"
    shutil.rmtree(over, ignore_errors=True)  # of a run that was killed at its very end
    if unfinished.exists() and not resume:
        raise ValueError(
            f"{folder} holds edits of an interrupted run; --resume goes on with it, or delete {unfinished}"
        )
    try:
        yield unfinished
    except KeyboardInterrupt:
        if unfinished.exists():
            err.print("interrupted; the batches that are finished are kept. The same command with --resume goes on.")
        raise
    if unfinished.exists():
        shutil.rmtree(unfinished.rename(over))  # renamed first, so that there are always all batches or none
