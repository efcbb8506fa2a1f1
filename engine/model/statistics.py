r"""Second moments of what sites get over a text, :math:`C = E[k k^T]` (uncentred), and the whitening that follows.

Sums are taken in float64, over windows of text that are run side by side, and only up to the highest site that is
asked for. They are stored in loredit's cache under the model's identity, the site, the text and the number of tokens.
About ten times as many tokens as a site is wide give the score of a hundred times as many
(https://arxiv.org/abs/2506.04226).

Without a text of one's own, texts are sampled from the model itself: always the same for one model, no network needed,
and what they hold is what the model does usually say.

Shapes: I a site's input width, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..devices import Budget
from ..files import replacing
from ..seeds import seed_of
from .cache import cache, sha256_of
from .generation import TopK, continuations
from .passes import context_of, frozen, seen
from .sites import Site

_WINDOW = 256  # tokens of a text that are run together; of sampled texts, their length
_TOKENS = Budget(cpu=2048, mps=8192, accelerator=1 << 16)  # of one pass
_SAMPLED = "sampled 1"  # names the rule that texts are sampled by
_LIKELIEST = 50  # tokens that sampling chooses among: texts as varied as people's, without the model's noise
_BEGINNINGS = (
    *("The", "In", "A", "He", "She", "It", "This", "For", "On", "When", "I", "We", "You", "Because", "Although"),
    *("After", "There", "How", "Many", "One", "According to", "What is", "My", "At"),
)


class StatisticsError(ValueError):
    """Second moments that cannot be had or used; the message says why and what to do."""


def second_moments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[Site],
    *,
    identity: str,
    text: str | Path | None = None,
    tokens: int = 30_000,
) -> list[Tensor]:
    """C of each site, from the cache where it is known.

    Args:
        model: to which no edit is attached.
        tokenizer: its tokenizer.
        sites: linear maps of the model.
        identity: the model's (:func:`~.identity.identity_of`).
        text: a file in UTF-8; None: texts sampled from the model.
        tokens: taken from the text, at most.

    Returns:
        (I, I) each, in float64 on the CPU.

    Raises:
        StatisticsError: no such file, or none that has a token.
    """
    source = _SAMPLED if text is None else _hash(Path(text))
    known = {site.name: _read(_file(identity, source, tokens, site.name)) for site in sites}
    if missing := [site for site in sites if known[site.name] is None]:
        if text is None:
            texts = _sampled(model, tokenizer, tokens, _file(identity, source, tokens, "texts"))
        else:
            texts = torch.tensor(_tokens(tokenizer, Path(text), tokens))
        for site, moments in zip(missing, _moments(model, missing, texts), strict=True):
            known[site.name] = moments
            _write(_file(identity, source, tokens, site.name), moments)
    return [t for t in known.values() if t is not None]


def whitening(c: Tensor, eps: float) -> Tensor:
    r""":math:`S = (C + \epsilon \, \mathrm{mean}(\mathrm{diag}\, C) \, I)^{-1/2}`, symmetric, in float64.

    Args:
        c: (I, I), second moments.
        eps: what is added to each direction, as a share of the mean; less of what is seen least comes through.

    Returns:
        (I, I).

    Raises:
        StatisticsError: the matrix has no inverse; a larger eps, or more tokens, give it one.
    """
    values, vectors = torch.linalg.eigh(c.double())
    values = values + eps * c.diagonal().double().mean()
    if not (values > 0).all():
        raise StatisticsError(
            f"second moments of {len(c)} inputs are singular with eps {eps}; take a larger eps, or more tokens"
        )
    return (vectors * values.rsqrt()) @ vectors.T


def inverse_root(c: Tensor) -> Tensor:
    """N with N N^T = C^-1, (I, I) -> (I, I), upper triangular, in float64; in a tenth of the time of :func:`whitening`.

    Raises:
        StatisticsError: the matrix has no inverse.
    """
    factor, fault = torch.linalg.cholesky_ex(c.double())
    if fault:
        raise StatisticsError(
            f"second moments of {len(c)} inputs are singular; take more statistics_tokens, about ten times as many"
        )
    one = torch.eye(len(c), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor.mT, one, upper=True)


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise StatisticsError(f"the text {path} cannot be read: {error.strerror}") from None


def _file(identity: str, source: str, tokens: int, name: str) -> Path:
    key = hashlib.sha256("\n".join([identity, source, str(tokens), name]).encode()).hexdigest()
    return cache() / "statistics" / f"{key}.safetensors"


def _read(path: Path) -> Tensor | None:
    try:
        return load_file(path)["found"]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(path: Path, found: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:  # of two processes the later one's stays, which is the same
        save_file({"found": found}, unfinished)


def _tokens(tokenizer: PreTrainedTokenizerBase, path: Path, most: int) -> list[int]:
    """The first ``most`` tokens of a text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StatisticsError(f"the text {path} is not UTF-8: {error.reason}") from None
    # Tokens have about four characters; what lies far behind is not encoded for nothing.
    ids: list[int] = tokenizer(text[: most * 16], verbose=False)["input_ids"][:most]
    if not ids:
        raise StatisticsError(f"the text {path} has no token")
    return ids


def _sampled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int, file: Path) -> Tensor:
    """Tokens of the model's own texts, each as long as a window; from ``file``, if there is one."""
    if (known := _read(file)) is not None:
        return known
    window = _window(model)
    begun = [tokenizer(text)["input_ids"] for text in _BEGINNINGS]
    texts = [begun[i % len(begun)] for i in range(-(-tokens // window))]
    most = max(1, 4 * _TOKENS.on(model.device) // window)
    with tqdm(total=tokens, desc="sampling texts for second moments", unit="token", delay=2, leave=False) as bar:
        for i in range(0, len(texts), most):
            part = texts[i : i + most]
            seeds = [seed_of(_SAMPLED, i + k) for k in range(len(part))]
            choose = TopK(min(_LIKELIEST, model.config.vocab_size), seeds, window)

            def told(share: float, part: list[list[int]] = part, done: int = i) -> None:
                bar.update(int((done + share * len(part)) * window) - bar.n)

            new = continuations(model, part, tokens=window, context=window, choose=choose, progress=told)
            texts[i : i + most] = [[*start, *rest] for start, rest in zip(part, new, strict=True)]
    found = torch.tensor(texts).flatten()[:tokens]
    _write(file, found)
    return found


def _moments(model: PreTrainedModel, sites: Sequence[Site], text: Tensor) -> list[Tensor]:
    modules = [model.get_submodule(site.name) for site in sites]
    device = torch.device("cpu") if model.device.type == "mps" else model.device  # Apple's GPUs have no float64
    sums = [torch.zeros(site.inputs, site.inputs, dtype=torch.float64, device=device) for site in sites]
    count = 0
    with (
        frozen(model),
        tqdm(total=len(text), desc="second moments", unit="token", delay=2, leave=False) as bar,
    ):
        for ids in _batches(text, _window(model), _TOKENS.on(model.device)):
            states = [x.flatten(0, 1) for x in seen(model, ids.to(model.device), inputs=modules)]
            # A token whose embedding is no number spoils its window, and says nothing about the others.
            good = torch.stack([x.isfinite().all(1) for x in states]).all(0)
            for total, x in zip(sums, states, strict=True):
                own = x[good].to(device, torch.float64)
                total.addmm_(own.T, own)
            count += int(good.sum())
            bar.update(ids.numel())
    if not count:
        raise StatisticsError("the model computes no finite number for any token of the text")
    return [(total / count).cpu() for total in sums]


def _window(model: PreTrainedModel) -> int:
    return min(_WINDOW, context_of(model))


def _batches(text: Tensor, window: int, most: int) -> Iterator[Tensor]:
    """(R, window) ids at a time, ``most`` of them at most; what is left over comes last, as one row."""
    whole = len(text) // window * window
    if whole:
        yield from text[:whole].view(-1, window).split(max(1, most // window))
    if whole < len(text):
        yield text[None, whole:]
