"""A store of edits: each prompt gets the edit that it is about, or none, and computes with it as if it were alone."""

from __future__ import annotations

import methods
import pytest
import slow
import tiny
import torch

from loredit import editors
from loredit.data import Fact, Probe
from loredit.engine.storage.manifest import EditsError, remove
from loredit.store import store as store_of
from loredit.store.calibration import Calibration
from loredit.store.encoder import BaseStates
from loredit.store.routing import Router
from loredit.store.store import EditStore

PROMPTS = ["The capital of France is", "Bread is made of", "Water is"]
# A fact is found by its own prompt or by its subject and words; nothing else is near enough.
JUDGE = Calibration(named=(-6, 4, 6, 0, 0), unnamed=(-4, 8), threshold=0.6, margin=0.5)


def encoder(model):
    """The model's own states, whitened by a few texts: no second model, and no time."""
    return BaseStates(model, tiny.tokenizer(), [f"{word} is a word" for word in ("Water", "France", "Bread", "Sky")])


def edits_of(routes):
    return [route.edit for route in routes]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A saved store names its encoder, "base"; it is made of the same few texts when it is read."""
    monkeypatch.setattr(store_of, "encoder_of", lambda name, model, *_: encoder(model) if name == "base" else None)


def loaded(folder, store):
    return EditStore.load(folder, store.model, store.tokenizer)


@pytest.fixture(params=["roselora", "simplexlora", "prefix"])
def edits(request, tokenizer, facts):
    model = tiny.model("llama", torch.float32)
    return methods.editor(request.param, model, tokenizer, steps=6).edit_each(facts[:4])


@pytest.fixture
def store(edits, tokenizer):
    """Two additions."""
    model = edits.editor.model
    store = EditStore(model, tokenizer, encoder=encoder(model), calibration=JUDGE)
    store.add(edits.taken([0, 1]))
    store.add(edits.taken([2, 3]))
    return store


def batch(tokenizer, prompts):
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    width = max(map(len, ids))
    out, mask = torch.zeros(2, len(ids), width, dtype=torch.long)
    for r, own in enumerate(ids):
        out[r, width - len(own) :], mask[r, width - len(own) :] = torch.tensor(own), 1
    return out, mask


def test_a_prompt_gets_the_edit_it_is_about_or_none(store, edits):
    assert edits_of(store.route([fact.prompt for (fact,) in edits.facts])) == [0, 1, 2, 3]
    assert edits_of(store.route(PROMPTS)) == [0, -1, 1]
    assert edits_of(store.route([])) == []
    assert store.case_ids == ["france", "water", "sum", "ada"]


def test_rows_are_computed_with_their_own_edit_alone(store, edits, tokenizer):
    model = edits.editor.model
    ids, mask = batch(tokenizer, PROMPTS)
    with torch.no_grad(), store.on(ids, mask) as routes:
        rows = edits_of(routes)
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
    assert edits_of(store.route([fact.prompt for (fact,) in edits.facts])) == [0, -1, 1, 2]
    torch.testing.assert_close(store.edits().patch.lasting(), edits.taken([0, 2, 3]).patch.lasting())
    with pytest.raises(EditsError, match="no case 'water'; there are: france, sum, ada"):
        store.remove("water")
    store.add(edits.taken([1]))
    assert edits_of(store.route(["Water is"])) == [3]
    for case_id in ("france", "water", "sum", "ada"):
        store.remove(case_id)
    assert edits_of(store.route(["Water is"])) == [-1]


def test_saving_and_loading_change_nothing(store, edits, tokenizer, tmp_path):
    store.save(tmp_path)
    again = loaded(tmp_path, store)
    assert (again.router.calibration, again.case_ids, again.nbytes) == (JUDGE, store.case_ids, store.nbytes)
    assert edits_of(again.route(PROMPTS)) == [0, -1, 1]
    torch.testing.assert_close(again.edits().patch.lasting(), edits.patch.lasting(), rtol=0, atol=0)
    again.remove("ada")
    assert editors.load(tmp_path, store.model, tokenizer).facts == edits.facts
    edits.save(tmp_path)
    assert EditStore.load(tmp_path, store.model, tokenizer, encoder="base").case_ids == store.case_ids


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
    store = EditStore(model, tokenizer, encoder=encoder(model), calibration=JUDGE)
    store.add(methods.editor("lora", model, tokenizer, steps=1).edit_each([long, facts[1]]))
    assert store.case_ids == ["water"]


def test_a_store_calibrates_itself_when_enough_of_its_facts_say_how(tokenizer, monkeypatch):
    model = tiny.model("llama", torch.float32)
    facts = [
        Fact(
            case_id=str(i),
            prompt=f"Number {i} is",
            target_new="odd",
            subject=f"Number {i}",
            rephrase_prompts=(f"What is number {i}? It is",),
            locality={"other": (Probe(prompt=f"Letter {i} is", answers=("A",)),)},
        )
        for i in range(store_of._ENOUGH)
    ]
    edits = methods.editor("lora", model, tokenizer, steps=1).edit_each(facts)
    fitted: list[int] = []
    monkeypatch.setattr(Router, "calibrate", lambda router, facts, **_: fitted.append(len(facts)))
    store = EditStore(model, tokenizer, encoder=encoder(model), calibrates=True)
    store.add(edits.taken(range(len(facts) - 1)))
    assert fitted == [], "one fact is missing"
    store.add(edits.taken([len(facts) - 1]))
    assert fitted == [len(facts)]
    given = EditStore(model, tokenizer, encoder=encoder(model), calibration=JUDGE)
    given.add(edits)
    assert fitted == [len(facts)], "what is given is kept"
    assert given.router.calibration == JUDGE


def test_a_store_without_rephrasings_cannot_be_calibrated(store):
    with pytest.raises(ValueError, match="rephrasing"):
        store.calibrate([Fact(case_id="a", prompt="Water is", target_new="dry")])
    assert store.router.calibration == JUDGE


def test_a_fact_is_undone_in_a_saved_store_as_in_the_store_itself(store, tokenizer, tmp_path):
    store.save(tmp_path / "one")
    remove(tmp_path / "one", "water")
    store.remove("water")
    store.save(tmp_path / "other")
    one, other = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "other"))
    assert one == other  # weights are called after their content
    assert loaded(tmp_path / "one", store).route(PROMPTS) == store.route(PROMPTS)


def test_undoing_a_fact_behind_an_edit_of_two_takes_its_own_prompt_along(edits, tokenizer, facts, tmp_path):
    model = edits.editor.model
    store = EditStore(model, tokenizer, encoder=encoder(model), calibration=JUDGE)
    store.add(edits.editor.edit(facts[2:4]))
    store.add(edits.taken([0, 1]))
    store.save(tmp_path)
    remove(tmp_path, "france")
    store.remove("france")
    again = loaded(tmp_path, store)
    torch.testing.assert_close(again.router.tensors(), store.router.tensors(), rtol=0, atol=0)
    assert again.router.edits == store.router.edits


def test_a_store_is_not_used_beside_other_edits(store, edits):
    with edits.on(0):
        for use in (store.on(PROMPTS), store.with_edits([0])):
            with pytest.raises(RuntimeError, match="edits are attached to the model; use the store outside"), use:
                pass
    with store.on(PROMPTS), pytest.raises(RuntimeError, match="edits are attached"), edits.on(0):
        pass


@torch.no_grad()
def test_a_model_that_was_compiled_before_computes_with_the_stores_edits(store, tokenizer):
    ids = torch.tensor([tokenizer("Water is")["input_ids"]])
    compiled = torch.compile(store.model, backend="eager")
    before = compiled(ids).logits
    with store.with_edits([1]):
        inside = compiled(ids).logits
        assert torch.equal(inside, store.model(ids).logits)
    assert not torch.equal(inside, before)
    assert torch.equal(compiled(ids).logits, before)
