"""What a method adds to the frozen model for E edits.

Shapes: E edits, R rows of a batch, O/I a module's output/input width.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.sites import transposed
from ..shapes import fitted
from .rows import Rows

Report = dict[str, dict[str, int | float]]
"""What a method has found out about one edit: for each thing, a number by site (the name of its module)."""


class Patch(nn.Module, ABC):
    """What a method adds to the frozen model for E edits. The first axis of every parameter and buffer is the edit."""

    resizes: ClassVar[bool] = False
    """Whether edits may differ in the shapes of their tensors, the smaller being padded (:meth:`trimmed`)."""

    seeds: Tensor  # (E,) int64
    steps: Tensor  # (E,) int64, optimizer steps each edit has taken

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("seeds", torch.tensor(list(seeds), dtype=torch.long))
        self.register_buffer("steps", torch.zeros(len(seeds), dtype=torch.long))

    @final
    def __len__(self) -> int:
        return len(self.seeds)

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """The lowest block whose computation the patch changes; blocks below it are computed once and replayed."""

    @abstractmethod
    def attached(self, model: PreTrainedModel, rows: Rows) -> AbstractContextManager[None]:
        """While open, row r of the model's batch is computed with edit ``rows.edits[r]``; -1 is the unedited model.

        A single row stands for all rows of batches of any size.
        """

    def rates(self, lr: float) -> dict[str, float]:
        """The learning rate of each parameter, by name; 0 where the patch takes the steps itself."""
        return {name: lr for name, _ in self.named_parameters()}

    def before_step(self) -> None:
        """Runs between backward and the optimizer, with gradients and the weights they were taken at."""

    def after_step(self) -> Mapping[str, Tensor]:
        """Pruning, projection or rank allocation, after each optimizer step; within an edit, never across.

        Returns, by the name of a parameter, the edits whose Adam moments of it begin anew, (E,) bool.
        """
        return {}

    def penalty(self) -> Tensor | float:
        """(E,) added to each edit's loss."""
        return 0.0

    def settle(self) -> None:
        """Puts what training leaves behind into its lasting form, once, when edits are finished."""

    def trained(self, edit: int) -> list[Tensor]:
        """The numbers that one edit keeps, for counting them."""
        return [p[edit] for p in self.parameters()]

    @final
    def sound(self) -> list[bool]:
        """(E,), whether all numbers of an edit are finite."""
        finite = [p.detach().isfinite().reshape(len(p), -1).all(1) for p in self.parameters()]
        return torch.stack([torch.ones_like(self.seeds, dtype=torch.bool), *finite]).all(0).tolist()

    @final
    def nonzero_share(self, edit: int) -> float:
        """Share of one edit's numbers that are not zero, 0 to 1; 1 where there are none."""
        return nonzero_share(self.trained(edit))

    def report(self, edit: int) -> Report:
        """What the method has found out about one edit, by site: ``{"ranks": {module name: rank}}``, say."""
        return {}

    def trimmed(self) -> Patch:
        """This patch without padding that none of its edits needs."""
        return self

    @final
    def take(self, edits: Sequence[int]) -> Patch:
        """A patch of these edits alone, its tensors copied."""
        index = torch.tensor(edits, device=self.seeds.device)
        return self.rebuilt({name: t.index_select(0, index) for name, t in self.tensors().items()}).trimmed()

    @final
    def finished(self, edits: Sequence[int]) -> Patch:
        """As :meth:`take`, settled, without what only training needs (the buffers that are not persistent), and no
        longer to be trained: gradients that pass through an edited model are the model's alone."""
        taken = self.take(edits)
        with torch.no_grad():
            taken.settle()
        lasting = taken.lasting()
        return (
            taken.rebuilt({n: t if n in lasting else t.new_zeros(len(t), 0) for n, t in taken.tensors().items()})
            .requires_grad_(False)
            .eval()
        )

    @final
    @staticmethod
    def concatenated(patches: Sequence[Patch]) -> Patch:
        """One patch with the edits of all, in order; where they differ in size, the smaller are padded with zeros."""
        parts = [patch.tensors() for patch in patches]
        return patches[0].rebuilt({name: _stacked([part[name] for part in parts]) for name in parts[0]})

    @final
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {name: t.detach() for name, t in (*self.named_parameters(), *self.named_buffers())}

    @final
    def lasting(self) -> dict[str, Tensor]:
        """The tensors that finished edits consist of, by name; one that several branches share is there once."""
        names = self.state_dict().keys()
        return {name: t for name, t in self.tensors().items() if name in names}

    @final
    def rebuilt(self, tensors: Mapping[str, Tensor]) -> Patch:
        """A patch like this one with these tensors; this one's own are not copied."""
        # deepcopy asks its memo, by identity, before it copies anything: where the memo already holds a "copy" of each
        # tensor, the structure around them is copied and the tensors are exchanged. Nothing else keeps modules that
        # share a parameter sharing it.
        memo: dict[int, object] = {id(b): tensors[name] for name, b in self.named_buffers()}
        memo |= {id(p): nn.Parameter(tensors[name], p.requires_grad) for name, p in self.named_parameters()}
        return copy.deepcopy(self, memo)


def nonzero_share(tensors: Sequence[Tensor]) -> float:
    """Share of the numbers of some tensors that are not zero, 0 to 1; 1 where there are none."""
    total = sum(t.numel() for t in tensors)
    return sum(int(t.count_nonzero()) for t in tensors) / total if total else 1.0


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    shape = [max(lengths) for lengths in zip(*(t.shape[1:] for t in tensors), strict=True)]
    return torch.cat([fitted(t, shape) for t in tensors])


class WeightPatch(Patch):
    """A patch that is a change of weights, so that an edit can be merged into the model."""

    @abstractmethod
    def delta_weights(self, edit: int) -> dict[str, Tensor]:
        """Parameter name -> what the edit adds to it: (O, I) for the weight of a linear map, whatever its layout."""

    @final
    @torch.no_grad()
    def merge(self, model: PreTrainedModel, edit: int) -> None:
        """Add an edit to the model's weights, in place. The sums are rounded to the model's dtype once."""
        for name, delta in self.delta_weights(edit).items():
            module, _, leaf = name.rpartition(".")
            turn = leaf == "weight" and transposed(model.get_submodule(module))
            model.get_parameter(name).add_(delta.T if turn else delta)
