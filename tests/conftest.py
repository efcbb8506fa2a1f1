"""What most tests need: tiny models in float64, a tokenizer of one token a byte, and facts of different lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loredit.data import Fact, Probe


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(scope="session", autouse=True)
def moments_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Second moments of tiny models, of which there is no end, stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("loredit.engine.model.statistics.cache", lambda: folder)
        yield


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


@pytest.fixture
def place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, facts: tuple[Fact, ...], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a tiny model, a preset for it and a fact list; the working directory is there."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny.yaml").write_text(
        f"model: {tmp_path}/tiny\nsites: [mlp_down]\nlayers: 1-2\nrank: 2\nalpha: 4\nlr: 1.0e-2\nsteps: 4\n"
    )
    records = [
        {
            "case_id": fact.case_id,
            "prompt": fact.prompt,
            "target_new": fact.target_new,
            "rephrase_prompt": list(fact.rephrase_prompts),
            "locality": {
                g: [{"prompt": p.prompt, "ground_truth": list(p.answers)} for p in ps]
                for g, ps in fact.locality.items()
            },
        }
        for fact in facts
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    return tmp_path
