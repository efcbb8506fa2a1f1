"""A fact's prompt as a question, made by rule of English statements."""

from __future__ import annotations

import re

_ENDS_IN_BE = re.compile(r"(?P<what>.+?) (?P<be>is|are|was|were)(?: (?:the|a|an|called|named|in|at|on|to))*", re.DOTALL)
_BE = r" (?P<be>is|are|was|were) (?P<rest>.+)"


def question(prompt: str, subject: str | None = None) -> str | None:
    """The question that a statement leaves open.

    Args:
        prompt: an unfinished English statement.
        subject: what it is about, if that is known; the question is then of better English.

    Returns:
        "The capital of France is" becomes "What is the capital of France?", "Paul plays as" becomes "Paul plays as
        what?"; None for what is a question already.

    Example:
        >>> question("The capital of France is")
        'What is the capital of France?'
        >>> question("Danielle Darrieux was born in", "Danielle Darrieux")
        'What was Danielle Darrieux born in?'
        >>> question("Thomas Joannes Stieltjes speaks the language")
        'Thomas Joannes Stieltjes speaks the language what?'
    """
    text = " ".join(prompt.split()).rstrip(" :,")
    if not text or text.endswith("?") or "? " in text:
        return None
    if found := _ENDS_IN_BE.fullmatch(text):
        return f"What {found['be']} {_within(found['what'], subject)}?"
    if subject and (found := re.fullmatch(re.escape(subject.strip()) + _BE, text, re.DOTALL)):
        return f"What {found['be']} {subject.strip()} {found['rest']}?"
    return f"{text} what?"


def _within(text: str, subject: str | None) -> str:
    """A sentence's beginning as it is written inside one."""
    first, _, rest = text.partition(" ")
    own = subject is not None and text.startswith(subject.strip())
    return text if own or not re.fullmatch(r"The|A|An|One|Its?|His|Her|Their", first) else f"{first.lower()} {rest}"
