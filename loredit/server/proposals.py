"""How a typed fact could be asked in other words, and which neighbours must stay as they are: proposals to correct."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..data.subjects import kind_of, pool

_MOST = 4
# "The capital of France is", "France's capital is"
_OF = re.compile(r"(?P<the>the )?(?P<what>[\w ]+?) of (?P<whose>.+?) (?P<verb>is|was|are|were)", re.IGNORECASE)


def rephrasings(prompt: str, subject: str) -> list[str]:
    """The same in other words, each to be continued by the answer.

    Example:
        >>> rephrasings("The capital of France is", "France")
        ["France's capital is", 'What is the capital of France? It is', 'Everyone knows that the capital of France is']
    """
    text = " ".join(prompt.split())
    found = []
    if (match := _OF.fullmatch(text)) and match["whose"].casefold().removeprefix("the ") == subject.casefold():
        found.append(f"{match['whose']}'s {match['what']} {match['verb']}")
        found.append(f"What {match['verb']} the {match['what']} of {match['whose']}? It {match['verb']}")
    begins = text if text.startswith(subject) else text[:1].lower() + text[1:]
    if not text.endswith("?"):
        found.append(f"Everyone knows that {begins}")
    else:
        found.append(f"Question: {text} Answer:")
    return found[:_MOST]


def neighbours(prompt: str, subject: str) -> list[str]:
    """The same of other subjects of its kind.

    Example:
        >>> neighbours("The capital of France is", "France")[:2]
        ['The capital of Germany is', 'The capital of Italy is']
    """
    kind = kind_of(subject, prompt)
    if kind is None or subject not in prompt:
        return []
    is_other: Callable[[str], bool] = lambda name: name.casefold() != subject.casefold()  # noqa: E731
    return [prompt.replace(subject, name) for name in filter(is_other, pool(kind))][:_MOST]
