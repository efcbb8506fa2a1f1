"""From records to facts: what a format is, and the one reader for all of them."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from .facts import BadRecord, Fact, FactError
from .messages import brief, listed
from .records import read_bytes, records
from .requests import FIELDS, MESSAGES, to_fact

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

OWN_NAMES = {field: field for field in FIELDS}
"""The names of a format that calls everything as EasyEdit's request does."""

_EXPECTED = {"tuple_type": "a list", "model_type": "an object with fields", "too_short": "one or more"}


@dataclass(frozen=True)
class Format(ABC):
    """One way of writing facts down; a file is in this format if any of its records has all ``keys``."""

    keys: frozenset[str]

    def read(self, record: object, case_id: str) -> tuple[list[Fact], int]:
        """The record's facts, and how many of their probes were left out for want of an answer. Raises FactError."""
        if isinstance(record, ValueError):
            raise FactError("", [BadRecord("", "", str(record))])
        if not isinstance(record, dict):
            raise FactError("", [BadRecord("", "", f"expected an object with fields, found {brief(record)}")])
        return self.facts(record, case_id)

    @property
    @abstractmethod
    def known(self) -> frozenset[str]:
        """The names of the fields that are read."""

    @abstractmethod
    def facts(self, record: Mapping[str, object], case_id: str) -> tuple[list[Fact], int]:
        """:meth:`read` of an object; a fact without a ``case_id`` of its own gets this one."""


@dataclass(frozen=True)
class Requests(Format):
    """Records that say what EasyEdit's request says, a fact each.

    ``names`` maps a request's fields to the format's names for them, dots leading into nested objects
    ("portability.New Question"); what it leaves out is not read.
    """

    names: Mapping[str, str]

    @property
    def known(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.names.values())

    def facts(self, record: Mapping[str, object], case_id: str) -> tuple[list[Fact], int]:
        try:
            request = {field: _look_up(record, name) for field, name in self.names.items()}
            fact, unanswered = to_fact(request, case_id)
            return [fact], unanswered
        except FactError as error:
            raise FactError("", [fault._replace(field=self._own(fault.field)) for fault in error.bad]) from None

    def _own(self, field: str) -> str:
        """The format's own name for a field of the request, or for what is inside of one."""
        head = re.split(r"[.\[]", field)[0]
        return self.names.get(head, head) + field[len(head) :]


class Record(BaseModel, ABC):
    """A record of a form of its own: its fields are those that are read, under the names that the file has."""

    model_config = ConfigDict(frozen=True)

    @abstractmethod
    def facts(self, case_id: str) -> tuple[list[Fact], int]:
        """Its facts, and how many of their probes were left out for want of an answer.

        ``case_id`` is for a record without one. Raises FactError.
        """


@dataclass(frozen=True)
class Records(Format):
    """Records of a form of their own."""

    record: type[Record]

    @property
    def known(self) -> frozenset[str]:
        return frozenset(field.alias or name for name, field in self.record.model_fields.items())

    def facts(self, record: Mapping[str, object], case_id: str) -> tuple[list[Fact], int]:
        try:
            return self.record.model_validate(record).facts(case_id)
        except ValidationError as error:
            raise FactError("", [_fault(one) for one in error.errors()]) from None


def _fault(error: ErrorDetails) -> BadRecord:
    """What pydantic found, with the place in the file's own words: ``questions[0]``."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    found = brief(error["input"])
    if expected := _EXPECTED.get(error["type"]):
        return BadRecord("", field, f"is {found}, expected {expected}")
    said = MESSAGES.get(error["type"])
    return BadRecord("", field, said.format(found) if said else f"is {found}: {error['msg']}")


@dataclass(frozen=True)
class LoadedFacts:
    """What a source holds: the good facts in its order and, with ``skip_bad``, the faults of the others.

    Example:
        >>> LoadedFacts.of([Fact(prompt="Water is", target_new="dry")]).source
        'facts'
    """

    source: str
    """Its name: a file, "samples", "standard input", "facts"."""
    facts: list[Fact]
    bad: list[BadRecord]
    identity: str
    """SHA-256 of the source's bytes, in hexadecimal."""
    unanswered: int
    """Number of locality and portability probes left out because their answer is empty."""

    @staticmethod
    def of(facts: Sequence[Fact]) -> LoadedFacts:
        """Facts that were made in Python. Raises FactError if a case id stands twice."""
        if twice := [case_id for case_id, n in Counter(fact.case_id for fact in facts).items() if n > 1]:
            raise FactError(f"facts need case ids of their own; these stand twice: {listed(twice)}")
        content = "\n".join(fact.model_dump_json() for fact in facts)
        return LoadedFacts("facts", [*facts], [], hashlib.sha256(content.encode()).hexdigest(), 0)


def read(name: str, content: bytes, formats: Sequence[Format], *, skip_bad: bool = False) -> LoadedFacts:
    """The facts in ``content``, read as the first of ``formats`` that it is in; ``name`` is for suffix and messages.

    A fact without a ``case_id`` gets its record's number in the file, from 0. Raises FactError with all faults of all
    records; with ``skip_bad`` only if nothing usable is left.
    """
    found = list(records(name, content))
    objects = [record for _, record in found if isinstance(record, dict)]
    chosen = _choose(name, formats, objects)
    bad: list[BadRecord] = []
    facts: dict[str, Fact] = {}
    first: dict[str, str] = {}
    unanswered = 0
    for number, (line, record) in enumerate(found):
        where = f"{name}, line {line}, record {number}"
        if isinstance(record, dict) and (misspelt := _misspelt(chosen, record)):
            bad += [fault._replace(where=where) for fault in misspelt]
            continue
        try:
            own, dropped = chosen.read(record, str(number))
        except FactError as error:
            bad += [fault._replace(where=where) for fault in error.bad]
            continue
        if taken := next((fact.case_id for fact in own if fact.case_id in facts), None):
            bad.append(BadRecord(where, "case_id", f"{taken!r} is taken by {first[taken]}"))
            continue
        facts |= {fact.case_id: fact for fact in own}
        first |= dict.fromkeys((fact.case_id for fact in own), where)
        unanswered += dropped
    if bad and not skip_bad:
        raise FactError(f"{name}: {len(bad)} faults (--skip-bad or skip_bad=True leaves these records out):", bad)
    if not facts:
        raise FactError(f"{name} holds no facts", bad)
    return LoadedFacts(name, list(facts.values()), bad, hashlib.sha256(content).hexdigest(), unanswered)


def read_file(path: str | Path, formats: Sequence[Format]) -> list[Fact]:
    """The facts of a file, all of which must be good."""
    return read(str(path), read_bytes(Path(path)), formats).facts


def _choose(name: str, formats: Sequence[Format], objects: Sequence[dict[str, object]]) -> Format:
    for candidate in formats:
        if any(candidate.keys <= record.keys() for record in objects):
            return candidate
    together = {key for record in objects for key in record}
    for candidate in formats:  # no record is whole, but it can be told what they lack
        if candidate.keys <= together:
            return candidate
    if objects:
        expected = " or ".join(" + ".join(sorted(candidate.keys)) for candidate in reversed(formats))
        seen = ", ".join(dict.fromkeys(str(key) for record in objects for key in record))
        raise FactError(
            f"{name}: no known format of facts. Its records have {seen} (empty cells are no fields); expected "
            f"{expected}"
        )
    return formats[-1]


def _misspelt(chosen: Format, record: dict[str, object]) -> list[BadRecord]:
    """Fields of a record that are nearly the name of one that it does not have, so that nothing is lost unseen."""
    absent = [name for name in chosen.known if name not in record]
    near = {key: _nearest(key, tuple(sorted(absent))) for key in record if key not in chosen.known}
    return [BadRecord("", key, f"is unknown; did you mean {match!r}?") for key, match in near.items() if match]


@lru_cache(maxsize=1024)  # the records of a file have the same few names
def _nearest(key: str, names: tuple[str, ...]) -> str | None:
    return next(iter(get_close_matches(key, names, n=1, cutoff=0.85)), None)


def _look_up(record: Mapping[str, object], dotted: str) -> object:
    """A field, or one inside of others, or of each of a list. Raises FactError where one of those is no object, whose
    parts would be lost."""
    value: object = record
    names = dotted.split(".")
    for depth, name in enumerate(names):
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            return [_look_up(one, ".".join(names[depth:])) for one in value]
        if not isinstance(value, Mapping):
            outer = ".".join(names[:depth])
            raise FactError("", [BadRecord("", outer, f"is {brief(value)}, expected an object with {name!r}")])
        value = value.get(name)
    return value
