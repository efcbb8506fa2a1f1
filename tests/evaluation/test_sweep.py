"""Sweeps: what a grid means, and runs that come back whole, once, and as they are alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from loredit.evaluation import runs, sweep
from loredit.evaluation.folder import RunError
from loredit.evaluation.scores import FactScores
from loredit.evaluation.spreading import Workers

GRID = """
data: facts.json
dtype: float32
fluency: false
limit: 3
runs:
  - {editor: lora, hparams: tiny.yaml, seed: [0, 1], set: {rank: [1, 2]}}
  - {editor: finetune, hparams: fine.yaml, mode: [single, sequential]}
"""


class Here(Workers):
    """This process, as if it were another."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def close(self) -> None: ...

    def free(self, busy: int) -> int:
        return 1 - busy

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.done.append(arguments)
        future.set_result(work(*arguments))
        return future

    def fetch(self, future: Future[Any]) -> Any:
        return future.result()

    def drop(self, future: Future[Any]) -> None: ...


@pytest.fixture
def grid(place: Path) -> Path:
    (place / "fine.yaml").write_text(f"model: {place}/tiny\nsites: [mlp_down]\nlayers: [1]\nlr: 1.0e-2\nsteps: 2\n")
    (place / "grid.yaml").write_text(GRID)
    return place


def test_every_list_is_each_of_its_values(grid: Path) -> None:
    requests = sweep.read_sweep("grid.yaml")
    assert [*requests] == [
        *(f"lora-tiny-rank={rank}-seed={seed}" for rank in (1, 2) for seed in (0, 1)),
        *(f"finetune-fine-mode={mode}" for mode in ("single", "sequential")),
    ]
    assert {(request.limit, request.fluency) for request in requests.values()} == {(3, False)}
    assert requests["lora-tiny-rank=2-seed=1"].set == {"rank": 2}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("runs: []", "expected `runs:`"),
        ("runs: [{editor: lora, lr: 1}]", r"grid 1: 1 fault\(s\)\n  lr: unknown; there are editor, hparams, set"),
        ("runs: [{editor: lora}, {editor: lora}]", "two runs 'lora'"),
        ("runs: [{editor: loora}]", "did you mean 'lora'"),
        ("runs: [{editor: lora, set: {rnk: 1}}]", "rnk: unknown"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_run(grid: Path, changed: str, says: str) -> None:
    (grid / "grid.yaml").write_text(changed)
    workers = Here()
    with pytest.raises(ValueError, match=says):
        sweep.sweep("grid.yaml", grid / "out", workers)
    assert not workers.done


def test_a_sweep_ends_with_what_the_runs_give_alone_and_goes_on(grid: Path) -> None:
    done = sweep.sweep("grid.yaml", grid / "out", Here(), progress=False)
    assert done.figure is not None
    assert done.figure.read_bytes().startswith(b"\x89PNG")
    assert [page.name for page in done.comparisons] == ["compare.html"], "of the runs in single mode"
    alone = runs.run(
        "lora",
        "tiny.yaml",
        data="facts.json",
        dtype="float32",
        fluency=False,
        limit=3,
        seed=1,
        overrides={"rank": 2},
        output="alone",
        progress=False,
    )
    name = "lora-tiny-rank=2-seed=1"
    assert done.summaries[name] == alone.summary
    assert _scores(grid / "out" / name) == _scores(alone.folder)
    assert (grid / "out" / "finetune-fine-mode=sequential" / "edits-3" / "edits.json").exists()
    with pytest.raises(RunError, match="already holds a sweep"):
        sweep.sweep("grid.yaml", grid / "out", Here(), progress=False)
    (grid / "out" / name / runs.SUMMARY).rename(grid / "lost")
    (grid / "out" / name).rename(grid / "gone")
    workers = Here()
    again = sweep.sweep("grid.yaml", grid / "out", workers, resume=True, progress=False)
    assert len(workers.done) == 1
    assert again.summaries == done.summaries
    (grid / "grid.yaml").write_text(GRID.replace("limit: 3", "limit: 2"))
    with pytest.raises(RunError, match="with other settings"):
        sweep.sweep("grid.yaml", grid / "out", Here(), resume=True, progress=False)
    assert json.loads((grid / "out" / sweep.SWEEP).read_text())[name]["limit"] == 3


def _scores(folder: Path) -> list[FactScores]:
    lines = (folder / runs.RESULTS).read_text().splitlines()
    times = {"edit_seconds": 0.0, "score_seconds": 0.0}
    return [FactScores.model_validate_json(line).model_copy(update=times) for line in lines]
