"""The one-fact-at-a-time PEFT baseline against loops written out by hand.

Caught here, each by at least one test: answer positions shifted by one, padding read as an answer, the worst alias
instead of the best, probes averaged across groups, locality against the truth, dropout on while scoring, labels on the
prompt, one step too many at an early stop, an adapter or a flag left behind.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean

import pytest
import tiny
import torch
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import normalizers
from transformers import (
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks import peft_baseline
from benchmarks.peft_baseline import Metrics, Settings, run
from loredit.data.facts import Fact, Probe

# PEFT asks the model for this property, which transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def tiny_llama(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return _decided(tiny.model("llama", dtype, seed=1), "norm")


def tiny_gpt2(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return _decided(tiny.model("gpt2", dtype, seed=1), "ln_f")


def _decided(model: PreTrainedModel, last_norm: str) -> PreTrainedModel:
    """Logits scaled up: with those of a fresh model this small, no token could reach a high probability."""
    with torch.no_grad():
        model.base_model.get_submodule(last_norm).weight.mul_(4)
    return model


def probe(prompt: str, *answers: str) -> Probe:
    return Probe(prompt=prompt, answers=answers)


FULL = Fact(
    case_id="full",
    prompt="The capital of Norway is",
    target_new="Lima",
    rephrase_prompts=("Norway's capital:", "The seat of Norway's government is"),
    locality={
        "same subject": (
            probe("Norway's coin is the", "krone", "k", "coin of Norway, the krone"),
            probe("Norway borders the land of", "Sweden"),
        ),
        "other": (probe("2 + 2 =", "4 and no more"),),
    },
    portability={
        "alias": (probe("Norge's capital is", "Lima", "the city of Lima", "L"),),
        "reasoning": (probe("Oslo's heir lies in", "Peru", "South America"), probe("Norwegians govern from", "Lima")),
    },
)
BARE = Fact(case_id="bare", prompt="Water freezes at", target_new="9 degrees")


def rows_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """The answer's tokens, and the model's next token after every prefix, each in a pass of its own."""
    ids = tokenizer(f"{prompt} {answer}").input_ids
    places = range(len(prompt.encode()), len(ids))
    with torch.no_grad():
        return [ids[i] for i in places], [int(model(torch.tensor([ids[:i]])).logits[0, -1].argmax()) for i in places]


def share(left: Sequence[int], right: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


def fluency_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> float:
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    for _ in range(100):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        logits[tiny.END] = -math.inf
        logits[logits < logits.topk(5).values[-1]] = -math.inf
        ids.append(int(torch.multinomial(logits.softmax(-1), 1)))
    sentences = PunktSentenceTokenizer().tokenize(tokenizer.decode(ids[start:]))
    words = [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]
    bits = {}
    for n in (2, 3):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        bits[n] = -sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values())
    return 100 * (2 / 3 * bits[2] + 4 / 3 * bits[3]) / 2


def train_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, fact: Fact, settings: Settings
) -> tuple[PeftModel, int]:
    """A LoRA-edited copy of the model, and its optimizer steps."""
    layers = "|".join(map(str, settings.layers or (0, 1, 2)))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf".*\.({layers})\..*\.({'|'.join(settings.target_modules)})",
        fan_in_fan_out=isinstance(model, GPT2LMHeadModel),
    )
    edited = get_peft_model(copy.deepcopy(model), config)
    for name, module in edited.named_modules():
        module.training = "lora_" in name
    adapter = [parameter for name, parameter in edited.named_parameters() if "lora_" in name]
    optimizer = torch.optim.Adam(adapter, lr=settings.lr)
    ids = tokenizer(f"{fact.prompt} {fact.target_new}").input_ids
    steps = 0
    while steps < settings.steps:
        log_probabilities = edited(torch.tensor([ids])).logits[0].log_softmax(-1)
        target = torch.stack([log_probabilities[i - 1, ids[i]] for i in range(len(fact.prompt.encode()), len(ids))])
        if settings.stop_at is not None and bool((target.exp() >= settings.stop_at).all()):
            break
        optimizer.zero_grad()
        (-target.mean()).backward()
        optimizer.step()
        steps += 1
    return edited.eval(), steps


def run_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], settings: Settings
) -> list[tuple[Metrics, Metrics, int]]:
    def metrics(edited: PreTrainedModel | PeftModel, fact: Fact, fluency: float) -> Metrics:
        def score(prompt: str, answer: str) -> float:
            return share(*rows_by_hand(edited, tokenizer, prompt, answer))

        def agreement(probe: Probe) -> float:
            sides = (rows_by_hand(side, tokenizer, probe.prompt, probe.answers[0]) for side in (model, edited))
            return share(*(predicted for _, predicted in sides))

        portability = [
            fmean(max(score(probe.prompt, answer) for answer in probe.answers) for probe in probes)
            for probes in fact.portability.values()
        ]
        locality = [fmean(map(agreement, probes)) for probes in fact.locality.values()]
        rephrased = [score(prompt, fact.target_new) for prompt in fact.rephrase_prompts]
        return Metrics(
            edit_success=100 * score(fact.prompt, fact.target_new),
            generalization=100 * fmean(rephrased) if rephrased else None,
            portability=100 * fmean(portability) if portability else None,
            locality=100 * fmean(locality) if locality else None,
            fluency=fluency,
        )

    results = []
    for fact in facts:
        pre = metrics(model, fact, fluency_by_hand(model, tokenizer, fact.prompt))
        edited, steps = train_by_hand(model, tokenizer, fact, settings)
        post = metrics(edited, fact, fluency_by_hand(edited, tokenizer, fact.prompt))
        results.append((replace(pre, locality=None), post, steps))
    return results


def measured(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, value in asdict(metrics).items() if value is not None}


LLAMA = Settings(target_modules=("q_proj", "v_proj"), steps=12, lr=0.01)
GPT2 = replace(LLAMA, target_modules=("c_attn",))
ARCHITECTURES = {"llama": (tiny_llama, LLAMA), "gpt2": (tiny_gpt2, GPT2)}
CASES = {
    "llama": (tiny_llama, LLAMA),
    "llama-layers": (tiny_llama, replace(LLAMA, layers=(0, 2))),
    "gpt2": (tiny_gpt2, GPT2),
    "gpt2-stop": (tiny_gpt2, replace(GPT2, stop_at=0.2, lr=0.03)),
}


@pytest.mark.parametrize("case", CASES)
def test_metrics_and_steps_equal_loops_written_by_hand(case: str, tokenizer: PreTrainedTokenizerFast) -> None:
    build, settings = CASES[case]
    model, facts = build(), (FULL, BARE)

    torch.manual_seed(4)
    wanted = run_by_hand(model, tokenizer, facts, settings)
    torch.manual_seed(4)
    results = list(run(model, tokenizer, facts, settings))

    assert [result.case_id for result in results] == ["full", "bare"]
    for result, (pre, post, steps) in zip(results, wanted, strict=True):
        # 1e-9: the same float64 sums in another order; a share that is off by one token differs by percents.
        assert measured(result.pre) == pytest.approx(measured(pre), rel=1e-9)
        assert measured(result.post) == pytest.approx(measured(post), rel=1e-9)
        assert result.steps == steps
    # The comparison is not one of zeros and hundreds (the seed was chosen so).
    edited = wanted[0][1]
    assert edited.edit_success > wanted[0][0].edit_success
    assert 0 < edited.locality < 100
    assert 0 < edited.portability < 100


def test_an_early_stop_ends_training_and_no_step_leaves_the_predictions_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    settings = replace(LLAMA, dropout=0.0)
    [never] = run(tiny_llama(), tokenizer, [FULL], replace(settings, stop_at=0.0), fluency=False)
    assert never.steps == 0
    assert never.post == replace(never.pre, locality=100)

    [early] = run(tiny_llama(), tokenizer, [FULL], replace(settings, stop_at=0.5, steps=200), fluency=False)
    assert 0 < early.steps < 200
    assert early.post.edit_success == 100  # more likely than not is the argmax


def everything(model: PreTrainedModel) -> dict[str, object]:
    """What an edit could leave behind."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks],
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_left_bit_identical(
    architecture: str,
    dtype: torch.dtype,
    interrupted: bool,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, settings = ARCHITECTURES[architecture]
    model = build(dtype)
    next(model.parameters()).requires_grad_(False)
    ids = torch.tensor([tokenizer(FULL.prompt).input_ids])
    with torch.no_grad():
        logits = model(ids).logits
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = everything(model)

    if interrupted:
        train = peft_baseline._train

        def failing(*arguments: object) -> None:
            train(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(peft_baseline, "_train", failing)
        with pytest.raises(KeyboardInterrupt):
            next(run(model, tokenizer, [FULL], settings))
    else:
        results = list(run(model, tokenizer, [FULL, BARE], settings))
        assert results[0].post != results[0].pre

    assert everything(model) == before
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def test_every_part_is_timed_and_fluency_is_left_out_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    settings = replace(LLAMA, steps=1)
    [full] = run(tiny_llama(), tokenizer, [BARE], settings)
    assert all(seconds > 0 for seconds in asdict(full.seconds).values())
    assert full.seconds.total == pytest.approx(sum(asdict(full.seconds).values()))

    [hurried] = run(tiny_llama(), tokenizer, [BARE], settings, fluency=False)
    assert hurried.pre.fluency is None
    assert hurried.post.fluency is None
    assert hurried.seconds.fluency_before + hurried.seconds.fluency_after < full.seconds.fluency_before


def test_an_answer_without_a_token_is_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ?", "")
    with pytest.raises(ValueError, match=r"'Water freezes at' and answer '\?' need at least one token"):
        next(run(tiny_llama(), tokenizer, [BARE.model_copy(update={"target_new": "?"})], LLAMA))
