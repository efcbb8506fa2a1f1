"""Edits as PEFT adapters and back: PEFT's files are written and read here, PEFT itself is not needed.

A low-rank edit of any method is written as PEFT's LoRA, y = W x + (alpha_i / r_i) B_i A_i x at each site: what else the
method has (SimplexLoRA's omega, AdaLoRA's Lambda) is folded into B, and sites of rank zero are left out. PEFT computes
the same, except that it does so in its own order of operations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parsed
from safetensors.torch import save as serialised
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ..editors.base import Edits
from ..editors.lora import LoRA, LowRank
from ..editors.prefix import PrefixPatch
from ..engine.files import replacing
from ..engine.model.sites import Site, roles, sites, transposed
from ..engine.outcome import Outcome
from ..engine.patches.branches import Factors, LowRankBranch, SitePatch
from ..hparams import validated
from ..hparams.lora import LoRAHparams

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SECONDS = 1.0  # for one pattern of an adapter


class PeftError(ValueError):
    """An edit that PEFT has no adapter for, or an adapter that is no edit here."""


def to_peft(edits: Edits, edit: int | str, folder: str | Path) -> None:
    """Write an edit as an adapter folder for ``PeftModel.from_pretrained``; low-rank methods and prefix tuning.

    Args:
        edits: finished edits.
        edit: which of them, by index or case id.
        folder: where to write; made if there is none.

    Raises:
        PeftError: PEFT has no adapter like this edit, or the edit has failed.

    Example:
        >>> to_peft(edits, "france", "adapter")  # doctest: +SKIP
    """
    i, folder = edits.index(edit), Path(folder)
    if error := edits.outcomes[i].error:
        raise PeftError(f"edit {edit!r} failed and changes nothing: {error}")
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
        path.write_bytes(
            serialised({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"format": "pt"})
        )
    with replacing(folder / _CONFIG) as path:
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _factors(branch: nn.Module, edit: int) -> Factors:
    if not isinstance(branch, LowRankBranch):
        raise PeftError(f"PEFT has no adapter like a {type(branch).__name__}")
    return branch.factors(edit)


def _lora(model: nn.Module, factors: dict[str, Factors]) -> tuple[dict[str, object], dict[str, Tensor]]:
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


def _prefix(patch: PrefixPatch, i: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    kv = patch.kv[i]  # (l, layers, 2, heads, head width), the order in which PEFT reads each row
    return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": len(kv)}, {"prompt_embeddings": kv.flatten(1)}


def from_peft(
    folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact] = ()
) -> Edits:
    """A LoRA adapter of PEFT's as one edit of the ``lora`` editor, said to carry ``facts``.

    Args:
        folder: what PEFT's ``save_pretrained`` wrote.
        model: what the adapter was trained on.
        tokenizer: the model's.
        facts: what the edit is said to carry.

    Returns:
        One edit.

    Raises:
        PeftError: the adapter does more than (alpha / r) B A beside linear maps (DoRA, biases, whole modules, a start
            that changes the base weights), or sits on maps that have no role here.

    Example:
        >>> edits = from_peft("adapter", model, tokenizer)  # doctest: +SKIP
    """
    folder = Path(folder)
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
    return Edits(editor, patch, (tuple(facts),), (Outcome(steps=0, loss=None),))


def _read(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = parsed((folder / _WEIGHTS).read_bytes())
    except NotADirectoryError:
        raise PeftError(f"{folder} is no PEFT adapter: it is no folder") from None
    except FileNotFoundError as error:
        pickled = " (weights are read from safetensors only)" if list(folder.glob("*.bin")) else ""
        raise PeftError(f"{folder} is no PEFT adapter: {Path(str(error.filename)).name} is missing{pickled}") from None
    except RecursionError:
        raise PeftError(f"the adapter in {folder} cannot be read: {_CONFIG} is nested too deeply") from None
    except (ValueError, SafetensorError) as error:
        raise PeftError(f"the adapter in {folder} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise PeftError(f"{folder / _CONFIG}: expected an object with fields")
    if config.get("peft_type") != "LORA":
        raise PeftError(f"the adapter in {folder} is {config.get('peft_type')!r}; only LORA can be imported")
    return config, tensors


# Fields of PEFT's LoraConfig that a plain (alpha / r) B A beside linear maps may have set. Any other that says
# something makes an adapter more than that, also one that a later release of PEFT adds.
_PLAIN = frozenset(
    (
        *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias"),
        *("rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),  # set where nothing uses them
    )
)
_MOST_ALPHA = 10**9  # beyond it the outputs of a model overflow
# Starts of A and B that leave the base model's weights as they are; pissa, olora, corda, loftq and the like do not.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def _pairs(
    config: dict[str, object], tensors: dict[str, Tensor], known: dict[str, Site]
) -> tuple[dict[str, Factors], list[str]]:
    faults = [f"{key} is {value!r}: not a plain LoRA" for key, value in config.items() if value and key not in _PLAIN]
    if (start := config.get("init_lora_weights")) not in _HARMLESS_STARTS:
        faults.append(f"init_lora_weights is {start!r}: such an adapter has changed the base model's own weights")
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
        if not all(bool(t.isfinite().all()) for t in ab.values()):
            faults.append(f"{name}: factors that are NaN or infinite")
            continue
        if not rank or shapes != {"A": (rank, site.inputs), "B": (site.outputs, rank)}:
            faults.append(f"{name}: factors of {shapes}, expected A (r, {site.inputs}) and B ({site.outputs}, r)")
            continue
        try:
            alpha = _alpha(config, name)
        except TimeoutError:  # once is enough: other maps would take as long
            return {}, [f"{name}: a pattern of alpha_pattern takes too long to match"]
        except (ValueError, regex.error):
            faults.append(f"{name}: no number alpha in lora_alpha and alpha_pattern")
            continue
        factors[name] = Factors(ab["A"], ab["B"], alpha * (rank**0.5 if config.get("use_rslora") else 1))
    if not factors and not faults:
        faults.append("it holds no factors")
    return factors, faults


def _alpha(config: dict[str, object], name: str) -> float:
    """The site's alpha, by PEFT's rule: the first key that matches the end of the name. Raises ValueError."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError("alpha_pattern is no mapping")
    # A pattern is a stranger's: one that backtracks for ever is given up.
    keys = (key for key in patterns if regex.match(rf"(.*\.)?({key})$", name, timeout=_SECONDS))
    found = next((patterns[key] for key in keys), config.get("lora_alpha", 8))
    if not isinstance(found, (int, float)) or not -_MOST_ALPHA <= found <= _MOST_ALPHA:
        raise ValueError("alpha is no number, or none that a model can be computed with")
    return float(found)
