"""A session: one model and its edits, asked in words, from one thread or several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import methods
import pytest
import slow
import tiny
import torch

from loredit import editors
from loredit.data import Fact
from loredit.editors import Edits
from loredit.engine.model.hooks import attached_to
from loredit.session import Session, chosen
from loredit.store.store import EditStore

PROMPTS = ["The capital of France is", "Water is"]


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory, facts: tuple[Fact, ...]) -> Edits:
    folder = tmp_path_factory.mktemp("session") / "model"
    model = tiny.model("llama", torch.float32)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    hparams = methods.hparams("lora", steps=25, model=str(folder))
    return editors.find("lora")(model, tiny.tokenizer(), hparams).edit_each(facts[:3])


@pytest.fixture
def folder(edits: Edits, tmp_path: Path) -> Path:
    """A store in which a fact's own prompt finds its edit, and hardly any other does."""
    store = EditStore(edits.editor.model, tiny.tokenizer(), encoder="base")
    store.add(edits)
    store.save(tmp_path / "edits")
    return tmp_path / "edits"


def said(edits: Edits, prompt: str, edit: int, tokens: int) -> str:
    with edits.on([edit]):
        ids = slow.greedy(edits.editor.model, tiny.tokenizer()(prompt)["input_ids"], tokens)[0]
    return tiny.tokenizer().decode(ids, skip_special_tokens=True).strip().partition("\n")[0]


def test_each_prompt_gets_the_edit_that_it_is_about(folder, edits):
    session = Session(folder)
    answers = session.ask([*PROMPTS, "Bread is made of"], tokens=5)
    assert [[fact.case_id for fact in answer.facts] for answer in answers] == [["france"], ["water"], []]
    for answer, edit in zip(answers, (0, 1, -1), strict=True):
        assert answer.without == said(edits, answer.prompt, -1, 5)
        assert answer.edited == said(edits, answer.prompt, edit, 5)
    assert answers[0].without != answers[0].edited
    assert not attached_to(session.model)


def test_one_edit_is_for_all_prompts_where_it_is_named(folder, edits):
    for answer in Session(folder, case="water").ask(PROMPTS, tokens=5):
        assert [fact.case_id for fact in answer.facts] == ["water"]
        assert answer.edited == said(edits, answer.prompt, 1, 5)


def test_a_single_edit_needs_no_name(edits, tmp_path):
    edits["water"].save(tmp_path)
    (answer,) = Session(tmp_path).ask(["Water is"], tokens=4)
    assert answer.edited == said(edits, "Water is", 1, 4)
    assert [fact.case_id for fact in answer.facts] == ["water"]


def test_threads_wait_for_each_other_and_are_each_answered_as_alone(folder):
    session = Session(folder)
    alone = [session.ask([prompt], tokens=4) for prompt in PROMPTS] * 4
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda prompt: session.ask([prompt], tokens=4), PROMPTS * 4)] == alone


def test_one_of_several_edits_is_chosen_by_name(edits):
    assert chosen(edits, "sum") == 2
    assert chosen(edits["sum"], None) == 0
    with pytest.raises(ValueError, match=r"there are 3 edits; name one of them with --case: france, water, sum"):
        chosen(edits, None)
    with pytest.raises(ValueError, match="there is no case 'watre'"):
        chosen(edits, "watre")
