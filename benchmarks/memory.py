"""Memory: what one more edit takes beside the formula, and a long list streaming through.

    python benchmarks/memory.py --data ZsRE-test-1001.json

First, the peak of a training step for some numbers of edits of like length side by side, from which the cost of one
more follows, beside ``bytes_per_edit``, which ``--edits-at-once`` left to itself relies on. Then ``--facts`` facts (the
file's own, over and over) are edited batch by batch, with ``--steps`` steps each, and the memory of the process is
printed on the way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import psutil
import typer
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are not part of the package

from benchmarks import pages
from benchmarks.throughput import METHODS, editor_of, model_of
from loredit.data import Fact, load
from loredit.editors import Editor
from loredit.engine.model.attention import trainable_attention
from loredit.engine.model.passes import frozen
from loredit.engine.training.lessons import Lesson
from loredit.engine.training.loop import Work
from loredit.engine.training.memory import bytes_per_edit

AT_ONCE = (8, 32)


def peak(editor: Editor, lessons: list[Lesson]) -> int:
    """Bytes that a training step allocates, at most, above what was there before it."""
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with frozen(editor.model), trainable_attention(editor.model), recorded as seen:
        work = Work(editor, editor.fresh([*range(len(lessons))]), lessons)
        loss, _ = work.losses()
        work.step(loss.sum())
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def one_more(editor: Editor, fact: Fact) -> tuple[float, int]:
    """What one more edit of this fact takes: measured, and by the formula."""
    few, many = (peak(editor, [editor.lesson([fact])] * n) for n in AT_ONCE)
    return (many - few) / (AT_ONCE[1] - AT_ONCE[0]), bytes_per_edit(editor, editor.lesson([fact]))


def main(
    data: Annotated[str, typer.Option(help="Facts, as for run_edit.py.")] = "samples",
    model: Annotated[str, typer.Option(help="As for throughput.py.")] = "smollm2-135m",
    facts: Annotated[int, typer.Option(help="Facts that stream through; 0: none.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each of them.")] = 1,
) -> None:
    own, pool = model_of(model, "auto"), load(data).facts
    longest = max(pool, key=lambda fact: len(fact.prompt))
    rows = []
    for name in METHODS:
        measured, formula = one_more(editor_of(*own, *name), longest)
        rows.append(["/".join(name), f"{measured / 1e6:.0f}", f"{formula / 1e6:.0f}", f"{formula / measured:.2f}"])
    print(pages.table(["one more edit of the longest prompt", "MB", "by the formula", "ratio"], rows))

    editor = editor_of(*own, *METHODS[-1])
    editor.hparams = editor.hparams.model_copy(update={"steps": steps, "stop_at": None})
    many = (pool[i % len(pool)].model_copy(update={"case_id": str(i)}) for i in range(facts))
    done, marks, process = 0, [], psutil.Process()
    with tqdm(total=facts, unit="edit") as bar:
        for edits in editor.edit_batches([*many]) if facts else ():
            done += len(edits)
            bar.update(len(edits))
            if not marks or done >= marks[-1][0] + facts // 10 or done == facts:
                marks.append((done, process.memory_info().rss))
    print(pages.table(["facts", "MB of the process"], [[str(n), f"{held / 1e6:.0f}"] for n, held in marks]))


if __name__ == "__main__":
    typer.run(main)
