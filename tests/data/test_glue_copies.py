"""GLUE sets as public copies have them: SST-2 with its labelled test set, STS-B without a header."""

from __future__ import annotations

from pathlib import Path

import pytest

from loredit.data import glue
from loredit.data.examples import DataError, Example

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_sst2_has_a_labelled_test_set(tmp_path):
    for name, row in (("train_full.tsv", "so so \t0"), ("dev.tsv", "fine\t1"), ("test-labeled.tsv", "dull .\t0")):
        (tmp_path / name).write_text(f"sentence\tlabel\n{row}\n")
    data = glue.load("sst2", str(tmp_path))
    assert {name: rows[0].texts[0][0] for name, rows in data.splits.items()} == {
        "train": "so so ",
        "dev": "fine",
        "test": "dull .",
    }


def test_stsb_is_read_from_csv_without_a_header(tmp_path):
    (tmp_path / "stsb-en-train.csv").write_text('"A dog, I think.","A ""cat"".",2.75\n')
    (tmp_path / "stsb-en-dev.csv").write_text("A dog.,A cat.,0.0\n")
    (tmp_path / "stsb-en-test.csv").write_text("A dog.,A dog.,5.0\n")
    data = glue.load("stsb", str(tmp_path))
    assert data.splits["train"] == (Example((("A dog, I think.", 'A "cat".'),), 2.75),)
    assert [*data.splits] == ["train", "dev", "test"]
    (tmp_path / "stsb-en-dev.csv").write_text("A dog.,A cat.\nA dog.,A cat.,much\nA dog.,A cat.,1\n")
    with pytest.raises(DataError, match="2 bad lines") as caught:
        glue.load("stsb", str(tmp_path))
    assert "stsb-en-dev.csv, line 1: 2 comma-separated fields, expected at least 3" in str(caught.value)
    assert "line 2: field 2: 'much' is no number" in str(caught.value)
    assert len(glue.load("stsb", str(tmp_path), skip_bad=True).splits["dev"]) == 1


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files in ../shared/data")
@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("sst2", {"train": 67349, "dev": 872, "test": 1821}),
        ("stsb", {"train": 5749, "dev": 1500, "test": 1379}),
        ("mrpc", {"train": 3668, "dev": 408, "test": 1725}),
        ("rte", {"train": 2490, "dev": 277}),
        ("cola", {"train": 8551, "dev": 1043}),
    ],
)
def test_the_five_sets(task, sizes):
    assert {name: len(rows) for name, rows in glue.load(task, str(SHARED)).splits.items()} == sizes
