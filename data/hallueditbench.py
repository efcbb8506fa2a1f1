"""HalluEditBench (Huang et al., 2025, arXiv 2410.16251, llm-editing/HalluEditBench): facts that a model got wrong.

A row has a question, its right answer and what is asked about it: the same in other words (generalization), as multiple
choice, as a question to be answered with yes or with no, and backwards (claims ``multiple_choice``, ``yes``, ``no`` and
``reversed``, which the paper counts as generalization too); what follows over two to six hops (portability), and
something else about the subject (locality, whose answer is whatever the model says). Of the paper's five facets
*robustness* alone is missing, which takes dialogues with a second model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict

from .facts import Claim, Fact, Probe, Text
from .formats import Record, Records, read_file

_HOPS = range(2, 7)


class Row(Record):
    """A row; empty cells are absent."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    subject: Text
    object: Text
    question: Text
    paraphrased_question: Text | None = None
    multiple_choice_with_letters: Text | None = None
    multiple_choice_labels: Text | None = None
    yes_question: Text | None = None
    no_question: Text | None = None
    locality_question: Text | None = None
    reversed_relation_question: Text | None = None
    question_2hop: Text | None = None
    answer_2hop: Text | None = None
    question_3hop: Text | None = None
    answer_3hop: Text | None = None
    question_4hop: Text | None = None
    answer_4hop: Text | None = None
    question_5hop: Text | None = None
    answer_5hop: Text | None = None
    question_6hop: Text | None = None
    answer_6hop: Text | None = None

    def facts(self, case_id: str) -> tuple[list[Fact], int]:
        choice = self.multiple_choice_with_letters
        asked = {
            "multiple_choice": (
                choice and f"{self.question}\n{choice}\nThe letter of the right answer is",
                self.multiple_choice_labels,
            ),
            "yes": (self.yes_question, "Yes"),
            "no": (self.no_question, "No"),
            "reversed": (self.reversed_relation_question, self.subject),
        }
        hops = {f"{n}_hops": (getattr(self, f"question_{n}hop"), getattr(self, f"answer_{n}hop")) for n in _HOPS}
        other = self.locality_question
        fact = Fact(
            case_id=case_id,
            prompt=self.question,
            target_new=self.object,
            subject=self.subject if self.subject in self.question else None,
            rephrase_prompts=(self.paraphrased_question,) if self.paraphrased_question else (),
            locality={"other": (Probe(prompt=other, answers=()),)} if other else {},
            portability={name: (probe,) for name, probe in _probes(hops).items()},
            claims={name: (Claim.all([probe]),) for name, probe in _probes(asked).items()},
        )
        return [fact], sum(bool(question) and not answer for question, answer in (*asked.values(), *hops.values()))


def _probes(asked: Mapping[str, tuple[str | None, str | None]]) -> dict[str, Probe]:
    """Those that have a question and an answer."""
    return {
        name: Probe(prompt=question, answers=(answer,))
        for name, (question, answer) in asked.items()
        if question and answer
    }


FORMAT = Records(frozenset({"question", "object", "paraphrased_question", "yes_question"}), Row)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
