"""``loredit serve``: a model with its edits, over OpenAI's interface."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Case, Device, EncoderName, Folder, ModelName, explained, needs, out, printable, quiet

Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Texts that are written side by side, at most.")]


def serve(
    folder: Folder,
    case: Case = None,
    host: Annotated[str, typer.Option(help="Address to listen at; there is no password.")] = "127.0.0.1",
    port: Port = 8000,
    rows: Rows = 32,
    queue: Annotated[int, typer.Option(min=1, help="Texts that may wait; more are refused (429).")] = 256,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """Answer OpenAI's clients (/v1/completions, /v1/chat/completions) with the edits of a folder.

    Requests are written side by side in one batch, each with the edit that its prompt is about, or with none. As model
    a client names the folder (which is the default), FOLDER:CASE for one edit, or the base model.

    loredit serve my-edits
    """
    with explained(), needs("serve"):
        quiet()

        from ..server.app import Server, application, bound, url
        from ..server.batching import Batcher
        from ..session import Session

        with bound(host, port) as listening:
            session = Session(folder, case=case, model=model, device=device, encoder=encoder)
            edited = folder.resolve().name
            app = application(Batcher(session, rows=rows, queue=queue), edited, host)
            out.print(printable(f"{url(host, listening)}/v1 serves {edited} and {session.name}; Ctrl-C ends it"))
            Server(app).run(sockets=[listening])
