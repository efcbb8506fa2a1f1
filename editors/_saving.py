"""Edits as files: weights in safetensors, everything else in JSON. Nothing that is read is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ._files import replacing
from ._models import identity_of
from .base import Edits, Outcome

_WEIGHTS, _MANIFEST = "edits.safetensors", "edits.json"


class EditsError(ValueError):
    """A folder that holds no edits, or edits of another model."""


class _Manifest(BaseModel):
    # The loss of a failed edit is NaN; JSON's null could not be read back.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    format: int = 1
    editor: str
    hparams: dict[str, Any]
    seed: int
    base_model: str
    facts: tuple[tuple[Fact, ...], ...]
    outcomes: tuple[Outcome, ...]


def save(edits: Edits, folder: Path) -> None:
    manifest = _Manifest(
        editor=edits.editor.name(),
        hparams=edits.editor.hparams.model_dump(mode="json"),
        seed=edits.editor.seed,
        base_model=identity_of(edits.editor.model),
        facts=edits.facts,
        outcomes=edits.outcomes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.contiguous() for name, t in edits.patch.lasting().items()}
    with replacing(folder / _WEIGHTS) as path:
        save_file(state, path)
    with replacing(folder / _MANIFEST) as path:  # last: a folder with a manifest is complete
        path.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def load(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Edits:
    from . import find

    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditsError(f"{folder} holds no edits: there is no {_MANIFEST}") from None
    if manifest.base_model != identity_of(model):
        raise EditsError(
            f"the edits in {folder} were trained on another model ({manifest.hparams['model']}, contents "
            f"{manifest.base_model[:12]}...) than this one ({identity_of(model)[:12]}...); load that model first"
        )
    cls = find(manifest.editor)
    editor = cls(model, tokenizer, cls.Hparams.model_validate(manifest.hparams), seed=manifest.seed)
    frame = editor.untrained([0]).take([0] * len(manifest.facts))
    tensors = frame.tensors() | load_file(folder / _WEIGHTS, device=str(model.device))
    return Edits(editor, frame.rebuilt(tensors), manifest.facts, manifest.outcomes)
