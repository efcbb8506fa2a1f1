"""Facts, and a user's own list of them: what is understood, and what every fault is called.

Planted faults these tests catch: text stripped or coerced in silence; aliases lost, reordered or doubled; an answer
filled in like a prompt; an unanswered probe scored, or a probe lost whose answer was forgotten; only the first fault
told; a wrong line or field named; later records lost or renumbered after a bad one; the format taken from the suffix.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from loredit import data
from loredit.data import Claim, Fact, FactError, Probe, from_request

CAPITAL = {"prompt": "The capital of France is", "target_new": "Rome"}


def write(folder: Path, content: str | bytes, name: str = "facts.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(path: Path | str, **options: Any) -> str:
    """What loading ``path`` complains of."""
    with pytest.raises(FactError) as error:
        data.load(path, **options)
    return str(error.value)


# Fact and Probe


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
@pytest.mark.parametrize("field", ["case_id", "prompt", "target_new", "subject"])
def test_blank_text_is_refused(field: str, blank: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Fact(**{"case_id": "0", **CAPITAL, field: blank})


def test_text_is_kept_as_written() -> None:
    fact = Fact(case_id="0", prompt="a ", target_new=" b")
    assert (fact.prompt, fact.target_new) == ("a ", " b")


RIGHT, OPEN = Probe(prompt="q", answers=("a",)), Probe(prompt="p", answers=())


@pytest.mark.parametrize(
    "asked",
    [
        {"portability": {"g": (OPEN,)}},
        {"claims": {"g": (Claim.any([RIGHT, OPEN]),)}},
        {"claims": {"g": (Claim(ways=((RIGHT,),), given=(OPEN,)),)}},
    ],
)
def test_a_probe_has_an_answer_but_where_only_a_change_is_looked_for(asked: dict) -> None:
    with pytest.raises(ValidationError, match="the probe 'p' has no answer"):
        Fact(**CAPITAL, **asked)
    assert Fact(**CAPITAL, locality={"g": (OPEN,)}).locality["g"] == (OPEN,)


def test_a_claim_has_probes_in_each_of_its_ways() -> None:
    for ways in ((), ((),)):
        with pytest.raises(ValidationError):
            Claim(ways=ways)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        Probe(prompt="p", answers=("a",), answer="b")  # type: ignore[call-arg]


# from_request


def test_an_easyedit_request_becomes_a_fact() -> None:
    request = {
        **CAPITAL,
        "subject": "France",
        "ground_truth": "Paris",
        "rephrase_prompt": "France's capital is",
        "chat_prompt": "What's the capital of France?",
        "target_neg": "Paris",
        "locality": {"neighborhood": {"prompt": ["p1", "p2"], "ground_truth": ["a1", ["a2", "b2"]]}},
        "portability": {"one_hop": {"prompt": "p3", "ground_truth": ["a3", "b3"]}},
    }
    assert from_request(request, case_id="7") == Fact(
        case_id="7",
        **CAPITAL,
        subject="France",
        ground_truth=("Paris",),
        rephrase_prompts=("France's capital is",),
        chat_prompts=("What's the capital of France?",),
        locality={"neighborhood": (Probe(prompt="p1", answers=("a1",)), Probe(prompt="p2", answers=("a2", "b2")))},
        portability={"one_hop": (Probe(prompt="p3", answers=("a3", "b3")),)},
    )


def test_groups_may_be_columns_lists_of_probes_or_flat_fields() -> None:
    columns = {"neighborhood": {"prompt": ["p", "q"], "ground_truth": ["a", "b"]}}
    rows = {"neighborhood": [{"prompt": "p", "ground_truth": "a"}, {"prompt": "q", "ground_truth": "b"}]}
    by_columns, by_rows = (from_request({**CAPITAL, "locality": groups}) for groups in (columns, rows))
    flat = from_request({**CAPITAL, "locality_prompt": ["p", "q"], "locality_ground_truth": ["a", "b"]})
    assert by_columns == by_rows == flat
    assert [probe.answers for probe in flat.locality["neighborhood"]] == [("a",), ("b",)]


def test_flat_fields_join_the_nested_groups() -> None:
    fact = from_request(
        {
            **CAPITAL,
            "portability": {"Reasoning": [{"prompt": "p", "ground_truth": "a"}]},
            "portability_prompt": "q",
            "portability_ground_truth": "b",
        }
    )
    assert {kind: probes[0].prompt for kind, probes in fact.portability.items()} == {"Reasoning": "p", "one_hop": "q"}


def test_nested_aliases_are_flattened_in_order_without_repeats_or_blanks() -> None:
    nested = [["Berlin", "DE-BE"], [], [["Berlin"], "", None], "Bärlin"]
    fact = from_request(
        {**CAPITAL, "ground_truth": nested, "locality": {"g": [{"prompt": "p", "ground_truth": nested}]}}
    )
    assert fact.ground_truth == fact.locality["g"][0].answers == ("Berlin", "DE-BE", "Bärlin")


def test_easyedits_stand_in_for_no_ground_truth_is_none() -> None:
    assert from_request({**CAPITAL, "ground_truth": "<|endoftext|>"}).ground_truth == ()
    assert from_request({**CAPITAL, "ground_truth": None, "subject": None}) == from_request(CAPITAL)


def test_the_subject_fills_templates_in_prompts_and_nowhere_else() -> None:
    fact = from_request(
        {
            "prompt": "The capital of {} is",
            "target_new": "{}",
            "subject": "France",
            "rephrase_prompt": ["{}'s capital is", "Who rules {x}?"],
            "chat_prompt": ["What's {}'s capital?", ["Where is {}'s seat of government?", ""]],
            "locality": {"g": [{"prompt": "{} speaks", "ground_truth": "{}"}]},
        }
    )
    assert fact.prompt == "The capital of France is"
    assert fact.target_new == "{}"
    assert fact.rephrase_prompts == ("France's capital is", "Who rules {x}?")
    assert fact.chat_prompts == ("What's France's capital?", "Where is France's seat of government?")
    assert fact.locality["g"] == (Probe(prompt="France speaks", answers=("{}",)),)


def test_a_template_without_a_subject_is_a_fault() -> None:
    with pytest.raises(FactError, match="subject: is missing, and the prompt has"):
        from_request({"prompt": "The capital of {} is", "target_new": "Rome"})
    with pytest.raises(FactError, match="subject: is missing, and the chat_prompt has"):
        from_request({**CAPITAL, "chat_prompt": ["What's the capital of France?", "And of {}?"]})


@pytest.mark.parametrize("empty", [None, "", " ", [], [[]], [""], [["", None]]])
def test_a_probe_with_an_empty_answer_is_left_out_with_its_empty_group(empty: object) -> None:
    gone, kept = {"prompt": "p", "ground_truth": empty}, {"prompt": "q", "ground_truth": "a"}
    fact = from_request({**CAPITAL, "locality": {"g": [gone], "h": [gone, kept]}, "portability": {"g": [gone]}})
    assert fact.locality == {"h": (Probe(prompt="q", answers=("a",)),)}
    assert fact.portability == {}


def test_a_fact_without_a_case_id_is_called_by_what_it_says() -> None:
    fact = from_request(CAPITAL)
    assert fact.case_id.startswith("fact-")
    assert fact == Fact(**CAPITAL) == Fact(**CAPITAL, case_id=None)
    others = [Fact(**CAPITAL, subject="France"), Fact(**CAPITAL | {"target_new": "Paris"})]
    assert len({fact.case_id, *(other.case_id for other in others)}) == 3
    # What else is asked about it gives it no other name.
    assert Fact(**CAPITAL, rephrase_prompts=("France's capital is",)).case_id == fact.case_id


def test_facts_that_were_made_in_python_are_a_source_of_their_own() -> None:
    facts = [Fact(**CAPITAL), Fact(**CAPITAL | {"prompt": "Sky:"})]
    loaded = data.LoadedFacts.of(facts)
    assert (loaded.source, loaded.facts, loaded.bad, loaded.unanswered) == ("facts", facts, [], 0)
    assert loaded.identity == data.LoadedFacts.of(tuple(facts)).identity != data.LoadedFacts.of(facts[:1]).identity
    with pytest.raises(FactError, match=f"these stand twice: {facts[0].case_id}"):
        data.LoadedFacts.of([*facts, facts[0]])


@pytest.mark.parametrize(("own", "expected"), [({"case_id": 3}, "3"), ({"case_id": "x"}, "x"), ({}, "9")])
def test_a_case_id_is_the_requests_own_where_it_has_one(own: dict[str, Any], expected: str) -> None:
    assert from_request({**CAPITAL, **own}, case_id="9").case_id == expected


@pytest.mark.parametrize(
    ("request_", "faults"),
    [
        ({}, ["prompt: is missing", "target_new: is missing"]),
        ({"prompt": "", "target_new": " "}, ["prompt: is empty", "target_new: is blank"]),
        ({"prompt": "p", "target_new": 1945}, ["target_new: is 1945, expected text"]),
        ({"prompt": "p", "target_new": ["a"]}, ["target_new: is ['a'], expected text"]),
        ({**CAPITAL, "case_id": 1.5}, ["case_id: is 1.5, expected text"]),
        ({**CAPITAL, "ground_truth": ["a", 4]}, ["ground_truth[1]: is 4"]),
        ({**CAPITAL, "rephrase_prompt": [{}]}, ["rephrase_prompt[0]: is {}"]),
        ({**CAPITAL, "chat_prompt": ["q", {}]}, ["chat_prompt[1]: is {}, expected text"]),
        ({**CAPITAL, "chat_prompt": 7}, ["chat_prompt[0]: is 7, expected text"]),
        ({**CAPITAL, "locality": [{"prompt": "p", "ground_truth": "a"}]}, ["locality: is [", "expected groups"]),
        ({**CAPITAL, "locality": {"g": ["p"]}}, ["locality.g[0]: is 'p', expected a probe"]),
        ({**CAPITAL, "locality": {"g": [{"prompt": "p"}]}}, ["locality.g[0].ground_truth: is missing"]),
        ({**CAPITAL, "locality": {"g": [{"ground_truth": "a"}]}}, ["locality.g[0].prompt: is missing"]),
        (
            {**CAPITAL, "locality": {"g": {"prompt": ["p", "q"], "ground_truth": ["a"]}}},
            ["g[1].ground_truth: is missing"],
        ),
        (
            {**CAPITAL, "portability": {"g": [{"prompt": "p", "ground_truth": [7]}]}},
            ["portability.g[0].ground_truth[0]: is 7"],
        ),
        ({**CAPITAL, "locality_prompt": "p"}, ["locality_ground_truth: is missing"]),
        ({**CAPITAL, "portability_ground_truth": "a"}, ["portability_prompt: is missing"]),
    ],
)
def test_every_fault_of_a_request_is_told_by_field(request_: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(FactError) as error:
        from_request(request_)
    assert all(fault in str(error.value) for fault in faults), error.value
    assert len(error.value.bad) == sum(": " in fault for fault in faults)


# lists of facts

ROWS = [
    {
        **CAPITAL,
        "subject": "France",
        "ground_truth": "Paris",
        "rephrase_prompt": "France, whose capital is",
        "chat_prompt": 'So, what\'s the "capital" of {}?',
        "locality_prompt": "Spain's capital is",
        "locality_ground_truth": "Madrid",
    },
    {
        "prompt": 'The "Moon", orbits',
        "target_new": "Mars, of course",
        "portability_prompt": "p",
        "portability_ground_truth": "a",
    },
    {"prompt": "Ice is", "target_new": "hot"},
]


def as_csv(separator: str = ",") -> str:
    columns = list(dict.fromkeys(column for row in ROWS for column in row))
    quoted = [[row.get(column, "").replace('"', '""') for column in columns] for row in ROWS]
    return "\n".join(
        [separator.join(columns)] + [separator.join(f'"{cell}"' if cell else "" for cell in row) for row in quoted]
    )


FORMS = {
    "json": json.dumps(ROWS, indent=2),
    "one-line json": json.dumps(ROWS),
    "jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "csv": as_csv(),
    "csv of windows": "\ufeff" + as_csv(";").replace("\n", "\r\n"),
    "tsv": as_csv("\t"),
    "spaced csv": "\n" + as_csv(", "),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["facts.txt", "-"])
def test_json_jsonl_and_csv_say_the_same(
    form: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = FORMS[form].encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    loaded = data.load("-" if source == "-" else write(tmp_path, content, source))
    assert loaded.facts == [from_request(row, case_id=str(number)) for number, row in enumerate(ROWS)]
    assert loaded.identity == hashlib.sha256(content).hexdigest()
    assert (loaded.bad, loaded.unanswered) == ([], 0)


def test_the_suffix_decides_where_the_first_character_misleads(tmp_path: Path) -> None:
    [fact] = data.load(write(tmp_path, "[prompt],prompt,target_new\nx,a,b", "facts.csv")).facts
    assert fact.prompt == "a"
    assert "not JSON" in told(write(tmp_path, "prompt,target_new\na,b", "facts.json"))
    assert "line 1, record 0: not JSON" in told(write(tmp_path, '{"prompt"\n' + json.dumps(CAPITAL), "facts.jsonl"))


def test_one_request_alone_is_a_list_of_one(tmp_path: Path) -> None:
    assert [data.load(write(tmp_path, json.dumps(CAPITAL, indent=indent))).facts for indent in (None, 2)] == [
        [from_request(CAPITAL, case_id="0")]
    ] * 2


def test_unanswered_probes_are_counted(tmp_path: Path) -> None:
    groups = {"g": [{"prompt": "p", "ground_truth": []}, {"prompt": "q", "ground_truth": "a"}]}
    path = write(tmp_path, json.dumps([{**CAPITAL, "locality": groups, "portability": groups}, CAPITAL]))
    assert data.load(path).unanswered == 2


BAD = [
    CAPITAL,
    {"prompt": "", "target_new": 3},
    "not an object",
    {"target_new": "x", "locality": {"g": [{"prompt": "p"}]}},
    CAPITAL,
]


def test_all_faults_of_all_records_are_told_at_once_with_line_record_and_field(tmp_path: Path) -> None:
    path = write(tmp_path, "\n\n[\n" + ",\n\n".join(map(json.dumps, BAD)) + "\n]")
    message = told(path)
    for line, record, fault in [
        (6, 1, "prompt: is empty"),
        (6, 1, "target_new: is 3"),
        (8, 2, "expected an object with fields, found 'not an object'"),
        (10, 3, "prompt: is missing"),
        (10, 3, "locality.g[0].ground_truth: is missing"),
    ]:
        assert f"{path}, line {line}, record {record}: {fault}" in message
    assert "5 faults" in message
    assert "--skip-bad or skip_bad=True leaves these records out" in message  # as a command, as a call


def test_skip_bad_keeps_the_others_with_their_numbers_and_lists_the_bad(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path, json.dumps(BAD)), skip_bad=True)
    assert [fact.case_id for fact in loaded.facts] == ["0", "4"]
    assert [(fault.where.rpartition(" ")[2], fault.field) for fault in loaded.bad] == [
        ("1", "prompt"),
        ("1", "target_new"),
        ("2", ""),
        ("3", "prompt"),
        ("3", "locality.g[0].ground_truth"),
    ]


def test_a_list_without_one_good_fact_is_refused_even_with_skip_bad(tmp_path: Path) -> None:
    message = told(write(tmp_path, json.dumps([{"prompt": "p", "target_new": ""}])), skip_bad=True)
    assert "no facts" in message
    assert "target_new: is empty" in message


@pytest.mark.parametrize("content", ["", "\n", "[]", "prompt,target_new\n"])
def test_an_empty_list_is_refused(content: str, tmp_path: Path) -> None:
    assert "holds no facts" in told(write(tmp_path, content, "facts.txt"))


def test_case_ids_must_differ(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join(json.dumps({**CAPITAL, "case_id": case}) for case in (5, "5", "a", None)))
    message = told(path)
    assert f"line 2, record 1: case_id: '5' is taken by {path}, line 1, record 0" in message
    assert [fact.case_id for fact in data.load(path, skip_bad=True).facts] == ["5", "a", "3"]


def test_csv_faults_name_the_line_where_the_row_begins(tmp_path: Path) -> None:
    rows = ["prompt,target_new", '"two\nlines",x', "", '"a\nb",c,d', "only a prompt", "d,e"]
    path = write(tmp_path, "\n".join(rows), "facts.csv")
    message = told(path)
    assert "line 5, record 1: 3 cells for 2 columns" in message
    assert "line 7, record 2: target_new: is missing" in message
    assert [fact.prompt for fact in data.load(path, skip_bad=True).facts] == ["two\nlines", "d"]


def test_csv_that_cannot_be_read_names_the_reason(tmp_path: Path) -> None:
    assert "a column occurs twice" in told(write(tmp_path, "prompt,prompt,target_new\na,b,c", "facts.csv"))
    assert "line 2: not CSV" in told(write(tmp_path, 'prompt,target_new\na,"b', "facts.csv"))


def test_a_broken_jsonl_line_costs_that_line_only(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join([json.dumps(CAPITAL), '{"prompt": "p",}', json.dumps(CAPITAL)]), "facts.jsonl")
    assert "line 2, record 1: not JSON, column" in told(path)
    assert [fact.case_id for fact in data.load(path, skip_bad=True).facts] == ["0", "2"]


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    assert "line 3, column 1: not JSON" in told(write(tmp_path, '[\n{"prompt": "p",\n}]'))


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8" in told(write(tmp_path, json.dumps([CAPITAL]).encode("utf-16")))


def test_a_misspelt_field_is_not_lost_unseen(tmp_path: Path) -> None:
    row = {**CAPITAL, "rephrase_promt": "x", "chat_promts": "x", "target_neg": "y", "note": "z"}
    message = told(write(tmp_path, json.dumps([row])))
    assert "rephrase_promt: is unknown; did you mean 'rephrase_prompt'?" in message
    assert "chat_promts: is unknown; did you mean 'chat_prompt'?" in message
    assert "2 faults" in message


def test_another_format_is_told_by_its_fields(tmp_path: Path) -> None:
    message = told(write(tmp_path, json.dumps([{"question": "q", "answer": "a"}])))
    assert "question, answer" in message
    assert "prompt + target_new" in message


def test_a_missing_file_tells_of_the_nearest_and_a_folder_of_its_files(tmp_path: Path) -> None:
    write(tmp_path, "", "my-facts.json")
    assert "did you mean my-facts.json?" in told(tmp_path / "my-fact.json")
    assert "holds my-facts.json" in told(tmp_path / "zzz")
    assert "holds nothing" in told(tmp_path / "no such folder" / "facts.json")
    assert "is a folder; name one of its files: my-facts.json" in told(tmp_path)
