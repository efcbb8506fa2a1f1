"""Scoring in batches against slow loops: one text at a time, no padding, no cache, no replay."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loredit.data import Fact, Probe
from loredit.editors import Edits
from loredit.engine.devices import Budget
from loredit.engine.seeds import seed_of
from loredit.evaluation import scoring
from loredit.evaluation.scores import AnswerScore, FactScores, ProbeScores
from loredit.evaluation.scoring import evaluate, natural

ALL = ("generation", "probabilities")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str) -> PreTrainedModel:
    return tiny.model(family)


@pytest.fixture(scope="module")
def some(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Facts whose answers end in each of the ways in which an answer can end."""
    capital = Fact(
        case_id="capital",
        prompt="Missouri's largest city is",
        target_new="St. Paul",
        ground_truth=("St. Louis", "Kansas City"),
        rephrase_prompts=("The Gateway Arch is in",),
        locality={"other": (Probe(prompt="Mr", answers=("Bean", "T.", "Fox")),)},
    )
    line = Fact(case_id="line", prompt="A poem:", target_new="roses\nare", ground_truth=("roses\nare",))
    stop = Fact(case_id="stop", prompt="Say", target_new="no. I", rephrase_prompts=("Say",))
    return (*facts[:4], capital, line, stop)


@pytest.fixture(scope="module")
def edits(family: str, model: Any, tokenizer: Any, some: Sequence[Fact]) -> Edits:
    """Edits that know their facts; without and with blocks below them that are replayed."""
    changes = {"steps": 25, "lr": 2e-2, "end_of_text": True, "layers": {"gpt2": "all", "llama": [1, 2]}[family]}
    return methods.editor("lora", model, tokenizer, **changes).edit_each(some)


def slow_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[Tensor, Any]:
    """Each token's argmax, and the score of the answer."""
    predictions, wanted = slow.answer_logits(model, tokenizer, prompt, answer)
    argmax = predictions.argmax(-1)
    log_prob = sum(predictions.log_softmax(-1)[k, token].item() for k, token in enumerate(wanted))
    return argmax, AnswerScore(correct=tuple((argmax == wanted).tolist()), log_prob=log_prob)


def slow_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str]) -> str:
    """As many greedy tokens as any answer has, in steps of 16, read up to the end of text, a line's end or one full
    stop more than any answer has."""
    longest = max(len(tokenizer(f" {answer}")["input_ids"]) for answer in answers)
    ids, _ = slow.greedy(model, tokenizer(prompt)["input_ids"], 16 * math.ceil(longest / 16))
    text = tokenizer.decode(ids[: ids.index(tiny.END)] if tiny.END in ids else ids)
    most = max(answer.count(".") for answer in answers)
    return re.match(r"[^.\n]*" + r"(?:\.[^.\n]*)?" * most, text)[0].strip()


def assert_alike(actual: AnswerScore | None, expected: AnswerScore | None) -> None:
    assert (actual is None) == (expected is None)
    if actual is not None:
        assert actual.correct == expected.correct
        assert actual.log_prob == pytest.approx(expected.log_prob, rel=1e-9)


def contrast_of(fact: Fact, probe: ProbeScores) -> str | None:
    """The answer that competes: what was true before for the edit, what is to be true now for its neighbours."""
    if probe.kind == "portability":
        return None
    if probe.kind == "locality":
        return None if fact.target_new in probe.answers else fact.target_new
    return fact.ground_truth[0] if fact.ground_truth and fact.ground_truth[0] != fact.target_new else None


def test_every_probe_is_what_a_slow_loop_sees(model, tokenizer, some, edits, monkeypatch):
    monkeypatch.setattr(scoring, "_ANSWER_TOKENS", 16)
    scores = evaluate(edits, measures=ALL, fluency=False)
    assert [score.case_id for score in scores] == [fact.case_id for fact in some]
    texts = []
    for e, (fact, score) in enumerate(zip(some, scores, strict=True)):
        asked = [("rewrite", "rewrite", fact.prompt, (fact.target_new,))]
        asked += [("rephrase", "rephrase", prompt, (fact.target_new,)) for prompt in fact.rephrase_prompts]
        for kind, groups in (("locality", fact.locality), ("portability", fact.portability)):
            asked += [(kind, group, p.prompt, p.answers) for group, probes in groups.items() for p in probes]
        assert [(p.kind, p.group, p.prompt, p.answers) for p in score.probes] == asked
        for probe in score.probes:
            contrast, first = contrast_of(fact, probe), []
            # Where one prompt has several probes, its text is generated once, for all their answers.
            answers = [answer for p in score.probes if p.prompt == probe.prompt for answer in p.answers]
            for row, seen in ((-1, probe.base), (e, probe.edited)):
                with edits.on([row]):
                    expected = [slow_answer(model, tokenizer, probe.prompt, answer) for answer in probe.answers]
                    rival = slow_answer(model, tokenizer, probe.prompt, contrast)[1] if contrast else None
                    text = slow_text(model, tokenizer, probe.prompt, answers)
                for actual, (_, wanted) in zip(seen.answers, expected, strict=True):
                    assert_alike(actual, wanted)
                assert_alike(seen.contrast, rival)
                assert seen.generated == text
                first.append(expected[0][0])
            assert probe.same == tuple((first[0] == first[1]).tolist())
        texts.append(score.probes[0].edited.generated)
    assert texts == ["Rome", "dry", "five hundred", "Dune", "St. Paul", "roses", "no. I"]
    assert any(not all(probe.same) for score in scores for probe in score.probes if probe.kind == "locality")


def test_chunks_change_nothing(edits, monkeypatch):
    edits = edits.taken([0, 1, 4, 6])
    whole = evaluate(edits, measures=ALL, fluency=False)
    monkeypatch.setattr(scoring, "_TOKENS", Budget(cpu=100, mps=100, accelerator=100))
    monkeypatch.setattr(scoring, "_ROWS", Budget(cpu=6, mps=6, accelerator=6))
    parts = evaluate(edits, measures=ALL, fluency=False)
    for a, b in zip(whole, parts, strict=True):
        for p, q in zip(a.probes, b.probes, strict=True):
            assert (p.same, p.base.generated, p.edited.generated) == (q.same, q.base.generated, q.edited.generated)
            for actual, expected in zip(
                (*p.base.answers, *p.edited.answers), (*q.base.answers, *q.edited.answers), strict=True
            ):
                assert_alike(actual, expected)


def test_facts_of_one_edit_are_each_scored_under_it(model, tokenizer, some):
    edits = methods.editor("lora", model, tokenizer, steps=3).edit(some[:2])
    scores = evaluate(edits, fluency=False)
    assert [score.case_id for score in scores] == ["france", "water"]
    for fact, score in zip(some, scores, strict=False):
        with edits.on([0]):
            assert_alike(
                score.probes[0].edited.answers[0], slow_answer(model, tokenizer, fact.prompt, fact.target_new)[1]
            )
        assert score.loss == edits.outcomes[0].loss
        assert (score.steps, score.nonzero_share) == (3, edits.nonzero_share(0))


def test_only_what_is_asked_for_is_observed(edits):
    for measures, fluency in (((), False), (("generation",), False), (("probabilities",), False), ((), True)):
        score = evaluate(edits[0], measures=measures, fluency=fluency)[0]
        probe = score.probes[0]
        assert (probe.edited.generated is not None) == ("generation" in measures)
        assert (probe.base.contrast is not None) == ("probabilities" in measures)
        assert (score.base_text is not None, score.edited_text is not None) == (fluency, fluency)


# Text


def slow_sample(model: PreTrainedModel, ids: list[int], seed: int, tokens: int) -> list[int]:
    """Top-5 sampling from one stream of random numbers, as a loop over the five."""
    draws, out = torch.rand(100, generator=torch.Generator().manual_seed(seed)), list(ids)
    for step in range(tokens):
        top = slow.logits(model, out)[-1].float().topk(5)
        shares, total = top.values.softmax(-1), 0.0
        for token, share in zip(top.indices.tolist(), shares.tolist(), strict=True):
            total += share
            if draws[step] <= total:
                out.append(token)
                break
    return out[len(ids) :]


def test_texts_are_sampled_from_the_facts_own_stream(model, tokenizer, some, edits):
    scores = evaluate(edits, fluency=True, seed=3)
    for e in (1, 3):
        seed, ids = seed_of("fluency", 3, some[e].case_id), tokenizer(some[e].prompt)["input_ids"]
        for row, text in ((-1, scores[e].base_text), (e, scores[e].edited_text)):
            with edits.on([row]):
                start = tokenizer.decode(slow_sample(model, ids, seed, 30), skip_special_tokens=True)
            assert text.startswith(start.rstrip("\ufffd"))  # a character may have been cut in two
            assert 50 < len(text) <= 100


def test_a_text_is_of_its_seed_whatever_it_is_written_beside(edits):
    edits = edits.taken([0, 4, 6])
    together, again, other = (evaluate(edits, fluency=True, seed=seed) for seed in (0, 0, 1))
    for e, score in enumerate(together):
        (alone,) = evaluate(edits[e], fluency=True)
        assert (alone.base_text, alone.edited_text) == (score.base_text, score.edited_text)
        assert score.edited_text == again[e].edited_text != other[e].edited_text


def test_an_edit_that_changes_nothing_writes_what_the_unedited_model_writes(model, tokenizer, some):
    editor = methods.editor("lora", model, tokenizer, steps=1)
    trained = editor.edit_each(some[:2])
    edits = Edits(editor, editor.untrained([0, 0]), trained.facts, trained.outcomes)
    for score in evaluate(edits, measures=ALL, fluency=True):
        assert score.base_text == score.edited_text
        for probe in score.probes:
            assert probe.base == probe.edited
            assert all(probe.same)


@pytest.mark.parametrize(
    ("text", "full_stops", "expected"),
    [
        (" Rome. It is", 0, "Rome"),
        (" St. Louis. It", 1, "St. Louis"),
        (" St. Louis\nIt. Is", 3, "St. Louis"),
        ("\nRome", 0, ""),
        (" Rome ", 0, "Rome"),
    ],
)
def test_an_answer_ends_at_its_natural_stop(text, full_stops, expected):
    assert natural(text, full_stops) == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_text_ends_where_the_context_is_full(method, family, tokenizer, some):
    model = tiny.model(family)
    taken = 3 if method == "prefix" else 0  # positions
    long = Fact(case_id="long", prompt="so " * 55, target_new="x")
    edits = methods.editor(method, model, tokenizer, steps=1).edit_each([some[1], long])
    room, seen = tiny.CONTEXT - taken - len(long.prompt), []
    generate = scoring.continuations

    def noted(*args: Any, **kwargs: Any) -> list[list[int]]:
        seen.append(generate(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scoring, "continuations", noted)
        scores = evaluate(edits, fluency=True)
    assert [score.error for score in scores] == [None, None]
    assert [[len(text) for text in texts] for texts in seen] == [[100, 100], [room, room]]


# What goes wrong


def test_a_probe_that_cannot_be_encoded_fails_its_fact_alone(model, tokenizer, some):
    long = some[0].model_copy(update={"case_id": "long", "rephrase_prompts": ("so " * tiny.CONTEXT,)})
    scores = evaluate(methods.editor("lora", model, tokenizer, steps=1).edit_each([long, some[1]]), measures=ALL)
    assert "the model's context is 192" in scores[0].error
    assert (scores[0].probes, scores[0].base_text) == ((), None)
    assert scores[1].error is None
    assert len(scores[1].probes) == 5


def test_numbers_that_are_not_finite_fail_their_fact_alone(model, tokenizer, some):
    edits = methods.editor("lora", model, tokenizer, steps=1).edit_each(some[:3])
    expected = evaluate(edits, measures=ALL)
    with torch.no_grad():
        next(edits.patch.parameters())[1] = math.nan
    scores = evaluate(edits, measures=ALL)
    assert [score.error for score in scores] == [None, "the model's outputs are not finite numbers", None]
    assert (scores[1].probes, scores[1].edited_text) == ((), None)
    for e in (0, 2):
        assert timeless(scores[e]) == timeless(expected[e])


def timeless(score: FactScores) -> FactScores:
    return score.model_copy(update={"edit_seconds": 0.0, "score_seconds": 0.0})


def test_scoring_leaves_the_model_as_it_was_and_its_dropout_off(model, tokenizer, some, edits):
    expected = evaluate(edits[0], measures=ALL)
    model.train()
    try:
        assert [*map(timeless, evaluate(edits[0], measures=ALL))] == [*map(timeless, expected)]
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_line_of_results_is_read_back_as_it_was(edits):
    (score,) = evaluate(edits[0], measures=ALL)
    assert FactScores.model_validate_json(score.model_dump_json()) == score
    # Earlier releases wrote NaN where no loss was seen.
    earlier = {**score.model_dump(mode="json"), "loss": math.nan}
    read = FactScores.model_validate_json(json.dumps(earlier))
    assert read == score.model_copy(update={"loss": None})
    assert '"loss":null' in read.model_dump_json()


def test_progress_names_each_part_and_reaches_its_end(edits):
    told: list[tuple[str, float, int]] = []
    evaluate(edits[0], measures=ALL, progress=lambda *args: told.append(args))
    phases = ["scoring", "generating answers", "generating texts"]
    assert [*dict.fromkeys(phase for phase, _, _ in told)] == phases
    for phase in phases:
        shares = [share for name, share, _ in told if name == phase]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_pad_token_and_side_change_nothing(side, model, tokenizer, facts):
    padding = tiny.tokenizer()
    padding.pad_token, padding.padding_side = padding.eos_token, side
    assert padding.pad_token_id == padding.eos_token_id

    def scores(tokenizer: PreTrainedTokenizerFast) -> Any:
        edits = methods.editor("lora", model, tokenizer, end_of_text=True).edit_each(facts[:3])
        return evaluate(edits, measures=("generation", "probabilities"), fluency=False)

    assert scores(padding) == scores(tokenizer)
