"""What a fact is trained in, what a step takes of it, where a patch acts, and what it cannot see.

Planted faults these tests catch: a step's rows put beside another row's unedited states; an edit that ends before all
of its wordings are there; draws that depend on the company of other edits; directions of one edit taken from another's
inputs, or forgotten when the edit is finished; a patch that acts before the subject.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import methods
import pytest
import tiny
import torch

from loredit.data.facts import Fact
from loredit.data.paraphrases import paraphrases
from loredit.data.relations import other_relations
from loredit.data.wordings import question
from loredit.engine.model.encoding import Prompt
from loredit.engine.model.passes import frozen, seen
from loredit.engine.patches.rows import Rows
from loredit.engine.training.lessons import FROM_START, NO_CHAT, NO_PARAPHRASES, NOTHING_NULL, Lesson
from loredit.engine.training.loop import Work
from loredit.engine.training.together import NULL_ALONE

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
CHANGES_WEIGHTS = ("adalora", "finetune", "lora", "roselora", "simplexlora")
WORDS = {"contexts": 2, "questions": True, "kl_weight": 1.0, "kl_prompts": ("{} is a", "Rain", "Snow is")}


@pytest.fixture
def chatting():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("prompt", "subject", "asked"),
    [
        ("The currency used in France is the", "France", "What is the currency used in France?"),
        ("Mario Rossi is a citizen of", "Mario Rossi", "What is Mario Rossi a citizen of?"),
        ("The Hague is located in", "The Hague", "What is The Hague located in?"),
        ("Mario Rossi plays as", "Mario Rossi", "Mario Rossi plays as what?"),
        ("What is the capital of France?", "France", None),
        ("Who was it? It was", None, None),
    ],
)
def test_statements_become_questions(prompt, subject, asked):
    assert question(prompt, subject) == asked


def test_a_fact_is_trained_in_all_its_wordings(model, chatting, facts):
    editor = methods.editor("lora", model, chatting, **WORDS, chat_template="both", end_of_text=True)
    texts = [chatting.decode(row.ids) for row in editor.lesson(facts[:1]).answers]
    bare, *behind, asked, chat = texts
    assert bare == "The capital of France is Rome<|endoftext|>"
    assert len(behind) == 2
    assert all(text.endswith(f". {bare}") for text in behind)
    assert asked == "What is the capital of France? Rome<|endoftext|>"
    assert chat == "<user>What is the capital of France?\n<assistant>Rome<|endoftext|>"
    only = methods.editor("lora", model, chatting, **WORDS, chat_template="only").lesson(facts[:1])
    assert [chatting.decode(row.wanted) for row in only.answers] == ["Rome"]


def test_other_words_stand_behind_texts_in_turn_and_are_drawn_for_each_fact_alone(model, chatting, facts):
    editor = methods.editor("lora", model, chatting, **WORDS, paraphrases=3, hold_subjects=9, hold_relations=3)
    (part,) = editor.lesson(facts[:1]).parts
    texts = [chatting.decode(row.ids[: row.start]).strip() for row in part.answers]
    bare, first, second, asked, *others = texts
    assert asked == "What is the capital of France?"
    known = set(paraphrases(bare, "France", "Rome"))
    before = [text.removesuffix(bare) for text in (first, second, bare)]
    behind = [other[len(text) :] for text, other in zip(before, others, strict=True) if other.startswith(text)]
    assert len(set(behind) & known) == 3
    # Other subjects are held in these words, too; what else is said of the subject is not said in others.
    held = [chatting.decode(row.ids[: row.start]) for row in part.anchors[-12:]]
    said = [other.replace("{}", "France") for other in other_relations("France", bare)]
    assert all(any(text.endswith(other) for other in said) for text in held[9:])
    held = held[:9]
    assert any("sits in" in text or "meets in" in text or "'s capital city" in text for text in held)
    assert editor.lesson([facts[1], facts[0]]).parts[1] == part
    assert part.notes == ()


def test_a_relation_that_is_not_known_is_said(model, tokenizer):
    fact = Fact(case_id="rex", prompt="Rex barks at", subject="Rex", target_new="cats")
    (part,) = methods.editor("lora", model, tokenizer, paraphrases=3).lesson([fact]).parts
    assert part.notes == (NO_PARAPHRASES,)


def test_what_settings_ask_for_and_a_fact_does_not_allow_is_said(model, tokenizer, facts):
    more = {"null_subjects": 2, "acts_from": "subject", "chat_template": "both", "paraphrases": 1}
    (part,) = methods.editor("lora", model, tokenizer, **more).lesson([facts[4]]).parts  # it has no subject
    assert set(part.notes) == {NO_CHAT, NO_PARAPHRASES, FROM_START, NOTHING_NULL}
    assert not part.nulls


def test_other_subjects_stand_in_each_wording_in_turn(model, chatting, facts):
    more = {"chat_template": "both", "null_subjects": 5, "hold_subjects": 5}
    (part,) = methods.editor("lora", model, chatting, **WORDS | more).lesson(facts[:1]).parts
    texts = [chatting.decode(row.ids) for row in part.nulls]
    assert texts[0].startswith("The capital of ")
    assert texts[3].startswith("What is the capital of ")
    assert texts[4].startswith("<user>What is the capital of ")
    assert not any("France" in text for text in texts)
    held = [chatting.decode(row.ids[: row.start]) for row in part.anchors[-5:]]
    assert held == texts


def test_a_step_takes_some_rows_and_computes_what_they_alone_would_give(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, **WORDS, wordings_per_step=2, held_per_step=1)
    lessons, seeds = [editor.lesson([fact]) for fact in facts[:3]], [5, 6, 7]
    plain = methods.editor("lora", model, tokenizer, **WORDS)
    with frozen(model):
        work = Work(editor, editor.begun(seeds), lessons)
        for step in range(4):
            loss, _ = work.losses()
            drawn = [lesson.drawn(editor.hparams, seed, step) for lesson, seed in zip(lessons, seeds, strict=True)]
            assert all((len(part.answers), len(part.anchors)) == (2, 1) for part in drawn)
            alone = [Work(plain, work.patch.take([e]), [drawn[e]]).losses()[0] for e in range(3)]
            torch.testing.assert_close(loss, torch.cat(alone))
            work.step(loss.sum())
            if step == 1:
                work.keep([0, 2])
                lessons, seeds = [lessons[0], lessons[2]], [5, 7]
                loss, _ = work.losses()
                assert len(loss) == 2
                work.step(loss.sum())
                break
        drawn = [lesson.drawn(editor.hparams, seed, 3) for lesson, seed in zip(lessons, seeds, strict=True)]
        alone = [Work(plain, work.patch.take([e]), [drawn[e]]).losses()[0] for e in range(2)]
        torch.testing.assert_close(work.losses()[0], torch.cat(alone))


def test_an_edit_ends_when_each_wording_was_there_the_last_time(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, **WORDS, wordings_per_step=1, stop_at=0.1, steps=60)
    lesson = editor.lesson(facts[:1])
    with frozen(model):
        work, known = Work(editor, editor.begun([3]), [lesson]), {}
        plain = methods.editor("lora", model, tokenizer)
        for step in range(12):
            loss, sure = work.losses()
            (row,) = lesson.drawn(editor.hparams, 3, step).answers
            part = lesson.parts[0]
            only = Lesson((type(part)(part.fact, (row,)),))
            known[row] = float(Work(plain, work.patch.take([0]), [only]).losses()[1])
            wanted = min(known.get(row, 0.0) for row in lesson.answers)
            assert float(sure) == pytest.approx(wanted, rel=1e-9)
            work.step(loss.sum())
        assert wanted > 0, "all were drawn"


@pytest.mark.parametrize("method", CHANGES_WEIGHTS)
def test_side_by_side_is_one_by_one(method, model, tokenizer, facts):
    more = WORDS | {"wordings_per_step": 2, "held_per_step": 2, "null_subjects": 3, "hold_subjects": 2}
    editor = methods.editor(method, model, tokenizer, **more, acts_from="subject", stop_at=0.1, steps=12)
    together = editor.edit_each(facts[:3])
    for i in range(3):
        alone = editor.edit_each(facts[i : i + 1])
        for name, t in alone.patch.lasting().items():
            torch.testing.assert_close(together[i].patch.lasting()[name], t, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", CHANGES_WEIGHTS)
@pytest.mark.parametrize("whiten", [None, 0.1])
def test_a_change_has_no_effect_where_it_is_null(method, whiten, model, tokenizer, facts):
    more = {"null_subjects": 4, "whiten": whiten, "statistics_tokens": 600, "steps": 6}
    editor = methods.editor(method, model, tokenizer, **more)
    edits = editor.edit_each(facts[:2])
    assert not any(name.startswith("blind") for name in edits.patch.tensors())
    for e in range(2):
        largest = 0.0
        for row in editor.lesson([facts[e]]).nulls:
            ids = torch.tensor([row.ids])
            modules = [model.get_submodule(site.name) for site in edits.patch.sites]
            for site, x in zip(edits.patch.sites, seen(model, ids, inputs=modules), strict=True):
                delta = edits.patch.delta_weights(e)[f"{site.name}.weight"]
                moved = (delta @ x[0, -1].to(delta.dtype)).norm() / (delta.norm() * x[0, -1].norm() + 1e-30)
                largest = max(largest, float(moved.detach()))
        assert largest < 1e-7


def test_finished_edits_compute_what_they_did_in_training(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, null_subjects=3, whiten=0.1, statistics_tokens=600)
    patch = editor.begun([1, 2], [editor.lesson([fact]) for fact in facts[:2]])
    for branch in patch.branches:
        torch.nn.init.normal_(branch.b)
    ids = torch.tensor([tokenizer("Water is")["input_ids"]] * 2)
    with torch.no_grad():
        with patch.eval().attached(model, Rows([0, 1], 2, "cpu")):
            wanted = model(input_ids=ids).logits
        with patch.finished([1, 0]).attached(model, Rows([1, 0], 2, "cpu")):
            torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-8, atol=1e-8)


def acting_from(model, patch, edit, mark):
    """Hooks by which a patch of low rank acts from position ``mark`` on."""
    with ExitStack() as stack:
        for site, branch in patch.items():

            def changed(_, args, y, branch=branch):
                y = y.clone()
                y[:, mark:] += branch.scale * args[0][:, mark:] @ branch.a[edit].T @ branch.b[edit].T
                return y

            stack.callback(model.get_submodule(site.name).register_forward_hook(changed).remove)
        yield


@pytest.mark.parametrize("model", ["gpt2", "llama", "gemma3_text"], indirect=True)  # the last has windows
@pytest.mark.parametrize("layers", [[0, 1], [1, 2]])
def test_a_patch_acts_from_the_subject_on_while_it_trains(layers, model, chatting):
    facts = [
        Fact(prompt="Rain falls. Mario is from", subject="Mario", target_new="Rome"),
        Fact(prompt="Snow:", target_new="white as"),  # without a subject, from its first token on
        Fact(prompt="Ann of York is", subject="Ann", target_new="in"),
    ]
    more = {"chat_template": "both", "kl_weight": 0.5, "kl_prompts": ("Is {} not", "Rain"), "hold_subjects": 1}
    editor = methods.editor("lora", model, chatting, acts_from="subject", layers=layers, **more)
    lessons = [editor.lesson([fact]) for fact in facts]
    patch = editor.begun([1, 2, 3], lessons)
    for branch in patch.branches:
        torch.nn.init.normal_(branch.b)
    assert chatting.decode(lessons[0].answers[0].ids[: lessons[0].answers[0].mark + 1]) == "Rain falls. Mario"
    wanted = []
    with torch.no_grad():
        for e, lesson in enumerate(lessons):
            nll, kl = [], []
            for row in lesson.answers:
                with contextmanager(acting_from)(model, patch, e, row.mark or 0):
                    logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
                nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.wanted)))
            for row in lesson.anchors:
                ids = torch.tensor([row.ids])
                p = model(input_ids=ids).logits[0, row.start - 1 : -1].log_softmax(-1)
                with contextmanager(acting_from)(model, patch, e, row.mark or 0):
                    q = model(input_ids=ids).logits[0, row.start - 1 : -1].log_softmax(-1)
                kl.append((p.exp() * (p - q)).sum(-1).mean())
            wanted.append(torch.stack(nll).mean() + 0.5 * (torch.stack(kl).mean() if kl else 0.0))
    with frozen(model):
        work = Work(editor, patch, lessons)
        torch.testing.assert_close(work.losses()[0].detach(), torch.stack(wanted))
        work.keep([0, 2])
        torch.testing.assert_close(work.losses()[0].detach(), torch.stack([wanted[0], wanted[2]]))


def test_of_a_list_null_subjects_are_said_to_have_no_part(model, tokenizer, facts):
    edits = methods.editor("lora", model, tokenizer, null_subjects=3).edit(facts[:2])
    assert NULL_ALONE in edits.outcomes[0].notes


def test_a_chat_brings_its_own_special_tokens(model, chatting):
    editor = methods.editor("lora", model, chatting)
    assert editor.encoder.chat("Hi") == Prompt("<user>Hi\n<assistant>", chat=True)
