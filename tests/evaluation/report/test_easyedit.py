"""Scores in the form of EasyEdit's results."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
from observed import FACTS, fact

from loredit.data import from_request
from loredit.easyedit import to_easyedit
from loredit.evaluation.metrics import summarise


def test_scores_have_the_shape_of_easyedits_results():
    entry = to_easyedit(FACTS[0])
    pre, post = entry["pre"], entry["post"]
    assert (pre["rewrite_acc"], post["rewrite_acc"]) == ([0.0], [1.0])
    assert (pre["rephrase_acc"], post["rephrase_acc"]) == ([0.0], [0.25])
    assert (pre["portability"], post["portability"]) == ({"reasoning_acc": [0.25]}, {"reasoning_acc": [0.75]})
    assert pre["locality"] == {}
    assert post["locality"] == {"Forgetfulness_acc": [0.0], "Relation_Specificity_acc": [0.5, 1.0]}
    assert pre["fluency"]["ngram_entropy"] > post["fluency"]["ngram_entropy"] == 0
    assert entry["case_id"] == "0"
    assert entry["requested_rewrite"]["locality"]["Relation_Specificity"] == {
        "prompt": ["Relation_Specificity?"] * 2,
        "ground_truth": ["x", "x"],
    }
    assert from_request(entry["requested_rewrite"]).target_new == "t"
    assert set(post["metric_meta"]) == {
        "rewrite",
        "rephrase",
        "locality.Forgetfulness",
        "locality.Relation_Specificity",
    }
    assert "rephrase_acc" not in to_easyedit(FACTS[1])["post"]
    assert "fluency" not in to_easyedit(fact("2", FACTS[0].probes))["post"]
    json.dumps(entry, allow_nan=False)


def test_a_summary_like_run_knowedits_is_ours():
    """The sums of EasyEdit's examples/run_knowedit_llama2.py, which read every list under locality and portability."""
    entries, ours = [to_easyedit(scores) for scores in FACTS], summarise(FACTS).metrics

    def overall(kind: str) -> float:
        cases = [[fmean(accuracies) * 100 for accuracies in e["post"][kind].values()] for e in entries]
        return fmean(fmean(case) for case in cases if case)

    assert fmean(e["post"]["rewrite_acc"][0] for e in entries) * 100 == ours["edit_success"].edited.mean
    assert overall("portability") == ours["portability"].edited.mean
    assert overall("locality") == ours["locality"].edited.mean
    fluency = fmean(e["post"]["fluency"]["ngram_entropy"] for e in entries) * 100
    assert fluency == pytest.approx(ours["fluency"].edited.mean)
