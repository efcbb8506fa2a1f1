"""What is edited and how it is probed: :class:`Fact` and :class:`Probe`; and what is wrong with a record of facts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
"""Text that is not blank. It stays as written: spaces at its ends are the data's own and are not stripped."""


class Probe(BaseModel):
    """A prompt with the answers that count as right (aliases of one another, the preferred one first).

    Example:
        >>> Probe(prompt="France lies in", answers=("Europe",)).answers
        ('Europe',)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    answers: Annotated[tuple[Text, ...], Field(min_length=1)]


class Fact(BaseModel):
    """One edit request: after the edit, ``prompt`` is to be answered with ``target_new``.

    ``rephrase_prompts`` ask the same in other words (generalization); ``chat_prompts`` are the questions that a user
    would type to a chat model, to be answered in a turn of its own and not by reading on. ``locality`` probes ask for
    things the edit must leave alone, ``portability`` probes for what follows from it; both are grouped by the kind of
    probe, as in KnowEdit (``{"Relation_Specificity": (probe, ...)}``). ``ground_truth`` is what was right before the
    edit, with its aliases. ``case_id`` names the fact in results and is unique within its file; a fact without one gets
    one that is made of what it says.

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

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("case_id") is not None:
            return values
        said = "\x1f".join(str(values.get(field)) for field in ("prompt", "subject", "target_new"))
        return {**values, "case_id": f"fact-{hashlib.sha256(said.encode('utf-8', 'replace')).hexdigest()[:8]}"}

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
