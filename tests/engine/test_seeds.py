"""Random numbers that belong to an edit, whatever is drawn beside it."""

from __future__ import annotations

import itertools

import pytest
import torch

from loredit.engine.seeds import PerEdit, dropout, mixed, seed_of


def lowbias32(x: int) -> int:
    """The hash as its author writes it, on Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x


def test_the_hash_is_lowbias32():
    values = [0, 1, 2, 77, 0x7FFFFFFF, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF]
    signed = torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32)
    assert [v & 0xFFFFFFFF for v in mixed(signed).tolist()] == [*map(lowbias32, values)]


def test_dropout_keeps_its_share_scaled_and_without_pattern():
    x, keys = torch.ones(8, 100, 100), mixed(torch.arange(8, dtype=torch.int32))
    dropped = dropout(x, 0.1, keys)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9])
    # Of 80,000 numbers the share deviates by 0.001; rows, tokens and features by 0.003 to 0.011; five times that.
    assert (dropped == 0).double().mean().item() == pytest.approx(0.1, abs=0.005)
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert (dropped == 0).double().mean(axes).sub(0.1).abs().max() < 0.055
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(dropped, 2))


def test_a_dropout_mask_does_not_depend_on_company_or_padding():
    x, keys = torch.ones(3, 9, 16), torch.tensor([3, 4, 5], dtype=torch.int32)
    together = dropout(x, 0.5, keys)
    for r in range(3):
        assert torch.equal(dropout(x[r : r + 1], 0.5, keys[r : r + 1])[0], together[r])
        assert torch.equal(dropout(x[r : r + 1, :5], 0.5, keys[r : r + 1])[0], together[r, :5])


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_initial_values_come_from_the_edits_own_seed(draw):
    together = getattr(PerEdit([5, 6, 7]), draw)((40, 50), 0.5)
    for e, seed in enumerate([5, 6, 7]):
        assert torch.equal(getattr(PerEdit([seed]), draw)((40, 50), 0.5)[0], together[e])
    assert not torch.equal(together[0], together[1])
    spread = 0.5 if draw == "normal" else 0.5 / 3**0.5
    assert together.std().item() == pytest.approx(spread, rel=0.05)
    assert draw == "normal" or together.abs().max() <= 0.5


def test_seeds_tell_their_parts_apart_and_fit_a_generator():
    seeds = [seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a"), seed_of(0, "a", "b"), seed_of("0a"), seed_of(0, "ab")]
    assert len({*seeds}) == 6
    assert seed_of(0, "a") == seeds[0]
    assert all(0 <= seed < 1 << 63 for seed in seeds)
