"""Hooks of edits are known as such, and compiled code does not pass them by."""

from __future__ import annotations

import methods
import pytest
import tiny
import torch

from loredit.engine.model.hooks import attached_to
from loredit.evaluation.scoring import evaluate


@pytest.fixture
def edits(tokenizer, facts):
    return methods.editor("lora", tiny.model("llama", torch.float32), tokenizer, steps=8).edit_each(facts[:2])


def test_a_strangers_hook_is_no_edit(edits):
    model = edits.editor.model
    handle = model.register_forward_hook(lambda *_: None)
    assert not attached_to(model)
    with edits.on(0):
        assert attached_to(model)
    handle.remove()
    assert not attached_to(model)


@pytest.mark.parametrize("doing", ["edit", "evaluate", "merge", "attach others"])
def test_while_an_edit_is_attached_nothing_else_is_done(doing, edits, facts):
    def attach() -> None:
        with edits.on(1):
            pass

    todo = {
        "edit": lambda: edits.editor.edit_each(facts[:1]),
        "evaluate": lambda: evaluate(edits),
        "merge": lambda: edits.merged(0),
        "attach others": attach,
    }[doing]
    with edits.on(0), pytest.raises(RuntimeError, match=f"edits are attached to the model; {doing} outside of"):
        todo()


def test_a_model_compiled_before_computes_with_the_edit_that_is_attached_later(edits, tokenizer):
    model = edits.editor.model
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        unedited = model(ids).logits
        torch.testing.assert_close(compiled(ids).logits, unedited)
        for edit in (0, 1):
            with edits.on(edit):
                wanted = model(ids).logits
                assert not torch.allclose(wanted, unedited)
                torch.testing.assert_close(compiled(ids).logits, wanted)
            torch.testing.assert_close(compiled(ids).logits, unedited)


def test_a_model_that_is_compiled_in_place_is_refused(edits, facts):
    model = edits.editor.model
    model.compile(backend="eager")
    with pytest.raises(RuntimeError, match="the model is compiled, and compiled code passes edits by; edit with"):
        edits.editor.edit_each(facts[:1])
    with pytest.raises(RuntimeError, match="attach others with the model as it was"), edits.on(0):
        pass


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_a_model_that_recomputes_its_activations_computes_with_the_edit_both_times(edits, tokenizer, facts):
    model = edits.editor.model
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    embedding = model.get_input_embeddings()

    def gradient() -> torch.Tensor:
        embedding.weight.grad = None
        with edits.on(0):
            model(ids, labels=ids).loss.backward()
        return embedding.weight.grad.clone()

    embedding.requires_grad_()
    plain = gradient()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.24
    model.train()
    torch.testing.assert_close(gradient(), plain)
    again = edits.editor.edit_each(facts[:2])
    torch.testing.assert_close(again.patch.lasting(), edits.patch.lasting())
