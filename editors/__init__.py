"""Editing methods. Each module here but ``base`` is one method, and its name is the method's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.messages import unknown
from ..engine.model.loading import load as load_model
from ..engine.outcome import Outcome
from ..engine.patches.patch import Patch, WeightPatch
from ..engine.storage.manifest import MANIFEST, Manifest, check_model, damaged, read_both
from ..hparams import settings, validated
from ..hparams.base import Hparams
from .base import Editor, Edits, TrainedEditor, read_edits

__all__ = [
    "Editor",
    "Edits",
    "Hparams",
    "Outcome",
    "Patch",
    "TrainedEditor",
    "WeightPatch",
    "available",
    "editor",
    "editor_of",
    "find",
    "load",
    "settings",
]


def available() -> list[str]:
    """The names of all methods.

    Returns:
        Those found in this folder, in order.

    Example:
        >>> {"lora", "rome"} <= set(available())
        True
    """
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.ispkg)


def find(name: str) -> type[Editor]:
    """The editor class of a method, imported when it is asked for.

    Args:
        name: of a method (:func:`available`).

    Returns:
        The class that the method's file defines.

    Raises:
        ValueError: an unknown name; the message names those there are.

    Example:
        >>> find("lora").__name__
        'LoRA'
    """
    if name not in available():
        raise ValueError(unknown("editor", name, available()))
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Editor) and member.__module__ == module.__name__
    )
    return found


def editor(
    name: str,
    preset: str,
    *,
    model: str | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    **overrides: object,
) -> Editor:
    """An editor, ready to edit.

    Args:
        name: a method of :func:`available`.
        preset: a YAML file, or a preset of the method ("smollm2").
        model: a name to load (hub id, folder, GGUF file, short name) in place of the preset's, or a model.
        tokenizer: of a model that is given as an object.
        seed: same seed, same machine: same numbers.
        device: auto, cpu, cuda, cuda:1, mps, split (over all GPUs); of a model that is loaded.
        dtype: of the base model: auto, float32, bfloat16.
        quantize: of the base model: 8bit or 4bit; None: its weights stay whole.
        **overrides: hyper-parameters in place of the preset's.

    Returns:
        The method, bound to the model.

    Raises:
        ValueError: an unknown method, preset or hyper-parameter, or a model that cannot be loaded; the message says
            which, and what there is.

    Example:
        >>> method = editor("roselora", "smollm2", lr=2e-3)  # doctest: +SKIP
        >>> edits = method.edit_each(facts)  # doctest: +SKIP
    """
    named = {"model": model} if isinstance(model, str) else {}
    hparams = settings(name, preset, overrides | named)
    if model is None or isinstance(model, str):
        loaded = load_model(hparams.model, device=device, dtype=dtype, quantize=quantize)
        model, tokenizer = loaded.model, loaded.tokenizer
    if tokenizer is None:
        raise ValueError("a model that is given as an object needs its tokenizer: editor(..., model=m, tokenizer=t)")
    return find(name)(model, tokenizer, hparams, seed=seed)


def load(folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Edits:
    """Read what :meth:`Edits.save` wrote.

    Args:
        folder: where it lies.
        model: what the edits were trained on.
        tokenizer: the model's.

    Returns:
        The edits, bound to the model.

    Raises:
        EditsError: the folder holds no edits, damaged ones, or those of another model.

    Example:
        >>> edits = load("my-edits", model, tokenizer)  # doctest: +SKIP
        >>> with edits.on("france"):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    folder = Path(folder)
    manifest, stored = read_both(folder)
    return read_edits(folder, manifest, editor_of(folder, manifest, model, tokenizer), stored)


def editor_of(folder: Path, manifest: Manifest, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Editor:
    """The editor that made the edits of a folder, bound to the model they were made for.

    Args:
        folder: where they lie; for messages.
        manifest: what is read of it.
        model: what they were trained on.
        tokenizer: the model's.

    Returns:
        The editor, with the settings and the seed that it had.

    Raises:
        EditsError: another model, or a manifest that names no method with valid settings.

    Example:
        >>> editor = editor_of(folder, read_manifest(folder), model, tokenizer)  # doctest: +SKIP
    """
    check_model(folder, manifest, model)
    try:
        cls = find(manifest.editor)
        return cls(model, tokenizer, validated(cls.Hparams, manifest.hparams, "hparams"), seed=manifest.seed)
    except ValueError as error:
        raise damaged(folder / MANIFEST, [str(error)]) from None


def __getattr__(name: str) -> type[Editor]:
    """``from loredit.editors import RoseLoRA``: each class by its own name, imported on first use."""
    for method in available():
        if name != method and name.lower() == method:
            return find(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
