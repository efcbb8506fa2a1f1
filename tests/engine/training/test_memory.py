"""How many edits fit into memory: measured, never exceeded, and flat however long the list."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import methods
import pytest
import tiny
import torch
from where import ROOT

from loredit.engine.training import memory
from loredit.engine.training.loop import train
from loredit.evaluation.scoring import evaluate


def test_memory_is_measured_on_one_edit(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("lora", model, tokenizer)
    short, long = (editor.lesson([fact]) for fact in (facts[4], facts[3]))
    assert editor.bytes_per_edit(long) > 1.5 * editor.bytes_per_edit(short)
    need = editor.bytes_per_edit(long)
    for free, edits in ((2 * 7.5 * need, 7), (1, 1), (1e15, memory._MOST.cpu)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert memory.edits_that_fit(editor, long) == edits


@pytest.mark.parametrize("method", ["lora", "finetune"])
def test_the_peak_of_training_is_what_an_edit_was_measured_to_need(method, tokenizer, facts):
    """The allocator's own records: what eight more edits add to the peak."""
    model = tiny.model("llama")
    editor = methods.editor(method, model, tokenizer, steps=2)
    one = editor.lesson([facts[3]])
    peaks = [_peak(lambda n=n: train(editor, editor.fresh(range(n)), [one] * n)) for n in (4, 12)]
    measured = (peaks[1] - peaks[0]) / 8
    # The allocator also sees what lives for one operation only; the estimate may be up to twice as cautious.
    assert 0.5 * measured <= editor.bytes_per_edit(one) <= 2 * measured


def test_memory_is_flat_however_many_facts_stream_through(tokenizer, facts):
    editor = methods.editor("lora", tiny.model("llama"), tokenizer, steps=1)

    def stream(n: int) -> None:
        alike = [facts[1].model_copy(update={"case_id": str(i)}) for i in range(n)]
        for edits in editor.edit_batches(alike, edits_at_once=4):
            evaluate(edits, fluency=False)

    few, many = (_peak(lambda n=n: stream(n)) for n in (8, 32))
    assert many <= 1.05 * few


def _peak(run: Callable[[], Any]) -> int:
    """Bytes, the most that was held at once beyond what was held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes))


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),  # on Windows
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, known):
    assert memory.is_out_of_memory(error) == known


def test_memory_that_does_not_suffice_for_measuring_is_one_edit_at_once(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("lora", model, tokenizer)

    def full(*_: Any) -> int:
        raise MemoryError

    monkeypatch.setattr(type(editor), "bytes_per_edit", full)
    assert memory.edits_that_fit(editor, editor.lesson(facts[:1])) == 1


# What no model of a test can need, where the allocator is a real one.
FULL = """
import resource, torch
from loredit.engine.training.memory import is_out_of_memory

torch.ones(8) @ torch.ones(8)  # what torch allocates once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    torch.empty(1 << 33, dtype=torch.uint8)
except RuntimeError as error:
    print(is_out_of_memory(error), type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_torchs_own_message_of_a_full_memory_is_known():
    done = subprocess.run(
        [sys.executable, "-c", FULL], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.startswith("True RuntimeError "), done.stdout + done.stderr


# A batch that no memory holds: the real error, the halving, and the edits of the facts that fit.
HALVED = """
import logging, resource, sys
sys.path[:0] = sys.argv[1:3]
import methods, tiny, torch
from loredit.data import Fact
from loredit.engine.training.loop import Work

torch.set_num_threads(1)
facts = [Fact(case_id=str(i), prompt=f"Fact number {i} is", target_new="so") for i in range(4)]
editor = methods.editor("lora", tiny.model("llama"), tiny.tokenizer(), steps=2)
expected = editor.edit_each(facts, edits_at_once=1, progress=False)
losses = Work.losses

def greedy(work):
    size = (1 << 30) * len(work.edits) ** 2  # a gigabyte for one edit, sixteen for four
    room = torch.empty(size, dtype=torch.uint8)
    return losses(work)

Work.losses = greedy
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
logging.basicConfig(stream=sys.stdout, format="%(message)s")
edits = editor.edit_each(facts, edits_at_once=4, progress=False)
print([outcome.error for outcome in edits.outcomes], all(
    torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(edits.patch.parameters(), expected.patch.parameters())
))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_a_batch_that_memory_does_not_hold_is_halved_until_it_does():
    call = [sys.executable, "-c", HALVED, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "out of memory with 4 edits at once; going on with 2",
        "[None, None, None, None] True",
    ], done.stdout + done.stderr
