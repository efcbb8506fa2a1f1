"""What an edit is trained on: texts whose answer it must give, and texts whose predictions must stay.

What stays, stays because it is held: predictions about the subject (``kl_prompts``), and, on the fact's own prompt,
about other subjects of the same kind (``hold_subjects``). Without the latter "The CEO of IBM is" says the new CEO of
Microsoft. They come from a pool that the project brings along, so that what an edit learns does not depend on the
company that its fact is in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...data.facts import Fact
from ...data.subjects import kind_of, pool
from ..model.encoding import Encoded, Encoder, Span, subject_span
from ..seeds import seed_of
from ..settings import Hparams, StepHparams, TrainedHparams

NO_SUBJECT = "no subject is given, so nothing that the model says about it was held (kl_prompts)"
NOT_IN_PROMPT = "the subject is not in the prompt, so no other one was held in its place (hold_subjects)"


@dataclass(frozen=True)
class Part:
    """What one fact brings into a lesson."""

    fact: Fact
    answers: tuple[Encoded, ...]
    """The fact's prompt and the same behind contexts, each with the answer to be given."""
    anchors: tuple[Encoded, ...] = ()
    """Texts whose predictions are to stay, from ``start`` on."""
    notes: tuple[str, ...] = ()
    """What the settings ask for and this fact does not allow."""

    def drawn(self, answers: int | None, anchors: int | None, seed: int) -> Part:
        """This part with so many of each, chosen by the seed; None: all of them."""
        draw = random.Random(seed)
        return replace(self, answers=_some(self.answers, answers, draw), anchors=_some(self.anchors, anchors, draw))


@dataclass(frozen=True)
class Lesson:
    """What one edit is trained on: the parts of all facts that it carries."""

    parts: tuple[Part, ...]

    @property
    def answers(self) -> tuple[Encoded, ...]:
        return tuple(row for part in self.parts for row in part.answers)

    @property
    def anchors(self) -> tuple[Encoded, ...]:
        return tuple(row for part in self.parts for row in part.anchors)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in (*self.answers, *self.anchors))

    @property
    def tokens(self) -> int:
        """Padded."""
        return self.longest * (len(self.answers) + len(self.anchors))


def lesson(
    encoder: Encoder,
    h: Hparams,
    contexts: Sequence[str],
    facts: Sequence[Fact],
    seed: int,
    *,
    subjects: bool = False,
) -> Lesson:
    """The lesson of an edit that carries these facts.

    ``subjects``: the last token of the fact's subject is marked wherever a text names it. Raises EncodingError.
    """
    return Lesson(tuple(_part(encoder, h, contexts, fact, seed, subjects) for fact in facts))


def _part(encoder: Encoder, h: Hparams, contexts: Sequence[str], fact: Fact, seed: int, subjects: bool) -> Part:
    span = subject_span(fact.prompt, fact.subject) if subjects else None
    answers = [
        encoder.answered(
            text + fact.prompt, fact.target_new, end_of_text=h.end_of_text, marked=span and span.behind(text)
        )
        for text in ("", *(f"{text} " for text in contexts))
    ]
    if not isinstance(h, StepHparams) or not h.kl_weight:  # what is trained in steps alone can hold anything
        return Part(fact, tuple(answers))
    about = [(t, t.replace("{}", fact.subject or "")) for t in h.kl_prompts if fact.subject or "{}" not in t]
    n = h.hold_subjects if isinstance(h, TrainedHparams) else 0
    others = other_subjects(fact, n, seed)
    anchors = [
        _anchor(
            encoder,
            prompt,
            all_positions=h.kl_positions == "all",
            marked=subject_span(prompt, fact.subject) if subjects and "{}" in template else None,
        )
        for template, prompt in about
    ]
    anchors += [_anchor(encoder, prompt, all_positions=False) for prompt in others]
    notes = [NO_SUBJECT] * (not fact.subject and any("{}" in t for t in h.kl_prompts))
    notes += [NOT_IN_PROMPT] * (len(others) < n)
    return Part(fact, tuple(answers), tuple(anchors), tuple(notes))


def _anchor(encoder: Encoder, prompt: str, *, all_positions: bool, marked: Span | None = None) -> Encoded:
    """A prompt whose prediction after the last token is to stay, or those after all tokens."""
    encoded = encoder.prompt(prompt, room=1, marked=marked)
    # The last id only makes room for what comes.
    return Encoded((*encoded.ids, 0), 1 if all_positions else encoded.start, encoded.mark)


def other_subjects(fact: Fact, n: int, seed: int) -> list[str]:
    """The fact's prompt with n other subjects in its subject's place, of the same kind where that is known.

    Drawn by ``seed`` and the fact alone. None where the subject is not in the prompt.
    """
    subject = fact.subject
    if not n or not subject or subject not in fact.prompt:
        return []
    taken = {subject.casefold(), fact.target_new.casefold()}
    choices = [name for name in pool(kind_of(subject, fact.prompt)) if name.casefold() not in taken]
    drawn = random.Random(seed_of("other subjects", seed, fact.case_id)).sample(choices, min(n, len(choices)))
    return [fact.prompt.replace(subject, name) for name in drawn]


def _some(rows: tuple[Encoded, ...], n: int | None, draw: random.Random) -> tuple[Encoded, ...]:
    return rows if n is None or n >= len(rows) else tuple(draw.sample(rows, n))
