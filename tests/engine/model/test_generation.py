"""Texts of many rows at once, against decoding one row alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor

from loredit.engine.model.generation import TopK, continuations, sampled_texts

TEXTS = ("The capital of France", "Water is", "One, two, three, and on to the next")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_with_left_padding_is_greedy_decoding_alone(family, tokenizer):
    model, prompts = tiny.model(family), [tokenizer(text)["input_ids"] for text in TEXTS]
    texts = continuations(model, prompts, tokens=12)
    assert texts == [slow.greedy(model, prompt, 12)[0] for prompt in prompts]


LAST = (0, 3, 19, 1, 7, 3)  # the token of each row's text after which it is finished
PROMPTS = (*TEXTS, "No", "Yes, of course", "Or")


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neo"])
def test_rows_that_are_finished_leave_with_their_edits_and_change_nothing(family, tokenizer, facts):
    model, prompts = tiny.model(family), [tokenizer(text)["input_ids"] for text in PROMPTS]
    edits = methods.editor("lora", model, tokenizer).edit_each(facts[:3])
    owners, full = [2, -1, 0, 1, 0, 2], []
    for prompt, e in zip(prompts, owners, strict=True):
        with edits.on([e]):
            full.append(slow.greedy(model, prompt, 20)[0])
    last = [text[n] for text, n in zip(full, LAST, strict=True)]
    lengths = [text.index(token) + 1 for text, token in zip(full, last, strict=True)]
    sizes: list[int] = []

    def choose(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        sizes.append(len(rows))
        return logits.argmax(-1)

    texts = continuations(
        model,
        prompts,
        tokens=20,
        choose=choose,
        attach=lambda rows: edits.on([owners[row] for row in rows]),
        stop=lambda row, token: token == last[row],
    )
    assert texts == [text[:n] for text, n in zip(full, lengths, strict=True)]
    assert min(sizes) < len(prompts), "some rows are to leave while others go on"
    assert len(sizes) == max(lengths)


def test_rows_that_are_finished_leave_with_their_random_numbers(model, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    full = continuations(model, prompts, tokens=20, choose=TopK(5, range(6), 20))
    last = [text[n] for text, n in zip(full, LAST, strict=True)]
    cut = [text[: text.index(token) + 1] for text, token in zip(full, last, strict=True)]
    assert len({*map(len, cut)}) > 2
    choose = TopK(5, range(6), 20)
    stopped = continuations(model, prompts, tokens=20, choose=choose, stop=lambda row, token: token == last[row])
    assert stopped == cut


def test_sampling_takes_the_k_likeliest_by_their_shares():
    seeds, logits = [*range(4000)], torch.tensor([0.0, 3.0, 1.0, 2.0, -9.0]).expand(4000, 5)
    taken = TopK(3, seeds, 1)(logits, seeds, 0)
    shares = torch.tensor([3.0, 1.0, 2.0]).softmax(0)
    for token, share in zip((1, 2, 3), shares.tolist(), strict=True):
        assert (taken == token).double().mean().item() == pytest.approx(share, abs=0.03)
    assert {*taken.tolist()} == {1, 2, 3}


def test_a_sampled_text_is_of_its_own_seed_whatever_it_is_sampled_with(model, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]

    def sampled(chosen: Sequence[int], seeds: Sequence[int]) -> list[list[int]]:
        return continuations(model, [prompts[i] for i in chosen], tokens=15, choose=TopK(5, seeds, 15))

    together = sampled([0, 1, 2], [10, 11, 12])
    assert sampled([2, 0], [12, 10]) == [together[2], together[0]]
    assert sampled([0], [13]) != [together[0]]


def test_context_texts_are_the_models_own_and_always_the_same(model, tokenizer):
    texts = sampled_texts(model, tokenizer, 6)
    assert sampled_texts(model, tokenizer, 6) == texts
    assert len({*texts}) == 6
    assert sampled_texts(model, tokenizer, 0) == ()
    for text, start in zip(texts, ("The", "Therefore", "Because", "I", "You", "The"), strict=True):
        assert text.startswith(start)
        assert re.fullmatch(r"\S.*[^.]\.", text, re.DOTALL)
