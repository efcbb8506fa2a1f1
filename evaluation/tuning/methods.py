"""Which method is trained and with what settings, and how scores of several seeds are joined."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal, TypeVar

from ... import hparams as presets
from ...data.messages import unknown
from ...hparams.base import TrainedHparams

T = TypeVar("T")

Folder = Literal["classification", "generation"]

FULL, PROBE, TOP2 = "full", "probe", "ft-top2"
"""Methods that are no editors: all weights, the head alone, the two last blocks."""
OTHERS: Mapping[Folder, Sequence[str]] = {"classification": (FULL, PROBE), "generation": (FULL, TOP2)}

# What training on many examples takes of the settings that every editor has; the others are of the editing of facts.
_SHARED = ("model", "steps", "lr", "clip_norm")


def settings(editor: str, folder: Folder, preset: str | None, overrides: Mapping[str, object]) -> TrainedHparams:
    """The hyper-parameters of a method that is trained on many examples.

    Args:
        editor: a method that is trained, of ``loredit.editors.available()``, or one that is no editor (:data:`OTHERS`).
        folder: what it is trained for, and where its presets are in ``hparams/``.
        preset: a YAML file or a preset; None: the one that is called as the editor.
        overrides: hyper-parameters in place of the preset's.

    Returns:
        What was read and found valid.

    Raises:
        HparamsError: an unknown method, one that solves for facts in closed form, settings that belong to the editing
            of facts, or a faulty preset; the message lists all faults.

    Example:
        >>> settings("roselora", "classification", None, {"steps": 50}).steps
        50
    """
    kinds = {name: presets.kind(name) for name in presets.methods()} | dict.fromkeys(OTHERS[folder], TrainedHparams)
    known = [name for name, kind in kinds.items() if issubclass(kind, TrainedHparams)]
    if editor in kinds and editor not in known:
        raise presets.HparamsError(
            f"{editor} solves for facts in closed form and cannot be trained on the examples of {folder}; there are: "
            + ", ".join(known)
        )
    if editor not in known:
        raise presets.HparamsError(unknown("editor", editor, known))
    cls = kinds[editor]
    assert issubclass(cls, TrainedHparams)
    found = presets.read(cls, folder, preset or editor, overrides)
    fields = TrainedHparams.model_fields
    if used := [key for key in fields if key not in _SHARED and getattr(found, key) != fields[key].default]:
        raise presets.HparamsError(
            f"{', '.join(used)} belong to knowledge editing and mean nothing in {folder}; leave them out"
            + (" (the examples of a step are --batch-size)" if "batch_size" in used else "")
        )
    return found


def in_proportion(own: TrainedHparams, steps: int) -> dict[str, int]:
    """What makes a preset last so many steps: these, and what its schedule counts in steps, in the same proportion.

    Example:
        >>> in_proportion(settings("simplexlora", "classification", None, {"steps": 200, "T": 20}), 100)
        {'steps': 100, 'T': 10}
    """
    counted = {name: getattr(own, name) for name in own.in_steps}
    return {name: max(1, round(n * steps / own.steps)) for name, n in counted.items() if n is not None}


def sample(examples: Sequence[T], limit: int | None) -> Sequence[T]:
    """``limit`` of the examples, all where None; the same for every seed and method."""
    return examples if limit is None or limit >= len(examples) else random.Random(0).sample(examples, limit)


def over_seeds(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each metric's mean, standard deviation (None for one seed) and values; confusion matrices are summed.

    Example:
        >>> over_seeds([{"bleu": 60.0}, {"bleu": 62.0}])["bleu"]["mean"]
        61.0
    """
    merged: dict[str, Any] = {}
    for name, first in scores[0].items():
        values = [one[name] for one in scores]
        if isinstance(first, Mapping):
            merged[name] = over_seeds(values)
        elif isinstance(first, list):
            merged[name] = [[sum(cell) for cell in zip(*rows, strict=True)] for rows in zip(*values, strict=True)]
        else:
            merged[name] = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "seeds": values}
    return merged


def ways(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a classification run has of one split, by the way to an answer: "" is the classifier's own.

    Example:
        >>> [*ways({"rules": {"mean": {}, "odds": {}}, "members": {}})]
        ['mean', 'odds']
    """
    own = {name: part for name, part in scores.items() if name not in ("rules", "members")}
    return ({"": own} if own else {}) | scores.get("rules", {})
