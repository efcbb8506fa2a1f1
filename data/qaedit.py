"""QAEdit (arXiv 2502.11177): questions that people ask models, with a rephrasing and questions about other things."""

from __future__ import annotations

from pathlib import Path

from .facts import Fact
from .formats import Requests, read_file

FORMAT = Requests(
    frozenset({"source", "target", "rephrase", "locality"}),
    {
        "subject": "subject",
        "prompt": "prompt",
        "target_new": "target",
        "rephrase_prompt": "rephrase",
        "locality_prompt": "locality.loc",
        "locality_ground_truth": "locality.loc_ans",
    },
)


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
