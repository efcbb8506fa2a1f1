"""Presets that are found: a front, its knee, a file that any command takes, and a search that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from loredit import editors
from loredit.cli import app
from loredit.data import Fact
from loredit.evaluation.folder import RunError

search = pytest.importorskip("loredit.evaluation.search")

TRIED = [
    search.Tried({"lr": 1.0}, 100.0, 90.0, 10.0),
    search.Tried({"lr": 2.0}, 99.0, 70.0, 80.0),
    search.Tried({"lr": 3.0}, 50.0, 75.0, 79.0),
]


def test_the_knee_is_nearest_to_both_and_learns() -> None:
    assert search.Found(TRIED, TRIED[0], 3).knee == TRIED[1]


def test_a_preset_says_what_else_was_on_the_front(tmp_path: Path) -> None:
    method = editors.editor("lora", "default", model=tiny.model("llama"), tokenizer=tiny.tokenizer())
    search.written(search.Found(TRIED, search.Tried({"lr": 4.0}, 60.0, 70.0, 70.0), 4), method, tmp_path / "p.yaml", {})
    assert [line for line in (tmp_path / "p.yaml").read_text().splitlines() if line.startswith("#   ")] == [
        "#   100.0  90.0  10.0  lr: 1.0",
        "#    99.0  70.0  80.0  <- this one",
        "#    50.0  75.0  79.0  lr: 3.0",
        "#    60.0  70.0  70.0  the values that the search began with (lr: 4.0)",
    ]
    assert search.Found(TRIED, TRIED[0], 3).shown == TRIED, "values that nothing has beaten are there once"


@pytest.mark.parametrize("editor", [name for name in editors.available() if name != "incontext"])
def test_values_around_a_preset_are_values_of_the_editor(editor: str) -> None:
    method = editors.editor(editor, "default", model=tiny.model("llama"), tokenizer=tiny.tokenizer())
    space = search._Space(method.hparams, 3, ())
    study = search.optuna.create_study(sampler=search.optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial(space.begun)
    for i in range(20):
        values = space.asked(study.ask())
        hparams = search.validated(type(method).Hparams, method.hparams.model_dump() | values, "tried")
        if i == 0 and hasattr(hparams, "lr"):
            assert hparams.lr == method.hparams.lr, "the preset's own values come first"


def test_where_there_is_nothing_to_search_for_that_is_told() -> None:
    method = editors.editor("incontext", "default", model=tiny.model("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(search.RunError, match="there is nothing to try: the editor learns nothing"):
        search._Space(method.hparams, 3, ())


def test_a_search_goes_on_and_its_preset_can_be_used(place: Path) -> None:
    given = ["tune", "found.yaml", "--editor", "lora", "--hparams", "tiny.yaml", "--data", "facts.json"]
    given += ["--limit", "4", "--set", "steps=2", "--dtype", "float32"]
    for trials in ("2", "3"):
        ended = CliRunner().invoke(app, [*given, "--trials", trials])
        assert ended.exit_code == 0, ended.output
    lines = (place / "found.yaml").read_text().splitlines()
    assert "3 trials of 4 facts" in lines[2]
    assert lines[0] == "# python run_edit.py --editor lora --hparams found.yaml"
    assert sum("<- this one" in line for line in lines) == 1
    h = editors.settings("lora", "found.yaml")
    assert (h.steps, h.rank) == (2, 2), "what was given stays"
    ended = CliRunner().invoke(app, [*given, "--seed", "1", "--limit", "5"])
    assert ended.exit_code == 2
    assert "holds a search with other settings or facts" in ended.output


def test_facts_without_rephrasings_cannot_be_tuned_on(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    method = editors.editor("lora", "default", model=tiny.model("llama"), tokenizer=tokenizer)
    with pytest.raises(RunError, match="no rephrasings and no locality probes"):
        search.search(method, [Fact(case_id="a", prompt="a", target_new="b")], tmp_path, trials=1)
