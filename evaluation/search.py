"""A preset of a model's own: values are tried, generalization is set against locality, and the knee is proposed.

What is tried lies around a preset that is there already: learning rate, what is held and how hard, where the patch
sits. Both numbers are wanted high and each is bought with the other, so the result is a front (no trial of it is beaten
in both); its knee is the trial that is nearest to 100 in both. The search is Optuna's (the extra ``tune``), and goes on
where it was interrupted.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data import Fact
from ..editors import Editor
from ..engine.files import locked, replacing
from ..engine.model.sites import blocks, within
from ..engine.progress import Phase, Progress
from ..hparams import HparamsError, validated
from ..hparams.base import Hparams
from .folder import RunError
from .metrics import summarise
from .scores import FactScores
from .work import Spec, scored

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as missing:
    raise RunError(f"{missing}; pip install 'loredit[tune]' brings it") from None

# How far from the preset's value each hyper-parameter is looked for: so many times more or less.
_FACTORS = {
    "lr": 10.0,
    "kl_weight": 10.0,
    "clamp": 4.0,
    "weight_decay": 10.0,
    "mom2_update_weight": 100.0,
    "null_energy": 10.0,
    "ridge": 10.0,
    "damping": 10.0,
}
_STOP_AT = (0.5, 0.98)
_WIDTH = 0.35  # of the blocks that are taken, as a share of the depth, at most
# After a first part of the facts a trial ends that is behind another in both numbers, by so many points.
_FIRST, _BEHIND = 0.25, 15.0

# Points of edit success that the knee may lack.
_LEARNS = 5.0
_NUMBERS = ("edit_success", "generalization", "locality")

_ENDED = (TrialState.COMPLETE, TrialState.FAIL)

JOURNAL = "trials.log"


@dataclass(frozen=True)
class Tried:
    """A set of values, and what it gives."""

    values: dict[str, Any]
    """In place of the preset's."""
    edit_success: float
    generalization: float
    locality: float

    @property
    def distance(self) -> float:
        """How far both numbers are from 100, together."""
        return math.hypot(100 - self.generalization, 100 - self.locality)


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    front: list[Tried]
    """By locality, the lowest first; the same numbers stand there once."""
    preset: Tried
    """The preset's own values."""
    trials: int
    """Of them all, also of earlier sessions."""

    @property
    def shown(self) -> list[Tried]:
        """The front, and below it the preset where another trial has beaten it."""
        return self.front if self.preset in self.front else [*self.front, self.preset]

    @property
    def knee(self) -> Tried:
        """The trial of the front that is nearest to 100 in both, of those that learn hardly less than the others."""
        most = max(tried.edit_success for tried in self.front)
        learned = [tried for tried in self.front if tried.edit_success >= most - _LEARNS]
        return min(learned, key=lambda tried: tried.distance)


def search(
    editor: Editor,
    facts: Sequence[Fact],
    folder: Path,
    *,
    trials: int,
    minutes: float | None = None,
    fixed: Collection[str] = (),
    edits_at_once: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Try values around those of an editor.

    Args:
        editor: of the method, on the model; its hyper-parameters are tried first.
        facts: what is edited; with rephrasings and locality probes.
        folder: keeps the trials; a search of the same settings in it goes on.
        trials: how many there are to be, with those that are there.
        minutes: begin no further trial after so long.
        fixed: hyper-parameters that stay.
        edits_at_once: edits trained side by side.
        progress: told the share of the trials.

    Raises:
        RunError: the facts ask for no generalization or no locality, or the folder holds another search.
    """
    if lacking := [
        name
        for name, has in (("rephrasings", "rephrase_prompts"), ("locality probes", "locality"))
        if not any(getattr(fact, has) for fact in facts)
    ]:
        raise RunError(f"tuning weighs generalization against locality; the facts have no {' and no '.join(lacking)}")
    space = _Space(editor.hparams, len(blocks(editor.model)), fixed)
    with warnings.catch_warnings(), locked(folder):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            sampler=optuna.samplers.TPESampler(seed=editor.seed),
            study_name="loredit",
            directions=["maximize", "maximize"],
            load_if_exists=True,
        )
        about = {
            "editor": editor.name(),
            "hparams": editor.hparams.model_dump(mode="json"),
            "model": editor.model_identity,
            "facts": hashlib.sha256("\n".join(fact.model_dump_json() for fact in facts).encode()).hexdigest(),
            "fixed": sorted(fixed),
        }
        if study.user_attrs.setdefault("about", about) != about:
            raise RunError(f"{folder} holds a search with other settings or facts; name another folder")
        study.set_user_attr("about", about)
        if not study.trials:
            study.enqueue_trial(space.begun)
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        done = len(study.get_trials(states=_ENDED))
        while done < trials and time.monotonic() < end:
            if progress:
                progress(Phase.TRAINING, done / trials, trials)
            trial = study.ask()
            values = space.asked(trial)
            tried = _tried(editor, values, facts, edits_at_once, [_of(one) for one in _complete(study)])
            if tried is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                trial.set_user_attr("values", tried.values)
                trial.set_user_attr("edit_success", tried.edit_success)
                study.tell(trial, [tried.generalization, tried.locality])
            done += 1
        if progress:
            progress(Phase.FINISHED, 1.0, trials)
        complete = [_of(one) for one in _complete(study)]
    if not complete:
        raise RunError("no trial ended with numbers; look whether the preset's own values work: loredit run")
    best = sorted((_of(one) for one in study.best_trials), key=lambda tried: (tried.locality, tried.generalization))
    front = list({(tried.generalization, tried.locality): tried for tried in best}.values())
    return Found(front, complete[0], len(complete))


def written(found: Found, editor: Editor, path: Path, said: Mapping[str, str]) -> None:
    """Write the knee as a preset that says how it was found; ``said`` are lines about that."""
    values = editor.hparams.model_dump(mode="json", exclude_unset=True) | found.knee.values
    lines = [
        f"# python run_edit.py --editor {editor.name()} --hparams {path.name}",
        "#",
        *(f"# {key}: {value}" for key, value in said.items()),
        "# The front, and the values that it began with (edit success, generalization, locality):",
        *(f"#   {_numbers(tried)}  {_told(tried, found)}" for tried in found.shown),
    ]
    with replacing(path) as file:
        file.write_text(
            "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, default_flow_style=None), encoding="utf-8"
        )


def _told(tried: Tried, found: Found) -> str:
    """What a line of numbers is of; whoever wants another compromise than the knee finds its values there."""
    if tried == found.knee:
        return "<- this one"
    values = ", ".join(f"{key}: {value}" for key, value in tried.values.items())
    return f"the values that the search began with ({values})" if tried == found.preset else values


def _numbers(tried: Tried) -> str:
    return f"{tried.edit_success:5.1f} {tried.generalization:5.1f} {tried.locality:5.1f}"


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _of(trial: optuna.trial.FrozenTrial) -> Tried:
    told = trial.user_attrs
    generalization, locality = trial.values
    return Tried(told["values"], told["edit_success"], generalization, locality)


class _Space:
    """What may be tried around a preset's values, and how it is written as hyper-parameters."""

    def __init__(self, hparams: Hparams, depth: int, fixed: Collection[str]) -> None:
        values: dict[str, Any] = {key: value for key, value in hparams if key not in fixed}
        self._depth = depth
        self.begun: dict[str, Any] = {}
        """The preset's own values, as a trial has them."""
        self._around = {
            key: (values[key] / factor, values[key] * factor) for key, factor in _FACTORS.items() if values.get(key)
        }
        self.begun |= {key: values[key] for key in self._around}
        self._stops = isinstance(values.get("stop_at"), float)
        if self._stops:
            self.begun["stop_at"] = min(max(values["stop_at"], _STOP_AT[0]), _STOP_AT[1])
        self._chosen: list[int] = []
        if layers := values.get("layers"):
            self._chosen = within(layers, depth) if isinstance(layers, str) else sorted(layers)
            self.begun["first"] = self._chosen[0]
            if len(self._chosen) > 1:
                self.begun["blocks"] = min(len(self._chosen), self._most)
        if not self.begun:
            raise RunError(
                "there is nothing to try: the editor learns nothing, or every hyper-parameter is fixed (--set)"
            )

    @property
    def _most(self) -> int:
        """How many blocks may be taken."""
        return max(2, round(_WIDTH * self._depth))

    def asked(self, trial: optuna.Trial) -> dict[str, Any]:
        """The values that a trial is to have."""
        values: dict[str, Any] = {
            key: float(f"{trial.suggest_float(key, low, high, log=True):.3g}")
            for key, (low, high) in self._around.items()
        }
        if self._stops:
            values["stop_at"] = round(trial.suggest_float("stop_at", *_STOP_AT), 3)
        if self._chosen:
            first = trial.suggest_int("first", 0, self._depth - 1)
            number = trial.suggest_int("blocks", 1, self._most) if len(self._chosen) > 1 else 1
            values["layers"] = list(range(first, min(self._depth, first + number)))
        return values


def _tried(
    editor: Editor, values: dict[str, Any], facts: Sequence[Fact], edits_at_once: int | None, others: Sequence[Tried]
) -> Tried | None:
    """A trial, ended after the first facts where it is far behind another; None where no number came of it."""
    cls = type(editor)
    try:
        hparams = validated(cls.Hparams, editor.hparams.model_dump() | values, "values that were tried")
    except HparamsError:  # values that do not go together
        return None
    method = cls(editor.model, editor.tokenizer, hparams, seed=editor.seed)
    spec = Spec(
        editor=editor.name(),
        hparams=hparams.model_dump(mode="json"),
        seed=editor.seed,
        device=str(editor.model.device),
        dtype=str(editor.model.dtype),
        edits_at_once=edits_at_once,
        fluency=False,
    )
    first = max(1, math.ceil(_FIRST * len(facts)))
    seen: list[FactScores] = []
    tried = None
    for part in (facts[:first], facts[first:]):
        for batch in scored(method, spec, part) if part else ():
            seen += batch.scores
        metrics = summarise(seen).metrics
        if any(name not in metrics for name in _NUMBERS):
            continue
        # A fact that failed counts as 0, or giving up would be rewarded.
        tried = Tried(values, *((metrics[name].with_failures or metrics[name].edited).mean for name in _NUMBERS))
        if any(
            other.generalization > tried.generalization + _BEHIND and other.locality > tried.locality + _BEHIND
            for other in others
        ):
            break
    return tried
