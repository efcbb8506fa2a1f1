"""What the pages show of a terminal is what a terminal shows.

    python tests/samples.py     # writes the outputs into the pages anew

A *sample* is a fenced block whose first line is ``$ command``; what it printed follows. A fenced block behind a line
that ends in "`name`:" is a file, and one of Python a command that shows nothing. The commands of a page run one after
another in one folder, with the default model.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("index.md", "fact-lists.md", "keeping-edits.md")]

_BLOCK = re.compile(r"^```(?P<language>[a-z]*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"\A\$ ((?:.*\\\n)*.*\n)")
_HASH = re.compile(r"([0-9a-f]{16})[0-9a-f]{16,}")
_FILE = re.compile(r"`([\w-]+\.\w+)`:\n\n\Z")


class Sample(NamedTuple):
    """A command of a page, and what the page says that it prints."""

    command: str
    shown: str
    span: tuple[int, int]
    """Where ``shown`` stands in the page."""


def of(text: str) -> tuple[dict[str, str], list[Sample]]:
    """The files and the samples of a page."""
    files, samples = {}, []
    for block in _BLOCK.finditer(text):
        content, end = block["content"], block.end("content")
        if command := _COMMAND.match(content):
            begin = block.start("content") + command.end()
            samples.append(Sample(command[1].strip(), text[begin:end], (begin, end)))
        elif name := _FILE.search(text, 0, block.start()):
            files[name[1]] = content
        elif block["language"] == "python":
            samples.append(Sample(f"python -c {shlex.quote(content)} > /dev/null", "", (block.end(), block.end())))
    return files, samples


def printed(text: str) -> Iterator[tuple[Sample, str]]:
    """Each sample of a page, and what it prints."""
    files, samples = of(text)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_text(content, encoding="utf-8")
        for sample in samples:
            done = subprocess.run(
                ["bash", "-c", sample.command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            said = done.stdout + (done.stderr if done.returncode else "")  # else that is progress
            lines = (_HASH.sub(r"\1...", line.rstrip()) for line in said.splitlines())
            yield sample, "".join(f"{line}\n" for line in lines)


def likeness(a: str, b: str) -> float:
    """The share of words that two outputs have in common, in their order, whatever the numbers: these, and a word that
    is generated here and there, hang on the processor."""
    return SequenceMatcher(None, _words(a), _words(b), autojunk=False).ratio()


def _words(text: str) -> list[str]:
    return re.sub(r"[0-9a-f]{16,}|\d[\d.,]*", "0", re.sub(r"[━─┏┓┗┛┡┩├┤┌┐└┘┃│╇┼┴┬╈┳┻╋]+", " ", text)).split()


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for sample, output in reversed([*printed(text)]):
            text = text[: sample.span[0]] + output + text[sample.span[1] :]
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
