"""One editor on several benchmark sets, beside the samples: a run for each, and one table.

Every set asks another kind of question of an edit, and an editor that is tuned on one of them can fail on the others.
The sets are the files that their authors distribute, in one folder (:data:`SETS`); what is not there is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean

from ..data.messages import unknown
from ..engine.progress import Shown
from .folder import RUN, RunError
from .metrics import Summary
from .runs import run

SETS: dict[str, str] = {
    "zsre": "knowedit/ZsRE-test-1001.json",
    "counterfact": "counterfact/counterfact-2000.json",
    "wikidata": "knowedit/wiki_counterfact_train-400.json",
    "wild-zsre": "wild/zsre-2000.json",
    "wikibigedit": "wild/wikibigedit-2000.json",
    "qaedit": "wild/qaedit-700.json",
    "mquake": "mquake/MQuAKE-CF-3k-v2.json",
    "rippleedits": "rippleedits/popular.json",
    "unke": "unke/final_data_v2.json",
    "samples": "",
}
"""File of each set, below one folder; the samples come with the project."""

COLUMNS: dict[str, str] = {
    "edit_success": "succ.",
    "generalization": "gen.",
    "portability": "port.",
    "locality": "loc.",
    "probability_generalization": "PS",
    "probability_locality": "NS",
    "contains_generalization": "free",
    "contains_chat": "chat",
}
"""What the table shows of a run's metrics, and how it is called there; beside it ROME's S."""


@dataclass(frozen=True)
class SetResult:
    """One set's run."""

    name: str
    folder: Path
    summary: Summary

    @property
    def values(self) -> dict[str, float | None]:
        """The columns' numbers; None for what the set does not measure."""
        metrics = self.summary.metrics
        found = {label: metrics[name].edited.mean if name in metrics else None for name, label in COLUMNS.items()}
        return found | {"S": self.score}

    @property
    def score(self) -> float | None:
        """ROME's S: the harmonic mean of ES, PS and NS (https://arxiv.org/abs/2202.05262)."""
        metrics = self.summary.metrics
        names = [f"probability_{part}" for part in ("edit_success", "generalization", "locality")]
        if not all(name in metrics for name in names):
            return None
        return harmonic_mean([metrics[name].edited.mean for name in names])


def bench(
    editor: str,
    preset: str,
    folder: str | Path | None = None,
    *,
    sets: Collection[str] = (),
    output: str | Path,
    overrides: Mapping[str, object] | None = None,
    limit: int = 100,
    offset: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    progress: Shown = None,
) -> Iterator[SetResult]:
    """Edit and score the facts of each set, each fact on its own; a set that is finished is not run again.

    Args:
        editor: a name in ``loredit.editors.available()``.
        preset: a YAML file or a preset of the editor.
        folder: where the files of :data:`SETS` lie; None: the samples alone.
        sets: names in :data:`SETS`; empty: all that are there.
        output: a folder, which gets one folder for each set's run.
        overrides: hyper-parameters in place of the preset's.
        limit: facts of each set, at most.
        offset: facts that are skipped first.
        seed: as of a run.
        device: as of a run.
        dtype: as of a run.
        quantize: as of a run.
        progress: told how far each run is; a bar if not given, False for none.

    Yields:
        Each set's result as its run ends.

    Raises:
        RunError: an unknown set, or one that was named and is not there.

    Example:
        >>> [one.name for one in bench("lora", "smollm2", output="bench", limit=2)]  # doctest: +SKIP
        ['samples']
    """
    for name, data in _found(folder, sets).items():
        own = Path(output) / name
        result = run(
            editor,
            preset,
            data=data,
            overrides=overrides,
            limit=limit,
            offset=offset,
            skip_bad=True,
            seed=seed,
            device=device,
            dtype=dtype,
            quantize=quantize,
            measures=("generation", "probabilities"),
            fluency=False,
            output=own,
            resume=(own / RUN).exists(),
            progress=progress,
        )
        yield SetResult(name, result.folder, result.summary)


def _found(folder: str | Path | None, sets: Collection[str]) -> dict[str, str]:
    """The data of each set that is to be run."""
    if wrong := [name for name in sets if name not in SETS]:
        raise RunError(unknown("set", wrong[0], [*SETS]))
    places = {name: Path(folder or "") / file for name, file in SETS.items() if file and folder is not None}
    there = {name: str(place) for name, place in places.items() if place.is_file()} | {"samples": "samples"}
    if missing := [name for name in sets if name not in there]:
        place = places.get(missing[0])
        raise RunError(f"the set {missing[0]} is a file, {place or SETS[missing[0]]}; --data names the folder of sets")
    return {name: there[name] for name in SETS if name in there and (not sets or name in sets)}


def rows(results: Sequence[SetResult]) -> list[tuple[str, ...]]:
    """The table's rows, the names of its columns first.

    Example:
        >>> rows([])
        [('set', 'facts', 'succ.', 'gen.', 'port.', 'loc.', 'PS', 'NS', 'free', 'chat', 'S')]
    """
    head = ("set", "facts", *COLUMNS.values(), "S")
    lines = []
    for result in results:
        numbers = ("–" if value is None else f"{value:.1f}" for value in result.values.values())
        lines.append((result.name, str(result.summary.facts - len(result.summary.failed)), *numbers))
    return [head, *lines]
