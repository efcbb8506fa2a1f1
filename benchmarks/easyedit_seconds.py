"""Seconds per fact of EasyEdit and of ``loredit.easyedit.edit``, on the same facts, model and machine.

    python benchmarks/easyedit_seconds.py CHECKOUT MODEL_FOLDER FACTS.json [--limit 10] [--rounds 3]

Edits the facts of a KnowEdit file one by one and scores them before and after, with fluency, in turns, several rounds
over: EasyEdit with its own LoRA, EasyEdit with our RoseLoRA, our edit with LoRA and with RoseLoRA, all at the published
values (rank 4, alpha 16, 30 steps), and our edit with the tuned RoseLoRA. ``CHECKOUT`` is zjunlp/EasyEdit and needs
what it imports; the folder of the model (SmolLM2) must have "llama" in its name. Prints wall and processor seconds per
fact; on a busy machine only the latter mean something.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import loredit.easyedit
from loredit.data import Fact, load

ITS_LORA = {
    "alg_name": "LoRA",
    "lora_type": "lora",
    "rank": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
    "layers": [],
    "num_steps": 30,
    "lr": 5e-3,
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": False,
    "batch_size": 1,
    "max_length": 40,
}


def arguments(facts: list[Fact]) -> dict[str, Any]:
    """BaseEditor.edit's arguments: a column for everything, None where a fact has no such probes."""

    def groups(kind: str) -> dict[str, Any]:
        of_fact = [getattr(fact, kind) for fact in facts]
        return {
            group: {
                "prompt": [[p.prompt for p in probes[group]] if group in probes else None for probes in of_fact],
                "ground_truth": [
                    [p.answers[0] for p in probes[group]] if group in probes else None for probes in of_fact
                ],
            }
            for group in sorted({group for probes in of_fact for group in probes})
        }

    return {
        "prompts": [fact.prompt for fact in facts],
        "target_new": [fact.target_new for fact in facts],
        "subject": [fact.subject for fact in facts],
        "rephrase_prompts": [fact.rephrase_prompts[0] for fact in facts],
        "locality_inputs": groups("locality"),
        "portability_inputs": groups("portability"),
        "test_generation": True,
        "verbose": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    model, data = str(asked.model.absolute()), asked.facts.absolute()
    sys.path.insert(0, str(asked.checkout.absolute()))
    os.chdir(tempfile.mkdtemp())  # EasyEdit writes its logs where it is
    loredit.easyedit.register()
    from easyeditor import BaseEditor, LoRAHyperParams  # noqa: PLC0415 - of the checkout that the arguments name

    logging.disable(logging.INFO)
    facts = load(data).facts[: asked.limit]

    def easyedit(hparams: Any) -> Callable[[], Any]:
        # Loaded anew each time: EasyEdit's LoRA leaves hooks and settings behind. Loading is not timed.
        editor = BaseEditor.from_hparams(hparams)
        return lambda: editor.edit(**arguments(facts))

    def ours(hparams: Any) -> Callable[[], Any]:
        editor = BaseEditor.from_hparams(hparams)
        hparams.model_name = editor.model, editor.tok
        return lambda: loredit.easyedit.edit(hparams, **arguments(facts))

    def preset(editor: str, name: str = "smollm2-published.yaml") -> Any:
        return loredit.easyedit.hparams(editor, name, model_name=model, device=asked.device)

    ways: dict[str, Callable[[], Callable[[], Any]]] = {
        "EasyEdit, its LoRA": lambda: easyedit(LoRAHyperParams(**ITS_LORA, model_name=model, device=asked.device)),
        "EasyEdit, our RoseLoRA": lambda: easyedit(preset("roselora")),
        "loredit.easyedit.edit, LoRA": lambda: ours(preset("lora")),
        "loredit.easyedit.edit, RoseLoRA": lambda: ours(preset("roselora")),
        "the same, tuned preset": lambda: ours(preset("roselora", "smollm2.yaml")),
    }
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(asked.rounds):
        for way, prepare in ways.items():
            run = prepare()
            wall, processor = time.perf_counter(), time.process_time()
            run()
            seconds[way].append((time.perf_counter() - wall, time.process_time() - processor))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {len(facts)} facts")
    print("medians per fact      wall s   processor s")
    for way, measured in seconds.items():
        wall, processor = (statistics.median(one) / len(facts) for one in zip(*measured, strict=True))
        print(f"{way:32s} {wall:8.2f} {processor:8.2f}")


if __name__ == "__main__":
    main()
