"""Well-known subjects by kind, to stand in a fact's prompt in its subject's place; and what kind a fact's subject is.

What a model says about *other* subjects is to stay as it is when a fact is edited: "The CEO of {} is" for companies
that the edit is not about. ``subjects.json`` was written for that. No subject of it is asked about by a
``Neighborhood`` probe of the samples, so that what is held while training is not what is scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

__all__ = ["kind_of", "kinds", "pool"]

# Relations that say what stands in the place of {}, the telling ones first: "the official language of {}" before "the
# language of {}", which a film has too; "plays in the position of" before "plays the". Searched in the prompt with {}
# for the subject, without regard to case.
_RELATIONS = (
    ("person_sport", r"position (does|of) \{\}|in the position of|plays (as|for)\b|plays the position"),
    ("person_sport", r"\bsport (that|does|did)\b|star of the sport|play(s|ed) the sport"),
    ("person_music", r"\binstrument\b|play(s|ing|ed) the$|perform(s|ing)( on)?( the)?$|what does \{\} play"),
    ("person_faith", r"holds the (title|position) of|has the position of|\b(ordained|consecrated)\b"),
    ("person_politics", r"\{\} (was|is) (the|a) (leader|president|emperor|king|queen|ruler|prime minister) of"),
    ("person_politics", r"\b(ruled by|governed by|that \{\} (led|ruled))"),
    ("person_science", r"(field|domain|area) of (activity|study)|in the field|expertise|\{\} discovered"),
    ("person", r"\b(mother tongue|native language|first language|native speaker|speaker of|language used by)\b"),
    ("person", r"\{\},? (speaks|spoke|writes in|wrote in|grew up|was married|died|lived|worked|used to work)\b"),
    ("person", r"\b(born|birthplace|place of birth|native|originate[sd] from)\b|did \{\} (die|live|grow up)"),
    ("person", r"\b(citizen|citizenship|nationality|came from the country)\b"),
    ("person", r"\b(passed away|death|lost their life|expired at|life ended|employ(ed|ment)|work(s)? (for|as|in))\b"),
    ("person", r"\b(profession|occupation|job of|career|for a living)\b"),
    ("person", r"\b(wife|husband|spouse|father|mother|son|daughter) of\b"),
    ("person", r"(?<!main )religion of \{\}|(follows|with) the religion|^\{\},? (who )?plays$"),
    ("character", r"\b(character|superhero|cartoon|god of|goddess of|in \w+ myth)\b"),
    ("work_film", r"\b(movies?|films?|directed|director|series|premieres?|debut(ed)?|aired|broadcast|released on)\b"),
    ("work_art", r"\b(painting|painted|painter|sculpture)\b"),
    ("band", r"\b(band|group) \{\}"),
    ("work_music", r"\b(song|album|opera|symphony|ballet|compos(er|ed)|sang|sung|recorded by|music of)\b"),
    ("work_book", r"\b(author|novel|book|books|poem|playwright|play \{\}|written (by|in)|wrote)\b"),
    ("product", r"\b(operating system|product of|(produced|manufactured|developed|created|made) by|maker of|makes)\b"),
    ("product", r"\b(manufacturer|developer|creator|inventor) of\b|invented by|who (invented|created|made)\b"),
    ("company", r"\b(ceo|chief executive|founders?|founded|headquarters?|headquartered|subsidiary|set up by)\b"),
    ("company", r"\b(company|companies|firm|brand|main office)\b|(started|formed) in$"),
    ("team", r"\b(football club|soccer club|team|home games|coach of|stadium of|home of the \{\})"),
    ("city", r"\b(twin city|twinned|mayor of|city of \{\})|\{\} is (a city|the capital)|(flows|runs) through \{\}"),
    ("country", r"(capital|currency|money|president|prime minister|flag|king|queen) (city )?(of|used in) (the )?\{\}"),
    ("country", r"(official|main) (language|religion)|language (is )?spoken|people in \{\}|\{\}, they|law in \{\}"),
    ("country", r"\{\} is a country|population of|est (city|mountain|river|lake|island) (in|of) (the )?\{\}"),
    ("work", r"\b(original )?language of \{\}"),
    ("animal", r"\b(young of|baby \{\}|diet of|favorite food|legs (of|does)|group of animals|kind of animals?)\b"),
    ("food", r"\b(food|dish|drink|cuisine|recipe|cooked|eaten)\b"),
    ("substance", r"\b(chemical|formula|periodic table|element|compound|melts|boils|ingredient|material)\b"),
    ("event", r"\b(took place|take place|happened|was fought|(was|were) held|ended in the year)\b|location of \{\}"),
    ("nature", r"\b(mountains?|rivers?|lakes?|oceans?|seas?|glaciers?|volcano|continent|lies off)\b"),
)
# What a name itself says, where the relation does not.
_NAMES = (
    ("person_politics", r"^(king|queen|emperor|empress|president|prince|princess|sultan) |, \d\w+ (duke|earl)\b"),
    ("person_faith", r"^(pope|saint|bishop|archbishop|cardinal|rabbi|imam) "),
    ("event", r"\b(war|battle|siege|revolution|olympics|championships?|world cup|treaty|operation|festival)\b"),
    ("organisation", r"\b(university|college|institute|school|academy|association|federation|committee)\b"),
    ("organisation", r"\b(orchestra|ministry|agency|council|league|bank|society|party)\b"),
    ("team", r"\b(f\.?c\.?|s\.?c\.?|club|united|rovers|athletic)$|^(fc|ac|as|sc|bsc) "),
    ("company", r"\b(inc|ltd|llc|gmbh|plc|corp|corporation|company|group|airlines?|airways|records|motors|press)\b"),
    ("landmark", r"\b(airport|station|bridge|museum|cathedral|church|castle|palace|tower|stadium|hospital)\b"),
    ("landmark", r"\b(library|park|building|monument|theat(re|er)|hall|railway|canal|square|temple|arena)\b"),
    ("region", r"\b(district|county|province|canton|state|territory|prefecture)\b"),
    ("nature", r"\b(mount|mountains?|hills?|peak|range|ridge|valley|volcano|glacier|ice shelf|desert|forest)\b"),
    ("nature", r"\b(river|falls|lake|sea|bay|gulf|inlet|strait|coast|islands?|peninsula|cape|point)\b"),
)
# Relations of many kinds of place; they are the last to be asked.
_PLACES = (("landmark", r"\b(located|situated|found|stands|visited|lies|is) (with)?in\b|\bwithin$|^where is \{\}"),)


def kinds() -> tuple[str, ...]:
    """The kinds of subjects there are, in the order of the file.

    Returns:
        "country", "company" and so on. Where there are several sorts of one thing, their names begin alike
        ("person_science", "person_sport"), and the first word is a name for them all ("person").

    Example:
        >>> "city" in kinds()
        True
    """
    return tuple(_subjects())


def pool(kind: str | None = None) -> tuple[str, ...]:
    """Well-known subjects of a kind, always the same ones in the same order.

    Args:
        kind: one of :func:`kinds`, "person" or "work" for all sorts of them, or None for the subjects of all kinds.

    Returns:
        Their names, as they stand in the middle of a sentence. A fact's own subject may be one of them.

    Raises:
        ValueError: there is no such kind; the message lists those that there are.

    Example:
        >>> pool("country")[:2]
        ('France', 'Germany')
    """
    chosen = [
        names for name, names in _subjects().items() if kind is None or name == kind or name.split("_")[0] == kind
    ]
    if not chosen:
        raise ValueError(f"there is no kind of subject {kind!r}; there are {', '.join(kinds())}, person and work")
    return tuple(name for names in chosen for name in names)


def kind_of(subject: str, prompt: str) -> str | None:
    """What kind of thing a fact is about, guessed from the words; a kind that :func:`pool` knows.

    A subject of the pool is of the kind that it has there. Otherwise the prompt's relation decides ("The CEO of {}
    is": a company), then the subject's name ("Lake ..."), and last a relation that says no more than that there is a
    place.

    Args:
        subject: the fact's subject.
        prompt: the fact's prompt, with the subject or with ``{}`` for it.

    Returns:
        The kind; "person" or "work" where its sort is not clear; None where nothing is.

    Example:
        >>> kind_of("Acme Widgets", "The CEO of Acme Widgets is")
        'company'
    """
    if (known := _kinds_by_name().get(_bare(subject))) is not None:
        return known
    relation = " ".join(prompt.replace(subject, "{}").split()) if subject.strip() else prompt
    for cues, text in ((_RELATIONS, relation), (_NAMES, subject), (_PLACES, relation)):
        for kind, pattern in cues:
            if re.search(pattern, text, re.IGNORECASE):
                return kind
    return None


@cache
def _subjects() -> Mapping[str, tuple[str, ...]]:
    text = resources.files(__package__).joinpath("subjects.json").read_text(encoding="utf-8")
    return MappingProxyType({kind: tuple(names) for kind, names in json.loads(text).items()})


@cache
def _kinds_by_name() -> Mapping[str, str]:
    return {_bare(name): kind for kind, names in _subjects().items() for name in names}


def _bare(name: str) -> str:
    """A name for comparing: without regard to case, to spaces, and to an article before it."""
    return " ".join(name.casefold().split()).removeprefix("the ")
