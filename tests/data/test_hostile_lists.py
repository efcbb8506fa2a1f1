"""Fact lists of strangers: nothing in them is lost unsaid, and nothing in them brings the reader down."""

from __future__ import annotations

import json
import time

import pytest

from loredit import data
from loredit.data import FactError

GOOD = {"prompt": "The capital of France is", "target_new": "Rome", "subject": "France"}


def load(tmp_path, content, name="facts.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return data.load(path)


def refused(tmp_path, content, name="facts.json") -> str:
    with pytest.raises(FactError) as caught:
        load(tmp_path, content, name)
    return str(caught.value)


def test_flat_probes_stand_beside_nested_ones_of_the_same_group(tmp_path):
    probe = {"prompt": "The capital of Spain is", "ground_truth": "Madrid"}
    flat = {"locality_prompt": "The capital of Greece is", "locality_ground_truth": "Athens"}
    (fact,) = load(tmp_path, [GOOD | flat | {"locality": {"neighborhood": [probe]}}]).facts
    assert [p.prompt for p in fact.locality["neighborhood"]] == ["The capital of Spain is", "The capital of Greece is"]
    flat = {"portability_prompt": "Paris has lost to", "portability_ground_truth": "Rome"}
    nested = {"portability": {"one_hop": {"prompt": ["a", "b"], "ground_truth": ["c", "d"]}}}
    (fact,) = load(tmp_path, [GOOD | flat | nested]).facts
    assert len(fact.portability["one_hop"]) == 3


@pytest.mark.parametrize("value", ["a question", ["a", "b"]])
def test_an_object_that_is_none_does_not_lose_its_parts(value, tmp_path):
    record = {"src": "Who wrote it?", "alt": "Ada", "subject": "it", "portability": value}
    assert "portability: is" in refused(tmp_path, [record])
    assert "expected an object with 'New Question'" in refused(tmp_path, [record])


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
def test_a_field_that_occurs_twice_is_told(name, tmp_path):
    row = '{"prompt": "P", "target_new": "A", "target_new": "B"}'
    assert "a field occurs twice in one record: target_new" in refused(
        tmp_path, row if name.endswith("l") else f"[{row}]", name
    )


def test_a_misspelt_field_is_told_though_other_records_spell_it_right(tmp_path):
    wrong = {"prompt": "P", "target_new": "A", "rephrase_promt": "p"}
    text = refused(tmp_path, [GOOD | {"rephrase_prompt": "q"}, wrong])
    assert "record 1: rephrase_promt: is unknown; did you mean 'rephrase_prompt'?" in text


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("rephrase_prompt", {"rephrase_prompt": "{}'s capital is"}),
        ("locality", {"locality": {"g": [{"prompt": "{} lies in", "ground_truth": "Europe"}]}}),
        ("portability", {"portability_prompt": "{} again", "portability_ground_truth": "x"}),
    ],
)
def test_a_place_for_a_subject_that_is_not_given_is_told_wherever_it_is(field, more, tmp_path):
    record = {"prompt": "The capital is", "target_new": "Rome"} | more
    assert f"subject: is missing, and the {field} has {{}} for it" in refused(tmp_path, [record])


@pytest.mark.parametrize(
    "more",
    [
        {"target_new": "\ud800"},
        {"locality": {"\udfff": [{"prompt": "p", "ground_truth": "a"}]}},
        {"locality": {"g": [{"prompt": "p \ud800", "ground_truth": "a"}]}},
    ],
)
def test_half_a_character_is_refused_where_it_stands(more, tmp_path):
    assert "holds half of a character" in refused(tmp_path, [GOOD | more])


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '[{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}]", '[{"prompt": ' + "9" * 5000 + "}]", "[NaN]"],
)
def test_what_no_reader_should_choke_on_is_one_error(content, tmp_path):
    refused(tmp_path, content)


def test_deeply_nested_aliases_are_flattened(tmp_path):
    deep = '"Paris"'
    for _ in range(900):
        deep = f"[{deep}]"
    text = json.dumps(GOOD)[:-1] + f', "ground_truth": {deep}}}'
    (fact,) = load(tmp_path, f"[{text}]").facts
    assert fact.ground_truth == ("Paris",)


def test_a_long_value_is_cut_in_the_message(tmp_path):
    assert len(refused(tmp_path, [GOOD | {"target_new": {"x": "y" * 1_000_000}}])) < 1000


def test_many_aliases_take_time_in_proportion(tmp_path):
    begun = time.perf_counter()
    (fact,) = load(tmp_path, [GOOD | {"ground_truth": [f"alias {i}" for i in range(50_000)]}]).facts
    assert len(fact.ground_truth) == 50_000
    assert time.perf_counter() - begun < 10


def test_a_text_that_no_context_holds_is_told_before_it_is_encoded(tmp_path):
    assert "target_new: has more than 1,000,000 characters" in refused(
        tmp_path, [GOOD | {"target_new": "x" * 1_000_001}]
    )


def test_lines_of_which_the_first_is_a_list_are_lines(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(f"[]\n{json.dumps(GOOD)}\n")
    loaded = data.load(path, skip_bad=True)
    assert [fact.target_new for fact in loaded.facts] == ["Rome"]
    assert len(loaded.bad) == 1
    assert len(load(tmp_path, [GOOD], "facts.jsonl").facts) == 1
