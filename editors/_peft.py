"""Edits as PEFT adapters and back: PEFT's files are written and read here, PEFT itself is not needed.

A low-rank edit of any method is written as PEFT's LoRA, y = W x + (alpha_i / r_i) B_i A_i x at each site: what else the
method has (SimplexLoRA's omega, AdaLoRA's Lambda) is folded into B, and sites of rank zero are left out. PEFT computes
the same, except that it does so in its own order of operations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parsed
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ..hparams import validated
from ._branches import SitePatch
from ._files import replacing
from ._sites import Site, roles, sites, transposed
from .adalora import Triplets
from .base import Edits, Outcome
from .lora import LoRA, LoRAHparams, LowRank
from .prefix import PrefixPatch
from .simplexlora import WeightedLowRank

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class PeftError(ValueError):
    """An edit that PEFT has no adapter for, or an adapter that is no edit here."""


class Factors(NamedTuple):
    """(alpha / r) B A, the change of one site's weight."""

    a: Tensor  # (r, I)
    b: Tensor  # (O, r)
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.a)


@singledispatch
def _factors(branch: nn.Module, edit: int) -> Factors:
    raise PeftError(f"PEFT has no adapter like a {type(branch).__name__}")


@_factors.register
def _(branch: LowRank, edit: int) -> Factors:
    a, b = branch.a[edit], branch.b[edit]
    return Factors(a, b, branch.scale * len(a))


@_factors.register
def _(branch: WeightedLowRank, edit: int) -> Factors:
    r = int(branch.rank[edit])
    return Factors(branch.a[edit, :r], branch.b[edit, :, :r] * branch.omega[edit], branch.scale * r)


@_factors.register
def _(branch: Triplets, edit: int) -> Factors:
    kept = branch.lam[edit] != 0
    a, b = branch.q[edit, kept], branch.p[edit][:, kept] * branch.lam[edit, kept]
    return Factors(a, b, branch.scale * len(a))


def export(edits: Edits, i: int, folder: Path) -> None:
    if error := edits.outcomes[i].error:
        raise PeftError(f"edit {i} failed and changes nothing: {error}")
    if isinstance(edits.patch, PrefixPatch):
        config, tensors = _prefix(edits.patch, i)
    elif isinstance(edits.patch, SitePatch):
        try:
            factors = {site.name: _factors(branch, i) for site, branch in edits.patch.items()}
            config, tensors = _lora(edits.editor.model, factors)
        except PeftError as error:
            raise PeftError(f"{edits.editor.name()} cannot be exported: {error}") from None
    else:
        raise PeftError(f"{edits.editor.name()} cannot be exported: PEFT has no adapter like it")
    config |= {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": edits.editor.hparams.model,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _WEIGHTS) as path:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    with replacing(folder / _CONFIG) as path:
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _lora(model: nn.Module, factors: dict[str, Factors]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    used = {name: f for name, f in factors.items() if f.rank}
    if not used:
        raise PeftError("it has no rank left at any site, so there is nothing to write")
    largest = max(used.values(), key=lambda f: f.rank)
    others = {name: f for name, f in used.items() if (f.rank, f.alpha) != (largest.rank, largest.alpha)}
    config = {
        "peft_type": "LORA",
        "r": largest.rank,
        "lora_alpha": largest.alpha,
        "rank_pattern": {name: f.rank for name, f in others.items()},
        "alpha_pattern": {name: f.alpha for name, f in others.items()},
        "target_modules": list(used),
        "fan_in_fan_out": any(transposed(model.get_submodule(name)) for name in used),
        "bias": "none",
    }
    tensors = {f"{_PREFIX}{name}.lora_{x}.weight": t for name, f in used.items() for x, t in (("A", f.a), ("B", f.b))}
    return config, tensors


def _prefix(patch: PrefixPatch, i: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kv = patch.kv[i]  # (l, layers, 2, heads, head width), the order in which PEFT reads each row
    return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": len(kv)}, {"prompt_embeddings": kv.flatten(1)}


def imported(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Edits:
    config, tensors = _read(folder)
    known = {site.name: site for site in sites(model, roles(model))}
    factors, faults = _pairs(config, tensors, known)
    if faults:
        shown = "\n  ".join(sorted(faults)[:10])
        raise PeftError(f"the adapter in {folder} cannot be imported as LoRA edits:\n  {shown}")
    rank = max(f.rank for f in factors.values())
    alpha = max(f.alpha for f in factors.values())
    values = {
        "model": str(config.get("base_model_name_or_path") or model.config.name_or_path or "unknown"),
        "sites": sorted({known[name].role for name in factors}),
        "layers": sorted({known[name].layer for name in factors}),
        "rank": rank,
        "alpha": alpha,
        "dropout": config.get("lora_dropout") or 0.0,
        "steps": 1,  # how it was trained is not known
        "lr": 1e-4,
    }
    hparams = validated(LoRAHparams, values, str(folder / _CONFIG))
    editor = LoRA(model, tokenizer, hparams)
    patch = cast(SitePatch[LowRank], editor.untrained([0]))
    with torch.no_grad():
        for site, branch in patch.items():
            branch.a.zero_()
            branch.b.zero_()
            if f := factors.get(site.name):
                branch.a[0, : f.rank] = f.a
                branch.b[0, :, : f.rank] = f.b * (f.alpha / f.rank / branch.scale)
    return Edits(editor, patch, (tuple(facts),), (Outcome(steps=0, loss=float("nan")),))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = parsed((folder / _WEIGHTS).read_bytes())
    except FileNotFoundError as error:
        pickled = " (weights are read from safetensors only)" if list(folder.glob("*.bin")) else ""
        raise PeftError(f"{folder} is no PEFT adapter: {Path(str(error.filename)).name} is missing{pickled}") from None
    except (ValueError, SafetensorError) as error:
        raise PeftError(f"the adapter in {folder} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise PeftError(f"{folder / _CONFIG}: expected an object with fields")
    if config.get("peft_type") != "LORA":
        raise PeftError(f"the adapter in {folder} is {config.get('peft_type')!r}; only LORA can be imported")
    return config, tensors


# Fields of PEFT's LoraConfig under which an adapter is more than (alpha / r) B A beside linear maps.
_REFUSED = (
    *("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication", "use_qalora"),
    *("alora_invocation_tokens", "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "megatron_config"),
    *("velora_config", "monteclora_config"),
)


def _pairs(
    config: dict[str, Any], tensors: dict[str, Tensor], known: dict[str, Site]
) -> tuple[dict[str, Factors], list[str]]:
    faults = [f"{key} is {config[key]!r}: not a plain LoRA" for key in _REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        faults.append(f"bias is {config['bias']!r}: an edit of lora has none")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        name, dot, rest = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not dot or rest not in ("A.weight", "B.weight"):
            faults.append(f"{key}: no factor of a linear map")
        elif name not in known:
            faults.append(f"{name}: no linear map of a block in this model")
        else:
            parts.setdefault(name, {})[rest[0]] = t.float()
    factors = {}
    for name, ab in parts.items():
        site = known[name]
        shapes = {x: tuple(t.shape) for x, t in ab.items()}
        rank = shapes.get("A", (0,))[0]
        if not rank or shapes != {"A": (rank, site.inputs), "B": (site.outputs, rank)}:
            faults.append(f"{name}: factors of {shapes}, expected A (r, {site.inputs}) and B ({site.outputs}, r)")
            continue
        try:
            alpha = float(_alpha(config, name))
        except (TypeError, ValueError, re.error):
            faults.append(f"{name}: no number alpha in lora_alpha and alpha_pattern")
            continue
        factors[name] = Factors(ab["A"], ab["B"], alpha * (rank**0.5 if config.get("use_rslora") else 1))
    if not factors and not faults:
        faults.append("it holds no factors")
    return factors, faults


def _alpha(config: dict[str, Any], name: str) -> Any:
    """The site's alpha, by PEFT's rule: the first key that matches the end of the name."""
    patterns = config.get("alpha_pattern") or {}
    found = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", name)]
    return found[0] if found else config.get("lora_alpha", 8)
