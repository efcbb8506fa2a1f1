"""The one rule of the hostile tests, and strategies for what strangers write.

Whatever comes from outside ends in a right result, or in one error of the project's own kind that names the place and
is short enough to read. Never in another exception, an unpickling, a file outside the folder, or a large allocation.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGEST = 20_000  # characters of a message
MOST_MEMORY = 600 << 20  # bytes by which one example may raise this process's peak

SAVED = ("lora", "roselora", "adalora", "simplexlora", "prefix", "bitfit")
"""Methods whose folders are changed; between them they have every form of tensors."""

# `make fuzz` sets this: so many times the examples of CI, anew in each run.
FACTOR = int(os.environ.get("LOREDIT_FUZZ", "1"))


def examples(count: int) -> settings:
    """So many examples in CI, always the same ones; more, and others each time, under `make fuzz`."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,  # a shared machine's clock says nothing; `rule` bounds what may grow
        database=None,
        suppress_health_check=[*HealthCheck],
    )


class Refused(Exception):  # noqa: N818 - it is how an example ends well
    """The input was refused as it should be."""


@contextmanager
def rule(place: str = "") -> Iterator[None]:
    """Everything inside obeys the rule; an error of the project's own is swallowed. ``place``: what it has to name."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def unpickled(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    with (
        mock.patch.object(pickle, "load", unpickled),
        mock.patch.object(pickle, "loads", unpickled),
        mock.patch.object(pickle, "Unpickler", unpickled),
        mock.patch.object(torch, "load", unpickled),
    ):
        try:
            yield
        except ValueError as error:
            check(error, place)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_MEMORY, f"{grown / 1e6:.0f} MB more than before"


def check(error: ValueError, place: str = "") -> None:
    """An error is of the project's own kind, names the place, and is short."""
    kind = type(error)
    assert kind.__module__.startswith("loredit"), f"{kind.__module__}.{kind.__name__}: {error}"
    message = str(error)
    assert place in message, f"{message[:500]!r} does not name {place!r}"
    assert len(message) < LONGEST + 300 * message.count("\n"), f"a message of {len(message)} characters"
    assert "\n".join(message.split()), "an empty message"


def inside(folder: Path, work: Callable[[], None]) -> None:
    """``work`` leaves everything beside the folder as it is."""
    beside = sorted(path.name for path in folder.parent.iterdir())
    work()
    assert sorted(path.name for path in folder.parent.iterdir()) == beside


NASTY = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "{}",
        "{0}",
        "{} {}",
        "[/x]",
        "[bold]b",
        "\x1b[2J\x1b]0;t\x07",
        "\u202etxt",
        "\x00",
        "\ufeff",
        "e\u0301",
        "\U0001f1eb\U0001f1f7",
        "../../etc/passwd",
        "/dev/zero",
        "-",
        "-1",
        "null",
        "NaN",
        "=1+1",
        "<script>alert(1)</script>",
        "%s%n",
        "a" * 3000,
        "so " * 300,
        "<|endoftext|>",
    ]
)
TEXT = st.one_of(NASTY, st.text(max_size=30))
NUMBER = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 10**9, 10**18, 10**40, 2**31, 2**63]),
    st.floats(allow_nan=False, allow_infinity=False),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
"""Anything that JSON can say."""


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three changes anywhere in it: a part replaced, taken out, put in twice or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        place, way = value, [value]
        while isinstance(place, (dict, list)) and place and draw(st.integers(0, 3)):
            key = (
                draw(st.sampled_from(sorted(place)))
                if isinstance(place, dict)
                else draw(st.integers(0, len(place) - 1))
            )
            way.append(key)
            place = place[key]
        if len(way) == 1:
            if isinstance(value, dict):
                value[draw(TEXT)] = draw(JUNK)
            else:
                return draw(JUNK)
            continue
        holder = value
        for key in way[1:-1]:
            holder = holder[key]
        key = way[-1]
        how = draw(st.integers(0, 3))
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif how == 2 and isinstance(holder, dict):
            holder[draw(TEXT)] = holder.pop(key)
        else:
            holder[key] = draw(JUNK)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few changes: cut off, flipped, put in, doubled, or of another encoding."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.integers(0, 5))
        if how == 0:
            del data[at:]
        elif how == 1 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 2:
            data[at:at] = draw(st.sampled_from([b"\0", b"\xff\xfe", b"[" * 3000, b"{", b'"', b",", b"9" * 5000]))
        elif how == 3:
            del data[at : at + draw(st.integers(1, 9))]
        elif how == 4:
            data[at:at] = data[at : at + 20]
        else:
            data[:] = data.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "latin-1"])), "replace")
    return bytes(data)
