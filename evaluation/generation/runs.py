"""A generation run: data, model, training of all seeds, texts by beam search, scores, and a folder with all of it.

The folder holds

- ``run.json``: everything needed to repeat the run;
- ``trained.json`` and ``patch.safetensors`` (for ``full`` and ``ft-top2`` a file for each seed): what training gave;
- ``texts.jsonl``: a :class:`Written` a line, as they come;
- ``metrics.json``: the scores of each seed and over seeds, at the end.

An interrupted run goes on: what is trained is not trained again, what is written is not written again.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ...data import dart, e2e, webnlg, xsum
from ...data.messages import unknown
from ...data.pairs import GenerationData, Item, Metric, Pair
from ...editors import Editor, find
from ...engine.files import locked, replacing
from ...engine.model.encoding import Encoder
from ...engine.model.identity import identity_of
from ...engine.model.loading import LoadedModel
from ...engine.model.loading import load as load_model
from ...engine.model.passes import context_of
from ...engine.model.sites import blocks
from ...engine.patches.patch import Patch, nonzero_share
from ...engine.patches.rows import Rows
from ...engine.storage.manifest import filled
from ...hparams.base import TrainedHparams
from ..folder import RunError, append, open_folder, read
from ..tuning import methods
from ..tuning.methods import FULL, TOP2
from ..tuning.side_by_side import parameters_of
from ..tuning.training import check_device, train_own, train_patches
from . import metrics as scoring
from .decoding import Beam, written
from .writing import Lesson, Writer, collated, cut, lessons, prompt_of

TASKS: dict[str, Callable[..., GenerationData]] = {
    "dart": dart.load,
    "e2e": e2e.load,
    "webnlg": webnlg.load,
    "xsum": xsum.load,
}

TRAINED, PATCH, TEXTS, METRICS = "trained.json", "patch.safetensors", "texts.jsonl", "metrics.json"


class Written(BaseModel):
    """A text that a seed's edit has written about an item."""

    seed: int
    item: int
    text: str


@dataclass(frozen=True)
class GenerationResult:
    """A finished run: what ``metrics.json`` holds, and where it is."""

    metrics: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class _Setup:
    """All that training and writing need beside the data."""

    editor: str
    hparams: TrainedHparams
    loaded: LoadedModel
    method: Editor | None
    encoder: Encoder
    seeds: Sequence[int]
    batch_size: int
    smoothing: float
    folder: Path
    progress: bool


def run(
    task: str,
    editor: str,
    *,
    data: str = "hub",
    hparams: str | None = None,
    overrides: Mapping[str, object] | None = None,
    model: str | None = None,
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    smoothing: float = 0.1,
    limit: int | None = None,
    split: str = "test",
    items: int | None = None,
    beam: Beam | None = None,
    decode_batch: int = 8,
    metrics: Sequence[Metric] | None = None,
    train: bool = True,
    skip_bad: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> GenerationResult:
    """Train a writer with each seed, let each write about the scored items, and write the results to a folder.

    Args:
        task: one of ``TASKS``.
        editor: a name in ``loredit.editors.available()``; "full" for all weights, "ft-top2" for the two last blocks.
        data: a file or folder, or "hub".
        hparams: a YAML file or a preset in ``hparams/generation/``; None: the editor's.
        overrides: hyper-parameters in place of the preset's.
        model: a name in place of the preset's.
        seeds: trained side by side (whole models one after another).
        batch_size: pairs of a step, for each seed.
        smoothing: of labels, 0 to below 1.
        limit: train on a sample of this many pairs; None: all.
        split: whose items are written about.
        items: write about a sample of this many; None: all.
        beam: how texts are looked for; None: as results are published.
        decode_batch: items that are written about at once.
        metrics: which scores; None: those of the task.
        train: False: the model as it is.
        skip_bad: leave faulty rows of the data out.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: of the base model: auto, float32, bfloat16.
        output: the results' folder; None: a new one below ``results/``.
        resume: go on with the run in the folder.
        trust_remote_code: run code that a model brings along.
        progress: show bars.

    Returns:
        The metrics, in the units of :mod:`.metrics`, and the folder.

    Raises:
        ValueError: bad input; its message is for people.

    Example:
        >>> result = run("e2e", "lora", data="e2e-dataset.zip", limit=1260)  # doctest: +SKIP
        >>> result.metrics["scores"]["bleu"]["mean"]  # doctest: +SKIP
    """
    check_device(device)
    beam = beam or Beam()
    changes = {**(overrides or {}), **({"model": model} if model else {})}
    settings = methods.settings(editor, "generation", hparams, changes)
    if task not in TASKS:
        raise RunError(unknown("task", task, TASKS))
    examples = TASKS[task](data, skip_bad=skip_bad)
    if split not in examples.splits:
        raise RunError(unknown("split", split, [*examples.splits]))
    wanted = tuple(metrics or examples.metrics)
    scoring.check(wanted)
    if train and not examples.train:
        raise RunError(f"{data} has no training part of {task}; add it, or let the model write as it is (--no-train)")
    pairs = methods.sample(examples.train, limit)
    chosen = methods.sample(examples.splits[split], items)
    torch.manual_seed(0)  # all that is trained is drawn from the seeds
    loaded = load_model(settings.model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    method = None if editor in (FULL, TOP2) else find(editor)(loaded.model, loaded.tokenizer, settings)
    record = {
        "task": task,
        "editor": editor,
        "hparams": settings.model_dump(mode="json"),
        "model": identity_of(loaded.model),
        "data": {"source": data, "sha256": examples.identity, "train": len(pairs), split: len(chosen)},
        "seeds": [*seeds],
        "batch_size": batch_size,
        "smoothing": smoothing,
        "epochs": settings.steps * batch_size / len(pairs) if train else 0,
        "beam": asdict(beam),
        "train": train,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    folder = open_folder(record, Path(output) if output else None, f"{task}-{editor}", resume)
    with locked(folder):
        encoder = method.encoder if method else Encoder(loaded.tokenizer, context_of(loaded.model))
        if examples.longest_source is not None:
            pairs = [cut(encoder, pair, examples.longest_source) for pair in pairs]
            chosen = [cut(encoder, item, examples.longest_source) for item in chosen]
        setup = _Setup(editor, settings, loaded, method, encoder, seeds, batch_size, smoothing, folder, progress)
        trained = _trained(setup, pairs) if train else {}
        texts = _texts(setup, chosen, beam, decode_batch, train)
        found = {"split": split, "items": len(chosen), "scores": _scores(texts, chosen, wanted), **trained}
        with replacing(folder / METRICS) as path:
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return GenerationResult(found, folder)


def _scores(texts: Sequence[Sequence[str]], items: Sequence[Item], wanted: Sequence[Metric]) -> dict[str, Any]:
    """Over seeds; where items have categories, of each category too."""
    categories = sorted({item.category for item in items} - {""})

    def of(own: Sequence[str]) -> dict[str, Any]:
        whole: dict[str, Any] = scoring.scores(own, items, wanted)
        for category in categories:
            part = [i for i, item in enumerate(items) if item.category == category]
            whole[category] = scoring.scores([own[i] for i in part], [items[i] for i in part], wanted)
        return whole

    return methods.over_seeds([of(own) for own in texts])


# Training


def _trained(setup: _Setup, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Train what is not trained yet; numbers about it."""
    done = setup.folder / TRAINED
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    begun, learned = time.perf_counter(), lessons(setup.encoder, pairs)
    found = _train_patch(setup, learned) if setup.method else _train_whole(setup, learned)
    found |= {"seconds": time.perf_counter() - begun}
    found["parameters"] |= {"model": parameters_of(setup.loaded.model)}
    with replacing(done) as path:
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _train_patch(setup: _Setup, learned: Sequence[Lesson]) -> dict[str, Any]:
    h, model, seeds = setup.hparams, setup.loaded.model, setup.seeds
    assert setup.method is not None
    model.eval().requires_grad_(False)
    patch = setup.method.fresh(seeds)
    module = Writer(model, [patch], smoothing=setup.smoothing, replay=_met_again(setup, learned))
    curves = train_patches(
        module,
        [learned] * len(seeds),
        seeds,
        collated,
        rates={f"0.{name}": rate for name, rate in patch.rates(h.lr).items()},
        clip_norm=h.clip_norm,
        steps=h.steps,
        batch_size=setup.batch_size,
        progress=setup.progress,
    )
    final = module.patches[0].finished(range(len(seeds)))  # type: ignore[operator]
    with replacing(setup.folder / PATCH) as path:
        save_file({name: t.cpu().contiguous() for name, t in final.lasting().items()}, path)
    parts = [final.trained(e) for e in range(len(seeds))]
    numbers = max(sum(t.numel() for t in own) for own in parts)
    return {"parameters": {"trained": numbers}, "nonzero_share": [*map(nonzero_share, parts)], "curves": asdict(curves)}


def _train_whole(setup: _Setup, learned: Sequence[Lesson]) -> dict[str, Any]:
    """All weights cannot be shared between seeds: one after another."""
    h, base = setup.hparams, setup.loaded.model
    for seed in setup.seeds:
        if _weights(setup, seed).is_file():
            continue
        model = copy.deepcopy(base).float() if base.dtype != torch.float64 else copy.deepcopy(base)
        own, first = _own(setup, model.requires_grad_(False))
        own.requires_grad_(True)
        module = Writer(
            model,
            [],
            smoothing=setup.smoothing,
            autocast=base.dtype == torch.bfloat16,
            replay=_met_again(setup, learned),
            own=own,
            first=first,
        )
        train_own(
            module,
            learned,
            seed,
            collated,
            lr=h.lr,
            clip_norm=h.clip_norm,
            steps=h.steps,
            batch_size=setup.batch_size,
            progress=setup.progress,
        )
        with replacing(_weights(setup, seed)) as path:
            save_file({name: p.detach().cpu().contiguous() for name, p in own.named_parameters()}, path)
    return {"parameters": {"trained": parameters_of(_own(setup, base)[0])}, "nonzero_share": [1.0] * len(setup.seeds)}


def _own(setup: _Setup, model: PreTrainedModel) -> tuple[nn.Module, int]:
    """What of the model is trained, and the lowest block of it."""
    if setup.editor == FULL:
        return model, 0
    first = max(0, len(blocks(model)) - 2)
    return blocks(model)[first:], first


def _weights(setup: _Setup, seed: int) -> Path:
    return setup.folder / f"weights-{seed}.safetensors"


def _met_again(setup: _Setup, learned: Sequence[Lesson]) -> bool:
    """Is what the lower blocks say of a pair used more than once?"""
    return setup.hparams.steps * setup.batch_size * len(setup.seeds) > len(learned)


# Writing


def _texts(setup: _Setup, items: Sequence[Item], beam: Beam, batch_size: int, train: bool) -> list[list[str]]:
    """By seed, the text for each item."""
    path = setup.folder / TEXTS
    known = {(line.seed, line.item): line.text for line in read(path, Written)}
    seeds = setup.seeds if train else setup.seeds[:1]
    prompts = [setup.encoder.prompt(prompt_of(item.source)).ids for item in items]
    context = setup.encoder.context - setup.encoder.reserved
    bar = tqdm(
        total=len(seeds) * len(items), initial=len(known), desc="writing", unit="text", disable=not setup.progress
    )
    with bar:
        for e, seed in enumerate(seeds):
            left = [i for i in range(len(items)) if (seed, i) not in known]
            if not left:
                continue
            with _with(setup, e, train) as model:
                ids = [prompts[i] for i in left]
                for chunk, texts in written(
                    model, setup.loaded.tokenizer, ids, beam, batch_size=batch_size, context=context
                ):
                    lines = [Written(seed=seed, item=left[i], text=text) for i, text in zip(chunk, texts, strict=True)]
                    append(path, lines)
                    known |= {(line.seed, line.item): line.text for line in lines}
                    bar.update(len(lines))
    return [[known[seed, i] for i in range(len(items))] for seed in seeds]


@contextmanager
def _with(setup: _Setup, edit: int, train: bool) -> Iterator[PreTrainedModel]:
    """The model as a seed's training has made it."""
    model = setup.loaded.model
    if not train:
        yield model
    elif setup.method:
        patch = _patch(setup)
        with patch.attached(model, Rows([edit], len(patch), model.device)):  # one row, for all beams of all batches
            yield model
    else:
        whole = copy.deepcopy(model)
        state = load_file(_weights(setup, setup.seeds[edit]))
        named = dict(_own(setup, whole)[0].named_parameters())
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(state[name])
        yield whole


def _patch(setup: _Setup) -> Patch:
    assert setup.method is not None
    path = setup.folder / PATCH
    return filled(path, setup.method.untrained([0]), load_file(path), len(setup.seeds))
