"""RippleEdits (Cohen et al., 2024, arXiv 2307.12976, edenbiran/RippleEdits, MIT licence): what an edit drags along.

A record edits one fact and tests it by six criteria: *Logical_Generalization*, *Compositionality_I* and *_II*,
*Subject_Aliasing*, *Relation_Specificity* and *Forgetfulness* (the paper's preservation). A test is passed where any of
its queries (``OR``) or all of them (``AND``) are answered with every one of their answers; it counts only where the
unedited model answers its condition queries. Each criterion is a claim; the two last ones are also asked as locality,
the others as portability.

A record says its fact as a whole sentence. Where prompt and answer part is seen from the previous fact, from the answer
to an alias of the subject, or from the last "is", "are" or "was"; what the subject is called, from the end that the
prompt shares with another relation's. Where neither shows, the record is a fault or the fact has no subject.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from .facts import BadRecord, Claim, Fact, FactError, Probe, Text
from .formats import Record, Records, read_file

_VERB = re.compile(r"^(.*\b(?:is|are|was|were)) (.+)$", re.DOTALL)
_FULL_STOP = re.compile(r"\s*\.$")


class Answer(BaseModel):
    """What counts as right, by all its names."""

    value: Text
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """As the authors take them: no single letters."""
        every = dict.fromkeys((self.value, *self.aliases))
        return tuple(name for name in every if len(name.strip()) > 1 or name.isdigit())


class Query(BaseModel):
    """A prompt and all of its answers, each of which is to be there."""

    prompt: Text
    answers: tuple[Answer, ...]
    subject_id: str | None = None

    @property
    def probes(self) -> tuple[Probe, ...] | None:
        """One for each answer; None where an answer has no name that counts."""
        names = [answer.names for answer in self.answers]
        return tuple(Probe(prompt=self.prompt, answers=own) for own in names) if names and all(names) else None


class Test(BaseModel):
    """Queries about one consequence of an edit."""

    test_queries: tuple[Query, ...]
    test_condition: Literal["OR", "AND"]
    condition_queries: tuple[Query, ...] = ()

    @property
    def claim(self) -> Claim | None:
        """None where it cannot be answered."""
        asked, given = [[q.probes for q in queries] for queries in (self.test_queries, self.condition_queries)]
        known = tuple(probe for own in given for probe in own or ())
        ways = [own for own in asked if own]
        if not ways or any(own is None for own in given) or (self.test_condition == "AND" and None in asked):
            return None
        if self.test_condition == "AND":
            ways = [tuple(probe for own in ways for probe in own)]
        return Claim(ways=tuple(ways), given=known)


class PreviousFact(BaseModel):
    """What was so before, as a sentence."""

    prompt: Text


class Edit(PreviousFact):
    """The fact to edit, as a sentence."""

    subject_id: str | None = None
    previous_fact: PreviousFact | None = None


class Example(Record):
    """An edit and its tests by criterion."""

    edit: Edit
    Relation_Specificity: tuple[Test, ...]
    Logical_Generalization: tuple[Test, ...]
    Subject_Aliasing: tuple[Test, ...]
    Compositionality_I: tuple[Test, ...]
    Compositionality_II: tuple[Test, ...]
    Forgetfulness: tuple[Test, ...]

    def facts(self, case_id: str) -> tuple[list[Fact], int]:
        tests = {name: getattr(self, name) for name in (*_KEPT, *_FOLLOWING)}
        found = {name: [(test, test.claim) for test in own] for name, own in tests.items()}
        claims = {name: tuple(claim for _, claim in own if claim) for name, own in found.items()}
        asked = {
            name: tuple(dict.fromkeys(probe for claim in own for way in claim.ways for probe in way))
            for name, own in claims.items()
        }
        prompt, target, before = self._parted()
        fact = Fact(
            case_id=case_id,
            prompt=prompt,
            target_new=target,
            subject=self._subject(prompt),
            ground_truth=before,
            locality={name: asked[name] for name in _KEPT if asked[name]},
            portability={name: asked[name] for name in _FOLLOWING if asked[name]},
            claims={name: own for name, own in claims.items() if own},
        )
        return [fact], sum(claim is None for own in found.values() for _, claim in own)

    def _parted(self) -> tuple[str, str, tuple[str, ...]]:
        """Prompt, answer, and what was right before."""
        said = _FULL_STOP.sub("", self.edit.prompt)
        if self.edit.previous_fact:
            before = _FULL_STOP.sub("", self.edit.previous_fact.prompt)
            words, old = said.split(" "), before.split(" ")
            same = next((i for i, (a, b) in enumerate(zip(words, old, strict=False)) if a != b), 0)
            if same and _VERB.match(f"{' '.join(words[:same])} x"):
                begin = " ".join(words[:same])
                return begin, said[len(begin) + 1 :], (before[len(begin) + 1 :],)
        aliases = [name for q in self._queries("Subject_Aliasing") for answer in q.answers for name in answer.names]
        for name in sorted(aliases, key=len, reverse=True):
            if said.endswith(f" {name}"):
                return said.removesuffix(f" {name}"), name, ()
        if match := _VERB.match(said):
            return match[1], match[2], ()
        raise FactError("", [BadRecord("", "edit.prompt", f"is {said!r}, which does not tell prompt from answer")])

    def _subject(self, prompt: str) -> str | None:
        """The words behind "of" at the end that prompts about the same subject share."""
        others = [q.prompt for q in self._queries(*_KEPT, *_FOLLOWING) if q.subject_id == self.edit.subject_id]
        for other in others:
            mine, theirs = prompt.split(" ")[::-1], other.split(" ")[::-1]
            same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), 0)
            words = mine[:same][::-1]
            if 1 < len(words) < len(mine) - 1 and words[0] == "of" and words[-1] in ("is", "are", "was", "were"):
                return " ".join(words[1:-1]) or None
            if len(words) > 1 and mine[same : same + 1] == ["of"] and words[-1] in ("is", "are", "was", "were"):
                return " ".join(words[:-1])
        return None

    def _queries(self, *criteria: str) -> Iterator[Query]:
        for name in criteria:
            for test in getattr(self, name):
                yield from test.test_queries


_KEPT = ("Relation_Specificity", "Forgetfulness")
_FOLLOWING = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
FORMAT = Records(frozenset({"edit", "Logical_Generalization", "Compositionality_I", "Forgetfulness"}), Example)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
