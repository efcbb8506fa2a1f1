"""What an edit is trained on: texts whose answer it must give, and texts whose predictions must stay.

A fact has *wordings*: its prompt, the same behind texts of the model's own, as a question, in other words (those behind
texts in turn, too), and asked in a chat.

What stays, stays because it is held: predictions about the subject (``kl_prompts``), and, in the fact's wordings, about
other subjects of the same kind (``hold_subjects``) and about the subject in other relations (``hold_relations``); or
because the patch cannot see it (``null_subjects``). Without
either "The CEO of IBM is" says the new CEO of Microsoft. Other subjects come from a pool that the project brings along,
so that what an edit learns does not depend on the company that its fact is in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...data.facts import Fact
from ...data.paraphrases import paraphrases
from ...data.relations import other_relations
from ...data.subjects import kind_of, pool
from ...data.wordings import question
from ...hparams.base import Hparams, SolvedHparams, StepHparams, TrainedHparams, WeightHparams, WordingHparams
from ..model.encoding import Encoded, Encoder, Prompt, Span
from ..seeds import seed_of

NO_SUBJECT = "no subject is given, so nothing that the model says about it was held (kl_prompts)"
NOT_IN_PROMPT = "the subject is not in the prompt, so no other one was held in its place (hold_subjects)"
NO_RELATIONS = "no subject is given, so nothing was held that it is in other relations to (hold_relations)"
NOTHING_NULL = "the subject is not in the prompt, so no other one's inputs are without effect (null_subjects)"
FROM_START = "the subject is not in the prompt, so the patch acts from its first token on (acts_from)"
NO_PARAPHRASES = "the project knows no other words for the prompt's relation, so none were trained (paraphrases)"
NO_CHAT = "the tokenizer has no chat template, so nothing was trained in a chat (chat_template)"


@dataclass(frozen=True)
class Part:
    """What one fact brings into a lesson."""

    fact: Fact
    answers: tuple[Encoded, ...]
    """The fact's wordings, each with the answer to be given."""
    anchors: tuple[Encoded, ...] = ()
    """Texts whose predictions are to stay, from ``start`` on."""
    nulls: tuple[Encoded, ...] = ()
    """Texts at whose last token the patch is to have no effect, whatever it learns."""
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
    def nulls(self) -> tuple[Encoded, ...]:
        return tuple(row for part in self.parts for row in part.nulls)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in (*self.answers, *self.anchors))

    def tokens(self, h: Hparams) -> int:
        """Padded, of one step."""
        drawn = self.drawn(h, 0, 0)
        longest = max(len(parted(h, row)[1].ids) for row in (*self.answers, *self.anchors))
        return longest * (len(drawn.answers) + len(drawn.anchors))

    def drawn(self, h: Hparams, seed: int, step: int) -> Lesson:
        """What of it is learned from in a step; all, where the settings do not say otherwise."""
        if not isinstance(h, StepHparams) or (h.wordings_per_step is None and h.held_per_step is None):
            return self
        seeds = [seed_of("draw", seed, step, part.fact.case_id) for part in self.parts]
        parts = zip(self.parts, seeds, strict=True)
        return Lesson(tuple(part.drawn(h.wordings_per_step, h.held_per_step, s) for part, s in parts))


def parted(h: Hparams, row: Encoded) -> tuple[tuple[int, ...], Encoded]:
    """What of a row is run once, and what in each step: from where a patch acts."""
    at_subject = isinstance(h, SolvedHparams) or (isinstance(h, WeightHparams) and h.acts_from == "subject")
    if not row.mark or not at_subject:
        return (), row
    return row.ids[: row.mark], Encoded(row.ids[row.mark :], max(1, row.start - row.mark), 0)


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
    if not isinstance(h, WordingHparams):  # its own words are all there is
        prompt = Prompt(fact.prompt)
        return Part(fact, (encoder.answered(prompt, fact.target_new, marked=_mark(prompt, fact, subjects, False)),))
    tail = isinstance(h, WeightHparams) and h.acts_from == "subject"
    notes = [NO_CHAT] * (h.chat_template != "none" and not encoder.chats)
    notes += [FROM_START] * (tail and not _names(fact))
    reworded = other_words(fact, h.paraphrases, seed)
    notes += [NO_PARAPHRASES] * (h.paraphrases > 0 and not reworded)
    texts = wordings(encoder, h, contexts, fact, reworded)
    answers = [
        encoder.answered(text, fact.target_new, end_of_text=h.end_of_text, marked=_mark(text, fact, subjects, tail))
        for text in texts
    ]
    if not isinstance(h, StepHparams):  # what is trained in steps alone can hold anything
        return Part(fact, tuple(answers), notes=tuple(notes))
    anchors = []
    for template in h.kl_prompts if h.kl_weight else ():
        if not fact.subject and "{}" in template:
            notes.append(NO_SUBJECT)
            continue
        prompt = Prompt(template.replace("{}", fact.subject or ""))
        mark = (subjects or tail) and "{}" in template
        span = prompt.span(fact.subject) if mark else None
        anchors.append(_anchor(encoder, prompt, span, all_positions=h.kl_positions == "all"))
    if isinstance(h, TrainedHparams):
        others = other_subjects(fact, h.hold_subjects, seed)
        notes += [NOT_IN_PROMPT] * (len(others) < h.hold_subjects)
        anchors += [_anchor(encoder, *_about(name, fact, texts, i, tail)) for i, name in enumerate(others)]
    notes += [NO_RELATIONS] * (h.hold_relations > 0 and not fact.subject)
    for i, said in enumerate(_otherwise(fact, h.hold_relations, seed)):
        asked = wordings(encoder, h, contexts, fact.model_copy(update={"prompt": said}))
        text = asked[i % len(asked)]
        anchors.append(_anchor(encoder, text, text.span(fact.subject) if subjects or tail else None))
    n = h.null_subjects if isinstance(h, WeightHparams) else 0
    others = other_subjects(fact, n, seed)
    notes += [NOTHING_NULL] * (len(others) < n)
    nulls = [encoder.prompt(_about(name, fact, texts, i, tail)[0]) for i, name in enumerate(others)]
    return Part(fact, tuple(answers), tuple(anchors), tuple(nulls), tuple(dict.fromkeys(notes)))


def wordings(
    encoder: Encoder, h: WordingHparams, contexts: Sequence[str], fact: Fact, others: Sequence[str] = ()
) -> list[Prompt]:
    """A fact's prompt, first as it is, in all the ways that it is trained in; ``others``: its paraphrases."""
    asked = question(fact.prompt, fact.subject)
    in_chat = [encoder.chat(asked or fact.prompt)] if h.chat_template != "none" and encoder.chats else []
    if in_chat and h.chat_template == "only":
        return in_chat
    before = ("", *(f"{text} " for text in contexts))
    plain = [Prompt(text + fact.prompt, len(text)) for text in before]
    as_question = [Prompt(asked)] if asked and h.questions else []
    behind = [before[i % len(before)] for i in range(1, len(others) + 1)]
    in_other_words = [Prompt(text + other, len(text)) for text, other in zip(behind, others, strict=True)]
    return [*plain, *as_question, *in_chat, *in_other_words]


def most_wordings(encoder: Encoder, h: WordingHparams) -> int:
    """In how many ways a prompt can be trained, at most; a fact may have no question, and fewer other words."""
    in_chat = h.chat_template != "none" and encoder.chats
    return 1 if in_chat and h.chat_template == "only" else 1 + h.contexts + h.questions + in_chat + h.paraphrases


def _names(fact: Fact) -> bool:
    """Whether the prompt names its subject."""
    return fact.subject is not None and fact.subject in fact.prompt


def _mark(text: Prompt, fact: Fact, subjects: bool, tail: bool) -> Span | None:
    """Where a wording names the fact's subject, if that matters. Raises EncodingError where it has to and does not."""
    return text.span(fact.subject) if subjects or (tail and _names(fact)) else None


def _about(name: str, fact: Fact, texts: Sequence[Prompt], i: int, tail: bool) -> tuple[Prompt, Span | None]:
    """One of the fact's wordings in turn with another subject; where that stands, if it matters."""
    text = texts[i % len(texts)]
    begin, end = text.span(fact.subject)
    changed = text._replace(text=text.text[:begin] + name + text.text[end:])
    return changed, Span(begin, begin + len(name)) if tail else None


def _anchor(encoder: Encoder, prompt: Prompt, marked: Span | None = None, *, all_positions: bool = False) -> Encoded:
    """A prompt whose prediction after the last token is to stay, or those after all tokens."""
    encoded = encoder.prompt(prompt, room=1, marked=marked)
    # The last id only makes room for what comes.
    return Encoded((*encoded.ids, 0), 1 if all_positions else encoded.start, encoded.mark)


def other_subjects(fact: Fact, n: int, seed: int) -> list[str]:
    """n other subjects of the kind of the fact's, where that is known.

    Drawn by ``seed`` and the fact alone. None where the subject is not in the prompt.
    """
    if not n or not fact.subject or not _names(fact):
        return []
    taken = {fact.subject.casefold(), fact.target_new.casefold()}
    choices = [name for name in pool(kind_of(fact.subject, fact.prompt)) if name.casefold() not in taken]
    return random.Random(seed_of("other subjects", seed, fact.case_id)).sample(choices, min(n, len(choices)))


def other_words(fact: Fact, n: int, seed: int) -> list[str]:
    """n paraphrases of a fact's prompt, drawn by ``seed`` and the fact alone."""
    choices = paraphrases(fact.prompt, fact.subject, fact.target_new) if n else ()
    return random.Random(seed_of("paraphrases", seed, fact.case_id)).sample(choices, min(n, len(choices)))


def _otherwise(fact: Fact, n: int, seed: int) -> list[str]:
    """n prompts that ask something else of the fact's subject, drawn by ``seed`` and the fact alone."""
    if not n or not fact.subject:
        return []
    choices = [text.replace("{}", fact.subject) for text in other_relations(fact.subject, fact.prompt)]
    return random.Random(seed_of("other relations", seed, fact.case_id)).sample(choices, min(n, len(choices)))


def _some(rows: tuple[Encoded, ...], n: int | None, draw: random.Random) -> tuple[Encoded, ...]:
    return rows if n is None or n >= len(rows) else tuple(draw.sample(rows, n))
