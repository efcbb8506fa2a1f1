"""UnKE (Deng et al., 2025, arXiv 2405.15349, TrustedLLM/UnKE): answers of a hundred words in place of a name.

A record has a question, the same in other words, the text that is to answer both, and questions about parts of it
(portability ``parts``). ``--eval generation`` tells how much of the text comes back, as ROUGE-L.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from .facts import BadRecord, Fact, FactError, Probe, Text
from .formats import Record, Records, read_file


class Case(Record):
    """A question, its long answer, and questions about that."""

    id: int
    question: Text
    para_question: Text
    answer: Text
    sub_question: Annotated[tuple[Text, ...], Field(min_length=1)]
    sub_answer: Annotated[tuple[Text, ...], Field(min_length=1)]

    def facts(self, case_id: str) -> tuple[list[Fact], int]:
        if len(self.sub_question) != len(self.sub_answer):
            said = f"has {len(self.sub_answer)} for {len(self.sub_question)} of sub_question"
            raise FactError("", [BadRecord("", "sub_answer", said)])
        parts = tuple(
            Probe(prompt=question, answers=(answer,))
            for question, answer in zip(self.sub_question, self.sub_answer, strict=True)
        )
        fact = Fact(
            case_id=str(self.id),
            prompt=self.question,
            target_new=self.answer,
            rephrase_prompts=(self.para_question,),
            portability={"parts": parts},
        )
        return [fact], 0


FORMAT = Records(frozenset({"question", "para_question", "sub_question", "sub_answer"}), Case)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
