"""In-context editing against a model that is given the whole text."""

from __future__ import annotations

import methods
import pytest
import slow
import tiny
import torch

from loredit.hparams import HparamsError, settings


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return tiny.model(request.param)


def test_a_text_is_computed_as_if_the_fact_stood_before_it(model, tokenizer, facts):
    edits = methods.editor("incontext", model, tokenizer, template="It is said: {}. ").edit_each(facts[:2])
    said = [f"It is said: {fact.prompt} {fact.target_new}. " for fact in facts[:2]]
    for text in ("The capital of France", "x"):
        ids = tokenizer(text)["input_ids"]
        alone = slow.logits(model, ids)
        for e in range(2):
            whole = slow.logits(model, [*tokenizer(said[e])["input_ids"], *ids])
            with edits.on([e]):
                torch.testing.assert_close(slow.logits(model, ids), whole[..., -len(ids) :, :], rtol=1e-9, atol=1e-10)
        rows = torch.tensor([ids] * 3)
        with edits.on([1, -1, 0]), torch.no_grad():
            mixed = model(rows).logits
        torch.testing.assert_close(mixed[1], alone.view(mixed[1].shape), rtol=1e-9, atol=1e-10)


def test_facts_of_one_edit_are_said_one_after_another_as_long_as_there_is_room(model, tokenizer, facts):
    lines = [f"{fact.prompt} {fact.target_new}. " for fact in facts[:3]]
    room = len("".join(lines[:2]))  # a token is a byte
    edits = methods.editor("incontext", model, tokenizer, length=room).edit(facts[:3])
    assert edits.patch.said(0) == tokenizer("".join(lines[:2]))["input_ids"]
    assert list(edits.outcomes[0].lost) == [2]
    assert f"behind the {room} of earlier facts" in edits.outcomes[0].lost[2]
    first, second, third = methods.editor("incontext", model, tokenizer, length=room).edit_stream(facts[:3])
    assert first.patch.said(0) == tokenizer(lines[0])["input_ids"]
    assert third.patch.said(0) == second.patch.said(0) == edits.patch.said(0)


def test_a_template_without_a_place_for_the_fact_is_refused():
    with pytest.raises(HparamsError, match="where the fact is to stand"):
        settings("incontext", "smollm2", {"template": "New fact."})
