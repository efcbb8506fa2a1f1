"""A causal LM that learns to write, several patches side by side.

Shapes: E edits (seeds), b pairs of a batch for each, R = E b rows in edit order, T tokens, N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...data.pairs import Item, Pair
from ...engine.model.encoding import Encoded, Encoder, EncodingError, padded
from ...engine.model.passes import logits_at
from ...engine.patches.patch import Patch
from ..folder import RunError
from ..tuning.side_by_side import Tuned

_SHOWN = 3
T = TypeVar("T", Pair, Item)


def prompt_of(source: str) -> str:
    """What is given to the model, which goes on with a blank and the text, and ends with an end-of-text token."""
    return f"{source} ||"


def cut(encoder: Encoder, told: T, most: int) -> T:
    """A pair or item whose source has at most so many tokens."""
    return told._replace(source=encoder.cut(told.source, most))


@dataclass(frozen=True)
class Lesson:
    """A pair as token ids, and a number of its own."""

    key: int
    encoded: Encoded

    @property
    def length(self) -> int:
        return len(self.encoded.ids)


def lessons(encoder: Encoder, pairs: Sequence[Pair]) -> list[Lesson]:
    """Pairs as they are learned. Raises RunError for those that do not fit into the model's context."""
    found, faults = [], []
    for key, pair in enumerate(pairs):
        try:
            found.append(Lesson(key, encoder.answered(prompt_of(pair.source), pair.target, end_of_text=True)))
        except EncodingError as error:
            faults.append(str(error))
    if faults:
        raise RunError("\n  ".join([f"{len(faults)} pairs cannot be learned:", *faults[:_SHOWN]]))
    return found


def collated(items: Sequence[Sequence[Lesson]]) -> dict[str, Tensor]:
    """b items of E lessons -> ids and mask (E, b, T), and (E, b) keys and the positions where the texts begin."""
    parts = [[item[e] for item in items] for e in range(len(items[0]))]
    ids, mask = padded([lesson.encoded.ids for part in parts for lesson in part], "cpu")
    shape = (len(parts), len(items))
    return {
        "input_ids": ids.view(*shape, -1),
        "attention_mask": mask.view(*shape, -1),
        "keys": torch.tensor([[lesson.key for lesson in part] for part in parts]),
        "starts": torch.tensor([[lesson.encoded.start for lesson in part] for part in parts]),
    }


class Writer(Tuned):
    r"""The loss of an edit is the mean over the tokens of its texts of

    .. math::  (1 - s) \big({-\log p(w)}\big) + s \, \tfrac{1}{V} \sum_v -\log p(v)

    with the label smoothing s. What is predicted are the texts and their ends; sources are only read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        patches: Sequence[Patch],
        *,
        smoothing: float,
        autocast: bool = False,
        replay: bool = True,
        own: nn.Module | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(model, patches, autocast=autocast, replay=replay, own=own, first=first)
        self._smoothing = smoothing

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        edits, b = batch["keys"].shape
        ids, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)  # (R, T)
        starts, position = batch["starts"].view(-1, 1), torch.arange(ids.shape[1] - 1, device=ids.device)
        row, at = ((position >= starts - 1) & mask[:, 1:].bool()).nonzero(as_tuple=True)  # (N,) each
        keys = batch["keys"].flatten().tolist()
        with self.edited({"input_ids": ids, "attention_mask": mask}, keys, edits):
            logits = logits_at(self.model, ids, (row, at))
        logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
        each = F.cross_entropy(logits, ids[row, at + 1], reduction="none", label_smoothing=self._smoothing)
        owner = row // b
        counts = torch.bincount(owner, minlength=edits)
        return each.new_zeros(edits).index_add(0, owner, each) / counts
