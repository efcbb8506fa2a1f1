"""A user's own facts: EasyEdit's request dictionaries, or a plain list in JSON, JSONL or CSV.

    prompt,subject,target_new,ground_truth,rephrase_prompt,locality_prompt,locality_ground_truth
    The capital of {} is,France,Rome,Paris,The capital city of {} is,The capital of Portugal is,Lisbon

Needed are ``prompt`` and ``target_new``. Optional are ``case_id``, ``subject``, ``ground_truth``, ``rephrase_prompt``,
``chat_prompt`` (a question as a user would type it in a chat), ``locality_prompt`` with ``locality_ground_truth`` (the
edit must leave it alone) and ``portability_prompt`` with ``portability_ground_truth`` (it follows from the edit); in
JSON also ``locality`` and ``portability`` with any number of probes in groups, and lists of rephrasings and questions
(see :func:`from_request`). ``{}`` in a prompt stands for the subject.
"""

from __future__ import annotations

from pathlib import Path

from .facts import Fact
from .formats import OWN_NAMES, Requests, read_file
from .requests import from_request

FORMAT = Requests(frozenset({"prompt", "target_new"}), OWN_NAMES)

__all__ = ["FORMAT", "from_request", "load"]


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [FORMAT])
