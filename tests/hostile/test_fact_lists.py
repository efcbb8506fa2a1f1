"""Fact lists of strangers, in every format."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hostility import JUNK, TEXT, changed, damaged, examples, rule
from hypothesis import given
from hypothesis import strategies as st

from loredit import data
from loredit.data import Fact

PROBES = [{"prompt": "The capital of Spain is", "ground_truth": ["Madrid", ["City of Madrid"]]}]
LIST = {
    "case_id": "france",
    "prompt": "The capital of {} is",
    "target_new": "Rome",
    "subject": "France",
    "ground_truth": ["Paris"],
    "rephrase_prompt": ["{}'s capital:"],
    "chat_prompt": "What is the capital of {}?",
    "locality": {"neighborhood": PROBES},
    "portability": {"one_hop": {"prompt": ["{} is led from"], "ground_truth": ["Rome"]}},
}
ZSRE = {
    "src": "Who wrote it?",
    "alt": "Ada",
    "subject": "it",
    "rephrase": "Whose is it?",
    "loc": "nq question: who?",
    "loc_ans": "nobody",
    "portability": {"New Question": "Where did it begin?", "New Answer": "there"},
}
COUNTERFACT = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} lies in",
        "subject": "Paris",
        "target_new": {"str": "Italy"},
        "target_true": {"str": "France"},
    },
    "paraphrase_prompts": ["Where is {}? In"],
    "neighborhood_prompts": ["Lyon lies in"],
}
RECENT = {"prompt": "P", "target_new": [["A", "B"]], "rephrase": "R", "subject": "S", "locality": {"g": PROBES}}
BIO = {"text": "Ada was", "labels": "a countess", "concept": "Ada"}
MQUAKE = {
    "case_id": 4,
    "requested_rewrite": [
        {
            "prompt": "{} lies in",
            "subject": subject,
            "question": "Where is it?",
            "target_new": {"str": "Italy"},
            "target_true": {"str": "France"},
        }
        for subject in ("Paris", "Lyon")
    ],
    "questions": ["What is the capital of its country?", "Who rules it?"],
    "new_answer": "Rome",
    "new_answer_alias": ["Roma"],
    "new_single_hops": [{"cloze": "Paris lies in", "answer": "Italy", "answer_alias": ["Italia"]}],
}
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
RIPPLE, UNKE = (json.loads((SAMPLES / f"{name}.json").read_text())[0] for name in ("rippleedits", "unke"))
(HALLU,) = csv.DictReader((SAMPLES / "hallueditbench.csv").read_text().splitlines())
FORMS = (LIST, ZSRE, COUNTERFACT, RECENT, BIO, MQUAKE, RIPPLE, {k: v for k, v in HALLU.items() if v}, UNKE)


def load(content: bytes, name: str, **options: Any) -> data.LoadedFacts:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return data.load(path, **options)


def written(records: list[Any], name: str) -> bytes:
    """Records as a file of this suffix; of a CSV what a cell can hold."""
    if name.endswith(".jsonl"):
        return "\n".join(map(json.dumps, records)).encode()
    if name.endswith(".json"):
        return json.dumps(records).encode()
    rows = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in records if type(r) is dict]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)) or ["prompt"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "replace")


NAMES = st.sampled_from(["facts.json", "facts.jsonl", "facts.csv"])


@examples(500)
@given(drawn=st.data(), form=st.sampled_from(FORMS), name=NAMES, skip_bad=st.booleans())
def test_changed_records_make_facts_or_one_error(drawn, form, name, skip_bad):
    records = drawn.draw(st.lists(st.one_of(st.just(form), changed(form), JUNK), min_size=1, max_size=4))
    with rule(name):
        for fact in load(written(records, name), name, skip_bad=skip_bad).facts:
            assert Fact.model_validate_json(fact.model_dump_json()) == fact


@examples(400)
@given(drawn=st.data(), form=st.sampled_from(FORMS), name=NAMES, skip_bad=st.booleans())
def test_damaged_files_make_facts_or_one_error(drawn, form, name, skip_bad):
    content = drawn.draw(damaged(written([form, form | {"case_id": "b"}], name)))
    with rule(name):
        load(content, name, skip_bad=skip_bad)


@examples(300)
@given(drawn=st.data(), name=st.sampled_from(["facts.json", "facts.jsonl"]))
def test_no_good_fact_is_lost_among_bad_ones(drawn, name):
    bad = drawn.draw(st.lists(st.one_of(changed(LIST), JUNK), max_size=4))
    other = {"case_id", "src", "requested_rewrite", "rephrase"}  # of ids that may be taken, and of other formats
    bad = [record for record in bad if not isinstance(record, dict) or other.isdisjoint(record)]
    good = [
        {"case_id": f"good {i}", "prompt": f"Prompt {i} of {{}}", "subject": "it", "target_new": text}
        for i, text in enumerate(drawn.draw(st.lists(TEXT.filter(str.strip), min_size=1, max_size=3)))
    ]
    records = drawn.draw(st.permutations([*good, *bad]))
    loaded = load(written(records, name), name, skip_bad=True)
    found = {fact.case_id: (fact.prompt, fact.target_new) for fact in loaded.facts}
    for record in good:
        assert found[record["case_id"]] == (record["prompt"].replace("{}", "it"), record["target_new"])


@examples(150)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["facts.json", "facts.jsonl", "facts.csv", "facts.tsv", "facts"]),
)
def test_any_bytes_make_facts_or_one_error(content, name):
    with rule(name):
        load(content, name)


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts.csv"])
def test_what_is_not_changed_is_read(name):
    flat = {key: value for key, value in LIST.items() if isinstance(value, str)}
    record = flat if name == "facts.csv" else LIST
    assert len(load(written([record, record | {"case_id": "b"}], name), name).facts) == 2
