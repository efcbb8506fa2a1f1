"""Labelled examples as token ids, and the batches in which several edits see examples of their own.

Shapes: E edits, b examples of a batch for each edit, C texts of an example (options; 1 in classification), T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.examples import Example
from ...engine.model.passes import context_of

_CHUNK = 64


class Sized(Protocol):
    """An example that has a length in tokens."""

    @property
    def length(self) -> int: ...


S = TypeVar("S", bound=Sized)


@dataclass(frozen=True)
class Prepared:
    """One example: the model's inputs for each of its texts, a number that each text has to itself, and the label."""

    keys: tuple[int, ...]
    texts: tuple[dict[str, list[int]], ...]
    label: float

    @property
    def length(self) -> int:
        return max(len(text["input_ids"]) for text in self.texts)


class Preparer:
    """Turns examples into token ids, cut to ``max_length`` tokens, the longer text of a pair first."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, positions: int
    ) -> None:
        context = min(context_of(model), tokenizer.model_max_length) - positions
        self.tokenizer, self.max_length, self._keys = tokenizer, min(max_length, context), count()
        tokenizer.padding_side = (
            "right"  # decoders take the last token, and states of lower blocks are stored by position
        )
        tokenizer.truncation_side = "right"

    def __call__(self, examples: Sequence[Example]) -> list[Prepared]:
        return [
            Prepared(tuple(islice(self._keys, len(example.texts))), self._texts(example), example.label)
            for example in examples
        ]

    def _texts(self, example: Example) -> tuple[dict[str, list[int]], ...]:
        # A tokenizer without a separator (a decoder's) would glue the two together.
        glue = "\n" if self.tokenizer.sep_token is None else ""
        return tuple(
            dict(
                self.tokenizer(
                    text, None if pair is None else glue + pair, truncation="longest_first", max_length=self.max_length
                )
            )
            for text, pair in example.texts
        )


class Interleaved(Dataset[tuple[Sized, ...]]):
    """Item i is one example for each edit, all of like length; each edit has an order of its own from its seed.

    Like lengths keep padding small where items of neighbouring numbers share a batch. An edit with fewer examples than
    another repeats some.
    """

    def __init__(self, parts: Sequence[Sequence[Sized]], seeds: Sequence[int]) -> None:
        self._orders = [_shuffled_by_length(part, seed) for part, seed in zip(parts, seeds, strict=True)]
        self._size = max(map(len, self._orders))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> tuple[Sized, ...]:
        return tuple(order[i * len(order) // self._size] for order in self._orders)


def _shuffled_by_length(examples: Sequence[S], seed: int) -> list[S]:
    """From short to long, but shuffled among neighbours."""
    draw = random.Random(seed)
    # Shuffled first: texts of one length, such as all that are cut, would come class by class if the file does.
    order = sorted(draw.sample(examples, len(examples)), key=lambda example: example.length)
    chunks = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]
    for chunk in chunks:
        draw.shuffle(chunk)
    return [example for chunk in chunks for example in chunk]


def collated(items: Sequence[Sequence[Prepared]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """b items of E examples -> ids and masks (b, E, C, T), keys (b, E, C), labels (b, E)."""
    texts = [text for item in items for example in item for text in example.texts]
    shape = (len(items), len(items[0]), len(items[0][0].texts))
    padded: dict[str, Tensor] = dict(tokenizer.pad(texts, return_tensors="pt"))
    keys = [key for item in items for example in item for key in example.keys]
    return {
        **{name: t.view(*shape, -1) for name, t in padded.items()},
        "keys": torch.tensor(keys).view(shape),
        "labels": torch.tensor([[example.label for example in item] for item in items]),
    }
