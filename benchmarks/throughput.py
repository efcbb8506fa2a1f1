"""Edits per second and their parts, beside the plain way of one fact at a time through PEFT, in one run.

    python benchmarks/throughput.py --data ../shared/data/knowedit/ZsRE-test-1001.json
    python benchmarks/throughput.py --data ../shared/data/knowedit/ZsRE-test-1001.json --model gpt2-medium
    python benchmarks/throughput.py --figures

The whole protocol is timed: training, scoring of the unedited and of the edited model, and 100 sampled tokens of both
for fluency. Baseline and engine take turns for several rounds, and ratios are taken round by round, because shared
machines drift. ``gpt2``, ``gpt2-medium``, ``gpt2-large`` and ``gpt2-xl`` are built from their configurations with
random weights and SmolLM2's tokenizer: speed does not depend on the weights. A JSON file with all figures for each kind
of machine and model goes to benchmarks/results/; ``--figures`` draws what is there into docs/figures/.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import peft_baseline  # noqa: E402
from loredit import load_model  # noqa: E402
from loredit.data import Fact, load  # noqa: E402
from loredit.editors import Editor, Edits, find, settings  # noqa: E402
from loredit.engine.model.sites import blocks  # noqa: E402
from loredit.engine.progress import Phase  # noqa: E402
from loredit.evaluation import scoring  # noqa: E402

RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
PARTS = ("edit", "base_scoring", "edited_scoring", "fluency")
METHODS = (("lora", "smollm2-published"), ("roselora", "smollm2-published"), ("roselora", "smollm2"))
SCALED = "roselora/smollm2"
"""The method whose scaling is drawn."""
GPT2 = {  # layers, heads, width
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}


@dataclass
class Measured:
    """Seconds a fact by part, what they were spent on, and how a run went on."""

    facts: int
    edit: float = 0.0
    base_scoring: float = 0.0
    edited_scoring: float = 0.0
    fluency: float = 0.0
    flop: dict[str, float] = field(default_factory=dict)
    """Floating-point operations a fact by part, as :func:`needed` counts them."""
    course: list[tuple[int, float, int]] = field(default_factory=list)
    """After each batch: facts so far, seconds so far, bytes that the process holds."""

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)


def model_of(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if name not in GPT2:
        loaded = load_model(name, dtype=dtype)
        return loaded.model, loaded.tokenizer
    like = load_model("smollm2-135m", dtype=dtype)
    layers, heads, width = GPT2[name]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=width))
    return model.to(like.model.device, like.model.dtype).eval(), like.tokenizer


def editor_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, preset: str) -> Editor:
    h = settings(name, preset)
    depth = len(blocks(model))
    changes: dict[str, Any] = {}
    if model.config.model_type == "gpt2":  # query, key and value are one map
        changes["sites"] = ["qkv" if site in ("query", "value") else site for site in h.model_dump()["sites"]]
        changes["sites"] = [*dict.fromkeys(changes["sites"])]
    layers = h.model_dump()["layers"]
    if layers != "all":  # the same part of the depth as in SmolLM2's 30 blocks
        changes["layers"] = sorted({layer * depth // 30 for layer in layers})
    return find(name)(model, tokenizer, h.model_copy(update=changes))


def baseline(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: list[Fact]) -> Measured:
    """One fact at a time, the published values."""
    torch.manual_seed(0)
    targets = ("c_attn",) if model.config.model_type == "gpt2" else ("q_proj", "v_proj")
    results = peft_baseline.run(model, tokenizer, facts, peft_baseline.Settings(target_modules=targets))
    seconds = [result.seconds for result in results]
    n = len(facts)
    return Measured(
        n,
        edit=sum(s.edit for s in seconds) / n,
        base_scoring=sum(s.score_before for s in seconds) / n,
        edited_scoring=sum(s.score_after for s in seconds) / n,
        fluency=sum(s.fluency_before + s.fluency_after for s in seconds) / n,
    )


def engine(editor: Editor, facts: list[Fact], edits_at_once: int | None) -> Measured:
    """Side by side."""
    n, seen, begun = len(facts), Measured(len(facts)), time.perf_counter()
    flop = dict.fromkeys(PARTS, 0.0)
    batches = editor.edit_batches(facts, edits_at_once=edits_at_once)
    while True:
        before = _now()
        edits = next(batches, None)
        if edits is None:
            break
        seen.edit += (_now() - before) / n
        with _passes_timed() as passes:
            marks: dict[Phase, float] = {}
            begun_scoring = _now()
            scoring.evaluate(edits, progress=lambda phase, *_, m=marks: m.update({phase: _now()}))
        scored = marks[Phase.SCORING] - begun_scoring
        share = passes[0] / sum(passes)
        seen.base_scoring += scored * share / n
        seen.edited_scoring += scored * (1 - share) / n
        seen.fluency += (_now() - marks[Phase.SCORING]) / n
        for part, count in needed(edits).items():
            flop[part] += count / n
        held = sum(batch[0] for batch in seen.course[-1:]) + len(edits)
        seen.course.append((held, _now() - begun, psutil.Process().memory_info().rss))
    seen.flop = flop
    return seen


@contextmanager
def _passes_timed() -> Iterator[list[float]]:
    """Seconds in passes through the unedited and through the edited model, which scoring runs in turn."""
    seconds, real, calls = [0.0, 0.0], scoring.logits_at, 0

    def timed(*args: Any) -> torch.Tensor:
        nonlocal calls
        begun = _now()
        logits = real(*args)
        seconds[calls % 2] += _now() - begun
        calls += 1
        return logits

    scoring.logits_at = timed
    try:
        yield seconds
    finally:
        scoring.logits_at = real


def needed(edits: Edits) -> dict[str, float]:
    """Floating-point operations that the products with the model's matrices need, padding not counted.

    A token costs 2 for each weight of a block, backward the same again (the weights themselves have no gradient), a
    prediction 2 for each weight of the output layer. Attention and the edits' own small products are left out, a few
    per cent at these lengths and ranks.
    """
    editor, first = edits.editor, edits.patch.first_layer
    model, depth = editor.model, len(blocks(editor.model))
    block = 2.0 * sum(p.numel() for p in blocks(model)[0].parameters() if p.dim() == 2)
    head = 2.0 * model.config.vocab_size * model.config.hidden_size
    flop = dict.fromkeys(PARTS, 0.0)
    for e, (fact,) in enumerate(edits.facts):
        part = editor.lesson([fact])
        rows = (*part.answers, *part.anchors)
        tokens, wanted = sum(len(row.ids) for row in rows), sum(len(row.wanted) for row in rows)
        steps = edits.outcomes[e].steps
        flop["edit"] += tokens * first * block + steps * 2 * (tokens * (depth - first) * block + wanted * head)
        check = editor.encoder.answered(fact.prompt, fact.target_new)  # a finished edit is asked for its answer
        flop["edit"] += len(check.ids) * depth * block + len(check.wanted) * head
        asked = scoring.rows_of(fact, editor.encoder)
        tokens, wanted = sum(len(row.ids) for row in asked), sum(len(row.wanted) for row in asked)
        flop["base_scoring"] += tokens * depth * block + wanted * head
        flop["edited_scoring"] += tokens * (depth - first) * block + wanted * head
        prompt, new = len(editor.encoder.prompt(fact.prompt).ids), scoring.FLUENCY_TOKENS
        flop["fluency"] += 2 * ((prompt + new) * depth * block + new * head)
    return flop


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product, the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(8))
    return 2 * n**3 / best


def _seconds(run: Callable[[], Any]) -> float:
    begun = _now()
    run()
    return _now() - begun


def _now() -> float:
    """The clock, once everything queued on the device is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def main(
    data: Annotated[str, typer.Option(help="Facts, as for run_edit.py.")] = "samples",
    model: Annotated[str, typer.Option(help=f"As for run_edit.py, or {', '.join(GPT2)} with random weights.")] = (
        "smollm2-135m"
    ),
    facts: Annotated[int, typer.Option(help="Facts for the engine in each round, at most.")] = 64,
    baseline_facts: Annotated[int, typer.Option(help="Facts for the baseline in each round; 0: no baseline.")] = 2,
    rounds: Annotated[int, typer.Option(help="Times that all take their turn.")] = 1,
    edits_at_once: Annotated[list[int] | None, typer.Option(help="Edits side by side, each in turn.")] = None,
    methods: Annotated[str, typer.Option(help="editor/preset, separated by commas.")] = ",".join(
        map("/".join, METHODS)
    ),
    name: Annotated[str | None, typer.Option(help="Of the file of results; that of the model.")] = None,
    figures: Annotated[bool, typer.Option(help="Measure nothing, draw the results that are there.")] = False,
) -> None:
    """Time the engine against the plain baseline."""
    if figures:
        draw()
        return
    pool = load(data).facts
    own = model_of(model, "auto")
    # The plain script gets float32, what such scripts load on a CPU, and the engine's type as well.
    plain = {"PEFT, float32": model_of(model, "float32"), f"PEFT, {own[0].dtype}".replace("torch.", ""): own}
    runs: dict[str, Callable[[int], Measured]] = {}
    if baseline_facts:
        for kind, loaded in plain.items():
            runs[kind] = lambda turn, loaded=loaded: baseline(  # type: ignore[misc]
                *loaded, [pool[i % len(pool)] for i in range(turn * baseline_facts, (turn + 1) * baseline_facts)]
            )
        baseline(*own, pool[:1])
    for method in methods.split(","):
        editor = editor_of(*own, *method.split("/"))
        engine(editor, pool[:1], 1)  # what happens once (imports, kernels) is no part of a round
        for n in edits_at_once or [64]:
            some = pool[: min(facts, max(n * n, 4))]  # a few facts tell the speed of few edits at once
            runs[f"{method}, E = {n}"] = lambda _, editor=editor, some=some, n=n: engine(editor, some, n)  # type: ignore[misc]
    seen: dict[str, list[Measured]] = {kind: [] for kind in runs}
    rate = matrix_rate(own[0].device, own[0].dtype)
    for turn in tqdm(range(rounds), unit="round"):
        for kind, run in tqdm(runs.items(), unit="part", leave=False):
            seen[kind].append(run(turn))
    rate = max(rate, matrix_rate(own[0].device, own[0].dtype))
    Console(width=140).print(_table(seen, rate, [kind for kind in plain if baseline_facts]))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"throughput-{own[0].device.type}-{name or model}.json"
    path.write_text(json.dumps(_record(seen, rate, own[0], model, data), indent=1) + "\n")
    Console().print(f"written to {path.relative_to(ROOT)}")


def _table(seen: dict[str, list[Measured]], rate: float, baselines: list[str]) -> Table:
    table = Table(title=f"Seconds a fact (median of the rounds); matrix rate {rate / 1e12:.2f} TFLOP/s")
    columns = (
        "",
        "edit",
        "base scoring",
        "edited scoring",
        "fluency",
        "total",
        "edits/s",
        "GFLOP",
        "share: edit",
        "all",
    )
    for column in (*columns, *(f"times {name}" for name in baselines)):
        table.add_column(column, justify="left" if not column else "right")
    for name, times in seen.items():
        parts = [f"{median(getattr(t, part) for t in times):.3f}" for part in (*PARTS, "total")]
        last = times[-1]
        total = median(t.total for t in times)
        shares = ["", "", ""]
        if last.flop:
            every = sum(last.flop.values())
            edit = last.flop["edit"] / median(t.edit for t in times)
            shares = [f"{every / 1e9:.0f}", f"{edit / rate:.0%}", f"{every / total / rate:.0%}"]
        ratios = [f"{median(b.total / t.total for b, t in zip(seen[b], times, strict=True)):.1f}" for b in baselines]
        table.add_row(name, *parts, f"{1 / total:.2f}", *shares, *ratios)
    return table


def _record(
    seen: dict[str, list[Measured]], rate: float, model: PreTrainedModel, name: str, data: str
) -> dict[str, object]:
    return {
        "model": name,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "matrix_rate": rate,
        "measured": {run: [asdict(one) for one in times] for run, times in seen.items()},
        "data": Path(data).name,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
    }


def draw() -> None:
    """Edits a second against edits side by side, facts and model size; a figure for each kind of device."""
    for kind in sorted({path.name.split("-")[1] for path in RESULTS.glob("throughput-*-*.json")}):
        _draw(kind)


def _draw(kind: str) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    at_once: dict[str, dict[int, float]] = defaultdict(dict)
    course: list[tuple[int, float, int]] = []
    best: dict[str, tuple[float, float, float]] = {}
    for path in sorted(RESULTS.glob(f"throughput-{kind}-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for run, rounds in record["measured"].items():
            method, _, edits = run.partition(", E = ")
            if method != SCALED:
                continue
            speed = 1 / median(sum(one[part] for part in PARTS) for one in rounds)
            possible = record["matrix_rate"] / sum(rounds[-1]["flop"].values())
            name, points = record["model"], at_once[record["model"]]
            points[int(edits)] = max(speed, points.get(int(edits), 0.0))
            best[name] = max((speed, possible, record["parameters"] / 1e6), best.get(name, (0.0, 0.0, 0.0)))
            course = max(course, rounds[0]["course"], key=len)
    if not best:
        return  # other methods alone were timed on this kind
    figure = Figure(figsize=(13, 4), layout="constrained", dpi=110)
    side, long, size = figure.subplots(1, 3)
    for name, points in at_once.items():
        side.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=name)
    side.legend()
    side.set_xscale("log", base=2)
    side.set(yscale="log", xlabel="edits side by side", ylabel="edits a second")
    side.xaxis.set_major_formatter("{x:g}")
    long.plot([n for n, _, _ in course], [n / seconds for n, seconds, _ in course], marker="o")
    long.set(ylim=0, xlabel="facts done, the longest first", ylabel="edits a second, from the first")
    speeds, possible, millions = zip(*best.values(), strict=True)
    size.plot(millions, speeds, "o", label="measured")
    size.plot(millions, possible, "_", markersize=14, label="all at the matrix rate")
    for name, (speed, _, x) in best.items():
        size.annotate(name, (x, speed), (8, -4), textcoords="offset points")
    size.set(xscale="log", yscale="log", xlabel="parameters, millions", ylabel="edits a second", xlim=(80, 5000))
    size.xaxis.set_major_formatter("{x:g}")
    size.legend()
    for axes in (side, long, size):
        axes.grid(alpha=0.3)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"throughput-{kind}.png")


if __name__ == "__main__":
    typer.run(main)
