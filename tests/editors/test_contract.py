"""What every editing method must keep, whatever it trains, on a GPT-2 and a Llama in float64.

A new method is one more entry in ``methods.py``. Together and alone differ by the order of floating-point sums only:
about 1e-16, of which six steps of Adam make 1e-11 where a gradient is zero but for rounding (it divides by 1e-8).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from methods import METHODS
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit import editors
from loredit.data import Fact
from loredit.editors import Editor, Edits, Patch, TrainedEditor, WeightPatch
from loredit.engine.model.generation import continuations
from loredit.engine.patches.adam import Adam
from loredit.engine.storage.manifest import EditsError
from loredit.engine.training.loop import Work
from loredit.evaluation.scoring import evaluate

STEPS = 6
CHANGES = {
    "plain": {},
    "contexts and kl": {"contexts": 1, "kl_weight": 0.5, "kl_prompts": ("{} is a", "Hello")},
    "clipping and dropout": {"clip_norm": 0.05, "end_of_text": True, "dropout": 0.3},
}
bound = partial(methods.editor, steps=STEPS)
TEXTS = ("The capital of France", "Water is, as you know", "Nothing")


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str) -> Iterator[PreTrainedModel]:
    """One model for all tests of a method, which none of them may change."""
    model = tiny.model(family)
    yield model
    torch.testing.assert_close(model.state_dict(), tiny.model(family).state_dict(), rtol=0, atol=0)
    assert hooks_on(model) == 0


@pytest.fixture(scope="module")
def some(method: str, facts: Sequence[Fact]) -> Sequence[Fact]:
    """Three facts; of closed forms the prompts end at their subjects, beyond which random weights carry nothing."""
    if issubclass(editors.find(method), TrainedEditor):
        return facts[:3]
    return tuple(
        fact.model_copy(update={"prompt": fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]})
        for fact in facts[:3]
    )


@pytest.fixture(scope="module")
def editor(method: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Editor:
    return bound(method, model, tokenizer)


@pytest.fixture(scope="module")
def edits(editor: Editor, some: Sequence[Fact]) -> Edits:
    """Three facts, trained together."""
    return editor.edit_each(some)


@pytest.fixture(scope="module")
def stopped(method: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> Edits:
    """Four facts, of which some stop early; one has no subject and so no prompts whose predictions are held."""
    kl = {"kl_weight": 0.2, "kl_prompts": ("{} is a", "The {} was"), "kl_positions": "all"}
    return bound(method, model, tokenizer, **known(method, steps=20, stop_at=0.04, **kl)).edit_each(facts[1:])


def values(edits: Edits, e: int) -> dict[str, Tensor]:
    """All that edit e consists of."""
    return {name: tensor[e] for name, tensor in edits.patch.lasting().items()}


def cut(tensor: Tensor) -> Tensor:
    """Without the zeros at the end of each axis: edits that differ in size are padded in company."""
    for axis in range(tensor.dim()):
        used = tensor.movedim(axis, 0).flatten(1).any(1).nonzero() if tensor.dim() > 1 else tensor.nonzero()
        tensor = tensor.narrow(axis, 0, int(used.max()) + 1 if len(used) else 0)
    return tensor


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(cut(actual[name]), cut(expected[name]), rtol=1e-9, atol=1e-10)


def differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    cuts = [(cut(a[name]), cut(b[name])) for name in a if name not in ("seeds", "steps")]
    return any(x.shape != y.shape or not torch.allclose(x, y, rtol=1e-3, atol=1e-6) for x, y in cuts)


def known(method: str, **changes: Any) -> dict[str, Any]:
    """Those that the method has: not every one has a dropout, and closed forms have no mini-batches."""
    return {name: value for name, value in changes.items() if name in editors.find(method).Hparams.model_fields}


def hooks_on(model: nn.Module) -> int:
    """Hooks of any kind, and methods replaced on single modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds) + sum(
        "forward" in vars(m) for m in model.modules()
    )


def test_every_method_is_here():
    assert sorted(METHODS) == editors.available()


# Side by side


@pytest.mark.parametrize("change", CHANGES)
def test_trained_together_is_trained_alone(method, change, model, tokenizer, some, edits):
    changes = known(method, **CHANGES[change])
    editor = bound(method, model, tokenizer, **changes)
    together = editor.edit_each(some)
    for e, fact in enumerate(some):
        alone = editor.edit_each([fact])
        assert_same(values(together, e), values(alone, 0))
        assert together.outcomes[e].loss == methods.about(alone.outcomes[0].loss)
        assert together.outcomes[e].error is None
        # Or the equality says nothing about the change:
        assert not changes or differ(values(together, e), values(edits, e))


def test_order_and_chunks_change_nothing(editor, some, edits):
    chunked = editor.edit_each(some[::-1], edits_at_once=2)
    for e, fact in enumerate(some):
        assert chunked.facts[2 - e] == (fact,)
        assert_same(values(chunked, 2 - e), values(edits, e))


def test_another_fact_leaves_the_other_edits(editor, some, edits):
    other = Fact(
        case_id="other", prompt="An altogether different and longer prompt says", subject="prompt", target_new="yes"
    )
    after = editor.edit_each([some[0], other, some[2]])
    assert [differ(values(edits, e), values(after, e)) for e in range(3)] == [False, True, False]
    for e in (0, 2):
        assert_same(values(edits, e), values(after, e))


def test_stopping_early_together_is_stopping_alone(method, stopped):
    if not known(method, stop_at=0.04):
        pytest.skip("it takes no steps")
    steps = [outcome.steps for outcome in stopped.outcomes]
    assert min(steps) < 20, "some edit is to stop early"
    assert len({*steps}) > 1, "edits are to stop at different times"
    assert stopped.patch.steps.tolist() == steps
    for e, (fact,) in enumerate(stopped.facts):
        alone = stopped.editor.edit_each([fact])
        assert alone.outcomes[0].steps == steps[e]
        assert_same(values(stopped, e), values(alone, 0))


def test_a_finished_edit_is_as_it_was_when_it_stopped(model, tokenizer, stopped):
    if not isinstance(stopped.editor, TrainedEditor):
        pytest.skip("what stops is the training of a value, which the weights then give as nearly as they can")
    for e, outcome in enumerate(stopped.outcomes):
        if outcome.steps < 20:
            ((fact,),) = stopped[e].facts
            anchors = [f"{fact.subject} is a", f"The {fact.subject} was"] if fact.subject else []
            before = [slow.next_log_probs(model, tokenizer, anchor) for anchor in anchors]
            with stopped.on([e]):
                log_probs = slow.log_probs(model, tokenizer, fact.prompt, fact.target_new)
                after = [slow.next_log_probs(model, tokenizer, anchor) for anchor in anchors]
            assert log_probs.exp().min() >= 0.04
            kls = [(p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(before, after, strict=True)]
            kl = sum(kls) / max(len(kls), 1)
            penalty = torch.as_tensor(stopped.patch.penalty()).expand(len(stopped))[e].item()
            assert outcome.loss == pytest.approx(-log_probs.mean().item() + 0.2 * kl + penalty, rel=1e-9)


def test_the_answer_becomes_likelier(method, model, tokenizer, some, edits):
    if method == "incontext":
        pytest.skip("random weights do not read what is said before a text")
    for e, fact in enumerate(some):
        before = slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).sum()
        with edits.on([e]):
            after = slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).sum()
        assert after > before + 0.5


def test_the_seed_repeats_an_edit_and_tells_it_from_others(method, model, tokenizer, some, editor):
    first, again = editor.edit_each(some[:2]), editor.edit_each(some[:2])
    other = bound(method, model, tokenizer, steps=1, seed=1).edit_each(some[:2])
    torch.testing.assert_close(first.patch.lasting(), again.patch.lasting(), rtol=0, atol=0)
    assert len({*first.patch.seeds.tolist(), *other.patch.seeds.tolist()}) == 4


# One edit for all facts, and one after another


@pytest.mark.parametrize("order", ["breadth_first", "depth_first"])
def test_one_fact_in_one_edit_is_an_independent_edit(order, method, model, tokenizer, some, edits, stopped):
    assert_same(
        values(bound(method, model, tokenizer, **known(method, order=order)).edit(some[:1]), 0), values(edits, 0)
    )
    learned = [e for e, outcome in enumerate(stopped.outcomes) if outcome.error is None]
    early = min(learned, key=lambda e: stopped.outcomes[e].steps)
    alone = stopped.editor.edit(stopped.facts[early])
    assert_same(values(alone, 0), values(stopped, early))
    assert alone.outcomes[0].steps == stopped.outcomes[early].steps
    assert alone.outcomes[0].loss == methods.about(stopped.outcomes[early].loss)


@pytest.mark.parametrize("order", ["breadth_first", "depth_first"])
def test_one_edit_carries_all_facts(order, method, model, tokenizer, some):
    edits = bound(method, model, tokenizer, **known(method, order=order, batch_size=2)).edit(some)
    assert edits.facts == (some,)
    before = [slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).mean() for fact in some]
    with edits.on([0]):
        after = [slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).mean() for fact in some]
    if method != "incontext":  # random weights do not read
        assert sum(after) > sum(before) + 0.5


def test_sequential_editing_goes_on_from_the_edit_before(model, tokenizer, editor, some, edits):
    first, second = editor.edit_stream(some[:2])
    assert (first.facts, second.facts) == ((some[:1],), (some[:2],))
    assert_same(values(first, 0), values(edits, 0))
    assert differ(values(second, 0), values(edits, 1))
    with first.on([0]):
        before = slow.log_probs(model, tokenizer, some[1].prompt, some[1].target_new).sum()
    with second.on([0]):
        assert slow.log_probs(model, tokenizer, some[1].prompt, some[1].target_new).sum() > before + 0.5


# The model stays as it was


def test_the_model_is_left_as_it_was(method, family, tokenizer, some, edits):
    model = tiny.model(family)
    for flag, p in zip(itertools.cycle([True, False]), model.parameters(), strict=False):
        p.requires_grad = flag
    model.train()  # with dropout of its own, which no edit may see
    model.get_output_embeddings().eval()
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]

    again = bound(method, model, tokenizer).edit_each(some)
    assert_same(values(again, 0), values(edits, 0))
    assert flags == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), tiny.model(family).state_dict(), rtol=0, atol=0)
    assert hooks_on(model) == 0


def test_after_detaching_logits_are_bit_identical(model, family, tokenizer, edits):
    ids = tokenizer(TEXTS[0])["input_ids"]
    untouched = slow.logits(tiny.model(family), ids)
    with edits.on([1]):
        assert not torch.equal(slow.logits(model, ids), untouched)
    assert torch.equal(slow.logits(model, ids), untouched)


@pytest.mark.parametrize("where", ["inside the model", "in the optimizer"])
def test_the_model_is_left_as_it_was_when_training_breaks_off(where, method, family, tokenizer, some, monkeypatch):
    steps = known(method, steps=3)
    if where == "in the optimizer" and not steps:
        pytest.skip("it takes no steps")
    model, calls = tiny.model(family), itertools.count(0 if steps else 2)  # the third step, or the only pass
    head = model.get_output_embeddings()

    def breaking(run: Any) -> Any:
        def broken(*args: Any) -> Any:
            if next(calls) == 2:
                raise RuntimeError("planted")
            return run(*args)

        return broken

    with monkeypatch.context() as patched:
        if where == "inside the model":
            patched.setattr(head, "forward", breaking(head.forward))
        else:
            patched.setattr(Adam, "step", breaking(Adam.step))
        with pytest.raises(RuntimeError, match="planted"):
            bound(method, model, tokenizer).edit_each(some[:2], edits_at_once=2)
    vars(head).pop("forward", None)  # monkeypatch puts the method back as an attribute
    assert hooks_on(model) == 0
    assert all(p.requires_grad for p in model.parameters())
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert torch.equal(slow.logits(model, ids), slow.logits(tiny.model(family), ids))


def test_nothing_stays_attached_when_the_body_breaks_off(model, edits):
    with pytest.raises(RuntimeError, match="planted"), edits.on([0]):
        raise RuntimeError("planted")
    assert hooks_on(model) == 0


# Rows


def test_rows_of_a_batch_are_each_computed_with_their_own_edit(model, tokenizer, edits):
    ids = [tokenizer(text.ljust(24))["input_ids"] for text in TEXTS]
    plain = [slow.logits(model, row) for row in ids]
    for rows in ([2, -1, 0], [0, 1, 2], [1, 1, 0], [-1, -1, -1], [-1, 2, 2]):
        with edits.on(rows), torch.no_grad():
            batch = model(torch.tensor(ids)).logits
        for r, e in enumerate(rows):
            with edits.on([e]):
                alone = slow.logits(model, ids[r])
            torch.testing.assert_close(batch[r], alone, rtol=1e-9, atol=1e-11)
            assert torch.allclose(batch[r], plain[r], rtol=1e-12, atol=1e-12) == (e == -1)


def test_rows_that_name_no_edit_and_batches_of_other_rows_are_refused(model, edits):
    with pytest.raises(IndexError, match="from -1 to 2, got 0 to 3"), edits.on([0, 3]):
        pass
    with pytest.raises(IndexError, match="from -1 to 2"), edits.on([-2]):  # -1 is the unedited model, so no other end
        pass
    for batch in (
        {"input_ids": torch.zeros(3, 4, dtype=torch.long)},
        {"inputs_embeds": torch.zeros(3, 4, 32).double()},
    ):
        with pytest.raises(ValueError, match="attached for 2 rows, but the batch has 3"), edits.on([0, 1]):
            model(**batch)


def test_generation_in_a_padded_batch_is_generation_alone(model, tokenizer, edits):
    prompts, rows = [tokenizer(text)["input_ids"] for text in (*TEXTS, TEXTS[2])], [2, 0, 1, -1]
    seen: list[Tensor] = []

    def choose(logits: Tensor, rows: Any, step: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    texts = continuations(
        model, prompts, tokens=6, choose=choose, attach=lambda left: edits.on([rows[r] for r in left])
    )
    for r, e in enumerate(rows):
        with edits.on([e]):
            text, logits = slow.greedy(model, prompts[r], 6)
        assert texts[r] == text
        torch.testing.assert_close(torch.stack(seen, 1)[r], logits, rtol=1e-9, atol=1e-10)


# What is kept


def test_saving_and_loading_change_nothing(method, model, tokenizer, stopped, tmp_path):
    stopped.save(tmp_path / "edits")
    again = editors.load(tmp_path / "edits", model, tokenizer)
    torch.testing.assert_close(again.patch.lasting(), stopped.patch.lasting(), rtol=0, atol=0)
    assert (again.facts, again.outcomes) == (stopped.facts, stopped.outcomes)
    assert (again.editor.name(), again.editor.hparams, again.editor.seed) == (method, stopped.editor.hparams, 0)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]] * 3)
    with torch.no_grad(), stopped.on([3, -1, 1]):
        logits = model(ids).logits
    with torch.no_grad(), again.on([3, -1, 1]):
        assert torch.equal(model(ids).logits, logits)


def test_edits_of_another_model_are_refused(family, tokenizer, edits, tmp_path):
    edits.save(tmp_path)
    other = tiny.model(family)
    with torch.no_grad():
        next(other.parameters())[3, 0] += 1e-6
    with pytest.raises(EditsError, match="trained on another model"):
        editors.load(tmp_path, other, tokenizer)


def test_single_edits_and_joined_ones_are_the_same_edits(edits):
    assert edits[-1].facts == edits.facts[2:]
    with pytest.raises(IndexError):
        edits[3]
    joined = Edits.concatenated([edits[2], edits[0]])
    assert joined.facts == (edits.facts[2], edits.facts[0])
    for e, i in enumerate((2, 0)):
        own, theirs = values(joined, e), values(edits, i)
        assert all(torch.equal(cut(own[name]), cut(theirs[name])) for name in theirs)


def test_a_merged_edit_computes_what_the_attached_one_does(method, model, tokenizer, edits):
    if not isinstance(edits.patch, WeightPatch):
        with pytest.raises(EditsError, match=f"{method} is no change of weights and cannot be merged; use"):
            edits.merged(0)
        return
    ids = tokenizer(TEXTS[0])["input_ids"]
    for e in range(3):
        with edits.on([e]):
            attached = slow.logits(model, ids)
        merged = edits.merged(e)
        torch.testing.assert_close(slow.logits(merged, ids), attached, rtol=1e-9, atol=1e-10)
        assert hooks_on(merged) == 0


def test_trained_numbers_are_counted_as_they_are(edits):
    if type(edits.patch).trained is not Patch.trained:
        pytest.skip("not all of its numbers count (padding, pruned triplets); the method's own test has its formula")
    numbers = [x for p in edits.patch.parameters() for x in p[1].flatten().tolist()]
    assert edits.num_trainable_parameters() == len(numbers)
    assert edits.nonzero_share(1) == (sum(x != 0 for x in numbers) / len(numbers) if numbers else 1.0)


# What goes wrong stays with the fact that it goes wrong with


def test_a_fact_that_cannot_be_encoded_leaves_the_others(model, tokenizer, editor, some, edits, tmp_path):
    long = Fact(case_id="long", prompt="so " * tiny.CONTEXT, subject="so", target_new="long")
    mixed = editor.edit_each([some[0], long, some[1]])
    assert [outcome.error for outcome in mixed.outcomes][::2] == [None, None]
    assert "the model's context is 192" in mixed.outcomes[1].error
    for e in (0, 1):
        assert_same(values(mixed, 2 * e), values(edits, e))
    scores = evaluate(mixed, fluency=False)
    assert [len(fact.probes) > 0 for fact in scores] == [True, False, True]
    mixed.save(tmp_path)
    assert editors.load(tmp_path, model, tokenizer).outcomes == mixed.outcomes
    assert mixed.outcomes[1].loss is None


def test_a_fact_the_model_cannot_compute_leaves_the_others(method, family, tokenizer, some):
    model = tiny.model(family)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())  # GPT-2's is its embedding
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = math.nan
    sick = Fact(case_id="sick", prompt="A tilde ~ is", subject="tilde ~", target_new="poison")
    editor = bound(method, model, tokenizer)
    mixed, expected = editor.edit_each([some[0], sick, some[1]]), editor.edit_each(some[:2])
    assert re.match("the loss (became nan at step 0; a lower lr may help|is nan)", mixed.outcomes[1].error)
    assert all(t.isfinite().all() for t in mixed.patch.lasting().values())
    for e in (0, 1):
        assert mixed.outcomes[2 * e].error is None
        assert_same(values(mixed, 2 * e), values(expected, e))


def test_a_loss_that_becomes_nan_leaves_the_others(method, editor, some, edits, monkeypatch):
    if not known(method, steps=STEPS):
        pytest.skip("it takes no steps")
    losses = Work.losses

    def poisoned(work: Work) -> tuple[Tensor, Tensor]:
        loss, lowest = losses(work)
        sick = work.patch.seeds == editor.seed_for([some[1]])
        return loss.masked_fill(sick & (work.patch.steps == 3), math.nan), lowest

    monkeypatch.setattr(Work, "losses", poisoned)
    mixed = editor.edit_each(some)
    assert [outcome.steps for outcome in mixed.outcomes] == [STEPS, 3, STEPS]
    assert [outcome.error for outcome in mixed.outcomes] == [
        None,
        "the loss became nan at step 3; a lower lr may help",
        None,
    ]
    for e in (0, 2):
        assert_same(values(mixed, e), values(edits, e))
    untrained = editor.untrained([editor.seed_for([some[1]])]).lasting()
    assert_same(
        {name: cut(t) for name, t in values(mixed, 1).items()}, {name: cut(t[0]) for name, t in untrained.items()}
    )
    (score,) = evaluate(mixed[1], fluency=False)
    assert (score.error, score.probes) == (mixed.outcomes[1].error, ())


def test_out_of_memory_halves_the_batch(editor, some, edits, monkeypatch, caplog):
    learn, sizes = type(editor).learn, []

    def small(editor: Any, lessons: Any, seeds: Any, progress: Any = None) -> Any:
        sizes.append(len(lessons))
        if len(lessons) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(editor, lessons, seeds, progress)

    monkeypatch.setattr(type(editor), "learn", small)
    halved = editor.edit_each(some, edits_at_once=3)
    assert sizes[0] > 1  # texts of like length at a time
    assert sizes[1:] == [1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == ["out of memory with 3 edits at once; going on with 1"]
    for e in range(3):
        assert_same(values(halved, e), values(edits, e))


# In float32


@pytest.mark.parametrize("method", ["lora", "roselora"])
def test_in_float32_side_by_side_is_one_by_one(method, family, tokenizer, facts):
    # Within 1e-4 of the whole edit: an element whose gradient is all rounding may wander, as in any Adam.
    model = tiny.model(family, torch.float32)
    editor = bound(method, model, tokenizer, dropout=0.1, lr=5e-3)
    together = editor.edit_each(facts[:3])
    for e, fact in enumerate(facts[:3]):
        alone = editor.edit_each([fact])
        a, b = (
            torch.cat([p[i].flatten() for p in edits.patch.parameters()]) for edits, i in ((together, e), (alone, 0))
        )
        assert (a - b).norm() <= 1e-4 * b.norm()
        (many,), (one,) = (evaluate(edits, measures=("generation",), fluency=False) for edits in (together[e], alone))
        for p, q in zip(many.probes, one.probes, strict=True):
            assert p.same == q.same
            assert [answer.correct for answer in p.edited.answers] == [answer.correct for answer in q.edited.answers]
            assert p.edited.generated == q.edited.generated
