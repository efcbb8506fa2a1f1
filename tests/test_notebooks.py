"""The notebooks run from top to bottom, and were kept with their outputs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from where import ROOT

from loredit.engine.model.cache import cache

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="loredit[notebooks] is not installed")


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare_editors", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_name_no_machine(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.outputs for cell in cells[-2:])
    assert not [cell for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert "/root/" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.skipif(
    not (find_spec("nbclient") and find_spec("ipykernel")), reason="loredit[notebooks] is not installed"
)
@pytest.mark.skipif(not any((cache() / "models").glob("*")), reason="the default model is not in the cache")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client.NotebookClient(nbformat.read(path, 4), timeout=600, kernel_name="python3").execute()
