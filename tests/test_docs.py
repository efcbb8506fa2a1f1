"""What README and docs tell people to type exists, and the site can be built with every link leading somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from where import ROOT

import loredit
import loredit.data
import loredit.easyedit
import loredit.editors
from loredit import hparams
from loredit.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def commands(page: Path) -> list[str]:
    """Lines of ``loredit`` and ``python run_edit.py`` in code, put together where they go on, without comments."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.startswith(("    ", "$ "))]
    lines += re.findall(r"`((?:loredit|python run_edit\.py) [^`]*)`", text)
    plain = (re.sub(r"\s+#.*|\s+[|<>].*", "", line.removeprefix("$ ")) for line in lines)
    return [line for line in plain if re.match(r"loredit [a-z]+\b(?!:)|python run_edit\.py ", line)]


ALL = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_are_commands_to_check():
    assert len(ALL) > 40


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line[:60]}" for page, line in ALL])
def test_a_command_of_the_docs_is_one(page, line):
    words = shlex.split(line.replace("...", " "))
    if words[0] == "loredit" and words[1].startswith("-"):
        return
    name, rest = ("run", words[2:]) if words[0] == "python" else (words[1], words[2:])
    assert name in COMMANDS, f"{page}: there is no `loredit {name}`"
    options = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    assert not unknown, f"{page}: {line}"
    given = dict(pairwise(rest))
    preset, editor = given.get("--hparams"), given.get("--editor", "roselora")
    if preset and name in ("run", "apply") and editor.islower() and "/" not in preset:
        hparams.find(editor, preset)


def public_names():
    """Where each public name is defined."""
    for module in (loredit, loredit.data, loredit.editors, loredit.easyedit):
        for name in module.__all__:
            what = getattr(module, name)
            if hasattr(what, "__qualname__"):
                yield f"{what.__module__}.{what.__qualname__}"


def test_every_public_name_is_documented():
    documented = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert not {*public_names()} - {*documented}
    assert len(documented) == len({*documented})


@pytest.mark.skipif(not (find_spec("material") and find_spec("mkdocstrings")), reason="the extra docs is not installed")
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "api.html", "serving.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"', text
        )
        assert loaded
        assert not [one for pair in loaded for one in pair if one.startswith(("http:", "https:", "//"))]
    assert "edit_each" in (tmp_path / "api.html").read_text(encoding="utf-8")
