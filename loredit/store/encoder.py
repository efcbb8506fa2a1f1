"""Sentence embeddings, of a text and of the same text without its subject, from one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..engine.model.encoding import padded
from ..engine.model.loading import load_encoder
from ..engine.model.passes import frozen, input_of

DEFAULT = "minilm-l6"
BASE = ("base", "none")
"""Names of the fallback: the edited model's own states."""

_AT_ONCE = 128  # texts of one pass
_LONGEST = 256  # tokens; what is asked stands near the end of a prompt, which windows keep


@dataclass(frozen=True)
class Reading:
    """A text's token states (T, d) and the letters that each token stands for (T, 2); (0, 0) for marks."""

    states: Tensor
    spans: Tensor

    def mean(self, without: tuple[int, int] | None = None) -> Tensor:
        """(d,) over all tokens but those of the letters ``without``, which the others have seen."""
        if without is None:
            return self.states.mean(0)
        begin, end = self.spans.unbind(1)
        inside = (begin >= without[0]) & (end <= without[1]) & (end > begin)
        return self.states.mean(0) if bool(inside.all()) else self.states[~inside].mean(0)


class SentenceEncoder(ABC):
    """Texts to unit vectors whose product says how alike they are.

    A subclass reads texts into token states; whoever calls pools them, so that the embedding of a text and that of its
    relation (the text without its subject) take one pass.
    """

    name: str
    """What brings the same encoder back: a short name, hub id, folder, or "base"."""
    width: int

    @abstractmethod
    def _read(self, texts: Sequence[str]) -> list[Reading]:
        """The token states of texts, of one batch."""

    def spread(self, means: Tensor) -> Tensor:
        """(N, d) -> (N, d): whatever makes means comparable before they are scaled to length 1."""
        return means

    @final
    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Token states of texts, texts of like length together."""
        out: dict[int, Reading] = {}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for begin in range(0, len(order), _AT_ONCE):
            chunk = order[begin : begin + _AT_ONCE]
            out.update(zip(chunk, self._read([texts[i] for i in chunk]), strict=True))
        return [out[i] for i in range(len(texts))]

    @final
    def vectors(self, readings: Sequence[Reading], without: Sequence[tuple[int, int] | None]) -> Tensor:
        """(N, d) of length 1, each reading's mean over what is not left out."""
        if not readings:
            return torch.zeros(0, self.width)
        means = torch.stack([reading.mean(span) for reading, span in zip(readings, without, strict=True)])
        return normalize(self.spread(means), dim=-1)


class Sentences(SentenceEncoder):
    """A sentence encoder of transformers': the mean of its last hidden states, as sentence-transformers has it."""

    def __init__(self, name: str = DEFAULT, *, device: str = "auto") -> None:
        """Raises ModelError where the name leads to no encoder."""
        loaded = load_encoder(name, device=device)
        self.name, self._model, self._tokenizer = name, loaded.model, loaded.tokenizer
        self.width = loaded.model.config.hidden_size

    def _read(self, texts: Sequence[str]) -> list[Reading]:
        ids, spans = _tokens(self._tokenizer, texts)
        batch, mask = padded(ids, self._model.device)
        states = self._model(input_ids=batch, attention_mask=mask).last_hidden_state.float().cpu()
        return [Reading(h[: len(own)], span) for h, own, span in zip(states, ids, spans, strict=True)]


class BaseStates(SentenceEncoder):
    r"""The edited model's own states, where there is to be no second model.

    States that enter block ``layer``, each scaled to length 1, without the first, which is hardly more than a mark of
    the beginning. Their mean m is whitened by mean and covariance C of the means of ``background``,

    .. math::  (C + \epsilon\,\overline{\mathrm{eig}\,C}\,I)^{-1/2} (m - \bar m), \qquad \epsilon = 0.3,

    since a language model's states are all alike otherwise. It costs ``layer`` blocks a prompt, and knows less of
    meaning than an encoder that was trained for it (docs/keeping-edits.md).
    """

    name = BASE[0]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        background: Sequence[str],
        *,
        layer: int = 1,
    ) -> None:
        self._model, self._tokenizer, self._layer = model, tokenizer, layer
        self.width = model.config.hidden_size
        x = torch.stack([reading.mean() for reading in self.read(background)])
        self._mean = x.mean(0)
        centred = x - self._mean
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(x))
        # Shrunk: there are fewer prompts than widths may be.
        values = values.clamp(min=0) + 0.3 * values.mean()
        self._turn = vectors * values.rsqrt()

    def _read(self, texts: Sequence[str]) -> list[Reading]:
        ids, spans = _tokens(self._tokenizer, texts, self._model.config.max_position_embeddings)
        with frozen(self._model):
            batch, _ = padded(ids, self._model.device)
            states = normalize(input_of(self._model, self._layer, batch).float(), dim=-1).cpu()
        first = [int(len(own) > 1) for own in ids]
        return [Reading(h[f : len(own)], span[f:]) for h, own, span, f in zip(states, ids, spans, first, strict=True)]

    def spread(self, means: Tensor) -> Tensor:
        return (means - self._mean) @ self._turn


def encoder_of(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, background: Sequence[str]
) -> SentenceEncoder:
    """The encoder called ``name``; "base" or "none" is the edited model itself. Raises ModelError."""
    return BaseStates(model, tokenizer, background) if name in BASE else Sentences(name, device=str(model.device))


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int = _LONGEST
) -> tuple[list[list[int]], list[Tensor]]:
    """Ids and the letters that each stands for. A tokenizer that does not know leaves every token in."""
    known = bool(tokenizer.is_fast)
    encoded = tokenizer(
        [*texts], truncation=True, max_length=min(most, _LONGEST), return_offsets_mapping=known, padding=False
    )
    ids = [own or [tokenizer.pad_token_id or 0] for own in encoded["input_ids"]]
    spans = encoded["offset_mapping"] if known else [[]] * len(ids)
    return ids, [
        torch.tensor(span, dtype=torch.long) if span else torch.zeros(len(own), 2, dtype=torch.long)
        for own, span in zip(ids, spans, strict=True)
    ]
