"""The page: learn facts, look at what that did, ask, keep, undo; for one person on this machine, in any number of tabs.

Everything is HTML that templates write and htmx puts into place. The server has all the state; a tab has none.
"""

from __future__ import annotations

import asyncio
import io
import math
import re
import tempfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import yaml
from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import escape

from .. import data as facts_of
from .. import hparams as presets
from ..bridges.peft import to_peft
from ..data import Fact, Probe
from ..data.facts import FactError
from ..data.formats import read as read_facts
from ..editors import Edits, Hparams, available, find
from ..editors import settings as settings_of
from ..engine.storage.manifest import MANIFEST, read_manifest
from ..engine.version import VERSION
from ..evaluation.report.changes import marks, outcome
from ..evaluation.report.html import TITLES
from ..evaluation.scores import Seen
from ..hparams import validated
from ..session import Found
from ..store.text import folded
from .batching import Batcher, Piece, QueueFullError, StoppedError, Texts, Wanted
from .jobs import NEIGHBOURS, Job, Jobs, Task
from .proposals import neighbours, rephrasings

ON_A_PAGE = 50
_TOKENS = 40  # of an answer
_SHORT = 12  # of an answer that fills an empty field
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_SAFE = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_FIRST = ("roselora", "smollm2-fluent.yaml"), ("roselora", "smollm2-general.yaml")
"""What is offered first: what takes seconds, then what holds most and takes far longer."""


class PageError(Exception):
    """What a person is told in place of what they asked for."""


def share(log_prob: float) -> str:
    """A probability for people.

    Example:
        >>> share(math.log(0.5)), share(math.log(2e-7))
        ('50 %', '< 0.01 %')
    """
    percent = 100 * math.exp(log_prob)
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def likely(seen: Seen, *, contrast: bool) -> float | None:
    """The log probability of a probe's answer, or of the one that competes with it."""
    if contrast:
        return seen.contrast.log_prob if seen.contrast else None
    return max(answer.log_prob for answer in seen.answers)


def duration(seconds: float | None) -> str:
    """Example:
    >>> duration(75), duration(None)
    ('about 2 min', '')
    """
    if seconds is None:
        return ""
    return f"about {math.ceil(seconds / 60)} min" if seconds > 60 else f"about {math.ceil(seconds)} s"


class Page:
    """What the routes have in common."""

    def __init__(self, batcher: Batcher, jobs: Jobs) -> None:
        self.batcher, self.jobs, self.session = batcher, jobs, batcher.session
        self.ending = asyncio.Event()
        self._templates = Environment(
            loader=PackageLoader("loredit.server"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.globals.update(
            version=VERSION, session=self.session, page=self, kinds=TITLES, exp=math.exp, share=share, likely=likely,
            duration=duration, marks=marks, outcome=outcome,
        )  # fmt: skip

    def html(self, name: str, **values: object) -> str:
        return self._templates.get_template(f"{name}.html.jinja").render(**values)

    def own_kind(self) -> tuple[str, Hparams] | None:
        """Editor and settings of the edits that the folder holds."""
        if not (self.session.folder / MANIFEST).exists():
            return None
        manifest = read_manifest(self.session.folder)
        return manifest.editor, validated(find(manifest.editor).Hparams, manifest.hparams, MANIFEST)

    def kind(self, how: str) -> tuple[str, Hparams]:
        """Editor and settings of what was chosen: "editor/preset", or nothing for those of the folder's edits."""
        if how not in dict(self.choices()):
            raise PageError("choose one of the editors in the list; load the page again if it is empty")
        own, (editor, _, preset) = self.own_kind(), how.partition("/")
        if own is None or editor:
            return editor, settings_of(editor, preset, {"model": own[1].model if own else self.session.name})
        return own

    def may_keep(self, job: Job) -> bool:
        """Whether a job's edits are of the kind of the folder's."""
        own = self.own_kind()
        return own is None or own == (
            job.task.editor,
            validated(find(job.task.editor).Hparams, job.task.hparams, job.id),
        )

    def choices(self) -> list[tuple[str, str]]:
        """What can be chosen to edit with, as :meth:`kind` takes it, and what is said of it."""
        found = []
        for editor in available():
            for name in presets.presets(editor):
                values = yaml.safe_load(presets.find(editor, name).read_text(encoding="utf-8"))
                found.append((values["model"], editor, name))
        # Presets for this model; where there are none, all, some of which may suit it.
        fitting = [choice for choice in found if choice[0] == self.session.name] or found
        fitting.sort(key=lambda choice: _FIRST.index(choice[1:]) if choice[1:] in _FIRST else len(_FIRST))
        named = [(f"{editor}/{name}", f"{editor}, {Path(name).stem}") for _, editor, name in fitting]
        own = self.own_kind()
        return [("", f"{own[0]}, as the folder's edits"), *named] if own else named

    def kept(self, query: str, first: int) -> tuple[list[tuple[Fact, bool | None]], int]:
        """So many facts of the folder that hold the words, from the first on, newest first; and how many there are."""
        wanted, found = folded(query.strip()), []
        store = self.session.store
        for facts, ended in zip(reversed(store.facts), reversed(store.outcomes), strict=True):
            for place, fact in enumerate(facts):
                if wanted in folded(f"{fact.case_id} {fact.prompt} {fact.target_new} {fact.subject or ''}"):
                    found.append((fact, ended.learned(place)))
        return found[first : first + ON_A_PAGE], len(found)


def _lines(text: str) -> list[str]:
    return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]


def attach(app: FastAPI, page: Page) -> None:
    """Put the page's routes and files into an application."""
    app.mount("/static", StaticFiles(packages=[("loredit.server", "static")]), name="static")
    app.include_router(_router(page))

    @app.exception_handler(PageError)
    def told(_: Request, error: PageError) -> Response:
        return _answer(page.html("message", text=str(error)), 422)

    @app.exception_handler(OSError)
    def full(_: Request, error: OSError) -> Response:
        return _answer(page.html("message", text=f"nothing was changed: {error}"), 507)

    @app.exception_handler(QueueFullError)
    @app.exception_handler(StoppedError)
    def busy(_: Request, error: Exception) -> Response:
        return _answer(page.html("message", text=str(error)), 503)


def _answer(html: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(html, status, _SAFE)


def _done(html: str, *, facts: bool = False) -> HTMLResponse:
    """What was asked for has been done, so that what was told before is over.

    ``facts``: the table of what is kept is to be drawn anew.
    """
    over = '<div id="message" hx-swap-oob="innerHTML"></div>'
    return HTMLResponse(html + over, headers={**_SAFE, **({"HX-Trigger": "facts"} if facts else {})})


def _router(page: Page) -> APIRouter:
    routes, session, jobs = APIRouter(), page.session, page.jobs

    def job_of(name: str) -> Job:
        try:
            return jobs.find(name)
        except KeyError:
            raise PageError("this is gone already; load the page again") from None

    @routes.get("/")
    def whole() -> Response:
        return _answer(page.html("page", choices=page.choices(), jobs=jobs.all(), **_table(page, "", 0)))

    @routes.get("/facts")
    def facts(q: str = "", first: int = 0) -> Response:
        return _answer(page.html("facts", **_table(page, q, max(0, first))))

    @routes.post("/facts/{case}/undo")
    def undo(case: str) -> Response:
        try:
            session.undo(case)
        except ValueError as error:
            raise PageError(str(error)) from None
        return _done(page.html("facts", **_table(page, "", 0)))

    @routes.get("/facts/{case}/adapter.zip")
    def adapter(case: str) -> Response:
        try:
            return _zipped(session.edit(case), case)
        except ValueError as error:
            raise PageError(str(error)) from None

    @routes.post("/propose")
    def propose(prompt: Annotated[str, Form()] = "", subject: Annotated[str, Form()] = "") -> Response:
        if not prompt.strip() or not subject.strip():
            raise PageError(
                "rephrasings and neighbours are proposed from the prompt and its subject; fill in both first"
            )
        said = {"again": rephrasings(prompt, subject), "alone": neighbours(prompt, subject)}
        return _done(page.html("proposals", **said))

    @routes.post("/learn")
    def learn(
        prompt: Annotated[str, Form()] = "",
        target_new: Annotated[str, Form()] = "",
        subject: Annotated[str, Form()] = "",
        ground_truth: Annotated[str, Form()] = "",
        rephrase_prompts: Annotated[str, Form()] = "",
        neighbours: Annotated[str, Form()] = "",
        how: Annotated[str, Form()] = "",
    ) -> Response:
        if not prompt.strip() or not target_new.strip():
            raise PageError("a fact is a prompt and its new answer; fill in both")
        pairs = [
            (left.strip(), right.strip()) for left, _, right in (line.partition("=>") for line in _lines(neighbours))
        ]
        known = tuple(Probe(prompt=left, answers=(right,)) for left, right in pairs if left and right)
        try:
            editor, hparams = page.kind(how)
            fact = Fact(
                prompt=prompt.strip(),
                target_new=target_new.strip(),
                subject=subject.strip() or None,
                ground_truth=tuple(filter(None, [ground_truth.strip()])),
                rephrase_prompts=tuple(_lines(rephrase_prompts)),
                locality={NEIGHBOURS: known} if known else {},
            )
        except ValueError as error:
            raise PageError(str(error)) from None
        jobs.add(
            Task(
                title=f"{fact.prompt} {fact.target_new}",
                editor=editor,
                hparams=hparams.model_dump(mode="json"),
                facts=(fact,),
                neighbours=tuple(dict.fromkeys(left for left, right in pairs if left and not right)),
            )
        )
        return _done(page.html("jobs", jobs=jobs.all()))

    @routes.post("/list")
    def upload(
        file: UploadFile, how: Annotated[str, Form()] = "", skip_bad: Annotated[bool, Form()] = False
    ) -> Response:
        name = Path(file.filename or "list").name
        if not name or not file.size:
            raise PageError("choose a file with facts first: JSON, JSONL or CSV")
        try:
            listed = read_facts(name, file.file.read(), facts_of.FORMATS, skip_bad=skip_bad)
            # Numbers, which records without an id get, would be those of other lists too.
            named = [Fact(**f.model_dump(exclude={"case_id"})) if f.case_id.isdigit() else f for f in listed.facts]
            editor, hparams = page.kind(how)
        except FactError as error:
            raise PageError(str(error).replace(" (--skip-bad or skip_bad=True leaves these records out)", "")) from None
        except ValueError as error:
            raise PageError(str(error)) from None
        distinct = tuple({fact.case_id: fact for fact in named}.values())
        jobs.add(
            Task(
                title=f"{name}: {len(distinct)} facts",
                editor=editor,
                hparams=hparams.model_dump(mode="json"),
                facts=distinct,
                left_out=tuple(map(str, listed.bad)),
            )
        )
        return _done(page.html("jobs", jobs=jobs.all()))

    @routes.get("/jobs")
    def all_jobs() -> Response:
        return _answer(page.html("jobs", jobs=jobs.all()))

    @routes.get("/jobs/stream")
    async def stream(ids: str = "") -> Response:
        return _stream(_watched(page, ids.split(",")))

    @routes.get("/jobs/{name}/report")
    def report(name: str) -> Response:
        path = job_of(name).report
        if not path.exists():
            raise PageError("there is no report yet")
        return FileResponse(path, media_type="text/html")  # it brings its own policy along

    @routes.get("/jobs/{name}/adapter.zip")
    def job_adapter(name: str) -> Response:
        job = job_of(name)
        try:
            return _zipped(jobs.edits(job), job.task.facts[0].case_id)
        except ValueError as error:
            raise PageError(str(error)) from None

    @routes.post("/jobs/{name}/keep")
    def keep(name: str) -> Response:
        try:
            jobs.keep(job_of(name))
        except ValueError as error:
            raise PageError(str(error)) from None
        return _done(page.html("jobs", jobs=jobs.all()), facts=True)

    @routes.post("/jobs/{name}/stop")
    def stop(name: str) -> Response:
        jobs.stop(job_of(name))
        return _done(page.html("jobs", jobs=jobs.all()))

    @routes.post("/jobs/{name}/drop")
    def drop(name: str) -> Response:
        jobs.drop(job_of(name))
        return _done(page.html("jobs", jobs=jobs.all()))

    @routes.post("/ask")
    def ask(
        prompt: Annotated[str, Form()] = "", turn: Annotated[str, Form()] = "", job: Annotated[str, Form()] = ""
    ) -> Response:
        if not prompt.strip():
            raise PageError("type what the model is to continue or to answer")
        query = urlencode({"prompt": prompt.strip(), "turn": turn, "job": job})
        return _done(page.html("answer", prompt=prompt.strip(), query=query))

    @routes.get("/ask/stream")
    async def answers(prompt: str, turn: str = "", job: str = "") -> Response:
        chat = turn == "chat"
        try:
            ids = session.chat([{"role": "user", "content": prompt}]) if chat else session.ids(prompt)
            found: Found | str = Found(jobs.edits(job_of(job)), None) if job else prompt
            if len(ids) + _TOKENS > session.context:
                raise PageError(f"{len(ids)} tokens are too many; the model's context has {session.context}")
            texts = page.batcher.submit([Wanted(ids, _TOKENS, found=f) for f in (Found(None, None), found)])
        except (ValueError, PageError, QueueFullError, StoppedError) as error:
            return _stream(_once("about", page.html("message", text=str(error))))
        return _stream(_answers(page, texts))

    return routes


def _table(page: Page, query: str, first: int) -> dict[str, object]:
    rows, total = page.kept(query, first)
    return {
        "facts": rows,
        "total": total,
        "query": query,
        "first": first,
        "most": ON_A_PAGE,
        "count": len(page.session.store.case_ids),
    }


def _zipped(edits: Edits, name: str) -> Response:
    """The one edit as an adapter of PEFT's, to be downloaded."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        to_peft(edits, 0, folder)
        for path in sorted(Path(folder).iterdir()):
            file.write(path, path.name)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "edit"
    headers = {"Content-Disposition": f'attachment; filename="{plain}-adapter.zip"'}
    return Response(packed.getvalue(), media_type="application/zip", headers={**_SAFE, **headers})


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers={**_SAFE, "Cache-Control": "no-store"})


def _event(name: str, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"event: {name}\n{lines}\n"


async def _once(name: str, html: str) -> AsyncIterator[str]:
    yield _event(name, html)
    yield _event("end", "")


async def _answers(page: Page, texts: Texts) -> AsyncIterator[str]:
    """Both answers, as they are written, and how the edit was found."""
    names, said = ("without", "edited"), [0, 0]
    try:
        async for place, told in texts:
            if isinstance(told, Piece):
                new = told.text if said[place] else told.text.lstrip()
                said[place] += len(new)
                text = str(escape(new)).replace("\n", "&#10;")
                if told.ended and not said[place]:
                    text = "<i>(nothing)</i>"
                if text:
                    yield _event(names[place], text)
            elif place == 1:
                yield _event("about", page.html("about", found=told))
    except StoppedError as error:
        yield _event("about", page.html("message", text=str(error)))
    yield _event("end", "")


async def _watched(page: Page, ids: Sequence[str]) -> AsyncIterator[str]:
    """The cards of some jobs, each whenever it looks otherwise, until they are finished."""
    shown: dict[str, str] = {}
    while not page.ending.is_set():
        watched = [job for job in page.jobs.all() if job.id in ids]
        for job in watched:
            html = page.html("card", job=job)
            if shown.get(job.id) != html:
                shown[job.id] = html
                yield _event(f"job-{job.id}", html)
        if not any(job.unfinished for job in watched):
            yield _event("end", "")
            return
        await asyncio.sleep(0.25)
