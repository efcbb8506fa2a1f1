"""Tasks of general ability: each file's own form, and questions as lm-evaluation-harness puts them."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pytest

from loredit.data import ability
from loredit.data.ability import Question
from loredit.data.examples import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def folder(at: Path) -> Path:
    """Own small samples of every task."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "arc_easy_test.csv").write_text('"What is wet, always?",sand,water,iron,wood,B\nOdd?,2,4,5,6,3\n')
    (at / "arc_challenge_test.csv").write_text("Which flies?,stone,bird,fish,tree,B\n")
    blocks = ["Rowing: A man sits. He takes an oar. he", "2", "sleeps.", "flies.", "rows [laughing] away.", "is."]
    (at / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress("\n".join(blocks).encode()))
    (at / "piqa-valid.jsonl").write_text(json.dumps({"goal": "Cool tea", "sol1": "Wait.", "sol2": "Boil it."}) + "\n")
    (at / "piqa-valid-labels.lst").write_text("0\n")
    (at / "lambada_test.jsonl").write_text(json.dumps({"text": "He lost his hat.\nShe found the hat"}) + "\n")
    (at / "test.txt").write_text(" = Tea = \n \n Tea is a drink . \n")
    (at / "ME-PPL_1k.json").write_text(json.dumps([{"Corpus": "own", "Text": "Tea is hot"}, {"Text": "So is soup"}]))
    return at


def test_every_task_is_read_in_its_own_form(tmp_path):
    at = folder(tmp_path)
    first = {task: ability.load(task, at) for task in ability.TASKS}
    questions = {name: task.questions[0] for name, task in first.items() if task.questions}
    assert questions == {
        "arc_easy": Question("Question: What is wet, always?\nAnswer:", ("sand", "water", "iron", "wood"), 1),
        "arc_challenge": Question("Question: Which flies?\nAnswer:", ("stone", "bird", "fish", "tree"), 1),
        "hellaswag": Question("Rowing: A man sits. He takes an oar. He", ("sleeps.", "flies.", "rows away.", "is."), 2),
        "piqa": Question("Question: Cool tea\nAnswer:", ("Wait.", "Boil it."), 0),
        "lambada": Question("He lost his hat.\nShe found the", ("hat",), 0),
    }
    assert first["arc_easy"].questions[1].right == 2
    assert first["wikitext2"].texts == (" = Tea = \n \n Tea is a drink . \n",)
    assert first["me_ppl"].texts == ("Tea is hot", "So is soup")


def test_faults_are_told_with_their_line(tmp_path):
    at = folder(tmp_path)
    (at / "arc_easy_test.csv").write_text("Wet?,a,b,c,d,E\nWet?,a,b,c,d,A\nWet?,a,b\n")
    with pytest.raises(DataError, match="2 bad lines") as caught:
        ability.load("arc_easy", at)
    assert "line 1: the right option is 'E'" in str(caught.value)
    assert "line 3: expected a question" in str(caught.value)
    assert len(ability.load("arc_easy", at, skip_bad=True).questions) == 1
    (at / "arc_easy_test.csv").write_text("Wet?,a,b,c,,B\nWet?,a,b,c,,D\nWet?,,,,,A\nWet?,a,,c,d,A\n")
    with pytest.raises(DataError, match="3 bad lines") as caught:
        ability.load("arc_easy", at)
    assert "line 2: an option is empty, or there is none where" in str(caught.value)
    (question,) = ability.load("arc_easy", at, skip_bad=True).questions
    assert question.options == ("a", "b", "c")
    (at / "piqa-valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(DataError, match=r"1 rows, piqa-valid-labels\.lst 2 labels"):
        ability.load("piqa", at)
    with pytest.raises(DataError, match="did you mean 'piqa'"):
        ability.load("pica", at)
    with pytest.raises(DataError, match=r"holds nothing of lambada: expected lambada_test\.jsonl"):
        ability.load("lambada", tmp_path / "none")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files in ../shared/data")
@pytest.mark.parametrize(
    ("task", "items"),
    [("arc_easy", 549), ("arc_challenge", 294), ("hellaswag", 10042), ("piqa", 1838), ("lambada", 5153)],
)
def test_the_public_files(task, items):
    assert len(ability.load(task, SHARED, skip_bad=True).questions) == items
