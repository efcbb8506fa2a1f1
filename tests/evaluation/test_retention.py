"""What is left of many edits, by their age."""

from __future__ import annotations

import math

import pytest
from observed import reached

from loredit.evaluation.retention import Checkpoint


def test_ages_count_the_edits_made_since_and_each_fact_is_in_one_group():
    groups = reached(35).by_age
    assert [(group.youngest, group.oldest) for group in groups] == [(0, 0), (1, 2), (3, 9), (10, 29), (30, 34)]
    for group in groups:
        known = [(34 - age) % 3 == 0 for age in range(group.youngest, group.oldest + 1)]
        found = group.metrics["edit_success"]
        assert (found.mean, found.facts) == (pytest.approx(100 * sum(known) / len(known)), len(known))


def test_a_checkpoint_is_read_back_as_it_was_written():
    for point in (reached(1), reached(4, math.inf)):
        assert Checkpoint.model_validate_json(point.model_dump_json()) == point
