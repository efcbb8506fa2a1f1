"""Where a subject ends, and what sites get there."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loredit.engine.model.encoding import Batch, Encoder, EncodingError, Prompt, Span, subject_span
from loredit.engine.model.keys import inputs_at, states_at
from loredit.engine.model.sites import blocks, sites


@pytest.mark.parametrize(
    ("prompt", "subject", "ends"),
    [
        ("France is ruled from", "France", 6),  # at the start
        ("The capital of France is", "France", 21),  # in the middle
        ("Who leads France", "France", 16),  # at the end
        ("France, the old France, lies in", "France", 22),  # twice: the last time
        ("Art of Arthur", "Art", 3),  # a word of its own before a part of one
        ("Arthur lives in", "Art", 3),  # a part of a word, where there is nothing else
        ("In the U.S. (1990) they", "U.S. (1990)", 18),  # no pattern
        ("Zoë and Zoë's", "Zoë", 11),
        ("In Rome:", " Rome ", 7),  # spaces around a subject are no part of it
    ],
)
def test_a_subject_ends_where_it_is_last_named(prompt, subject, ends):
    span = subject_span(prompt, subject)
    assert span.end == ends
    assert prompt[span.begin : span.end] == subject.strip()


def test_a_prompt_without_its_subject_is_an_error_that_says_so():
    with pytest.raises(EncodingError, match="'The capital is' does not name the subject 'France'"):
        subject_span("The capital is", "France")
    with pytest.raises(EncodingError, match="needs the fact's subject, and 'Sky:' comes without one"):
        subject_span("Sky:", None)


@pytest.mark.parametrize("before", ["", "Zoë said. "])
@pytest.mark.parametrize(
    ("prompt", "subject"), [("Zoë is", "Zoë"), ("I met Zoë", "Zoë"), ("Zoë and Zoë are", "Zoë"), ("東京は", "東京")]
)
def test_the_last_token_of_the_subject_is_marked(prompt, subject, before, tokenizer):
    span = Prompt(before + prompt, len(before)).span(subject)
    encoded = Encoder(tokenizer, tiny.CONTEXT).answered(before + prompt, "here", marked=span)
    until = (before + prompt)[: span.end].encode()
    assert encoded.mark == len(until) - 1  # one token a byte
    assert tokenizer.decode(encoded.ids[: encoded.mark + 1]).endswith(subject)
    assert Encoder(tokenizer, tiny.CONTEXT).prompt(before + prompt, marked=span).mark == encoded.mark


def words(*known: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words with the space before them."""
    vocab = {word: i for i, word in enumerate(["?", *known])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_a_token_that_the_subject_shares_is_marked():
    tokenizer = words("The", " New", " York", " Times,", " sold", " in")
    encoder = Encoder(tokenizer, 20)
    for subject, mark in (("York", 2), ("Times", 3), ("New York Times", 3)):
        prompt = "The New York Times, sold"
        assert encoder.answered(prompt, "in", marked=subject_span(prompt, subject)).mark == mark


def test_a_token_that_subject_and_answer_share_is_not_marked():
    class Merging:
        """Joins the last word of a prompt with the answer's first."""

        is_fast = True
        eos_token_id = 9

        def __call__(self, text: str, return_offsets_mapping: bool = False) -> dict[str, list[object]]:
            ends = {"In Rome": [2, 7], "In Rome now": [2, 11]}[text]
            ids = {"In Rome": [1, 2], "In Rome now": [1, 3]}[text]
            return {"input_ids": ids, "offset_mapping": [*zip([0, *ends], ends, strict=False)]}

    encoded = Encoder(Merging(), 9).answered("In Rome", "now", marked=Span(3, 7))
    assert (encoded.ids, encoded.start, encoded.mark) == ((1, 3), 1, 0)


def test_a_tokenizer_that_knows_no_offsets_is_refused(tokenizer):
    class Slow:
        is_fast = False

        def __call__(self, text: str) -> dict[str, list[int]]:
            return tokenizer(text)

    with pytest.raises(EncodingError, match="a Slow does not say where its tokens stand; load a fast tokenizer"):
        Encoder(Slow(), tiny.CONTEXT).prompt("In Rome", marked=Span(3, 7))


def test_a_batch_has_the_marks_of_the_rows_that_have_one(tokenizer):
    encoder = Encoder(tokenizer, tiny.CONTEXT)
    rows = [encoder.prompt("ab", marked=Span(0, 1)), encoder.prompt("Hello"), encoder.prompt("abc", marked=Span(1, 3))]
    rows = [type(row)((*row.ids, 0), row.start, row.mark) for row in rows]
    row, position = Batch.of(rows, "cpu").marks
    assert (row.tolist(), position.tolist()) == ([0, 2], [0, 2])
    assert [len(t) for t in Batch.of(rows[1:2], "cpu").marks] == [0, 0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gptj", "gpt_neox"])
def test_inputs_and_outputs_at_places_are_those_of_each_text_alone(family, tokenizer, monkeypatch):
    model = tiny.model(family)
    texts = [
        tokenizer(text)["input_ids"] for text in ("Ada wrote", "Water", "The capital of France is", "So be it all")
    ]
    places = [2, 4, 20, 0]
    (site,) = sites(model, ["mlp_down"], [1])
    seen: dict[str, torch.Tensor] = {}
    module, block = model.get_submodule(site.name), blocks(model)[2]
    handles = [
        module.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out)),
        block.register_forward_hook(lambda _, __, out: seen.update(h=out[0] if isinstance(out, tuple) else out)),
    ]
    expected = []
    for ids, place in zip(texts, places, strict=True):
        with torch.no_grad():
            model(torch.tensor([ids]))
        expected.append([seen[name].reshape(len(ids), -1)[place] for name in "xyh"])
    for handle in handles:
        handle.remove()
    # GPT-J's attention is computed in float32, whatever the model's dtype.
    close = {"rtol": 1e-9, "atol": 1e-10} if family != "gptj" else {"rtol": 1e-4, "atol": 1e-6}
    for budget in (1, 30, 10_000):
        monkeypatch.setattr("loredit.engine.model.keys._TOKENS", type("B", (), {"on": lambda self, d, n=budget: n})())
        keys = inputs_at(model, site, texts, places)
        states = states_at(model, texts, places, inputs=[module], outputs=[module, block])
        torch.testing.assert_close(keys, torch.stack([row[0] for row in expected]), **close)
        for found, own in zip(states, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(own), **close)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_edits_are_attached_by_the_text_that_they_belong_to(model, tokenizer):
    """Texts are run in another order and in chunks; each is told by its own index."""
    (site,) = sites(model, ["mlp_down"], [1])
    texts = [tokenizer(text)["input_ids"] for text in ("Ada wrote a book", "Water", "Two")]
    asked: list[int] = []

    @contextmanager
    def attach(rows):
        asked.extend(rows)
        yield

    inputs_at(model, site, texts, [0, 0, 0], attach)
    assert sorted(asked) == [0, 1, 2]
