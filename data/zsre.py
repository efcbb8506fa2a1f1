"""ZsRE as distributed with MEND (arXiv 2110.11309), with the portability questions of arXiv 2305.13172.

The locality probe is a question of Natural Questions and begins with "nq question: ". That prefix stays: the
published locality numbers (MEND, ROME, EasyEdit) are measured with it.
"""

from __future__ import annotations

from pathlib import Path

from .facts import Fact
from .formats import Requests, read_file

FORMAT = Requests(
    frozenset({"src", "alt"}),
    {
        "case_id": "case_id",
        "subject": "subject",
        "prompt": "src",
        "target_new": "alt",
        "ground_truth": "answers",
        "rephrase_prompt": "rephrase",
        "locality_prompt": "loc",
        "locality_ground_truth": "loc_ans",
        "portability_prompt": "portability.New Question",
        "portability_ground_truth": "portability.New Answer",
    },
)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
