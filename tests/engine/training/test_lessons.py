"""What an edit is trained on."""

from __future__ import annotations

import methods

from loredit.engine.model.generation import sampled_texts


def test_a_lesson_holds_a_row_for_each_fact_and_context_and_an_anchor_for_each_prompt(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, contexts=2, kl_weight=1, kl_prompts=("{} is a", "Rain"))
    made = editor.lesson([facts[0], facts[4]])  # the latter has no subject
    contexts = ["", *(f"{text} " for text in sampled_texts(model, tokenizer, 2))]
    texts = [f"{context}{fact.prompt} {fact.target_new}" for fact in (facts[0], facts[4]) for context in contexts]
    assert [list(row.ids) for row in made.answers] == [tokenizer(text)["input_ids"] for text in texts]
    assert tokenizer.decode(made.answers[1].wanted) == " Rome"
    anchors = ["France is a", "Rain", "Rain"]
    assert [list(row.ids[: row.start]) for row in made.anchors] == [tokenizer(text)["input_ids"] for text in anchors]
    assert all(len(row.wanted) == 1 for row in made.anchors)
    editor = methods.editor("lora", model, tokenizer, kl_weight=1, kl_prompts=("{} is a", "Rain"), kl_positions="all")
    every = editor.lesson([facts[0], facts[4]]).anchors
    assert [row.ids for row in every] == [row.ids for row in made.anchors]
    assert all(row.start == 1 for row in every)
    assert not methods.editor("lora", model, tokenizer).lesson(facts[:1]).anchors
