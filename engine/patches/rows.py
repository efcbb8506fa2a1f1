"""Which edit each row of a batch belongs to, and the per-edit linear maps that follow from it.

Shapes: E edits, R rows of a batch, T tokens, I/O a map's input/output width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from ..seeds import dropout, mixed

# A per-edit matrix larger than this (numbers) is not copied once per row; its rows are multiplied edit by edit.
_COPY_LIMIT = 1 << 16


class Rows:
    """Row r of a batch is computed with edit ``edits[r]``; -1 leaves the row unedited.

    Where every edit has the same number of neighbouring rows (training, generation), the rows of an edit are folded
    into one matrix and no parameter is copied. Otherwise parameters are gathered once per row, for as long
    as this object lives, which is one forward pass in training and one whole generation in evaluation.

    ``marks``: row and position of tokens of interest (:class:`~..model.encoding.Batch`), for patches that need them.
    ``within``: which of its edit's rows each row is, where they are not the edit's first.
    """

    def __init__(
        self,
        edits: Sequence[int],
        n_edits: int,
        device: torch.device | str,
        marks: tuple[Tensor, Tensor] | None = None,
        within: Sequence[int] | None = None,
    ) -> None:
        self.edits, self.marks, self._within = list(edits), marks, within
        if any(not -1 <= e < n_edits for e in self.edits):
            raise IndexError(f"rows name edits from -1 to {n_edits - 1}, got {min(self.edits)} to {max(self.edits)}")
        each, rest = divmod(len(self.edits), n_edits)
        self.folded = not rest and self.edits == [e for e in range(n_edits) for _ in range(each)]
        self.each = each
        self.keys: Tensor | None = None  # (R,) int32, set while training: what each row's dropout masks derive from
        self.dropped = False  # whether dropout was on in what they were computed with
        self.device = device
        self._index: Tensor | None = None
        self._taken: dict[tuple[int, torch.dtype, bool], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def any_unedited(self) -> bool:
        return -1 in self.edits

    @property
    def edited(self) -> Tensor:
        """(R, 1, 1), true where the row has an edit."""
        return torch.tensor([e >= 0 for e in self.edits], device=self.device).view(-1, 1, 1)

    @property
    def index(self) -> Tensor:
        """(R,), the edit of each row; an unedited row borrows edit 0, whose result is discarded."""
        if self._index is None:
            self._index = torch.tensor([max(e, 0) for e in self.edits], device=self.device)
        return self._index

    @property
    def within(self) -> Tensor:
        """(R,), which of its edit's rows each row is: 0, 1, ..."""
        counts: dict[int, count[int]] = defaultdict(count)
        return torch.tensor(self._within or [next(counts[e]) for e in self.edits], device=self.device)

    def dropout(self, x: Tensor, p: float, salt: int) -> Tensor:
        """(R, T, I) with the share ``p`` of its numbers dropped while training; ``salt`` tells sites apart."""
        if self.keys is None or not p:
            return x
        self.dropped = True
        return dropout(x, p, mixed(self.keys + salt))

    def per_row(self, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(E, ...) -> (R, ...): each row's own copy of a parameter."""
        if self.folded and self.each == 1:
            return self._take(parameter, dtype or parameter.dtype, gather=False)
        return self._take(parameter, dtype or parameter.dtype, gather=True)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(R, T, I), (E, O, I) -> (R, T, O): each row times its own edit's matrix, in ``x``'s dtype."""
        if self.folded:
            w = self._take(weight, x.dtype, gather=False)
            y = torch.bmm(x.reshape(len(w), self.each * x.shape[-2], x.shape[-1]), w.mT)
            return y.view(*x.shape[:-1], w.shape[1])
        if weight[0].numel() <= _COPY_LIMIT:
            return torch.bmm(x, self._take(weight, x.dtype, gather=True).mT)
        return self._edit_by_edit(x, self._take(weight, x.dtype, gather=False))

    def _edit_by_edit(self, x: Tensor, weight: Tensor) -> Tensor:
        groups: dict[int, list[int]] = {}
        for row, edit in enumerate(self.edits):
            groups.setdefault(max(edit, 0), []).append(row)
        order = torch.tensor([row for rows in groups.values() for row in rows], device=x.device)
        parts = x[order].split([len(rows) for rows in groups.values()])
        y = torch.cat([part @ weight[edit].T for edit, part in zip(groups, parts, strict=True)])
        return y[order.argsort()]

    def _take(self, parameter: Tensor, dtype: torch.dtype, *, gather: bool) -> Tensor:
        key = (id(parameter), dtype, gather)
        if key not in self._taken:
            cast = parameter.to(dtype)
            # With the parameter itself: while it lives, no other tensor can have its id.
            self._taken[key] = parameter, cast.index_select(0, self.index) if gather else cast
        return self._taken[key][1]
