"""The sample facts: whole, varied, and free of contradictions among themselves.

Planted faults these tests catch: a fact with a probe too few; a copied prompt; an edit that changes nothing; a locality
probe that another fact of the set edits, so that editing all of them in one update could not get both right; a
neighbour whose true answer is the new one, so that it is right however much the edit leaks; neighbours asked in words
other than the fact's own, where nothing can leak.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources

import pytest

from loredit import data
from loredit.data import Fact

FACTS = data.load("samples").facts


def prompts(fact: Fact, kind: str) -> list[str]:
    return [probe.prompt for probes in getattr(fact, kind).values() for probe in probes]


def everything_asked(fact: Fact) -> list[str]:
    own = [fact.prompt, *fact.rephrase_prompts, *fact.chat_prompts]
    return [*own, *prompts(fact, "locality"), *prompts(fact, "portability")]


def test_the_samples_are_the_default_and_read_from_the_package() -> None:
    content = resources.files("loredit.data").joinpath("samples/facts.json").read_bytes()
    assert data.load() == data.load("samples")
    assert len(data.load().facts) == len(json.loads(content)) >= 210


def test_the_samples_show_knowedits_form() -> None:
    records = json.loads(resources.files("loredit.data").joinpath("samples/facts.json").read_text(encoding="utf-8"))
    keys = ["case_id", "subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "chat_prompt"]
    assert all(list(record) == [*keys, "locality", "portability"] for record in records)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.case_id)
def test_a_sample_is_whole(fact: Fact) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", fact.case_id)
    assert fact.subject is not None
    assert fact.subject in fact.prompt
    assert fact.ground_truth
    assert fact.target_new not in fact.ground_truth
    assert {kind: len(probes) for kind, probes in fact.locality.items()} == {
        "Relation_Specificity": 2,
        "Neighborhood": len(fact.locality["Neighborhood"]),
    }
    assert 3 <= len(fact.locality["Neighborhood"]) <= 4
    assert all(fact.subject in probe.prompt for probe in fact.locality["Relation_Specificity"])
    assert all(fact.subject not in probe.prompt for probe in fact.locality["Neighborhood"])
    assert set(fact.portability) <= {"Reasoning", "Subject_Aliasing", "Logical_Generalization"}
    assert {"Reasoning", "Logical_Generalization"} & set(fact.portability)
    assert len(prompts(fact, "portability")) == 2
    probes = [probe for kind in (fact.locality, fact.portability) for group in kind.values() for probe in group]
    answers = [fact.target_new, *fact.ground_truth, *(answer for probe in probes for answer in probe.answers)]
    assert all(1 <= len(answer.split()) <= 3 for answer in answers)
    assert all(text == text.strip() and "{}" not in text for text in (*everything_asked(fact), *answers))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.case_id)
def test_a_sample_is_asked_in_statements_questions_and_a_chat(fact: Fact) -> None:
    assert fact.subject is not None
    first, second, led, plain = fact.rephrase_prompts
    [chat] = fact.chat_prompts
    assert all("?" not in text and fact.subject in text for text in (first, second))
    assert "?" in led
    assert not led.endswith("?")
    assert plain.endswith("?")
    assert chat.endswith("?")
    assert fact.subject in chat


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.case_id)
def test_neighbours_are_asked_in_the_facts_own_words_and_answered_otherwise(fact: Fact) -> None:
    assert fact.subject is not None
    before, after = fact.prompt.split(fact.subject, 1)
    neighbours = fact.locality["Neighborhood"]
    assert sum(probe.prompt.startswith(before) and probe.prompt.endswith(after) for probe in neighbours) >= 2
    answers = [answer.casefold() for probe in neighbours for answer in probe.answers]
    assert fact.target_new.casefold() not in answers


def test_nothing_is_asked_twice() -> None:
    asked = Counter(prompt.casefold() for fact in FACTS for prompt in everything_asked(fact))
    assert [prompt for prompt, times in asked.items() if times > 1] == []
    assert [subject for subject, times in Counter(fact.subject for fact in FACTS).items() if times > 1] == []


def test_some_samples_are_questions_and_most_are_statements() -> None:
    questions = sum(fact.prompt.endswith("?") for fact in FACTS)
    assert 5 <= questions <= len(FACTS) / 3


def test_the_samples_are_of_many_kinds() -> None:
    # cut off at the subject, prompts that say one relation are one
    relations = Counter(fact.prompt.replace(str(fact.subject), "") for fact in FACTS)
    assert len(relations) >= 90
    assert max(relations.values()) <= len(FACTS) / 15


def test_all_probes_are_text_that_reads_on() -> None:
    for fact in FACTS:
        assert all("  " not in prompt for kind in ("locality", "portability") for prompt in prompts(fact, kind))
