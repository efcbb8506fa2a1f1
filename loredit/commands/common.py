"""What the commands share: their common options, consoles, and how errors are told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..data.messages import listed

if TYPE_CHECKING:
    from ..editors import Edits
    from ..evaluation import spreading

Folder = Annotated[Path, typer.Argument(help="Folder with edits, written by `loredit apply`.", show_default=False)]
Case = Annotated[str | None, typer.Option("--case", help="Case id of the edit; needed if the folder holds several.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Where the model is now; else where it was when it was edited.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps; split: over all GPUs.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Of the base model: auto, float32, bfloat16.")]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="8bit|4bit", help="Round the base model's weights; edits stay as they are."),
]
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

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""How a command ends that does not end well (docs/errors.md)."""
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


class PlainConsole(Console):
    """Shows texts as they are: nothing in them is markup, and a terminal obeys nothing of them."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out, err = PlainConsole(), PlainConsole(stderr=True)


def printable(text: str) -> str:
    """A text without what a terminal would obey: control characters and escape sequences.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a\ufffd[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def fail(message: str) -> typer.Exit:
    """Print an error; the exit that is to be raised."""
    err.print(f"error: {message}", style="red", soft_wrap=True)
    return typer.Exit(BAD_INPUT)


def say_failed(failed: Sequence[tuple[str, str]]) -> None:
    """Print which facts have no edit (case id and why), and end the command with ``FAILED`` if there are any."""
    for case_id, error in failed:
        err.print(f"failed: {case_id}: {error}", soft_wrap=True)
    if failed:
        raise typer.Exit(FAILED)


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
            err.print(resumable)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """What is not installed becomes a ValueError that names the extra of this package which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("loredit"):
            raise
        raise ValueError(f"{error.name} is not installed; pip install 'loredit[{extra}]' brings it") from None


def quiet() -> None:
    """No bars of transformers: "Loading weights" is over in a second, and the bar that matters is ours; nor what the
    packages that it imports say of themselves."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it misses kernels that no edit needs
    from ..engine.model.loading import without_bars  # takes seconds to import

    without_bars()


def failures(edits: Edits) -> list[tuple[str, str]]:
    """The case ids of facts that no edit carries, and why."""
    return [
        (fact.case_id, error)
        for facts, outcome in zip(edits.facts, edits.outcomes, strict=True)
        for i, fact in enumerate(facts)
        if (error := outcome.error or outcome.lost.get(i))
    ]


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
    out.print(f"{total - len(missed)} of {total} facts learned")
    if missed:
        out.print(f"not learned: {listed(missed)}")


def size(folder: Path) -> str:
    """What the files of a folder take on the disk."""
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6:.1f} MB"
