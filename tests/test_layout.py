"""The house's rules that the import linter cannot say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import loredit

ROOT = Path(__file__).parent.parent
FOLDERS = ("data", "hparams", "engine", "editors", "evaluation", "loredit")
LINKS = {ROOT / "loredit" / name for name in FOLDERS}
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not LINKS.intersection(path.parents)
)
# Where transformers' inner modules may be used; each assumption about them has a test that names it.
ROOMS = ("engine/model", "evaluation/tuning")


def imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def test_there_are_files_to_check():
    assert len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_transformers_internals_stay_in_their_rooms(path):
    inner = [node.module for node in imports(path) if (node.module or "").startswith("transformers.")]
    if "commands" in path.parts:  # what it prints is its own affair
        inner = [name for name in inner if name != "transformers.utils.logging"]
    assert not inner or str(path.relative_to(ROOT)).startswith(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_crosses_modules(path):
    crossing = [alias.name for node in imports(path) if node.level for alias in node.names if alias.name[:1] == "_"]
    assert [name for name in crossing if not name.startswith("__")] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_house_is_imported_inside_a_function(path):
    if "commands" in path.parts or path.name == "cli.py":
        return  # so that --help need not wait for torch
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
            assert not [node.module for node in inside if node.level or str(node.module).startswith("loredit")]


def test_every_exception_to_late_imports_says_why():
    for path in FILES:
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if "noqa: PLC0415" in line:
                assert re.search(r"noqa: PLC0415 - \w", line) or "noqa: PLC0415 - " in before, f"{path}: {line}"


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(loredit.__file__).read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in typed.body for alias in node.names}
    assert seen == set(loredit.__all__) == set(dir(loredit)) == {*loredit._NAMES, *loredit._MODULES}
    for node in typed.body:
        for alias in node.names:
            module, attribute = loredit._NAMES.get(alias.asname or alias.name, (None, None))
            assert module is None or (module, attribute) == (node.module, alias.name)
    assert all(getattr(loredit, name) is not None for name in loredit.__all__)


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loredit.nothing
