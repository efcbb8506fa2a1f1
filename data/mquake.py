"""MQuAKE (arXiv 2305.14795, princeton-nlp/MQuAKE, MIT licence): multi-hop questions whose answer follows from edits.

A case edits one fact or several, which are then one bundle, and asks for what follows from all of them:

- *edit-wise*: edit success, over all facts of all cases;
- *instance-wise* (claim ``instance``): every hop of the new chain is answered right, edited or not;
- *multi-hop* (claim ``multi_hop``): one of the three questions is answered right. ``portability`` is their mean.

The authors ask the questions behind demonstrations; here they stand alone. MQuAKE-CF, MQuAKE-CF-3k (both versions) and
MQuAKE-T have the same form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from .facts import Claim, Fact, Probe, Text
from .formats import Record, Records, read_file


class Label(BaseModel):
    """A thing, by what it is called."""

    str: Text


class Rewrite(BaseModel):
    """A fact to edit; ``{}`` in its prompt stands for the subject."""

    prompt: Text
    subject: Text
    question: Text
    target_new: Label
    target_true: Label


class Hop(BaseModel):
    """One step of the chain behind a question, as an unfinished sentence."""

    cloze: Text
    answer: Text
    answer_alias: tuple[Text, ...] = ()


class Case(Record):
    """What is edited together, and what is asked then."""

    case_id: int
    requested_rewrite: Annotated[tuple[Rewrite, ...], Field(min_length=1)]
    questions: Annotated[tuple[Text, ...], Field(min_length=1)]
    new_answer: Text
    new_answer_alias: tuple[Text, ...] = ()
    new_single_hops: Annotated[tuple[Hop, ...], Field(min_length=1)]

    def facts(self, case_id: str) -> tuple[list[Fact], int]:
        name, several = str(self.case_id), len(self.requested_rewrite) > 1
        answers = tuple(dict.fromkeys((self.new_answer, *self.new_answer_alias)))
        asked = tuple(Probe(prompt=question, answers=answers) for question in self.questions)
        hops = [
            Probe(prompt=h.cloze, answers=tuple(dict.fromkeys((h.answer, *h.answer_alias))))
            for h in self.new_single_hops
        ]
        facts = [
            Fact(
                case_id=f"{name}.{number}" if several else name,
                bundle=name if several else None,
                prompt=rewrite.prompt.replace("{}", rewrite.subject),
                target_new=rewrite.target_new.str,
                subject=rewrite.subject,
                ground_truth=(rewrite.target_true.str,),
                rephrase_prompts=(rewrite.question,),
            )
            for number, rewrite in enumerate(self.requested_rewrite)
        ]
        claims = {"multi_hop": (Claim.any(asked),), "instance": (Claim.all(hops),)}
        facts[0] = facts[0].model_copy(update={"portability": {"multi_hop": asked}, "claims": claims})
        return facts, 0


FORMAT = Records(frozenset({"requested_rewrite", "questions", "new_single_hops"}), Case)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
