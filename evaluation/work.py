"""What one worker does, wherever it is: facts are edited, each on the unedited model, and scored.

:func:`edit_and_score` is the seam of all ways to spread a run. It is handed a :class:`Spec` and some facts, and what it
gives depends on these alone: neither on who else works, nor on what was done before. A process keeps the model that it
has loaded for the next facts.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..data import Fact
from ..data.facts import bundles
from ..editors import Editor, Edits, find
from ..engine.model.loading import LoadedModel
from ..engine.model.loading import load as load_model
from ..engine.progress import Progress
from ..hparams import validated
from ..hparams.base import Hparams
from .folder import RunError, versions
from .scores import FactScores
from .scoring import Measure, evaluate
from .unedited import Texts


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(_Told):
    """What numbers depend on beside settings and facts. A run's numbers all come from the same."""

    model: str
    """The model's identity (``engine.model.identity``)."""
    device: str
    """The kind of device: cpu, cuda, mps."""
    dtype: str
    """Of the base model."""
    versions: dict[str, str]

    @staticmethod
    def of(editor: Editor) -> Conditions:
        """The conditions under which an editor works here."""
        return Conditions(
            model=editor.model_identity,
            device=editor.model.device.type,
            dtype=str(editor.model.dtype).removeprefix("torch."),
            versions=versions(),
        )

    def check(self, here: Conditions) -> None:
        """Raise RunError where ``here`` are other conditions than these."""
        wanted, found = self.model_dump(), here.model_dump()
        wanted |= {f"{name}'s version": known for name, known in wanted.pop("versions").items()}
        found |= {f"{name}'s version": known for name, known in found.pop("versions").items()}
        if other := [
            f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value
        ]:
            raise RunError(
                f"the worker on {platform.node()} would give other numbers than this run's: it has "
                f"{'; '.join(other)}. All workers need the same packages, model and kind of device"
            )


class Spec(_Told):
    """What is to be done with facts: all that a worker needs beside them, in a form that any machine reads."""

    editor: str
    hparams: dict[str, Any]
    seed: int
    device: str
    dtype: str
    quantize: str | None = None
    trust_remote_code: bool = False
    edits_at_once: int | None = None
    measures: tuple[Measure, ...] = ()
    fluency: bool = True
    examples: tuple[str, ...] = ()
    """Case ids of facts whose answers are generated beside what is measured."""
    conditions: Conditions | None = None
    """What a worker has to find where it is; None: anything."""


class Scored(_Told):
    """What came of some facts: the scores of each, and those of the examples among them."""

    scores: tuple[FactScores, ...]
    examples: tuple[FactScores, ...] = ()


def edit_and_score(spec: Spec, facts: Sequence[Fact]) -> Scored:
    """Each fact (or bundle) edited on its own, side by side with the others, and scored.

    Args:
        spec: what is to be done.
        facts: with what.

    Raises:
        RunError: this process would give other numbers than the run's: another model, other versions.
        ValueError: bad settings, or a model that cannot be loaded.

    Example:
        >>> edit_and_score(spec, facts).scores[0].case_id  # doctest: +SKIP
        'france'
    """
    batches = [*scored(_kept(spec), spec, facts)]
    return Scored(
        scores=tuple(one for batch in batches for one in batch.scores),
        examples=tuple(one for batch in batches for one in batch.examples),
    )


def conditions(spec: Spec) -> Conditions:
    """The conditions under which this process does what is asked for."""
    return Conditions.of(_kept(spec))


def scored(
    editor: Editor,
    spec: Spec,
    facts: Sequence[Fact],
    progress: Progress | None = None,
    keep: Callable[[Edits], None] = lambda edits: None,
) -> Iterator[Scored]:
    """:func:`edit_and_score` by an editor that is there already, handed out in batches that fit into memory; ``keep``
    is given the edits of each. A bundle is one edit, made by itself."""
    changes = bundles(facts)
    alone = [fact for one in changes if len(one) == 1 for fact in one]
    batches = editor.edit_batches(alone, edits_at_once=spec.edits_at_once, progress=progress)
    together = (editor.edit(one, progress=progress or False) for one in changes if len(one) > 1)
    begun = time.perf_counter()
    for edits in chain(batches, together):
        trained = time.perf_counter()
        keep(edits)
        found = evaluate(
            edits,
            measures=spec.measures,
            fluency=spec.fluency,
            seed=spec.seed,
            texts=texts_of(editor),
            progress=progress or False,
        )
        times = {
            "edit_seconds": (trained - begun) / len(found),
            "score_seconds": (time.perf_counter() - trained) / len(found),
        }
        yield Scored(
            scores=tuple(one.model_copy(update=times) for one in found),
            examples=tuple(exemplified(edits, spec.examples)),
        )
        begun = time.perf_counter()


def texts_of(editor: Editor) -> Texts:
    """What the unedited model has written here before."""
    return Texts(Conditions.of(editor).model_dump_json())


def exemplified(edits: Edits, wanted: Sequence[str]) -> list[FactScores]:
    """The scores of those facts of ``edits`` that are to be shown, with generated answers."""
    seen = []
    for e, facts in enumerate(edits.facts):
        if chosen := [i for i, fact in enumerate(facts) if fact.case_id in wanted]:
            own, known = edits[e].about(chosen), texts_of(edits.editor)
            seen += evaluate(own, measures=["generation"], fluency=False, texts=known, progress=False)
    return seen


def bound(spec: Spec, loaded: LoadedModel) -> Editor:
    """The editor that a spec describes, on a model. Raises RunError where its conditions are others."""
    cls = find(spec.editor)
    editor = cls(loaded.model, loaded.tokenizer, validated(cls.Hparams, spec.hparams, "hparams"), seed=spec.seed)
    if spec.conditions:
        spec.conditions.check(Conditions.of(editor))
    return editor


def loaded_for(spec: Spec) -> LoadedModel:
    """The model that a spec names."""
    return load_model(
        spec.hparams["model"],
        device=spec.device,
        dtype=spec.dtype,
        quantize=spec.quantize,
        trust_remote_code=spec.trust_remote_code,
    )


def anywhere(hparams: Hparams) -> dict[str, Any]:
    """Hyper-parameters whose files are found from any working directory."""
    values = hparams.model_dump(mode="json")
    for key in ("model", "statistics_text"):
        if (name := values.get(key)) and (path := Path(name).expanduser()).exists():
            values[key] = str(path.resolve())
    return values


# What a worker's editor depends on. It keeps the last one, and its model: the next facts are mostly of the same run.
_EDITOR = {"editor", "hparams", "seed", "device", "dtype", "quantize", "trust_remote_code", "conditions"}


def _kept(spec: Spec) -> Editor:
    """The editor that a spec describes, as this process has it or from now on keeps it."""
    return _kept_editor(spec.model_dump_json(include=_EDITOR))


@lru_cache(maxsize=1)
def _kept_editor(told: str) -> Editor:
    spec = Spec.model_validate_json(told)
    return bound(spec, kept_for(spec))


def kept_for(spec: Spec) -> LoadedModel:
    """:func:`loaded_for`, by a process that will be asked for the same model again: it is taken to stay as it is."""
    return _kept_model(spec.hparams["model"], spec.device, spec.dtype, spec.quantize, spec.trust_remote_code)


@lru_cache(maxsize=1)
def _kept_model(name: str, device: str, dtype: str, quantize: str | None, trust_remote_code: bool) -> LoadedModel:
    return load_model(name, device=device, dtype=dtype, quantize=quantize, trust_remote_code=trust_remote_code)
