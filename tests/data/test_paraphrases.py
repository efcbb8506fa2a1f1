"""Other wordings of a fact's prompt.

Planted faults these tests catch: a year where a place is asked for; the fact's own prompt among the others; a subject
that is missing or named twice; what is said by a rare word taken for what a common one says.
"""

from __future__ import annotations

import re

import pytest

from loredit.data import paraphrases as module
from loredit.data.paraphrases import paraphrases

TEXTS = [text for relation in module._RELATIONS for text in relation.texts]


@pytest.mark.parametrize("text", TEXTS)
def test_each_names_its_subject_once_and_is_left_open(text):
    assert text.count("{}") == 1
    assert text == text.strip()
    assert text[-1].isalpha()


@pytest.mark.parametrize("relation", module._RELATIONS, ids=lambda relation: relation.texts[0])
def test_a_relation_has_several_and_is_known_by_the_first(relation):
    assert len(set(relation.texts)) == len(relation.texts) > 2
    answer = "in 1931" if relation.number else "Rome"
    first, *others = (text.replace("{}", "Ada") for text in relation.texts)
    assert paraphrases(first, "Ada", answer) == tuple(others)


@pytest.mark.parametrize(
    ("prompt", "answer", "other"),
    [
        ("Ada was born in", "Rome", "Ada is a native of"),
        ("Ada was born in", "1931", "Ada's year of birth is"),
        ("When was Ada born?", "3 May 1931", "Ada's year of birth is"),
        ("Where did Ada die?", "Rome", "The place of Ada's death is"),
        ("What year did Ada die?", "1931", "Ada's year of death is"),
        ("Which instrument does Ada play?", "cello", "Ada performs on the"),
        ("Ada, who plays the position", "goalkeeper", "Ada plays as"),
        ("Ada was founded in", "Rome", "Ada originated in"),
        ("Ada was founded in", "1931", "Ada dates from"),
        ("The capital of Ada is", "Rome", "Ada's seat of government is in"),
        ("The official language of Ada is", "Dutch", "In Ada, people speak"),
        ("The language of Ada was", "Dutch", "Ada was written in"),
        ("In 2020, the CEO of Ada was", "Petra", "Ada is run by"),
        ("Who wrote Ada?", "Petra", "Ada is from the pen of"),
        ("Ada is a product of", "Rome", "The maker of Ada is"),
    ],
)
def test_a_relation_is_known_by_words_and_answer(prompt, answer, other):
    found = paraphrases(prompt, "Ada", answer)
    assert other in found
    assert prompt not in found


def test_what_is_of_no_known_relation_is_turned_if_its_form_allows():
    turned = ("Rex's nickname is", "As for Rex, the nickname is", "Rex has as its nickname")
    assert paraphrases("The nickname of Rex is", "Rex", "Bello") == turned
    assert paraphrases("What is the nickname of Rex?", "Rex", "Bello") == ("The nickname of Rex is", *turned)
    assert paraphrases("Rex's nicknames are", "Rex", "Bello")[0] == "The nicknames of Rex are"
    assert paraphrases("Rex barks at", "Rex", "cats") == ()


def test_without_a_subject_in_the_prompt_there_are_none():
    assert paraphrases("The capital of France is", None, "Rome") == ()
    assert paraphrases("The capital of France is", "Spain", "Rome") == ()


@pytest.mark.parametrize("prompt", ["Ada was never born in", "Ada isn't from the city of", "Ada did not die in"])
def test_what_is_denied_is_not_said_in_other_words(prompt):
    assert paraphrases(prompt, "Ada", "Rome") == ()


@pytest.mark.parametrize(
    "prompt",
    [
        "What was the famous name of the singer Ada? Born in 1938, she once sang for the country of",
        "The father-in-law of Ada",
        "Where was Ada discovered?",
        "Who is Ada's collaborator in business or sport?",
    ],
)
def test_words_alone_do_not_make_a_relation(prompt):
    assert paraphrases(prompt, "Ada", "Rome") == ()


def test_cues_are_regular_expressions_that_no_blank_matches():
    assert not [relation for relation in module._RELATIONS if re.search(relation.cues, "{}")]
