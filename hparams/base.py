"""Hyper-parameters that methods share, by kind of method; each method adds its own to them."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Role = Literal["query", "key", "value", "qkv", "attention_output", "mlp_up", "mlp_gate", "mlp_down"]
"""What a linear map of a block is for."""
SHARES = r"^[01]?\.\d+-[01]?\.\d+$"
"""How a range of blocks is written whose ends are shares of a model's depth, each with a point in it."""


def _layers(value: object) -> object:
    """Layers as a list, as ``"20-24"`` (both ends included), as shares of the depth, or as ``"all"``."""
    if isinstance(value, float) or (isinstance(value, str) and "." in value):
        return "-".join(f"{end:.4f}" for end in _ends(str(value), float, 1.0))
    if isinstance(value, str) and value != "all":
        begin, end = _ends(value, int, MOST_LAYERS - 1)
        return list(range(int(begin), int(end) + 1))
    if value == []:
        raise ValueError(f"no layer is named; take {_LAYERS}")
    return [value] if isinstance(value, int) else value


def _ends(text: str, kind: type[int] | type[float], most: float) -> tuple[float, float]:
    first, dash, last = text.partition("-")
    try:
        begin, end = kind(first), kind(last if dash else first)
    except ValueError:
        raise ValueError(f"layers are {_LAYERS}") from None
    if not 0 <= begin <= end <= most:
        raise ValueError(f"a range of layers goes from a lower to a higher one, from 0 to {most:g}")
    return begin, end


_LAYERS = 'a list, a range such as "20-24", shares of the depth such as "0.66-0.83", or "all"'

MOST_LAYERS = 10_000
"""No model is deeper; a range beyond it is a slip of the pen, and would be counted out in full."""

MOST_COUNT, MOST_NUMBER = 10**9, 1e30
"""Hyper-parameters beyond these are slips of the pen, which tensors of 32 bits would not hold."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Layers = Annotated[Literal["all"] | Annotated[str, Field(pattern=SHARES)] | list[int], BeforeValidator(_layers)]


class Hparams(BaseModel):
    """Hyper-parameters that every method has. Each kind of method, and each method, adds its own; unknown keys are
    errors.

    Example:
        >>> Hparams(model="gpt2").model
        'gpt2'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(description="Model the preset is for: hub id, local folder, GGUF file or short name")

    @model_validator(mode="after")
    def _within_reach(self) -> Hparams:
        for name, value in self:
            most = MOST_COUNT if isinstance(value, int) else MOST_NUMBER
            if isinstance(value, (int, float)) and abs(value) > most:
                raise ValueError(f"{name} is beyond {most:g}, more than any model can be computed with")
            texts = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(text, str) and _SURROGATE.search(text) for text in texts):
                raise ValueError(f"{name} holds half of a character (a lone surrogate), which no tokenizer takes")
        return self


class WordingHparams(Hparams):
    """In which words a fact is learned: hyper-parameters of every method that learns from a fact's answer."""

    end_of_text: bool = Field(
        False, description="Train an end-of-text token after the target, so that generation stops"
    )
    contexts: int = Field(
        0, ge=0, description="Train each prompt also behind this many texts sampled from the model (as ROME does)"
    )
    questions: bool = Field(
        False, description="Train each prompt also as a question, where it is a statement to be completed"
    )
    paraphrases: int = Field(
        0,
        ge=0,
        description="Train each prompt also in so many other wordings of its relation, where that is a known one",
    )
    chat_template: Literal["none", "both", "only"] = Field(
        "none", description="Train what is asked in the model's chat template: not at all, too, or nothing else"
    )


class StepHparams(WordingHparams):
    """Hyper-parameters of what the training loop finds, be it a patch or the values that a closed form needs."""

    in_steps: ClassVar[tuple[str, ...]] = ("steps",)
    """Fields that count optimizer steps; in an edit with many mini-batches they count passes over them."""

    steps: int = Field(gt=0, description="Optimizer steps of an edit, at most; with many facts, on each of them")
    lr: float = Field(gt=0, description="Learning rate of Adam")
    stop_at: float | None = Field(
        None, gt=0, lt=1, description="An edit is finished once every target token has this probability; null: never"
    )
    stop_at_rank_1: bool = Field(
        False, description="An edit is finished, too, once every target token is the likeliest in every prompt"
    )
    smooth: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Learn each token of the answer as this share of it, and for the rest what the model itself finds "
        "likely there, so that no token is learned beyond what the others are; null: the token alone",
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of one edit's gradient; null: any")
    kl_weight: float = Field(0.0, ge=0, description="Weight of KL(unedited || edited) on kl_prompts")
    kl_prompts: tuple[str, ...] = Field(
        ("{} is a",), description="Prompts whose predictions are to stay; {} is the fact's subject"
    )
    kl_positions: Literal["last", "all"] = Field(
        "last",
        description="What is to stay on kl_prompts: the prediction after a prompt's last token, or after each token",
    )
    hold_relations: int = Field(
        0, ge=0, description="Hold also what comes after so many prompts that ask something else of the fact's subject"
    )
    wordings_per_step: int | None = Field(
        None,
        gt=0,
        description="Of a prompt's wordings (itself, behind contexts, as a question, in a chat): so many in a step, "
        "drawn anew; null: all",
    )
    held_per_step: int | None = Field(
        None, gt=0, description="Of a fact's held predictions: so many in a step, drawn anew; null: all"
    )

    @model_validator(mode="after")
    def _held_with_a_weight(self) -> StepHparams:
        for name in ("hold_subjects", "hold_relations"):
            if getattr(self, name, 0) and not self.kl_weight:
                raise ValueError(f"{name} ({getattr(self, name)}) holds nothing without a kl_weight above 0")
        return self

    @property
    def sure(self) -> float | None:
        """How sure of its target an edit is to be (:meth:`Work.losses`) to be finished; None: it never is."""
        return 1.0 if self.stop_at is None and self.stop_at_rank_1 else self.stop_at


class TrainedHparams(StepHparams):
    """Hyper-parameters of a method whose patch is trained."""

    order: Literal["breadth_first", "depth_first"] = Field(
        "breadth_first", description="Of an edit with many facts: all mini-batches in turn, or each to its end"
    )
    batch_size: int = Field(16, gt=0, description="Facts of one optimizer step, in an edit with many facts")

    hold_subjects: int = Field(
        0,
        ge=0,
        description="Hold also what comes after the fact's own prompt with so many other subjects of its kind in it",
    )
    replay: int = Field(
        0, ge=0, description="Sequential: facts edited before that are learned again in each step, drawn anew"
    )


class StatisticsHparams(BaseModel):
    """Where the second moments of a site's input come from, for methods that need them."""

    statistics_text: str | None = Field(
        None, description="A text file that second moments are taken over; null: texts sampled from the model itself"
    )
    statistics_tokens: int = Field(
        30_000, gt=0, description="Tokens that second moments are taken over; about ten times a site's width suffice"
    )


class SolvedHparams(StepHparams, StatisticsHparams):
    """Hyper-parameters of a closed form whose values are trained: vectors added at the subject's last token."""

    layers: Layers = Field(description="Blocks whose down-projections change, in turn; values are found at the last")
    weight_decay: float = Field(0.5, ge=0, description="Weight of ||d|| / ||v0||^2 in the loss of a value v0 + d")
    clamp: float = Field(gt=0, description="Largest ||d||, as a share of ||v0||")
    rescale_values: bool = Field(
        False, description="Bring each value to the norm that it has in the unedited model (NAS)"
    )
    max_norm: float | None = Field(
        None, gt=0, description="Largest Frobenius norm of one update, as a share of the weight's own; null: any"
    )


class Sited(BaseModel):
    """Which linear maps of the model a method sits on."""

    sites: Annotated[list[Role], Field(min_length=1)] = Field(description="Which linear maps of a block, by role")
    layers: Layers = Field(
        "all", description='Which blocks: a list, a range "20-24", shares of the depth "0.66-0.83", or "all"'
    )


class SiteHparams(TrainedHparams, Sited):
    """Hyper-parameters of a trained method that sits on linear maps of the model."""


class WeightHparams(SiteHparams, StatisticsHparams):
    """Hyper-parameters of a method that changes the weights of linear maps."""

    whiten: float | None = Field(
        None,
        gt=0,
        description="Train on inputs whitened by their second moments, with this share of their mean added; null: as "
        "they are. A change is then small on what the model often sees, and large on what a fact brings",
    )
    acts_from: Literal["start", "subject"] = Field(
        "start",
        description="Where in a text a patch acts while it trains: everywhere, or from the last token of the subject "
        "on, so that what stands before a fact is not trained on",
    )
    null_subjects: int = Field(
        0,
        ge=0,
        description="Take from what a patch sees all that its sites get at the end of the fact's own prompt with so "
        "many other subjects of its kind in it, so that a change has no effect there",
    )


class TurnHparams(WordingHparams, Sited):
    """Hyper-parameters of a closed form that takes one backward pass for so many facts."""

    batch_size: int = Field(100, gt=0, description="Facts of one turn, in an edit with many facts")
