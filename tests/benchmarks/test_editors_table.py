"""The table of all editors: made by one command, added to row by row, and rendered again from its numbers alone."""

from __future__ import annotations

import json

import pytest
import tiny

from benchmarks import editors_table, pages
from loredit.evaluation.metrics import Estimate, PairedDifference

EMPTY = "Before.\n\n<!-- table -->\n<!-- end of table -->\n\nAfter.\n"


@pytest.fixture
def make(tmp_path, tokenizer, facts, monkeypatch):
    """The command on a tiny model, with a page and a folder of its own."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    common = f"model: {tmp_path}/tiny\nsites: [mlp_down]\nlayers: 1-2\nalpha: 4\nlr: 1.0e-2\nsteps: 4\n"
    (tmp_path / "small.yaml").write_text(common + "rank: 2\n")
    (tmp_path / "large.yaml").write_text(common + "rank: 3\n")
    (tmp_path / "ada.yaml").write_text(common + "init_r: 2\ntarget_r: 1\n")
    records = [
        {
            "case_id": fact.case_id,
            "prompt": fact.prompt,
            "target_new": fact.target_new,
            "rephrase_prompt": list(fact.rephrase_prompts),
            "locality": {
                "all": [{"prompt": p.prompt, "ground_truth": list(p.answers)} for p in fact.locality["other"]]
            },
            "portability": {"all": [{"prompt": fact.prompt, "ground_truth": [fact.target_new]}]},
        }
        for fact in (facts[0], facts[2])
    ]
    for record in records:
        record["rephrase_prompt"] = record["rephrase_prompt"] or ["Again:"]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    for name in ("PAGE", "FIGURES", "RESULTS"):
        monkeypatch.setattr(editors_table, name, tmp_path / "made" / getattr(editors_table, name).name)
    editors_table.PAGE.parent.mkdir()
    editors_table.PAGE.write_text(EMPTY)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: editors_table.main(["--data", "facts.json", *arguments])


def rows() -> dict[str, list[str]]:
    lines = [line for line in editors_table.PAGE.read_text().splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for line in lines for cells in [[c.strip() for c in line.strip("|").split("|")]]}


def test_rows_are_added_and_rendered_again_from_the_numbers(make):
    make("--editors", "lora:small.yaml", "adalora:ada.yaml")
    table = rows()
    assert [*table] == ["", "---", "unedited", "LoRA, small", "AdaLoRA, ada"]
    n = 2 * (32 + 48)  # sites times widths
    assert (table["LoRA, small"][5], table["AdaLoRA, ada"][5]) == (str(2 * n), str(2 * (n + 2)))
    assert all(len(cells) == 9 for cells in table.values())
    assert all(float(seconds) >= 0 for name in [*table][3:] for seconds in table[name][-2:])
    figures = {"editors.png", "ranks-adalora-ada.yaml.png"}
    assert {path.name for path in editors_table.FIGURES.iterdir()} == figures
    assert all(f"(figures/{name})" in editors_table.PAGE.read_text() for name in figures)

    make("--editors", "lora:large.yaml")
    assert [*rows()][3:] == ["LoRA, small", "AdaLoRA, ada", "LoRA, large"]
    page = editors_table.PAGE.read_text()
    editors_table.PAGE.write_text(EMPTY)
    make("--render")
    assert editors_table.PAGE.read_text() == page
    assert page.startswith("Before.\n\n<!-- table -->\n")
    assert page.endswith("<!-- end of table -->\n\nAfter.\n")

    with pytest.raises(SystemExit, match=r"other settings \(data\); move it away"):
        make("--editors", "lora:small.yaml", "--limit", "1", "--output", "elsewhere")
    with pytest.raises(SystemExit, match="lora:none: no file 'none'"):
        make("--editors", "lora:none")


@pytest.mark.parametrize(
    "text",
    ["", "<!-- table -->", "<!-- end of table --><!-- table -->", EMPTY + EMPTY, "<!-- end of table -->" + EMPTY],
)
def test_a_page_without_its_two_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="<!-- table --> and <!-- end of table -->, once each"):
        pages.fill(page, "table", "new")
    assert page.read_text() == text


def test_filling_a_page_again_changes_nothing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(EMPTY)
    pages.fill(page, "table", "| new |")
    once = page.read_text()
    pages.fill(page, "table", "| new |")
    assert page.read_text() == once == EMPTY.replace("-->\n<!--", "-->\n\n| new |\n\n<!--")


def test_cells_say_how_sure_they_are():
    estimate = Estimate(mean=99.26, low=98.1, high=100.0, facts=3, probes=3)
    assert pages.mean(estimate) == "99.3 (98.1 … 100.0)"
    assert pages.mean(estimate.model_copy(update={"low": None, "high": None})) == "99.3"
    assert pages.mean(None) == pages.NOTHING
    paired = PairedDifference(label="", mode="token_em", a=1, b=3, difference=2, low=1.0, high=3.0, pairs=9)
    assert pages.difference(paired) == "**+2.0** (+1.0 … +3.0)"
    assert pages.difference(paired.model_copy(update={"low": -0.5})) == "+2.0 (-0.5 … +3.0)"
