"""A classification run: data, model, training of all seeds, scores, and a folder with all of it.

The folder holds ``run.json`` (everything needed to repeat the run), ``metrics.json``, pictures, and ``report.html``
with all of them.
"""

from __future__ import annotations

import copy
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data import aqua, glue, human_vs_machine
from ...data.examples import Example, TaskData
from ...data.messages import unknown
from ...editors import find
from ...engine.files import replacing
from ...engine.model.identity import identity_of
from ...engine.model.loading import LoadedModel
from ...engine.model.loading import load as load_model
from ...engine.patches.patch import nonzero_share
from ...engine.seeds import seed_of
from ...hparams.base import TrainedHparams
from ..folder import RUN, RunError, open_folder
from ..report.html import write_report
from ..tuning import methods
from ..tuning.examples import Prepared, Preparer, collated
from ..tuning.methods import FULL, PROBE
from ..tuning.side_by_side import SideBySide, fresh_head, parameters_of, set_head
from ..tuning.training import Curves, check_device, scored, train_own, train_patches
from . import figures, metrics
from .calibration import CALIBRATIONS, Calibration

TASKS: dict[str, Callable[..., TaskData]] = {
    **{task: lambda source, skip_bad, task=task: glue.load(task, source, skip_bad=skip_bad) for task in glue.TASKS},
    "aqua": lambda source, skip_bad: aqua.load(source, skip_bad=skip_bad),
    "human-vs-machine": lambda source, skip_bad: human_vs_machine.load(source, skip_bad=skip_bad),
}
RULES = ("mean", "odds")
NONE, BOTH, HELD_OUT = "none", "both", "dev"
FITTED = {NONE: (), **{kind: (kind,) for kind in CALIBRATIONS}, BOTH: tuple(CALIBRATIONS)}
"""What ``calibrate`` may be, and what is fitted then, on the split that is held out for it."""


@dataclass(frozen=True)
class ClassificationResult:
    """A finished run: what ``metrics.json`` holds, and where it is."""

    metrics: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class _Setup:
    """All that training needs beside the examples."""

    editor: str
    hparams: TrainedHparams
    loaded: LoadedModel
    options: bool
    train: bool
    batch_size: int
    head_lr: float
    progress: bool


@dataclass
class _Trained:
    """What training gave: logits (N, E, K) by split, seconds, and what the method changed, by edit."""

    logits: dict[str, Tensor]
    seconds: float
    parameters: int
    head: int
    nonzero: list[float]
    curves: Curves


def run(
    task: str,
    editor: str,
    *,
    data: str = "hub",
    hparams: str | None = None,
    overrides: Mapping[str, object] | None = None,
    model: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 16,
    head_lr: float = 3e-4,
    max_length: int | None = None,
    limit: int | None = None,
    ensemble: bool = False,
    calibrate: str | None = None,
    train: bool = True,
    skip_bad: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    output: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> ClassificationResult:
    """Train a classifier with each seed, score it, and write the results to a folder.

    Args:
        task: one of ``TASKS``.
        editor: a name in ``loredit.editors.available()``, "full" for all weights, or "probe" for the head alone.
        data: a folder (or file), or "hub".
        hparams: a YAML file or a preset in ``hparams/classification/``; None: the editor's.
        overrides: hyper-parameters in place of the preset's.
        model: a name in place of the preset's.
        seeds: trained side by side (whole models one after another).
        batch_size: examples of a step, for each seed.
        head_lr: the learning rate of the head, whose matrices want smaller steps than an editor's factors.
        max_length: texts are cut to this many tokens; None: as many as the task's texts want, 128 or 256.
        limit: train on a sample of this many examples; None: all.
        ensemble: a binary classifier for each class against the reference one, instead of one classifier.
        calibrate: what is fitted on dev, and scored on the other splits beside the classifier's own answer:
            "temperature", "stacking", "both" or "none"; None: both for an ensemble, none for one classifier.
        train: False: fresh heads on the model as it is.
        skip_bad: leave faulty rows of the data out.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: of the base model: auto, float32, bfloat16.
        output: the results' folder; None: a new one below ``results/``.
        trust_remote_code: run code that a model brings along.
        progress: show bars.

    Returns:
        The metrics over seeds, and the folder.

    Raises:
        ValueError: bad input; its message is for people.

    Example:
        >>> result = run("mrpc", "roselora", data="GLUE")  # doctest: +SKIP
        >>> result.metrics["splits"]["dev"]["accuracy"]["mean"]  # doctest: +SKIP
    """
    check_device(device)
    changes = {**(overrides or {}), **({"model": model} if model else {})}
    settings = methods.settings(editor, "classification", hparams, changes)
    examples = _data(task, data, skip_bad)
    if ensemble and examples.reference is None:
        raise RunError(f"{task} has no class that the others are told apart from; --ensemble is for human-vs-machine")
    kinds = _calibrations(calibrate or (BOTH if ensemble else NONE), examples)
    max_length = max_length or examples.tokens
    chosen = methods.sample(examples.splits["train"], limit)
    torch.manual_seed(0)  # of what transformers draws for a model; all that is trained is drawn from the seeds
    outputs = 1 if examples.options or not examples.classes else 2 if ensemble else len(examples.classes)
    loaded = load_model(settings.model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, labels=outputs)
    setup = _Setup(editor, settings, loaded, examples.options, train, batch_size, head_lr, progress)
    record = {
        "task": task,
        "editor": editor,
        "hparams": settings.model_dump(mode="json"),
        "model": identity_of(loaded.model),
        "data": {
            "source": data,
            "sha256": examples.identity,
            "examples": {name: len(rows) for name, rows in examples.splits.items()} | {"train": len(chosen)},
        },
        "seeds": [*seeds],
        "batch_size": batch_size,
        "head_lr": head_lr,
        "max_length": max_length,
        "epochs": settings.steps * batch_size / len(chosen) if train else 0,
        "ensemble": ensemble,
        "calibrate": [*kinds],
        "train": train,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    prepare = Preparer(loaded.model, loaded.tokenizer, max_length, _positions(setup))
    if output and (Path(output) / RUN).exists():
        raise RunError(f"{output} already holds a run; --output names another folder")
    name = f"{task}-{editor}{'-ensemble' * ensemble}"
    folder = open_folder(record, Path(output) if output else None, name, resume=False)

    members = [c for c in range(len(examples.classes)) if c != examples.reference] if ensemble else [None]
    lessons = [_lesson(chosen, examples.reference, member) for member in members]
    prepared = [part for part in map(prepare, lessons) for _ in seeds]
    weights = _class_weights(prepared, outputs, loaded) if examples.weighted else None
    tested = {name: prepare(rows) for name, rows in examples.splits.items() if name != "train"}
    drawn = [seed if member is None else seed_of(seed, member) for member in members for seed in seeds]
    trained = _train(setup, prepared, drawn, weights, tested)

    fitted = _fitted(kinds, examples, trained.logits, len(seeds), ensemble)
    splits: dict[str, Any] = {}
    for name, rows in examples.splits.items():
        if name != "train":
            truth = [example.label for example in rows]
            beside = {} if name == HELD_OUT else fitted
            splits[name] = _measured(examples, truth, trained.logits[name], len(seeds), ensemble, beside)
    found = {
        "splits": splits,
        "calibration": {kind: [one.record() for one in each] for kind, each in fitted.items()},
        "seconds": trained.seconds,
        "parameters": {
            "update": trained.parameters,
            "head": trained.head,
            "model": parameters_of(loaded.model),
            "share": (trained.parameters + trained.head) / parameters_of(loaded.model),
            "nonzero_share": trained.nonzero,
        },
        "curves": asdict(trained.curves),
    }
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(found, indent=1, allow_nan=False), encoding="utf-8")
    _draw(folder, f"{editor} on {task}", examples.classes, splits, trained.curves, seeds)
    write_report(folder)
    return ClassificationResult(found, folder)


def _positions(setup: _Setup) -> int:
    """Positions that the method takes of the model's context. Raises ValueError if it does not fit the model."""
    if setup.editor in (FULL, PROBE):
        return 0
    model = setup.loaded.model
    editor = find(setup.editor)(model, setup.loaded.tokenizer, setup.hparams)
    if editor.positions and "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        kind = model.config.model_type
        raise RunError(f"{setup.editor} puts keys and values before a text's own, which {kind} models do not take")
    editor.fresh([0])
    return editor.positions


def _data(task: str, source: str, skip_bad: bool) -> TaskData:
    if task not in TASKS:
        raise RunError(unknown("task", task, TASKS))
    return TASKS[task](source, skip_bad)


def _lesson(examples: Sequence[Example], reference: int | None, member: int | None) -> list[Example]:
    """All examples, or for a member of an ensemble those of its class (1) and of the reference class (0)."""
    if member is None:
        return [*examples]
    return [e._replace(label=int(e.label == member)) for e in examples if e.label in (member, reference)]


def _class_weights(parts: Sequence[Sequence[Prepared]], classes: int, loaded: LoadedModel) -> Tensor:
    """(E, K), N / (K N_k), so that all classes weigh the same in all."""
    counts = [np.bincount([int(e.label) for e in part], minlength=classes) for part in parts]
    balanced = [len(part) / (classes * n.clip(1)) for part, n in zip(parts, counts, strict=True)]
    return torch.tensor(np.stack(balanced), dtype=torch.float32, device=loaded.model.device)


def _train(
    setup: _Setup,
    parts: Sequence[Sequence[Prepared]],
    seeds: Sequence[int],
    weights: Tensor | None,
    tested: Mapping[str, Sequence[Prepared]],
) -> _Trained:
    if setup.editor != FULL:
        return _side_by_side(setup, parts, seeds, weights, tested)
    # All weights cannot be shared between seeds: one after another.
    each = [
        _whole(setup, part, seed, None if weights is None else weights[e : e + 1], tested)
        for e, (part, seed) in enumerate(zip(parts, seeds, strict=True))
    ]
    return _Trained(
        {name: torch.cat([one.logits[name] for one in each], 1) for name in tested},
        sum(one.seconds for one in each),
        each[0].parameters,
        each[0].head,
        [share for one in each for share in one.nonzero],
        Curves(),
    )


def _side_by_side(
    setup: _Setup,
    parts: Sequence[Sequence[Prepared]],
    seeds: Sequence[int],
    weights: Tensor | None,
    tested: Mapping[str, Sequence[Prepared]],
) -> _Trained:
    h, model, tokenizer = setup.hparams, setup.loaded.model, setup.loaded.tokenizer
    model.eval().requires_grad_(False)
    patches = [fresh_head(model, seeds)]
    rates = {f"0.{name}": h.lr if setup.editor == PROBE else setup.head_lr for name, _ in patches[0].named_parameters()}
    if setup.editor != PROBE:
        editor = find(setup.editor)(model, tokenizer, h)
        patches.append(editor.fresh(seeds))  # type: ignore[arg-type]
        rates |= {f"1.{name}": rate for name, rate in patches[1].rates(h.lr).items()}
    module = SideBySide(model, patches, options=setup.options, autocast=False, weights=weights)
    begun, curves = time.perf_counter(), Curves()
    if setup.train:
        curves = train_patches(
            module,
            parts,
            seeds,
            partial(collated, tokenizer=tokenizer),
            rates=rates,
            clip_norm=h.clip_norm,
            steps=h.steps,
            batch_size=setup.batch_size,
            progress=setup.progress,
        )
    seconds = time.perf_counter() - begun
    every = range(len(seeds))
    for i, patch in enumerate(patches):
        module.patches[i] = patch.finished(every)
    logits = _all_scored(setup, module, tested, len(seeds))
    final = [*module.patches]
    own = [final[1].trained(e) if len(final) > 1 else [] for e in every]
    head = sum(t.numel() for t in final[0].trained(0))
    return _Trained(
        logits, seconds, max(sum(t.numel() for t in k) for k in own), head, [*map(nonzero_share, own)], curves
    )


def _whole(
    setup: _Setup,
    part: Sequence[Prepared],
    seed: int,
    weights: Tensor | None,
    tested: Mapping[str, Sequence[Prepared]],
) -> _Trained:
    h, base = setup.hparams, setup.loaded.model
    model = copy.deepcopy(base).float().requires_grad_(True)
    head = fresh_head(model, [seed])
    set_head(model, head, 0)
    module = SideBySide(model, [], options=setup.options, autocast=base.dtype == torch.bfloat16, weights=weights)
    begun = time.perf_counter()
    if setup.train:
        train_own(
            module,
            part,
            seed,
            partial(collated, tokenizer=setup.loaded.tokenizer),
            lr=h.lr,
            clip_norm=h.clip_norm,
            steps=h.steps,
            batch_size=setup.batch_size,
            progress=setup.progress,
        )
    seconds = time.perf_counter() - begun
    logits = _all_scored(setup, module, tested, 1)
    own = parameters_of(head)
    return _Trained(logits, seconds, parameters_of(model) - own, own, [1.0], Curves())


def _all_scored(
    setup: _Setup, module: SideBySide, tested: Mapping[str, Sequence[Prepared]], edits: int
) -> dict[str, Tensor]:
    return {
        name: scored(
            module,
            rows,
            edits,
            setup.loaded.tokenizer,
            batch_size=setup.batch_size,
            progress=setup.progress,
        )
        for name, rows in tested.items()
    }


def _log_odds(logits: Tensor, seeds: int, ensemble: bool) -> NDArray[np.float64]:
    """(N, E, K) -> (S, N, C - 1): by seed, the log-odds of each class against the first."""
    if not ensemble:
        return (logits[:, :, 1:] - logits[:, :, :1]).double().transpose(0, 1).numpy()
    # Members in order of their class, and within a member the seeds.
    machine = (logits[:, :, 1] - logits[:, :, 0]).double()
    return machine.view(len(logits), -1, seeds).permute(2, 0, 1).numpy()


def _calibrations(calibrate: str, examples: TaskData) -> Sequence[str]:
    """What is to be fitted. Raises RunError where nothing can be fitted, or what is fitted could not be scored."""
    if calibrate not in FITTED:
        raise RunError(unknown("calibration", calibrate, FITTED))
    kinds, task, remedy = FITTED[calibrate], examples.task, f"; --calibrate {NONE} does without"
    if not kinds:
        return ()
    if not examples.classes:
        raise RunError(f"{task} is scored by a number, not by classes, and has no probabilities to calibrate{remedy}")
    held_out = examples.splits.get(HELD_OUT, ())
    if not held_out:
        raise RunError(f"{task} has no {HELD_OUT} split to fit {' and '.join(kinds)} on{remedy}")
    if not examples.splits.keys() - {"train", HELD_OUT}:
        raise RunError(
            f"{task} is scored on {HELD_OUT} alone, on which {' and '.join(kinds)} would be fitted: no split would be "
            f"left to score them on{remedy}"
        )
    seen = {int(example.label) for example in held_out}
    if lacking := [name for label, name in enumerate(examples.classes) if label not in seen]:
        raise RunError(f"{task}'s {HELD_OUT} split has no example of {', '.join(lacking)} to calibrate on{remedy}")
    return kinds


def _fitted(
    kinds: Sequence[str], examples: TaskData, logits: Mapping[str, Tensor], seeds: int, ensemble: bool
) -> dict[str, list[Calibration]]:
    """Of each kind and seed, from the held-out split alone."""
    if not kinds:
        return {}
    truth = [int(example.label) for example in examples.splits[HELD_OUT]]
    each = _log_odds(logits[HELD_OUT], seeds, ensemble)
    return {
        kind: [CALIBRATIONS[kind].fitted(odds, truth, members=ensemble, weighted=examples.weighted) for odds in each]
        for kind in kinds
    }


def _measured(
    examples: TaskData,
    truth: Sequence[float],
    logits: Tensor,
    seeds: int,
    ensemble: bool,
    fitted: Mapping[str, Sequence[Calibration]],
) -> dict[str, Any]:
    """The scores of one split over seeds."""
    if not examples.classes:
        values = logits.squeeze(2).double().numpy()
        return metrics.over_seeds([metrics.regression(truth, values[:, e].tolist()) for e in range(seeds)])
    right = [int(label) for label in truth]
    each = _log_odds(logits, seeds, ensemble)

    def over(given: Iterable[NDArray[np.float64]]) -> dict[str, Any]:
        return metrics.over_seeds([metrics.classification(right, one, examples.classes) for one in given])

    beside = {kind: over(one(odds) for one, odds in zip(parts, each, strict=True)) for kind, parts in fitted.items()}
    if not ensemble:
        return over(map(metrics.from_first, each)) | ({"rules": beside} if beside else {})
    rules = {rule: over(metrics.one_of_many(odds, rule) for odds in each) for rule in RULES}
    members = {}
    for m, name in enumerate(examples.classes[1:]):
        own = [i for i, label in enumerate(right) if label in (0, m + 1)]
        binary, pair = [int(right[i] != 0) for i in own], (examples.classes[0], name)
        members[name] = metrics.over_seeds(
            [metrics.classification(binary, metrics.from_first(odds[own, m : m + 1]), pair) for odds in each]
        )
    return {"rules": rules | beside, "members": members}


def _draw(
    folder: Path,
    title: str,
    classes: Sequence[str],
    splits: Mapping[str, Any],
    curves: Curves,
    seeds: Sequence[int],
) -> None:
    for split, scores in splits.items():
        found = {name: part for name, part in methods.ways(scores).items() if "confusion" in part}
        for name, part in found.items():
            ending = f"{split}-{name}" if name else split
            said = f"{title}, {ending}"
            figures.plot_confusion(part["confusion"], classes, said, folder / f"confusion-{ending}.png")
        if found:
            by_class = {name or "one classifier": part["by_class"] for name, part in found.items()}
            figures.plot_by_class(by_class, f"{title}, {split}", folder / f"classes-{split}.png")
    if any(min(shares) < 1 for shares in curves.nonzero):
        figures.plot_nonzero(curves, seeds, title, folder / "nonzero.png")
    if curves.ranks and curves.ranks[0][0]:
        figures.plot_ranks(curves, seeds[0], title, folder / "ranks.png")
