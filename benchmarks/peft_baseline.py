"""The plain way to edit and evaluate, for comparison: one fact at a time through PEFT's LoRA.

What a careful script does without an edit axis, with EasyEdit's protocol and definitions (its ``token_em`` scores; one
batch per group of probes, as there) but without its known faults: dropout is off while scoring, and no gradient
checkpointing slows the training down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean
from time import perf_counter

import torch
from peft import LoraConfig, PeftModelForCausalLM, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from loredit.data.facts import Fact, Probe
from loredit.evaluation.metrics import ngram_entropy

# Neutral values are spelled out because a model may bring its own, and only top-k is meant to act.
_SAMPLING = {
    "do_sample": True,
    "top_k": 5,
    "top_p": 1.0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 100,
    "min_new_tokens": 100,
    "use_cache": True,
}


@dataclass(frozen=True)
class Settings:
    """How one fact is learned; the defaults are those of the published RoseLoRA-for-EasyEdit run."""

    target_modules: tuple[str, ...]
    """Names of the adapted modules inside a layer: ("q_proj", "v_proj"); ("c_attn",) for GPT-2."""
    layers: tuple[int, ...] | None = None
    """Indices of the adapted layers; None for all."""
    rank: int = 4
    alpha: int = 16
    dropout: float = 0.1
    lr: float = 5e-3
    steps: int = 30
    stop_at: float | None = None
    """Training ends before ``steps`` once every target token has at least this probability in a training pass."""


@dataclass(frozen=True)
class Metrics:
    """One model's figures on one fact: percentages, and fluency as 100 times bits. None: nothing to measure."""

    edit_success: float
    generalization: float | None
    portability: float | None
    locality: float | None
    """Agreement with the unedited model; None for the unedited model itself."""
    fluency: float | None


@dataclass
class Seconds:
    """Wall time of the parts of one fact. Attaching and removing the adapter belong to ``edit``."""

    score_before: float = 0.0
    fluency_before: float = 0.0
    edit: float = 0.0
    score_after: float = 0.0
    fluency_after: float = 0.0

    @property
    def total(self) -> float:
        return sum(asdict(self).values())

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds what happens inside to ``part``."""
        start = _now()
        yield
        setattr(self, part, getattr(self, part) + _now() - start)


@dataclass(frozen=True)
class BaselineResult:
    """One fact, before and after its edit."""

    case_id: str
    pre: Metrics
    post: Metrics
    seconds: Seconds
    steps: int
    """Optimizer steps taken."""


@dataclass(frozen=True)
class _Answer:
    """One answer to one prompt: the tokens it consists of, and the model's argmax at each of them."""

    tokens: Tensor
    predicted: Tensor


_Seen = dict[tuple[str, str], list[list[_Answer]]]
"""(kind, group) -> for each probe, its answers."""


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    settings: Settings,
    *,
    fluency: bool = True,
) -> Iterator[BaselineResult]:
    """Edits and evaluates ``facts`` one after another, each from the model as it was given.

    The model is put in eval mode and otherwise left as it was. Initial values, dropout and sampled text come from
    torch's global generator: seed it first for the same numbers twice.
    """
    model.eval()
    if fluency:
        ngram_entropy("")  # imports nltk, which is no part of the first fact's time
    for fact in facts:
        yield _edit_and_evaluate(model, tokenizer, fact, settings, fluency)


def _edit_and_evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: Fact, settings: Settings, fluency: bool
) -> BaselineResult:
    seconds = Seconds()
    with seconds.of("score_before"):
        base = _score(model, tokenizer, fact)
    with seconds.of("fluency_before"):
        base_fluency = _fluency(model, tokenizer, fact.prompt) if fluency else None
    with _adapted(model, settings, seconds) as edited:
        with seconds.of("edit"):
            steps = _train(edited, tokenizer, fact, settings)
        with seconds.of("score_after"):
            seen = _score(edited, tokenizer, fact)
        with seconds.of("fluency_after"):
            edited_fluency = _fluency(edited, tokenizer, fact.prompt) if fluency else None
    return BaselineResult(
        fact.case_id,
        pre=_metrics(base, None, base_fluency),
        post=_metrics(seen, base, edited_fluency),
        seconds=seconds,
        steps=steps,
    )


@contextmanager
def _adapted(model: PreTrainedModel, settings: Settings, seconds: Seconds) -> Iterator[PeftModelForCausalLM]:
    """The model with a fresh LoRA adapter, which is removed afterwards."""
    required_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        layers_to_transform=None if settings.layers is None else list(settings.layers),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with seconds.of("edit"):
        edited = get_peft_model(model, config)
    try:
        yield edited
    finally:
        with seconds.of("edit"):
            edited.unload()
            for parameter, required in required_grad.items():
                parameter.requires_grad_(required)


def _train(edited: PeftModelForCausalLM, tokenizer: PreTrainedTokenizerBase, fact: Fact, settings: Settings) -> int:
    """Adam on the target's mean negative log-likelihood; the number of steps taken. Leaves the model in eval mode."""
    tokens, start = _encode(tokenizer, fact.prompt, fact.target_new)
    ids = tokens.to(edited.device)[None]
    labels = ids.clone()
    labels[:, :start] = -100
    optimizer = torch.optim.Adam([p for p in edited.parameters() if p.requires_grad], lr=settings.lr)
    # The adapter starts in train mode and the base model stays in eval mode: the only dropout is LoRA's.
    steps = 0
    while steps < settings.steps:
        output = edited(input_ids=ids, labels=labels, use_cache=False)
        if settings.stop_at is not None:
            probabilities = output.logits[0, start - 1 : -1].float().softmax(-1).gather(-1, ids[0, start:, None])
            if probabilities.min() >= settings.stop_at:
                break
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        steps += 1
    edited.eval()
    return steps


def _score(model: PreTrainedModel | PeftModelForCausalLM, tokenizer: PreTrainedTokenizerBase, fact: Fact) -> _Seen:
    """Every probe of a fact, one batch per group."""
    target = (fact.target_new,)
    groups = {
        ("rewrite", ""): [Probe(prompt=fact.prompt, answers=target)],
        ("rephrase", ""): [Probe(prompt=prompt, answers=target) for prompt in fact.rephrase_prompts],
        **{("portability", name): probes for name, probes in fact.portability.items()},
        **{
            ("locality", name): [Probe(prompt=probe.prompt, answers=probe.answers[:1]) for probe in probes]
            for name, probes in fact.locality.items()
        },
    }
    return {key: _answers(model, tokenizer, probes) for key, probes in groups.items() if probes}


@torch.inference_mode()
def _answers(
    model: PreTrainedModel | PeftModelForCausalLM, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]
) -> list[list[_Answer]]:
    rows = [_encode(tokenizer, probe.prompt, answer) for probe in probes for answer in probe.answers]
    # Padded on the right, where causal attention hides it: the rows need no mask.
    ids = pad_sequence([tokens for tokens, _ in rows], batch_first=True).to(model.device)
    argmax = model(input_ids=ids, use_cache=False).logits.argmax(-1).cpu()
    answers = iter(
        _Answer(tokens[start:], predicted[start - 1 : len(tokens) - 1])
        for (tokens, start), predicted in zip(rows, argmax, strict=True)
    )
    return [[next(answers) for _ in probe.answers] for probe in probes]


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[Tensor, int]:
    """Token ids of ``prompt + " " + answer``, and where the answer starts."""
    tokens = torch.tensor(tokenizer(f"{prompt} {answer}").input_ids)
    start = len(tokenizer(prompt).input_ids)
    if not 0 < start < len(tokens):
        raise ValueError(f"prompt {prompt!r} and answer {answer!r} need at least one token each; correct the fact")
    return tokens, start


def _fluency(model: PreTrainedModel | PeftModelForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str) -> float:
    """100 times the n-gram entropy of 100 sampled tokens."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        pad_token_id=tokenizer.eos_token_id,
        **_SAMPLING,
    )
    new = ids[0, inputs.input_ids.shape[1] :]
    return 100 * ngram_entropy(tokenizer.decode(new, skip_special_tokens=True))


def _metrics(seen: _Seen, base: _Seen | None, fluency: float | None) -> Metrics:
    edit_success = _percent(seen, "rewrite")
    assert edit_success is not None  # every fact has its own prompt
    return Metrics(
        edit_success=edit_success,
        generalization=_percent(seen, "rephrase"),
        portability=_percent(seen, "portability"),
        locality=None if base is None else _percent(_against(seen, base), "locality"),
        fluency=fluency,
    )


def _against(seen: _Seen, base: _Seen) -> _Seen:
    """What was seen, with the unedited model's predictions in place of the answers."""
    return {
        key: [
            [_Answer(unedited.predicted, answer.predicted) for answer, unedited in zip(*probe, strict=True)]
            for probe in zip(probes, base[key], strict=True)
        ]
        for key, probes in seen.items()
    }


def _percent(seen: _Seen, kind: str) -> float | None:
    """Share of right tokens: the best answer of a probe, the mean of a group's probes, the mean of the groups."""
    groups = [
        fmean(max(_share(answer) for answer in answers) for answers in probes)
        for (group_kind, _), probes in seen.items()
        if group_kind == kind
    ]
    return 100 * fmean(groups) if groups else None


def _share(answer: _Answer) -> float:
    return float((answer.predicted == answer.tokens).double().mean())


def _now() -> float:
    """The clock, once everything queued on the device is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()
