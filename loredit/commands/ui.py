"""``loredit ui``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Device, EncoderName, Quantize, explained, needs, out, printable, quiet
from .serve import Port

_HOST = "127.0.0.1"


def ui(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the edits; it may hold some, and need not be there yet.")
    ] = Path("my-edits"),
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, folder, GGUF file, short name; else that of the folder's edits, or smollm2-135m."),
    ] = None,
    port: Port = 8080,
    device: Device = "auto",
    quantize: Quantize = None,
    encoder: EncoderName = None,
) -> None:
    """A page on this machine: teach facts, see what that did, ask with and without them, keep and undo.

    It is for one person, and needs no network. Programs can ask at the same address (see `loredit serve`).

    loredit ui my-edits
    """
    with explained(), needs("serve"):
        quiet()

        from ..engine.files import locked
        from ..engine.storage.manifest import MANIFEST
        from ..server.app import Server, application, bound, url
        from ..server.batching import Batcher
        from ..server.jobs import Jobs
        from ..server.page import Page, attach
        from ..session import Session

        with locked(folder), bound(_HOST, port) as listening:
            name = model if (folder / MANIFEST).exists() else model or "smollm2-135m"
            session = Session(folder, model=name, device=device, encoder=encoder, quantize=quantize, grows=True)
            jobs = Jobs(session)
            page = Page(Batcher(session), jobs)
            app = application(page.batcher, folder.resolve().name, _HOST, ending=jobs.close)
            attach(app, page)
            out.print(printable(f"{url(_HOST, listening)} shows {folder}; Ctrl-C ends it"))
            Server(app, page.ending.set).run(sockets=[listening])
