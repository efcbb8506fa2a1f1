"""Files that appear whole or not at all, with the rights that the user's umask gives, and folders of one writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from where import ROOT

from loredit.engine.files import LOCK, LockedError, locked, replacing


@pytest.fixture
def umask() -> Iterator[int]:
    """A umask that lets a group read and write."""
    before = os.umask(0o002)
    yield 0o002
    os.umask(before)


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_whose_writing_breaks_off_leaves_the_old_one_and_no_litter(error, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def broken_off() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(error):
        broken_off()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    with replacing(tmp_path / "a.json") as unfinished:
        unfinished.write_text("new")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~umask


def test_a_folder_is_made_and_locked_while_it_is_written_to(tmp_path):
    folder = tmp_path / "some" / "where"
    with locked(folder):
        assert folder.is_dir()
        with (
            pytest.raises(LockedError, match=r"another process is writing to .*where; wait for it to end"),
            locked(folder),
        ):
            pass
    with locked(folder):
        pass


# Holds the lock until it is told to end, or killed.
HOLDER = """
import sys
from pathlib import Path
from loredit.engine.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("ended", ["by itself", "killed"])
def test_two_processes_do_not_write_to_one_folder_and_a_dead_one_holds_nothing(ended, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LockedError, match="wait for it to end, or name another folder"), locked(tmp_path):
            pass
        if ended == "killed":
            other.send_signal(signal.SIGKILL)
        else:
            other.stdin.write("\n")
            other.stdin.flush()
        other.wait(timeout=60)
    with locked(tmp_path):
        assert [each.name for each in Path(tmp_path).iterdir()] == [LOCK]
