"""What an accelerator gives: seconds a fact by the number of edits side by side, and how far together is from alone.

    python benchmarks/gpu.py --data ZsRE-test-1001.json --name h100

LoRA with its tuned preset, in float32 and bfloat16; every number of docs/performance.md on a GPU comes from here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

import loredit
from loredit.data import Fact

T = TypeVar("T")
FACTS = (1, 64, 512)
ALONE = (0, 7, 19, 31)  # of 32 edited together
RESULTS = Path(__file__).parent / "results"


def timed(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """What some work gives, and its seconds to the end of the device's own."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    found = work()
    synchronize()
    return found, time.perf_counter() - begun


def measured(editor: loredit.Editor, facts: Sequence[Fact]) -> list[dict[str, float]]:
    """Seconds a fact of editing and of teacher-forced scoring, by the number of facts."""
    device = editor.model.device
    editor.edit_each(facts[:8], progress=False)  # kernels are chosen and loaded
    rows = []
    for n in FACTS:
        edits, edit = timed(device, lambda n=n: editor.edit_each(facts[:n], progress=False))
        _, score = timed(device, lambda edits=edits: loredit.evaluate(edits, fluency=False, progress=False))
        rows.append({"facts": n, "edit": round(edit / n, 4), "score": round(score / n, 4)})
    return rows


def together_and_alone(editor: loredit.Editor, facts: Sequence[Fact]) -> dict[str, float]:
    """The largest differences of steps and losses of edits made among 32 and by themselves."""
    together = editor.edit_each(facts[:32], progress=False).outcomes
    alone = {i: editor.edit_each(facts[i : i + 1], progress=False).outcomes[0] for i in ALONE}
    return {
        "steps": max(abs(together[i].steps - one.steps) for i, one in alone.items()),
        "loss": max(abs((together[i].loss or 0.0) - (one.loss or 0.0)) for i, one in alone.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of facts, 512 of them at best")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="gpu", help="of the file below benchmarks/results")
    given = parser.parse_args()
    facts = loredit.load_facts(given.data).facts
    found: dict[str, object] = {"torch": torch.__version__}
    for dtype in ("float32", "bfloat16"):
        editor = loredit.editor("lora", "smollm2", device=given.device, dtype=dtype)
        found["device"] = (
            torch.cuda.get_device_name() if editor.model.device.type == "cuda" else str(editor.model.device)
        )
        found[dtype] = {"seconds": measured(editor, facts), "differs": together_and_alone(editor, facts)}
        print(dtype, json.dumps(found[dtype]), flush=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
