"""RoseLoRA against its paper: Adam, sensitivities and pruning as a slow loop with lists and sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import methods
import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit.data import Fact
from loredit.editors.roselora import SparseLowRank, _largest
from loredit.engine.patches.branches import WeightSitePatch
from loredit.evaluation.scoring import evaluate


def tau_at(t: int, h: Any) -> float:
    """The paper's cubic schedule."""
    t_i, t_f = round(h.t_i * h.steps), round(h.t_f * h.steps)
    if t <= t_i and t < t_f:
        return 1.0
    if t >= t_f:
        return h.tau
    return h.tau + (1 - h.tau) * (1 - (t - t_i) / (t_f - t_i)) ** 3


def pruned(weights: list[float], scores: list[float], share: float) -> list[float]:
    """The ceil(share n) weights of the largest scores, the first of equal ones; the others are zero."""
    keep = math.ceil(round(share * len(weights), 9))
    best = sorted(range(len(weights)), key=lambda i: (-scores[i], i))[:keep]
    return [w if i in best else 0.0 for i, w in enumerate(weights)]


def slow_training(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: WeightSitePatch[Any], fact: Fact, h: Any
) -> list[tuple[Tensor, Tensor]]:
    """A and B of each site after training by the paper's rule, W + (alpha / r) B A put in the weight's own place."""
    names = [f"{site.name}.weight" for site, _ in start.items()]
    factors = [[branch.a[0].detach().clone(), branch.b[0].detach().clone()] for _, branch in start.items()]
    flat = [w.requires_grad_() for pair in factors for w in pair]
    smoothed = [torch.zeros_like(w) for w in flat]
    optimizer = torch.optim.Adam(flat, lr=h.lr)
    ids, n = tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt)

    def sense() -> None:
        for i, w in enumerate(flat):
            smoothed[i] = h.beta * smoothed[i] + (1 - h.beta) * (w.detach() * w.grad).abs()

    for t in range(1, h.steps + 1):
        weights = {}
        for name, (a, b) in zip(names, factors, strict=True):
            delta, weight = h.alpha / h.rank * b @ a, model.get_parameter(name)
            weights[name] = weight + (delta.T if model.config.model_type == "gpt2" else delta)
        logits = functional_call(model, weights, (torch.tensor([ids]),)).logits[0, n - 1 : -1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(ids[n:])).backward()
        if h.sensitivity == "before_step":
            sense()
        optimizer.step()
        if h.sensitivity == "after_step":
            sense()
        share = tau_at(t, h)
        for i, w in enumerate(flat):
            is_b = i % 2 == 1
            lines, scores = (x.detach().T if is_b else x.detach() for x in (w, smoothed[i]))
            kept = torch.tensor(
                [pruned(line, s, share) for line, s in zip(lines.tolist(), scores.tolist(), strict=True)]
            )
            if share < 1 and h.max_abs is not None:
                kept = kept.clamp(-h.max_abs, h.max_abs)
            w.data.copy_(kept.T if is_b else kept)
    return [(a.detach(), b.detach()) for a, b in factors]


@pytest.mark.parametrize(
    "changes",
    [{}, {"sensitivity": "after_step"}, {"max_abs": 0.02}, {"t_i": 0.0, "beta": 0.0}, {"t_i": 0.5, "t_f": 0.5}],
)
def test_an_edit_is_what_the_papers_rule_makes(changes, model, tokenizer, facts):
    editor = methods.editor("roselora", model, tokenizer, **{"steps": 10, "t_i": 0.2, "t_f": 0.7} | changes)
    start = editor.fresh([editor.seed_for([facts[1]])])
    edits = editor.edit_each(facts[:2])
    torch.set_default_dtype(torch.float64)
    try:
        slowly = slow_training(model, tokenizer, start, facts[1], editor.hparams)
    finally:
        torch.set_default_dtype(torch.float32)
    for (_, branch), (a, b) in zip(edits.patch.items(), slowly, strict=True):
        torch.testing.assert_close((branch.a[1], branch.b[1]), (a, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tau", [0.3, 0.01, 1.0])
def test_rows_of_a_and_columns_of_b_keep_exactly_their_share_after_every_step(
    tau, model, tokenizer, facts, monkeypatch
):
    editor = methods.editor("roselora", model, tokenizer, tau=tau, t_i=0.25, t_f=0.75, dropout=0.2)
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
    after_step = SparseLowRank.after_step

    def noted(branch: SparseLowRank, steps: Tensor) -> None:
        after_step(branch, steps)
        seen.setdefault(int(steps[0]), []).append((branch.a.count_nonzero(-1), branch.b.count_nonzero(-2)))

    monkeypatch.setattr(SparseLowRank, "after_step", noted)
    patch = editor.edit_each(facts[:3], edits_at_once=3).patch
    assert [*seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    for step, counts in seen.items():
        share = 1.0 if step <= 2 else tau if step >= 6 else tau + (1 - tau) * (1 - (step - 2) / 4) ** 3
        for site, (a, b) in zip(patch.sites, counts, strict=True):
            assert {*a.flatten().tolist()} == {math.ceil(share * site.inputs)}
            assert {*b.flatten().tolist()} == {math.ceil(share * site.outputs)}


def test_the_schedule_is_exact_at_its_ends():
    h = methods.hparams("roselora", steps=30, tau=0.1, t_i=0.1, t_f=0.8)
    assert [h.share(step) for step in (1, 2, 3)] == [1.0] * 3
    assert h.share(4) == 0.1 + 0.9 * (20 / 21) ** 3
    assert h.share(23) == 0.1 + 0.9 * (1 / 21) ** 3
    assert [h.share(step) for step in (24, 25, 30)] == [0.1] * 3
    assert sorted(map(h.share, range(31)), reverse=True) == [*map(h.share, range(31))]
    at_once = methods.hparams("roselora", steps=10, t_i=0.5, t_f=0.5)
    assert [at_once.share(step) for step in (4, 5)] == [1.0, at_once.tau]


def test_most_of_the_change_is_zero(model, tokenizer, facts):
    # 0.25 of every width here is a whole number, so that the share kept is tau itself.
    edits = methods.editor("roselora", model, tokenizer, rank=3, tau=0.25, layers="all").edit_each(facts[:2])
    for e in range(2):
        assert edits.nonzero_share(e) == 0.25
        for delta in edits.patch.delta_weights(e).values():
            assert (delta == 0).double().mean() >= 1 - 3 * 0.25**2
            assert delta.any()


def test_the_share_of_non_zeros_is_reported_by_module(model, tokenizer, facts):
    edits = methods.editor("roselora", model, tokenizer, rank=3, tau=0.25, layers="all").edit_each(facts[:2])
    reports = [score.report for score in evaluate(edits, fluency=False)]
    own = [edits.patch.report(e) for e in range(2)]
    assert [{key: report[key] for key in said} for report, said in zip(reports, own, strict=True)] == own
    for e, report in enumerate(reports):
        assert {*report["nonzero_share"].values()} == {0.25}
        deltas = edits.patch.delta_weights(e)
        assert [f"{name}.weight" for name in report["changed_share"]] == [*deltas]
        for share, delta in zip(report["changed_share"].values(), deltas.values(), strict=True):
            assert 0 < share == pytest.approx((delta != 0).double().mean().item(), abs=1e-5)


def of_each_line(score: Tensor, share: Sequence[float]) -> Tensor:
    """The slow form of ``_largest``."""
    ones = [1.0] * score.shape[-1]
    return torch.tensor(
        [[pruned(ones, line, s) for line in edit] for edit, s in zip(score.tolist(), share, strict=True)], dtype=bool
    )


@pytest.mark.parametrize("values", [1, 3, 1000])
def test_of_equal_sensitivities_the_first_are_kept(values):
    score = torch.randint(values, (3, 4, 100), generator=torch.Generator().manual_seed(0)).double()
    share = [0.07, 1.0, 1e-9]  # 0.07 * 100 is more than 7 in floating point
    kept = _largest(score, share)
    assert torch.equal(kept, of_each_line(score, share))
    assert [{*edit.sum(-1).tolist()} for edit in kept] == [{7}, {100}, {1}]


def test_an_edit_stops_early_only_after_the_last_pruning(model, tokenizer, facts):
    editor = methods.editor("roselora", model, tokenizer, steps=10, t_f=0.6, stop_at=1e-9)
    assert [outcome.steps for outcome in editor.edit_each(facts[:2]).outcomes] == [6, 6]


def test_sensitivities_are_not_kept(tokenizer, facts):
    model = tiny.model("gpt2")
    patch = methods.editor("roselora", model, tokenizer).edit_each(facts[:2]).patch
    assert all(branch.a_sensitivity.numel() == branch.b_sensitivity.numel() == 0 for _, branch in patch.items())


def test_hyper_parameters_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match=r"t_i \(0.9\) comes after t_f \(0.4\)"):
        methods.hparams("roselora", t_i=0.9)
