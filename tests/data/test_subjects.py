"""Well-known subjects by kind, and what kind a fact's subject is guessed to be.

Planted faults these tests catch: a name in two kinds, so that its kind is chance; a subject that a locality probe of
the samples asks about; a relation hidden by another one ("the official language of" by "the language of"); a kind
guessed where nothing says it.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from loredit import data
from loredit.data.subjects import kind_of, kinds, pool


def bare(name: str) -> str:
    return name.casefold().removeprefix("the ")


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_has_some_dozens_of_names(kind: str) -> None:
    assert 40 <= len(pool(kind)) <= 80
    assert all(name == name.strip() and name and "  " not in name for name in pool(kind))


def test_no_name_is_of_two_kinds() -> None:
    assert [name for name, times in Counter(map(bare, pool())).items() if times > 1] == []


def test_the_first_word_of_several_kinds_means_them_all() -> None:
    people = [kind for kind in kinds() if kind.startswith("person_")]
    assert len(people) > 2
    assert pool("person") == tuple(name for kind in people for name in pool(kind))
    assert set(pool("person")) < set(pool())
    assert pool() == tuple(name for kind in kinds() for name in pool(kind))


def test_an_unknown_kind_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no kind of subject 'town'; there are .*country, .*person and work"):
        pool("town")
    with pytest.raises(ValueError, match="no kind of subject ''"):
        pool("")


def test_what_is_held_is_not_what_the_samples_score() -> None:
    asked = " | ".join(p.prompt for fact in data.load("samples").facts for p in fact.locality["Neighborhood"])
    named = [name for name in pool() if re.search(rf"(?<!\w){re.escape(name.removeprefix('The '))}(?!\w)", asked)]
    assert named == []


@pytest.mark.parametrize(
    ("subject", "prompt", "kind"),
    [
        # the pool's own, whatever the prompt says
        ("France", "The capital of France is", "country"),
        ("france", "Who was the first king of france?", "country"),
        ("Jaws", "Who directed the movie Jaws?", "work_film"),
        ("Odyssey", "The Odyssey was written by", "work_book"),
        ("the Rolling Stones", "Where do the Rolling Stones come from?", "band"),
        ("Albert Einstein", "The native language of Albert Einstein was", "person_science"),
        ("Petra", "Petra can be visited in the country of", "landmark"),
        ("iPhone", "The iPhone is made by the company", "product"),
        # relations
        ("Norland", "The capital of Norland is the city of", "country"),
        ("Norland", "The money used in Norland is called the", "country"),
        ("Norland", "The official language of Norland is", "country"),
        ("Norland", "Most people in Norland follow the religion of", "country"),
        ("Norland", "The highest mountain in Norland is", "country"),
        ("Vinmark", "Vinmark is the capital of the country of", "city"),
        ("Vinmark", "The river that flows through Vinmark is the", "city"),
        ("Vinmark", "Vinmark is a twin city of", "city"),
        ("Ada Brandt", "The mother tongue of Ada Brandt is", "person"),
        ("Ada Brandt", "In which city was Ada Brandt born?", "person"),
        ("Ada Brandt", "Ada Brandt died in the city of", "person"),
        ("Ada Brandt", "In which city did Ada Brandt die?", "person"),
        ("Ada Brandt", "Ada Brandt, who is a citizen of", "person"),
        ("Ada Brandt", "The occupation of Ada Brandt is", "person"),
        ("Ada Brandt", "The wife of Ada Brandt was", "person"),
        ("Ada Brandt", "The religion of Ada Brandt is", "person"),
        ("Ada Brandt", "Ada Brandt plays for", "person_sport"),
        ("Ada Brandt", "The sport that Ada Brandt played is", "person_sport"),
        ("Ada Brandt", "Ada Brandt plays in the position of", "person_sport"),
        ("Ada Brandt", "Ada Brandt is best known for playing the", "person_music"),
        ("Ada Brandt", "The instrument of Ada Brandt is the", "person_music"),
        ("Ada Brandt", "Ada Brandt holds the title of", "person_faith"),
        ("Ada Brandt", "Ada Brandt was a leader of the country of", "person_politics"),
        ("Ada Brandt", "The field of study of Ada Brandt was", "person_science"),
        ("Norrland Ferries", "The CEO of Norrland Ferries is", "company"),
        ("Norrland Ferries", "Norrland Ferries was founded by", "company"),
        ("Norrland Ferries", "The headquarters of Norrland Ferries are in", "company"),
        ("Norrland Ferries", "{} is headquartered in", "company"),
        ("Zyx 3000", "The Zyx 3000 was developed by", "product"),
        ("Zyx 3000", "Zyx 3000 is a product of the company", "product"),
        ("zyx", "Who invented the zyx?", "product"),
        ("The Long Field", "The author of The Long Field is", "work_book"),
        ("The Long Field", "The novel The Long Field was written by", "work_book"),
        ("The Long Field", "The movie The Long Field was directed by", "work_film"),
        ("The Long Field", "The Long Field premieres on", "work_film"),
        ("The Long Field", "The song The Long Field was recorded by", "work_music"),
        ("The Long Field", "The composer of The Long Field is", "work_music"),
        ("The Long Field", "Who painted The Long Field?", "work_art"),
        ("The Long Field", "The original language of The Long Field is", "work"),
        ("The Weavers", "The lead singer of the band The Weavers was", "band"),
        ("Harriers", "The home of the Harriers is the city of", "team"),
        ("Captain Dash", "The real name of the superhero Captain Dash is", "character"),
        ("vole", "The young of a vole is called a", "animal"),
        ("voles", "The favorite food of voles is", "animal"),
        ("krill soup", "The dish krill soup comes from", "food"),
        ("astatine", "The chemical symbol for astatine is", "substance"),
        ("Battle of Narva", "The Battle of Narva took place in the year", "event"),
        ("Signy", "Signy is part of the mountain range called the", "nature"),
        # names, where the relation is anything's
        ("Lake Ohrid", "Lake Ohrid is in", "nature"),
        ("Gabbro Hills", "Gabbro Hills, in", "nature"),
        ("Maury County", "Maury County can be found in", "region"),
        ("Wesley Hospital", "Wesley Hospital is located in", "landmark"),
        ("Uppsala University", "Uppsala University, that was started by", "organisation"),
        ("Pope Leo X", "Pope Leo X comes from", "person_faith"),
        # a place, and no more is known
        ("Vinmark", "Vinmark can be found in", "landmark"),
        # nothing says it
        ("Vinmark", "Vinmark, in", None),
        ("Ada Brandt", "Ada Brandt is", None),
        ("Norland", "", None),
        ("", "The weather is", None),
    ],
)
def test_the_kind_of_a_subject(subject: str, prompt: str, kind: str | None) -> None:
    assert kind_of(subject, prompt) == kind
    assert kind is None or pool(kind)


def test_a_template_says_what_the_filled_prompt_says() -> None:
    for fact in data.load("samples").facts:
        assert fact.subject is not None
        template = fact.prompt.replace(fact.subject, "{}")
        assert kind_of(fact.subject, template) == kind_of(fact.subject, fact.prompt)
