"""Pieces of work on several workers: each result once and as it is without them, whatever happens to workers."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from where import ROOT

from loredit.data import Fact
from loredit.engine.version import VERSION
from loredit.evaluation import runs, spreading, work
from loredit.evaluation.scores import FactScores

TIMES = {"edit_seconds", "score_seconds"}
CONDITIONS = work.Conditions(model="2:abc", device="cpu", dtype="float32", versions={"loredit": VERSION})


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / runs.RESULTS).read_text().splitlines()
    found = {one.case_id: one.model_dump(exclude=TIMES) for one in map(FactScores.model_validate_json, lines)}
    assert len(found) == len(lines), "no fact comes twice"
    return found


class Fake(spreading.Workers):
    """Workers whose fates are told: piece i's n-th worker does as ``fates[i][n]`` says, the others do their work."""

    def __init__(self, number: int, fates: dict[Any, list[str]]) -> None:
        self.number, self.fates, self.futures, self.dropped = number, fates, list[Future[Any]](), 0
        self.random = random.Random(0)

    def close(self) -> None: ...

    def free(self, busy: int) -> int:
        return self.number - busy

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        (piece,) = arguments
        fates = self.fates.get(piece if isinstance(piece, int) else "model", [])
        fate = fates.pop(0) if fates else "works"
        if fate == "dies":
            future.set_exception(spreading.LostWorkerError("killed"))
        elif fate == "works":
            future.set_result(work(piece))
        self.futures.append(future)
        return future

    def fetch(self, future: Future[Any]) -> Any:
        return future.result()

    def drop(self, future: Future[Any]) -> None:
        self.dropped += 1


def work_of(piece: int) -> work.Scored:
    one = FactScores(
        case_id=str(piece), prompt="p", target_new="t", probes=(), steps=0, loss=None, nonzero_share=0.0, error="none"
    )
    return work.Scored(scores=(one,))


def pieces(number: int) -> list[spreading.Piece[work.Scored]]:
    return [spreading.Piece(f"piece {i}", work_of, (i,)) for i in range(number)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PATIENCE", 0.05)
    monkeypatch.setattr(spreading, "_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
def test_each_piece_comes_back_once_whatever_workers_do() -> None:
    workers = Fake(3, {0: ["dies", "hangs"], 2: ["hangs", "hangs", "dies"], 5: ["dies", "dies", "dies", "dies"]})
    found = list(workers.results(pieces(6)))
    assert sorted(found) == [(i, work_of(i)) for i in range(6)]
    assert workers.dropped == 3


def test_a_piece_that_kills_its_workers_ends_the_run() -> None:
    workers = Fake(2, {1: ["dies"] * 5})
    with pytest.raises(runs.RunError, match="5 workers died with piece 1: killed"):
        list(workers.results(pieces(2)))


@pytest.mark.usefixtures("impatient")
def test_workers_that_all_hang_from_the_beginning_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spreading, "_FIRST", 0.2)
    workers = Fake(2, {0: ["hangs"], 1: ["hangs"]})
    assert sorted(workers.results(pieces(3))) == [(i, work_of(i)) for i in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "a worker hangs: it has had piece 0 for 0 s; another one does it",
        "a worker hangs: it has had piece 1 for 0 s; another one does it",
    ]


@pytest.mark.usefixtures("impatient")
def test_a_piece_has_the_time_that_it_may_take_in_any_case() -> None:
    workers = Fake(2, {0: ["hangs"]})
    found = workers.results([replace(pieces(1)[0], least=0.5), *pieces(2)[1:]])
    assert next(found)[0] == 1
    begun = time.monotonic()
    assert next(found)[0] == 0
    assert time.monotonic() - begun > 0.4


@pytest.mark.usefixtures("impatient")
def test_what_loading_the_model_takes_is_not_taken_for_hanging() -> None:
    workers = Fake(2, {0: ["hangs"]})
    workers._loading = 0.05
    found = workers.results(pieces(2))
    assert next(found)[0] == 1
    begun = time.monotonic()
    assert next(found)[0] == 0
    assert time.monotonic() - begun > 0.4


def test_a_worker_that_hangs_while_it_loads_the_model_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spreading, "_FIRST", 0.05)
    spec = work.Spec(editor="lora", hparams={"model": "m"}, seed=0, device="cpu", dtype="float32")
    monkeypatch.setattr(spreading, "conditions", lambda _: CONDITIONS)
    workers = Fake(1, {"model": ["hangs", "hangs"]})
    assert workers.conditions(spec) == CONDITIONS
    assert workers.dropped == 2
    assert "a worker has been loading the model for" in caplog.text
    with pytest.raises(runs.RunError, match="5 workers died or hung while they loaded the model 'm'"):
        Fake(1, {"model": ["hangs"] * 5}).conditions(spec)


def test_groups_are_cut_by_the_facts_alone() -> None:
    facts = [Fact(case_id=str(i), prompt="x" * (1 + i % 3), target_new="t") for i in range(7)]
    assert [[fact.case_id for fact in group] for group in runs.grouped(facts, 3)] == [
        ["2", "5", "1"],
        ["4", "0", "3"],
        ["6"],
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "2:def"}, "model 2:def, not 2:abc"),
        ({"versions": {"loredit": "0.0"}}, f"loredit's version 0.0, not {VERSION}"),
        ({"device": "cuda"}, "device cuda, not cpu"),
    ],
)
def test_a_worker_with_another_model_or_version_is_refused(changed: dict[str, Any], said: str) -> None:
    CONDITIONS.check(CONDITIONS)
    with pytest.raises(runs.RunError, match=said):
        CONDITIONS.check(CONDITIONS.model_copy(update=changed))


def test_a_worker_checks_where_it_is(place: Path) -> None:
    spec = work.Spec(
        editor="lora",
        hparams={**TINY, "model": str(place / "tiny")},
        seed=0,
        device="cpu",
        dtype="float32",
        fluency=False,
    )
    fact = Fact(case_id="a", prompt="a", target_new="b")
    here = work.conditions(spec)
    assert work.edit_and_score(spec.model_copy(update={"conditions": here}), [fact]).scores[0].error is None
    with pytest.raises(runs.RunError, match="would give other numbers"):
        work.edit_and_score(spec.model_copy(update={"conditions": CONDITIONS}), [fact])


TINY = {"sites": ["mlp_down"], "layers": [1, 2], "rank": 2, "alpha": 4, "lr": 1e-2, "steps": 4}


def test_one_edit_is_not_for_several(place: Path) -> None:
    with pytest.raises(runs.RunError, match="mode batch makes one edit"):
        runs.run("lora", "tiny.yaml", data="facts.json", mode="batch", workers=2)


# In processes of their own.


@pytest.fixture
def many(place: Path) -> Path:
    """Work for some seconds."""
    records = [
        {
            "case_id": f"f{i}",
            "prompt": f"The number after {i} is",
            "target_new": str(i + 2),
            "rephrase_prompt": [f"After {i} comes"],
        }
        for i in range(24)
    ]
    (place / "facts.json").write_text(json.dumps(records))
    return place


def _run(**options: Any) -> runs.RunResult:
    given = {"data": "facts.json", "dtype": "float32", "edits_at_once": 1, "progress": False, "examples": 2}
    return runs.run("lora", "tiny.yaml", **given | options)


# Prints where it is, so that whoever kills knows when.
DRIVER = """
from loredit.evaluation import runs
IMPORT

if __name__ == "__main__":
    with WORKERS as workers:
        runs.run("lora", "tiny.yaml", data="facts.json", dtype="float32", edits_at_once=1, examples=2, output="spread",
                 resume=True, workers=workers, progress=lambda _, share, facts: print(round(share * facts), flush=True))
"""
PROCESSES = ("from loredit.evaluation.spreading import Processes", "Processes(2)")
RAY = ("from loredit.backends.ray import RayWorkers", "RayWorkers({address!r})")


@contextmanager
def driver(place: Path, module: str, workers: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``DRIVER``; it does not outlive the block."""
    (place / "driver.py").write_text(DRIVER.replace("IMPORT", module).replace("WORKERS", workers))
    with (
        (place / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "driver.py"], env=environment(), stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def environment() -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), os.getcwd()))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}


def until(process: subprocess.Popen[str], facts: int) -> None:
    """Wait for a driver to have so many facts."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= facts:  # Ray tells of dead workers there
            return
    pytest.fail("the driver ended early")


def youngest(process: psutil.Process, name: str) -> psutil.Process:
    """Of the processes below ``process`` whose command line has ``name`` in it."""
    found = [child for child in process.children(recursive=True) if name in " ".join(child.cmdline())]
    return max(found, key=lambda child: child.create_time())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_and_resumed_the_numbers_are_those_of_one_process(many: Path) -> None:
    whole = _run(output="whole")
    with driver(many, *PROCESSES) as first:
        until(first, 4)
        youngest(psutil.Process(first.pid), "forkserver").kill()
        until(first, 8)
        children = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left, "workers end with their driver"
    done = {*_results(many / "spread")}
    with driver(many, *PROCESSES) as second:
        until(second, len(done) + 2)
        youngest(psutil.Process(second.pid), "forkserver").kill()
        assert second.wait(120) == 0, (many / "stderr").read_text()
    assert len(done) >= 8
    assert _results(many / "spread") == _results(whole.folder)
    assert (many / "spread" / runs.SUMMARY).read_bytes() == (whole.folder / runs.SUMMARY).read_bytes()
    assert (many / "spread" / runs.EXAMPLES).read_text().count("\n") == 2


# The first time, a worker sleeps in place of its work.
SLEEPER = """
import time
from pathlib import Path
from loredit.evaluation.work import edit_and_score

def work(spec, facts):
    try:
        Path(__file__).with_name("slept").touch(exist_ok=False)
    except FileExistsError:
        return edit_and_score(spec, facts)
    time.sleep(1e6)
"""
IMPATIENT = """
from loredit.evaluation import spreading
spreading.PATIENCE, spreading._LONGER = 3.0, 2
"""
SLEEPING = """
import sleeper
runs.edit_and_score = sleeper.work
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workers", ["processes", "ray"])
def test_a_worker_that_sleeps_forever_costs_a_group_twice_and_no_fact(many: Path, workers: str) -> None:
    whole = _run(output="whole")
    (many / "sleeper.py").write_text(SLEEPER)
    imported, made = PROCESSES
    if workers == "ray":
        pytest.importorskip("ray")
        imported, made = RAY[0], "RayWorkers('local', 2)"
    with driver(many, imported + IMPATIENT + SLEEPING, made) as process:
        until(process, 2)
        assert (many / "slept").exists()
        assert process.wait(120) == 0, (many / "stderr").read_text()
    said = (many / "stderr").read_text()
    assert re.findall(r"a worker hangs: it has had 'f\d+' and 0 more facts for \d+ s, and the longest", said), said
    assert _results(many / "spread") == _results(whole.folder)
    assert (many / "spread" / runs.SUMMARY).read_bytes() == (whole.folder / runs.SUMMARY).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_process_that_is_stopped_is_replaced(many: Path) -> None:
    """It does not even hear that it is to end."""
    whole = _run(output="whole")
    with driver(many, PROCESSES[0] + IMPATIENT, PROCESSES[1]) as process:
        until(process, 4)
        stopped = youngest(psutil.Process(process.pid), "forkserver")
        stopped.suspend()
        assert process.wait(120) == 0, (many / "stderr").read_text()
        assert not stopped.is_running()
    assert "a worker hangs" in (many / "stderr").read_text()
    assert _results(many / "spread") == _results(whole.folder)


@contextmanager
def ray_node(*options: str) -> Iterator[psutil.Process]:
    """A node of a cluster on this machine, until the block ends."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    with subprocess.Popen([*command, *options], env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail("no node came up")
            yield psutil.Process(process.pid)
        finally:
            below = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in below:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_cluster_that_loses_a_worker_and_a_node_gives_the_numbers_of_one_process(many: Path) -> None:
    pytest.importorskip("ray")
    whole = _run(output="whole")
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        address = f"127.0.0.2:{free.getsockname()[1]}"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        # Not 127.0.0.1, which Ray replaces by the address of a network interface.
        head = ("--head", "--node-ip-address=127.0.0.2", f"--port={address[10:]}", "--include-dashboard=false")
        one = stack.enter_context(ray_node(*head, f"--temp-dir={folder}"))
        other = stack.enter_context(ray_node(f"--address={address}", "--node-ip-address=127.0.0.3"))
        with driver(many, RAY[0], RAY[1].format(address=address)) as process:
            until(process, 4)
            youngest(one, "ray::").kill()
            until(process, 8)
            youngest(other, "/raylet ").kill()
            assert process.wait(120) == 0, (many / "stderr").read_text()
    assert _results(many / "spread") == _results(whole.folder)
    assert (many / "spread" / runs.SUMMARY).read_bytes() == (whole.folder / runs.SUMMARY).read_bytes()
