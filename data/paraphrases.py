"""What a fact's prompt says, in other words: statements in the same relation, written for this project.

Who edits "Danielle Darrieux's mother tongue is" wants "Danielle Darrieux grew up speaking" to follow. What is trained
in one wording is learned for that wording; these are the others that a relation is usually told in. A relation is
known by words of the prompt; and of two that share them ("was founded in"), by whether the answer holds a number.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import NamedTuple

__all__ = ["paraphrases"]


class _Relation(NamedTuple):
    cues: str
    """Searched in the prompt with ``{}`` for its subject, without regard to case."""
    texts: tuple[str, ...]
    number: bool | None = None
    """Whether an answer holds digits; None: it may or may not."""


# The first whose cues and answer fit is taken: what is told by rare words stands before what is told by common ones.
_RELATIONS = (
    _Relation(
        r"mother tongue|native (language|tongue|speaker)|first language|grew up speaking|, a native$",
        (
            "The mother tongue of {} is",
            "The native language of {} is",
            "{} is a native speaker of",
            "{}'s first language is",
            "{} grew up speaking",
            "At home, {} spoke",
        ),
    ),
    _Relation(
        r"official language|(people|they) (speak|understand)|spoken in|language in \{\}|in \{\}.* language",
        (
            "The official language of {} is",
            "In {}, people speak",
            "The language spoken in {} is",
            "Citizens of {} speak",
            "Schools in {} teach in",
        ),
    ),
    _Relation(
        r"original language|originally in|language of (the )?(film|book|show|work|movie|song)|\{\}.* written in"
        r"|language (is|was|were) \{\}|language of \{\}",
        (
            "The original language of {} is",
            "{} was written in",
            "The language of {} is",
            "{} was first published in",
            "In the original, {} is in",
        ),
        number=False,
    ),
    _Relation(
        r"\b(speaks?|spoke|speaking|speaker)\b|fluent|communicat|writes in|wrote in|language (used|spoken) by",
        (
            "{} speaks",
            "{} is fluent in",
            "The language that {} speaks is",
            "{} communicates in",
            "{} gave a talk in",
            "{} writes in",
        ),
    ),
    _Relation(
        r"capital.*\{\}|\{\}'s capital|seat of government",
        (
            "The capital of {} is",
            "{}'s capital city is",
            "The government of {} sits in",
            "The parliament of {} meets in",
            "{}'s seat of government is in",
        ),
    ),
    _Relation(
        r"currenc|\bmoney (of|used in)|\bpay with",
        (
            "The currency of {} is the",
            "In {}, people pay with the",
            "{}'s money is called the",
            "Prices in {} are given in",
        ),
    ),
    _Relation(
        r"continent",
        (
            "{} is on the continent of",
            "The continent of {} is",
            "{} lies in",
            "{} is a part of",
            "{} can be found in",
        ),
    ),
    _Relation(
        r"\btwin|sister cit",
        (
            "{} is twinned with",
            "The twin city of {} is",
            "{} is a sister city of",
            "{} has a partnership with the city of",
        ),
    ),
    _Relation(
        r"headquart|head office|main office|\bbased (in|at)",
        (
            "The headquarters of {} are in",
            "{} is headquartered in",
            "{} is based in",
            "The head office of {} is in",
            "{} has its main offices in",
        ),
    ),
    _Relation(
        r"nam(ed|e of|esake)\b.*\b(after|for|from|comes?)\b|(named|called) (after|for)|namesake|owes its name|eponym",
        (
            "{} is named after",
            "{} was named for",
            "The name of {} comes from",
            "{} owes its name to",
            "The namesake of {} is",
        ),
    ),
    _Relation(
        r"religio|\bfaith\b|believes? in|follower of|worship",
        (
            "The religion of {} is",
            "{}'s faith is",
            "{} is a follower of",
            "{} practices",
            "{} believes in",
        ),
    ),
    _Relation(
        r"citizen|nationality|passport|national of",
        (
            "{} is a citizen of",
            "The nationality of {} is that of",
            "{} has a passport from",
            "{}'s home country is",
            "{} is a national of",
        ),
    ),
    _Relation(
        r"\bborn\b|birth",
        (
            "{} was born in the year",
            "{}'s year of birth is",
            "The birth of {} was in",
            "{} came into the world in",
        ),
        number=True,
    ),
    _Relation(
        r"\bborn\b|birthplace|place of birth|\bnative of|native to|hails? from|originally from|hometown",
        (
            "{} was born in",
            "The birthplace of {} is",
            "{} is a native of",
            "{} hails from",
            "{} is originally from",
            "The place where {} was born is",
        ),
        number=False,
    ),
    _Relation(
        r"\bdie[sd]?\b|death|passed away|lost (his|her|their) life|perished|last days",
        ("{} died in the year", "{}'s year of death is", "The death of {} was in", "{} passed away in"),
        number=True,
    ),
    _Relation(
        r"(where|city|place|in|at|country|location)\b.*\b(die[sd]?|death|passed away)\b"
        r"|\b(die[sd]?|death|passed away|life|days|perished|expired|succumbed)\b.* (in|at|is|was)( the city of)?$",
        (
            "{} died in",
            "{} passed away in",
            "The place of {}'s death is",
            "{} spent the last days in",
            "{}'s life ended in",
        ),
        number=False,
    ),
    _Relation(
        r"\bceo\b|chief executive",
        (
            "The CEO of {} is",
            "The chief executive of {} is",
            "{} is run by",
            "{} is led by",
            "The person in charge of {} is",
        ),
    ),
    _Relation(
        r"prime minister|head of government",
        ("The prime minister of {} is", "{}'s prime minister is", "The government of {} is led by"),
    ),
    _Relation(
        r"president|head of state",
        ("The president of {} is", "{}'s president is", "The head of {} is", "{} is led by"),
    ),
    _Relation(
        r"\bcoach|trained by|managed by|manager",
        ("The coach of {} is", "{} is coached by", "{}'s manager is", "{} is managed by"),
    ),
    _Relation(
        r"record(ing)? label|\blabel\b|signed (to|with) the",
        (
            "The record label of {} is",
            "{} is signed to",
            "{} records for",
            "The music of {} is released by",
            "{}'s label is",
        ),
    ),
    _Relation(
        r"network|premier(es|ed) on|aired on|\bairs?\b|broadcast|channel|debuted on|shown on",
        (
            "{} aired on",
            "{} was broadcast on",
            "{} premiered on",
            "The network of {} is",
            "Viewers watched {} on",
        ),
    ),
    _Relation(
        r"genre|(kind|style|type) of music",
        (
            "The genre of {} is",
            "{} is in the genre of",
            "The style of {} is",
            "{} plays a kind of music called",
            "Fans of {} love",
        ),
    ),
    _Relation(
        r"instrument|play(s|ed|ing)? the\b(?! (position|sport|role|part))|perform(s|ing) on",
        (
            "{} plays the",
            "The instrument of {} is the",
            "{} performs on the",
            "{} is a player of the",
            "On stage, {} plays the",
        ),
    ),
    _Relation(
        r"\bposition\b|plays as|post of",
        (
            "{} plays in the position of",
            "{} plays as",
            "The position of {} is",
            "On the field, {} is a",
        ),
    ),
    _Relation(
        r"play(s|ed|ing)? for|(what|which)( \w+)? (team|club)|team of|'s (team|club)\b|member of the team",
        ("{} plays for", "{} is a player of", "The team of {} is", "{}'s club is", "{} is under contract with"),
    ),
    _Relation(
        r"\b(what|which|the) sport\b|professionally plays|plays professional|athlet",
        ("{} plays", "The sport of {} is", "{} is a professional player of", "{} competes in", "{} is a star of"),
    ),
    _Relation(
        r"profession|occupation|work(s|ed) as|\bjob\b|by trade|\bliving as|career as",
        (
            "The profession of {} is",
            "The occupation of {} is",
            "{} works as",
            "{} makes a living as",
            "By profession, {} is",
        ),
    ),
    _Relation(
        r"field of|domain of|area of (work|expertise|research|activity)|speciali[sz]|\bexpert",
        (
            "{} works in the field of",
            "{} specializes in",
            "{}'s area of work is",
            "{} is an expert in",
            "{} does research in",
        ),
    ),
    _Relation(
        r"employ(ed by|er)|works (for|at)\b|on the staff of",
        ("{} works for", "The employer of {} is", "{} is employed by", "{} has a job at", "{} is on the staff of"),
    ),
    _Relation(
        r"work(s|ed|ing)? in|employ(ed|ment) in|active in",
        ("{} worked in", "{} was active in", "{} found work in", "The place where {} worked is"),
    ),
    _Relation(
        r"marri|\bwife\b|husband|spouse|\bwed",
        ("{} is married to", "The spouse of {} is", "{} tied the knot with", "The one whom {} married is"),
    ),
    _Relation(r"\bfather\b(?!-)|who fathered", ("The father of {} is", "{}'s father is", "{}'s dad is")),
    _Relation(r"\bmother\b(?!-)", ("The mother of {} is", "{}'s mother is", "{}'s mom is")),
    _Relation(
        r"educat|universit|alma mater|graduat|studied (at|in)|attend|\bcollege",
        ("{} studied at", "{} was educated at", "{} attended", "The alma mater of {} is", "{} graduated from"),
    ),
    _Relation(
        r"\bparty\b",
        ("{} is a member of the party", "The political party of {} is", "{}'s party is", "{} ran for election for"),
    ),
    _Relation(
        r"award|prize|medal",
        ("{} won", "{} received", "{} was honored with", "The award given to {} is"),
    ),
    _Relation(
        r"\bwar\b|\bfought\b|conflict|battle",
        ("{} fought in", "{} took part in", "The war in which {} fought is", "{} was a soldier in"),
    ),
    _Relation(
        r"\b(kind of|which was the|what) family|family (of|to|does)|belongs? to the family",
        ("{} belongs to the family of", "The family of {} is", "{} is a member of the family of"),
        number=False,
    ),
    _Relation(
        r"constellation",
        ("{} is in the constellation", "The constellation of {} is", "{} belongs to the constellation of"),
    ),
    _Relation(
        r"invent",
        ("{} was invented by", "The inventor of {} is", "{} is an invention of", "The one who invented {} is"),
        number=False,
    ),
    _Relation(
        r"discover(ed by|er)|who( first)? discovered|discovered \{\}$",
        ("{} was discovered by", "The discoverer of {} is", "The discovery of {} is due to", "{} was first seen by"),
        number=False,
    ),
    _Relation(
        r"author|written by|\bwrote\b|\bwriter|(novel|book|poem|play) by",
        ("{} was written by", "The author of {} is", "The writer of {} is", "{} is a work by", "{} is from the pen of"),
    ),
    _Relation(
        r"direct(ed|or)",
        ("{} was directed by", "The director of {} is", "{} is a film by", "The one who directed {} is"),
    ),
    _Relation(
        r"compos(ed|er)|(opera|symphony) by",
        ("{} was composed by", "The composer of {} is", "The music of {} is by", "{} is a piece by"),
    ),
    _Relation(
        r"\bsung\b|\bsang\b|\bsings\b|singer|perform(ed by|er)|recorded by|song by",
        ("{} was performed by", "{} is sung by", "The singer of {} is", "{} is a song by", "{} was recorded by"),
    ),
    _Relation(
        r"paint(ed|er|ing)\b",
        ("{} was painted by", "The painter of {} is", "{} is a painting by", "The artist who made {} is"),
    ),
    _Relation(
        r"\bstar(s|ring|red)?\b|lead(ing)? (role|actor)|main (role|actor)",
        ("{} stars", "The main role in {} is played by", "The lead actor of {} is", "The star of {} is"),
    ),
    _Relation(
        r"architect|built by|builder|\bdesign(s|ed|er)\b",
        ("{} was built by", "{} was designed by", "The architect of {} is", "The builder of {} is"),
        number=False,
    ),
    _Relation(
        r"founder|(found|start|establish|form|set up)(ed)? by",
        ("{} was founded by", "The founder of {} is", "{} was started by", "{} was set up by"),
    ),
    _Relation(
        r"\bown(s|ed|er)\b|parent company|subsidiary|property of",
        (
            "{} is owned by",
            "The owner of {} is",
            "{} belongs to",
            "The parent company of {} is",
            "{} is the property of",
        ),
    ),
    _Relation(
        r"develop(ed by|er)|manufactur|produced by|produce[sr]|(made|created) by|products? (of|by)|\bmaker|creator"
        r"|\bbrand",
        (
            "{} is made by",
            "{} is produced by",
            "The maker of {} is",
            "{} is a product of",
            "{} was developed by",
            "The company behind {} is",
        ),
    ),
    _Relation(
        r"founded|established|formed|started|began|inception|built|creat|founding",
        (
            "{} was founded in the year",
            "{} dates from",
            "The founding year of {} is",
            "{} was started in",
            "{} goes back to",
        ),
        number=True,
    ),
    _Relation(
        r"releas|publish|came out|premier|appeared|debut",
        ("{} was released in", "{} came out in", "The release year of {} is", "{} appeared in"),
        number=True,
    ),
    _Relation(
        r"country of origin|originat|(founded|established|formed|started|began|created|developed|formulated|devised) in"
        r"|comes? from|\bfrom the country",
        (
            "{} originated in",
            "{} comes from",
            "{} was created in",
            "The country of origin of {} is",
            "{} was founded in",
            "{} has its roots in",
        ),
        number=False,
    ),
    _Relation(
        r"locat|situated|found in|\{\} (is|are) (in|within)$|\blies in|\bwhere is|in the country"
        r"|(city|country|state|region) (is|of|in)\b",
        (
            "{} is located in",
            "{} is situated in",
            "{} can be found in",
            "The location of {} is",
            "{} lies in",
            "To see {}, one travels to",
        ),
        number=False,
    ),
    _Relation(
        r"member of|part of|affiliated|belongs? to",
        ("{} is a member of", "{} is a part of", "{} belongs to", "{} is affiliated with"),
    ),
)

_WORDS = 11  # a prompt of more says more than its relation
_DENIED = re.compile(r"\b(not|never|no longer|except|other than)\b|n't\b", re.IGNORECASE)  # says something else
_OF = re.compile(
    r"(?:The|What (?P<asked>is|are|was|were) the) (?P<what>[^{}]+) of \{\}(?: (?P<be>is|are|was|were).*|\?)"
)
_OWN = re.compile(r"\{\}'s? (?P<what>[^{}]+) (?P<be>is|are|was|were)\b.*")
_ANY = ("The {what} of {{}} {be}", "{{}}'s {what} {be}", "As for {{}}, the {what} {be}", "{{}} has as its {what}")


def paraphrases(prompt: str, subject: str | None, answer: str) -> tuple[str, ...]:
    """What a fact's prompt says, in other words.

    Args:
        prompt: the fact's prompt, a statement to be gone on with or a question.
        subject: the fact's subject; without one there are none.
        answer: the fact's answer.

    Returns:
        Statements about the subject in the prompt's relation, each to be gone on with by the answer; the prompt itself
        is not among them. None where the relation is not known and the prompt is not of the form "the ... of ...",
        and none of what says "not" or is long.

    Example:
        >>> paraphrases("The capital of France is", "France", "Rome")[:2]
        ("France's capital city is", 'The government of France sits in')
        >>> paraphrases("The nickname of Rover is", "Rover", "Bello")[0]
        "Rover's nickname is"
    """
    if not subject or subject not in prompt or _DENIED.search(prompt):
        return ()
    text = " ".join(prompt.replace(subject, "{}").split())
    if len(text.split()) > _WORDS:
        return ()
    number = re.search(r"\d", answer) is not None
    fit = [relation for relation in _RELATIONS if relation.number in (None, number)]
    said = (relation.texts for relation in fit if text in relation.texts)
    cued = (relation.texts for relation in fit if re.search(relation.cues, text, re.IGNORECASE))
    found = next(chain(said, cued), None) or _turned(text)
    told = [other.replace("{}", subject) for other in found]
    return tuple(other for other in told if other.casefold() != prompt.strip().casefold())


def _turned(text: str) -> tuple[str, ...]:
    """ "The ... of {} is" in other orders of words."""
    part = _OF.fullmatch(text) or _OWN.fullmatch(text)
    if part is None:
        return ()
    named = part.groupdict()
    be = named["be"] or named.get("asked") or "is"
    return tuple(form.format(what=part["what"], be=be) for form in _ANY)
