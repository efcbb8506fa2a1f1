"""Facts to edit, from benchmark files, a user's own list, standard input, the hub or the project's own samples."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from . import counterfact, fact_list, hallueditbench, knowedit, mquake, qaedit, rippleedits, unke, zsre
from .facts import BadRecord, Claim, Fact, FactError, Probe
from .formats import LoadedFacts, read
from .records import read_bytes
from .requests import from_request

__all__ = ["BadRecord", "Claim", "Fact", "FactError", "LoadedFacts", "Probe", "from_request", "load"]

# A plain list comes last: whatever else has a prompt and a target.
FORMATS = (
    zsre.FORMAT,
    qaedit.FORMAT,
    mquake.FORMAT,
    rippleedits.FORMAT,
    hallueditbench.FORMAT,
    unke.FORMAT,
    counterfact.FORMAT,
    *knowedit.FORMATS,
    fact_list.FORMAT,
)


def load(source: str | Path = "samples", *, skip_bad: bool = False) -> LoadedFacts:
    """The facts of ``source``, whose format is found by looking at it.

    Args:
        source: a file (JSON, JSONL, CSV); "-" for standard input; "samples" for the facts written for this project;
            "knowedit:ZsRE" (WikiData_recent, WikiData_counterfact, WikiBio) for KnowEdit from the hub.
        skip_bad: leave faulty records out and list them in ``LoadedFacts.bad``.

    Returns:
        The facts, and what is told about the source.

    Raises:
        FactError: lists every fault with its file, line, record and field. Without ``skip_bad``, any fault raises it.

    Example:
        >>> load().facts[0].case_id
        'france-capital'
    """
    name = str(source)
    if name == "samples":
        content = resources.files(__package__).joinpath("samples/facts.json").read_bytes()
    elif name == "-":
        name, content = "standard input", sys.stdin.buffer.read()
    elif name.startswith("knowedit:"):
        content = read_bytes(knowedit.download(name.removeprefix("knowedit:")))
    else:
        content = read_bytes(Path(source))
    return read(name, content, FORMATS, skip_bad=skip_bad)
