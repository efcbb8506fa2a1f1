"""KnowEdit (arXiv 2401.01286): ZsRE, WikiData_recent, WikiData_counterfact and WikiBio, from files or the hub.

ZsRE and WikiData_counterfact have the fields of a request; WikiData_recent calls the rephrased prompt ``rephrase``,
WikiBio has names of its own. ``locality`` and ``portability`` map a kind ("Relation_Specificity", "Forgetfulness";
"Reasoning", "Subject_Aliasing", "Logical_Generalization") to a list of ``{prompt, ground_truth}``. An answer is a text,
a list of texts or, in the WikiData sets, a list of objects with a list of aliases each (a person's several
occupations): all of them count as right, the first is the one that is scored where only one can be, as in EasyEdit.
"""

from __future__ import annotations

from pathlib import Path

from . import fact_list
from .facts import Fact, FactError
from .formats import OWN_NAMES, Requests, read_file

FORMATS = (
    Requests(frozenset({"prompt", "target_new", "rephrase"}), OWN_NAMES | {"rephrase_prompt": "rephrase"}),
    Requests(
        frozenset({"text", "labels"}), OWN_NAMES | {"subject": "concept", "prompt": "text", "target_new": "labels"}
    ),
)
"""WikiData_recent's and WikiBio's; the other two are :data:`fact_list.FORMAT`."""

HUB_FILES = {
    "ZsRE": "benchmark/ZsRE/ZsRE-test-all.json",
    "WikiData_recent": "benchmark/wiki_recent/recent_test.json",
    "WikiData_counterfact": "benchmark/wiki_counterfact/test_cf.json",
    "WikiBio": "benchmark/WikiBio/wikibio-test-all.json",
}
"""The test sets of zjunlp/KnowEdit on the Hugging Face hub."""


def load(path: str | Path) -> list[Fact]:
    """The facts of a file in this format; FactError lists every fault."""
    return read_file(path, [*FORMATS, fact_list.FORMAT])


def download(name: str) -> Path:
    """The file of a test set of :data:`HUB_FILES`, fetched from the hub once and then in its cache.

    The file itself is fetched, not its rows as a table: alias lists of different depths do not fit one table, and a
    file is the same data, with the same identity, however it came here.
    """
    if name not in HUB_FILES:
        raise FactError(f"unknown KnowEdit set {name!r}; there are {', '.join(HUB_FILES)}")
    try:
        from datasets import DownloadManager  # noqa: PLC0415 - takes seconds to import, and the hub alone needs it

        return Path(DownloadManager().download(f"hf://datasets/zjunlp/KnowEdit/{HUB_FILES[name]}"))
    except Exception as error:  # network, hub and cache fail with classes that have nothing else in common
        raise FactError(
            f"KnowEdit's {name} cannot be fetched from the hub ({type(error).__name__}: {error}). Download "
            f"{HUB_FILES[name]} of the data set zjunlp/KnowEdit on a machine that reaches it, and pass its path"
        ) from error
