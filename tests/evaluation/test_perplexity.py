"""Perplexity against a loop over tokens."""

from __future__ import annotations

import math
from typing import Any

import methods
import pytest
import slow
import tiny
from transformers import PreTrainedModel

from loredit.editors import Editor
from loredit.evaluation.perplexity import perplexity


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.model("llama")


def bound(model: PreTrainedModel, method: str = "lora", **changes: Any) -> Editor:
    return methods.editor(method, model, tiny.tokenizer(), **{"steps": 4, "batch_size": 2} | changes)


@pytest.mark.parametrize("length", [2, 192, 193, 300])
def test_perplexity_predicts_each_token_once_in_the_first_window_that_it_is_in(length, model, facts):
    edits = bound(model, steps=8).edit(facts)
    text = "".join(chr(97 + (7 * i * i + i // 5) % 26) for i in range(length))
    ids = tiny.tokenizer()(text)["input_ids"]
    measured = perplexity(edits, text)
    assert measured.tokens == length - 1

    def expected() -> float:
        total = 0.0
        begins = range(0, length, tiny.CONTEXT // 2)
        after = {b: slow.logits(model, ids[b : b + tiny.CONTEXT]).log_softmax(-1) for b in begins}
        for t in range(1, length):
            begin = next(b for b in begins if t < b + tiny.CONTEXT)
            total += after[begin][t - 1 - begin, ids[t]].item()
        return math.exp(-total / (length - 1))

    assert measured.base == pytest.approx(expected(), rel=1e-9)
    with edits.on([0]):
        assert measured.edited == pytest.approx(expected(), rel=1e-9)
    assert measured.edited != pytest.approx(measured.base, rel=1e-6)


def test_a_text_of_one_token_has_no_perplexity(model, facts):
    with pytest.raises(ValueError, match="two tokens or more; this one has 1"):
        perplexity(bound(model).edit(facts[:1]), "a")
