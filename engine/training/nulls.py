"""Where edits are to have no effect, whatever they learn: what sites get at the end of some texts.

As AlphaEdit (https://arxiv.org/abs/2410.02355) solves in the null space of what a model knows, so here a patch is
trained in that of a few texts which are its own: the fact's prompt about other subjects. It costs one forward pass.

Shapes: E edits, I a site's input width, k texts of an edit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..devices import Budget
from ..model.encoding import Encoded, chunks, padded
from ..model.passes import seen
from ..model.sites import Site
from ..patches.branches import Whitening
from .lessons import Lesson

_TOKENS = Budget(cpu=1024, mps=8192, accelerator=1 << 16)  # padded, of one pass
_RELATIVE = 1e-5  # a text whose input lies so near to what others span adds no direction


def null_directions(
    model: PreTrainedModel, sites: Sequence[Site], lessons: Sequence[Lesson], whitening: Whitening | None
) -> list[Tensor]:
    """(E, I, k) of each site, orthonormal columns that span what it gets at the last tokens of each lesson's ``nulls``;
    columns of zeros where there are fewer."""
    rows = [(e, k, row) for e, lesson in enumerate(lessons) for k, row in enumerate(lesson.nulls)]
    most = max((len(lesson.nulls) for lesson in lessons), default=0)
    found = [torch.zeros(len(lessons), most, site.inputs, device=model.device) for site in sites]
    rows.sort(key=lambda row: len(row[2].ids))
    for chunk in chunks(rows, [len(row.ids) for _, _, row in rows], _TOKENS.on(model.device)):
        edit, text = (torch.tensor([row[i] for row in chunk], device=model.device) for i in (0, 1))
        for total, x in zip(found, _last_inputs(model, sites, [row for _, _, row in chunk]), strict=True):
            total[edit, text] = x.to(total.dtype)
    return [_orthonormal(x if whitening is None else whitening(i, x)) for i, x in enumerate(found)]


def _last_inputs(model: PreTrainedModel, sites: Sequence[Site], rows: Sequence[Encoded]) -> list[Tensor]:
    ids, mask = padded([row.ids for row in rows], model.device)
    last = mask.sum(1) - 1
    modules = [model.get_submodule(site.name) for site in sites]
    return [x[torch.arange(len(rows), device=ids.device), last] for x in seen(model, ids, inputs=modules)]


def _orthonormal(x: Tensor) -> Tensor:
    """(E, k, I) -> (E, I, k)."""
    length = x.norm(dim=2, keepdim=True)
    q, r = torch.linalg.qr((x / length.clamp(min=1e-30)).mT)
    new = r.diagonal(dim1=1, dim2=2).abs() > _RELATIVE
    return q * new[:, None]
