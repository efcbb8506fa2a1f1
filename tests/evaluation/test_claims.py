"""Claims: what several probes show together, against a slow loop; where their probes come from; bundles in a run.

Planted faults these tests catch: any taken for all; a claim counted whose given probes the model did not know; what is
given asked of the edited model; a probe of another group or claim counted; half a bundle edited.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import methods
import pytest
import tiny

from loredit.data import Claim, Fact, Probe
from loredit.data.facts import bundles
from loredit.evaluation import runs
from loredit.evaluation.metrics import METRICS, compare, summarise
from loredit.evaluation.report.tables import markdown
from loredit.evaluation.scores import AnswerScore, FactScores, Place, ProbeScores, Seen
from loredit.evaluation.scoring import evaluate


def seen(right: bool) -> Seen:
    answer = AnswerScore(correct=(True, right), log_prob=-1.0)
    return Seen(answers=(answer,), generated="It is Rome, I think" if right else "Romania")


def asked(group: str, claim: int, way: int | None, base: bool, edited: bool) -> ProbeScores:
    return ProbeScores(
        kind="claim",
        group=group,
        prompt="p",
        answers=("Rome",),
        base=seen(base),
        edited=seen(edited),
        same=(True, base == edited),
        place=Place(claim=claim, way=way),
    )


def fact(*probes: ProbeScores, case_id: str = "0") -> FactScores:
    return FactScores(
        case_id=case_id, prompt="p", target_new="Rome", probes=probes, steps=1, loss=0.1, nonzero_share=1.0
    )


def numbers(facts: list[FactScores], name: str) -> tuple[float, float] | None:
    found = summarise(facts).metrics.get(name)
    if found is None:
        return None
    assert found.base is not None
    return found.edited.mean, found.base.mean


@pytest.mark.parametrize("name", ["claim_g", "contains_claim_g"])
def test_any_of_several_ways_is_enough_and_each_needs_all_of_its_probes(name: str) -> None:
    any_of_three = fact(*(asked("g", 0, way, False, way == 1) for way in range(3)))
    all_of_three = fact(*(asked("g", 0, 0, False, edited) for edited in (True, True, False)))
    assert numbers([any_of_three], name) == (100, 0)
    assert numbers([all_of_three], name) == (0, 0)
    assert numbers([fact(*(asked("g", 0, 0, True, True) for _ in range(3)))], name) == (100, 100)


def test_a_claim_counts_only_where_the_unedited_model_knows_what_is_given() -> None:
    known = [asked("g", 0, None, True, False), asked("g", 0, 0, False, True)]  # forgotten by the edit: it counts still
    unknown = [asked("g", 1, None, False, True), asked("g", 1, 0, False, False)]
    assert numbers([fact(*known, *unknown)], "claim_g") == (100, 0)
    assert numbers([fact(*unknown)], "claim_g") is None


def test_a_score_is_the_loops() -> None:
    draw = random.Random(0)
    facts, slow = [], []
    for case in range(60):
        probes, values = [], []
        for claim in range(draw.randint(1, 4)):
            given = [draw.random() < 0.8 for _ in range(draw.randint(0, 2))]
            ways = [[draw.random() < 0.6 for _ in range(draw.randint(1, 3))] for _ in range(draw.randint(1, 3))]
            probes += [asked("g", claim, None, known, draw.random() < 0.5) for known in given]
            probes += [asked("g", claim, w, False, right) for w, way in enumerate(ways) for right in way]
            probes.append(asked("other", claim, 0, True, draw.random() < 0.5))
            if all(given):
                values.append(max(min(way) for way in ways))
        draw.shuffle(probes)
        facts.append(fact(*probes, case_id=str(case)))
        if values:
            slow.append(100 * fmean(values))
    assert numbers(facts, "claim_g") == (pytest.approx(fmean(slow)), 0)
    assert summarise(facts).metrics["claim_g"].edited.facts == len(slow)
    assert compare(facts, facts).metrics["claim_g"].a == pytest.approx(fmean(slow))


def test_claims_stand_in_their_family_and_change_no_other_number() -> None:
    rewrite = asked("g", 0, 0, False, True).model_copy(update={"kind": "rewrite", "group": "rewrite", "place": None})
    with_claims = summarise([fact(rewrite, asked("g_h", 0, 0, False, True))])
    without = summarise([fact(rewrite)])
    added = {name: m for name, m in with_claims.metrics.items() if name not in without.metrics}
    assert {name: (m.label, m.family) for name, m in added.items()} == {
        "claim_g_h": ("g h", "strict"),
        "contains_claim_g_h": ("g h, contained", "generation"),
    }
    assert {name: with_claims.metrics[name] for name in without.metrics} == without.metrics
    families = [m.family for m in with_claims.metrics.values()]
    assert [*dict.fromkeys(families)] == [f for f in dict.fromkeys(m.family for m in METRICS) if f in families]
    assert sum(a != b for a, b in pairwise(families)) == len({*families}) - 1
    assert "| strict | g h |" in markdown(with_claims)


def test_the_probes_of_a_claim_are_asked_where_they_stand() -> None:
    first, second, third = (Probe(prompt=p, answers=("Rome", "Roma")) for p in ("Ada is in", "Bob is in", "Eve is in"))
    of = Fact(
        case_id="0",
        prompt="Ada lives in",
        target_new="Rome",
        claims={"g": (Claim.any([first, second]), Claim(ways=((first, third),), given=(second,)))},
        locality={"open": (Probe(prompt="The sky is", answers=()),)},
    )
    edits = methods.editor("lora", tiny.model("llama"), tiny.tokenizer(), steps=2).edit_each([of])
    (scores,) = evaluate(edits, fluency=False)
    places = [(p.prompt, p.place.claim, p.place.way) for p in scores.probes if p.place]
    assert places == [
        ("Ada is in", 0, 0),
        ("Bob is in", 0, 1),
        ("Bob is in", 1, None),
        ("Ada is in", 1, 0),
        ("Eve is in", 1, 0),
    ]
    assert {p.kind for p in scores.probes if p.place} == {"claim"}
    assert FactScores.model_validate_json(scores.model_dump_json()) == scores
    # What nobody wrote an answer to is asked where answers are written, and compared.
    assert [p.kind for p in scores.probes if not p.place] == ["rewrite"]
    (written,) = evaluate(edits, measures=["generation"], fluency=False)
    assert [p.prompt for p in written.probes if p.kind == "locality"] == ["The sky is"]
    shown = summarise([written]).metrics
    assert {name for name in shown if "locality" in name} == {"generation_locality"}


def case(case_id: int, *subjects: str) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "requested_rewrite": [
            {
                "prompt": "{} was born in",
                "subject": subject,
                "question": f"Where was {subject} born?",
                "target_new": {"str": "Rome"},
                "target_true": {"str": "York"},
            }
            for subject in subjects
        ],
        "questions": ["In which country was she born?", "Where is her home?"],
        "new_answer": "Italy",
        "new_single_hops": [{"cloze": f"{subject} was born in", "answer": "Rome"} for subject in subjects],
    }


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_bundle_is_one_edit_and_counts_as_one_fact(place: Path, at_once: int) -> None:
    records = [case(1, "Ada"), case(2, "Bob", "Eve"), case(3, "Tom", "Kim"), case(4, "Max")]
    (place / "cases.json").write_text(json.dumps(records))
    options = {"data": "cases.json", "dtype": "float32", "fluency": False, "edits_at_once": at_once}
    result = runs.run("lora", "tiny.yaml", offset=1, limit=2, saves=True, output="out", **options)
    lines = [*map(FactScores.model_validate_json, (place / "out" / runs.RESULTS).read_text().splitlines())]
    assert sorted(scores.case_id for scores in lines) == ["2.0", "2.1", "3.0", "3.1"]
    assert result.summary.metrics["claim_instance"].edited.facts == 2
    assert result.summary.metrics["claim_multi_hop"].edited.probes == 4
    carried = [json.loads(path.read_text())["facts"] for path in sorted((place / "out/edits").glob("*/edits.json"))]
    assert sorted([one["case_id"] for one in edit] for edits in carried for edit in edits) == [
        ["2.0", "2.1"],
        ["3.0", "3.1"],
    ]


def test_groups_of_a_run_hold_whole_bundles() -> None:
    named = {"a": "x", "b": None, "c": "x", "d": "y", "e": "y", "f": None}
    facts = [Fact(case_id=name, prompt="p", target_new="t", bundle=of) for name, of in named.items()]
    for size in (1, 2, 3):
        groups = runs.grouped(facts, size)
        assert sorted(fact.case_id for group in groups for fact in group) == sorted(named)
        assert all(len(bundles(group)) <= size for group in groups)
        for bundle in ("ac", "de"):
            assert sum(any(fact.case_id in bundle for fact in group) for group in groups) == 1
