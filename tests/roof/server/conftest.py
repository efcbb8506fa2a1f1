"""A tiny model in a folder, and the page for it as a client calls it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from fastapi.testclient import TestClient

from loredit.server.app import application
from loredit.server.batching import Batcher
from loredit.server.jobs import Job, Jobs
from loredit.server.page import Page, attach
from loredit.session import Session
from loredit.store import routing
from loredit.store.calibration import Calibration

URL = "http://127.0.0.1:8080"
HPARAMS = "model: {}\nsites: [mlp_down]\nlayers: [1, 2]\nrank: 4\nalpha: 8\nlr: 1.0e-2\nsteps: 40\nstop_at: 0.9\n"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    tiny.model("llama", torch.float32).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "tiny.yaml").write_text(HPARAMS.format(folder / "model"))
    return folder


class Shown:
    """A page that is running: what a browser sees of it, and what is behind it."""

    def __init__(self, client: TestClient, page: Page) -> None:
        self.client, self.page = client, page

    def post(self, path: str, *, status: int = 200, **fields: object) -> str:
        answer = self.client.post(path, data=fields, headers={"Origin": URL})
        assert answer.status_code == status, answer.text
        return answer.text

    def upload(self, name: str, content: bytes, how: str, *, status: int = 200) -> str:
        sent = {"files": {"file": (name, content)}, "data": {"how": how}, "headers": {"Origin": URL}}
        answer = self.client.post("/list", **sent)
        assert answer.status_code == status, answer.text
        return answer.text

    def get(self, path: str) -> str:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def job(self, state: str) -> Job:
        """The newest job, when it has this state."""
        for _ in range(600):
            job = self.page.jobs.all()[0]
            if job.state.name == state and job.phase is None:
                return job
            assert job.state.name != "failed", job.state.said
            time.sleep(0.05)
        raise AssertionError(f"the job is {job.state}")


Open = Callable[[Path], AbstractContextManager[Shown]]


@pytest.fixture
def opened(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the page of a folder; a preset of the editor lora for the tiny model is among those to choose from."""
    preset = str(model_folder / "tiny.yaml")
    monkeypatch.setattr("loredit.hparams.presets", lambda editor: [preset] * (editor == "lora"))
    # Nothing is fitted at each start; the tests ask for facts by their own words.
    calibration = Calibration(named=(-4, 4, 3, 0, 0), unnamed=(-4, 7), threshold=0.9, margin=0)
    monkeypatch.setitem(routing._SHIPPED, "base", calibration)

    @contextmanager
    def open_(folder: Path) -> Iterator[Shown]:
        session = Session(folder, model=str(model_folder / "model"), encoder="base", grows=True)
        jobs = Jobs(session)
        page = Page(Batcher(session), jobs)
        app = application(page.batcher, folder.name, "127.0.0.1", ending=jobs.close)
        attach(app, page)
        with TestClient(app, base_url=URL) as client:
            yield Shown(client, page)

    return open_
