"""Commands that are killed at a random moment, and disks that are full: what is there afterwards is whole, the same
command ends as an undisturbed one, and nothing is left over.

A few kills in CI, 50 of each with `make kills`. A child is forked, so that a kill costs no import.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil
import pytest
from zygote import Done, Zygote

from loredit.engine.model.cache import hash_of
from loredit.engine.storage.manifest import read_both, write

KILLS = int(os.environ.get("LOREDIT_KILLS", "2"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

PRESET = "model: {model}\nsites: [mlp_down]\nlayers: 1-2\nrank: 2\nalpha: 4\nlr: 1.0e-2\nsteps: 6\n"
NAMES = ("water", "sky", "snow", "grass", "night")
FACTS = [{"case_id": name, "prompt": f"The {name} is", "target_new": "dry", "subject": name} for name in NAMES]


@pytest.fixture(scope="module")
def made(call, model_folder, tmp_path_factory) -> Path:
    """A preset, facts, and edits of the first three."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "tiny.yaml").write_text(PRESET.format(model=model_folder))
    (folder / "facts.json").write_text(json.dumps(FACTS[:3]))
    (folder / "more.json").write_text(json.dumps(FACTS[3:]))
    (folder / "other.json").write_text(json.dumps([FACTS[0] | {"target_new": "warm"}]))
    well(call("apply", folder / "edits", *learning(folder)))
    return folder


def learning(folder: Path) -> tuple[object, ...]:
    return (
        "--data",
        folder / "facts.json",
        "--editor",
        "lora",
        "--hparams",
        folder / "tiny.yaml",
        "--dtype",
        "float32",
    )


@pytest.fixture(scope="module")
def call() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


def well(done: Done) -> float:
    """Seconds of a command that has ended well."""
    assert done.code == 0, done.output
    return done.seconds


def moments(name: str, whole: float) -> Iterator[float]:
    draw = random.Random(name if KILLS < 10 else None)
    for _ in range(KILLS):
        yield draw.uniform(0, whole)


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*") if path.name != ".lock"]


def learned(folder: Path) -> object:
    """What a folder of edits says, but for what depends on the moment."""
    manifest, _ = read_both(folder)
    return manifest.facts, manifest.weights, manifest.packed


def scores(folder: Path) -> list[object]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(json.dumps({k: v for k, v in one.items() if "seconds" not in k}, sort_keys=True) for one in lines)


@pytest.mark.parametrize("mode", ["single", "batch", "sequential"])
def test_a_killed_run_goes_on_to_the_same_table(mode, call, made, tmp_path):
    common = ("run", *learning(made), "--mode", mode, "--no-fluency", "--edits-at-once", 1, "--output")
    whole = well(call(*common, tmp_path / "whole"))
    for i, after in enumerate(moments(mode, whole)):
        folder = tmp_path / f"cut-{i}"
        call(*common, folder, kill_after=after)
        well(call(*common, folder, *["--resume"] * (folder / "run.json").exists()))
        assert scores(folder) == scores(tmp_path / "whole")
        assert leftovers(folder) == []


def test_a_killed_apply_goes_on_to_the_same_edits(call, made, tmp_path):
    whole = well(call("apply", tmp_path / "whole", *learning(made)))
    for i, after in enumerate(moments("apply", whole)):
        folder = tmp_path / f"cut-{i}"
        call("apply", folder, *learning(made), kill_after=after)
        if not (folder / "edits.json").exists():  # else it was killed when all was there
            well(call("apply", folder, *learning(made), "--resume"))
        assert learned(folder) == learned(tmp_path / "whole")
        well(call("remove", folder, "sky"))
        assert leftovers(folder) in ([], [str(folder / ".finished")])


@pytest.mark.parametrize("command", ["add", "update", "remove"])
def test_a_killed_change_leaves_the_old_edits_or_the_new(command, call, made, tmp_path):
    def change(folder: Path, *more: object, kill_after: float | None = None) -> Done:
        data = {"add": "more.json", "update": "other.json"}.get(command)
        args = ["sky"] if data is None else ["--data", made / data, "--encoder", "base", *more]
        return call(command, folder, *args, kill_after=kill_after)

    shutil.copytree(made / "edits", tmp_path / "whole")
    whole = well(change(tmp_path / "whole"))
    old, new = learned(made / "edits"), learned(tmp_path / "whole")
    for i, after in enumerate(moments(command, whole)):
        folder = tmp_path / f"cut-{i}"
        shutil.copytree(made / "edits", folder)
        change(folder, kill_after=after)
        assert learned(folder) in (old, new)
        if learned(folder) == old:
            well(change(folder, "--resume"))
        assert learned(folder) == new
        well(call("remove", folder, "water"))
        assert leftovers(folder) in ([], [str(folder / ".finished")])


@pytest.mark.parametrize("command", ["merge", "export"])
def test_a_killed_copy_is_whole_or_not_there(command, call, made, tmp_path):
    def copied(name: str, kill_after: float | None = None) -> Done:
        return call(command, made / "edits", tmp_path / name, "--case", "sky", kill_after=kill_after)

    whole = well(copied("whole"))
    for i, after in enumerate(moments(command, whole)):
        copied(f"cut-{i}", kill_after=after)
        if not (tmp_path / f"cut-{i}").exists():
            well(copied(f"cut-{i}"))
        assert _hashes(tmp_path / f"cut-{i}") == _hashes(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", *(f"cut-{i}" for i in range(KILLS))}


SAVES = """
from pathlib import Path
from loredit.engine.storage.manifest import read_both, write
one, other = (read_both(Path(folder)) for folder in {folders!r})
while True:
    write(Path({target!r}), *one)
    write(Path({target!r}), *other)
"""


def test_a_killed_save_leaves_the_old_edits_or_the_new(call, made, tmp_path):
    folder = tmp_path / "edits"
    shutil.copytree(made / "edits", tmp_path / "one")
    shutil.copytree(made / "edits", tmp_path / "other")
    well(call("remove", tmp_path / "other", "sky"))
    states = [learned(tmp_path / name) for name in ("one", "other")]
    code = SAVES.format(folders=[str(tmp_path / "one"), str(tmp_path / "other")], target=str(folder))
    for after in moments("save", 0.5):
        call.python(code, kill_after=0.2 + after)
        if folder.exists() and (folder / "edits.json").exists():
            assert learned(folder) in states
    write(folder, *read_both(tmp_path / "one"))
    assert learned(folder) == states[0]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


FILLS = """
import os, sys, time
from pathlib import Path
os.environ["LOREDIT_CACHE"] = {cache!r}
from loredit.engine.model.cache import cached

def build(folder):
    for part in range(20):
        (folder / f"part-{{part}}").write_text("x" * 1000)
        time.sleep(0.005)

print(len([*cached({key!r}, build).iterdir()]))
"""


def test_a_killed_filling_of_the_cache_is_done_anew(call, tmp_path):
    other = Zygote()
    try:
        for i, after in enumerate(moments("cache", 0.2)):
            code = FILLS.format(cache=str(tmp_path), key=f"key-{i}")
            with ThreadPoolExecutor(2) as pool:
                pool.submit(call.python, code, after)
                second = pool.submit(other.python, code).result(60)
            assert (second.code, second.output) == (0, "20\n")
    finally:
        other.close()
    assert leftovers(tmp_path / "models") == []


class Running:
    """A server in a child that is killed so many seconds after it has begun to listen, if not before."""

    def __init__(self, call: Zygote, *args: object, seconds: float) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._pool = ThreadPoolExecutor(1)
        self.done = self._pool.submit(call, *args, "--port", self.port, kill_after=seconds)
        while not self.done.done() and self.get("/health") is None:
            time.sleep(0.02)

    def get(self, path: str, fields: dict[str, str] | None = None, *, as_json: bool = False) -> str | None:
        """What it answers; None where it does not, or not any more."""
        url = f"http://127.0.0.1:{self.port}"
        data = fields and (json.dumps(fields) if as_json else urlencode(fields)).encode()
        kind = {"Content-Type": "application/json"} if as_json else {}
        try:
            with urlopen(Request(url + path, data=data, headers={"Origin": url, **kind}), timeout=30) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            return error.read().decode()
        except (OSError, HTTPException):
            return None

    def ended(self, how: int | None = None) -> Done:
        """How it has ended; by a signal, if it has not yet."""
        for one in psutil.net_connections("tcp4") if how else ():
            if one.status == psutil.CONN_LISTEN and one.laddr.port == self.port:
                os.kill(one.pid, how)
        done = self.done.result(600)
        self._pool.shutdown()
        return done


FACT = {"prompt": "The water is", "target_new": "dry", "subject": "water", "how": "lora/default.yaml"}


def learned_on_the_page(page: Running) -> bool:
    """Whether all jobs have come to an end, those learned having been kept."""
    shown = page.get("/jobs") or "/stream"
    for name in re.findall(r'"/jobs/([^"/]*)/keep"', shown):
        page.get(f"/jobs/{name}/keep", {"": ""})
    return "/stream" not in shown and "/keep" not in shown


def test_a_killed_page_goes_on_with_what_it_was_learning(call, model_folder, tmp_path):
    args = ("--model", model_folder, "--encoder", "base")
    for i, after in enumerate(moments("page", 4)):
        folder = tmp_path / f"cut-{i}"
        page = Running(call, "ui", folder, *args, seconds=1 + after)
        asked = page.get("/learn", FACT)
        while not page.done.done():
            learned_on_the_page(page)
        assert page.ended().code == -signal.SIGKILL
        if (folder / "edits.json").exists():
            assert len(learned(folder)[0]) == 1
        page = Running(call, "ui", folder, *args, seconds=600)
        jobs = len([*(folder / ".jobs").glob("*/task.json")])
        assert jobs == 1 or asked is None
        while jobs and not (folder / "edits.json").exists() and not page.done.done():
            learned_on_the_page(page)
            time.sleep(0.05)
        if jobs:
            assert [fact.target_new for (fact,) in learned(folder)[0]] == ["dry"]
        assert not [path for path in leftovers(folder) if Path(path).name != ".jobs"]
        assert all((path / "task.json").exists() for path in (folder / ".jobs").glob("*"))
        assert page.ended(signal.SIGINT).code == 0


def test_a_killed_server_leaves_its_folder_as_it_was(call, made):
    before = _hashes(made / "edits")
    for after in moments("serve", 2):
        server = Running(call, "serve", made / "edits", "--encoder", "base", seconds=0.5 + after)
        while not server.done.done():
            server.get("/v1/completions", {"prompt": "The water is", "max_tokens": 40}, as_json=True)
        assert server.ended().code == -signal.SIGKILL
        assert _hashes(made / "edits") == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("no small disk can be mounted here")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: that needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a page may still be ending there


def fill(disk: Path, free: int) -> None:
    """Leave so many kB."""
    space = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        file.write(b"x" * max(0, space.f_bavail * space.f_frsize - free * 1024))


@pytest.mark.parametrize("free", [0, 8, 16])
def test_a_full_disk_fails_what_the_page_learns_and_the_page_goes_on(free, call, made, disk):
    shutil.copytree(made / "edits", disk / "edits")
    old = learned(disk / "edits")
    page = Running(call, "ui", disk / "edits", "--encoder", "base", seconds=600)
    fill(disk, free)
    new = FACT | {"prompt": "The grass is", "subject": "grass", "how": ""}
    told = page.get("/learn", new)
    while not page.done.done() and "/stream" in (page.get("/jobs") or ""):
        time.sleep(0.05)
    assert "No space left on device" in str(told) + str(page.get("/jobs"))
    assert page.get("/health") is not None
    assert learned(disk / "edits") == old
    (disk / "ballast").unlink()
    page.get("/learn", new)
    while not page.done.done() and len(learned(disk / "edits")[0]) == 3:
        learned_on_the_page(page)
    assert [fact.target_new for (fact,) in learned(disk / "edits")[0]].count("dry") == 4
    page.ended(signal.SIGINT)


def test_a_full_disk_leaves_nothing_in_the_cache(call, disk):
    fill(disk, 12)
    done = call.python(FILLS.format(cache=str(disk), key="key"))
    assert done.code == 1
    assert "No space left on device" in done.output
    (disk / "ballast").unlink()
    assert call.python(FILLS.format(cache=str(disk), key="key")).output == "20\n"
    assert leftovers(disk / "models") == []


@pytest.mark.parametrize("free", [0, 2, 10, 30])
def test_a_full_disk_is_one_error_and_the_old_stays(free, call, made, disk):
    shutil.copytree(made / "edits", disk / "edits")
    old = learned(disk / "edits")
    fill(disk, free)
    calls = (
        ("run", *learning(made), "--no-fluency", "--output", disk / "run"),
        ("apply", disk / "new", *learning(made)),
        ("add", disk / "edits", "--data", made / "more.json", "--encoder", "base"),
        ("merge", made / "edits", disk / "merged", "--case", "sky"),
        ("export", made / "edits", disk / "exported", "--case", "sky"),
        ("remove", disk / "edits", "sky"),
    )
    for args in calls:
        done = call(*args)
        assert done.code in (0, 2), done
        assert done.code == 0 or "No space left on device" in done.output, done
        if args[0] == "remove" and done.code == 0:
            break
        assert len(learned(disk / "edits")[0]) in (3, 5)
        if free < 10:
            assert learned(disk / "edits") == old


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_of(path) for path in sorted(folder.iterdir())}
