"""Many edits under one loss."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from loredit.evaluation.tuning.side_by_side import losses


def test_each_edits_loss_is_torchs_own_mean():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(4, (5, 3))
    weights = torch.rand(3, 4, dtype=torch.float64)
    for e in range(3):
        plain, weighted = (losses(logits, labels, w)[e] for w in (None, weights))
        assert torch.isclose(plain, F.cross_entropy(logits[:, e], labels[:, e]))
        assert torch.isclose(weighted, F.cross_entropy(logits[:, e], labels[:, e], weight=weights[e]))
    values = torch.rand(5, 3)
    assert torch.allclose(losses(logits[..., :1], values, None), (logits[..., 0] - values).square().mean(0))
