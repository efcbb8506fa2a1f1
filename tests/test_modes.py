"""Batch and sequential editing: what a mini-batch is, when training ends, and what one bad fact may not do.

Planted faults these tests catch: an optimizer anew for each mini-batch of a pass; stopping while a fact is not there
yet; a schedule that ends within the first pass; a bad fact that takes the others or the earlier ones with it; a stream
that does not go on from the state it is given; a token predicted twice, or from too little, in a perplexity.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from loredit.engine.patches.rows import Rows
from loredit.engine.training.loop import Work
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from loredit.data import Fact
from loredit.editors import Editor, Edits, Patch, adalora, roselora
from loredit.evaluation import report
from loredit.evaluation.perplexity import Perplexity, perplexity
from loredit.evaluation.retention import Checkpoint, checkpoint
from loredit.evaluation.scores import AnswerScore, FactScores, ProbeScores, Seen
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


def reference(editor: Editor, facts: Sequence[Fact]) -> Patch:
    """Passes over the mini-batches, a step of torch's Adam on each."""
    model, h = editor.model, editor.hparams
    patch = editor.fresh([editor.seed_for(facts)]).train()
    parameters = [*patch.parameters()]
    adam = torch.optim.Adam(parameters, lr=h.lr)
    for _, begin in itertools.product(range(h.steps), range(0, len(facts), h.batch_size)):
        batch = facts[begin : begin + h.batch_size]
        losses = []
        for fact in batch:
            ids, n = editor.tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt.encode())
            with patch.attached(model, Rows([0], 1, "cpu")):
                predictions = model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1]
            losses.append(nn.functional.cross_entropy(predictions, torch.tensor(ids[n:])))
        adam.zero_grad()
        torch.stack(losses).mean().backward(inputs=parameters)
        adam.step()
    return patch


def test_breadth_first_is_one_optimizer_over_the_mini_batches_in_turn(model, facts):
    editor = bound(model)
    edits = editor.edit(facts)  # mini-batches of 2, 2 and 1
    assert edits.outcomes[0].steps == 12
    expected = dict(reference(editor, facts).named_parameters())
    for name, t in edits.patch.named_parameters():
        torch.testing.assert_close(t, expected[name], rtol=1e-7, atol=1e-9)


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
    assert Edits.load(tmp_path, sickly, tiny.tokenizer()).outcomes[0].lost == after.outcomes[0].lost


def test_a_stream_that_begins_with_a_bad_fact_is_untrained_until_the_next(sickly, facts, sick):
    failed, after = bound(sickly).edit_stream([sick, facts[0]])
    assert failed.outcomes[0].error == SICK
    assert same(failed, bound(sickly).edit([sick]))
    assert (after.outcomes[0].error, [*after.outcomes[0].lost]) == (None, [0])
    assert likelihoods(after, facts[:1]) > likelihoods(failed, facts[:1])


def test_weights_that_break_go_back_to_where_all_was_well(model, facts, monkeypatch):
    losses = Work.losses

    def breaking(work: Work) -> tuple[Tensor, Tensor]:
        loss, lowest = losses(work)
        return loss.masked_fill(work.patch.steps >= 5, math.nan), lowest

    monkeypatch.setattr(Work, "losses", breaking)
    edits = bound(model).edit(facts)
    # After 5 steps it is the third mini-batch's turn, which is left out; from 3 steps again, then the first's.
    assert [*edits.outcomes[0].lost] == [4, 0, 1]
    assert edits.outcomes[0].steps < 5
    assert edits.outcomes[0].lost[4] == "the loss became nan at step 1; a lower lr may help"
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
    read = Edits.load(tmp_path, model, tiny.tokenizer())
    *_, resumed = bound(model, "roselora", steps=6).edit_stream(facts[2:], after=read)
    assert all(torch.equal(t, values(whole)[name]) for name, t in values(resumed).items())
    assert (resumed.facts, resumed.outcomes) == (whole.facts, whole.outcomes)


# Perplexity


@pytest.mark.parametrize("length", [2, 192, 193, 300])
def test_perplexity_predicts_each_token_once_in_the_first_window_that_it_is_in(length, model, facts):
    edits = bound(model, steps=8).edit(facts)
    text = "".join(chr(97 + (7 * i * i + i // 5) % 26) for i in range(length))
    ids = tiny.tokenizer()(text)["input_ids"]
    measured = perplexity(edits, text)
    assert measured.tokens == length - 1

    def expected() -> float:
        total = 0.0
        begins = range(0, length, tiny.CONTEXT // 2)
        after = {b: slow.logits(model, ids[b : b + tiny.CONTEXT]).log_softmax(-1) for b in begins}
        for t in range(1, length):
            begin = next(b for b in begins if t < b + tiny.CONTEXT)
            total += after[begin][t - 1 - begin, ids[t]].item()
        return math.exp(-total / (length - 1))

    assert measured.base == pytest.approx(expected(), rel=1e-9)
    with edits.on([0]):
        assert measured.edited == pytest.approx(expected(), rel=1e-9)
    assert measured.edited != pytest.approx(measured.base, rel=1e-6)


def test_a_text_of_one_token_has_no_perplexity(model, facts):
    with pytest.raises(ValueError, match="two tokens or more; this one has 1"):
        perplexity(bound(model).edit(facts[:1]), "a")


# Retention


def fact_scores(number: int, *, right: bool) -> FactScores:
    seen = Seen(answers=(AnswerScore(correct=(right,), log_prob=-1.0),))
    probe = ProbeScores(
        kind="rewrite", group="rewrite", prompt="p", answers=("a",), base=seen, edited=seen, same=(True,)
    )
    case = {"case_id": str(number), "prompt": "p", "target_new": "a", "probes": (probe,)}
    return FactScores(**case, steps=1, loss=0.0, nonzero_share=1.0)


def reached(n: int, edited: float | None = None) -> Checkpoint:
    """A checkpoint after n edits, of which those at the places that 3 divides are still known."""
    scores = [fact_scores(i, right=i % 3 == 0) for i in range(n)]
    return checkpoint(scores, edited and Perplexity(base=10, edited=edited, tokens=99))


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


def test_the_retention_table_has_a_line_for_each_checkpoint():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.retention_table([reached(1, 11.25), reached(3)], title="what is left"))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert [line[1:] for line in lines if line and line[0] == "│"] == [
        ["1", "│", "100.0", "│", "11.2", "(10.0)", "│"],
        ["3", "│", "33.3", "│", "–", "│"],
    ]


@pytest.mark.parametrize("edited", [None, math.inf])
def test_retention_is_drawn_whatever_was_measured(edited: float | None, tmp_path):
    report.plot_retention([reached(n, edited) for n in (1, 10, 30)], tmp_path / "figures" / "retention.png")
    assert (tmp_path / "figures" / "retention.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no checkpoint"):
        report.plot_retention([], tmp_path / "none.png")
