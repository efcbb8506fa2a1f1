"""Edits per second, side by side in one run with the plain way of one fact at a time through PEFT.

    python benchmarks/throughput.py --data ../shared/data/knowedit/ZsRE-test-1001.json

The whole protocol is timed: training, scoring before and after, and 100 sampled tokens of the unedited and the edited
model for fluency. Baseline and engine take turns for several rounds on the same facts; ratios are taken round by round,
because shared machines drift. A JSON file with all figures goes to benchmarks/results/.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import peft_baseline  # noqa: E402
from loredit import hparams as presets  # noqa: E402
from loredit.data import Fact, load  # noqa: E402
from loredit.editors import find  # noqa: E402
from loredit.editors._models import LoadedModel  # noqa: E402
from loredit.editors._models import load as load_model  # noqa: E402
from loredit.evaluation.scoring import evaluate  # noqa: E402

OURS = (("lora", "smollm2-published"), ("roselora", "smollm2-published"), ("roselora", "smollm2"))


@dataclass
class Times:
    """Seconds a fact, by part."""

    edit: float
    score: float

    @property
    def total(self) -> float:
        return self.edit + self.score


def baseline(loaded: LoadedModel, facts: list[Fact]) -> Times:
    """One fact at a time, the published values."""
    torch.manual_seed(0)
    settings = peft_baseline.Settings(target_modules=("q_proj", "v_proj"))
    results = list(peft_baseline.run(loaded.model, loaded.tokenizer, facts, settings))
    edit = sum(result.seconds.edit for result in results)
    return Times(edit / len(facts), sum(result.seconds.total for result in results) / len(facts) - edit / len(facts))


def engine(loaded: LoadedModel, facts: list[Fact], editor: str, preset: str, edits_at_once: int | None) -> Times:
    """Side by side."""
    cls = find(editor)
    method = cls(loaded.model, loaded.tokenizer, presets.load(cls, preset))
    times, begun = Times(0.0, 0.0), time.perf_counter()
    for edits in method.edit_batches(facts, edits_at_once=edits_at_once):
        trained = time.perf_counter()
        evaluate(edits)
        ended = time.perf_counter()
        times.edit += (trained - begun) / len(facts)
        times.score += (ended - trained) / len(facts)
        begun = time.perf_counter()
    return times


def main(
    data: Annotated[str, typer.Option(help="Facts, as for run_edit.py.")] = "samples",
    facts: Annotated[int, typer.Option(help="Facts for the engine in each round.")] = 64,
    baseline_facts: Annotated[int, typer.Option(help="Facts for the baseline in each round.")] = 4,
    rounds: Annotated[int, typer.Option(help="Times that all take their turn.")] = 3,
    edits_at_once: Annotated[int | None, typer.Option(help="Edits side by side; as many as memory allows.")] = None,
    model: Annotated[str, typer.Option(help="Model, as for run_edit.py.")] = "smollm2-135m",
) -> None:
    """Time the engine against the plain baseline."""
    pool = load(data).facts
    # The plain script gets float32, what such scripts load on a CPU, and the engine's type as well.
    models = {dtype: load_model(model, dtype=dtype) for dtype in ("float32", "auto")}
    own = str(models["auto"].model.dtype).removeprefix("torch.")
    names = ["PEFT, float32", f"PEFT, {own}", *(f"{editor}/{preset}" for editor, preset in OURS)]
    seen: dict[str, list[Times]] = {name: [] for name in names}
    engine(models["auto"], pool[:2], *OURS[0], None)  # what happens once (imports, kernels) is no part of a round
    baseline(models["float32"], pool[:1])
    with tqdm(total=rounds * len(names), unit="part") as bar:
        for turn in range(rounds):
            few = [pool[i % len(pool)] for i in range(turn * baseline_facts, (turn + 1) * baseline_facts)]
            for name, dtype in ((names[0], "float32"), (names[1], "auto")):
                seen[name].append(baseline(models[dtype], few))
                bar.update()
            for editor, preset in OURS:
                seen[f"{editor}/{preset}"].append(engine(models["auto"], pool[:facts], editor, preset, edits_at_once))
                bar.update()
    Console().print(_table(seen, names[0], names[1]))
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"throughput-{models['auto'].model.device.type}.json"
    path.write_text(json.dumps(_record(seen, data, facts, baseline_facts), indent=1) + "\n")
    Console().print(f"written to {path.relative_to(ROOT)}")


def _table(seen: dict[str, list[Times]], *baselines: str) -> Table:
    table = Table(title="Seconds a fact (median of the rounds), and how many times as fast")
    for column in ("", "edit", "score", "total", "edits/s", *(f"times {name}" for name in baselines)):
        table.add_column(column, justify="left" if not column else "right")
    for name, times in seen.items():
        ratios = [
            f"{median(b.total / t.total for b, t in zip(seen[base], times, strict=True)):.1f}" for base in baselines
        ]
        edit, score, total = (median(getattr(t, part) for t in times) for part in ("edit", "score", "total"))
        table.add_row(name, f"{edit:.3f}", f"{score:.3f}", f"{total:.3f}", f"{1 / total:.2f}", *ratios)
    return table


def _record(seen: dict[str, list[Times]], data: str, facts: int, baseline_facts: int) -> dict[str, object]:
    return {
        "seconds_per_fact": {name: [asdict(t) for t in times] for name, times in seen.items()},
        "data": Path(data).name,
        "facts": facts,
        "baseline_facts": baseline_facts,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


if __name__ == "__main__":
    typer.run(main)
