"""A model and its tokenizer by name, loaded from local safetensors files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from ...data.messages import listed
from . import quantized
from .sites import head
from .sources import ModelError, check, folder_of, said, ways_on


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode and its tokenizer, which has a pad token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


SPLIT = "split"
"""The device that is all GPUs."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    trust_remote_code: bool = False,
    labels: int | None = None,
) -> LoadedModel:
    """The model called ``name``, in eval mode on ``device``, with its tokenizer: a causal LM or a classifier.

    Args:
        name: short name, .gguf file, local folder or hub id.
        device: ``auto`` (see ``pick_device``), a torch device, or ``split``: block by block over all GPUs.
        dtype: ``auto`` (see ``pick_dtype``) or one of ``DTYPES``.
        quantize: 8bit or 4bit: what the weights of linear maps are rounded to, but for the output layer's
            (``quantized.py``); None: they stay whole.
        trust_remote_code: run Python code that comes with the model.
        labels: None for a causal LM, else the outputs of a sequence-classification head, which is random where the
            model has none.

    Returns:
        The two; the tokenizer has a pad token.

    Raises:
        ModelError: the name leads to no model, or to one that is incomplete; never another model in silence.

    Example:
        >>> load("smollm2-135m", dtype="float32").model.config.num_hidden_layers  # doctest: +SKIP
        30
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    folder = folder_of(name)
    check(name, folder)
    options: dict[str, bool] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    auto = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    size = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}  # of another task's head
    placing: dict[str, object] = over_gpus() if device == SPLIT else {}
    if quantize is not None:
        # Weight by weight, and where they are to be: the whole ones need not fit there.
        placing = {"device_map": {"": where}} | placing | {"quantization_config": quantized.settings_of(quantize, kind)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        loaded: Any = auto.from_pretrained(
            folder, dtype=kind, use_safetensors=True, output_loading_info=True, **size, **placing, **options
        )
    except Exception as error:  # the readers of tokenizers and weights raise bare Exceptions too
        raise ModelError(
            f"model {name!r} cannot be loaded from {folder}: {said(error)}. {ways_on(name, folder)}."
        ) from error
    model, report = loaded
    _check_placed(name, model)
    if quantize is not None:
        quantized.prepare(model)
    _check_finite(name, folder, model)
    fresh = () if labels is None else tuple(f"{site.name}." for site in head(model))
    random = {*report["missing_keys"], *(key for key, _, _ in report["mismatched_keys"])}
    if missing := sorted(key for key in random if not key.startswith(fresh)):
        # transformers would fill these with random numbers and go on.
        raise ModelError(f"model {name!r} lacks weights in {folder}: {', '.join(missing[:5])} ({len(missing)} in all)")
    if tokenizer.pad_token is None:
        # Any token will do: padding is found by the attention mask, never by its id.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if labels is not None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before the padding
    return LoadedModel((model if placing else model.to(where)).eval(), tokenizer)


def load_encoder(name: str, *, device: str = "auto") -> LoadedModel:
    """A sentence encoder (the body of a model, without a head) in eval mode, with its tokenizer.

    Args:
        name: short name, local folder or hub id.
        device: ``auto`` or a torch device.

    Raises:
        ModelError: the name leads to no model, or to one that is incomplete.

    Example:
        >>> load_encoder("minilm-l6").model.config.hidden_size  # doctest: +SKIP
        384
    """
    where, folder = pick_device(device), folder_of(name)
    check(name, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded = AutoModel.from_pretrained(
            folder,
            dtype=pick_dtype("auto", where),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # as in load
        raise ModelError(
            f"model {name!r} cannot be loaded from {folder}: {said(error)}. {ways_on(name, folder)}."
        ) from error
    model, report = loaded
    _check_finite(name, folder, model)
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):  # is never used
        raise ModelError(f"model {name!r} lacks weights in {folder}: {', '.join(missing[:5])} ({len(missing)} in all)")
    return LoadedModel(model.to(where).eval(), tokenizer)


def without_bars() -> None:
    """Have this process show none of transformers' bars."""
    disable_progress_bar()


def save(loaded: LoadedModel, folder: Path) -> None:
    """Write a model and its tokenizer as :func:`load` reads them. Raises ModelError where the disk does not take it."""
    try:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    except Exception as error:  # the writers of tokenizers and weights raise bare Exceptions too
        raise ModelError(f"the model cannot be written to {folder}: {said(error)}") from error


def over_gpus() -> dict[str, object]:
    """What transformers is to be told for a model to be spread over the GPUs, and nowhere else. Raises ModelError."""
    if (count := torch.cuda.device_count()) < 2:
        raise ModelError(f"device 'split' is for several GPUs, and here are {count}; `auto` picks one device")
    return {"device_map": "auto", "max_memory": {i: torch.cuda.mem_get_info(i)[0] for i in range(count)}}


def _check_placed(name: str, model: PreTrainedModel) -> None:
    """Refuse weights that have found no room."""
    if away := [key for key, weight in model.named_parameters() if weight.device.type == "meta"]:
        raise ModelError(
            f"model {name!r} is larger than the devices' memory, and {listed(away, 3)} would be fetched anew for each "
            "pass. Round its weights (--quantize 8bit or 4bit), or take more devices"
        )


def _check_finite(name: str, folder: Path, model: PreTrainedModel) -> None:
    """Refuse weights with which nothing can be computed; a damaged file often has some."""
    each = ((key, part) for key, weight in model.named_parameters() for _, part in quantized.parts(key, weight))
    if sick := [key for key, part in each if not bool(part.isfinite().all())]:
        raise ModelError(
            f"model {name!r} has weights that are NaN or infinite in {folder}: {listed(sick, 5)}. "
            f"{ways_on(name, folder)}."
        )


def pick_device(device: str) -> torch.device:
    """``auto`` is CUDA, else Apple's MPS, else the CPU; ``split`` begins on the first GPU; anything else is tried and
    refused with torch's reason."""
    if device == SPLIT:
        return torch.device("cuda:0")
    if device == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here: {error}. `auto` picks one that can.") from error
    if found.type == "meta":
        raise ModelError("device 'meta' holds no numbers, so nothing can be computed on it; `auto` picks one that can")
    return found


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32.

    On MPS it is float32: bfloat16 needs macOS 14 and is not faster on every chip, and float16 overflows in models
    that were trained in bfloat16.
    """
    if dtype == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; there are: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Older torch cannot say; then float32 is the safe answer.
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False
