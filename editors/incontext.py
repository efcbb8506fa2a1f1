r"""In-context editing (IKE without demonstrations; Zheng et al., 2023, https://arxiv.org/abs/2305.12740): no weight
changes; the fact is said before every text.

    New fact: The capital of France is Rome.
    What is the capital of France?

The measure of what an edit should do: a model that reads the fact is asked the same probes as one that has learned it.
The price is paid at every text: its tokens, and positions of the model's context.

An edit is the token ids of what is said, (l,), the lines of several facts one after another, l at most ``length``. What
the model makes of them, keys and values of every layer, is computed when an edit is attached, and a text is attended
to behind it, its positions beginning at l. Rows without an edit do not see it. Nothing is learned, so there is nothing
to merge or to export.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.facts import Fact
from ..engine.model.encoding import EncodingError
from ..engine.patches.patch import Patch
from ..engine.patches.prefixes import Behind
from ..engine.patches.rows import Rows
from ..engine.shapes import fitted
from ..hparams.incontext import InContextHparams
from .base import UntrainedEditor


class Said(Patch):
    """What is said before every text."""

    resizes = True

    ids: Tensor  # (E, l), padded on the right
    lengths: Tensor  # (E,)

    def __init__(self, seeds: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        super().__init__(seeds)
        longest = max(map(len, texts), default=0)
        self.register_buffer("ids", torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts]).long())
        self.register_buffer("lengths", torch.tensor([len(text) for text in texts]))

    @property
    def first_layer(self) -> int:
        return 0

    def said(self, edit: int) -> list[int]:
        """The tokens of one edit."""
        return self.ids[edit, : int(self.lengths[edit])].tolist()

    def attached(self, model: PreTrainedModel, rows: Rows) -> AbstractContextManager[None]:
        begun = {edit: self.said(edit) if edit >= 0 else [] for edit in sorted({*rows.edits})}
        if not any(begun.values()):
            return nullcontext()
        index = {edit: i for i, edit in enumerate(begun)}
        whole = Behind.of(model, [*begun.values()])
        return whole.rows(torch.tensor([index[edit] for edit in rows.edits], device=model.device)).attached()

    def trimmed(self) -> Patch:
        longest = int(self.lengths.max()) if len(self) else 0
        return self.rebuilt(self.tensors() | {"ids": fitted(self.ids, [longest])})


class InContext(UntrainedEditor):
    """Says the fact before every text."""

    Hparams = InContextHparams
    hparams: InContextHparams

    @property
    def positions(self) -> int:
        return self.hparams.length

    def patch(self, seeds: Sequence[int]) -> Said:
        return Said(seeds, [()] * len(seeds))

    def stated(self, facts: Sequence[Fact], seed: int, before: Patch | None) -> tuple[Said, dict[int, str]]:
        said = before.said(0) if isinstance(before, Said) else []
        lost: dict[int, str] = {}
        for i, fact in enumerate(facts):
            try:
                self.encoder.answered(fact.prompt, fact.target_new)
                said += self._line(fact, len(said))
            except EncodingError as error:
                lost[i] = str(error)
        return Said([seed], [said]), lost

    def _line(self, fact: Fact, before: int) -> list[int]:
        """What is said of a fact, behind so many tokens. Raises EncodingError where there is no room for it."""
        text = self.hparams.template.replace("{}", f"{fact.prompt} {fact.target_new}")
        ids: list[int] = self.tokenizer(text, add_special_tokens=not before)["input_ids"]
        if before + len(ids) > self.hparams.length:
            behind = f" behind the {before} of earlier facts" if before else ""
            raise EncodingError(
                f"the fact is said in {len(ids)} tokens{behind}, and there is room for {self.hparams.length}; a larger "
                "length gives it more"
            )
        return ids
