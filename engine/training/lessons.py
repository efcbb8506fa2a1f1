"""What an edit is trained on: texts whose answer it must give, and texts whose predictions must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...data.facts import Fact
from ..model.encoding import Encoded, Encoder
from ..settings import Hparams

NO_SUBJECT = "no subject is given, so nothing that the model says about it was held (kl_prompts)"


@dataclass(frozen=True)
class Lesson:
    """What one edit is trained on: texts whose answer it must give, and texts whose predictions must stay."""

    facts: tuple[Fact, ...]
    answers: tuple[Encoded, ...]
    anchors: tuple[Encoded, ...] = ()
    notes: tuple[str, ...] = ()
    """What the settings ask for and these facts do not allow."""

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in (*self.answers, *self.anchors))

    @property
    def tokens(self) -> int:
        """Padded."""
        return self.longest * (len(self.answers) + len(self.anchors))


def lesson(encoder: Encoder, h: Hparams, contexts: Sequence[str], facts: Sequence[Fact]) -> Lesson:
    """The lesson of an edit that carries these facts. Raises EncodingError."""
    before = ["", *(f"{text} " for text in contexts)]
    answers = [
        encoder.answered(context + fact.prompt, fact.target_new, end_of_text=h.end_of_text)
        for fact in facts
        for context in before
    ]
    prompts = [t.replace("{}", f.subject or "") for f in facts for t in h.kl_prompts if f.subject or "{}" not in t]
    unheld = h.kl_weight and any("{}" in t for t in h.kl_prompts) and not all(f.subject for f in facts)
    held = [encoder.prompt(prompt, room=1).ids for prompt in prompts] if h.kl_weight else []
    # What comes after a prompt's last token is held, or after each; the last id only makes room for it.
    anchors = [Encoded((*ids, 0), 1 if h.kl_positions == "all" else len(ids)) for ids in held]
    return Lesson(tuple(facts), tuple(answers), tuple(anchors), (NO_SUBJECT,) if unheld else ())
