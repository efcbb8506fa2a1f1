"""How long it takes to read long fact lists: 100,000 facts in each format, and one fact with many aliases.

    python benchmarks/lists.py

Prints seconds, the least of three, for a size and for four times that size; twice as long per record would be more than
linear work.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loredit import data

FACTS, ALIASES = 100_000, 20_000


def records(n: int) -> list[dict[str, str]]:
    return [
        {
            "case_id": f"case {i}",
            "prompt": "The capital of {} is",
            "subject": f"Country {i}",
            "target_new": f"City {i}",
            "rephrase_prompt": "{}'s capital is called",
        }
        for i in range(n)
    ]


def as_json(path: Path, n: int) -> None:
    path.write_text(json.dumps(records(n)), encoding="utf-8")


def as_lines(path: Path, n: int) -> None:
    path.write_text("\n".join(map(json.dumps, records(n))), encoding="utf-8")


def as_csv(path: Path, n: int) -> None:
    rows = records(n)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def aliases(path: Path, n: int) -> None:
    fact = {"prompt": "P", "target_new": "A", "ground_truth": [f"alias {i}" for i in range(n)]}
    path.write_text(json.dumps([fact]), encoding="utf-8")


def faults(path: Path, n: int) -> None:
    good = json.dumps([{"prompt": "P", "target_new": "A"}] + [{"prompt": "P"}] * n)
    path.write_text(good, encoding="utf-8")


CASES: dict[str, tuple[str, Callable[[Path, int], None], int]] = {
    "facts, JSON": ("a.json", as_json, FACTS),
    "facts, JSONL": ("a.jsonl", as_lines, FACTS),
    "facts, CSV": ("a.csv", as_csv, FACTS),
    "aliases of one answer": ("b.json", aliases, ALIASES),
    "faulty records": ("c.json", faults, ALIASES),
}


def seconds(name: str, write: Callable[[Path, int], None], n: int) -> float:
    """The least of three."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path, n)
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            data.load(path, skip_bad=True)
            taken.append(time.perf_counter() - begun)
    return min(taken)


def main() -> None:
    print("| list | seconds | per record or alias |\n|---|---|---|")
    for name, (file, write, n) in CASES.items():
        for size in (n // 4, n):
            taken = seconds(file, write, size)
            print(f"| {size:,} {name} | {taken:.2f} | {taken / size * 1e6:.0f} µs |", flush=True)


if __name__ == "__main__":
    main()
