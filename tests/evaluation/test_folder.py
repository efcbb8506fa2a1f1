"""A run's folder: its number among others, and that two runs never share one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from loredit.evaluation.folder import RUN, RunError, open_folder

RECORD = {"editor": "lora", "seed": 0}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(name: str = "lora-smollm2", *, resume: bool = False, **changes: object) -> Path:
    return open_folder(RECORD | changes, None, name, resume)


def test_folders_are_numbered_from_one():
    assert [opened().name, opened().name] == ["lora-smollm2-001", "lora-smollm2-002"]
    assert opened("lora-gpt2").name == "lora-gpt2-001"


@pytest.mark.parametrize(
    "foreign", ["lora-smollm2-mine", "lora-smollm2-7-old", "lora-smollm2-tuned-004", "lora-smollm2-"]
)
def test_a_folder_of_ones_own_that_begins_alike_is_left_alone(foreign):
    (Path("results") / foreign).mkdir(parents=True)
    first = opened()
    assert first.name == "lora-smollm2-001"
    assert opened(resume=True) == first
    assert list((Path("results") / foreign).iterdir()) == []


def test_numbers_go_on_after_the_largest_and_a_file_takes_none():
    (Path("results") / "lora-smollm2-041").mkdir(parents=True)
    (Path("results") / "lora-smollm2-1000").write_text("a file")
    assert opened().name == "lora-smollm2-042"


def begin(start: object, found: object) -> None:
    start.wait()
    found.put([opened().name for _ in range(5)])


def test_runs_that_begin_at_once_have_folders_of_their_own():
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(4), context.Queue()
    runs = [context.Process(target=begin, args=(start, found)) for _ in range(4)]
    for run in runs:
        run.start()
    names = [name for _ in runs for name in found.get(timeout=60)]
    for run in runs:
        run.join()
    assert len({*names}) == len(names) == 20
    assert all((Path("results") / name / RUN).is_file() for name in names)


def test_a_run_goes_on_in_the_newest_folder_with_its_settings():
    first, _ = opened(seed=1), opened(seed=2)
    assert opened(resume=True, seed=1) == first
    with pytest.raises(RunError, match="nothing to resume"):
        opened(resume=True, seed=3)


def test_a_damaged_record_is_told_and_not_written_over():
    folder = opened()
    (folder / RUN).write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged, so the run cannot go on"):
        open_folder(RECORD, folder, "lora-smollm2", resume=True)
    assert (folder / RUN).read_text() == "{"
