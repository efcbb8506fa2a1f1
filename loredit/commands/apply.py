"""``loredit apply``: learn facts and keep them in a folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .. import data as facts_of
from .. import hparams as presets
from ..engine.files import locked
from .common import Device, Dtype, Quantize, Set, err, explained, failures, out, quiet, say_failed, say_learned, size
from .grow import add as add_to
from .unfinished import UNFINISHED, unfinished


class Mode(str, Enum):
    """How facts become edits."""

    single = "single"
    batch = "batch"


def apply(
    folder: Annotated[Path, typer.Argument(help="Folder to write; one that holds edits is never replaced.")],
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
        bool, typer.Option("--resume", help="Go on with an interrupted run; each finished batch of edits was stored.")
    ] = False,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add to the edits that the folder holds, with its editor, as `loredit add` does."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder, GGUF file, smollm2-135m; else the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same numbers.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Learn facts and keep them in a folder.

    In mode single, a run that is interrupted or killed loses the batch of facts in flight, and --resume goes on.

    loredit apply my-edits --data facts.csv --set lr=1e-3
    """
    if add and _holds_edits(folder):
        add_to(folder, data, limit=limit, skip_bad=skip_bad, resume=resume, model=model, device=device)
        return
    with explained():
        settings = presets.settings(editor, hparams, presets.parsed(set_ or []) | ({"model": model} if model else {}))
        loaded_facts = facts_of.load(data, skip_bad=skip_bad)
        _may_write(folder, resume)
        quiet()

        from .. import editors
        from ..engine.model.loading import load as load_model

        with locked(folder):
            _may_write(folder, resume)  # again, now that nobody else writes
            loaded = load_model(settings.model, device=device, dtype=dtype, quantize=quantize)
            method = editors.find(editor)(loaded.model, loaded.tokenizer, settings, seed=seed)
            facts = loaded_facts.facts[:limit]
            with unfinished(folder, resume) as checkpoint:
                if mode is Mode.batch:
                    edits = method.edit(facts, progress=True)
                else:
                    edits = method.edit_each(facts, checkpoint=checkpoint, progress=True)
                edits.save(folder)
        for record in loaded_facts.bad:
            err.print(f"left out: {record}")
        done = sum(not outcome.error for outcome in edits.outcomes)
        out.print(f"{done} of {len(edits)} edits in {folder}, {size(folder)}")
        say_learned(edits)
        say_failed(failures(edits))


def _may_write(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds edits, with a ValueError that names the ways on."""
    if not _holds_edits(folder):
        return
    if resume and not (folder / UNFINISHED).exists():
        raise ValueError(f"{folder} is complete, there is nothing to go on with; --add adds facts to it")
    further = f"`loredit add {folder} --resume` goes on with what was being added, "
    raise ValueError(
        f"{folder} holds edits already, which `apply` never replaces: {further if resume else ''}--add adds to them, "
        "`loredit update` replaces edits of the same facts; or name another folder"
    )


def _holds_edits(folder: Path) -> bool:
    from ..engine.storage.manifest import MANIFEST

    return (folder / MANIFEST).exists()
