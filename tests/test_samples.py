"""The sample facts: whole, varied, and free of contradictions among themselves.

Planted faults these tests catch: a fact with a probe too few; a copied prompt; an edit that changes nothing; a locality
probe that another fact of the set edits, so that editing all of them in one update could not get both right.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest

from loredit import data
from loredit.data import Fact

FACTS = data.load("samples").facts


def prompts(fact: Fact, kind: str) -> list[str]:
    return [probe.prompt for probes in getattr(fact, kind).values() for probe in probes]


def test_the_samples_are_the_default_and_read_from_the_package() -> None:
    content = resources.files("loredit.data").joinpath("samples/facts.json").read_bytes()
    assert data.load() == data.load("samples")
    assert len(data.load().facts) == len(json.loads(content)) >= 64


def test_the_samples_show_knowedits_form() -> None:
    records = json.loads(resources.files("loredit.data").joinpath("samples/facts.json").read_text(encoding="utf-8"))
    keys = ["subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "locality", "portability"]
    assert all(list(record) == keys for record in records)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_a_sample_is_whole(fact: Fact) -> None:
    assert fact.subject is not None
    assert fact.subject in fact.prompt
    assert fact.ground_truth
    assert fact.target_new not in fact.ground_truth
    assert len(fact.rephrase_prompts) == 2
    assert {kind: len(probes) for kind, probes in fact.locality.items()} == {
        "Relation_Specificity": 2,
        "Neighborhood": 2,
    }
    assert all(fact.subject in probe.prompt for probe in fact.locality["Relation_Specificity"])
    assert all(fact.subject not in probe.prompt for probe in fact.locality["Neighborhood"])
    assert set(fact.portability) <= {"Reasoning", "Subject_Aliasing", "Logical_Generalization"}
    assert len(prompts(fact, "portability")) == 2
    probes = [probe for kind in (fact.locality, fact.portability) for group in kind.values() for probe in group]
    answers = [fact.target_new, *fact.ground_truth, *(answer for probe in probes for answer in probe.answers)]
    assert all(1 <= len(answer.split()) <= 3 for answer in answers)
    asked = [fact.prompt, *fact.rephrase_prompts, *(probe.prompt for probe in probes)]
    assert all(text == text.strip() for text in (*asked, *answers))


def test_nothing_is_asked_twice() -> None:
    asked = Counter(
        prompt
        for fact in FACTS
        for prompt in (fact.prompt, *fact.rephrase_prompts, *prompts(fact, "locality"), *prompts(fact, "portability"))
    )
    assert [prompt for prompt, times in asked.items() if times > 1] == []
    assert [subject for subject, times in Counter(fact.subject for fact in FACTS).items() if times > 1] == []


def test_some_samples_are_questions_and_most_are_statements() -> None:
    questions = sum(fact.prompt.endswith("?") for fact in FACTS)
    assert 5 <= questions <= len(FACTS) / 3


def test_all_probes_are_text_that_reads_on() -> None:
    for fact in FACTS:
        assert all("  " not in prompt for kind in ("locality", "portability") for prompt in prompts(fact, kind))
