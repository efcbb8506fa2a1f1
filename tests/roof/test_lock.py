"""The model's lock: in order, and long work lets others in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from torch import nn

from loredit.engine.model.hooks import after, attached_to
from loredit.lock import ModelLock


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)  # so that they wait in this order
    return thread


def test_those_who_wait_come_in_order_and_long_work_gives_way_without_its_hooks():
    model = nn.Linear(1, 1)
    lock, seen, waiting = ModelLock(model), list[str](), threading.Event()

    def long() -> None:
        with lock.held():
            handle = after(model, lambda module, args, output: output)
            waiting.wait()
            for step in range(3):
                seen.append(f"step {step}")
                lock.give_way()
            assert attached_to(model)
            handle.remove()

    def short(name: str) -> None:
        with lock.held():
            seen.append(f"{name}{' edited' * attached_to(model)}")

    threads = [started(long), started(lambda: short("a")), started(lambda: short("b"))]
    waiting.set()
    for thread in threads:
        thread.join(10)
    assert seen == ["step 0", "a", "b", "step 1", "step 2"]
