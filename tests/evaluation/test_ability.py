"""General ability: likelihoods against a slow loop, scores by hand, edits and stores, and lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import methods
import pytest
import tiny
import torch
from typer.testing import CliRunner

from loredit import session
from loredit.bridges.lm_eval import HarnessError, offline, simple_evaluate
from loredit.cli import app
from loredit.data.ability import AbilityTask, Question
from loredit.evaluation.ability import metrics
from loredit.evaluation.ability.metrics import Likelihoods
from loredit.evaluation.ability.runs import evaluate
from loredit.evaluation.ability.scoring import continued, read
from loredit.store.store import EditStore

QUESTIONS = (
    Question("Question: Is water wet?\nAnswer:", ("yes", "no, never"), 0),
    Question("The sky is", ("blue and wide", "red", "up"), 1),
    Question("One and two make ", ("three", "9"), 1),
)
WORDS = (Question("He lost his hat. She found the", ("hat",), 0), Question("Ox and", ("elm",), 0))


def task(*questions: Question, texts: tuple[str, ...] = ()) -> AbilityTask:
    return AbilityTask("own", questions, texts, "0")


def slow(model: Any, tokenizer: Any, text: str, option: str) -> tuple[float, bool]:
    text, spaces = text.rstrip(), text[len(text.rstrip()) :]
    before, whole = (tokenizer(t)["input_ids"] for t in (text, f"{text}{spaces} {option}"))
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    wanted = [*range(len(before), len(whole))]
    cost = sum(float(logits[i - 1, whole[i]]) for i in wanted)
    return cost, all(int(logits[i - 1].argmax()) == whole[i] for i in wanted)


def test_likelihoods_are_those_of_one_text_at_a_time(model, tokenizer):
    pairs = [(q.text, option) for q in (*QUESTIONS, *WORDS) for option in q.options]
    got = read(model, [continued(tokenizer, *pair, tiny.CONTEXT) for pair in pairs])
    for pair, seen in zip(pairs, got, strict=True):
        log_prob, likeliest = slow(model, tokenizer, *pair)
        assert seen.log_prob == pytest.approx(log_prob, abs=1e-9)
        assert seen.likeliest == likeliest


def test_a_text_that_is_too_long_loses_its_beginning(tokenizer):
    row = continued(tokenizer, "x" * 300, "end", 20)
    assert len(row.ids) == 20
    assert row.wanted == tuple(tokenizer(" end")["input_ids"])


def test_accuracies_by_hand():
    seen = [
        Likelihoods((-2.0, -4.0), False),  # right; by length yes: -2/3 against -4/9
        Likelihoods((-6.5, -2.0, -3.0), False),  # right; by length "blue and wide" -0.5, "red" -0.67, "up" -1.5
        Likelihoods((-1.0, -1.5), False),  # wrong; by length "three" -0.2
    ]
    scores = metrics.of_questions(QUESTIONS, seen, None)
    assert scores["acc"].before == pytest.approx(2 / 3)
    assert scores["acc_norm"].before == pytest.approx(0)
    after = [seen[0], Likelihoods((-1.0, -2.0, -3.0), False), Likelihoods((-2.0, -1.5), False)]
    both = metrics.of_questions(QUESTIONS, seen, after)["acc"]
    assert (both.lost, both.won, both.after) == (1, 1, pytest.approx(2 / 3))
    last = metrics.of_questions(WORDS, [Likelihoods((-1.0,), True), Likelihoods((-3.0,), False)], None)
    assert last["acc"].before == 0.5
    assert last["perplexity"].before == pytest.approx(torch.tensor(2.0).exp().item())
    texts = metrics.of_texts([1, 2], [-1.0, -4.0], None)["perplexity"]
    assert texts.before == pytest.approx((torch.tensor(1.0).exp() + torch.tensor(2.0).exp()).item() / 2)


def test_after_is_what_the_merged_model_gives_and_the_model_stays(facts, tokenizer):
    model = tiny.model("llama")
    edits = methods.editor("lora", model, tokenizer).edit_each(facts[:1])
    for own in (task(*QUESTIONS), task(*WORDS), task(texts=("Water is wet, and so is soup.", "Tea."))):
        with_edit = evaluate(model, tokenizer, own, edited=lambda ids: edits.on(0))
        alone, merged = (evaluate(m, tokenizer, own) for m in (model, edits.merged(0)))
        for metric, score in with_edit.items():
            assert score.before == pytest.approx(alone[metric].before, abs=1e-9)
            assert score.after == pytest.approx(merged[metric].before, abs=1e-9)


def test_a_store_answers_each_question_with_the_edit_that_it_is_about(facts, tokenizer):
    model = tiny.model("llama")
    edits = methods.editor("lora", model, tokenizer, steps=30).edit_each(facts)
    store = EditStore(model, tokenizer)
    store.add(edits)
    store.calibrate(facts)
    questions = [Question(fact.prompt, (fact.target_new, "nothing of it"), 0) for fact in facts]
    routed = store.route([q.text for q in questions])
    assert any(route.edit >= 0 for route in routed)
    both = evaluate(model, tokenizer, task(*questions), edited=store.on)
    each = []
    for question, route in zip(questions, routed, strict=True):
        one = evaluate(model, tokenizer, task(question), edited=lambda ids, e=route.edit: edits.on(e))
        each.append(one["acc"].after)
    assert both["acc"].after == pytest.approx(sum(each) / len(each))


def test_the_harness_gives_the_same_numbers(tokenizer):
    pytest.importorskip("lm_eval")
    model = tiny.model("llama", torch.float32)
    padded = tiny.tokenizer()
    padded.pad_token = padded.eos_token
    for own in (task(*QUESTIONS), task(*WORDS)):
        ours = evaluate(model, padded, own)
        theirs = simple_evaluate(model, padded, [offline(own)])["offline_own"]
        for metric, score in ours.items():
            assert score.before == pytest.approx(theirs[metric], rel=1e-4)


def test_what_the_harness_cannot_do_is_said(monkeypatch):
    with pytest.raises(HarnessError, match="own has no questions"):
        offline(task(texts=("Tea.",)))
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(HarnessError, match=r"loredit\[ability\]"):
        simple_evaluate(tiny.model("llama"), tiny.tokenizer(), ["arc_easy"])


def test_the_command_scores_a_folder_before_and_after(facts, tokenizer, monkeypatch, tmp_path):
    model = tiny.model("llama")
    methods.editor("lora", model, tokenizer).edit_each(facts[:1]).save(tmp_path / "edits")
    loaded = type("Loaded", (), {"model": model, "tokenizer": tokenizer})
    monkeypatch.setattr(session, "loaded_for", lambda *_: loaded)
    rows = [json.dumps({"text": f"{q.text} {q.options[0]}"}) for q in WORDS]
    (tmp_path / "lambada_test.jsonl").write_text("\n".join(rows))
    command = ["ability", str(tmp_path / "edits"), "--data", str(tmp_path), "--tasks", "lambada"]
    out = tmp_path / "scores" / "ability.json"
    result = CliRunner().invoke(app, [*command, "--output", str(out)])
    assert result.exit_code == 0, result.output
    assert "lambada" in result.output
    scores = json.loads(out.read_text())["tasks"]["lambada"]["scores"]
    assert scores["perplexity"]["before"] != scores["perplexity"]["after"]
    before = out.read_text()
    again = CliRunner().invoke(app, [*command, "--output", str(out)])
    assert again.exit_code == 0
    assert out.read_text() == before
    other = CliRunner().invoke(app, [*command, "--output", str(out), "--limit", "1"])
    assert "scores of something else" in other.output
    assert "--data DIR" in CliRunner().invoke(app, ["ability", str(Path("x"))]).output
