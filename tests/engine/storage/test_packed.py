"""Tensors of zeros in few bytes."""

from __future__ import annotations

import pytest
import torch

from loredit.engine.storage.packed import Packed, joined, packed


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (2, 5, 7), (4, 0), (0, 5), (2, 3, 16)])
def test_packing_loses_nothing(shape):
    t = torch.randn(shape) * (torch.rand(shape) < 0.2)
    p = Packed.of(t)
    assert not p.faults()
    assert torch.equal(p.dense(), t)
    some = [e for e in (2, 0, 0) if e < shape[0]]
    assert torch.equal(p.take(some).dense(), t[some])
    assert torch.equal(joined([p, Packed.of(t.flip(0))]).dense(), torch.cat([t, t.flip(0)]))


def test_not_a_number_is_packed_as_it_is():
    t = torch.tensor([[0.0, float("nan"), 0, 0, 0, 0, 0, 0, 0]])
    assert torch.equal(Packed.of(t).dense().isnan(), t.isnan())


def test_what_is_not_sparse_is_not_packed():
    t = torch.randn(2, 9)
    assert packed(t) is not None
    assert isinstance(packed(t), torch.Tensor)
    assert isinstance(packed(t * (torch.arange(9) == 3)), Packed)
    assert isinstance(packed(torch.zeros(2, 9, dtype=torch.long)), torch.Tensor)


def test_joining_pads_what_is_smaller():
    small, large = torch.eye(2)[None], torch.eye(3)[None]
    whole = joined([Packed.of(small), Packed.of(large)])
    both = whole.dense() if isinstance(whole, Packed) else whole
    assert torch.equal(both[0], torch.diag(torch.tensor([1.0, 1.0, 0.0])))
