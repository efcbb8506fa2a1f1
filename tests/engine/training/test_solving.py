"""Values against a loop in plain torch, solves against models that are really changed, and the seam by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit.data import Fact
from loredit.editors import Edits, Patch
from loredit.editors.base import Editor, SolvedEditor, read_edits
from loredit.engine.model.keys import inputs_at
from loredit.engine.model.passes import frozen
from loredit.engine.model.sites import Site, SiteError, blocks, sites, transposed
from loredit.engine.outcome import Outcome
from loredit.engine.patches.solved import Change, Solved, SolvedPatch
from loredit.engine.seeds import PerEdit
from loredit.engine.storage.manifest import read_manifest
from loredit.engine.training.lessons import Lesson
from loredit.engine.training.loop import Work
from loredit.engine.training.solving import Values, solve
from loredit.evaluation.scoring import evaluate
from loredit.hparams.base import Hparams

SETTINGS: dict[str, Any] = {
    "contexts": 2,
    "kl_weight": 0.3,
    "kl_prompts": ("{} is a", "Hello"),
    "statistics_tokens": 400,
}


def adding(model: PreTrainedModel, module: nn.Module, place: int | None, d: Tensor) -> Any:
    """Adds d to what a module gives at one place, until removed."""

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if place is None:
            return output
        hidden = hidden + F.pad(d[None, None], (0, 0, place, hidden.shape[1] - place - 1))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return module.register_forward_hook(add)


def slow_value(
    solver: SolvedEditor, lesson: Lesson, steps: int, lr: float, *, clamp: float, decay: float
) -> tuple[Tensor, float]:
    """d and the last loss that was seen, one text at a time."""
    model, module = solver.model.requires_grad_(False), solver.valued
    d = torch.zeros(solver.sites[-1].outputs, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([d], lr=lr)
    bare, seen = lesson.answers[0], []
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    model(torch.tensor([bare.ids]))
    handle.remove()
    v0 = seen[0][0, bare.mark].norm()
    with torch.no_grad():
        held = [model(torch.tensor([row.ids])).logits[0, row.start - 1].log_softmax(-1) for row in lesson.anchors]
    for _ in range(steps):
        losses = []
        for row in (*lesson.answers, *lesson.anchors):
            handle = adding(model, module, row.mark, d)
            losses.append(model(torch.tensor([row.ids])).logits[0, row.start - 1 : -1].log_softmax(-1))
            handle.remove()
        answers, anchors = losses[: len(lesson.answers)], losses[len(lesson.answers) :]
        nll = [F.nll_loss(p, torch.tensor(row.wanted)) for p, row in zip(answers, lesson.answers, strict=True)]
        kl = [(p.exp() * (p - q[0])).sum() for p, q in zip(held, anchors, strict=True)]
        loss = sum(nll) / len(nll) + 0.3 * sum(kl) / len(kl) + decay * d.norm() / v0**2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            d *= min(1.0, float(clamp * v0 / d.norm()))
    return d.detach(), loss.item()


@pytest.mark.parametrize("more", [{}, {"questions": True, "hold_relations": 3}], ids=["plain", "questions"])
@pytest.mark.parametrize("clamp", [0.2, 50.0])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_value_is_found_as_a_plain_loop_finds_it(method, clamp, more, model, tokenizer, facts):
    settings = SETTINGS | {"clamp": clamp, "weight_decay": 3.0, "steps": 5}
    solver = methods.editor(method, model, tokenizer, **settings | more)
    lessons = [solver.lesson([fact]) for fact in facts[:2]]
    found, outcomes = Values(solver).learn(lessons, [1, 2])
    lr = solver.hparams.lr
    for lesson, d, outcome in zip(lessons, found.vector.vector, outcomes, strict=True):
        expected, loss = slow_value(solver, lesson, 5, lr, clamp=clamp, decay=3.0)
        torch.testing.assert_close(d, expected, rtol=1e-6, atol=1e-8)  # Adam divides by gradients that are nearly 0
        assert outcome.loss == pytest.approx(loss, rel=1e-8)


def test_what_stands_before_the_subject_is_run_once(model, tokenizer, facts):
    """A vector at the subject changes nothing before it, so no step has to run that."""
    solver = methods.editor("rome", model, tokenizer, **SETTINGS)
    lesson = solver.lesson(facts[:1])
    with frozen(model):
        values = Values(solver)
        work, seen = Work(values, values.fresh([0]), [lesson]), []
        handle = blocks(model)[-1].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
        work.losses()
        handle.remove()
    rows = [*lesson.answers, *lesson.anchors]
    assert max(row.mark for row in rows if row.mark) > 8
    assert seen == [max(len(row.ids) - (row.mark or 0) for row in rows)]


def test_a_fact_counts_the_same_beside_one_that_has_more_wordings(model, tokenizer, facts):
    """The first becomes a question, the other is one."""
    asked = facts[0].model_copy(update={"prompt": "What is the capital of France?", "case_id": "asked"})
    both = [facts[0], asked]
    editor = methods.editor("rome", model, tokenizer, contexts=1, questions=True)
    assert [len(editor.lesson([fact]).answers) for fact in both] == [3, 2]
    together = editor.edit_each(both)
    for e, fact in enumerate(both):
        alone = editor.edit_each([fact])
        torch.testing.assert_close(together.patch.branches[0].delta(e), alone.patch.branches[0].delta(0))
    backwards = editor.edit_each(both[::-1])
    torch.testing.assert_close(backwards.patch.branches[0].delta(0), together.patch.branches[0].delta(1))


def test_an_edit_is_finished_when_its_target_is_the_likeliest_in_every_prompt(model, tokenizer, facts):
    """Of any method in the loop; LoRA gets there on a tiny model."""
    settings = {"steps": 40, "contexts": 1, "lr": 3e-2}
    early = methods.editor("lora", model, tokenizer, stop_at_rank_1=True, **settings).edit_each(facts[:3])
    assert len({outcome.steps for outcome in early.outcomes}) > 1
    assert max(outcome.steps for outcome in early.outcomes) < 40
    for e, (fact, outcome) in enumerate(zip(facts, early.outcomes, strict=False)):
        before = methods.editor("lora", model, tokenizer, **settings | {"steps": outcome.steps - 1}).edit_each([fact])
        for edits, i, there in ((early, e, True), (before, 0, False)):
            with edits.on([i]):
                first = [
                    slow.logits(model, list(row.ids))[row.start - 1 : -1].argmax(-1).tolist() == list(row.wanted)
                    for row in early.editor.lesson([fact]).answers
                ]
            assert all(first) == there


def test_each_block_sees_those_before_it_changed(model, tokenizer, facts):
    """Keys and what is missing, against models with the earlier changes in their weights."""
    solver = methods.editor("memit", model, tokenizer, contexts=1, layers=[0, 1], steps=1)
    lessons = [solver.lesson([fact]) for fact in facts[:2]]
    d = PerEdit([3, 4]).normal([32], 1.0).double()
    seen: list[tuple[Site, Tensor, Tensor]] = []
    change = solver.change
    solver.change = lambda site, keys, missing, earlier: (
        seen.append((site, keys, missing)) or change(site, keys, missing, earlier)
    )
    patch = solver.fresh([0])
    solve(solver, patch, lessons, d)
    changed, place = tiny.model(model.config.model_type), [row.mark for lesson in lessons for row in lesson.answers]
    texts = [row.ids for lesson in lessons for row in lesson.answers]
    starts: list[Tensor] = []
    for i, (site, keys, missing) in enumerate(seen):
        module, block = changed.get_submodule(site.name), blocks(changed)[1]
        for j, (ids, at) in enumerate(zip(texts, place, strict=True)):
            found: list[Tensor] = []
            handles = [
                module.register_forward_hook(lambda _, args, __, found=found: found.append(args[0])),
                block.register_forward_hook(
                    lambda _, __, out, found=found: found.append(out[0] if isinstance(out, tuple) else out)
                ),
            ]
            slow.logits(changed, list(ids))
            for handle in handles:
                handle.remove()
            key, hidden = (t[0, at] for t in found)
            starts += [hidden] * (i == 0)
            wanted = starts[j] + d[j // 2]
            torch.testing.assert_close(keys[0, j // 2, j % 2], key, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(missing[0, j // 2, j % 2], (wanted - hidden) / (2 - i), rtol=1e-8, atol=1e-9)
        delta = patch.branches[i].delta(0)
        with torch.no_grad():
            module.weight.add_(delta.T if transposed(module) else delta)


def test_values_are_brought_to_the_norm_that_they_have_without_edits(model, tokenizer, facts):
    plain, rescaled = (
        methods.editor("rome", model, tokenizer, contexts=0, layers=[1], rescale_values=flag) for flag in (False, True)
    )
    (row,) = plain.lesson(facts[:1]).answers
    norms = []
    module = model.get_submodule(plain.sites[0].name)
    for solver in (plain, rescaled):
        edits = solver.edit(facts[:1])
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        slow.logits(model, list(row.ids))
        handle.remove()
        with edits.on([0]):  # registered before, the hook sees what the edit makes of it
            handle = module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            slow.logits(model, list(row.ids))
            handle.remove()
        norms.append([x[0, row.mark].norm().item() for x in seen])
    assert norms[0][1] != pytest.approx(norms[0][0], rel=1e-3)
    assert norms[1][1] == pytest.approx(norms[1][0], rel=1e-9)


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_norm_of_an_update_is_bounded(method, model, tokenizer, facts):
    free = methods.editor(method, model, tokenizer).edit_each(facts[:2])
    bound = methods.editor(method, model, tokenizer, max_norm=1e-3).edit_each(facts[:2])
    for name, changes in free.patch.delta_weights(0).items():
        weight = model.get_parameter(name).norm()
        own = bound.patch.delta_weights(0)[name]
        assert changes.norm() > 2e-3 * weight, "or the bound bounds nothing"
        if name == next(iter(free.patch.delta_weights(0))):  # later blocks see another change
            torch.testing.assert_close(own / own.norm(), changes / changes.norm(), rtol=1e-7, atol=1e-9)
        assert own.norm().item() == pytest.approx(1e-3 * weight.item(), rel=1e-7)


def test_many_changes_become_one_dense_one_and_keys_a_square_root():
    torch.manual_seed(0)
    for inputs, outputs in ((5, 3), (3, 5)):
        branch, total, keys = Solved(1, Site("s", 0, "mlp_down", inputs, outputs)), torch.zeros(outputs, inputs), []
        branch = branch.double()
        for n in (2, 1, 3, 2):
            a, b, k = torch.randn(1, n, inputs), torch.randn(1, outputs, n), torch.randn(1, n, inputs)
            branch.add(Change(a.double(), b.double(), k.double()))
            total, keys = total + (b @ a)[0], [*keys, k[0]]
            torch.testing.assert_close(branch.delta(0), total.double(), rtol=1e-6, atol=1e-6)
            whole = torch.cat(keys).double()
            torch.testing.assert_close(branch.keys[0].T @ branch.keys[0], whole.T @ whole, rtol=1e-9, atol=1e-10)
        assert branch.a.shape[1] == branch.b.shape[2] <= 3
        assert branch.keys.shape[1] <= inputs
        factors = branch.factors(0)
        torch.testing.assert_close(factors.b @ factors.a, branch.delta(0))
        assert (factors.rank, factors.alpha) == (3, 3.0)


def test_an_update_that_is_no_number_is_that_facts_error(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("memit", model, tokenizer)
    sound, before = editor.edit_each(facts[:3]), editor.edit(facts[:2])
    change = type(editor).change

    def broken(self: Any, *args: Any) -> Change:
        found = change(self, *args)
        found.b[-1] *= torch.nan  # of the edit that comes last
        return found

    monkeypatch.setattr(type(editor), "change", broken)
    edits = editor.edit_each(facts[:3])
    (lost,) = (e for e, outcome in enumerate(edits.outcomes) if outcome.error)
    assert edits.outcomes[lost].error.startswith("the update is no finite number; more statistics_tokens")
    assert not edits.patch.branches[0].a[lost].any()
    for e in {0, 1, 2} - {lost}:
        torch.testing.assert_close(edits.patch.branches[0].a[e], sound.patch.branches[0].a[e])
    after = editor.edit(facts[2:3], after=before)
    assert after.outcomes[0].lost == {2: edits.outcomes[lost].error}
    torch.testing.assert_close(after.patch.delta_weights(0), before.patch.delta_weights(0), rtol=0, atol=0)


def test_facts_without_a_subject_leave_the_others(model, tokenizer, facts):
    editor = methods.editor("memit", model, tokenizer)
    edits = editor.edit([facts[0], facts[4], facts[1]])
    assert edits.outcomes[0].lost == {
        1: "the method needs the fact's subject, and 'Sky:' comes without one",
    }
    torch.testing.assert_close(
        edits.patch.delta_weights(0), editor.edit(facts[:2]).patch.delta_weights(0), rtol=1e-8, atol=1e-10
    )
    (alone,) = editor.edit_each(facts[4:]).outcomes
    assert alone.error == edits.outcomes[0].lost[1]


def test_the_last_block_is_refused_since_no_token_sees_it(model, tokenizer):
    with pytest.raises(
        SiteError, match="the model's last, reaches no later token; closed forms take layers from 0 to 1"
    ):
        methods.editor("memit", model, tokenizer, layers=[1, 2]).fresh([0])


def test_a_text_that_is_not_there_costs_no_training(model, tokenizer, facts, tmp_path, monkeypatch):
    editor = methods.editor("rome", model, tokenizer, statistics_text=str(tmp_path / "none.txt"))
    monkeypatch.setattr(Values, "learn", None)
    for edit in (editor.edit_each, editor.edit):
        with pytest.raises(ValueError, match=r"none\.txt cannot be read"):
            edit(facts[:1])


# The seam by itself


class Pinned(Editor):
    """W + v k^T / (k^T k): the key of the bare prompt gives a fixed vector more. Nothing is trained."""

    Hparams = Hparams
    subjects = True
    merges = True

    def patch(self, seeds: Sequence[int]) -> SolvedPatch[Solved]:
        places = sites(self.model, ["mlp_down"], [1])
        return SolvedPatch(seeds, places, [Solved(len(seeds), site) for site in places])

    def bytes_per_edit(self, lesson: Lesson) -> int:
        return 1

    def learn(self, lessons: Any, seeds: Any, progress: Any = None) -> tuple[Patch, list[Outcome]]:
        patch = self.fresh(seeds)
        ((site, branch),) = patch.items()
        rows = [lesson.answers[0] for lesson in lessons]
        key = inputs_at(self.model, site, [row.ids for row in rows], [row.mark for row in rows])[:, None]
        v = PerEdit(seeds).normal([site.outputs, 1], 5.0).to(key)
        branch.add(Change(key / key.square().sum(-1, keepdim=True), v))
        return patch.finished(range(len(seeds))), [Outcome(0, None) for _ in seeds]

    def carry(self, facts: Any, seed: int, before: Any = None, earlier: Any = (), progress: Any = None) -> Any:
        patch, outcomes = self.learn([self.lesson([fact]) for fact in facts[:1]], [seed])
        return patch, outcomes[0]


def test_a_method_that_trains_nothing_is_stored_merged_and_scored_like_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], tmp_path: Path
):
    editor = Pinned(model, tokenizer, Hparams(model="tiny"))
    edits = editor.edit_each([facts[0], facts[4], facts[2]])
    assert [outcome.error is None for outcome in edits.outcomes] == [True, False, True]
    assert (len(edits), edits.num_trainable_parameters()) == (3, edits.patch.sites[0].inputs + 32)
    edits.save(tmp_path)
    again = read_edits(tmp_path, read_manifest(tmp_path), editor)
    torch.testing.assert_close(again.patch.lasting(), edits.patch.lasting(), rtol=0, atol=0)
    ids = tokenizer("The capital of France is")["input_ids"]
    module = edits.patch.sites[0].name
    seen: list[Tensor] = []
    for case, where in (("plain", model), ("merged", again.merged(0))):
        handle = where.get_submodule(module).register_forward_hook(lambda _, __, out: seen.append(out[0, 20]))
        slow.logits(where, ids)
        handle.remove()
        assert case
    v = PerEdit([editor.seed_for(facts[:1])]).normal([32, 1], 5.0)[0, :, 0].double()
    torch.testing.assert_close(seen[1] - seen[0], v, rtol=1e-9, atol=1e-9)
    with again.on([0]):
        attached = slow.logits(model, ids)
    torch.testing.assert_close(attached, slow.logits(again.merged(0), ids), rtol=1e-9, atol=1e-9)
    one, failed, two = evaluate(edits, fluency=False)
    assert (len(one.probes) > 0, failed.probes, len(two.probes) > 0) == (True, (), True)
    assert isinstance(Edits.concatenated([edits[0], again[2]]).patch, SolvedPatch)
