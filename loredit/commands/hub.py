"""``loredit push`` and ``pull``: edits on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine.files import whole
from .common import Folder, explained, out, printable, size

Repo = Annotated[str, typer.Argument(metavar="REPO", help="user/name on the hub.", show_default=False)]


def push(
    folder: Folder,
    repo: Repo,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is made.", show_default=False)
    ] = None,
) -> None:
    """Put the edits into a repository of the hub, with a card that lists facts, numbers and base model.

    loredit push my-edits me/my-edits
    """
    with explained():
        from ..bridges.hub import push as pushed

        pushed(folder, repo, private=private)
    out.print(printable(f"{folder} is at {repo}, {size(folder)}"), markup=False)


def pull(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.", show_default=False)] = None,
) -> None:
    """Fetch edits from the hub into a new folder.

    loredit pull me/my-edits their-edits
    """
    with explained(), whole(folder) as made:
        from ..bridges.hub import pull as pulled

        manifest = pulled(repo, made, revision=revision)
    out.print(printable(f"{len(manifest.facts)} edits of {manifest.model} in {folder}, {size(folder)}"), markup=False)
