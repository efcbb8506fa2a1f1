"""Classification sets: GLUE's folders, AQuA, human against machine; splits without leaks, faults with file and line."""

from __future__ import annotations

import datasets
import pytest
from classified import ROWS, aqua_folder, essays, glue_folder
from where import SHARED

from loredit.data import aqua, glue, human_vs_machine
from loredit.data.examples import DataError, Example

shared = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files in ../shared/data"),
]


@pytest.mark.parametrize("task", glue.TASKS)
def test_glue_is_read_as_glue_ships_it(task, tmp_path):
    texts, label = ROWS[task][2]
    data = glue.load(task, str(glue_folder(tmp_path, task)))
    assert data.splits == {"train": (Example((texts,), label),), "dev": (Example((texts,), label),)}


def test_a_folder_of_folders_will_do_and_the_identity_is_the_contents(tmp_path):
    first, second = tmp_path / "a" / "rte", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir(parents=True)
        glue_folder(folder, "rte")
    same = glue.load("rte", str(tmp_path / "a")).identity
    assert glue.load("rte", str(second)).identity == same
    glue_folder(second, "rte", "0\tOther.\tIt was.\tentailment")
    assert glue.load("rte", str(second)).identity != same


def test_every_bad_line_of_glue_is_told_with_file_line_and_field(tmp_path):
    rows = ["0\tIt is.\tIt was.\tentailment", "1\tIt is.\tIt was.", "2\t \tIt was.\tentailment", "3\tA\tB\tmaybe"]
    glue_folder(tmp_path, "rte", *rows)
    with pytest.raises(DataError) as caught:
        glue.load("rte", str(tmp_path))
    message = str(caught.value)
    assert message.startswith("3 bad lines (--skip-bad leaves them out):")
    assert f"{tmp_path / 'train.tsv'}, line 3: 3 tab-separated fields, expected at least 4" in message
    assert "line 4: field 'sentence1' is empty" in message
    assert "line 5: field 'label': 'maybe' is no label; there are entailment, not_entailment" in message
    assert len(glue.load("rte", str(tmp_path), skip_bad=True).splits["train"]) == 1


def test_missing_files_and_columns_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"holds no rte data: expected train.tsv .*--data hub"):
        glue.load("rte", str(tmp_path))
    glue_folder(tmp_path, "rte")
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"nothing to score on: expected dev.tsv beside train.tsv"):
        glue.load("rte", str(tmp_path))
    with pytest.raises(DataError, match=r"train.tsv: no column '#1 String', '#2 String', 'Quality' in its first line"):
        glue.load("mrpc", str(glue_folder(tmp_path, "rte")))


def test_the_hub_gives_the_same_examples_as_glues_files(tmp_path, monkeypatch):
    def hub(name: str, task: str) -> dict[str, list[dict[str, object]]]:
        assert (name, task) == ("nyu-mll/glue", "qnli")
        row = {"question": "Who?", "sentence": "He.", "label": 1, "idx": 0}
        return {"train": [row], "validation": [row], "test": [{**row, "label": -1}]}

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert glue.load("qnli", "hub").splits == glue.load("qnli", str(glue_folder(tmp_path, "qnli"))).splits
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: 1 / 0)
    with pytest.raises(DataError, match=r"qnli cannot be had from the hub \(ZeroDivisionError.*--data DIR"):
        glue.load("qnli", "hub")


def test_aqua_scores_each_option_with_its_question_and_has_no_scored_question_in_training(tmp_path):
    data = aqua.load(str(aqua_folder(tmp_path)))
    texts = tuple(("1 + 1?", option) for option in ("1", "2 )", "3", "4", "E)"))
    assert data.splits["train"] == (Example(texts, 1),)
    assert (len(data.splits["dev"]), len(data.splits["test"]), data.options) == (1, 1, True)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"question": ""}, "field 'question' is ''"),
        ({"options": ["A)1"]}, r"field 'options' is \['A\)1'\], expected five texts"),
        ({"correct": "F"}, "field 'correct' is 'F'; there are A, B, C, D, E"),
    ],
)
def test_a_bad_aqua_record_is_told_with_file_line_and_field(fault, says, tmp_path):
    with pytest.raises(DataError, match=rf"train\.json, line 1: {says}"):
        aqua.load(str(aqua_folder(tmp_path, **fault)))


def test_texts_are_split_by_topic_and_people_are_the_first_class(tmp_path):
    data = human_vs_machine.load(str(essays(tmp_path / "essays.jsonl.gz")))
    assert data.classes == ("Human", "Beta", "Zeta")
    assert (data.reference, data.weighted) == (0, True)
    topics = {name: {e.texts[0][0].split()[1] for e in rows} for name, rows in data.splits.items()}
    assert sum(map(len, topics.values())) == 60 == len(set.union(*topics.values()))
    assert all(len(rows) == 3 * len(topics[name]) for name, rows in data.splits.items())
    for name, rows in data.splits.items():
        for example in rows:
            label, topic = example.texts[0][0].split()
            assert data.classes[int(example.label)] == label
            assert human_vs_machine.split_of(f"s {topic}") == name


def test_a_topics_split_does_not_change_when_rows_are_added(tmp_path):
    few, many = (human_vs_machine.load(str(essays(tmp_path / f"{n}.jsonl.gz", n))) for n in (60, 90))
    assert all(set(few.splits[name]) <= set(many.splits[name]) for name in few.splits)


@pytest.mark.parametrize(
    ("line", "says"),
    [("{'text'}", "not JSON, column 2: "), ("[1]", r"expected an object with fields, found \[1\]")],
)
def test_a_line_that_is_no_json_object_is_told(line, says, tmp_path):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"line 1: {says}"):
        human_vs_machine.load(str(tmp_path / "a.jsonl"))


def test_bad_texts_and_labels_are_told(tmp_path):
    with pytest.raises(DataError, match=r"line 1: field 'text' is 3, expected a text"):
        human_vs_machine.load(str(essays(tmp_path / "a.jsonl.gz", text=3)))
    with pytest.raises(DataError, match=r"the labels are Robot; expected 'human' and at least one more"):
        human_vs_machine.load(str(essays(tmp_path / "b.jsonl.gz", label="Robot")))
    with pytest.raises(DataError, match=r"no such file: .*none.jsonl. --data takes JSONL"):
        human_vs_machine.load(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"holds 2 JSONL files \(a.jsonl.gz, b.jsonl.gz\); name one"):
        human_vs_machine.load(str(tmp_path))
    with pytest.raises(DataError, match="too few topics, none is left for"):
        human_vs_machine.load(str(essays(tmp_path / "c.jsonl.gz", 1)))


def test_few_topics_may_leave_none_for_dev(tmp_path):
    topics = next(
        n for n in range(1, 60) if {human_vs_machine.split_of(f"s {i}") for i in range(n)} == {"train", "test"}
    )
    data = human_vs_machine.load(str(essays(tmp_path / "few.jsonl.gz", topics)))
    assert data.splits.keys() == {"train", "test"}


class TestSharedData:
    pytestmark = shared

    @pytest.mark.parametrize(
        ("task", "sizes"),
        [
            ("mrpc", {"train": 3668, "dev": 408, "test": 1725}),
            ("rte", {"train": 2490, "dev": 277}),
            ("cola", {"train": 8551, "dev": 1043}),
        ],
    )
    def test_glue_has_its_published_sizes(self, task, sizes):
        data = glue.load(task, str(SHARED))
        assert {name: len(rows) for name, rows in data.splits.items()} == sizes

    def test_aqua_has_its_published_sizes(self):
        data = aqua.load(str(SHARED))
        assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 2724, "dev": 254, "test": 254}

    def test_essays_have_all_classes_in_every_split(self):
        data = human_vs_machine.load(str(SHARED))
        assert sum(map(len, data.splits.values())) == 4000
        for rows in data.splits.values():
            counts = [sum(e.label == c for e in rows) for c in range(4)]
            assert min(counts) == max(counts) > 100  # every topic has one text of each class
