"""What is told of progress, and who is shown a bar."""

from __future__ import annotations

import sys

import methods
import pytest
import tiny

from loredit.engine import progress
from loredit.engine.progress import Phase, shown


def test_a_phase_is_its_own_text():
    assert Phase.TRAINING == "training"
    assert Phase.TEXTS.value == "generating texts"
    assert [*Phase] == ["training", "scoring", "generating answers", "generating texts", "perplexity", "finished"]


def test_a_function_of_ones_own_is_told_as_it_is():
    told = []
    with shown(lambda *args: told.append(args)) as tell:
        tell(Phase.SCORING, 0.5, 4)
    assert told == [(Phase.SCORING, 0.5, 4)]


@pytest.mark.parametrize(
    ("asked", "watched", "bar"),
    [(True, False, True), (None, True, True), (None, False, False), (False, True, False)],
)
def test_a_bar_is_shown_where_somebody_sees_it_or_asks_for_it(asked, watched, bar, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_is_watched", lambda: watched)
    with shown(asked) as tell:
        for share in (0.25, 1.0):
            tell(Phase.TRAINING, share, 8)
    written = capsys.readouterr()
    assert written.out == ""
    assert ("training" in written.err, "8.0/8" in written.err) == (bar, bar)


def test_nobody_is_shown_a_bar_who_has_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    assert progress._is_watched() == sys.stderr.isatty()
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert progress._is_watched()


def test_editing_tells_phases_and_shares_of_all_facts(facts):
    told = []
    editor = methods.editor("lora", tiny.model("llama"), tiny.tokenizer(), steps=2)
    editor.edit(facts[:2], progress=lambda *args: told.append(args))
    assert all(isinstance(phase, Phase) and edits == 2 for phase, _, edits in told)
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
