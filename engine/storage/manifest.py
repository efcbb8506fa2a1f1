"""Edits as files: weights in safetensors, everything else in JSON. Nothing that is read is executed.

``edits.json`` names the weights' file, which is called after its content: replacing the one JSON file replaces all, so
that a folder holds the old edits or the new ones at every moment, and never a mixture.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as parsed
from safetensors.torch import save as serialised
from torch import Tensor
from transformers import PreTrainedModel

from ...data.facts import Fact
from ...data.messages import lines, listed
from ..files import replacing, tidy
from ..model.identity import is_identity_of
from ..model.quantized import Kind, quantization_of
from ..outcome import Outcome
from ..patches.patch import Patch
from .packed import Packed, Stored, dense, taken

MANIFEST = "edits.json"
_WEIGHTS = "edits-{}.safetensors"
STORE = "store."  # begins the names of what a store keeps beside the edits
_OF_FACTS = tuple(STORE + name for name in ("keys", "relations", "states"))  # a row for each fact, not for each edit
_OF_NONE = tuple(STORE + name for name in ("mean", "turn"))  # these and "states" are of earlier releases
_MASK, _VALUES = ".mask", ".values"  # a packed tensor's two parts

Size = Annotated[int, Field(ge=0)]


class EditsError(ValueError):
    """A folder that holds no edits, damaged ones, or edits of another model."""


class Manifest(BaseModel):
    """What ``edits.json`` says."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    editor: str
    hparams: dict[str, object]
    seed: int
    base_model: str
    """Content hash of the config and the weights that the edits were trained on, in ``dtype``."""
    dtype: str
    quantize: Kind | None = None
    """What the weights were rounded to when the model was loaded."""
    weights: Annotated[str, Field(pattern=r"^edits-[0-9a-f]{64}\.safetensors$")] = _WEIGHTS.format("0" * 64)
    packed: dict[str, tuple[Size, ...]] = Field(default_factory=dict)
    """Shapes of the tensors that are stored as a mask and the numbers that are not zero."""
    facts: tuple[tuple[Fact, ...], ...]
    outcomes: tuple[Outcome, ...]
    routing: dict[str, Any] | None = None
    """How a store finds the edit that a prompt is about, in the store's own words; None where there is no store."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Manifest:
        if not self.facts:
            raise ValueError("there is no edit")
        if len(self.facts) != len(self.outcomes):
            raise ValueError(f"{len(self.facts)} edits have facts, but {len(self.outcomes)} have outcomes")
        counts = Counter(fact.case_id for facts in self.facts for fact in facts)
        if twice := [case_id for case_id, n in counts.items() if n > 1]:
            raise ValueError(f"two facts have the case id {listed(twice, 5)}")
        for edit, (facts, outcome) in enumerate(zip(self.facts, self.outcomes, strict=True)):
            if len(outcome.checks) not in (0, len(facts)) or any(not 0 <= i < len(facts) for i in outcome.lost):
                raise ValueError(f"the outcome of edit {edit} is not of its {len(facts)} facts")
        return self

    @property
    def model(self) -> str:
        """The name of the model that the edits were trained on."""
        return str(self.hparams.get("model"))

    @property
    def precision(self) -> str:
        """What the model was loaded in, in words."""
        return _precision(self.dtype, self.quantize)

    def edit_of(self, case_id: str) -> int:
        return edit_of(self.facts, case_id)


def edit_of(facts: Sequence[Sequence[Fact]], case_id: str) -> int:
    """The edit that carries a fact."""
    for edit, carried in enumerate(facts):
        if any(fact.case_id == case_id for fact in carried):
            return edit
    raise EditsError(f"there is no case {case_id!r}; there are: {listed([f.case_id for own in facts for f in own])}")


def alone(facts: Sequence[Fact], case_id: str) -> None:
    """Refuse to undo one of several facts of an edit, with an EditsError."""
    if others := [fact.case_id for fact in facts if fact.case_id != case_id]:
        raise EditsError(
            f"case {case_id!r} cannot be undone alone: it was edited in one update with {listed(others)}. "
            "Facts that are to be undone singly are edited with --mode single"
        )


def remove(folder: Path, case_id: str) -> None:
    """Undo one fact of independent edits or of a store, in the folder; the model is not needed."""
    manifest, stored = read_both(folder)
    edit = manifest.edit_of(case_id)
    alone(manifest.facts[edit], case_id)
    if len(manifest.facts) == 1:
        raise EditsError(f"case {case_id!r} is all that {folder} holds; delete the folder")
    rest = [e for e in range(len(manifest.facts)) if e != edit]
    left = manifest.model_copy(
        update={
            "facts": tuple(manifest.facts[e] for e in rest),
            "outcomes": tuple(manifest.outcomes[e] for e in rest),
        }
    )
    owners = [e for e, facts in enumerate(manifest.facts) for _ in facts]
    others = [f for f, owner in enumerate(owners) if owner != edit]
    tensors = {
        name: t if name in _OF_NONE else taken(t, others if name in _OF_FACTS else rest) for name, t in stored.items()
    }
    write(folder, left, tensors)


def write(folder: Path, manifest: Manifest, tensors: Mapping[str, Stored]) -> None:
    """Put edits into a folder, in place of those that it holds."""
    state: dict[str, Tensor] = {}
    for name, t in tensors.items():
        parts = {_MASK: t.mask, _VALUES: t.values} if isinstance(t, Packed) else {"": t.cpu()}
        state |= {name + ending: part.contiguous() for ending, part in parts.items()}
    content = serialised(state)
    weights = folder / _WEIGHTS.format(hashlib.sha256(content).hexdigest())
    shapes = {name: t.shape for name, t in tensors.items() if isinstance(t, Packed)}
    whole = manifest.model_copy(update={"weights": weights.name, "packed": shapes})
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder, "edits*")
    with replacing(weights) as path:
        path.write_bytes(content)
    with replacing(folder / MANIFEST) as path:
        path.write_text(whole.model_dump_json(indent=1), encoding="utf-8")
    for old in folder.glob(_WEIGHTS.format("*")):
        if old != weights:
            old.unlink()


def erase(folder: Path) -> None:
    """Take the edits out of a folder; other files that lie there stay."""
    (folder / MANIFEST).unlink()
    for weights in folder.glob(_WEIGHTS.format("*")):
        weights.unlink()


def read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise EditsError(f"{folder} holds no edits: there is no {MANIFEST}") from None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise damaged(folder / MANIFEST, faults) from None


def read_tensors(folder: Path, manifest: Manifest) -> dict[str, Stored]:
    """The tensors by name, as they are stored; each has as many edits as the manifest."""
    path = folder / manifest.weights
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise damaged(folder, [f"{path.name} is missing"]) from None
    if hashlib.sha256(content).hexdigest() != path.stem.removeprefix("edits-"):
        raise damaged(path, ["its content is not what its name says (it was changed, or not copied to its end)"])
    try:
        state = parsed(content)
    except SafetensorError as error:
        raise damaged(path, [f"it is no safetensors file: {error}"]) from None
    tensors: dict[str, Stored] = {}
    faults = []
    for name, shape in manifest.packed.items():
        mask, values = state.pop(name + _MASK, None), state.pop(name + _VALUES, None)
        if mask is None or values is None:
            faults.append(f"{name}: its mask or its values are missing")
            continue
        tensors[name] = Packed(shape, mask, values)
        faults += [f"{name}: {fault}" for fault in Packed(shape, mask, values).faults()]
    tensors |= state
    rows = {name: len(manifest.facts) for name in tensors if name not in _OF_NONE}
    rows |= {name: sum(map(len, manifest.facts)) for name in _OF_FACTS if name in tensors}
    shapes = {name: tuple(tensors[name].shape) for name in rows}
    faults += [f"{name}: {shapes[name]}, expected {n} rows" for name, n in rows.items() if shapes[name][:1] != (n,)]
    if faults:
        raise damaged(path, faults)
    return tensors


def read_both(folder: Path) -> tuple[Manifest, dict[str, Stored]]:
    """Manifest and tensors that belong together, whoever replaces them meanwhile. Raises EditsError."""
    while True:
        manifest = read_manifest(folder)
        try:
            return manifest, read_tensors(folder, manifest)
        except EditsError:
            if read_manifest(folder).weights == manifest.weights:
                raise


def check_model(folder: Path, manifest: Manifest, model: PreTrainedModel) -> None:
    """Refuse a model that the edits were not made for, with an EditsError."""
    if is_identity_of(manifest.base_model, model):
        return
    precision = _precision(str(model.dtype).removeprefix("torch."), quantization_of(model))
    name = model.config.name_or_path or model.name_or_path
    hint = f" Load it in {manifest.precision}, if it is the same one." if precision != manifest.precision else ""
    raise EditsError(
        f"the edits in {folder} were trained on another model: theirs is {manifest.model!r} in {manifest.precision} "
        f"(contents {manifest.base_model[:15]}...), this one is {name!r} in {precision}.{hint}"
    )


def _precision(dtype: str, quantize: str | None) -> str:
    return f"{dtype}, quantized to {quantize}" if quantize else dtype


def patch_of(folder: Path, manifest: Manifest, frame: Patch) -> Patch:
    """The patch in a folder, of the form of ``frame``, which has one edit. Raises EditsError."""
    return patch_from(folder, manifest, read_tensors(folder, manifest), frame)


def patch_from(folder: Path, manifest: Manifest, stored: Mapping[str, Stored], frame: Patch) -> Patch:
    """As :func:`patch_of`, of tensors that were read already."""
    tensors = {name: t for name, t in stored.items() if not name.startswith(STORE)}
    patch = filled(folder, frame, tensors, len(manifest.facts))
    check_finite(folder, manifest, tensors)
    return patch


def check_finite(folder: Path, manifest: Manifest, stored: Mapping[str, Stored]) -> None:
    """Refuse edits with numbers that are NaN or infinite, unless they have failed anyway, with an EditsError."""
    sick = [t for t in stored.values() if not (t.values if isinstance(t, Packed) else t).isfinite().all()]
    each = enumerate(manifest.outcomes if sick else ())
    good = [edit for edit, outcome in each if not outcome.error]
    if lost := [str(e) for e in good if not all(dense(taken(t, [e])).isfinite().all() for t in sick)]:
        raise damaged(folder, [f"edits {listed(lost)} have numbers that are NaN or infinite"])


def filled(where: Path, frame: Patch, stored: Mapping[str, Stored], edits: int) -> Patch:
    """``edits`` edits like the one of ``frame``, with these tensors; their faults are reported together."""
    own, lasting = frame.tensors(), frame.lasting()
    faults = [f"{name}: missing" for name in lasting.keys() - stored.keys()]
    faults += [f"{name}: unknown" for name in stored.keys() - lasting.keys()]
    known = {name: stored[name] for name in lasting.keys() & stored.keys()}
    for name, given in known.items():
        wanted = own[name].new_empty((edits, *own[name].shape[1:]), device="meta")
        shape, dtype = (given.shape, given.values.dtype) if isinstance(given, Packed) else (given.shape, given.dtype)
        fits = len(shape) == wanted.dim() and shape[0] == edits if frame.resizes else shape == wanted.shape
        if dtype != wanted.dtype or not fits:
            faults.append(f"{name}: {_kind(shape, dtype)}, expected {_kind(wanted.shape, wanted.dtype)}")
    if faults:
        raise damaged(where, faults)
    tensors = {name: dense(t) for name, t in known.items()}  # once their sizes are known to be right
    whole = {n: tensors[n].to(t.device) if n in tensors else t.new_zeros(edits, *t.shape[1:]) for n, t in own.items()}
    patch = frame.rebuilt(whole)
    try:
        trimmed = patch.trimmed()
    except (RuntimeError, MemoryError) as error:
        raise damaged(where, [f"sizes do not agree: {error}"]) from None
    for name, t in trimmed.tensors().items():
        if any(need > have for need, have in zip(t.shape, whole[name].shape, strict=True)):
            have = whole[name]
            faults.append(f"{name}: {_kind(have.shape, have.dtype)}, but its edits need {_kind(t.shape, t.dtype)}")
    if faults:
        raise damaged(where, faults)
    return trimmed


def _kind(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{tuple(shape)} of {str(dtype).removeprefix('torch.')}"


def damaged(where: Path, faults: Sequence[str]) -> EditsError:
    """The error for a folder or file with these faults."""
    return EditsError("\n  ".join([f"the edits in {where} are damaged and cannot be used:", *lines(sorted(faults))]))
