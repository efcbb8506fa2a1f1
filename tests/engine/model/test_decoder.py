"""Rows that join a running batch, and leave it, against each text written alone."""

from __future__ import annotations

from contextlib import AbstractContextManager

import methods
import pytest
import slow
import tiny
import torch

from loredit.engine.model.generation import Decoder
from loredit.engine.model.hooks import attached_to, set_aside

TEXTS = ("The capital of France is", "Water", "One, two, three, and on to the next", "Sky:", "The author of Dune")
JOINS = {0: [0, 1], 2: [2], 5: [3, 4]}  # step: rows
LAST = (9, 4, 12, 6, 10)  # tokens of each row


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "lora"), ("gpt2", "lora"), ("mistral", "lora"), ("gpt_neo", "lora"), ("llama", "prefix")],
)
def test_rows_that_come_and_go_are_written_as_alone(family, method, tokenizer, facts):
    model = tiny.model(family)
    edits = methods.editor(method, model, tokenizer).edit_each(facts[:3])
    owners = [0, -1, 2, -1, 1]
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    out: dict[int, list[int]] = {row: [] for row in range(len(TEXTS))}

    def attach(rows: list[int]) -> AbstractContextManager[None]:
        return edits.on([owners[row] for row in rows])

    with Decoder(model, attach) as decoder:
        logits = torch.zeros(0, model.config.vocab_size, dtype=model.dtype)
        for step in range(40):
            if step in JOINS:
                logits = torch.cat([logits, decoder.join(JOINS[step], [ids[row] for row in JOINS[step]])])
            if not decoder.rows:
                break
            chosen = logits.argmax(-1)
            for row, token in zip(decoder.rows, chosen.tolist(), strict=True):
                out[row].append(token)
            left = [i for i, row in enumerate(decoder.rows) if len(out[row]) < LAST[row]]
            decoder.keep(left)
            logits = decoder.step(chosen[left]) if left else logits[:0]
    assert not attached_to(model)
    for row, prompt in enumerate(ids):
        with edits.on([owners[row]]):
            assert out[row] == slow.greedy(model, prompt, LAST[row])[0], TEXTS[row]


def test_a_model_can_be_lent_in_the_middle(tokenizer, facts):
    model = tiny.model("llama")
    edits = methods.editor("lora", model, tokenizer, steps=20).edit_each(facts[:1])
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    before = model(ids).logits
    with edits.on(0):
        edited = model(ids).logits
        with set_aside(model):
            assert torch.equal(model(ids).logits, before)
            with edits.on(0):
                assert torch.equal(model(ids).logits, edited)
        assert torch.equal(model(ids).logits, edited)
    assert not torch.equal(before, edited)
    assert torch.equal(model(ids).logits, before)
