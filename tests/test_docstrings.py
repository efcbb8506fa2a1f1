"""What is public says what it takes, gives and refuses; every example in the house does what it shows."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from test_layout import FILES, ROOT

import loredit
from loredit import data, easyedit, editors, hparams
from loredit.evaluation.classification import runs as classification
from loredit.evaluation.generation import runs as generation

HPARAMS = ("methods", "kind", "settings", "presets", "find", "read", "parsed", "validated")


def public() -> Iterator[tuple[str, object]]:
    """Every function and class that is exported, and the methods of those that users call."""
    exported = {f"loredit.{name}": getattr(loredit, name) for name in loredit.__all__}
    for module in (data, editors, easyedit):
        exported |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    exported |= {f"loredit.hparams.{name}": getattr(hparams, name) for name in HPARAMS}
    exported |= {"classification.run": classification.run, "generation.run": generation.run}
    seen: set[int] = set()
    for name, thing in exported.items():
        if id(thing) not in seen and isinstance(thing, (FunctionType, type)):
            seen.add(id(thing))
            yield name, thing
    for cls in (editors.Editor, editors.Edits, loredit.EditStore):
        for name, member in vars(cls).items():
            function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            if isinstance(function, FunctionType) and name[0] != "_" and name != "carry":  # that is a method's own
                yield f"{cls.__name__}.{name}", function


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_takes_and_gives(name):
    thing = PUBLIC[name]
    said = inspect.getdoc(thing) or ""
    if isinstance(thing, type):
        assert "Example:" in said or inspect.isabstract(thing) or issubclass(thing, Exception)
        return
    taken = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
    gives = str(inspect.signature(thing).return_annotation) != "None"
    lacking = ["Example:"] * ("Example:" not in said)
    lacking += ["Args:"] * (bool(taken) and "Args:" not in said)
    lacking += [p for p in taken if f" {p}: " not in said.replace("**", "")]
    lacking += ["Returns:"] * (gives and "Returns:" not in said and "Yields:" not in said)
    assert lacking == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in ("loredit", *parts[parts[0] == "loredit" :]) if part != "__init__")


EXTRAS = {"loredit.evaluation.generation.metrics": "sacrebleu"}


@pytest.mark.parametrize("module", [module_of(path) for path in FILES if ">>> " in path.read_text()])
def test_examples_do_what_they_show(module):
    if module in EXTRAS:
        pytest.importorskip(EXTRAS[module])
    assert not doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS).failed
