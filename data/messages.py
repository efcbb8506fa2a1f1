"""What error messages have in common: near names, and lists that end."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

# A stranger's value may be as large or as deep as a file; what is beyond a message is not written out.
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring, _brief.maxother = 4, 8, 8, 1 << 12, 1 << 12


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def lines(faults: Iterable[str], most: int = 10) -> list[str]:
    """The first of many lines, and one that counts the rest.

    Example:
        >>> lines(["a", "b", "c"], most=2)
        ['a', 'b', 'and 1 more']
    """
    every = list(faults)
    return [*every[:most], *([f"and {len(every) - most} more"] if len(every) > most else [])]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint at the nearest known name, or nothing; to be put behind the name and before a full stop.

    Example:
        >>> did_you_mean("roslora", ["lora", "roselora"])
        "; did you mean 'roselora'?"
        >>> did_you_mean("xyz", ["lora"])
        ''
    """
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """A message for a name that is not known.

    Example:
        >>> unknown("editor", "roslora", ["lora", "roselora"])
        "unknown editor 'roslora'; did you mean 'roselora'? There are: lora, roselora"
        >>> unknown("editor", "xyz", ["lora"])
        "unknown editor 'xyz'. There are: lora"
    """
    return f"unknown {kind} {name!r}{did_you_mean(name, known) or '.'} There are: {', '.join(known)}"


def brief(value: object, most: int = 120) -> str:
    """A value as Python writes it, cut where it is long.

    Example:
        >>> brief("abcdef", most=4)
        "'abc..."
    """
    text = _brief.repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
