r"""Fine-tuning of few weight matrices, the baseline of Meng et al. (ROME, 2022, https://arxiv.org/abs/2202.05262).

.. math::  W + \Delta W, \qquad \|\Delta W\|_\infty \le \epsilon

With ``norm_constraint`` epsilon this is **FT-L**: after each step every weight is brought back to within epsilon of the
unedited model's (in sequential editing too, where EasyEdit starts the bound anew with each fact). Without it, it is
**FT-M**. The usual site is one MLP down-projection.

Both are trained on the target's tokens, each predicted from those before it, as EasyEdit's FT-M is (``target_new``).
EasyEdit's and ROME's FT-L asks for all target tokens at once at the prompt's last position (``prompt_last``), a weaker
objective for answers of several tokens; so FT-L's numbers here are not comparable to theirs. Both also skip a step
whose loss is below 0.01; here ``stop_at`` ends an edit.

Trained numbers of an edit: I O at each site, so an edit takes much memory: 4 I O bytes once finished (3.5 MB for a
down-projection of SmolLM2-135M, 9.4 MB for GPT-2, 41 MB for GPT-2 XL), about seven times that in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..engine.model.sites import sites
from ..engine.patches.branches import WeightBranch, WeightSitePatch
from ..engine.patches.rows import Rows
from ..hparams.finetune import FineTuneHparams
from .base import TrainedEditor


class Dense(WeightBranch):
    """(W + change) x."""

    def __init__(self, change: Tensor, bound: float | None) -> None:
        super().__init__()
        self.change, self.bound = nn.Parameter(change), bound  # (E, O, I)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return y + rows.linear(x, self.change)

    def after_step(self, steps: Tensor) -> None:
        if self.bound is not None:
            self.change.clamp_(-self.bound, self.bound)

    def turn(self, turned: Callable[[Tensor], Tensor]) -> None:
        self.change = nn.Parameter(turned(self.change))

    def delta(self, edit: int) -> Tensor:
        return self.change[edit]


class FineTune(TrainedEditor):
    """Whole weight matrices, a copy for each edit."""

    Hparams = FineTuneHparams
    hparams: FineTuneHparams
    merges = True

    def patch(self, seeds: Sequence[int]) -> WeightSitePatch[Dense]:
        chosen = sites(self.model, self.hparams.sites, self.hparams.layers)
        zeros = [torch.zeros(len(seeds), site.outputs, site.inputs) for site in chosen]
        return WeightSitePatch(seeds, chosen, [Dense(change, self.hparams.norm_constraint) for change in zeros])
