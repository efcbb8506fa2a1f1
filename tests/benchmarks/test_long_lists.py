"""Long lists: rows are added run by run, gone on with, and rendered again from their numbers alone."""

from __future__ import annotations

import json

import pytest
import tiny

from benchmarks import long_lists


@pytest.fixture
def make(tmp_path, tokenizer, facts, monkeypatch):
    """The command on a tiny model, with a page and a folder of its own."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    common = f"model: {tmp_path}/tiny\nsites: [mlp_down]\nlayers: 1-2\nalpha: 4\nlr: 1.0e-2\nsteps: 4\nrank: 2\n"
    (tmp_path / "small.yaml").write_text(common)
    records = [{"case_id": f.case_id, "prompt": f.prompt, "target_new": f.target_new} for f in facts]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    (tmp_path / "text.txt").write_text("A text about nothing in particular, and a little more of it.")
    for name in ("PAGE", "FIGURE", "RESULTS"):
        monkeypatch.setattr(long_lists, name, tmp_path / "made" / getattr(long_lists, name).name)
    long_lists.PAGE.parent.mkdir()
    long_lists.PAGE.write_text("Before.\n\n<!-- long lists -->\n<!-- end of long lists -->\n")
    monkeypatch.chdir(tmp_path)
    given = ["--data", "facts.json", "--text", "text.txt", "--editors", "lora:small.yaml"]
    return lambda *arguments: long_lists.main([*given, *arguments])


def rows() -> list[list[str]]:
    lines = [line for line in long_lists.PAGE.read_text().splitlines() if line.startswith("| L")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rows_are_added_for_each_number_and_mode(make, monkeypatch):
    make("--numbers", "2", "4")
    assert [(row[0], row[1], row[2]) for row in rows()] == [
        ("LoRA, small", "facts from 1, batch", "2"),
        ("LoRA, small", "facts from 1, batch", "4"),
    ]
    assert long_lists.FIGURE.stat().st_size > 1000
    make("--numbers", "2", "4", "--mode", "sequential", "--chunk", "2", "--set", "lr=2e-2", "--offset", "1")
    last = rows()[-2:]
    assert [row[:3] for row in last] == [
        ["LoRA, small, lr=2e-2", "facts from 2, sequential by 2", "2"],
        ["LoRA, small, lr=2e-2", "facts from 2, sequential by 2", "4"],
    ]
    before = long_lists.PAGE.read_text()
    make("--numbers", "2", "4")  # finished: the same rows again
    assert long_lists.PAGE.read_text() == before
    monkeypatch.setattr(long_lists, "measured", lambda *_: pytest.fail("nothing is to be run"))
    long_lists.PAGE.write_text("<!-- long lists -->\n<!-- end of long lists -->\n")
    long_lists.main(["--render"])
    assert len(rows()) == 4


def test_what_is_lacking_is_said(make, capsys):
    with pytest.raises(SystemExit):
        long_lists.main(["--numbers", "2"])
    assert "--data and --text are needed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown editor"):
        make("--editors", "loar:small.yaml")
