r"""Adapters (Houlsby et al., 2019, https://arxiv.org/abs/1902.00751): a bottleneck with a residual behind a sublayer.

.. math::
    y \leftarrow y + s \, (W_{up} \, \phi(W_{down} z + b_{down}) + b_{up}), \qquad
    W_{down} \in R^{m \times d}, \ W_{up} \in R^{d \times m}, \ m = \lfloor d / \text{reduction factor} \rfloor

y is the sublayer's output before it joins the residual stream. Placements and their defaults are AdapterHub's
(https://arxiv.org/abs/2007.07779; its names ``double_seq_bn``, ``seq_bn``, ``par_bn``):

========== =================== ======================= ================ ========== ===
placement  behind              z                       reduction factor activation s
========== =================== ======================= ================ ========== ===
houlsby    attention and MLP   y                       16               swish      1
pfeiffer   MLP                 y                       16               relu       1
parallel   MLP                 what goes into the MLP  2                relu       4
========== =================== ======================= ================ ========== ===

This is the papers' formula. In models that normalise before a sublayer, as all do here, AdapterHub's library departs
from it: its pfeiffer bottleneck reads y + r, its parallel one r, the residual stream before the MLP's layer norm.

The up-projection starts at zero (as in He et al., 2022, https://arxiv.org/abs/2110.04366, for the parallel placement;
the earlier papers start near zero), so a fresh patch changes nothing.

Trained numbers of an edit: 2 m d + d + m at each site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.model.sites import Site, SiteError, blocks, sites
from ..engine.patches.branches import Branch, SitePatch
from ..engine.patches.rows import Rows
from ..engine.seeds import PerEdit
from ..hparams.adapter import AdapterHparams, BottleneckHparams
from .base import TrainedEditor

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "swish": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


class Affine(nn.Module):
    """W x + b, one of each for each edit."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (E, O, I)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[:2]))  # (E, O)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """(R, T, I) -> (R, T, O)."""
        return rows.linear(x, self.weight) + rows.per_row(self.bias, x.dtype)[:, None]


class Bottleneck(Branch):
    """y + s up(phi(down(z))). ``down`` and ``up`` map (R, T, d) -> (R, T, m) -> (R, T, d), each row by its edit."""

    def __init__(self, down: nn.Module, up: nn.Module, h: BottleneckHparams) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.phi, self.parallel, self.scaling = _FUNCTIONS[h.non_linearity], h.placement == "parallel", h.scaling

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        z = x if self.parallel else y
        return torch.add(y, self.up(self.phi(self.down(z, rows)), rows), alpha=self.scaling)


def bottleneck_patch(
    model: nn.Module,
    h: BottleneckHparams,
    seeds: Sequence[int],
    projections: Callable[[int, int], tuple[nn.Module, nn.Module]],
) -> SitePatch[Bottleneck]:
    """Fresh bottlenecks at the sites that ``h`` names; ``projections(m, d)`` makes each one's maps down and up."""
    chosen = _sites(model, h)
    width = chosen[0].outputs
    m = max(1, int(width // h.reduction_factor))
    return SitePatch(seeds, chosen, [Bottleneck(*projections(m, width), h) for _ in chosen])


def _sites(model: nn.Module, h: BottleneckHparams) -> list[Site]:
    if h.placement != "parallel":
        return sites(model, ["mlp_down"] if h.placement == "pfeiffer" else ["attention_output", "mlp_down"], h.layers)
    # The MLP as a whole, from the input of its map up to the output of its map down.
    downs = sites(model, ["mlp_down"], h.layers)
    found = [Site(down.name.rpartition(".")[0], down.layer, "mlp", down.outputs, down.outputs) for down in downs]
    if any(model.get_submodule(site.name) is blocks(model)[site.layer] for site in found):
        raise SiteError("this model's MLPs are no modules of their own, as placement 'parallel' needs; take 'pfeiffer'")
    return found


class Adapter(TrainedEditor):
    """Bottleneck adapters, a set for each edit."""

    Hparams = AdapterHparams
    hparams: AdapterHparams

    def patch(self, seeds: Sequence[int]) -> SitePatch[Bottleneck]:
        draw = PerEdit(seeds)

        def projections(m: int, d: int) -> tuple[nn.Module, nn.Module]:
            return Affine(draw.uniform((m, d), d**-0.5)), Affine(torch.zeros(len(seeds), d, m))

        return bottleneck_patch(self.model, self.hparams, seeds, projections)
