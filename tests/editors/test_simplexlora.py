"""SimplexLoRA against its algorithm as a slow loop: dense SVDs, brute-force projections, one optimizer per factor."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
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
from loredit.editors import Patch, simplexlora
from loredit.editors.simplexlora import SimplexLoRAHparams, SimplexPatch, WeightedLowRank, project, ranks
from loredit.engine.model.passes import frozen
from loredit.engine.seeds import mixed, uniform
from loredit.engine.training.loop import Work


def nearest(v: Sequence[float], free: Sequence[bool]) -> list[float]:
    """The nearest point of the simplex, by trying every set of sites that may be left above zero."""
    n, sites = len(v), [i for i, f in enumerate(free) if f]
    best: list[float] = []
    for size in range(1, len(sites) + 1):
        for support in itertools.combinations(sites, size):
            theta = (sum(v[i] for i in support) - n) / size
            point = [v[i] - theta if i in support else 0.0 for i in range(n)]
            if min(point) >= 0 and (not best or math.dist(point, v) < math.dist(best, v)):
                best = point
    return best


def test_the_projection_is_the_nearest_point():
    torch.manual_seed(0)
    n = 6
    v = torch.cat([1 + scale * torch.randn(20, n, dtype=torch.float64) for scale in (0.1, 1, 10)])
    v = torch.cat([v, torch.tensor([[1.0] * n, [2.0] * n, [0, 0, 9, 9, 9, -9]], dtype=torch.float64)])
    free = torch.rand(v.shape) < 0.8
    free[:, 0] = True
    free[-3:] = True
    projected = project(v, free)
    for e in range(len(v)):
        # Sites that are not free are zero whatever v says of them; the distance is that of the others.
        start = [x if f else 0.0 for x, f in zip(v[e].tolist(), free[e].tolist(), strict=True)]
        assert projected[e].tolist() == pytest.approx(nearest(start, free[e].tolist()), abs=1e-12)
    assert projected[-3].tolist() == [1.0] * n
    torch.testing.assert_close(project(v[:1], free[:1])[0], projected[0], rtol=0, atol=0)


def test_the_projection_leaves_other_edits_alone_when_one_is_nan():
    v = torch.tensor([[1.0, 3.0], [math.nan, math.nan], [0.5, 0.5]])
    assert project(v, torch.ones(3, 2, dtype=torch.bool))[::2].tolist() == [[0.0, 2.0], [1.0, 1.0]]


def test_ranks_follow_the_rule():
    omega = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.3, 0.9, 0.8, 0.0], [4.0 - 1e-6, 1e-6, 0, 0], [0.2, 0.2, 1.8, 1.8]])
    assert ranks(omega, 3, "floor").tolist() == [[3, 3, 3, 3], [6, 2, 2, 0], [12, 0, 0, 0], [0, 0, 5, 5]]
    assert ranks(omega, 3, "ceil").tolist() == [[3, 3, 3, 3], [7, 3, 3, 0], [12, 0, 0, 0], [1, 1, 6, 6]]
    assert ranks(omega, 3, "largest_remainder").tolist() == [[3, 3, 3, 3], [7, 3, 2, 0], [12, 0, 0, 0], [1, 1, 5, 5]]


def test_ranks_stay_within_the_budget():
    torch.manual_seed(0)
    omega = project(1 + torch.randn(200, 7), torch.ones(200, 7, dtype=torch.bool))
    assert ranks(omega, 4, "floor").sum(1).le(28).all()
    assert ranks(omega, 4, "largest_remainder").sum(1).eq(28).all()
    assert ranks(omega, 4, "floor").tolist() == (omega.double() * 4).floor().long().tolist()


# Resizing


def branch_of(rank: Sequence[int], inputs: int = 12, outputs: int = 9) -> WeightedLowRank:
    """Random factors of these ranks, padded to the largest."""
    torch.manual_seed(len(rank))
    used = torch.arange(max(rank)) < torch.tensor(rank)[:, None]
    a = torch.randn(len(rank), max(rank), inputs, dtype=torch.float64) * used[:, :, None]
    b = torch.randn(len(rank), outputs, max(rank), dtype=torch.float64) * used[:, None]
    branch = WeightedLowRank(a, b, 1.0, 0.0, 0)
    branch.rank = torch.tensor(rank)
    return branch


def keys(n: int) -> Tensor:
    return mixed(torch.arange(n, dtype=torch.int32))


@torch.no_grad()
def test_a_resize_has_the_least_error_and_an_expansion_none():
    old, new = [4, 4, 3, 2, 5, 1, 4], [2, 7, 0, 3, 4, 1, 4]
    branch = branch_of(old)
    before, a, b = branch.b @ branch.a, branch.a.clone(), branch.b.clone()
    changed = branch.resize(torch.tensor(new), keys(7), keep=True)
    assert changed.tolist() == [o != n for o, n in zip(old, new, strict=True)]
    assert branch.rank.tolist() == new
    assert branch.a.shape == (7, 7, 12)
    assert branch.b.shape == (7, 9, 7)
    after = branch.b @ branch.a
    for e in range(7):
        tail = torch.linalg.svdvals(before[e])[new[e] :]
        assert (after[e] - before[e]).norm().item() == pytest.approx(tail.norm().item(), abs=1e-12)
        # What is added is a direction without effect; what is not used is zero.
        assert not branch.a[e, new[e] :].any()
        assert not branch.b[e, :, min(old[e], new[e]) :].any()
        assert branch.a[e, : new[e]].any(1).all()
        if new[e] >= old[e]:
            assert torch.equal(branch.a[e, : old[e]], a[e, : old[e]])
            assert torch.equal(branch.b[e, :, : old[e]], b[e, :, : old[e]])
    added = branch.a[1, 4:7]
    assert added.abs().max() <= 12**-0.5
    assert added.std() == pytest.approx(12**-0.5 / 3**0.5, rel=0.3)


@torch.no_grad()
def test_a_resize_is_the_same_in_any_company():
    old, new = [4, 4, 3, 2, 5], [2, 7, 1, 3, 0]
    together, n = branch_of(old), len(old)
    pairs = [(together.a[e : e + 1, :r], together.b[e : e + 1, :, :r]) for e, r in enumerate(old)]
    apart = [WeightedLowRank(a, b, 1.0, 0.0, 0) for a, b in pairs]
    together.resize(torch.tensor(new), keys(n), keep=True)
    for e, alone in enumerate(apart):
        alone.resize(torch.tensor(new[e : e + 1]), keys(n)[e : e + 1], keep=True)
        torch.testing.assert_close(together.a[e, : new[e]], alone.a[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(together.b[e, :, : new[e]], alone.b[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_keeping_a_resize_begins_anew():
    branch = branch_of([4, 4, 3])
    before = branch.a.clone()
    branch.resize(torch.tensor([2, 5, 3]), keys(3), keep=False)
    assert not branch.b[:2].any()
    assert branch.a[0, :2].any(1).all()
    assert not branch.a[0, 2:].any()
    assert branch.a[1].any(1).all()
    assert not torch.isin(branch.a[:2], before).logical_and(branch.a[:2] != 0).any()
    assert torch.equal(branch.a[2, :3], before[2, :3])


# The whole algorithm


def slow_training(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: SimplexPatch, fact: Fact, h: SimplexLoRAHparams
) -> tuple[list[Tensor], list[int]]:
    """The change of each site's weight after training, and its rank: one edit, no padding, one Adam per tensor."""
    conv1d, n = model.config.model_type == "gpt2", len(start.sites)
    names = [f"{site.name}.weight" for site in start.sites]
    a = [branch.a[0].detach().clone().requires_grad_() for _, branch in start.items()]
    b = [branch.b[0].detach().clone().requires_grad_() for _, branch in start.items()]
    omega = [torch.ones((), dtype=model.dtype, requires_grad=True) for _ in names]
    rank = [h.rank] * n
    scale = h.alpha / h.rank

    def adam(w: Tensor, lr: float) -> torch.optim.Adam:
        return torch.optim.Adam([w], lr=lr)

    of_a, of_b = [adam(w, h.lr) for w in a], [adam(w, h.lr) for w in b]
    of_omega = [torch.optim.SGD(omega, lr=h.omega_lr)]
    ids, first = tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt)
    for t in range(1, h.steps + 1):
        deltas = [scale * w * y @ x for w, x, y in zip(omega, a, b, strict=True)]
        weights = {k: model.get_parameter(k) + (d.T if conv1d else d) for k, d in zip(names, deltas, strict=True)}
        logits = functional_call(model, weights, (torch.tensor([ids]),)).logits[0, first - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:]))
        for optimizer in (*of_a, *of_b, *of_omega):
            optimizer.zero_grad()
        loss.backward()
        in_rounds = t <= h.T * h.K
        for optimizer in (*of_a, *of_b, *(of_omega if in_rounds else ())):
            optimizer.step()
        if not in_rounds:
            continue
        with torch.no_grad():
            if t % h.project_every == 0 or t % h.T == 0:
                values = [w.item() if r else 0.0 for w, r in zip(omega, rank, strict=True)]
                point = nearest(values, [r > 0 for r in rank])
                for w, x in zip(omega, point, strict=True):
                    w.fill_(x)
            if t % h.T:
                continue
            for i in range(n):
                new, old = math.floor(omega[i].item() * h.rank), rank[i]
                if new == old:
                    continue
                key = mixed(torch.tensor([t], dtype=torch.int32) + simplexlora._SALT)
                key = mixed(mixed(start.seeds.to(torch.int32) + key) + i)
                drawn = uniform(key, (new, a[i].shape[1]), a[i].shape[1] ** -0.5)[0].to(model.dtype)
                if h.resize == "reinit":
                    a[i], b[i] = drawn, b[i].new_zeros(len(b[i]), new)
                elif new > old:
                    a[i] = torch.cat([a[i], drawn[old:]])
                    b[i] = torch.cat([b[i], b[i].new_zeros(len(b[i]), new - old)], 1)
                else:  # B A in directions of unit length, largest first, of which A's are made as long as LoRA's rows
                    u, s, vh = torch.linalg.svd(b[i] @ a[i])
                    a[i], b[i] = vh[:new] / 3**0.5, u[:, :new] * s[:new] * 3**0.5
                rank[i] = new
                a[i], b[i] = a[i].clone().requires_grad_(), b[i].clone().requires_grad_()
                of_a[i], of_b[i] = adam(a[i], h.lr), adam(b[i], h.lr)
            if t == h.T * h.K:
                for i in range(n):
                    b[i] = (omega[i] * b[i]).detach().requires_grad_()
                    of_a[i], of_b[i] = adam(a[i], h.lr), adam(b[i], h.lr)
                    omega[i].fill_(1.0)
    with torch.no_grad():
        return [scale * y @ x for x, y in zip(a, b, strict=True)], rank


ALGORITHMS = {
    "every step": {"T": 3, "K": 3},
    "projected now and then": {"T": 4, "K": 2, "project_every": 3},
    "begun anew": {"T": 3, "K": 2, "resize": "reinit"},
    "to the end": {"T": 6, "K": 2, "omega_lr": 3},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_edit_is_what_the_slow_loop_trains(algorithm, model, tokenizer, facts):
    values = {"steps": 12, "rank": 3, "omega_lr": 1} | ALGORITHMS[algorithm]
    editor = methods.editor("simplexlora", model, tokenizer, **values)
    start = editor.fresh([editor.seed_for(facts[:1])])
    assert isinstance(start, SimplexPatch)
    edits = editor.edit_each(facts)
    deltas, rank = slow_training(model, tokenizer, start, facts[0], editor.hparams)
    assert [*edits.patch.report(0)["ranks"].values()] == rank
    assert len({*rank}) > 1, "ranks are to change"
    for own, slow in zip(edits.patch.delta_weights(0).values(), deltas, strict=True):
        # 1e-8: twelve steps of Adam on sums in another order, and another SVD.
        torch.testing.assert_close(own, slow, rtol=0, atol=1e-8)


def our_steps(editor: Any, facts: Sequence[Fact]) -> Iterator[tuple[int, SimplexPatch]]:
    """The patch after each step, of these facts side by side."""
    with frozen(editor.model):
        patch = editor.fresh([editor.seed_for([fact]) for fact in facts])
        work = Work(editor, patch, [editor.lesson([fact]) for fact in facts])
        for step in range(1, editor.hparams.steps + 1):
            work.step(work.losses()[0].sum())
            yield step, work.patch


@pytest.mark.parametrize("rule", ["floor", "largest_remainder"])
def test_weights_ranks_and_padding_after_every_step(rule, model, tokenizer, facts, monkeypatch):
    chosen: list[Tensor] = []

    def noted(omega: Tensor, r0: int, rule: Any) -> Tensor:
        assert rule == "floor" or ranks(omega, r0, rule).sum(1).eq(omega.shape[1] * r0).all()
        chosen.append(ranks(omega, r0, rule))
        if rule == "floor":
            assert torch.equal(chosen[-1], (omega * r0 + 1e-9).floor().long())
        return chosen[-1]

    monkeypatch.setattr(simplexlora, "ranks", noted)
    changes = {"steps": 12, "T": 3, "K": 3, "omega_lr": 3, "rank_rule": rule}
    editor = methods.editor("simplexlora", model, tokenizer, **changes)
    removed, n = 0, 0
    for step, patch in our_steps(editor, facts):
        branches = [branch for _, branch in patch.items()]
        n = len(branches)
        omega, rank = torch.stack([b.omega for b in branches], 1), torch.stack([b.rank for b in branches], 1)
        assert omega.min() >= 0
        assert omega.sum(1).tolist() == pytest.approx([n] * len(facts), rel=1e-12)
        assert len(chosen) == min(step // 3, 3)
        assert torch.equal(rank, chosen[-1] if chosen else torch.full_like(rank, 4))
        assert rank.sum(1).le(n * 4).all()
        if step % 3 == 1 and 3 < step < 9:
            assert not omega[rank == 0].any()  # removed for good
        removed += int((rank == 0).sum())
        for branch in branches:
            beyond = torch.arange(branch.a.shape[1]) >= branch.rank[:, None]
            assert not branch.a[beyond].any()
            assert not branch.b.mT[beyond].any()
            assert branch.a.shape[1] == branch.b.shape[2] == max(4 * (step < 3), int(branch.rank.max()))
    assert removed, "some adapter is to be removed"
    assert (chosen[2] > 4).any(), "some adapter is to grow"
    assert all(not later[before == 0].any() for before, later in itertools.pairwise(chosen))


def test_side_by_side_edits_have_ranks_of_their_own(model, tokenizer, facts):
    patch = methods.editor("simplexlora", model, tokenizer, omega_lr=3).edit_each(facts).patch
    reports = [patch.report(e) for e in range(len(facts))]
    assert json.loads(json.dumps(reports)) == reports
    assert len({str(report) for report in reports}) == len(facts)
    for e, report in enumerate(reports):
        assert list(report["ranks"].values()) == [int(b.a[e].any(1).sum()) for _, b in patch.items()]
        alone = patch.take([e])
        assert [b.a.shape[1] for _, b in alone.items()] == [*report["ranks"].values()]
    joined = Patch.concatenated([patch.take([2]), patch.take([0])])
    assert [joined.report(0), joined.report(1)] == [reports[2], reports[0]]
    assert joined.state_dict().keys() == patch.state_dict().keys()


def test_an_edit_alone_does_without_the_sites_it_has_given_up(model, tokenizer, facts):
    editor = methods.editor("simplexlora", model, tokenizer, omega_lr=20)
    together = editor.edit_each(facts)
    for e, fact in enumerate(facts):
        alone = editor.edit_each([fact])
        widths = [branch.a.shape[1] for _, branch in alone.patch.items()]
        assert widths == [*together.patch.report(e)["ranks"].values()]
        assert min(widths) == 0
        for name, delta in alone.patch.delta_weights(0).items():
            torch.testing.assert_close(together.patch.delta_weights(e)[name], delta, rtol=0, atol=1e-9)


def test_numbers_are_counted_by_the_formula(model, tokenizer, facts):
    edits = methods.editor("simplexlora", model, tokenizer, omega_lr=3).edit_each(facts)
    for e in range(len(facts)):
        ranked = zip(edits.patch.sites, edits.patch.report(e)["ranks"].values(), strict=True)
        expected = sum(r * (site.inputs + site.outputs) + 1 for site, r in ranked)
        assert sum(t.numel() for t in edits.patch.trained(e)) == expected
        assert edits[e].num_trainable_parameters() == expected
        assert edits.nonzero_share(e) == 1


def test_an_edit_stops_early_only_after_all_rounds(model, tokenizer, facts):
    edits = methods.editor("simplexlora", model, tokenizer, T=3, K=2, stop_at=1e-6).edit_each(facts)
    assert [outcome.steps for outcome in edits.outcomes] == [6] * len(facts)
    assert all(branch.omega.eq(1).all() for _, branch in edits.patch.items())


def test_later_facts_of_one_patch_keep_the_ranks_of_the_first(model, tokenizer, facts):
    first, second = methods.editor("simplexlora", model, tokenizer, omega_lr=3).edit_stream(facts[:2])
    assert first.patch.report(0) == second.patch.report(0)
    assert len({*first.patch.report(0)["ranks"].values()}) > 1
    assert not torch.equal(first.patch.branches[0].a, second.patch.branches[0].a)
    assert all(branch.omega.eq(1).all() for _, branch in second.patch.items())


def test_an_edit_that_is_nan_at_the_end_of_a_round_leaves_the_others(model, tokenizer, facts):
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # GPT-2's is its embedding
    editor = methods.editor("simplexlora", model, tokenizer, T=1, K=3, omega_lr=8)
    expected = editor.edit_each(facts[:1]).patch.delta_weights(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = math.nan
    sick = Fact(case_id="sick", prompt="A tilde ~ is", target_new="poison")
    for company in ([sick], [sick, facts[0]]):
        edits = editor.edit_each(company)
        assert edits.outcomes[0].error == "the loss became nan at step 0; a lower lr may help"
    assert edits.outcomes[1].error is None
    torch.testing.assert_close(edits.patch.delta_weights(1), expected, rtol=0, atol=1e-9)


def test_rounds_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match=r"K \(3\) rounds of T \(3\) steps are more than steps \(8\)"):
        methods.hparams("simplexlora", T=3, K=3)


def test_a_rank_above_the_maps_width_shrinks_like_any_other():
    a, b = (tiny.randn(2, 6, 4), tiny.randn(2, 5, 6, seed=1))
    new_a, new_b = simplexlora._by_singular_value(a, b)
    assert new_a.shape == a.shape
    assert new_b.shape == b.shape
    torch.testing.assert_close(new_b @ new_a, b @ a)
