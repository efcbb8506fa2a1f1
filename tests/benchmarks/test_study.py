"""The RoseLoRA study: its controls are what they claim, its numbers the library's, and it goes on where it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import methods
import pytest
import tiny
import torch

from benchmarks import roselora_study as study
from loredit.evaluation.metrics import METRICS, compare, summarise
from loredit.evaluation.scoring import evaluate


@pytest.fixture
def pair(tokenizer, facts):
    """Edits by LoRA and by RoseLoRA of the same facts and seed."""
    model = tiny.model("llama")
    lora = methods.editor("lora", model, tokenizer, dropout=0.3, steps=12)
    return lora.edit_each(facts[:3]), methods.editor("roselora", model, tokenizer, steps=12).edit_each(facts[:3])


def change(edits, e):
    return torch.cat([delta.flatten() for delta in edits.patch.delta_weights(e).values()])


def test_the_norm_is_that_of_the_whole_change(pair):
    for edits in pair:
        expected = [change(edits, e).norm() for e in range(3)]
        torch.testing.assert_close(study.norms(edits.patch), torch.stack(expected))


def test_scaled_edits_have_the_other_edits_norm_and_their_own_direction(pair):
    lora, roselora = pair
    scaled = study.scaled(lora, study.norms(roselora.patch))
    for e in range(3):
        torch.testing.assert_close(change(scaled, e).norm(), change(roselora, e).norm())
        torch.testing.assert_close(torch.cosine_similarity(change(scaled, e), change(lora, e), 0).item(), 1.0)
        assert not torch.allclose(change(scaled, e), change(lora, e))


def test_dropout_is_on_in_the_one_arm_and_stays_off_in_the_other(pair):
    lora, _ = pair

    def log_probs(edits):
        return [
            answer.log_prob for s in evaluate(edits, fluency=False) for p in s.probes for answer in p.edited.answers
        ]

    before = log_probs(lora)
    assert log_probs(study.with_dropout(lora)) != before
    assert log_probs(lora) == before
    assert torch.equal(change(study.with_dropout(lora), 1), change(lora, 1))


def test_a_random_mask_has_the_same_share_is_fixed_and_belongs_to_its_edit(pair, tokenizer, facts, monkeypatch):
    model = tiny.model("llama")
    editor = study.RandomRoseLoRA(model, tokenizer, methods.hparams("roselora", steps=12))
    masks: list[torch.Tensor] = []
    after_step = study.RandomlyKept.after_step

    def noted(branch, steps):
        after_step(branch, steps)
        if branch.salt == 0:
            masks.append(branch.a.detach()[0] != 0)

    monkeypatch.setattr(study.RandomlyKept, "after_step", noted)
    edits, roselora = editor.edit_each(facts[:3]), pair[1]
    assert len(masks) == 12
    for before, after in pairwise(masks):
        assert (before | after).equal(before), "what is out stays out: the mask is the same, only its share falls"
    for (_, ours), (_, theirs) in zip(edits.patch.items(), roselora.patch.items(), strict=True):
        assert ours.a.count_nonzero(-1).equal(theirs.a.count_nonzero(-1))
        assert ours.b.count_nonzero(-2).equal(theirs.b.count_nonzero(-2))
        assert not (ours.a != 0).equal(theirs.a != 0)
    assert not (edits.patch.branches[0].a[0] != 0).equal(edits.patch.branches[0].a[1] != 0)
    torch.testing.assert_close(change(editor.edit_each(facts[1:2]), 0), change(edits, 1), rtol=0, atol=1e-9)


def runs(edits, seed=0):
    scores = evaluate(edits, fluency=False)
    return {(s.case_id, seed): study.Run(seed=seed, norm=1.0, scores=s) for s in scores}


def test_with_one_seed_the_numbers_are_the_librarys(pair):
    lora, roselora = map(runs, pair)
    scores = [[run.scores for run in each.values()] for each in (lora, roselora)]
    assert study.summary(lora) == summarise(scores[0])
    expected = compare(*scores).metrics
    assert expected
    for metric in METRICS:
        assert study.difference(lora, roselora, metric) == expected.get(metric.name)


def test_more_seeds_of_a_fact_are_no_more_facts(pair):
    lora, roselora = map(runs, pair)
    again = {(case, 1): run for (case, _), run in lora.items()}
    once, twice = (study.summary(each).metrics for each in (lora, lora | again))
    for name, metric in once.items():
        assert twice[name].edited.facts == metric.edited.facts
        assert (twice[name].edited.low, twice[name].edited.high) == (metric.edited.low, metric.edited.high)
    locality = next(metric for metric in METRICS if metric.name == "locality")
    # A second seed that only one arm has pairs with nothing.
    assert study.difference(lora | again, roselora, locality) == study.difference(lora, roselora, locality)


@pytest.fixture
def run(tmp_path, tokenizer, facts, monkeypatch):
    """The command on a tiny model, in a folder of its own."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    records = [
        {
            "case_id": fact.case_id,
            "prompt": fact.prompt,
            "target_new": fact.target_new,
            "rephrase_prompt": list(fact.rephrase_prompts),
            "locality": {
                group: [{"prompt": p.prompt, "ground_truth": list(p.answers)} for p in probes]
                for group, probes in fact.locality.items()
            },
        }
        for fact in facts[:2]
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    for name in ("PAGE", "FIGURE", "RESULTS"):
        monkeypatch.setattr(study, name, tmp_path / getattr(study, name).name)
    monkeypatch.setattr(study, "AT_ONCE", 1)
    study.PAGE.write_text("Before.\n<!-- numbers -->\n<!-- end of numbers -->\nAfter.\n")
    monkeypatch.chdir(tmp_path)
    return lambda *more: study.main(["--data", "facts.json", "--model", str(tmp_path / "tiny"), "--seeds", "0", *more])


def files(folder: Path) -> dict[str, str]:
    """What is in the folder of the runs, but for how long it took."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.jsonl"))}


def test_a_study_goes_on_where_it_was_and_says_what_its_numbers_rest_on(run, tmp_path):
    assert run("--minutes", "0") == study.UNFINISHED
    assert run("--output", "whole") == 0
    page, whole = study.PAGE.read_text(), files(tmp_path / "whole")
    assert page.startswith("Before.\n")
    assert page.endswith("After.\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[0:1] == "|"]
    assert [row[0] for row in rows if row[-1] == "2"][: len(study.ARMS)] == [arm.label for arm in study.ARMS.values()]
    assert study.FIGURE.read_bytes().startswith(b"\x89PNG")
    assert len(whole) == 2 * len(study.ARMS)

    # A block that was lost between arms whose edits depend on each other is the same again.
    (tmp_path / "whole/lora-scaled/seed-0-cases-0000-0001.jsonl").unlink()
    assert run("--output", "whole") == 0
    assert files(tmp_path / "whole") == whole

    study.PAGE.write_text("<!-- numbers --><!-- end of numbers -->")
    assert run("--render") == 0
    assert study.PAGE.read_text() in page

    assert run("--output", "parts", "--shard", "1/2") == 0
    mine = {f"{arm}/seed-0-cases-0001-0002.jsonl" for arm in study.ARMS}
    assert files(tmp_path / "parts") == {name: text for name, text in whole.items() if name in mine}

    with pytest.raises(SystemExit, match=r"other settings \(fluency\)"):
        run("--output", "whole", "--fluency")
