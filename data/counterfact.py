"""CounterFact (arXiv 2202.05262), in EasyEdit's flat form and as its authors distribute it.

EasyEdit's form has the fields of a request, with one neighbour of the subject as locality probe. The authors' has
all of them; what is true of the subject is true of each neighbour, so ``target_true`` answers them all.
"""

from __future__ import annotations

from pathlib import Path

from . import fact_list
from .facts import Fact
from .formats import Requests, read_file

FORMAT = Requests(
    frozenset({"requested_rewrite"}),
    {
        "case_id": "case_id",
        "subject": "requested_rewrite.subject",
        "prompt": "requested_rewrite.prompt",
        "target_new": "requested_rewrite.target_new.str",
        "ground_truth": "requested_rewrite.target_true.str",
        "rephrase_prompt": "paraphrase_prompts",
        "locality_prompt": "neighborhood_prompts",
        "locality_ground_truth": "requested_rewrite.target_true.str",
    },
)
"""The authors' form; EasyEdit's is :data:`fact_list.FORMAT`."""


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT, fact_list.FORMAT])
