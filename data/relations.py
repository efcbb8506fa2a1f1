"""What else is said of a subject: prompts in other relations than a fact's, by the kind of subject.

What a model says about the *same* subject in other matters is to stay as it is when a fact is edited: after "The
capital of France is" has a new answer, "The currency of France is" keeps its own. A prompt whose words tell the fact's
own relation is left out, or the old answer would be held.
"""

from __future__ import annotations

import re

from .subjects import kind_of

__all__ = ["other_relations"]

# A prompt, and what tells the relation that it is of (searched in the fact's prompt, without regard to case).
_PERSON = (
    ("{} was born in the city of", r"born|birth|native|origin|grew up|hometown|come from|came from"),
    ("{} was born in the year", r"\byear|\bdate|\bborn\b|birth|when\b|\bage\b"),
    ("{} died in the city of", r"die|dead|death|passed|bur(y|ied)|lost (his|her|their) life|live[sd]?\b"),
    ("The father of {} is", r"father|parent|mother|son\b|daughter|child|sibling|brother|sister|famil"),
    ("{} is married to", r"marr|wife|husband|spouse|partner"),
    ("The profession of {} is that of a", r"profession|occupation|works?\b|job|plays?\b|position|career|living|field"),
    ("{} is a citizen of", r"citizen|nation|country|\bfrom\b|born"),
    ("{} speaks the language", r"language|tongue|speak|spoke|wrote in|writes in"),
    ("The religion of {} is", r"religio|faith|belie|church|worship"),
    ("{} was educated at", r"educat|universit|school|college|attend|stud(y|ied)|alma"),
    ("{} has won the", r"\bwon\b|award|prize|medal|receiv"),
    ("The political party of {} is", r"party|politic|member"),
    ("{} is best known for", r"known|famous|notable"),
    ("{} is buried in", r"bur(y|ied)|grave|rest|die|death"),
)
_PLACE = (
    ("{} lies on the continent of", r"continent"),
    ("The population of {} is", r"population|people|inhabitants"),
    ("{} is famous for", r"famous|known"),
    ("The climate of {} is", r"climate|weather"),
    ("{} was founded in the year", r"found|establish|year|when|date|incept"),
    ("The history of {} began with", r"history"),
)
_GROUP = (
    ("{} was founded in the year", r"found|year|when|date|start|form|establish|incept"),
    ("The headquarters of {} are in the city of", r"headquart|located|based|city|where|office|home"),
    ("The leader of {} is", r"\bceo\b|chief|lead|head\b|president|manager|coach|captain|chair|director|in charge"),
    ("{} was founded by", r"found|creat|start|set up|establish"),
    ("{} belongs to", r"own|belong|subsidiary|parent|part of|league|label|member"),
    ("{} is known for", r"known|famous"),
    ("The number of people in {} is", r"number|how many|people|members|employ"),
    ("{} comes from the country of", r"country|nation|from\b|origin|located|headquart"),
)
_WORK = (
    ("{} was made in the year", r"year|when|date|release|publish|premiere|debut|first|air"),
    ("The creator of {} is", r"creat|author|writ|direct|compos|paint|by\b|made|develop|produc|sang|sung|perform"),
    ("The genre of {} is", r"genre|kind|type|instance"),
    ("The original language of {} is", r"language"),
    ("{} is set in", r"\bset\b|place|where|locat"),
    ("The main character of {} is", r"character|star|cast|hero|play"),
    ("{} comes from the country of", r"country|nation|from\b|origin"),
    ("{} was followed by", r"follow|sequel|next|series|after"),
)
_THING = (
    ("{} was made by the company", r"made|maker|manufact|produc|develop|creat|by\b|company|brand"),
    ("{} is used for", r"\bused?\b|purpose|function"),
    ("{} was introduced in the year", r"year|when|date|release|introduc|first"),
    ("The price of {} is", r"price|cost"),
    ("{} comes from the country of", r"country|nation|from\b|origin"),
    ("The color of {} is", r"colou?r"),
    ("{} is made of", r"made|material|ingredient|consist|contain"),
)
_LIVING = (
    ("{} belong to the family of", r"famil|species|genus|class|kind|belong|type|taxon"),
    ("The color of {} is", r"colou?r"),
    ("{} are found in", r"found|live|grow|habitat|where|native|origin|from\b"),
    ("{} eat", r"\beat|diet|food|feed"),
    ("The size of {} is", r"size|large|big|tall|heav|weigh"),
    ("{} are known for", r"known|famous"),
)
_EVENT = (
    ("{} took place in the year", r"year|when|date|began|end|start"),
    ("{} took place in the city of", r"place|where|locat|held|city|country"),
    ("The cause of {} was", r"cause|why|because|due"),
    ("{} was won by", r"\bwon\b|win|victor|champion"),
    ("The number of people in {} was", r"number|how many|people|participa"),
    ("{} ended with", r"\bend|result|outcome|conclu"),
)
_ANY = (
    ("{} is known for", r"known|famous"),
    ("{} is located in", r"locat|where|place|city|country|live|found"),
    ("The name of {} comes from", r"name"),
    ("{} began in the year", r"year|when|date|born|found|start|begin|began"),
    ("{} belongs to", r"belong|own|part|member|instance|kind|type"),
    ("The opposite of {} is", r"opposite"),
)
_OF_KIND = {
    "person": _PERSON,
    "character": _PERSON[3:5] + _WORK[:4],
    "country": _PLACE,
    "city": _PLACE,
    "region": _PLACE,
    "landmark": _PLACE[:3] + _WORK[:2],
    "nature": _PLACE,
    "company": _GROUP,
    "organisation": _GROUP,
    "team": _GROUP,
    "band": _GROUP,
    "work": _WORK,
    "product": _THING,
    "food": _THING[4:] + _LIVING[2:3],
    "substance": _THING[1:2] + _THING[5:] + _LIVING[1:2],
    "animal": _LIVING,
    "plant": _LIVING,
    "event": _EVENT,
}


def other_relations(subject: str, prompt: str) -> tuple[str, ...]:
    """Prompts about a subject that ask for something else than a fact's prompt does.

    Args:
        subject: the fact's subject.
        prompt: the fact's prompt.

    Returns:
        The prompts with ``{}`` for the subject; those of its kind where that is known, and a few that fit any subject.

    Example:
        >>> "{} is married to" in other_relations("Marie Curie", "Marie Curie was born in")
        True
        >>> "{} was born in the city of" in other_relations("Marie Curie", "Marie Curie was born in")
        False
    """
    kind = (kind_of(subject, prompt) or "").split("_")[0]
    relation = prompt.replace(subject, " ")
    choices = dict([*_OF_KIND.get(kind, ()), *_ANY])
    return tuple(text for text, cues in choices.items() if not re.search(cues, relation, re.IGNORECASE))
