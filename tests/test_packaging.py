"""The wheel holds the whole package and nothing beside it, and works away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import loredit

ROOT = Path(__file__).parents[1]
FOLDERS = ("data", "hparams", "engine", "editors", "evaluation")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("loredit", *FOLDERS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    run("-m", "build", "--no-isolation", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_the_links_lead_to_the_folders_at_the_top():
    for folder in FOLDERS:
        assert (ROOT / "loredit" / folder).readlink() == Path("..", folder)


def test_the_wheel_holds_every_module_preset_and_sample(wheel):
    links = {ROOT / "loredit" / folder for folder in FOLDERS}
    files = [file for file in (ROOT / "loredit").rglob("*") if file.is_file()]
    beside = ("templates", "static")
    own = [f for f in files if f.suffix == ".py" or f.name == "py.typed" or f.parent.name in beside]
    expected = {file.relative_to(ROOT).as_posix() for file in own if not links.intersection(file.parents)}
    for folder in FOLDERS:
        for pattern in ("**/*.py", "**/*.yaml", "**/*.json", "**/*.csv", "**/templates/*"):
            expected |= {f"loredit/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / folder).glob(pattern)}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert any(name.startswith("loredit/hparams/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("loredit/data/samples/") for name in names)
    assert "loredit/server/static/htmx-LICENSE.txt" in names


def test_nothing_but_loredit_lands_at_the_top_of_site_packages(wheel):
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"loredit", f"loredit-{loredit.__version__}.dist-info"}


def test_the_installed_wheel_is_imported_from_another_directory(wheel, tmp_path):
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel, cwd=tmp_path
    )
    # An isolated interpreter sees neither the working directory nor an editable install placed before the wheel.
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
        "import loredit; from loredit import cli, data, editors, engine, evaluation, hparams, session, store;"
        "from loredit.commands import run;"
        "modules = (loredit, cli, data, editors, engine, evaluation, hparams, run, session, store);"
        "print(*(module.__file__ for module in modules), sep='\\n')"
    )
    for file in run("-I", "-c", code, cwd=tmp_path).splitlines():
        assert Path(file).is_relative_to(tmp_path / "site")
