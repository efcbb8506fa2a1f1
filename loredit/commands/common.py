"""What the commands share: their common options, consoles, and how errors are told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..data.messages import listed

if TYPE_CHECKING:
    from ..editors import Edits
    from ..evaluation import spreading

Folder = Annotated[Path, typer.Argument(help="Folder with edits, written by `loredit apply`.", show_default=False)]
Case = Annotated[str | None, typer.Option("--case", help="Case id of the edit; needed if the folder holds several.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Where the model is now; else where it was when it was edited.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Of the base model: auto, float32, bfloat16.")]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="Length of an answer, at most; it ends with its line.")]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Sentence encoder that finds the edit of a prompt: short name, hub id, folder; base: the model's own "
        "states. Else the folder's, or minilm-l6.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one hyper-parameter; repeatable.")
]

Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that share the facts; with --ray: at most so many.")
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: auto, ray://HOST:PORT, HOST:PORT, local."),
]
Gpus = Annotated[
    float | None, typer.Option(min=0, help="With --ray: 1 where the cluster has any if not given.", show_default=False)
]

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

BAD_INPUT, INTERRUPTED = 2, 130


def printable(text: str) -> str:
    """A text from a file without what a terminal would obey: control characters and escape sequences."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(text: str) -> str:
    """:func:`printable`, for where rich would read markup."""
    return escape(printable(text))


def fail(message: str) -> typer.Exit:
    """Print an error; the exit that is to be raised."""
    err.print("error: ", printable(message), sep="", style="red", markup=False, soft_wrap=True)
    return typer.Exit(BAD_INPUT)


@contextmanager
def explained(resumable: str = "") -> Iterator[None]:
    """Errors that are meant for people end the command with their message.

    ``resumable``: what is said where the user interrupts.
    """
    try:
        yield
    except ValueError as error:
        raise fail(str(error)) from None
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    except KeyboardInterrupt:
        if resumable:
            err.print(resumable, markup=False)
        raise typer.Exit(INTERRUPTED) from None


def quiet() -> None:
    """No bars of transformers: "Loading weights" is over in a second, and the bar that matters is ours."""
    from transformers.utils.logging import disable_progress_bar  # takes a second to import

    disable_progress_bar()


@contextmanager
def spread(workers: int | None, ray: str | None, gpus: float | None) -> Iterator[spreading.Workers | None]:
    """The workers that the options ask for, while open; None for this process alone."""
    from ..evaluation.spreading import Processes

    if ray is None:
        if gpus is not None:
            raise ValueError("--gpus-per-worker is for --ray")
        with nullcontext() if workers is None else Processes(workers) as several:
            yield several
    else:
        from ..backends.ray import RayWorkers

        with RayWorkers(ray, workers, gpus) as several:
            yield several


def say_learned(edits: Edits) -> None:
    """Print how many facts are answered as they should be, and which are not."""
    missed, total = edits.unlearned, len(edits.case_ids)
    out.print(f"{total - len(missed)} of {total} facts learned", markup=False)
    if missed:
        out.print(printable(f"not learned: {listed(missed)}"), markup=False)


def size(folder: Path) -> str:
    """What the files of a folder take on the disk."""
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6:.1f} MB"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` when all went well. ValueError where there is one already."""
    if target.exists():
        raise ValueError(f"{target} exists already; name a folder that does not")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        made = Path(temporary) / target.name
        made.mkdir()
        yield made
        made.rename(target)
