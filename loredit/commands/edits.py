"""``loredit merge``, ``export`` and ``remove``: what is done with a folder of edits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from ..engine.files import whole
from .common import Case, Device, Folder, ModelName, explained, out, quiet, size


class Form(str, Enum):
    """The forms that edits are exported to."""

    peft = "peft"


def merge(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model; it must not exist yet.")],
    case: Case = None,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Write a model with an edit in its weights, for AutoModelForCausalLM.from_pretrained; the tokenizer too."""
    with explained(), whole(target) as made:
        quiet()

        from ..editors import load
        from ..engine.model.loading import LoadedModel, save
        from ..session import chosen, loaded_for

        loaded = loaded_for(folder, model, device)
        edits = load(folder, loaded.model, loaded.tokenizer)
        save(LoadedModel(edits.merged(chosen(edits, case)), loaded.tokenizer), made)
    out.print(f"{target}: {size(target)}")


def export(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the adapter; it must not exist yet.")],
    to: Annotated[Form, typer.Option(help="peft: a folder for PeftModel.from_pretrained.")] = Form.peft,
    case: Case = None,
    all_: Annotated[bool, typer.Option("--all", help="An adapter for each edit, in folders named by case id.")] = False,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Write an edit as an adapter of another library, or each edit as one."""
    with explained(), whole(target) as made:
        quiet()

        from ..bridges.peft import to_peft
        from ..editors import load
        from ..session import chosen, loaded_for

        if all_ and case is not None:
            raise ValueError("--all writes an adapter for each edit; leave out --case")
        loaded = loaded_for(folder, model, device)
        edits = load(folder, loaded.model, loaded.tokenizer)
        if all_:
            good = [e for e, outcome in enumerate(edits.outcomes) if not outcome.error]
            for e, name in zip(good, folder_names([edits.facts[e][0].case_id for e in good]), strict=True):
                to_peft(edits, e, made / name)
            written = f"{len(good)} adapters"
        else:
            to_peft(edits, chosen(edits, case), made)
            written = size(made)
    out.print(f"{target}: {written}", markup=False)


def folder_names(names: Sequence[str]) -> list[str]:
    """Names that folders can have and servers take, each once.

    Example:
        >>> folder_names(["france", "a/b", "a b"])
        ['france', 'a-b', 'a-b-2']
    """
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "edit"
        numbered = (plain if n == 1 else f"{plain}-{n}" for n in count(1))
        found.append(next(one for one in numbered if one not in found))
    return found


def remove(
    folder: Folder, case: Annotated[str, typer.Argument(metavar="CASE", help="Case id of the fact to undo.")]
) -> None:
    """Undo one fact of a folder with an edit for each fact; the others stay as they are."""
    with explained():
        from ..engine.files import locked
        from ..engine.storage.manifest import read_manifest
        from ..engine.storage.manifest import remove as removed

        read_manifest(folder)  # a folder that holds no edits gets no lock either
        with locked(folder):
            removed(folder, case)
        left = len(read_manifest(folder).facts)
        out.print(f"{case} is undone; {left} edit{'s' if left != 1 else ''} in {folder}")
