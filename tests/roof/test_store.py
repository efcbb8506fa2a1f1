"""A store of edits: each prompt gets the edit that it is about, or none, and computes with it as if it were alone."""

from __future__ import annotations

import methods
import pytest
import slow
import tiny
import torch

import loredit
from loredit import editors
from loredit.data import Fact
from loredit.engine.storage.manifest import EditsError, remove
from loredit.store.store import EditStore, Whitening, _matches, _parted

PROMPTS = ["The capital of France is", "Bread is made of", "Water is"]


@pytest.fixture(params=["roselora", "simplexlora", "prefix"])
def edits(request, tokenizer, facts):
    model = tiny.model("llama", torch.float32)
    return methods.editor(request.param, model, tokenizer, steps=6).edit_each(facts[:4])


@pytest.fixture
def store(edits, tokenizer):
    """Two additions; a threshold that only a fact's own prompt passes."""
    store = EditStore(edits.editor.model, tokenizer, layer=1)
    store.add(edits.taken([0, 1]))
    store.add(edits.taken([2, 3]))
    store.routing = store.routing.model_copy(update={"threshold": 0.999})
    return store


def batch(tokenizer, prompts):
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    width = max(map(len, ids))
    out, mask = torch.zeros(2, len(ids), width, dtype=torch.long)
    for r, own in enumerate(ids):
        out[r, width - len(own) :], mask[r, width - len(own) :] = torch.tensor(own), 1
    return out, mask


def test_a_prompt_gets_the_edit_it_is_about_or_none(store, edits):
    assert store.route([fact.prompt for (fact,) in edits.facts]) == [0, 1, 2, 3]
    assert store.route(PROMPTS) == [0, -1, 1]
    assert store.route([]) == []
    assert store.case_ids == ["france", "water", "sum", "ada"]


def test_rows_are_computed_with_their_own_edit_alone(store, edits, tokenizer):
    model = edits.editor.model
    ids, mask = batch(tokenizer, PROMPTS)
    with torch.no_grad(), store.on(ids, mask) as rows:
        assert rows == [0, -1, 1]
        logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
    for row, edit, prompt in zip(logits, rows, PROMPTS, strict=True):
        own = tokenizer(prompt)["input_ids"]
        with edits.on([edit]):
            torch.testing.assert_close(row, slow.logits(model, own)[-1], rtol=1e-4, atol=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_texts_are_generated_with_the_edit_of_the_prompt(store, edits, tokenizer):
    model = edits.editor.model
    for prompt, edit in (("Water is", 1), ("Bread is made of", -1)):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with edits.on([edit]):
            wanted, _ = slow.greedy(model, ids[0].tolist(), 6)
        with store.on([prompt]):
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert made[0, ids.shape[1] :].tolist()[: len(wanted)] == wanted[: made.shape[1] - ids.shape[1]]


def test_a_batch_of_another_size_is_refused(store, tokenizer):
    ids, mask = batch(tokenizer, PROMPTS)
    with store.on(PROMPTS[:2]), pytest.raises(ValueError, match="attached for 2 rows, but the batch has 3"):
        store.model(ids, attention_mask=mask)


def test_what_is_removed_is_not_found_and_the_others_stay(store, edits):
    store.remove("water")
    assert len(store) == 3
    assert store.route([fact.prompt for (fact,) in edits.facts]) == [0, -1, 1, 2]
    torch.testing.assert_close(store.edits().patch.lasting(), edits.taken([0, 2, 3]).patch.lasting())
    with pytest.raises(EditsError, match="no case 'water'; there are: france, sum, ada"):
        store.remove("water")
    store.add(edits.taken([1]))
    assert store.route(["Water is"]) == [3]
    for case_id in ("france", "water", "sum", "ada"):
        store.remove(case_id)
    assert store.route(["Water is"]) == [-1]


def test_saving_and_loading_change_nothing(store, edits, tokenizer, tmp_path):
    store.save(tmp_path)
    again = EditStore.load(tmp_path, store.model, tokenizer)
    assert (again.routing, again.case_ids, again.nbytes) == (store.routing, store.case_ids, store.nbytes)
    assert again.route(PROMPTS) == [0, -1, 1]
    torch.testing.assert_close(again.edits().patch.lasting(), edits.patch.lasting(), rtol=0, atol=0)
    again.remove("ada")
    assert editors.load(tmp_path, store.model, tokenizer).facts == edits.facts
    edits.save(tmp_path)
    assert EditStore.load(tmp_path, store.model, tokenizer).case_ids == store.case_ids


def test_edits_that_do_not_belong_are_refused(store, edits, tokenizer, facts):
    with pytest.raises(EditsError, match="holds water already"):
        store.add(edits.taken([1]))
    with pytest.raises(EditsError, match="another model object"):
        store.add(methods.editor("lora", tiny.model("llama", torch.float32), tokenizer, steps=1).edit_each(facts[4:]))
    with pytest.raises(EditsError, match=r"it holds those by .*, these are by lora"):
        store.add(methods.editor("lora", store.model, tokenizer, steps=1).edit_each(facts[4:]))


def test_a_failed_edit_is_never_used(tokenizer, facts):
    model = tiny.model("llama", torch.float32)
    long = Fact(case_id="long", prompt="so " * tiny.CONTEXT, target_new="long")
    store = EditStore(model, tokenizer, layer=1)
    store.add(methods.editor("lora", model, tokenizer, steps=1).edit_each([long, facts[1]]))
    assert store.case_ids == ["water"]


def test_whitened_numbers_are_uncorrelated_and_equally_large():
    torch.manual_seed(0)
    states = torch.randn(5000, 2, 4) @ torch.randn(2, 4, 4).mT.sum(0) + 3
    whitening = Whitening.of(states)
    x = torch.einsum("nkd,kde->nke", states - whitening.mean, whitening.turn)
    for k in (0, 1):
        spread = torch.linalg.eigvalsh(x[:, k].T.cov())
        assert spread.max() / spread.min() < torch.linalg.eigvalsh(states[:, k].T.cov()).max()
        assert (x[:, k].T.corrcoef() - torch.eye(4)).abs().max() < 1e-3


def test_a_match_is_the_weighted_sum_of_two_cosines():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 2, 5), dim=-1) for n in (7, 9))
    score, found = _matches(a, b, 0.25)
    for i in range(7):
        each = [0.75 * float(a[i, 0] @ k[0]) + 0.25 * float(a[i, 1] @ k[1]) for k in b]
        assert int(found[i]) == each.index(max(each))
        assert float(score[i]) == pytest.approx(max(each), abs=1e-6)


def test_the_threshold_parts_right_rephrasings_from_others_best():
    scores, right = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([True, True, False, True])
    gain, threshold = _parted(scores, right, torch.tensor([0.1, 0.3, 0.75]))
    assert 0.75 < threshold < 0.8
    assert gain == pytest.approx(2 / 4)


def test_calibration_uses_the_last_token_only_where_it_helps(tokenizer):
    model = tiny.model("llama", torch.float32)
    store = EditStore(model, tokenizer, layer=1)
    with pytest.raises(ValueError, match="none of these facts has a rephrasing"):
        store.calibrate([Fact(case_id="a", prompt="Water is", target_new="dry")])
    samples = loredit.load_facts("samples").facts
    before = store.routing
    store.calibrate(samples[:20])
    assert store.routing != before
    store.calibrate(samples)
    assert store.routing == before


def test_a_fact_is_undone_in_a_saved_store_as_in_the_store_itself(store, tokenizer, tmp_path):
    store.save(tmp_path / "one")
    remove(tmp_path / "one", "water")
    store.remove("water")
    store.save(tmp_path / "other")
    one, other = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "other"))
    assert one == other  # weights are called after their content
    assert EditStore.load(tmp_path / "one", store.model, tokenizer).route(PROMPTS) == store.route(PROMPTS)


def test_undoing_a_fact_behind_an_edit_of_two_takes_its_own_prompt_along(edits, tokenizer, facts, tmp_path):
    store = EditStore(edits.editor.model, tokenizer)
    store.add(edits.editor.edit(facts[2:4]))
    store.add(edits.taken([0, 1]))
    store.save(tmp_path)
    remove(tmp_path, "france")
    store.remove("france")
    again = EditStore.load(tmp_path, store.model, tokenizer)
    torch.testing.assert_close(again._states, store._states, rtol=0, atol=0)
