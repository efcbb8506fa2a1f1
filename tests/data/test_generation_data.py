"""WebNLG, DART and XSum: their files as released, faults with file and entry, categories, what the hub gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from loredit.data import dart, webnlg, xsum
from loredit.data.examples import DataError
from loredit.data.pairs import Item, Pair

SHARED = Path(__file__).parents[3] / "shared" / "data"


def entry(subject: str, texts: list[str], category: str) -> dict[str, Any]:
    triple = {"subject": subject, "property": "builtIn", "object": '"1911"'}
    return {"category": category, "modifiedtripleset": [triple], "lexicalisations": [{"lex": text} for text in texts]}


WEBNLG = {
    "train": [entry("Elm_Hall", ["Elm Hall is of  1911.", "1911 saw Elm Hall."], "Building")],
    "dev": [entry("Ash_Hall", ["Ash Hall is of 1911."], "Building")],
    "test": [entry("Oak_Hall", ["Oak Hall is of 1911."], "Building"), entry("Rye", ["Rye is of 1911."], "Food")],
}
DART = {
    "train": [{"tripleset": [["Elm Hall", "BUILT", "1911"]], "annotations": [{"text": "Elm Hall is of 1911."}]}],
    "test": [
        {
            "tripleset": [["Rye", "KIND", "bread"], ["Rye", "COLOR", "dark"]],
            "annotations": [{"source": "us", "text": "Rye is dark."}, {"source": "us", "text": "Rye, a dark bread."}],
        }
    ],
}
XSUM = {
    "train": [{"id": "1", "document": "It rained.\nIt rained more.", "summary": "Rain."}],
    "validation": [{"id": "2", "document": "It snowed.", "summary": "Snow."}],
}


def as_xml(found: dict[str, Any]) -> str:
    (triple,) = found["modifiedtripleset"]
    said = f"{triple['subject']} | {triple['property']} | {triple['object']}"
    texts = "".join(f'<lex comment="good" lid="Id{i}">{t["lex"]}</lex>' for i, t in enumerate(found["lexicalisations"]))
    return (
        f'<entry category="{found["category"]}" eid="Id1" size="1"><originaltripleset><otriple>no</otriple>'
        f"</originaltripleset><modifiedtripleset><mtriple>{said}</mtriple></modifiedtripleset>{texts}</entry>"
    )


def webnlg_json(at: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for split, entries in WEBNLG.items():
        numbered = [{str(i): found} for i, found in enumerate(entries, 1)]
        (at / f"{split}.json").write_text(json.dumps({"entries": numbered}), encoding="utf-8")
    return at


def webnlg_xml(at: Path) -> Path:
    for split, entries in WEBNLG.items():
        for i, found in enumerate(entries):
            path = at / split / f"{i + 1}triples" / "all.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<benchmark><entries>{as_xml(found)}</entries></benchmark>", encoding="utf-8")
    return at


def dart_folder(at: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for split, entries in DART.items():
        (at / f"dart-v1.1.1-full-{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    return at


def xsum_folder(at: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    for split, rows in XSUM.items():
        (at / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return at


def test_webnlg_says_the_same_as_xml_and_as_json_and_tells_categories_not_seen(tmp_path):
    data = webnlg.load(str(webnlg_json(tmp_path / "a" / "webnlg")))
    source = "Elm Hall : builtIn : 1911"
    assert data.train == (Pair(source, "Elm Hall is of 1911."), Pair(source, "1911 saw Elm Hall."))
    assert data.splits["test"] == (
        Item("Oak Hall : builtIn : 1911", ("Oak Hall is of 1911.",), "seen"),
        Item("Rye : builtIn : 1911", ("Rye is of 1911.",), "unseen"),
    )
    other = webnlg.load(str(webnlg_xml(tmp_path / "b")))
    assert (other.train, other.splits) == (data.train, data.splits)
    assert webnlg.load(str(tmp_path / "a")) == data


def test_darts_triples_are_one_source_with_all_texts(tmp_path):
    data = dart.load(str(dart_folder(tmp_path)))
    assert data.train == (Pair("Elm Hall : built : 1911", "Elm Hall is of 1911."),)
    source = "Rye : kind : bread | Rye : color : dark"
    assert data.splits == {"test": (Item(source, ("Rye is dark.", "Rye, a dark bread.")),)}


def test_xsums_articles_are_sources_of_one_line_and_cut(tmp_path):
    data = xsum.load(str(xsum_folder(tmp_path)))
    assert data.train == (Pair("It rained. It rained more.", "Rain."),)
    assert data.splits == {"dev": (Item("It snowed.", ("Snow.",)),)}
    assert data.longest_source == 512


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("webnlg", {"entries": [{"1": {"modifiedtripleset": "no"}}]}, "record 1: field 'modifiedtripleset' is no list"),
        ("webnlg", {"entries": [{"1": entry("Elm", [" "], "")}]}, "record 1: there is no text about the triples"),
        ("webnlg", {"entries": [{"1": {"modifiedtripleset": [{"subject": 3}]}}]}, "field 'subject' is no text"),
        ("webnlg", {"entries": ["no"]}, "record 1: field 'modifiedtripleset'"),
        ("webnlg", [1], "expected an object with a list of entries"),
        ("dart", [{"tripleset": [["a", "b"]]}], r"record 1: field 'tripleset' is no list of \[subject"),
        ("dart", [{"tripleset": [["a", "b", "c"]], "annotations": [{"text": 3}]}], "record 1: field 'annotations'"),
        ("dart", ["no"], "record 1: field 'tripleset'"),
        ("dart", {}, "expected a list of entries"),
        ("dart", [], "holds no examples"),
        ("xsum", {"document": "It rained."}, "line 1: field 'summary' is missing, empty or no text"),
        ("xsum", {"document": 3, "summary": "Rain."}, "line 1: field 'document' is missing"),
        ("xsum", [1], "line 1: expected an object"),
    ],
)
def test_faults_are_told_with_their_record(name, content, said, tmp_path):
    read = {"webnlg": webnlg, "dart": dart, "xsum": xsum}[name].load
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read(str(tmp_path))


@pytest.mark.parametrize("read", [webnlg.load, dart.load, xsum.load])
def test_what_is_not_there_or_no_json_is_said(read, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"holds no \w+ data: expected train\.json"):
        read(str(tmp_path))
    (tmp_path / "train.json").write_text("{no")
    with pytest.raises(DataError, match="JSON"):
        read(str(tmp_path))

    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=r"cannot be had from the hub.*--data"):
        read("hub")


def test_faulty_records_can_be_left_out(tmp_path, caplog):
    folder = dart_folder(tmp_path)
    (folder / "dart-v1.1.1-full-train.json").write_text(json.dumps([*DART["train"], {}]), encoding="utf-8")
    with pytest.raises(DataError, match="1 bad records"):
        dart.load(str(folder))
    assert len(dart.load(str(folder), skip_bad=True).train) == 1


def test_xml_that_declares_entities_is_refused(tmp_path):
    path = webnlg_xml(tmp_path) / "train" / "1triples" / "all.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><benchmark/>', encoding="utf-8")
    with pytest.raises(DataError, match="declares entities"):
        webnlg.load(str(tmp_path))
    path.write_text("<benchmark>", encoding="utf-8")
    with pytest.raises(DataError, match="is no XML"):
        webnlg.load(str(tmp_path))


def test_the_hub_gives_the_same(monkeypatch):
    triples = {"mtriple_set": [["Elm_Hall | builtIn | 1911"]]}
    rows = {
        "webnlg-challenge/web_nlg": {"category": "Food", "modified_triple_sets": triples, "lex": {"text": ["Elm."]}},
        "Yale-LILY/dart": {"tripleset": [["Elm", "BUILT", "1911"]], "annotations": {"text": ["Elm."]}},
        "EdinburghNLP/xsum": {"document": "It rained.", "summary": "Rain."},
    }
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, *_, **__: {split: [rows[name]] for split in ("train", "dev", "validation", "test")},
    )
    assert webnlg.load("hub").train == (Pair("Elm Hall : builtIn : 1911", "Elm."),)
    assert dart.load("hub").train == (Pair("Elm : built : 1911", "Elm."),)
    assert xsum.load("hub").train == (Pair("It rained.", "Rain."),)


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "dart").is_dir(), reason="needs the benchmark files in ../shared/data")
def test_the_released_development_set():
    data = dart.load(str(SHARED))
    assert not data.train
    assert len(data.splits["dev"]) == 2721  # 47 sets of triples come twice
    assert sum(len(item.references) for item in data.splits["dev"]) == 6980
