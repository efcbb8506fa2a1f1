"""``loredit show``: what a folder holds."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .common import Folder, explained, out, plain, printable, size


def show(
    folder: Folder,
    limit: Annotated[int, typer.Option(min=0, help="Edits to list, at most.")] = 20,
) -> None:
    """What a folder holds: its facts and how their edits went."""
    with explained():
        from ..engine.storage.manifest import STORE, read_manifest, read_tensors
        from ..engine.storage.packed import nonzero_share

        manifest = read_manifest(folder)
        stored = {n: t for n, t in read_tensors(folder, manifest).items() if not n.startswith(STORE)}
        table = Table(title=plain(f"{manifest.editor} on {manifest.model} ({manifest.dtype}), seed {manifest.seed}"))
        for column in ("case", "prompt", "new answer"):
            table.add_column(column, overflow="fold")
        for column in ("steps", "loss"):
            table.add_column(column, justify="right")
        for facts, outcome in list(zip(manifest.facts, manifest.outcomes, strict=True))[:limit]:
            for fact in facts:
                loss = outcome.error or ("" if outcome.loss is None else f"{outcome.loss:.3f}")
                table.add_row(*map(plain, (fact.case_id, fact.prompt, fact.target_new, str(outcome.steps), loss)))
        out.print(table)
        share = f"{100 * nonzero_share(stored.values()):.1f} % of their numbers are not zero"
        out.print(f"{len(manifest.facts)} edits, {size(folder)}; {share}", markup=False)
        settings = ", ".join(f"{key}={value}" for key, value in manifest.hparams.items())
        out.print(printable(settings), style="dim", markup=False)
