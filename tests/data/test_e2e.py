"""E2E: the zip as released, a folder, faults with file and line; grouped references."""

from __future__ import annotations

import zipfile
from pathlib import Path

import datasets
import pytest

from loredit.data import e2e
from loredit.data.examples import DataError
from loredit.data.pairs import Item, Pair

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = {
    "trainset.csv": ['"name[The Ox], food[fish]","The Ox, a pub, has ""fish""."', "name[The Ox],So it is."],
    "devset.csv": ["name[Elm],Elm!"],
    "testset_w_refs.csv": ["name[Elm],Elm!", '"name[Ash], near[Café Ash]",By Café Ash.', "name[Elm],Go to Elm."],
}


def folder(at: Path, **changed: list[str]) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        lines = ["mr,ref", *changed.get(name.partition(".")[0], rows)]
        (at / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return at


def zipped(at: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(at / "e2e-dataset.zip", "w") as archive:
        for path in folder(at / "csv").iterdir():
            archive.write(path, f"e2e-dataset/{path.name}")
    return at / "e2e-dataset.zip"


def test_a_folder_a_zip_and_a_folder_of_folders_say_the_same(tmp_path):
    whole = e2e.load(str(folder(tmp_path / "a" / "e2e")))
    assert whole.train == (
        Pair("name : The Ox | food : fish", 'The Ox, a pub, has "fish".'),
        Pair("name : The Ox", "So it is."),
    )
    assert whole.splits["test"] == (
        Item("name : Elm", ("Elm!", "Go to Elm.")),
        Item("name : Ash | near : Café Ash", ("By Café Ash.",)),
    )
    for source in (tmp_path / "a", zipped(tmp_path / "b"), tmp_path / "b"):
        assert e2e.load(str(source)) == whole


def test_faults_are_told_with_their_line_or_left_out(tmp_path):
    where = str(folder(tmp_path, trainset=["name[Ox],It is.", "no brackets,Text.", "name[Ox],", "name[Ox],a,b"]))
    with pytest.raises(DataError, match=r"3 bad lines") as caught:
        e2e.load(where)
    for part in ("trainset.csv, line 3: expected attributes", "line 4: field 'ref' is empty", "line 5: 3 cells"):
        assert part in str(caught.value)
    assert len(e2e.load(where, skip_bad=True).train) == 1


def test_what_is_no_e2e_is_said(tmp_path):
    with pytest.raises(DataError, match=r"holds no e2e data: expected e2e-dataset\.zip or trainset\.csv"):
        e2e.load(str(tmp_path))
    (tmp_path / "x.zip").write_text("no")
    with pytest.raises(DataError, match="no zip file"):
        e2e.load(str(tmp_path / "x.zip"))
    folder(tmp_path)
    (tmp_path / "devset.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="expected the columns mr, ref"):
        e2e.load(str(tmp_path))


def test_the_hub_gives_the_same_pairs(monkeypatch, tmp_path):
    row = {"meaning_representation": "name[Elm]", "human_reference": "Elm!"}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: {key: [row] for key in ("train", "validation", "test")}
    )
    assert e2e.load("hub").train == (Pair("name : Elm", "Elm!"),)

    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=r"cannot be had from the hub.*--data"):
        e2e.load("hub")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files in ../shared/data")
def test_the_released_set():
    data = e2e.load(str(SHARED))
    assert len(data.train) == 42061
    assert {name: len(items) for name, items in data.splits.items()} == {"dev": 547, "test": 630}
    assert sum(len(item.references) for item in data.splits["test"]) == 4693
