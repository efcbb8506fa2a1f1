"""Batch and sequential editing: what a mini-batch is, when training ends, and what one bad fact may not do.

Planted faults these tests catch: an optimizer anew for each mini-batch of a pass; stopping while a fact is not there
yet; a schedule that ends within the first pass; a bad fact that takes the others or the earlier ones with it; a stream
that does not go on from the state it is given; a token predicted twice, or from too little, in a perplexity.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loredit import editors
from loredit.data import Fact
from loredit.editors import Editor, Edits, Patch, adalora, roselora
from loredit.engine.model import kept
from loredit.engine.model.sites import sites
from loredit.engine.patches.rows import Rows
from loredit.engine.seeds import seed_of
from loredit.engine.training.loop import Work
from loredit.evaluation.scoring import evaluate

ORDERS = ("breadth_first", "depth_first")
SICK = "the loss became nan at step 0; a lower lr may help"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def sickly() -> PreTrainedModel:
    """A model that computes NaN for every text with a tilde."""
    model = tiny.model("llama")
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.tokenizer()("~")["input_ids"]] = math.nan
    return model


@pytest.fixture
def sick() -> Fact:
    return Fact(case_id="bad", prompt="A tilde ~ is", target_new="poison")


@pytest.fixture
def long() -> Fact:
    return Fact(case_id="bad", prompt="so " * tiny.CONTEXT, target_new="long")


def bound(model: PreTrainedModel, method: str = "lora", **changes: Any) -> Editor:
    return methods.editor(method, model, tiny.tokenizer(), **{"steps": 4, "batch_size": 2} | changes)


def values(edits: Edits) -> Mapping[str, Tensor]:
    return {name: t for name, t in edits.patch.lasting().items() if name not in ("seeds", "steps")}


def same(a: Edits, b: Edits) -> bool:
    return all(torch.allclose(t, values(b)[name], rtol=1e-9, atol=1e-11) for name, t in values(a).items())


def likelihoods(edits: Edits, facts: Sequence[Fact]) -> list[float]:
    """The least probability among the target's tokens, for each fact."""
    model, tokenizer = edits.editor.model, edits.editor.tokenizer
    with edits.on([0]):
        return [slow.log_probs(model, tokenizer, f.prompt, f.target_new).exp().min().item() for f in facts]


# What is trained


def reference(editor: Editor, facts: Sequence[Fact], earlier: Sequence[Fact] = ()) -> Patch:
    """Passes over mini-batches that are drawn anew for each, a step of torch's Adam on each; a fact whose target tokens
    all have the probability ``stop_at`` is not in the loss. With ``earlier`` facts, ``replay`` of them join each step.
    """
    model, h, seed = editor.model, editor.hparams, editor.seed_for(facts)
    patch = editor.fresh([seed]).train()
    parameters = [*patch.parameters()]
    adam = torch.optim.Adam(parameters, lr=h.lr)
    for number in range(h.steps):
        order = [*range(len(facts))]
        if len(facts) > h.batch_size:
            random.Random(seed_of("order", seed, number)).shuffle(order)
        for begin in range(0, len(facts), h.batch_size):
            chosen = order[begin : begin + h.batch_size]
            again = random.Random(seed_of("replay", seed, number, *chosen)).sample(
                [*earlier], min(h.replay, len(earlier))
            )
            losses = []
            for fact in (*(facts[i] for i in chosen), *again):
                ids, n = editor.tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt.encode())
                with patch.attached(model, Rows([0], 1, "cpu")):
                    predictions = model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1]
                nll = nn.functional.cross_entropy(predictions, torch.tensor(ids[n:]), reduction="none")
                is_there = h.stop_at is not None and (-nll.max()).exp() >= h.stop_at
                losses.append(nll.mean() * (0 if is_there else 1))
            adam.zero_grad()
            torch.stack(losses).mean().backward(inputs=parameters)
            adam.step()
    return patch


@pytest.mark.parametrize("stop_at", [None, 0.02])
def test_breadth_first_is_one_optimizer_over_mini_batches_in_an_order_of_each_pass(stop_at, model, facts):
    editor = bound(model, steps=6, stop_at=stop_at)
    edits = editor.edit(facts)  # mini-batches of 2, 2 and 1
    assert edits.outcomes[0].steps == 18, "no pass and no mini-batch was there as a whole"
    if stop_at:
        assert any(p >= stop_at for p in likelihoods(edits, facts)), "some fact has left the loss"
    expected = dict(reference(editor, facts).named_parameters())
    for name, t in edits.patch.named_parameters():
        torch.testing.assert_close(t, expected[name], rtol=1e-7, atol=1e-9)


def test_earlier_facts_are_learned_again_beside_the_new_ones(model, facts):
    editor = bound(model, steps=6, replay=1)
    patch, outcome = editor.carry(facts[:2], editor.seed_for(facts[:2]), None, facts[2:])
    assert outcome.steps == 6
    expected = dict(reference(editor, facts[:2], facts[2:]).named_parameters())
    for name, t in patch.named_parameters():
        torch.testing.assert_close(t, expected[name], rtol=1e-7, atol=1e-9)


def test_replay_keeps_what_a_stream_would_forget(model, facts):
    forgetful, mindful = (bound(model, "finetune", lr=1e-2, steps=60, stop_at=0.3, replay=n) for n in (0, 4))
    *_, forgotten = forgetful.edit_stream(facts)
    *_, remembered = mindful.edit_stream(facts)
    assert min(likelihoods(remembered, facts)) > 2 * min(likelihoods(forgotten, facts))


def test_what_costs_earlier_facts_is_learned_again_with_more_replay(model, tokenizer, monkeypatch):
    said = (("water", "dry"), ("sky", "green"), ("snow", "black"), ("grass", "red"), ("night", "white"))
    facts = [Fact(case_id=name, prompt=f"The {name} is", target_new=new, subject=name) for name, new in said]
    editor = methods.editor("finetune", model, tokenizer, lr=1e-2, steps=15, stop_at=0.4, replay=1)

    def left(states: Sequence[Edits]) -> list[int]:
        return [len(state.facts[0]) - len(state.unlearned) for state in states]

    def notes(state: Edits) -> list[str]:
        return [note for note in state.outcomes[0].notes if "with twice the replay" in note]

    retried = [*editor.edit_stream(facts)]
    assert notes(retried[-1])
    assert retried[-1].editor is editor
    with monkeypatch.context() as patched:
        patched.setattr(type(editor), "_steadier", lambda self: None)
        once = [*editor.edit_stream(facts)]
    assert not notes(once[-1])
    first = next(i for i, state in enumerate(retried) if notes(state))
    assert left(retried[:first]) == left(once[:first])
    assert left(retried)[first] > left(once)[first]
    assert methods.editor("finetune", model, tokenizer, replay=0)._steadier() is None


def test_what_is_drawn_for_a_step_is_of_its_pass_and_of_the_edits_seed(model, facts):
    editor = bound(model, contexts=3, kl_weight=1.0, kl_prompts=("{} is a", "Rain", "Snow"))
    (part,) = editor.lesson(facts[:1]).parts
    assert (len(part.answers), len(part.anchors)) == (4, 3)
    drawn = [part.drawn(1, 2, seed) for seed in range(30)]
    assert {(len(p.answers), len(p.anchors)) for p in drawn} == {(1, 2)}
    assert {row for p in drawn for row in p.answers} == {*part.answers}, "every wording has its turn"
    assert {row for p in drawn for row in p.anchors} == {*part.anchors}
    assert part.drawn(1, 2, 7) == part.drawn(1, 2, 7)
    assert part.drawn(None, None, 7) == part.drawn(9, 9, 7) == part
    some = bound(model, contexts=3, wordings_per_step=1, held_per_step=1, kl_weight=1.0, kl_prompts=("Rain", "Snow"))
    assert same(some.edit(facts), some.edit(facts)), "a run can be repeated"
    assert not same(some.edit(facts), bound(model, contexts=3, kl_weight=1.0, kl_prompts=("Rain", "Snow")).edit(facts))


def test_depth_first_is_one_mini_batch_after_another(model, facts):
    # Fine-tuning starts at zero, so that the seeds, which differ, do not matter.
    *_, streamed = bound(model, "finetune").edit_stream(facts)
    deep = bound(model, "finetune", batch_size=1, order="depth_first").edit(facts)
    assert same(deep, streamed)
    assert deep.outcomes[0].steps == streamed.outcomes[0].steps == 20
    assert not same(bound(model, "finetune", batch_size=1).edit(facts), deep)


@pytest.mark.parametrize("order", ORDERS)
def test_of_one_mini_batch_the_order_does_not_matter(order, model, facts):
    assert same(bound(model, batch_size=5, order=order).edit(facts), bound(model, batch_size=9).edit(facts))


def test_a_batch_stops_when_all_facts_are_there_with_the_same_weights(model, facts):
    edits = bound(model, steps=200, stop_at=0.1).edit(facts)
    assert 0 < edits.outcomes[0].steps < 600
    assert min(likelihoods(edits, facts)) >= 0.1


def test_a_fact_that_the_patch_knows_takes_no_step(model, facts):
    editor = bound(model, steps=60, stop_at=0.1)
    edits = editor.edit(facts[:1])
    (again,) = editor.edit_stream(facts[:1], after=edits)
    assert same(again, edits)
    assert again.outcomes[0].steps == edits.outcomes[0].steps
    assert again.facts == (facts[:1] * 2,)


def test_a_schedule_lasts_as_long_as_the_passes(model, facts, monkeypatch):
    shares, largest = [], roselora._largest

    def spied(score: Tensor, share: Sequence[float]) -> Tensor:
        shares.extend(share)
        return largest(score, share)

    monkeypatch.setattr(roselora, "_largest", spied)
    bound(model, "roselora", steps=5, t_i=0.0, t_f=0.8, tau=0.25).edit(facts)
    by_step = shares[:: len(shares) // 15]
    assert len(by_step) == 15
    assert all(a > b for a, b in itertools.pairwise(by_step[:12]))
    assert by_step[11:] == [0.25] * 4  # after 4 of 5 passes over 3 mini-batches


def test_schedules_in_steps_count_passes(model, facts, monkeypatch):
    chosen, budget = [], adalora.AdaLoRAHparams.budget

    def spied(h: adalora.AdaLoRAHparams, step: int, n: int) -> int | None:
        kept = budget(h, step, n)
        if kept is not None:
            chosen.append(step)
        return kept

    monkeypatch.setattr(adalora.AdaLoRAHparams, "budget", spied)
    schedule = {"target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1}
    bound(model, "adalora", steps=6, **schedule).edit(facts)
    # With 3 mini-batches, after each pass from the second (tinit 1) to the fourth (tfinal 2 before the end).
    assert sorted({*chosen}) == [6, 9, 12]


# What goes wrong


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_fact_that_cannot_be_computed_is_as_one_that_cannot_be_encoded(batch_size, order, sickly, facts, sick, long):
    editor = bound(sickly, batch_size=batch_size, order=order)
    computed, encoded = (editor.edit([facts[0], bad, *facts[1:3]]) for bad in (sick, long))
    assert same(computed, encoded)
    assert (computed.outcomes[0].error, computed.outcomes[0].lost) == (None, {1: SICK})
    assert "the model's context is 192" in encoded.outcomes[0].lost[1]
    scores = evaluate(computed, fluency=False)
    assert [score.error for score in scores] == [None, SICK, None, None]
    assert [bool(score.probes) for score in scores] == [True, False, True, True]
    assert min(likelihoods(computed, facts[:3])) > min(likelihoods(editor.edit([long]), facts[:3]))


@pytest.mark.parametrize("bad", ["sick", "long"])
def test_a_bad_fact_in_a_stream_leaves_the_patch_as_it_was(bad, sickly, facts, request, tmp_path):
    bad = request.getfixturevalue(bad)
    first, failed, after = bound(sickly).edit_stream([facts[0], bad, facts[1]])
    assert same(failed, first)
    assert [[*state.outcomes[0].lost] for state in (first, failed, after)] == [[], [1], [1]]
    assert after.facts == ((facts[0], bad, facts[1]),)
    *_, expected = bound(sickly).edit_stream(facts[:2])
    assert same(after, expected)
    assert after.outcomes[0].steps == expected.outcomes[0].steps == 8
    after.save(tmp_path)
    assert editors.load(tmp_path, sickly, tiny.tokenizer()).outcomes[0].lost == after.outcomes[0].lost


def test_a_stream_that_begins_with_a_bad_fact_is_untrained_until_the_next(sickly, facts, sick):
    failed, after = bound(sickly).edit_stream([sick, facts[0]])
    assert failed.outcomes[0].error == SICK
    assert same(failed, bound(sickly).edit([sick]))
    assert (after.outcomes[0].error, [*after.outcomes[0].lost]) == (None, [0])
    assert likelihoods(after, facts[:1]) > likelihoods(failed, facts[:1])


def test_weights_that_break_go_back_to_where_all_was_well(model, facts, monkeypatch):
    losses = Work.losses_leaving

    def breaking(work: Work, leave_at: float | None) -> tuple[Tensor, Tensor, Tensor]:
        loss, left, lowest = losses(work, leave_at)
        return loss.masked_fill(work.patch.steps >= 5, math.nan), left, lowest

    monkeypatch.setattr(Work, "losses_leaving", breaking)
    editor = bound(model)
    edits = editor.edit(facts)

    def in_pass(indices: Sequence[int], number: int) -> list[int]:
        order = [*indices]
        random.Random(seed_of("order", editor.seed_for(facts), number)).shuffle(order)
        return order

    # After 5 steps it is the second pass's third mini-batch's turn, which is left out. From 3 steps again, two more are
    # taken with the other four facts in the third pass, and the fourth begins with two that fail.
    third = in_pass(range(5), 1)[4:]
    first = in_pass([i for i in range(5) if i not in third], 3)[:2]
    assert [*edits.outcomes[0].lost] == [*third, *first]
    assert edits.outcomes[0].steps < 5
    assert edits.outcomes[0].lost[third[0]] == "the loss became nan at step 1; a lower lr may help"
    assert all(t.isfinite().all() for t in values(edits).values())
    assert edits.outcomes[0].error is None


def test_an_empty_list_is_refused(model):
    with pytest.raises(ValueError, match="at least one fact"):
        bound(model).edit([])


# A state that is read back


def test_a_stream_goes_on_from_a_saved_state(model, facts, tmp_path):
    *_, whole = bound(model, "roselora", steps=6).edit_stream(facts)
    *_, half = bound(model, "roselora", steps=6).edit_stream(facts[:2])
    half.save(tmp_path)
    read = editors.load(tmp_path, model, tiny.tokenizer())
    *_, resumed = bound(model, "roselora", steps=6).edit_stream(facts[2:], after=read)
    assert all(torch.equal(t, values(whole)[name]) for name, t in values(resumed).items())
    assert (resumed.facts, resumed.outcomes) == (whole.facts, whole.outcomes)


@pytest.mark.parametrize("acts_from", ["start", "subject"])
def test_what_the_unedited_model_makes_of_a_text_is_computed_once_while_there_is_room(
    acts_from, model, tokenizer, facts, monkeypatch
):
    more = {"contexts": 2, "wordings_per_step": 1, "kl_weight": 1.0, "kl_prompts": ("{} is a", "Rain"), "steps": 12}
    more |= {"held_per_step": 1, "batch_size": 2, "kl_positions": "all", "acts_from": acts_from}
    editor, ran = methods.editor("lora", model, tokenizer, **more), list[int]()
    parts = editor.lesson(facts[:4]).parts
    inner = model.get_submodule(sites(model, ["mlp_down"], [0])[0].name)  # a block that is skipped does not run it
    handle = inner.register_forward_hook(lambda _, args, __: ran.append(len(args[0])))
    with_room = editor.edit(facts[:4])
    rows = sum(ran)
    ran.clear()
    monkeypatch.setattr(kept, "free_memory", lambda device: 0)
    without = editor.edit(facts[:4])
    handle.remove()
    if acts_from == "start":  # else what stands before the subject is run for each step
        texts = {row for part in parts for row in (*part.answers, *part.anchors)}
        assert rows <= len(texts) + len(parts)  # each fact is asked once more at the end
    assert rows < sum(ran) * 2 / 3
    for name, tensor in with_room.patch.tensors().items():
        torch.testing.assert_close(tensor, without.patch.tensors()[name])
