"""The facts nearest to a prompt, by one product or with faiss's cells."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import normalize

from loredit.store import nearest
from loredit.store.nearest import Nearest

WIDTH, MANY = 16, 600


@pytest.fixture
def vectors():
    draw = torch.Generator().manual_seed(0)
    return normalize(torch.randn(MANY, WIDTH, generator=draw), dim=1)


def slow(vectors, wanted, n):
    """The largest cosines, one after another."""
    out = []
    for one in wanted:
        cosines = [float(one @ other) for other in vectors]
        out.append(sorted(range(len(cosines)), key=lambda i: -cosines[i])[:n])
    return out


def parts_of(vectors, *sizes):
    found = Nearest(WIDTH)
    for part in vectors.split([*sizes, len(vectors) - sum(sizes)]):
        found.add(part)
    return found


def test_all_are_looked_at_one_by_one(vectors):
    wanted = vectors[:5] + 0.1
    assert parts_of(vectors, 100, 1)(wanted, 4).tolist() == slow(vectors, wanted, 4)
    assert parts_of(vectors[:3])(wanted, 8).shape == (5, 3)


def test_beyond_a_number_cells_are_searched(vectors, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "EXACT", 100)
    monkeypatch.setattr(nearest, "_PROBED", 1)  # all cells: nothing can be missed
    wanted = vectors[:5] + 0.1
    found = parts_of(vectors[:150], 50)
    assert found._cells is None
    assert found(wanted, 4).tolist() == slow(vectors[:150], wanted, 4)
    made = found._cells
    found.add(vectors[150:250])  # taken up, and not made anew
    assert found(wanted, 4).tolist() == slow(vectors[:250], wanted, 4)
    assert found._cells is made
    found.add(vectors[250:])
    assert found(wanted, 4).tolist() == slow(vectors, wanted, 4)
    assert found._cells is not made


def test_a_vector_that_is_there_is_found_in_its_cell(vectors, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "EXACT", 100)
    found = parts_of(vectors)
    assert found(vectors, 1).flatten().tolist() == [*range(MANY)]


def test_without_faiss_all_are_looked_at(vectors, monkeypatch):
    monkeypatch.setattr(nearest, "EXACT", 100)
    monkeypatch.setattr(nearest, "find_spec", lambda name: None)
    found = parts_of(vectors)
    assert found(vectors[:3], 2).tolist() == slow(vectors, vectors[:3], 2)
    assert found._cells is None


@pytest.mark.parametrize(("n", "k"), [*product((1, 2), (1, 3))])
def test_no_more_are_found_than_there_are(vectors, n, k):
    assert parts_of(vectors[:n])(vectors[:2], k).shape == (2, min(n, k))
