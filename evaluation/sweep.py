"""Many runs: a grid of editors, presets, values, seeds and facts, spread over workers, and put side by side.

Each run is one worker's work, in any mode; its files come back when it is finished, and it is not done again when the
sweep goes on after an interruption.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from .. import data as facts_of
from ..data import LoadedFacts
from ..editors import settings
from ..engine.files import locked, replacing
from ..engine.model.quantized import Kind
from ..engine.progress import Phase, Shown, shown
from ..hparams import validated
from .folder import RunError
from .metrics import Summary
from .report.figures import plot_generalization_locality, unplaced
from .report.html import write_comparison
from .runs import SUMMARY, EditMode, run
from .scoring import Measure
from .spreading import Piece, Workers
from .work import kept_for

# A run may take so many seconds however short others are before its worker is held to hang.
_DAY = 86400.0

SWEEP, FIGURE, COMPARISON = "sweep.json", "sweep.png", "compare.html"


class Request(BaseModel):
    """One run of a sweep: options of :func:`~.runs.run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    editor: str = Field(description="A method")
    hparams: str = Field("default", description="A preset of it, or a YAML file")
    set: dict[str, JsonValue] = Field({}, description="Hyper-parameters in place of the preset's")
    model: str | None = Field(None, description="A model in place of the preset's")
    data: str = Field("samples", description="The facts")
    limit: int | None = Field(None, ge=1, description="Edit this many facts at most")
    offset: int = Field(0, ge=0, description="Skip this many facts first")
    mode: EditMode = Field("single", description="single, batch or sequential")
    chunk: int = Field(1, ge=1, description="Sequential: facts that are learned together")
    seed: int = Field(0, description="Same seed, same numbers")
    measures: list[Measure] = Field([], description="generation, probabilities: what is scored beside token_em")
    fluency: bool = Field(True, description="Sample a text for each fact")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, split")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Of the base model")
    quantize: Kind | None = Field(None, description="What the base model's weights are rounded to")
    edits_at_once: int | None = Field(None, ge=1, description="Facts edited and scored together")


@dataclass(frozen=True)
class Swept:
    """A finished sweep."""

    folder: Path
    summaries: dict[str, Summary]
    """By the run's name, which is its folder's."""
    figure: Path | None
    """Generalization against locality; None where a run has none of them."""
    comparisons: list[Path]
    """Pages with paired differences, one for each set of facts that several runs have edited."""


def read_sweep(path: str | Path) -> dict[str, Request]:
    """The runs of a sweep's file, by name.

    ``runs`` is a list of grids; what stands beside it holds for each of them. Every list in a grid means each of its
    values in turn, with each of the others'.

    Raises:
        RunError: the file cannot be read, or says something that no run knows.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "sweep.yaml")
        ...     _ = file.write_text("limit: 9\\nruns: [{editor: lora, seed: [0, 1], set: {lr: [1e-3, 2e-3]}}]")
        ...     list(read_sweep(file))
        ['lora-lr=1e-3-seed=0', 'lora-lr=1e-3-seed=1', 'lora-lr=2e-3-seed=0', 'lora-lr=2e-3-seed=1']
    """
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid YAML in UTF-8: {error}") from None
    grids = said.pop("runs", None) if isinstance(said, dict) else None
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise RunError(f"{path}: expected `runs:` with a list of grids, each of them `key: value` lines")
    requests: dict[str, Request] = {}
    for number, grid in enumerate(grids, 1):
        for values, varied in _each(said | grid):
            request = validated(Request, values, f"{path}, grid {number}")
            name = _name(request, varied)
            if name in requests:
                raise RunError(f"{path}: there are two runs {name!r}; give them values that tell them apart")
            requests[name] = request
    return requests


def sweep(path: str | Path, folder: Path, workers: Workers, *, resume: bool = False, progress: Shown = None) -> Swept:
    """Run a sweep's file.

    Args:
        path: of the file; see :func:`read_sweep`.
        folder: gets a folder for each run.
        workers: who does it.
        resume: go on with what an interrupted sweep has left.
        progress: told the share of the runs; a bar if not given, False for none.

    Raises:
        ValueError: bad input, told before anything is run.
    """
    requests = read_sweep(path)
    loaded: dict[str, LoadedFacts] = {}
    for request in requests.values():
        settings(request.editor, request.hparams, request.set)  # what is wrong is told before hours of work
        if request.data not in loaded:
            loaded[request.data] = facts_of.load(request.data)
    with locked(folder):
        _begin(folder, requests, resume)
        left = [name for name in requests if not (folder / name / SUMMARY).exists()]
        pieces = [
            Piece(f"the run {name}", whole, (_anywhere(requests[name]), loaded[requests[name].data]), least=_DAY)
            for name in left
        ]
        done = len(requests) - len(left)
        with shown(progress, "run") as tell:
            tell(Phase.FINISHED, done / len(requests), len(requests))
            for i, files in workers.results(pieces):
                _keep(folder / left[i], files)
                done += 1
                tell(Phase.FINISHED, done / len(requests), len(requests))
        return _concluded(folder, requests)


def whole(request: Request, facts: LoadedFacts) -> dict[str, bytes]:
    """A run from beginning to end; its files by their names."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            request.editor,
            request.hparams,
            overrides=request.set,
            data=facts,
            output=folder,
            load_model=kept_for,
            progress=False,
            **request.model_dump(exclude={"editor", "hparams", "set", "data"}),
        )
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }


def _anywhere(request: Request) -> Request:
    """With files that are found from any working directory."""
    named = {key: Path(name) for key in ("hparams", "model") if (name := getattr(request, key))}
    return request.model_copy(update={key: str(path.resolve()) for key, path in named.items() if path.exists()})


def _each(grid: Mapping[str, JsonValue]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each combination of a grid's values, and the keys that have several."""
    inner = grid.get("set", {})
    if not isinstance(inner, dict):
        raise RunError("`set:` is a list of hyper-parameters, as `key: value` lines")
    flat = {("set", key): value for key, value in inner.items()}
    flat |= {("", key): value for key, value in grid.items() if key not in ("set", "measures")}
    alternatives = [value if isinstance(value, list) else [value] for value in flat.values()]
    varied = [key for (_, key), values in zip(flat, alternatives, strict=True) if len(values) > 1]
    for chosen in product(*alternatives):
        values: dict[str, Any] = {"set": {}, "measures": grid.get("measures", [])}
        for (where, key), value in zip(flat, chosen, strict=True):
            (values["set"] if where else values)[key] = value
        yield values, varied


def _name(request: Request, varied: list[str]) -> str:
    """A name for a run's folder, by what it has that others have not."""
    parts = [request.editor]
    if request.hparams != "default":
        parts.append(Path(request.hparams).name.removesuffix(".yaml"))
    values = request.set | request.model_dump(include={*varied})
    parts += [f"{key}={value}" for key, value in values.items() if key not in ("editor", "hparams")]
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))


def _begin(folder: Path, requests: Mapping[str, Request], resume: bool) -> None:
    """Note what the sweep is; refuse a folder that holds another. A sweep may grow."""
    note = folder / SWEEP
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        if not resume:
            raise RunError(f"{folder} already holds a sweep; --resume goes on with it, --output names another folder")
        if other := [
            name for name, one in requests.items() if name in before and before[name] != one.model_dump(mode="json")
        ]:
            raise RunError(f"{folder} holds {other[0]!r} with other settings; name another folder")
    with replacing(note) as path:
        said = {name: request.model_dump(mode="json") for name, request in requests.items()}
        path.write_text(json.dumps(said, indent=1), encoding="utf-8")


def _keep(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run's files; the folder appears whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        unfinished = Path(temporary) / folder.name
        for name, content in files.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        unfinished.rename(folder)


def _concluded(folder: Path, requests: Mapping[str, Request]) -> Swept:
    """What the runs have in common, and where they differ."""
    summaries = {
        name: Summary.model_validate_json((folder / name / SUMMARY).read_text(encoding="utf-8")) for name in requests
    }
    figure = None if unplaced(summaries) else folder / FIGURE
    if figure:
        plot_generalization_locality(summaries, figure)
    alike: dict[tuple[object, ...], list[Path]] = {}
    for name, request in requests.items():
        alike.setdefault((request.data, request.limit, request.offset, request.mode), []).append(folder / name)
    pages = []
    for number, runs in enumerate((runs for runs in alike.values() if len(runs) > 1), 1):
        page = folder / (COMPARISON if number == 1 else COMPARISON.replace(".", f"-{number}."))
        write_comparison(runs, page)
        pages.append(page)
    return Swept(folder, summaries, figure, pages)
