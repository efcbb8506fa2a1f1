"""A process that has imported everything and forks, so that commands can be run, or killed, without an import each.

It runs nothing itself: a fork of a process that has computed in parallel would wait for threads that it does not have.
Lines of JSON go in, lines of JSON come out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    """How a child has ended."""

    code: int
    """Its exit code; below zero the signal that killed it."""
    output: str
    seconds: float


class Zygote:
    """Runs commands of ``loredit``, or lines of Python, in forks."""

    def __init__(self) -> None:
        root = Path(__file__).parents[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __call__(self, *args: object, kill_after: float | None = None) -> Done:
        """Run ``loredit`` with these arguments."""
        return self._run({"args": [str(arg) for arg in args]}, kill_after)

    def python(self, code: str, kill_after: float | None = None) -> Done:
        """Run lines of Python."""
        return self._run({"code": code}, kill_after)

    def _run(self, asked: dict[str, object], kill_after: float | None) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({**asked, "kill_after": kill_after}), file=self._process.stdin, flush=True)
        return Done(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)  # at the end of its input it ends


def _child(asked: dict[str, object], output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        from loredit.cli import app

        if "code" in asked:
            exec(str(asked["code"]), {})
            code = 0
        else:
            app(asked["args"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _serve() -> None:
    import loredit.bridges.peft
    import loredit.cli
    import loredit.evaluation.runs
    import loredit.session  # noqa: F401 - children have them all

    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as output:
            begun = time.perf_counter()
            pid = os.fork()
            if not pid:
                _child(asked, output.fileno())
            if asked["kill_after"] is not None:
                end = begun + asked["kill_after"]
                while time.perf_counter() < end and not _ended(pid):
                    time.sleep(0.002)
                os.kill(pid, signal.SIGKILL)  # it is not reaped before the next line
            _, status = os.waitpid(pid, 0)
            output.seek(0)
            told = output.read().decode("utf-8", "replace")
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([code, told, time.perf_counter() - begun]), flush=True)


if __name__ == "__main__":
    _serve()
