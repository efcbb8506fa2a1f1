"""What is edited and how it is probed: :class:`Fact`, :class:`Probe`, :class:`Claim`; and a record's faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

LONGEST = 1_000_000
"""Characters of a text, at most: no context holds more, and every one of them would be encoded to find that out."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST, pattern=r"\S")]
"""Text that is not blank. It stays as written: spaces at its ends are the data's own and are not stripped."""


class Probe(BaseModel):
    """A prompt with the answers that count as right (aliases of one another, the preferred one first).

    A locality probe may have none: nobody wrote down what is right, and only freely written answers are compared.

    Example:
        >>> Probe(prompt="France lies in", answers=("Europe",)).answers
        ('Europe',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    answers: tuple[Text, ...]


class Claim(BaseModel):
    """What several probes show together: true where every probe of one of its ``ways`` is answered right.

    Any of three questions is three ways of one probe, all of three one way. It counts only for a model that answers
    what is ``given`` before the edit: who does not know the capital of Italy cannot follow where Ada's country has its.

    Example:
        >>> Claim.any([Probe(prompt="France lies in", answers=("Asia",))]).ways
        ((Probe(prompt='France lies in', answers=('Asia',)),),)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ways: Annotated[tuple[Annotated[tuple[Probe, ...], Field(min_length=1)], ...], Field(min_length=1)]
    given: tuple[Probe, ...] = ()

    @staticmethod
    def any(probes: Iterable[Probe]) -> Claim:
        """True where one of the probes is answered right."""
        return Claim(ways=tuple((probe,) for probe in probes))

    @staticmethod
    def all(probes: Iterable[Probe]) -> Claim:
        """True where all probes are answered right."""
        return Claim(ways=(tuple(probes),))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """All of its probes."""
        return (*self.given, *(probe for way in self.ways for probe in way))


class Fact(BaseModel):
    """One edit request: after the edit, ``prompt`` is to be answered with ``target_new``.

    ``rephrase_prompts`` ask the same in other words (generalization); ``chat_prompts`` are the questions that a user
    would type to a chat model, to be answered in a turn of its own and not by reading on. ``locality`` probes ask for
    things the edit must leave alone, ``portability`` probes for what follows from it; both are grouped by the kind of
    probe, as in KnowEdit (``{"Relation_Specificity": (probe, ...)}``). ``claims`` are what a benchmark counts by a rule
    of its own, each group a number of its own. ``ground_truth`` is what was right before the edit, with its aliases.
    ``case_id`` names the fact in results and is unique within its file; a fact without one gets one that is made of
    what it says. Facts of one ``bundle`` are one change of the world, which a run never makes in part.

    Example:
        >>> Fact(prompt="The capital of France is", target_new="Rome", subject="France").case_id
        'fact-dc0dd8ae'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: Text = ""
    prompt: Text
    target_new: Text
    subject: Text | None = None
    ground_truth: tuple[Text, ...] = ()
    rephrase_prompts: tuple[Text, ...] = ()
    chat_prompts: tuple[Text, ...] = ()
    locality: dict[Text, tuple[Probe, ...]] = Field(default_factory=dict)
    portability: dict[Text, tuple[Probe, ...]] = Field(default_factory=dict)
    claims: dict[Text, tuple[Claim, ...]] = Field(default_factory=dict)
    bundle: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("case_id") is not None:
            return values
        said = "\x1f".join(str(values.get(field)) for field in ("prompt", "subject", "target_new"))
        return {**values, "case_id": f"fact-{hashlib.sha256(said.encode('utf-8', 'replace')).hexdigest()[:8]}"}

    @model_validator(mode="after")
    def _answered(self) -> Fact:
        """Raise ValueError where a probe has no answer that needs one."""
        asked = [probe for probes in self.portability.values() for probe in probes]
        asked += [probe for claims in self.claims.values() for claim in claims for probe in claim.probes]
        if lacking := [probe.prompt for probe in asked if not probe.answers]:
            raise ValueError(f"the probe {lacking[0]!r} has no answer")
        return self

    def __repr__(self) -> str:
        return f"<Fact {self.case_id}: {self.prompt!r} -> {self.target_new!r}>"


class BadRecord(NamedTuple):
    """One fault of one record: where it stands, which field (in the file's own words), what is wrong with it.

    ``where`` is "facts.csv, line 3, record 1": lines count from 1, records (as case ids do) from 0.

    Example:
        >>> print(BadRecord("facts.csv, line 3, record 1", "prompt", "is blank"))
        facts.csv, line 3, record 1: prompt: is blank
    """

    where: str
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class FactError(ValueError):
    """Facts that cannot be used; ``bad`` lists every faulty record, and the message tells them all."""

    def __init__(self, message: str, bad: Sequence[BadRecord] = ()):
        super().__init__("\n  ".join([message, *map(str, bad)]))
        self.bad = list(bad)


def bundles(facts: Iterable[Fact]) -> list[list[Fact]]:
    """The facts that are one change each, in order; a fact of no bundle is one by itself.

    Example:
        >>> named = {"a": "x", "b": None, "c": "x"}
        >>> facts = [Fact(case_id=name, prompt="p", target_new="t", bundle=of) for name, of in named.items()]
        >>> [[fact.case_id for fact in bundle] for bundle in bundles(facts)]
        [['a', 'c'], ['b']]
    """
    found: dict[tuple[str, bool], list[Fact]] = {}
    for fact in facts:
        found.setdefault((fact.bundle or fact.case_id, fact.bundle is None), []).append(fact)
    return [*found.values()]
