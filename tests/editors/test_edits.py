"""What can be done with finished edits, whatever method made them: named, attached, merged, and what is refused."""

from __future__ import annotations

from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loredit import editors
from loredit.data import Fact
from loredit.editors import Edits
from loredit.engine.model.hooks import attached_to
from loredit.engine.model.sites import SiteError
from loredit.engine.outcome import Outcome
from loredit.engine.storage.manifest import EditsError, read_manifest
from loredit.evaluation.perplexity import perplexity
from loredit.evaluation.scoring import evaluate

# How methods reach the model: low-rank weights, weights, what is no weight, and keys and values.
KINDS = ("lora", "simplexlora", "finetune", "adapter", "prefix")
PROMPTS = ("The capital of", "Sky is painted", "Water is what?", "Two plus two m")  # of one length


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.model("llama")


@pytest.fixture(scope="module", params=KINDS)
def edits(request: pytest.FixtureRequest, model: PreTrainedModel, facts: tuple[Fact, ...]) -> Edits:
    """Three edits; the last has failed."""
    long = Fact(case_id="long", prompt="so " * tiny.CONTEXT, target_new="long")
    return methods.editor(request.param, model, tiny.tokenizer(), steps=12).edit_each([*facts[:2], long])


@pytest.fixture(scope="module")
def lora(model: PreTrainedModel, facts: tuple[Fact, ...]) -> Edits:
    return methods.editor("lora", model, tiny.tokenizer(), steps=12).edit_each(facts[:4])


def ids(*prompts: str) -> Tensor:
    return torch.tensor([tiny.tokenizer()(prompt)["input_ids"] for prompt in prompts])


def generated(model: Any, prompts: Tensor, **options: Any) -> list[list[int]]:
    """Six tokens behind each prompt, by transformers' own generation."""
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=tiny.END,
        **options,
    )
    return out[:, prompts.shape[1] :].tolist()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_edit_is_trained_and_merged_in_every_family(family, tokenizer, facts):
    model = tiny.model(family)
    roles = ["qkv", "attention_output", "mlp_up", "mlp_down"]
    editor = methods.editor("lora", model, tokenizer, sites=roles, steps=2)
    edits, ids = editor.edit_each(facts[:2]), tokenizer(facts[1].prompt)["input_ids"]
    alone, merged = editor.edit_each(facts[1:2]), edits.merged(1)
    with edits.on([1]):
        logits = slow.logits(model, ids)
    with alone.on([0]):
        torch.testing.assert_close(slow.logits(model, ids), logits, **tiny.close(family))
    torch.testing.assert_close(slow.logits(merged, ids), logits, **tiny.close(family))
    assert not torch.allclose(slow.logits(model, ids), logits, atol=1e-3)
    assert edits.outcomes[1].loss < -slow.log_probs(model, tokenizer, facts[1].prompt, facts[1].target_new).mean()


# One edit for all rows


@pytest.mark.parametrize("name", [1, "water"])
def test_one_edit_is_for_all_rows_of_batches_of_any_size(name, edits, model):
    batch = ids(*PROMPTS)
    with edits.on([1]):
        alone = [slow.logits(model, row) for row in batch.tolist()]
    with edits.on(name), torch.no_grad():
        for rows in (batch, batch[:1], batch[1:3]):
            for row, logits in zip(rows, model(rows).logits, strict=True):
                place = batch.tolist().index(row.tolist())
                torch.testing.assert_close(logits, alone[place], rtol=1e-9, atol=1e-11)
    assert not any(torch.allclose(slow.logits(model, row), own) for row, own in zip(batch.tolist(), alone, strict=True))


def test_transformers_own_greedy_search_sees_the_edit_in_every_row(edits, model):
    batch = ids(*PROMPTS)
    with edits.on([0]):
        expected = [slow.greedy(model, row, 6)[0] for row in batch.tolist()]
    with edits.on(0):
        assert generated(model, batch) == expected
    assert generated(model, batch) != expected


def test_beam_search_sees_the_edit_in_every_beam(edits, model, request):
    batch = ids(*PROMPTS)
    with edits.on("france"):
        together = generated(model, batch, num_beams=2)
        alone = [generated(model, row[None], num_beams=2)[0] for row in batch]
    assert together == alone
    assert together != generated(model, batch, num_beams=2)
    if edits.editor.merges:
        assert together == generated(edits.merged("france"), batch, num_beams=2)


def test_a_list_of_one_names_one_row(lora, model):
    with lora.on([0]), pytest.raises(ValueError, match="attached for 1 rows, but the batch has 4"):
        model(ids(*PROMPTS))
    with lora.on(["water", -1, 0, "ada"]), torch.no_grad():
        batch = model(ids(*PROMPTS)).logits
    for row, edit, prompt in zip(batch, (1, -1, 0, 3), PROMPTS, strict=True):
        with lora.on([edit]):
            torch.testing.assert_close(row, slow.logits(model, ids(prompt)[0].tolist()), rtol=1e-9, atol=1e-11)


def test_the_unedited_model_can_be_named_for_all_rows(lora, model):
    with torch.no_grad():
        before = model(ids(*PROMPTS)).logits
        with lora.on(-1):
            torch.testing.assert_close(model(ids(*PROMPTS)).logits, before, rtol=1e-12, atol=1e-12)


# Names


def test_edits_are_named_by_the_facts_that_they_carry(lora):
    water = lora["water"]
    assert water.case_ids == ["water"]
    assert lora.index("water") == lora.index(1) == lora.index(-3) == 1
    assert all(torch.equal(t[0], lora.patch.lasting()[name][1]) for name, t in water.patch.lasting().items())
    assert lora.nonzero_share("water") == lora.nonzero_share(1)
    merged, named = lora.merged(1).state_dict(), lora.merged("water").state_dict()
    torch.testing.assert_close(named, merged, rtol=0, atol=0)
    with pytest.raises(EditsError, match="there is no case 'watre'; there are: france, water, sum, ada"):
        lora["watre"]
    with pytest.raises(EditsError, match="there is no case 'watre'"), lora.on("watre"):
        pass


def test_an_edit_of_many_facts_has_the_names_of_all(model, facts):
    edits = methods.editor("lora", model, tiny.tokenizer(), steps=1).edit(facts[:3])
    assert edits.index("sum") == 0
    assert edits.case_ids == ["france", "water", "sum"]


def test_edits_tell_what_they_are_in_a_line(lora, edits):
    assert repr(lora) == "<4 edits by lora of france, water, sum and 1 more>"
    assert repr(lora[0]) == "<1 edits by lora of france>"
    assert repr(edits) == f"<3 edits by {edits.editor.name()} of france, water, long, 1 failed>"


# What is refused


def test_a_merged_model_never_has_hooks(lora, model):
    with lora.on([0]), pytest.raises(RuntimeError, match="merge outside of"):
        lora.merged(0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lora.merged(0).modules())


def test_a_failed_edit_is_not_merged(edits):
    if edits.editor.merges:
        with pytest.raises(ValueError, match=r"edit 'long' failed and changes nothing: .*context is 192"):
            edits.merged("long")


def test_nothing_begins_while_edits_are_attached(edits, model, facts):
    batch = ids(*PROMPTS)
    before = model(batch).logits
    with edits.on(0):
        assert attached_to(model)
        with pytest.raises(RuntimeError, match="attached to the model; attach others outside of"), edits.on(1):
            pass
        with pytest.raises(RuntimeError, match="edit outside of"):
            edits.editor.edit_each(facts[:1])
        with pytest.raises(RuntimeError, match="edit outside of"):
            edits.editor.edit(facts[:1])
        with pytest.raises(RuntimeError, match="edit outside of"):
            next(edits.editor.edit_stream(facts[:1]))
        with pytest.raises(RuntimeError, match="edit outside of"):
            next(edits.editor.edit_batches(facts[:1]))
        with pytest.raises(RuntimeError, match="evaluate outside of"):
            evaluate(edits, fluency=False)
    assert not attached_to(model)
    assert torch.equal(model(batch).logits, before)


def test_a_perplexity_is_not_measured_while_edits_are_attached(lora):
    with lora.on(0), pytest.raises(RuntimeError, match="attached to the model"):
        perplexity(lora, "A text that is long enough.")


def test_an_edit_without_facts_is_refused_in_the_same_words(model):
    editor = methods.editor("lora", model, tiny.tokenizer(), steps=1)
    for verb in (editor.edit_each, editor.edit):
        with pytest.raises(ValueError, match=r"^an edit carries at least one fact; the list is empty$"):
            verb([])
    assert list(editor.edit_stream([])) == list(editor.edit_batches([])) == []


class Quantized(nn.Module):
    """A map as quantization libraries put it in place of a Linear: it has a weight, but no plain matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().mul(10).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) / 10).T


@pytest.mark.parametrize("method", ["lora", "finetune", "bitfit"])
def test_maps_that_are_no_plain_matrices_are_refused(method, tokenizer, facts):
    model = tiny.model("llama")
    model.model.layers[1].mlp.down_proj = Quantized(model.model.layers[1].mlp.down_proj)
    editor = methods.editor(method, model, tokenizer, steps=1, sites=["mlp_down"])
    with pytest.raises(SiteError, match=r"a Quantized is no linear map with a plain weight.*load it unquantized"):
        editor.edit_each(facts[:1])


def test_nothing_is_merged_into_a_map_that_is_no_plain_matrix(lora, facts):
    model = tiny.model("llama")
    edits = methods.editor("lora", model, tiny.tokenizer(), steps=1).edit_each(facts[:1])
    model.model.layers[1].mlp.down_proj = Quantized(model.model.layers[1].mlp.down_proj)
    with pytest.raises(SiteError, match="a Quantized is no linear map with a plain weight"):
        edits.merged(0)


# What is said of them


def test_scores_of_some_facts_of_an_edit_are_theirs(model, facts):
    edits = methods.editor("lora", model, tiny.tokenizer(), steps=2).edit(facts[:3])
    about = edits.about([2, 0])
    assert about.case_ids == ["sum", "france"]
    whole = {score.case_id: score for score in evaluate(edits, fluency=False)}
    for score in evaluate(about, fluency=False):
        for own, expected in zip(score.probes, whole.pop(score.case_id).probes, strict=True):
            assert own.edited.answers[0].correct == expected.edited.answers[0].correct
            assert own.edited.answers[0].log_prob == pytest.approx(expected.edited.answers[0].log_prob, rel=1e-9)
    assert [*whole] == ["water"]


def test_what_is_lost_is_told_of_the_facts_that_are_asked_about(lora, facts):
    outcome = Outcome(1, 0.5, None, {1: "no"})
    edits = Edits(lora.editor, lora[0].patch, (tuple(facts[:3]),), (outcome,))
    assert dict(edits.about([2, 1]).outcomes[0].lost) == {1: "no"}
    assert dict(edits.about([0]).outcomes[0].lost) == {}


def test_edits_name_the_dtype_that_they_were_trained_in_whatever_becomes_of_the_model(tokenizer, facts, tmp_path):
    model = tiny.model("llama", torch.float32)
    edits = methods.editor("lora", model, tokenizer).edit_each(facts[:1], progress=False)
    model.half()
    edits.save(tmp_path)
    assert read_manifest(tmp_path).dtype == "float32"
    assert len(editors.load(tmp_path, tiny.model("llama", torch.float32), tokenizer)) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_that_want_no_gradients_get_the_same_edits(mode, tokenizer, facts):
    editor = methods.editor("lora", tiny.model("llama"), tokenizer)
    wanted = editor.edit_each(facts[:2], progress=False).patch.state_dict()
    with mode():
        for edits in (editor.edit_each(facts[:2], progress=False), next(iter(editor.edit_batches(facts[:2])))):
            found = edits.patch.state_dict()
            assert all(torch.equal(found[name].sort(0).values, t.sort(0).values) for name, t in wanted.items())
