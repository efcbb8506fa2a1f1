"""Does choosing by sensitivity do more than making the update smaller? RoseLoRA's published comparison, with controls.

    python benchmarks/roselora_study.py --data ZsRE-test-1001.json

Every arm edits the same facts, each on its own, at the published values, with several seeds. What is finished is kept
in the output folder, so a run may be killed at any time and goes on where it was; ``--minutes 8`` ends it after about
so long (with exit status 3 if anything is left), ``--minutes 0`` only renders what there is. ``--shard 0/2`` and
``--shard 1/2`` share the work and the folder. Seed 0 comes first, and of each seed all arms of a few facts before the
next few, so the arms can be compared at any time.

Intervals are over facts: the seeds of a fact are averaged first, since they are no new facts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit import load_model  # noqa: E402
from loredit.data import Fact, load  # noqa: E402
from loredit.editors import Edits, Hparams  # noqa: E402
from loredit.editors import settings as settings_of  # noqa: E402
from loredit.editors.lora import LoRA, LowRank, low_rank_patch  # noqa: E402
from loredit.editors.roselora import RoseLoRA, RoseLoRAHparams, SparseLowRank, SparsePatch  # noqa: E402
from loredit.engine.files import replacing  # noqa: E402
from loredit.engine.model.identity import identity_of  # noqa: E402
from loredit.engine.model.loading import LoadedModel  # noqa: E402
from loredit.engine.patches.branches import WeightSitePatch  # noqa: E402
from loredit.engine.seeds import PerEdit, seed_of  # noqa: E402
from loredit.evaluation.metrics import (  # noqa: E402
    METRICS,
    Estimate,
    Failure,
    Metric,
    MetricSummary,
    PairedDifference,
    Summary,
    failure,
    interval,
)
from loredit.evaluation.scores import FactScores  # noqa: E402
from loredit.evaluation.scoring import evaluate  # noqa: E402

PRESET = "smollm2-published"
PAGE = ROOT / "docs" / "roselora-study.md"
FIGURE = ROOT / "docs" / "figures" / "roselora-study.png"
RESULTS = ROOT / "benchmarks" / "results" / "roselora-study.json"
SHOWN = ("edit_success", "generalization", "portability", "locality", "fluency")
AT_ONCE = 40  # facts of one arm that are trained side by side and written together
UNFINISHED = 3  # exit status


class RandomlyKept(SparseLowRank):
    """RoseLoRA's branch with scores that are drawn once for each edit instead of observed: a random mask whose share
    falls along the same schedule, the kept entries of each row of A and column of B being always among those before."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout: float,
        place: int,
        *,
        h: RoseLoRAHparams,
        seeds: Sequence[int],
    ) -> None:
        super().__init__(a, b, scale, dropout, place, h=h)
        draw = PerEdit([seed_of("mask", seed, place) for seed in seeds])
        self.a_sensitivity, self.b_sensitivity = draw.uniform(a.shape[1:], 1.0), draw.uniform(b.shape[1:], 1.0)

    def _observe(self) -> None:
        """The scores stay."""


class RandomRoseLoRA(RoseLoRA):
    """RoseLoRA that chooses at random."""

    def patch(self, seeds: Sequence[int]) -> SparsePatch:
        branch = partial(RandomlyKept, h=self.hparams, seeds=seeds)
        fresh = low_rank_patch(self.model, self.hparams, seeds, branch)
        return SparsePatch(seeds, fresh.sites, [*fresh.branches])


@dataclass(frozen=True)
class Arm:
    """One row of the study: an editor at the published values but for ``changes``."""

    label: str
    editor: type[LoRA | RoseLoRA]
    changes: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Callable[[str], Edits]], Edits] | None = None
    """For an arm that trains nothing: its edits, from those of the arms that it may ask for by name."""


def norms(patch: WeightSitePatch[LowRank]) -> Tensor:
    """(E,), the Frobenius norm of each edit's update over all sites: |B A|^2 = sum of (B^T B) * (A A^T)."""
    squares = [b.scale**2 * ((b.b.mT @ b.b) * (b.a @ b.a.mT)).sum((1, 2)) for _, b in patch.items()]
    return torch.stack(squares).sum(0).clamp(min=0).sqrt()


def with_dropout(edits: Edits) -> Edits:
    """The same edits, their dropout on wherever they are attached, as EasyEdit scores LoRA."""
    return replace(edits, patch=edits.patch.take(range(len(edits))).train())


def scaled(edits: Edits, norm: Tensor) -> Edits:
    """The same edits, each scaled to a norm, (E,)."""
    factor = norm / norms(edits.patch).clamp(min=torch.finfo().tiny)
    tensors = {n: t * factor.view(-1, 1, 1) if n.endswith(".b") else t for n, t in edits.patch.tensors().items()}
    return replace(edits, patch=edits.patch.rebuilt(tensors).eval())


ARMS = {
    "lora": Arm("LoRA", LoRA),
    "lora-dropout-on": Arm("LoRA, dropout on", LoRA, {}, lambda of: with_dropout(of("lora"))),
    "roselora": Arm("RoseLoRA", RoseLoRA),
    "lora-scaled": Arm("LoRA, scaled", LoRA, {}, lambda of: scaled(of("lora"), norms(of("roselora").patch))),
    "lora-early-stop": Arm("LoRA, stopped early", LoRA, {"stop_at": 0.9}),
    "lora-no-dropout": Arm("LoRA, no dropout", LoRA, {"dropout": 0}),
    "roselora-random": Arm("RoseLoRA, random", RandomRoseLoRA),
    "roselora-random-scaled": Arm(
        "RoseLoRA, random, scaled",
        RandomRoseLoRA,
        {},
        lambda of: scaled(of("roselora-random"), norms(of("roselora").patch)),
    ),
    "roselora-clamp": Arm("RoseLoRA, clamped", RoseLoRA, {"max_abs": 0.003}),
    "roselora-after": Arm("RoseLoRA, after", RoseLoRA, {"sensitivity": "after_step"}),
    "roselora-after-clamp": Arm("RoseLoRA, after, clamped", RoseLoRA, {"sensitivity": "after_step", "max_abs": 0.003}),
}

# What each comparison asks; differences are first minus second.
QUESTIONS = {
    ("roselora", "lora"): "The published comparison",
    ("roselora", "lora-scaled"): "Sparse, or just as small?",
    ("roselora", "lora-early-stop"): "Sparse, or stopped early?",
    ("roselora", "roselora-random"): "Chosen by sensitivity, or at random?",
    ("roselora", "roselora-random-scaled"): "The same at the same norm",
    ("roselora-random-scaled", "lora-scaled"): "Sparse at random, or dense, at the same norm?",
    ("lora-dropout-on", "lora"): "Dropout on while scoring",
    ("lora-no-dropout", "lora"): "No dropout while training",
    ("roselora-after", "roselora"): "Sensitivity after the step",
    ("roselora-clamp", "roselora"): "The clamp",
    ("roselora-after-clamp", "roselora-after"): "The clamp, after the step",
}


class Run(BaseModel):
    """A fact edited with one seed in one arm: a line of the output folder."""

    seed: int
    norm: float
    """Frobenius norm of the update over all sites."""
    scores: FactScores


Runs = Mapping[tuple[str, int], Run]
"""The runs of an arm, by case and seed."""


def hparams(arm: Arm, model: str) -> Hparams:
    base = RoseLoRA if issubclass(arm.editor, RoseLoRA) else LoRA  # presets go by the editor's module
    return settings_of(base.name(), PRESET, {**arm.changes, "model": model})


def trainer(
    options: argparse.Namespace, loaded: LoadedModel, seed: int, facts: Sequence[Fact]
) -> Callable[[str], Edits]:
    """The edits of some facts by the name of the arm; each arm is trained once, whoever needs its edits."""

    @cache
    def edits(name: str) -> Edits:
        arm = ARMS[name]
        if arm.derived is not None:
            return arm.derived(edits)
        method = arm.editor(loaded.model, loaded.tokenizer, hparams(arm, options.model), seed=seed)
        return method.edit_each(facts, edits_at_once=len(facts), progress=False)

    return edits


def work(options: argparse.Namespace, loaded: LoadedModel, facts: Sequence[Fact]) -> bool:
    """Edit what is left, until it is finished (True) or the time is over (False)."""
    end = time.monotonic() + 60 * options.minutes
    shard, shards = map(int, options.shard.split("/"))
    blocks = [(seed, at) for seed in options.seeds for at in range(0, len(facts), AT_ONCE)][shard::shards]
    with tqdm(total=len(ARMS) * sum(len(facts[at : at + AT_ONCE]) for _, at in blocks), unit="edit") as bar:
        for seed, at in blocks:
            part = facts[at : at + AT_ONCE]
            edits = trainer(options, loaded, seed, part)
            for arm in ARMS:
                path = options.output / arm / f"seed-{seed}-cases-{at:04d}-{at + len(part):04d}.jsonl"
                if path.exists():
                    bar.total -= len(part)  # an earlier session's; not in this one's rate
                    continue
                if time.monotonic() >= end:
                    return False
                bar.set_description(f"{arm}, seed {seed}")
                scores, sizes = (
                    evaluate(edits(arm), fluency=options.fluency, seed=seed, progress=False),
                    norms(edits(arm).patch).tolist(),
                )
                runs = [Run(seed=seed, norm=norm, scores=one) for norm, one in zip(sizes, scores, strict=True)]
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as unfinished:
                    unfinished.write_text("".join(f"{run.model_dump_json()}\n" for run in runs), encoding="utf-8")
                bar.update(len(part))
    return True


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """The folder is for runs with these settings alone."""
    path = folder / "study.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    if differing := [key for key in settings if before.get(key) != settings[key]]:
        sys.exit(f"{folder} holds a study with other settings ({', '.join(differing)}); --output names another folder")
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def collected(folder: Path) -> dict[str, Runs]:
    """All runs in the folder."""
    texts = {arm: "".join(path.read_text("utf-8") for path in sorted((folder / arm).glob("*.jsonl"))) for arm in ARMS}
    runs = {arm: map(Run.model_validate_json, text.splitlines()) for arm, text in texts.items() if text}
    return {arm: {(run.scores.case_id, run.seed): run for run in found} for arm, found in runs.items()}


# Numbers


def by_case(values: Iterable[tuple[str, float]]) -> np.ndarray:
    """One number for each case: the mean over its seeds."""
    seen = defaultdict(list)
    for case, value in values:
        seen[case].append(value)
    return np.array([fmean(each) for each in seen.values()])


def summary(runs: Runs) -> Summary:
    """As ``loredit.summarise``, for runs with several seeds of a case; what failures make of it is left out."""
    sound = {key: run.scores for key, run in runs.items() if failure(run.scores) is None}

    def estimate(metric: Metric, model: int) -> Estimate | None:
        seen = [(case, value) for (case, _), fact in sound.items() if (value := metric.per_fact(fact)[model])]
        means = by_case((case, value.mean) for case, value in seen)
        if not seen:
            return None
        low, high = interval(means, metric.bounds, 0)
        probes = sum(value.probes for _, value in seen)
        return Estimate(mean=means.mean(), low=low, high=high, facts=len(means), probes=probes)

    return Summary(
        facts=len(runs),
        failed=tuple(
            Failure(case_id=f"{case}, seed {seed}", message=str(failure(run.scores)))
            for (case, seed), run in runs.items()
            if (case, seed) not in sound
        ),
        steps=fmean(fact.steps for fact in sound.values()) if sound else None,
        nonzero_share=fmean(fact.nonzero_share for fact in sound.values()) if sound else None,
        metrics={
            metric.name: MetricSummary(
                label=metric.label, family=metric.family, edited=edited, base=estimate(metric, 1)
            )
            for metric in METRICS
            if (edited := estimate(metric, 0))
        },
    )


def difference(a: Runs, b: Runs, metric: Metric) -> PairedDifference | None:
    """b - a over the runs (case and seed) that both arms have and that failed in neither."""
    pairs = [
        (case, before.mean, after.mean)
        for (case, seed), run in a.items()
        if (other := b.get((case, seed))) and failure(run.scores) is None and failure(other.scores) is None
        if (before := metric.per_fact(run.scores)[0]) and (after := metric.per_fact(other.scores)[0])
    ]
    if not pairs:
        return None
    first, second = (by_case((pair[0], pair[i]) for pair in pairs) for i in (1, 2))
    low, high = interval(second - first, metric.difference_bounds, 0)
    return PairedDifference(
        label=metric.label,
        family=metric.family,
        a=first.mean(),
        b=second.mean(),
        difference=(second - first).mean(),
        low=low,
        high=high,
        pairs=len(first),
    )


class ArmResult(BaseModel):
    summary: Summary
    norm: float
    """Mean Frobenius norm of an update."""
    cases: dict[int, int]
    """How many cases each seed has."""


class Study(BaseModel):
    """What the page is made from."""

    settings: dict[str, Any]
    arms: dict[str, ArmResult]
    differences: dict[str, dict[str, PairedDifference]]
    """By ``"first - second"``, then by metric."""


def study(settings: Mapping[str, Any], runs: Mapping[str, Runs]) -> Study:
    def differences(first: str, second: str) -> dict[str, PairedDifference]:
        found = {metric.name: difference(runs[second], runs[first], metric) for metric in METRICS}
        return {name: paired for name, paired in found.items() if paired is not None}

    return Study(
        settings=dict(settings),
        arms={
            arm: ArmResult(
                summary=summary(found),
                norm=fmean([run.norm for run in found.values() if failure(run.scores) is None] or [0.0]),
                cases=Counter(seed for _, seed in found),
            )
            for arm, found in runs.items()
        },
        differences={f"{a} - {b}": differences(a, b) for a, b in QUESTIONS if {a, b} <= runs.keys()},
    )


# Page


def render(result: Study) -> None:
    """Tables and figure of the page, from the numbers alone."""
    first = next(iter(result.arms.values())).summary.metrics
    shown = [name for name in SHOWN if name in first]
    labels = [first[name].label for name in shown]
    unedited = [pages.mean(first[name].base) for name in shown]
    arms = [
        (
            ARMS[arm].label,
            *(pages.mean(found.summary.metrics[name].edited) for name in shown),
            f"{found.norm:.2f}",
            f"{100 * (found.summary.nonzero_share or 0):.0f} %",
            f"{found.summary.steps or 0:.0f}",
            " + ".join(str(n) for _, n in sorted(found.cases.items())),
        )
        for arm, found in result.arms.items()
    ]
    compared = [
        (
            f"{question}<br>{ARMS[a].label} − {ARMS[b].label}",
            *(pages.difference(found.get(name)) for name in shown),
            str(max((paired.pairs for paired in found.values()), default=0)),
        )
        for (a, b), question in QUESTIONS.items()
        if (found := result.differences.get(f"{a} - {b}")) is not None
    ]
    headings = ("", *labels, "norm", "not zero", "steps", "cases (seeds 0 + 1 + ...)")
    failed = {ARMS[arm].label: len(found.summary.failed) for arm, found in result.arms.items()}
    text = [
        pages.table(headings, [("unedited", *unedited, *[pages.NOTHING] * 4), *arms]),
        *(f"{label}: {n} edits failed and count in no mean" for label, n in failed.items() if n),
        *pages.figure(
            {ARMS[arm].label: found.summary for arm, found in result.arms.items()},
            FIGURE,
            "generalization against locality, and portability, by arm",
        ),
        pages.table(("first − second", *labels, "cases"), compared),
    ]
    pages.fill(PAGE, "numbers", "\n\n".join(text))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="samples", help="facts, as for run_edit.py")
    parser.add_argument("--cases", type=int, default=200, help="how many of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fluency", action="store_true", help="also score 100 sampled tokens (takes as long again)")
    parser.add_argument("--model", default="smollm2-135m", help="model, as for run_edit.py")
    parser.add_argument("--output", type=Path, default=Path("results/roselora-study"), help="folder of finished runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after about this long")
    parser.add_argument("--shard", default="0/1", help="I/N: do only every N-th part, beginning with part I")
    parser.add_argument("--render", action="store_true", help=f"only make the page again from {RESULTS.name}")
    options = parser.parse_args(arguments)
    if options.render:
        render(Study.model_validate_json(RESULTS.read_text(encoding="utf-8")))
        return 0
    disable_progress_bar()  # "Loading weights" is over in a second; the bar that matters is ours
    loaded, facts = load_model(options.model), load(options.data)
    settings = {
        "model": identity_of(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "data": facts.identity,
        "fluency": options.fluency,
        "hparams": {
            name: hparams(arm, options.model).model_dump(mode="json", exclude_unset=True) for name, arm in ARMS.items()
        },
    }
    claim(options.output, settings)
    finished = work(options, loaded, facts.facts[: options.cases])
    if runs := collected(options.output):
        result = study(settings, runs)
        pages.keep(RESULTS, result)
        render(result)
    return 0 if finished else UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
