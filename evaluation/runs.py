"""A whole run: facts are edited, scored, and written as they come; an interrupted run goes on.

``single`` edits each fact (or bundle of facts) on the base model, many side by side, in groups that any worker can
take; ``batch`` makes one edit that carries all facts; ``sequential`` edits one fact after another on the same model. A
run's folder holds

- ``run.json``: everything needed to repeat it;
- ``results.jsonl``: one :class:`FactScores` a line; single: of each fact's own edit, in the order in which edits were
  finished; batch and sequential: of the one edit in the end;
- ``summary.json``: their metrics, at the end, and ``report.html``, all of it to look at;
- ``examples.jsonl``: as ``results.jsonl``, of the first facts, with generated answers that the run does not measure;
- batch and sequential: ``edits-N``, the edit after N facts (``Edits.load`` reads it), and ``checkpoints.jsonl``, one
  :class:`Checkpoint` a line;
- sequential: ``checkpoint-N.jsonl``, as ``results.jsonl``, of the first N facts after N edits, and ``retention.png``.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import data as facts_of
from ..data import BadRecord, Fact, LoadedFacts
from ..data.facts import bundles
from ..editors import Editor, Edits, load, settings
from ..engine.devices import Budget
from ..engine.files import locked, replacing
from ..engine.model.loading import LoadedModel
from ..engine.model.quantized import quantization_of
from ..engine.progress import Phase, Progress, Shown, shown
from ..engine.storage.manifest import MANIFEST
from .folder import RUN, RunError, append, open_folder, read, versions
from .metrics import Summary, summarise
from .perplexity import perplexity
from .report.changes import told
from .report.easyedit import to_easyedit
from .report.figures import plot_reports, plot_retention
from .report.html import REPORT, write_report
from .report.reading import EXAMPLES
from .retention import Checkpoint, checkpoint
from .scores import FactScores
from .scoring import Measure, evaluate
from .spreading import Piece, Processes, Workers
from .work import Conditions, Spec, anywhere, bound, edit_and_score, exemplified, loaded_for, scored, texts_of

__all__ = ["RUN", "EditMode", "RunError", "RunResult", "run", "saved"]

EditMode = Literal["single", "batch", "sequential"]

RESULTS, SUMMARY, EASYEDIT = "results.jsonl", "summary.json", "easyedit.json"
EDITS = "edits"
CHECKPOINTS, RETENTION = "checkpoints.jsonl", "retention.png"

# Facts that one worker edits and scores together: enough to keep a device busy. It does not depend on who works, so
# that the same facts are side by side, and the numbers the same, wherever they are edited.
_GROUP = Budget(cpu=64, mps=64, accelerator=512)
# Facts of one edit that are scored together, and lost if the run is interrupted meanwhile.
_SCORED_AT_ONCE = 64
# Editing that is lost at most if a sequential run is killed.
_UNSAVED_SECONDS = 60.0
# Shares of a fact's time, for the progress bar only: where a phase begins within editing or scoring, and its length.
_EDITING, _SCORING = 0.7, 0.3
_PHASES = {
    Phase.TRAINING: (0.0, _EDITING),
    Phase.SCORING: (0.0, 0.1),
    Phase.ANSWERS: (0.1, 0.05),
    Phase.TEXTS: (0.15, 0.15),
    Phase.PERPLEXITY: (_SCORING, 0.0),
    Phase.FINISHED: (0.0, 0.0),
}


@dataclass(frozen=True)
class RunResult:
    """A finished run: its numbers, its folder, and how long it took (this session's part of it)."""

    summary: Summary
    folder: Path
    facts: int
    bad: list[BadRecord]
    """Records of the list that were left out."""
    unanswered: int
    """Locality and portability probes of the list that were left out, because their answer is empty."""
    seconds: float
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """Of a sequential run all of them, of a batch run the one at the end."""
    examples: list[FactScores] = field(default_factory=list)
    """A few facts with generated answers, before and after."""

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.folder / REPORT


def run(
    editor: str | Editor,
    preset: str | None = None,
    *,
    facts: Sequence[Fact] | None = None,
    data: str | LoadedFacts = "samples",
    mode: EditMode = "single",
    checkpoints: Collection[int] | None = None,
    chunk: int = 1,
    perplexity_text: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    model: str | None = None,
    limit: int | None = None,
    offset: int = 0,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    edits_at_once: int | None = None,
    measures: Collection[Measure] = (),
    fluency: bool = True,
    output: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    easyedit: bool = False,
    examples: int = 0,
    saves: bool = False,
    workers: int | Workers | None = None,
    load_model: Callable[[Spec], LoadedModel] = loaded_for,
    progress: Shown = None,
) -> RunResult:
    """Edit facts, score them, and write the results to a folder as they come.

    Args:
        editor: a name in ``loredit.editors.available()``, or an editor, which brings model, settings and seed along.
        preset: a YAML file or a preset of the editor; of an editor that is given by name.
        facts: what is edited; else what ``data`` names.
        data: see ``loredit.data.load``; or what it has loaded.
        mode: single, each fact on the unedited model; batch, one edit for all; sequential, one after another.
        checkpoints: after how many sequential edits all facts so far are scored, beside the end; None: 1, 10, 100, ...
        chunk: facts that are learned together in sequential editing.
        perplexity_text: a file, on which both models' perplexity is measured at the same points.
        overrides: hyper-parameters in place of the preset's.
        model: a name in place of the preset's.
        limit: edit this many facts at most; a bundle counts as one.
        offset: skip this many facts first, counted alike.
        skip_bad: leave faulty records out, and list them in the result.
        seed: same seed, same machine: same numbers.
        device: auto, cpu, cuda, cuda:1, mps, split (over all GPUs).
        dtype: of the base model: auto, float32, bfloat16.
        quantize: of the base model: 8bit or 4bit; None: its weights stay whole.
        edits_at_once: facts that are edited and scored together; None: as many as the device has use for and memory
            allows.
        measures: what is scored beside ``token_em``.
        fluency: sample a text for each fact.
        output: a folder; None: a new one below ``results/``, or, to ``resume``, the newest one with the same settings.
        resume: go on with an interrupted run of the same settings.
        trust_remote_code: run code that a model brings along.
        easyedit: write the results in EasyEdit's JSON form too.
        examples: generate answers for this many facts, the first, where ``measures`` does not for all.
        saves: single mode: save the edits too, each batch as ``edits/N``; :func:`saved` reads them.
        workers: processes that share the work of single mode, or other :class:`~.spreading.Workers`, which stay open;
            None: this one does it.
        load_model: how this process comes by the model; one that does several runs may keep it.
        progress: told which phase it is, and which share of how many facts is done; a bar if not given, False for none.

    Returns:
        The summary, what was left out, and the folder.

    Raises:
        ValueError: bad input; the message is for people.

    Example:
        >>> result = run("lora", "smollm2", facts=facts, fluency=False)  # doctest: +SKIP
        >>> result.summary.metrics["locality"].edited.mean  # doctest: +SKIP
    """
    if facts is not None:
        data = LoadedFacts.of(facts)
    loaded_facts = facts_of.load(data, skip_bad=skip_bad) if isinstance(data, str) else data
    changes = bundles(loaded_facts.facts)
    chosen = [fact for one in changes[offset : None if limit is None else offset + limit] for fact in one]
    if not chosen:
        raise RunError(f"no facts to edit: {len(changes)} in {loaded_facts.source}, offset {offset}, limit {limit}")
    points = _points(mode, checkpoints, len(chosen), chunk)
    text = _text(mode, perplexity_text)
    if workers is not None and mode != "single":
        raise RunError(f"mode {mode} makes one edit, which is one process's work; leave the workers out")
    if workers is not None and saves:
        raise RunError("workers hand back scores and no edits; leave `saves` or the workers out")
    if isinstance(editor, Editor):
        if preset is not None or overrides or model is not None:
            raise RunError("an editor that is given as an object has its settings and model already; leave out others")
        if workers is not None:
            raise RunError(
                "an editor that is given as an object stays in its process; give workers its name and preset"
            )
        hparams, seed, name = editor.hparams, editor.seed, editor.name()
        quantize = quantization_of(editor.model)
    else:
        if preset is None:
            raise RunError(f"an editor that is given by name needs a preset: run({editor!r}, 'smollm2')")
        hparams = settings(editor, preset, {**(overrides or {}), **({"model": model} if model else {})})
        name = f"{editor}-{Path(preset).name.removesuffix('.yaml')}"
    spec = Spec(
        editor=editor.name() if isinstance(editor, Editor) else editor,
        hparams=hparams.model_dump(mode="json") if workers is None else anywhere(hparams),
        seed=seed,
        device=device,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
        edits_at_once=edits_at_once,
        measures=tuple(sorted(measures)),
        fluency=fluency,
        examples=() if "generation" in measures else tuple(fact.case_id for fact in chosen[:examples]),
    )
    begun = time.perf_counter()
    with ExitStack() as stack:
        several = stack.enter_context(Processes(workers)) if isinstance(workers, int) else workers
        by: Editor | Workers
        if several is None:
            by = editor if isinstance(editor, Editor) else bound(spec, load_model(spec))
            conditions = Conditions.of(by)
        else:
            by, conditions = several, several.conditions(spec)
            conditions.check(conditions.model_copy(update={"versions": versions()}))  # which the record will name
        spec = spec.model_copy(update={"conditions": conditions})
        record = {
            "editor": spec.editor,
            "mode": mode,
            "checkpoints": points,
            "chunk": chunk,
            "hparams": hparams.model_dump(mode="json"),
            "model": conditions.model,
            "data": {
                "source": loaded_facts.source,
                "sha256": loaded_facts.identity,
                "offset": offset,
                "facts": len(chosen),
            },
            "perplexity_text": text and hashlib.sha256(text.encode()).hexdigest(),
            "seed": seed,
            "measures": list(spec.measures),
            "fluency": fluency,
            "device": conditions.device,
            "dtype": conditions.dtype,
            "quantize": quantize,
        }
        command = None
        if isinstance(editor, str) and preset is not None and facts is None:
            given = {**(overrides or {}), **({"model": model} if model else {})}
            where = {"device": conditions.device if device == "auto" else device}
            command = _command(editor, preset, given, record | where, perplexity_text, limit)
        if output is not None:
            stack.enter_context(locked(Path(output)))
        folder = open_folder(record, Path(output) if output else None, name, resume, command)
        if output is None:
            stack.enter_context(locked(folder))
        tell = stack.enter_context(shown(progress))
        work = _EDITING * len(chosen) + _SCORING * (sum(points) or len(chosen))
        # In single mode a fact is finished when it is scored, in the others a second time.
        job = _Job(
            spec, chosen, folder, _Counted(tell, len(chosen), work, _EDITING if mode == "single" else 0.0), saves
        )
        if mode != "single":
            assert isinstance(by, Editor), "workers have been refused"
            _edit_one(job, by, mode, points, chunk, text)
        else:
            _edit_each(job, by)
        summary, reached = _concluded(job, easyedit)
        seen = told([*job.scores(EXAMPLES), *job.scores(RESULTS)], examples)
    return RunResult(
        summary,
        folder,
        len(chosen),
        loaded_facts.bad,
        loaded_facts.unanswered,
        time.perf_counter() - begun,
        reached,
        seen,
    )


def _command(
    editor: str,
    preset: str,
    overrides: Mapping[str, object],
    record: Mapping[str, Any],
    perplexity_text: str | Path | None,
    limit: int | None,
) -> str:
    """The line that repeats a run, given its record; what has a default is left out where it has it."""
    options = ["loredit", "run", "--editor", editor, "--hparams", preset]
    for key, value in overrides.items():
        said = value if isinstance(value, str) else json.dumps(value)
        options += ["--set", f"{key}={said}"]
    data = record["data"]
    if data["source"] != "samples":
        options += ["--data", data["source"]]
    if data["offset"]:
        options += ["--offset", str(data["offset"])]
    if limit is not None:
        options += ["--limit", str(limit)]
    if record["mode"] != "single":
        options += ["--mode", record["mode"]]
    if record["mode"] == "sequential":
        options += ["--checkpoints", ",".join(map(str, record["checkpoints"]))]
    if record["chunk"] != 1:
        options += ["--chunk", str(record["chunk"])]
    if perplexity_text is not None:
        options += ["--perplexity-text", str(perplexity_text)]
    if record["measures"]:
        options += ["--eval", "all" if "probabilities" in record["measures"] else "generation"]
    if not record["fluency"]:
        options += ["--no-fluency"]
    options += ["--seed", str(record["seed"]), "--device", record["device"], "--dtype", record["dtype"]]
    if record["quantize"]:
        options += ["--quantize", record["quantize"]]
    return shlex.join(options)


def _concluded(job: _Job, easyedit: bool) -> tuple[Summary, list[Checkpoint]]:
    """What a run ends with: the summary, figures, and the page that shows it all."""
    done = job.scores(RESULTS)
    summary = summarise(done)
    if easyedit:
        with replacing(job.folder / EASYEDIT) as path:
            path.write_text(json.dumps([to_easyedit(one) for one in done], indent=1, allow_nan=False), encoding="utf-8")
    reached = read(job.folder / CHECKPOINTS, Checkpoint)
    if len(reached) > 1:
        plot_retention(reached, job.folder / RETENTION)
    plot_reports(done, job.folder)
    with replacing(job.folder / SUMMARY) as path:
        path.write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    write_report(job.folder, summary)
    return summary, reached


def _points(mode: EditMode, checkpoints: Collection[int] | None, n: int, chunk: int) -> list[int]:
    """After how many of the n facts everything so far is scored, which is at the end of a chunk; nothing in single
    mode."""
    if chunk < 1 or (chunk > 1 and mode != "sequential"):
        raise RunError(f"a chunk is a number of facts of sequential editing, 1 or more, not {chunk} in {mode} mode")
    if checkpoints is not None and mode != "sequential":
        raise RunError(f"checkpoints are for sequential editing; in {mode} mode facts are scored once, at the end")
    if bad := [point for point in checkpoints or () if point < 1]:
        raise RunError(f"a checkpoint is a number of edits, 1 or more, not {bad[0]}")
    if mode == "single":
        return []
    if checkpoints is None:
        checkpoints = [10**k for k in range(len(str(n)))] if mode == "sequential" else []
    return sorted({min(n, -(-point // chunk) * chunk) for point in checkpoints if point < n} | {n})


def _text(mode: EditMode, file: str | Path | None) -> str | None:
    """The text for the perplexity."""
    if file is None:
        return None
    if mode == "single":
        raise RunError("perplexity is one model's; single mode makes one for each fact. Use mode batch or sequential")
    try:
        if text := Path(file).read_text(encoding="utf-8").strip():
            return text
        raise RunError(f"the text for the perplexity, {file}, is empty")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the text for the perplexity cannot be read from {file}: {error}") from error


@dataclass(frozen=True)
class _Job:
    """What the modes share."""

    spec: Spec
    facts: Sequence[Fact]
    folder: Path
    told: _Counted
    saves: bool = False

    def keep(self, edits: Edits) -> None:
        """Save edits of single mode, if that is asked for; before their scores: what has scores has edits."""
        if self.saves:
            batches = self.folder / EDITS
            edits.save(batches / str(len([*batches.glob("*")])))

    def scores(self, name: str) -> list[FactScores]:
        """What a file holds so far, in the order of the facts."""
        order = {fact.case_id: i for i, fact in enumerate(self.facts)}
        return sorted(read(self.folder / name, FactScores), key=lambda scores: order[scores.case_id])

    def add(self, name: str, scores: Sequence[FactScores]) -> None:
        """Add to a file the scores of facts that it does not hold."""
        known = {one.case_id for one in self.scores(name)}
        append(self.folder / name, [one for one in scores if one.case_id not in known])

    def score(self, edits: Edits, name: str, edit_seconds: float) -> None:
        """Add the scores of all facts of one edit to a file. ``edit_seconds``: training time of one fact."""
        spec = self.spec
        begun = time.perf_counter()
        scores = evaluate(
            edits,
            measures=spec.measures,
            fluency=spec.fluency,
            seed=spec.seed,
            texts=texts_of(edits.editor),
            progress=self.told,
        )
        times = {"edit_seconds": edit_seconds, "score_seconds": (time.perf_counter() - begun) / len(scores)}
        if name == RESULTS:
            self.add(EXAMPLES, exemplified(edits, spec.examples))
        self.add(name, [one.model_copy(update=times) for one in scores])
        self.told.finished(_SCORING * len(scores))


def _edit_each(job: _Job, by: Editor | Workers) -> None:
    """Single: the facts in groups, here or wherever workers are, each written when it is there."""
    done = {scores.case_id for scores in job.scores(RESULTS)}
    conditions = job.spec.conditions
    assert conditions is not None
    size = job.spec.edits_at_once or _GROUP.on(torch.device(conditions.device))
    # Of a group that was not written whole all facts are edited again: the same company, the same numbers.
    groups = [group for group in grouped(job.facts, size) if any(fact.case_id not in done for fact in group)]
    job.told.finished(len(job.facts) - sum(map(len, groups)))
    if isinstance(by, Workers):
        pieces = [
            Piece(f"{group[0].case_id!r} and {len(group) - 1} more facts", edit_and_score, (job.spec, group))
            for group in groups
        ]
        results = (result for _, result in by.results(pieces))
    else:
        results = (batch for group in groups for batch in scored(by, job.spec, group, job.told, job.keep))
    for result in results:
        job.add(EXAMPLES, result.examples)
        job.add(RESULTS, result.scores)
        job.told.finished(len(result.scores))


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Edits:
    """The edits of a run in single mode that ``saves``, each fact's once. Raises ValueError where there are none."""
    batches = sorted((path.parent for path in folder.glob(f"{EDITS}/*/{MANIFEST}")), key=lambda path: int(path.name))
    if not batches:
        raise RunError(f"{folder} holds no saved edits")
    every = Edits.concatenated([load(path, model, tokenizer) for path in batches])
    newest = {facts[0].case_id: e for e, facts in enumerate(every.facts)}  # scored after a kill: learned again
    return every.taken([*newest.values()])


def grouped(facts: Sequence[Fact], size: int) -> list[list[Fact]]:
    """The facts in groups of like length, so many at most in each, the longest first; a bundle counts as one fact.

    Example:
        >>> short, long = (Fact(case_id=p, prompt=p, target_new="x") for p in ("a", "a b"))
        >>> [[fact.case_id for fact in group] for group in grouped([short, long], 1)]
        [['a b'], ['a']]
    """

    def length(bundle: Sequence[Fact]) -> int:
        return sum(len(fact.prompt) + len(fact.target_new) for fact in bundle)

    ordered = sorted(bundles(facts), key=length, reverse=True)
    return [[fact for one in ordered[i : i + size] for fact in one] for i in range(0, len(ordered), size)]


def _edit_one(job: _Job, method: Editor, mode: EditMode, points: Sequence[int], chunk: int, text: str | None) -> None:
    """Batch and sequential: one edit, saved from time to time as it carries more facts, and scored at some points."""
    edits = _last(job.folder, method)
    carried = len(edits.facts[0]) if edits else 0
    scored = sum(point.edits for point in read(job.folder / CHECKPOINTS, Checkpoint))
    job.told.finished(_EDITING * carried + _SCORING * scored)
    if edits is not None:
        _check(job, edits, points, text, 0.0)
    left = job.facts[carried:]
    if mode == "sequential":
        states = method.edit_stream(left, chunk=chunk, after=edits, progress=job.told)
    else:
        states = map(partial(method.edit, progress=job.told), [left] if left else [])
    before, seconds, begun = carried, 0.0, time.perf_counter()
    saved = begun
    for edits in states:
        seconds += time.perf_counter() - begun
        new = len(edits.facts[0]) - carried
        carried += new
        job.told.finished(_EDITING * new)
        # A state holds all facts so far, so that writing each would take time that grows with their square.
        if carried in points or time.perf_counter() - saved > _UNSAVED_SECONDS:
            _save(edits, job.folder)
            saved = time.perf_counter()
        _check(job, edits, points, text, seconds / (carried - before))
        begun = time.perf_counter()


def _check(job: _Job, edits: Edits, points: Sequence[int], text: str | None, edit_seconds: float) -> None:
    """Score all facts that the edit carries, if this is a point at which to do so and it has not been done."""
    n = len(edits.facts[0])
    if n not in points or n in {point.edits for point in read(job.folder / CHECKPOINTS, Checkpoint)}:
        return
    name = RESULTS if n == len(job.facts) else f"checkpoint-{n}.jsonl"
    done = {scores.case_id for scores in job.scores(name)}
    job.told.finished(_SCORING * len(done))
    left = [i for i, fact in enumerate(edits.facts[0]) if fact.case_id not in done]
    for i in range(0, len(left), _SCORED_AT_ONCE):
        job.score(edits.about(left[i : i + _SCORED_AT_ONCE]), name, edit_seconds)
    measured = None
    if text is not None:
        measured = perplexity(edits, text, progress=lambda share: job.told(Phase.PERPLEXITY, share, 0))
    append(job.folder / CHECKPOINTS, [checkpoint(job.scores(name), measured)])


def _last(folder: Path, method: Editor) -> Edits | None:
    """The edit as it was saved last."""
    newest = _newest(folder)
    return load(newest, method.model, method.tokenizer) if newest else None


def _save(edits: Edits, folder: Path) -> None:
    """As ``edits-N``, which appears whole, in place of what was saved before."""
    unfinished = folder / ".edits"
    edits.save(unfinished)
    unfinished.rename(folder / f"edits-{len(edits.facts[0])}")
    _newest(folder)


def _newest(folder: Path) -> Path | None:
    """The edit saved last; earlier ones are removed."""
    saved = sorted(folder.glob("edits-*"), key=lambda path: int(path.name.removeprefix("edits-")))
    for earlier in saved[:-1]:  # renamed first, so that half an edit never has an edit's name
        shutil.rmtree(earlier.rename(folder / f".{earlier.name}"))
    return saved[-1] if saved else None


class _Counted:
    """Turns the phases of a batch into a count of facts, as if each were edited and scored once."""

    def __init__(self, told: Progress, facts: int, work: float, scoring: float) -> None:
        self._told, self._facts, self._work, self._scoring, self._done = told, facts, work, scoring, 0.0

    def __call__(self, phase: Phase, share: float, facts: int) -> None:
        begin, length = _PHASES[phase]
        begin += 0.0 if phase is Phase.TRAINING else self._scoring
        self._tell(phase, self._done + facts * (begin + length * share))

    def finished(self, work: float) -> None:
        self._done += work
        self._tell(Phase.FINISHED, self._done)

    def _tell(self, phase: Phase, done: float) -> None:
        self._told(phase, min(1.0, done / self._work), self._facts)
