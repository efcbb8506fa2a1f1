"""AdaLoRA against PEFT's, step by step, and against the paper's rule in slow loops."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import methods
import pytest
import tiny
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit.data import Fact
from loredit.editors import Edits
from loredit.editors.adalora import AdaLoRAHparams, AdaLoRAPatch, _smallest
from loredit.engine.model.passes import frozen
from loredit.engine.training.loop import Work

# PEFT asks the model for this property, which transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def peft_model(model: PreTrainedModel, start: AdaLoRAPatch, h: AdaLoRAHparams) -> PeftModel:
    """PEFT's AdaLoRA on a copy of the model, from the same initial values."""
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",  # or its forward, and with it the penalty, is passed by
        init_r=h.init_r,
        target_r=h.target_r,
        lora_alpha=h.alpha,
        target_modules=[site.name for site in start.sites],
        tinit=h.tinit,
        tfinal=h.tfinal,
        deltaT=h.deltaT,
        beta1=h.beta1,
        beta2=h.beta2,
        orth_reg_weight=h.orth_reg_weight,
        total_step=h.steps,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    theirs = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for site, branch in start.items():
            layer = theirs.base_model.model.get_submodule(site.name)
            layer.lora_A["default"].copy_(branch.q[0])
            layer.lora_B["default"].copy_(branch.p[0])
            assert not layer.lora_E["default"].any()
    return theirs


def our_steps(editor: Any, patch: AdaLoRAPatch, fact: Fact) -> Iterator[tuple[float, AdaLoRAPatch]]:
    """The loss before each step, and the patch after it."""
    with frozen(editor.model):
        work = Work(editor, patch, [editor.lesson([fact])])
        for _ in range(editor.hparams.steps):
            loss, _ = work.losses()
            work.step(loss.sum())
            yield loss.item(), work.patch


SCHEDULES = {
    "every step": {"tinit": 2, "tfinal": 5},
    "every third step": {"tinit": 1, "tfinal": 4, "deltaT": 3},
    "to the end": {"tfinal": 0, "beta1": 0.5, "beta2": 0.9, "orth_reg_weight": 0.5},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parameters_and_ranks_follow_peft_step_by_step(family, schedule, tokenizer, facts):
    model, fact = tiny.model(family, torch.float32), facts[2]
    editor = methods.editor("adalora", model, tokenizer, steps=14, lr=2e-2, layers="all", **SCHEDULES[schedule])
    h, patch = editor.hparams, editor.fresh([5])
    theirs = peft_model(model, patch, h)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=h.lr)
    ids, n = tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt)
    labels = torch.tensor([[-100] * n + ids[n:]])
    patterns = set()
    for step, (loss, ours) in enumerate(our_steps(editor, patch, fact), 1):
        their_loss = theirs(input_ids=torch.tensor([ids]), labels=labels).loss
        their_loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        # 1e-5: the same float32 sums in another order.
        assert loss == pytest.approx(their_loss.item(), rel=0, abs=1e-5)
        pattern = theirs.peft_config["default"].rank_pattern
        for i, (site, branch) in enumerate(ours.items()):
            layer = theirs.base_model.model.get_submodule(site.name)
            pairs = (
                (branch.p[0], layer.lora_B["default"]),
                (branch.q[0], layer.lora_A["default"]),
                (branch.lam[0], layer.lora_E["default"][:, 0]),
            )
            for own, their in pairs:
                torch.testing.assert_close(own, their, rtol=0, atol=1e-5)
            if pattern is not None:
                assert ours.kept[0, i].tolist() == pattern[f"{site.name}.lora_E.default"]
        patterns.add(str(ours.kept.tolist()))
    assert len(patterns) > 2, "the ranks are to change on the way"
    ranks = [*ours.report(0)["ranks"].values()]
    assert sum(ranks) == 2 * len(ranks)
    assert min(ranks) < max(ranks)


def slow_choice(scores: list[list[float]], b: int) -> list[list[bool]]:
    """The b largest of all sites' scores together."""
    threshold = sorted((s for site in scores for s in site), reverse=True)[:b]
    return [[s >= threshold[-1] for s in site] if b else [False] * len(site) for site in scores]


def test_the_budget_is_chosen_among_all_sites_of_each_edit_alone():
    torch.manual_seed(0)
    scores = torch.rand(5, 3, 4)
    budgets = [12, 7, 1, 0, 11]
    kept = scores.flatten(1) > _smallest(scores.flatten(1), torch.tensor([12 - b for b in budgets]))
    for e, b in enumerate(budgets):
        assert kept[e].view(3, 4).tolist() == slow_choice(scores[e].tolist(), b)


def test_the_budget_falls_by_the_cube_of_what_is_left():
    h = methods.hparams("adalora", steps=30, init_r=6, target_r=2, tinit=5, tfinal=10, deltaT=4)
    # 5 sites: from 30 triplets to 10; chosen at the steps from 6 to 20 that 4 divides, and at step 20 in any case.
    expected = {s: int(10 + 20 * (1 - (s - 5) / 15) ** 3) for s in (8, 12, 16)} | {20: 10}
    assert {s: h.budget(s, 5) for s in range(1, 31) if h.budget(s, 5) is not None} == expected
    late = h.model_copy(update={"tfinal": 9})
    assert late.budget(21, 5) == 10  # not divided by 4
    assert late.budget(22, 5) is None


def trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Any, **changes: Any) -> Edits:
    return methods.editor("adalora", model, tokenizer, **changes).edit_each(facts)


def test_side_by_side_edits_have_ranks_of_their_own(model, tokenizer, facts):
    edits = trained(model, tokenizer, facts)
    reports = [edits.patch.report(e) for e in range(len(facts))]
    assert json.loads(json.dumps(reports)) == reports
    assert len({str(report) for report in reports}) > 1
    for e, report in enumerate(reports):
        assert sum(report["ranks"].values()) == 2 * len(edits.patch.sites)
        assert list(report["ranks"].values()) == [int(b.lam[e].count_nonzero()) for _, b in edits.patch.items()]


def test_numbers_are_counted_by_the_formula(model, tokenizer, facts):
    edits = trained(model, tokenizer, facts[:2])
    widths = [site.inputs + site.outputs + 1 for site in edits.patch.sites]
    assert edits.num_trainable_parameters() == 4 * sum(widths)
    ranks = edits.patch.report(1)["ranks"].values()
    left = sum(r * width for r, width in zip(ranks, widths, strict=True))
    assert edits.nonzero_share(1) == pytest.approx(left / (4 * sum(widths)), rel=1e-12)


def test_the_change_is_p_lambda_q_over_the_first_rank(model, tokenizer, facts):
    edits = trained(model, tokenizer, facts[:2])
    site, branch = next(edits.patch.items())
    slow = sum(branch.lam[1, k] * torch.outer(branch.p[1, :, k], branch.q[1, k]) for k in range(4))
    torch.testing.assert_close(edits.patch.delta_weights(1)[f"{site.name}.weight"], 16 / (4 + 1e-5) * slow)


def test_the_penalty_is_the_mean_distance_from_orthogonality(model, tokenizer):
    patch = methods.editor("adalora", model, tokenizer, orth_reg_weight=0.3).fresh([1, 2])
    for e in range(2):
        grams: list[Tensor] = []
        for branch in patch.branches:
            grams += [branch.p[e].T @ branch.p[e], branch.q[e] @ branch.q[e].T]
        slow = sum((gram - torch.eye(4)).square().sum().sqrt() for gram in grams) / len(grams)
        torch.testing.assert_close(patch.penalty()[e], 0.3 * slow)


def test_an_edit_stops_early_only_when_the_ranks_stay(model, tokenizer, facts):
    edits = trained(model, tokenizer, facts, steps=20, tinit=2, tfinal=12, stop_at=1e-6)
    assert [outcome.steps for outcome in edits.outcomes] == [8] * len(facts)
    assert edits.patch.settled.all()


def test_the_last_choice_looks_at_the_steps_before_it_only(model, tokenizer, facts):
    editor = methods.editor("adalora", model, tokenizer, steps=6, tinit=1, tfinal=2)
    before: dict[str, Tensor] = {}
    for step, (_, patch) in enumerate(our_steps(editor, editor.fresh([3]), facts[0]), 1):
        now = {name: t.clone() for name, t in patch.named_buffers() if name.endswith("importance")}
        changed = [not torch.equal(now[name], before[name]) for name in before]
        assert not before or (all(changed) if step < 4 else not any(changed))
        before = now


def test_later_facts_of_one_patch_keep_the_ranks_of_the_first(model, tokenizer, facts):
    first, second = methods.editor("adalora", model, tokenizer).edit_stream(facts[:2])
    assert first.patch.report(0) == second.patch.report(0)
    for (_, before), (_, after) in zip(first.patch.items(), second.patch.items(), strict=True):
        assert torch.equal(before.lam == 0, after.lam == 0)
        assert not before.lam.any() or not torch.equal(before.lam, after.lam)


def test_with_one_rank_throughout_all_triplets_stay(model, tokenizer, facts):
    edits = trained(model, tokenizer, facts[:1], init_r=3, target_r=3, tinit=0, tfinal=0)
    assert set(edits.patch.report(0)["ranks"].values()) == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_r": 5}, r"target_r \(5\) is more than init_r \(4\)"),
        ({"tinit": 4, "tfinal": 4}, r"steps \(8\) less tfinal \(4\) is 4; it must be more than tinit \(4\)"),
        ({"steps": 1, "target_r": 2}, "no step is left to choose triplets"),
    ],
)
def test_schedules_that_cannot_be_kept_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        methods.hparams("adalora", **changes)
