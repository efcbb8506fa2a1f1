"""A whole run: facts are edited batch by batch, scored, and written as they come; an interrupted run goes on.

A run's folder holds ``run.json`` (everything needed to repeat it), ``results.jsonl`` (one :class:`FactScores` a line,
in the order in which edits were finished) and, at the end, ``summary.json``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from .. import __version__
from .. import data as facts_of
from .. import hparams as presets
from ..data import BadRecord
from ..editors import Editor, find
from ..editors._files import replacing
from ..editors._models import load as load_model
from . import report
from .easyedit import to_easyedit
from .metrics import Summary, summarise
from .scores import FactScores
from .scoring import TOKEN_EM, Mode, evaluate

RUN, RESULTS, SUMMARY, EASYEDIT = "run.json", "results.jsonl", "summary.json", "easyedit.json"

# Shares of a batch's time, for the progress bar only.
_PHASES = {
    "training": (0.0, 0.7),
    "scoring": (0.7, 0.1),
    "generating answers": (0.8, 0.05),
    "generating texts": (0.85, 0.15),
}


class RunError(ValueError):
    """A run that cannot begin or go on; the message says what to do."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its numbers, its folder, and how long it took (this session's part of it)."""

    summary: Summary
    folder: Path
    facts: int
    bad: list[BadRecord]
    """Records of the list that were left out."""
    seconds: float


def run(
    editor: str,
    hparams: str,
    *,
    overrides: Collection[str] = (),
    model: str | None = None,
    data: str = "samples",
    limit: int | None = None,
    offset: int = 0,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    edits_at_once: int | None = None,
    modes: Collection[Mode] = (TOKEN_EM,),
    fluency: bool = True,
    output: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    easyedit: bool = False,
    progress: Callable[[str, float, int], None] | None = None,
) -> RunResult:
    """Edit each fact of ``data`` on its own, score every edit, and write the results to a folder.

    ``editor``: a name in ``loredit.editors.available()``. ``hparams``: a YAML file, or the name of a preset of that
    editor; ``overrides``: ``key=value`` over it. ``model`` None: the preset's. ``data``: see ``loredit.data.load``.
    ``output`` None: a new folder below ``results/``, or, to ``resume``, the newest one with the same settings.
    ``easyedit``: write the results in EasyEdit's JSON form too. ``progress(phase, done, total)`` counts facts.
    Raises ValueError (its message for people) for bad input.
    """
    cls = find(editor)
    settings = presets.load(cls, hparams, [*overrides, *([f"model={json.dumps(model)}"] if model else [])])
    loaded_facts = facts_of.load(data, skip_bad=skip_bad)
    facts = loaded_facts.facts[offset : None if limit is None else offset + limit]
    if not facts:
        raise RunError(f"no facts to edit: {len(loaded_facts.facts)} in {data}, offset {offset}, limit {limit}")
    loaded = load_model(settings.model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    method = cls(loaded.model, loaded.tokenizer, settings, seed=seed)
    record = {
        "editor": editor,
        "hparams": settings.model_dump(mode="json"),
        "model": loaded.identity,
        "data": {"source": data, "sha256": loaded_facts.identity, "offset": offset, "facts": len(facts)},
        "seed": seed,
        "modes": sorted(modes),
        "fluency": fluency,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    folder = _folder(record, Path(output) if output else None, f"{editor}-{Path(hparams).stem}", resume)
    done = list(_read(folder / RESULTS))
    scored = {scores.case_id for scores in done}
    told = _Told(progress, len(done), len(facts))
    begun = time.perf_counter()
    with (folder / RESULTS).open("a", encoding="utf-8") as results:
        for scores in _scored(
            method, [f for f in facts if f.case_id not in scored], edits_at_once, modes, fluency, seed, told
        ):
            done.append(scores)
            results.write(scores.model_dump_json() + "\n")
            results.flush()
            os.fsync(results.fileno())
    order = {fact.case_id: i for i, fact in enumerate(facts)}
    done.sort(key=lambda scores: order[scores.case_id])
    summary = summarise(done)
    if easyedit:
        with replacing(folder / EASYEDIT) as path:
            path.write_text(json.dumps([to_easyedit(scores) for scores in done], indent=1), encoding="utf-8")
    seconds = time.perf_counter() - begun
    report.plot_reports(done, folder)
    with replacing(folder / SUMMARY) as path:
        path.write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    return RunResult(summary, folder, len(facts), loaded_facts.bad, seconds)


def _scored(
    method: Editor[Any],
    facts: list[Any],
    edits_at_once: int | None,
    modes: Collection[Mode],
    fluency: bool,
    seed: int,
    told: _Told,
) -> Iterator[FactScores]:
    begun = time.perf_counter()
    for edits in method.edit_batches(facts, edits_at_once=edits_at_once, progress=told.batch):
        trained = time.perf_counter()
        scores = evaluate(edits, modes=modes, fluency=fluency, seed=seed, progress=told.batch)
        ended, n = time.perf_counter(), len(edits)
        for one in scores:
            yield one.model_copy(update={"edit_seconds": (trained - begun) / n, "score_seconds": (ended - trained) / n})
        told.finished(n)
        begun = time.perf_counter()


class _Told:
    """Turns the phases of a batch into a count of facts."""

    def __init__(self, progress: Callable[[str, float, int], None] | None, done: int, total: int) -> None:
        self._progress, self._done, self._total = progress or (lambda *_: None), done, total
        self._progress("starting", done, total)

    def batch(self, phase: str, share: float, size: int) -> None:
        first, part = _PHASES[phase]
        self._progress(phase, self._done + size * (first + part * share), self._total)

    def finished(self, n: int) -> None:
        self._done += n
        self._progress("finished", self._done, self._total)


def _folder(record: dict[str, Any], output: Path | None, name: str, resume: bool) -> Path:
    """The folder of this run: a new one, or with ``resume`` the one that it has begun in."""
    if output is None:
        used = sorted(Path("results").glob(f"{name}-*/{RUN}"), key=lambda path: path.stat().st_mtime)
        same = [path.parent for path in used if not _differences(path, record)]
        if resume and not same:
            raise RunError("nothing to resume: no run below results/ has these settings")
        number = 1 + max((int(path.parent.name.rpartition("-")[2]) for path in used), default=0)
        output = same[-1] if resume else Path("results") / f"{name}-{number:03d}"
    if (output / RUN).exists():
        if not resume:
            raise RunError(f"{output} already holds a run; --resume goes on with it, --output names another folder")
        if differing := _differences(output / RUN, record):
            raise RunError(
                f"{output} holds a run with other settings ({', '.join(differing)}); it cannot be resumed with these"
            )
    else:
        output.mkdir(parents=True, exist_ok=True)
        with replacing(output / RUN) as path:
            path.write_text(json.dumps({**record, **_surroundings()}, indent=1), encoding="utf-8")
    return output


def _differences(path: Path, record: dict[str, Any]) -> list[str]:
    before = json.loads(path.read_text(encoding="utf-8"))
    return [key for key, value in record.items() if before.get(key) != value]


def _surroundings() -> dict[str, Any]:
    return {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"loredit": __version__, **{name: version(name) for name in ("torch", "transformers", "numpy")}},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def _read(path: Path) -> Iterator[FactScores]:
    """The results so far. A last line that was cut off while it was written is taken out of the file."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        with replacing(path) as whole:
            whole.write_bytes(b"".join(lines[:-1]))
        del lines[-1]
    for number, line in enumerate(lines, 1):
        try:
            yield FactScores.model_validate_json(line)
        except ValidationError as error:
            faults = f"{error.error_count()} faults"
            raise RunError(
                f"{path}, line {number}: not a result of this version ({faults}); use a new --output"
            ) from None
