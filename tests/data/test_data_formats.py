"""The benchmark formats, on records in their form and on the real files where those are at hand.

Planted faults these tests catch: a field read under the wrong name; the "nq question: " prefix cut; MEND's portability
read as a group of probes; a neighbour of CounterFact without its answer; a fault told in another format's words; a
real record or probe lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from where import ROOT, SHARED

from loredit import data
from loredit.data import (
    Claim,
    FactError,
    Probe,
    counterfact,
    fact_list,
    hallueditbench,
    knowedit,
    mquake,
    qaedit,
    rippleedits,
    unke,
    zsre,
)

MEND = {
    "subject": "Ada",
    "src": "Where was Ada born?",
    "pred": "Paris",
    "rephrase": "What is Ada's place of birth?",
    "alt": "Rome",
    "answers": ["London", "England"],
    "loc": "nq question: who sings this song",
    "loc_ans": "Nobody",
    "cond": "Paris >> Rome || Where was Ada born?",
    "portability": {
        "Recalled Relation": "(Rome, country, Italy)",
        "New Question": "Ada's country?",
        "New Answer": "Italy",
    },
}
RECENT = {
    "subject": "Ada",
    "prompt": "The place of birth of Ada is",
    "target_new": "Rome",
    "rephrase": "Ada was born in",
    "locality": {"Forgetfulness": [{"prompt": "Ada's jobs are", "ground_truth": [["poet", "writer"], ["engineer"]]}]},
    "portability": {},
}
WIKIBIO = {
    "concept": "Ada",
    "text": "Ada was",
    "labels": "a poet.",
    "locality": {"Relation_Specificity": [{"prompt": "Ada lived in", "ground_truth": ["London"]}]},
}
COUNTERFACT = {
    "case_id": 12,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "subject": "Ada",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "London", "id": "Q84"},
    },
    "paraphrase_prompts": ["Ada's place of birth is", "Ada comes from"],
    "neighborhood_prompts": ["Bob was born in", "Eve was born in"],
}


def write(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(records))
    return path


def test_mend_zsre(tmp_path: Path) -> None:
    path = write(tmp_path, MEND)
    [fact] = zsre.load(path)
    assert fact.model_dump() == {
        "case_id": "0",
        "prompt": "Where was Ada born?",
        "target_new": "Rome",
        "subject": "Ada",
        "ground_truth": ("London", "England"),
        "rephrase_prompts": ("What is Ada's place of birth?",),
        "chat_prompts": (),
        "locality": {"neighborhood": ({"prompt": "nq question: who sings this song", "answers": ("Nobody",)},)},
        "portability": {"one_hop": ({"prompt": "Ada's country?", "answers": ("Italy",)},)},
        "claims": {},
        "bundle": None,
    }
    assert data.load(path).facts == [fact]


def test_wikidata_recent(tmp_path: Path) -> None:
    path = write(tmp_path, RECENT)
    [fact] = knowedit.load(path)
    assert fact.rephrase_prompts == ("Ada was born in",)
    assert fact.ground_truth == ()
    assert fact.locality["Forgetfulness"] == (Probe(prompt="Ada's jobs are", answers=("poet", "writer", "engineer")),)
    assert data.load(path).facts == [fact]


def test_wikibio(tmp_path: Path) -> None:
    path = write(tmp_path, WIKIBIO)
    [fact] = knowedit.load(path)
    assert (fact.subject, fact.prompt, fact.target_new) == ("Ada", "Ada was", "a poet.")
    assert fact.locality["Relation_Specificity"][0].answers == ("London",)
    assert data.load(path).facts == [fact]


def test_counterfact_of_its_authors(tmp_path: Path) -> None:
    path = write(tmp_path, COUNTERFACT)
    [fact] = counterfact.load(path)
    assert (fact.case_id, fact.prompt, fact.target_new) == ("12", "Ada was born in", "Rome")
    assert fact.ground_truth == ("London",)
    assert fact.rephrase_prompts == ("Ada's place of birth is", "Ada comes from")
    assert fact.locality == {
        "neighborhood": tuple(Probe(prompt=f"{name} was born in", answers=("London",)) for name in ("Bob", "Eve"))
    }
    assert data.load(path).facts == [fact]


@pytest.mark.parametrize(
    ("record", "change", "fault"),
    [
        (MEND, {"alt": ""}, "alt: is empty"),
        (MEND, {"src": 1}, "src: is 1"),
        (MEND, {"loc_ans": None}, "loc_ans: is missing"),
        (MEND, {"portability": {"New Answer": "Italy"}}, "portability.New Question: is missing"),
        (RECENT, {"rephrase": [1]}, "rephrase[0]: is 1"),
        (WIKIBIO, {"labels": ["a"]}, "labels: is ['a']"),
        (COUNTERFACT, {"neighborhood_prompts": [1, "p"]}, "neighborhood_prompts: is 1"),
    ],
)
def test_faults_are_told_in_the_formats_own_words(record: dict, change: dict, fault: str, tmp_path: Path) -> None:
    with pytest.raises(FactError) as error:
        data.load(write(tmp_path, record, {**record, "case_id": "bad", **change}))
    assert f"record 1: {fault}" in str(error.value)
    assert len(error.value.bad) == 1


def test_a_list_of_which_no_record_is_whole_is_told_what_each_lacks(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("case_id,prompt,target_new\na,The sky is,\nb,,green\n")
    with pytest.raises(FactError) as error:
        data.load(path)
    assert [(bad.where.partition(", ")[2], bad.field) for bad in error.value.bad] == [
        ("line 2, record 0", "target_new"),
        ("line 3, record 1", "prompt"),
    ]
    path.write_text("case_id,prompt,target_new\na,The sky is,\n")
    with pytest.raises(FactError, match="empty cells are no fields"):
        data.load(path)


def test_a_loader_of_one_format_refuses_another(tmp_path: Path) -> None:
    for load, record in [(zsre.load, RECENT), (knowedit.load, MEND), (counterfact.load, MEND), (fact_list.load, MEND)]:
        with pytest.raises(FactError, match="no known format"):
            load(write(tmp_path, record))


# the hub


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    datasets = ModuleType("datasets")
    datasets.DownloadManager = type("DownloadManager", (), {"download": staticmethod(download)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)


def test_knowedit_from_the_hub_is_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    path = write(tmp_path, RECENT)
    fake_hub(monkeypatch, lambda url: asked.append(url) or str(path))
    loaded = data.load("knowedit:WikiData_recent")
    assert loaded == replace(data.load(path), source="knowedit:WikiData_recent")
    assert asked == ["hf://datasets/zjunlp/KnowEdit/benchmark/wiki_recent/recent_test.json"]


def test_an_unreachable_hub_is_told_with_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str) -> str:
        raise OSError("no network")

    fake_hub(monkeypatch, download)
    with pytest.raises(FactError) as error:
        data.load("knowedit:ZsRE")
    assert "OSError: no network" in str(error.value)
    assert "Download benchmark/ZsRE/ZsRE-test-all.json" in str(error.value)
    assert "pass its path" in str(error.value)


def test_an_unknown_set_of_knowedit_lists_the_known_ones() -> None:
    with pytest.raises(FactError, match="there are ZsRE, WikiData_recent"):
        data.load("knowedit:zsrr")


def test_the_hubs_library_is_imported_only_when_asked_for() -> None:
    code = "import sys, loredit.data; loredit.data.load(); sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# the real files


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for item in value:
            yield from leaves(item)


def real(name: str) -> tuple[list[dict[str, Any]], data.LoadedFacts]:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs {SHARED / name}, which is not part of this repository")
    return json.loads((SHARED / name).read_text()), data.load(SHARED / name)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "count", "locality", "portability"),
    [
        ("knowedit/ZsRE-test-1001.json", 1001, 2002, 1001),
        ("knowedit/wiki_recent_test.json", 1266, 6205, 11701),
        ("knowedit/wiki_counterfact_train-400.json", 400, 587, 626),
    ],
)
def test_every_record_and_probe_of_knowedit_arrives(name: str, count: int, locality: int, portability: int) -> None:
    raw, loaded = real(name)
    assert (len(loaded.facts), loaded.unanswered, loaded.bad) == (count, 0, [])
    probes = {"locality": 0, "portability": 0}
    for number, (record, fact) in enumerate(zip(raw, loaded.facts, strict=True)):
        assert fact.case_id == str(number)
        assert (fact.prompt, fact.target_new, fact.subject) == (
            record["prompt"],
            record["target_new"],
            record["subject"],
        )
        assert fact.ground_truth == tuple(dict.fromkeys(leaves(record.get("ground_truth", ()))))
        assert fact.rephrase_prompts == tuple(leaves(record.get("rephrase_prompt", record.get("rephrase", ()))))
        for kind in probes:
            assert list(getattr(fact, kind)) == list(record[kind])
            for group, expected in record[kind].items():
                found = getattr(fact, kind)[group]
                probes[kind] += len(found)
                for probe, source in zip(found, expected, strict=True):
                    assert probe.prompt == source["prompt"]
                    assert probe.answers == tuple(dict.fromkeys(leaves(source["ground_truth"])))
    assert probes == {"locality": locality, "portability": portability}


@pytest.mark.shared_data
def test_every_record_of_mend_zsre_arrives() -> None:
    raw, loaded = real("knowedit/zsre_mend_portability-500.json")
    assert len(loaded.facts) == len(raw) == 500
    for record, fact in zip(raw, loaded.facts, strict=True):
        assert (fact.prompt, fact.target_new) == (record["src"], record["alt"])
        assert fact.rephrase_prompts == (record["rephrase"],)
        assert fact.ground_truth == tuple(dict.fromkeys(record["answers"]))
        assert fact.locality == {"neighborhood": (Probe(prompt=record["loc"], answers=(record["loc_ans"],)),)}
        assert fact.locality["neighborhood"][0].prompt.startswith("nq question: ")
        asked, answer = record["portability"]["New Question"], record["portability"]["New Answer"]
        assert fact.portability == {"one_hop": (Probe(prompt=asked, answers=(answer,)),)}


@pytest.mark.shared_data
def test_every_record_of_counterfact_arrives() -> None:
    raw, loaded = real("counterfact/counterfact-2000.json")
    assert len(loaded.facts) == len(raw) == 2000
    for record, fact in zip(raw, loaded.facts, strict=True):
        assert fact.case_id == str(record["case_id"])
        assert (fact.prompt, fact.target_new, fact.subject) == (
            record["prompt"],
            record["target_new"],
            record["subject"],
        )
        assert (fact.ground_truth, fact.rephrase_prompts) == ((record["ground_truth"],), (record["rephrase_prompt"],))
        probe = Probe(prompt=record["locality_prompt"], answers=(record["locality_ground_truth"],))
        assert (fact.locality, fact.portability) == ({"neighborhood": (probe,)}, {})


def test_qaedit(tmp_path: Path) -> None:
    record = {
        "id": 7,
        "source": "NQ",
        "prompt": "who wrote the song",
        "target": "Ann",
        "subject": "the song",
        "rephrase": "Who is the song's author?",
        "locality": [{"loc": "who is bob", "loc_ans": "a man"}, {"loc": "who is eve", "loc_ans": "a woman"}],
    }
    path = write(tmp_path, record)
    [fact] = qaedit.load(path)
    assert (fact.case_id, fact.subject, fact.rephrase_prompts) == ("0", "the song", ("Who is the song's author?",))
    probes = fact.locality["neighborhood"]
    assert [(probe.prompt, *probe.answers) for probe in probes] == [("who is bob", "a man"), ("who is eve", "a woman")]
    assert data.load(path).facts == [fact]


SAMPLES = ROOT / "data" / "samples"


def test_mquake_asks_what_follows_from_all_edits_of_a_case() -> None:
    loaded = data.load(SAMPLES / "mquake.json")
    assert mquake.load(SAMPLES / "mquake.json") == loaded.facts
    one, first, second = loaded.facts
    assert [(fact.case_id, fact.bundle) for fact in loaded.facts] == [("1", None), ("2.0", "2"), ("2.1", "2")]
    assert (second.prompt, second.target_new, second.subject) == ("The capital of Norway is", "Bergen", "Norway")
    assert (second.ground_truth, second.rephrase_prompts) == (("Oslo",), ("What is the capital of Norway?",))
    assert (second.claims, second.portability) == ({}, {})  # asked once, after all of them
    (multi,), (instance,) = one.claims["multi_hop"], one.claims["instance"]
    assert [len(way) for way in multi.ways] == [1, 1, 1]
    assert {probe.answers for probe in multi.probes} == {("Sweden", "Kingdom of Sweden", "Sverige")}
    assert one.portability["multi_hop"] == multi.probes
    hops = [
        Probe(prompt="sushi comes from the country of", answers=("Norway", "Kingdom of Norway")),
        Probe(prompt="The capital of Norway is", answers=("Bergen",)),
    ]
    assert first.claims["instance"] == (Claim.all(hops),)
    assert instance.given == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"questions": []}, "questions: is [], expected one or more"),
        ({"questions": "why?"}, "questions: is 'why?', expected a list"),
        ({"new_single_hops": [{"cloze": "a"}]}, "new_single_hops[0].answer: is missing"),
        ({"requested_rewrite": [{"prompt": 1}]}, "requested_rewrite[0].prompt: is 1"),
        ({"requested_rewrite": [3]}, "requested_rewrite[0]: is 3, expected an object with fields"),
        ({"new_answer": " "}, "new_answer: is blank"),
        ({"case_id": "x"}, "case_id: is 'x'"),
        ({"new_anwser": "Rome", "new_answer": None}, "new_anwser: is unknown; did you mean 'new_answer'?"),
    ],
)
def test_faults_of_mquake_are_told_in_its_own_words(change: dict, fault: str, tmp_path: Path) -> None:
    good = json.loads((SAMPLES / "mquake.json").read_text())[0]
    bad = {key: value for key, value in {**good, "case_id": 9, **change}.items() if value is not None}
    with pytest.raises(FactError) as error:
        data.load(write(tmp_path, good, bad))
    assert f"record 1: {fault}" in str(error.value)


def test_rippleedits_tests_are_claims_that_count_where_their_conditions_are_known() -> None:
    loaded = data.load(SAMPLES / "rippleedits.json")
    assert rippleedits.load(SAMPLES / "rippleedits.json") == loaded.facts
    capital, children = loaded.facts
    said = (capital.prompt, capital.target_new, capital.subject, capital.ground_truth)
    assert said == ("The name of the capital city of Norland is", "Bergheim", "Norland", ("Fjordby",))
    said = (children.prompt, children.target_new, children.subject, children.ground_truth)
    assert said == ("The names of the children of Ada Quill are", "Tom Quill", None, ())
    (composed,) = capital.claims["Compositionality_I"]
    assert composed.given == (Probe(prompt="The name of the mayor of Bergheim is", answers=("Ida Storm",)),)
    (every,) = capital.claims["Compositionality_II"]
    assert [len(way) for way in every.ways] == [2]  # AND
    (both,) = children.claims["Forgetfulness"]
    assert [probe.answers for probe in both.ways[0]] == [("Ann Quill",), ("Ben Quill", "Benjamin Quill")]
    assert {*capital.locality} == {"Relation_Specificity"}
    assert {*children.portability} == {"Logical_Generalization"}
    assert "Forgetfulness" not in capital.claims


@pytest.mark.parametrize(
    ("sentence", "aliased", "parted"),
    [
        ("Ada lives in the city of Rome.", "Rome", ("Ada lives in the city of", "Rome")),
        ("The country of Ada is the Isle of Man.", None, ("The country of Ada is", "the Isle of Man")),
        ("Ada lives in Rome.", None, None),
    ],
)
def test_rippleedits_sentences_are_parted_or_refused(sentence, aliased, parted, tmp_path: Path) -> None:
    record = json.loads((SAMPLES / "rippleedits.json").read_text())[1]
    record["edit"]["prompt"] = sentence
    if aliased:
        answer = {"value": aliased, "aliases": []}
        query = {"prompt": "She lives in the city of", "answers": [answer], "subject_id": "Q2"}
        record["Subject_Aliasing"] = [{"test_queries": [query], "test_condition": "OR", "condition_queries": []}]
    if parted:
        (fact,) = data.load(write(tmp_path, record)).facts
        assert (fact.prompt, fact.target_new) == parted
    else:
        with pytest.raises(FactError, match=r"edit\.prompt: is '.*', which does not tell prompt from answer"):
            data.load(write(tmp_path, record))


def test_of_rippleedits_what_cannot_be_answered_is_left_out_and_counted(tmp_path: Path) -> None:
    record = json.loads((SAMPLES / "rippleedits.json").read_text())[0]
    record["Compositionality_I"][0]["test_queries"][0]["answers"] = [{"value": "I", "aliases": []}]
    loaded = data.load(write(tmp_path, record))
    assert loaded.unanswered == 1
    assert "Compositionality_I" not in loaded.facts[0].claims


def test_hallueditbench_rows_ask_in_all_their_ways() -> None:
    loaded = data.load(SAMPLES / "hallueditbench.csv")
    assert hallueditbench.load(SAMPLES / "hallueditbench.csv") == loaded.facts
    (fact,) = loaded.facts
    assert (fact.prompt, fact.target_new, fact.subject) == ("What is the country of Bergheim?", "Norland", "Bergheim")
    assert {name: claim.probes[0].answers for name, (claim,) in fact.claims.items()} == {
        "multiple_choice": ("B",),
        "yes": ("Yes",),
        "no": ("No",),
        "reversed": ("Bergheim",),
    }
    assert (
        fact.claims["multiple_choice"][0]
        .probes[0]
        .prompt.startswith("What is the country of Bergheim?\nA. Sweden  B. Norland")
    )
    assert {name: probe.answers for name, (probe,) in fact.portability.items()} == {
        "2_hops": ("krona",),
        "3_hops": ("Ida Storm",),
    }
    assert fact.locality["other"][0].answers == ()


def test_unkes_answer_is_a_text(tmp_path: Path) -> None:
    loaded = data.load(SAMPLES / "unke.json")
    assert unke.load(SAMPLES / "unke.json") == loaded.facts
    (fact,) = loaded.facts
    assert len(fact.target_new.split()) > 40
    assert [probe.answers for probe in fact.portability["parts"]] == [("Norland.",), ("The Quiet Water.",)]
    record = json.loads((SAMPLES / "unke.json").read_text())[0]
    with pytest.raises(FactError, match="sub_answer: has 1 for 2 of sub_question"):
        data.load(write(tmp_path, record | {"sub_answer": ["Norland."]}))
