"""How an edit ended: a loss that is no number is none, in memory and in JSON, and earlier files still load."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import TypeAdapter

from loredit.engine.outcome import Outcome

OUTCOME = TypeAdapter(Outcome)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_is_none(loss):
    outcome = Outcome(3, loss, "why", {1: "because"}, ("a note",))
    assert outcome.loss is None
    assert outcome == Outcome(3, None, "why", {1: "because"}, ("a note",))
    written = OUTCOME.dump_json(outcome)
    assert json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["loss"] is None
    assert OUTCOME.validate_json(written) == outcome


def test_a_loss_that_earlier_releases_wrote_is_read():
    assert OUTCOME.validate_json('{"steps": 0, "loss": NaN, "error": "no", "lost": {}}') == Outcome(0, None, "no")
    assert OUTCOME.validate_json('{"steps": 2, "loss": 0.5, "error": null, "lost": {}}') == Outcome(2, 0.5)
