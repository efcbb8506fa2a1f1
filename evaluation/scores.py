"""What an evaluation observed, fact by fact: the only thing that metrics see.

A :class:`FactScores` is one line of ``results.jsonl``. Nothing here is averaged yet, so every metric can be
recomputed, and two runs compared pair by pair, from the files alone.
"""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Finite = Annotated[
    float | None, BeforeValidator(lambda value: None if isinstance(value, float) and not isfinite(value) else value)
]
"""A number, or None for one that is not finite, which JSON could not say. Earlier files said NaN."""

Kind = Literal["rewrite", "rephrase", "chat", "locality", "portability", "claim"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerScore(_Record):
    """One answer to one prompt, teacher-forced on ``prompt + " " + answer`` through one model."""

    correct: tuple[bool, ...]
    """Per answer token: is it the model's argmax?"""
    log_prob: float
    """Sum over the answer's tokens of log P(token | what stands before it), in nats."""


class Seen(_Record):
    """What one model (unedited or edited) did with one probe."""

    answers: tuple[AnswerScore, ...]
    """One score per accepted answer of the probe, in the probe's order."""
    contrast: AnswerScore | None = None
    """The competing answer: ``ground_truth`` for rewrite and rephrase, ``target_new`` for locality. Only with
    ``probabilities``, and only where the fact has one that differs from the accepted answer."""
    generated: str | None = None
    """Greedy continuation of the prompt up to a natural stop. Only with ``generation``."""


class Place(_Record):
    """Where in a claim (:class:`~...data.facts.Claim`) a probe stands."""

    claim: int
    """Which of its group's."""
    way: int | None
    """None: it is given."""


class ProbeScores(_Record):
    """One probe through the unedited and the edited model."""

    kind: Kind
    group: str
    """KnowEdit's name for the sort of probe ("Relation_Specificity"); equal to ``kind`` where there is none."""
    prompt: str
    answers: tuple[str, ...]
    base: Seen
    edited: Seen
    same: tuple[bool, ...]
    """Per token of the *first* answer: is the edited model's argmax the unedited model's? Empty without one."""
    place: Place | None = None
    """Of a claim's probe."""


class FactScores(_Record):
    """All probes of one edited fact, and how the edit went."""

    case_id: str
    prompt: str
    target_new: str
    probes: tuple[ProbeScores, ...]
    base_text: str | None = None
    """100 tokens sampled after the prompt by the unedited model (without the prompt); None without fluency."""
    edited_text: str | None = None
    steps: int
    """Optimizer steps the edit took."""
    loss: Finite
    """The edit's last training loss; None where none was seen."""
    nonzero_share: float
    """Share of the edit's trained numbers that are not zero."""
    report: dict[str, dict[str, int | float]] = {}
    """What the method has found out about this edit, by site: ranks, say. See ``Patch.report``."""
    edit_seconds: float = 0.0
    """Wall time of training, this fact's share of its batch."""
    score_seconds: float = 0.0
    """Wall time of scoring and generating, likewise."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than the settings say, and why."""
    error: str | None = None
    """Why this fact could not be edited or scored; its probes are then empty and it counts in no mean."""


class Perplexity(_Record):
    """The perplexity of both models on one text."""

    base: Finite
    edited: Finite
    """None where a broken model's is infinite."""
    tokens: int
    """Predicted tokens, T - 1."""
