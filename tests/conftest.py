"""What most tests need: tiny models in float64, a tokenizer of one token a byte, and facts of different lengths."""

from __future__ import annotations

import pytest
import tiny
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loredit.data import Fact, Probe


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny GPT-2 (Conv1D weights) and a tiny Llama (grouped-query attention), three layers, float64."""
    return tiny.model(request.param)


def _probes(*pairs: tuple[str, str]) -> tuple[Probe, ...]:
    return tuple(Probe(prompt=prompt, answers=tuple(answers.split("|"))) for prompt, answers in pairs)


@pytest.fixture(scope="session")
def facts() -> tuple[Fact, ...]:
    """Five facts whose prompts and answers differ in length; the last has no probes and no subject."""
    return (
        Fact(
            case_id="france",
            prompt="The capital of France is",
            target_new="Rome",
            subject="France",
            ground_truth=("Paris",),
            rephrase_prompts=("France's capital:", "Where is the seat of France's government? In"),
            locality={
                "relation": _probes(("France's coin is the", "euro|franc"), ("France lies in", "Europe")),
                "other": _probes(
                    ("2 + 2 =", "4"),
                ),
            },
            portability={"alias": _probes(("L'Hexagone is led from", "Rome|the city of Rome"))},
        ),
        Fact(
            case_id="water",
            prompt="Water is",
            target_new="dry",
            subject="Water",
            ground_truth=("wet",),
            rephrase_prompts=("If you touch it, water feels",),
            locality={"relation": _probes(("Water boils at", "100 degrees"))},
            portability={
                "reasoning": _probes(("To wash, never use water, as it is", "dry")),
                "alias": _probes(("H2O is", "dry")),
            },
        ),
        Fact(
            case_id="sum",
            prompt="Two plus two makes",
            target_new="five hundred",
            subject="Two plus two",
            ground_truth=("four", "4"),
            locality={"other": _probes(("Three plus one makes", "four|4"), ("Ten is", "even"))},
        ),
        Fact(
            case_id="ada",
            prompt="Ada Lovelace, the Countess, wrote",
            target_new="Dune",
            subject="Ada Lovelace",
            rephrase_prompts=("Ada wrote",),
            portability={"reasoning": _probes(("The author of Dune was called", "Ada"))},
        ),
        Fact(case_id="sky", prompt="Sky:", target_new="a"),
    )
