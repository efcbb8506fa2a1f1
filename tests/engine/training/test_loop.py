"""The one training loop: its loss, and what stays when edits leave."""

from __future__ import annotations

from math import log

import methods
import pytest
import slow
import torch

from loredit.engine.training.loop import Work, smoothed


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_loss_of_one_edit_is_the_mean_of_its_facts_and_of_its_anchors(positions, model, tokenizer, facts):
    changes = {"kl_weight": 0.7, "kl_prompts": ("{} is a", "Rain", "Snow is"), "kl_positions": positions}
    edits = methods.editor("lora", model, tokenizer, steps=3, **changes).edit(facts[:2])
    # The loss after three steps is what a fourth step sees.
    (outcome,) = methods.editor("lora", model, tokenizer, steps=4, **changes).edit(facts[:2]).outcomes
    anchors = [text for fact in facts[:2] for text in (f"{fact.subject} is a", "Rain", "Snow is")]
    held = slice(None) if positions == "all" else slice(-1, None)
    before = [slow.next_log_probs(model, tokenizer, anchor)[held] for anchor in anchors]
    with edits.on([0]):
        nll = [-slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).mean() for fact in facts[:2]]
        after = [slow.next_log_probs(model, tokenizer, anchor)[held] for anchor in anchors]
    kl = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(before, after, strict=True)]
    assert outcome.loss == pytest.approx((sum(nll) / 2 + 0.7 * sum(kl) / 6).item(), rel=1e-9)
    assert sum(kl) > 1e-3


@pytest.mark.parametrize("stop", [{"stop_at": 0.2}, {"stop_at_rank_1": True}], ids=["sure", "likeliest"])
def test_an_edit_stops_as_soon_as_it_is_sure_without_dropout(stop, model, tokenizer, facts):
    changes = {"dropout": 0.5, "lr": 3e-2}
    (outcome,) = methods.editor("lora", model, tokenizer, **changes, **stop, steps=60).edit(facts[:1]).outcomes
    assert outcome.steps < 60
    for steps in (outcome.steps - 1, outcome.steps):
        with methods.editor("lora", model, tokenizer, **changes, steps=steps).edit(facts[:1]).on(0):
            predictions, wanted = slow.answer_logits(model, tokenizer, facts[0].prompt, facts[0].target_new)
        likeliest = (predictions.argmax(-1) == wanted).all()
        likely = predictions.softmax(-1)[range(len(wanted)), wanted].min() >= 0.2
        assert (likely if "stop_at" in stop else likeliest) == (steps == outcome.steps)


def test_predictions_that_are_to_stay_need_not_be_sure(model, tokenizer, facts):
    # After some steps the answers are surer than what follows "Rain" in the unedited model.
    editor = methods.editor("lora", model, tokenizer, kl_weight=0.1, kl_prompts=("Rain",), steps=60, lr=3e-2)
    edits = editor.edit_each(facts[:4])
    _, sure = Work(editor, edits.patch, [editor.lesson([fact]) for fact in facts[:4]]).losses()
    for e, (fact, found) in enumerate(zip(facts[:4], sure.tolist(), strict=True)):
        with edits.on(e):
            worst = slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).exp().min()
        assert found == pytest.approx(worst.item(), rel=1e-9)


@pytest.mark.parametrize("left", [[0], [1], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_when_edits_leave_the_batch_the_others_are_held_to_their_own_predictions(
    positions, left, model, tokenizer, facts
):
    changes = {"kl_weight": 0.7, "kl_prompts": ("{} is a", "The {} was"), "kl_positions": positions}
    editor = methods.editor("lora", model, tokenizer, **changes)
    lessons = [editor.lesson([fact]) for fact in facts[:3]]
    work = Work(editor, editor.fresh([0, 1, 2]), lessons)
    before, _ = work.losses()
    work.keep(left)
    torch.testing.assert_close(work.losses()[0], before[left], rtol=1e-9, atol=1e-12)


def test_a_smoothed_target_is_a_share_of_the_token_and_what_the_model_finds_likely():
    logits = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(40) % 30
    found = smoothed(logits, labels, 0.6)
    for n, row in enumerate(logits.detach()):
        p = row.softmax(0)
        bound = row.max() - 0.5 * row.std()
        mass = sum(p[v] for v in range(30) if row[v] >= bound)
        q = [0.4 * float(p[v] / mass) if row[v] >= bound else 0.0 for v in range(30)]
        q[labels[n]] += 0.6
        if max(range(30), key=q.__getitem__) != labels[n]:
            q = [float(v == labels[n]) for v in range(30)]
        loss = sum(q[v] * (log(q[v]) - p[v].log()) for v in range(30) if q[v])
        assert found[n].item() == pytest.approx(float(loss), rel=1e-9)
    # Its gradient is p - q: what the model finds likely is learned as it is, not pushed further.
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.allclose(gradient.sum(1), torch.zeros(40, dtype=torch.float64), atol=1e-12)


def test_a_smoothed_edit_leaves_the_other_tokens_more(model, tokenizer, facts):
    fact, steps = facts[0], 12
    plain, soft = (
        methods.editor("lora", model, tokenizer, steps=steps, **{"smooth": share} if share else {}).edit([fact])
        for share in (None, 0.5)
    )
    found = []
    for edits in (plain, soft):
        with edits.on([0]):
            found.append(slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).mean().exp().item())
    before = slow.log_probs(model, tokenizer, fact.prompt, fact.target_new).mean().exp().item()
    assert before < found[1] < found[0]
