"""Facts that are being learned, one job after another, and what came of it: on the disk, so that no tab is needed.

A job is a run of :mod:`..evaluation.runs` in a folder of its own, which saves its edits; killed at any moment, it goes
on when the server is started again. Its edits are a trial until they are kept.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data import Fact, Probe
from ..editors import Edits, find
from ..engine.files import replacing, tidy
from ..engine.progress import Phase, Progress
from ..evaluation.folder import read
from ..evaluation.runs import RESULTS, run, saved
from ..evaluation.scores import FactScores
from ..hparams import validated
from ..session import Session

logger = logging.getLogger(__name__)

JOBS = ".jobs"
NEIGHBOURS = "neighbours"
"""The group of a typed fact's locality probes."""
_TASK, _STATE, _RUN = "task.json", "state.json", "run"


class Task(BaseModel):
    """What is to be learned, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    editor: str
    hparams: dict[str, object]
    facts: tuple[Fact, ...]
    neighbours: tuple[str, ...] = ()
    """Prompts that one fact must leave alone, whose answers are the model's own and not known yet."""
    left_out: tuple[str, ...] = ()
    """Faulty records of a list."""


class State(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["waiting", "learned", "kept", "stopped", "failed"] = "waiting"
    said: str = ""
    """Why it failed; what became of it otherwise."""


class _StoppedError(Exception):
    """The job is not to go on."""


@dataclass(eq=False)
class Job:
    """A task, its folder, and how far it is."""

    id: str
    folder: Path
    task: Task
    state: State = field(default_factory=State)
    phase: Phase | None = None
    """What is being done, while it is done."""
    share: float = 0.0
    begun: float = 0.0

    @property
    def unfinished(self) -> bool:
        return self.state.name == "waiting"

    @property
    def left(self) -> float | None:
        """Seconds that it will take yet; None where that cannot be told."""
        return (time.monotonic() - self.begun) * (1 / self.share - 1) if self.phase and self.share > 0.02 else None

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.folder / _RUN / "report.html"

    def scores(self) -> list[FactScores]:
        """What was measured, in the order of the facts."""
        order = {fact.case_id: place for place, fact in enumerate(self.task.facts)}
        return sorted(read(self.folder / _RUN / RESULTS, FactScores), key=lambda scores: order[scores.case_id])

    def assign(self, task: Task) -> None:
        """Remember the task."""
        with replacing(self.folder / _TASK) as path:
            path.write_text(task.model_dump_json(), encoding="utf-8")
        self.task = task

    def turn(self, state: State) -> None:
        """Remember a new state."""
        with replacing(self.folder / _STATE) as path:
            path.write_text(state.model_dump_json(), encoding="utf-8")
        self.state = state


class Jobs:
    """The jobs of a folder, newest first, and the thread that does them.

    Args:
        session: the model and the edits that are kept.

    Example:
        >>> job = jobs.add(Task(title="a fact", editor="lora", hparams=hparams, facts=(fact,)))  # doctest: +SKIP
        >>> jobs.keep(job)  # doctest: +SKIP
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._folder = session.folder / JOBS
        self._jobs = {path.name: _read(path) for path in _kept(self._folder)}
        self._closing = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def all(self) -> list[Job]:
        """Newest first."""
        return [*self._jobs.values()][::-1]

    def find(self, name: str) -> Job:
        """A job by its id. Raises KeyError."""
        return self._jobs[name]

    def add(self, task: Task) -> Job:
        """Have it done after all others."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{len(self._jobs):04d}-{secrets.token_hex(3)}"
        folder = self._folder / name
        folder.mkdir(parents=True)
        job = Job(name, folder, task)
        job.assign(task)
        with self._changed:
            self._jobs[name] = job
            self._changed.notify()
        return job

    def edits(self, job: Job) -> Edits:
        """What a job has learned. Raises ValueError where it has learned nothing."""
        return saved(job.folder / _RUN, self.session.model, self.session.tokenizer)

    def keep(self, job: Job) -> None:
        """Put what was learned into the folder. Raises ValueError where that cannot be."""
        if job.state.name != "learned":
            raise ValueError("only what has been learned, and is not kept already, can be kept")
        replaced = self.session.keep(self.edits(job))
        job.turn(State(name="kept", said=f"in place of {', '.join(replaced)}" if replaced else ""))

    def stop(self, job: Job) -> None:
        """Let it end where it is; a job that is over stays as it is."""
        if job.unfinished:
            job.turn(State(name="stopped"))

    def drop(self, job: Job) -> None:
        """Forget it and all that it has learned, but for what was kept."""
        self.stop(job)
        with self._changed:
            self._changed.wait_for(lambda: job.phase is None)
            del self._jobs[job.id]
        (job.folder / _TASK).unlink()  # a folder without one is none of a job, should this be the last that is done
        shutil.rmtree(job.folder)

    def close(self) -> None:
        """End the thread; what it was doing goes on at the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.unfinished), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next())
                job = self._next()
                if self._closing or job is None:
                    return
                job.phase, job.begun, job.share = Phase.TRAINING, time.monotonic(), 0.0
            try:
                self._learn(job)
                job.turn(State(name="learned"))
            except _StoppedError:
                if self._closing:
                    return
            except Exception as error:  # the job has failed, whatever it was; the next one may go well
                logger.exception("job %s has failed", job.id)
                job.state = State(name="failed", said=str(error) or repr(error))
                with suppress(OSError):  # a disk that is full: it is told, and tried again at the next start
                    job.turn(job.state)
            finally:
                with self._changed:
                    job.phase = None
                    self._changed.notify_all()

    def _learn(self, job: Job) -> None:
        session = self.session

        def told(phase: Phase, share: float, facts: int) -> None:
            job.phase, job.share = phase, share
            session.lock.give_way()
            if self._closing or not job.unfinished:
                raise _StoppedError

        with session.lock.held():
            task = self._completed(job, told)
            cls = find(task.editor)
            method = cls(session.model, session.tokenizer, validated(cls.Hparams, task.hparams, job.id))
            run(
                method,
                facts=task.facts,
                measures=("generation", "probabilities"),
                fluency=False,
                output=job.folder / _RUN,
                resume=True,
                saves=True,
                progress=told,
            )

    def _completed(self, job: Job, told: Progress) -> Task:
        """The task with the model's own answers where one fact came without."""
        task = job.task
        fact = task.facts[0]
        unknown = len(task.facts) == 1 and not fact.ground_truth
        asked = [*[fact.prompt] * unknown, *task.neighbours]
        if not asked:
            return task
        said = self.session.own(asked, lambda share: told(Phase.ANSWERS, 0.0, 1))
        probes = tuple(
            Probe(prompt=prompt, answers=(answer,))
            for prompt, answer in zip(task.neighbours, said[unknown:], strict=True)
            if answer
        )
        known = fact.locality.get(NEIGHBOURS, ())
        update = {
            "ground_truth": tuple(filter(None, said[:1])) if unknown else fact.ground_truth,
            "locality": {NEIGHBOURS: (*known, *probes)} if known or probes else {},
        }
        job.assign(task.model_copy(update={"facts": (fact.model_copy(update=update),), "neighbours": ()}))
        return job.task


def _kept(jobs: Path) -> list[Path]:
    """The folders of jobs; what a killed process has left of others is removed."""
    folders = sorted(path for path in jobs.glob("*") if path.is_dir())
    for folder in folders:
        if (folder / _TASK).exists():
            tidy(folder, "*.json")
        else:
            shutil.rmtree(folder)
    return [folder for folder in folders if folder.exists()]


def _read(folder: Path) -> Job:
    """A job of an earlier start. Raises ValueError where it cannot be read."""
    try:
        task = Task.model_validate_json((folder / _TASK).read_bytes())
        state = State.model_validate_json((folder / _STATE).read_bytes()) if (folder / _STATE).exists() else State()
    except (OSError, ValidationError) as error:
        raise ValueError(f"{folder} holds a job that cannot be read; delete it to go on without it: {error}") from None
    return Job(folder.name, folder, task, state)
