"""What the unedited model writes is remembered, and asked for by all that it depends on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import methods
import pytest

from loredit.evaluation import scoring
from loredit.evaluation.scoring import evaluate
from loredit.evaluation.unedited import Texts


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("LOREDIT_CACHE", str(tmp_path))
    return tmp_path


def test_texts_are_found_under_the_same_conditions_alone(own):
    keys = [((1, 2), 0, "greedy", 32), ((1, 2), 1, "greedy", 32), ((1,), 0, "top 5", 100, 7)]
    Texts("here").put(dict(zip(keys[:2], (" Paris.", ""), strict=True)))
    assert Texts("here").get(keys) == {keys[0]: " Paris.", keys[1]: ""}
    assert Texts("there").get(keys) == {}


def test_many_are_found_and_processes_do_not_disturb_each_other(own):
    texts = {((i,), "x"): str(i) for i in range(2000)}
    parts = [dict(list(texts.items())[i::4]) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: Texts("here").put(part), parts))
    assert Texts("here").get([*texts]) == texts


def test_a_damaged_file_costs_time_alone(own):
    Texts("here").put({"a": "b"})
    (file,) = (own / "texts").iterdir()
    file.write_bytes(b"no database" * 100)
    assert Texts("here").get(["a"]) == {}
    Texts("here").put({"a": "b"})


@pytest.mark.parametrize("measures", [{"measures": ["generation"], "fluency": False}, {"fluency": True}])
def test_what_is_known_is_not_written_again_and_the_scores_are_the_same(
    measures, own, model, tokenizer, facts, monkeypatch
):
    written: list[int] = []
    plain = scoring.continuations
    monkeypatch.setattr(
        scoring, "continuations", lambda model, ids, **how: (written.append(len(ids)), plain(model, ids, **how))[1]
    )

    def scored(texts: Texts | None, **changes):
        edits = methods.editor("lora", model, tokenizer, **changes).edit_each(facts[:3], progress=False)
        return evaluate(edits, **measures, texts=texts, progress=False)

    alone = scored(None)
    whole, written[:] = sum(written), []
    assert scored(Texts("here")) == alone
    assert sum(written) == whole
    written.clear()
    assert scored(Texts("here")) == alone
    assert sum(written) == whole / 2
    others = scored(None, lr=2e-2)
    assert scored(Texts("here"), lr=2e-2) == others != alone
    if measures["fluency"]:
        other_seed = evaluate(
            methods.editor("lora", model, tokenizer).edit_each(facts[:3], progress=False),
            seed=1, texts=Texts("here"), progress=False,
        )  # fmt: skip
        assert [one.base_text for one in other_seed] != [one.base_text for one in alone]
