"""AQuA: accuracy against the number of training questions, and how many questions would be needed to see an effect.

    python benchmarks/aqua_power.py --data AQUA_DIR

One run for each number of training questions (0: fresh heads on the model as it is), all of one seed and as many
epochs, in a folder each; stopped, it goes on where it was. Nothing is chosen on dev, so that dev and test are held out
alike and counted together. Beside each accuracy stand Clopper and Pearson's 95 % interval, and how many held-out
questions a two-sided test at 5 % would need to tell such an accuracy from chance in four of five experiments.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.optimize import brentq
from scipy.stats import norm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the package

from benchmarks import pages  # noqa: E402
from loredit.data import aqua  # noqa: E402
from loredit.evaluation.classification.runs import run  # noqa: E402
from loredit.evaluation.metrics import exact_interval  # noqa: E402
from loredit.evaluation.tuning.methods import FULL, PROBE  # noqa: E402

CHANCE, LEVEL, POWER = 0.2, 0.05, 0.8
BATCH = 16
# The accuracies that are published for a model of another size (docs/classification.md).
PUBLISHED = {"published: RoseLoRA": 0.279, "published: LoRA": 0.291}


def needed(accuracy: float) -> int | None:
    """Questions at which a test of accuracy = chance finds this one in ``POWER`` of all experiments.

    n = ((z_(1 - level / 2) sqrt(c (1 - c)) + z_power sqrt(a (1 - a))) / (a - c))^2, the normal approximation; None
    where the accuracy a is not above chance c, so that there is no effect to see.
    """
    return math.ceil((_spread(accuracy) / (accuracy - CHANCE)) ** 2) if accuracy > CHANCE else None


def detectable(questions: int) -> float:
    """The accuracy that so many questions tell from chance in ``POWER`` of all experiments."""
    return float(brentq(lambda a: _spread(a) / math.sqrt(questions) - (a - CHANCE), CHANCE, 1))


def _spread(accuracy: float) -> float:
    at_chance, at_effect = (math.sqrt(a * (1 - a)) for a in (CHANCE, accuracy))
    return float(norm.ppf(1 - LEVEL / 2) * at_chance + norm.ppf(POWER) * at_effect)


def held_out(folder: Path) -> tuple[int, int]:
    """Questions that a run answered rightly, and all that it was asked, on dev and test together."""
    splits = json.loads((folder / "metrics.json").read_text())["splits"].values()
    matrices = [scores["confusion"] for scores in splits]
    return sum(m[i][i] for m in matrices for i in range(len(m))), sum(sum(map(sum, m)) for m in matrices)


def trained(questions: int, folder: Path, args: argparse.Namespace) -> None:
    """Run what has no results yet; one that was stopped begins anew."""
    if (folder / "metrics.json").is_file():
        return
    if folder.exists():
        shutil.rmtree(folder)
    steps = max(1, math.ceil(questions * args.epochs / BATCH))
    run(
        "aqua",
        args.editor,
        data=args.data,
        model=args.model,
        overrides={"steps": steps} | ({} if args.editor in (FULL, PROBE) else {"layers": args.layers}),
        seeds=[args.seed],
        batch_size=BATCH,
        limit=questions or None,
        train=questions > 0,
        dtype=args.dtype,
        output=folder,
        progress=True,
    )


def tables(found: Sequence[tuple[int, int, int]]) -> str:
    """The learning curve of (training questions, right, asked), and what the held-out questions can show."""
    curve = []
    for questions, right, asked in found:
        low, high = exact_interval(right, asked)
        share = f"{100 * right / asked:.1f} ({100 * low:.1f} … {100 * high:.1f})"
        curve.append([f"{questions:,}", f"{right} of {asked}", share, _said(needed(right / asked))])
    asked = found[-1][2]
    effects = [[name, f"{100 * a:.1f}", _said(needed(a))] for name, a in PUBLISHED.items()]
    effects.append([f"what {asked} questions show", f"{100 * detectable(asked):.1f}", f"{asked:,}"])
    return "\n\n".join(
        [
            pages.table(["training questions", "right", "held-out accuracy", "questions needed"], curve),
            pages.table(["an effect", "accuracy", "questions needed"], effects),
        ]
    )


def _said(questions: int | None) -> str:
    return "not above chance" if questions is None else f"{questions:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="folder with train.json (or train-flan.json), dev.json, test.json"
    )
    parser.add_argument("--output", type=Path, default=Path("results/aqua-power"), help="folder of all runs")
    parser.add_argument("--questions", type=int, nargs="+", default=[0, 300, 900, 2724], help="to train on")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--editor", default="lora")
    parser.add_argument("--layers", default="3-5", help="blocks that an editor patches")
    parser.add_argument("--model", help="in place of the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(arguments)
    there = len(aqua.load(args.data).splits["train"])
    if most := [n for n in args.questions if n > there]:
        parser.error(f"--questions {most[0]}: {args.data} has {there} to train on")
    found = []
    for questions in sorted(args.questions):
        folder = args.output / f"{args.editor}-{questions}"
        trained(questions, folder, args)
        found.append((questions, *held_out(folder)))
    print(tables(found))


if __name__ == "__main__":
    main()
