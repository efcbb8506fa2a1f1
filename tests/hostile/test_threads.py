"""One model, several threads, and processes that are forked from one that has edits attached."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import methods
import pytest
import torch
from torch.utils.data import DataLoader

from loredit import data, editors
from loredit.engine.files import LockedError, locked
from loredit.engine.model.generation import continuations
from loredit.engine.model.hooks import attached_to, set_aside
from loredit.engine.model.sharing import owned
from loredit.evaluation.scoring import evaluate


def in_thread(work):
    """What another thread gets."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


@pytest.fixture
def edits(small, folders):
    return editors.load(folders["lora"], *small)


@pytest.fixture
def ids(small):
    return torch.tensor([small[1]("Water is")["input_ids"]])


def test_another_threads_call_is_refused_while_edits_are_attached(edits, small, ids):
    model, _ = small
    with edits.on(0):
        with pytest.raises(RuntimeError, match="another thread is using the model"):
            in_thread(lambda: model(input_ids=ids))
        with pytest.raises(RuntimeError, match="another thread has edits attached"):
            in_thread(lambda: edits.on(1).__enter__())
        with pytest.raises(RuntimeError, match="another thread has edits attached"):
            in_thread(lambda: evaluate(edits, fluency=False, progress=False))
        with pytest.raises(RuntimeError, match="another thread has edits attached"):
            in_thread(lambda: continuations(model, ids.tolist(), tokens=2))
        model(input_ids=ids)
    in_thread(lambda: model(input_ids=ids))
    assert not attached_to(model)


def test_threads_that_edit_and_evaluate_wait_for_each_other(edits, small):
    facts = [fact for own in edits.facts for fact in own]
    editor = methods.editor("lora", *small, steps=4)

    def learned():
        return editor.edit_each(facts, progress=False).patch.state_dict()

    def scored():
        return [one.model_dump(exclude={"edit_seconds", "score_seconds"}) for one in evaluate(edits, progress=False)]

    state, scores = learned(), scored()
    with ThreadPoolExecutor(4) as pool:
        jobs = [(pool.submit(learned), pool.submit(scored)) for _ in range(4)]
        for one, other in jobs:
            assert all(torch.equal(t, state[name]) for name, t in one.result(120).items())
            assert other.result(120) == scores


def test_a_thread_that_waits_gets_the_model_when_the_other_has_left(edits, small, ids):
    model, _ = small
    before = model(input_ids=ids).logits
    inside, leave = Event(), Event()

    def attached():
        with edits.on(0):
            inside.set()
            leave.wait(60)

    thread = Thread(target=attached)
    thread.start()
    inside.wait(60)
    with pytest.raises(RuntimeError):
        model(input_ids=ids)
    leave.set()
    thread.join(60)
    assert torch.equal(model(input_ids=ids).logits, before)


class _Lengths(torch.utils.data.Dataset):
    """Texts that a forked loader encodes, and that it even asks the model about."""

    def __init__(self, small) -> None:
        self.model, self.tokenizer = small
        self.texts = ["Water is", "The sky", "Snow", "Grass is green"]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> int:
        ids = self.tokenizer(self.texts[i])["input_ids"]
        return len(continuations(self.model, [ids], tokens=2)[0]) + len(ids)


FORKED = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks beside threads


@FORKED
def test_forked_data_loaders_ask_the_model_too(small):
    plain = [*DataLoader(_Lengths(small), num_workers=0, collate_fn=list)]
    loader = DataLoader(_Lengths(small), num_workers=2, collate_fn=list, multiprocessing_context="fork", timeout=60)
    assert [*loader] == plain


@FORKED
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_none_of_the_threads_that_had_the_model(small):
    """What a thread holds at the fork would be held in the child for ever."""
    inside, leave = Event(), Event()

    def held():
        with owned(small[0]):
            inside.set()
            leave.wait(60)

    thread = Thread(target=held)
    thread.start()
    inside.wait(60)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        with owned(small[0]):
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    leave.set()
    thread.join(60)
    assert status == 0


def test_a_folder_that_another_process_writes_to_is_refused(folders, tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps([{"prompt": "p", "target_new": "a"}]))
    assert len(data.load(tmp_path / "facts.json").facts) == 1
    with locked(tmp_path / "edits"), pytest.raises(LockedError, match="another process is writing"):
        in_thread(lambda: locked(tmp_path / "edits").__enter__())


def test_a_model_that_is_set_aside_is_anybodys_until_it_is_asked_for_again(edits, small, ids):
    model = small[0]

    def plain():
        with torch.no_grad(), edits.on(-1):
            return model(input_ids=ids).logits

    wanted = plain()
    with torch.no_grad(), edits.on(0):
        edited = model(input_ids=ids).logits
        with set_aside(model):
            assert torch.equal(in_thread(plain), wanted)
        assert torch.equal(model(input_ids=ids).logits, edited)
    assert not torch.equal(wanted, edited)
