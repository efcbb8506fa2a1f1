"""Text to tokens: where an answer begins, what is padding, how rows become batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from loredit.engine.model.encoding import Batch, Encoded, Encoder, EncodingError, Table, chunks, padded


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """A byte-level BPE that joins a space to the word behind it, as GPT-2's does."""
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["France is Paris is France is Paris"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def test_an_answer_is_encoded_with_its_prompt_and_begins_where_the_prompt_ends(merging):
    encoded = Encoder(merging, 64).answered("France is", "Paris")
    assert merging.convert_ids_to_tokens(encoded.ids) == ["France", "Ġis", "ĠParis"]
    assert encoded.start == 2
    assert encoded.wanted == encoded.ids[2:]


def test_an_answer_begins_where_tokens_differ_when_prompt_and_answer_grow_together(merging):
    # A space at the prompt's end is a token alone, and with the answer's own space another.
    encoded = Encoder(merging, 64).answered("France is ", "Paris")
    assert merging.convert_ids_to_tokens(encoded.ids) == ["France", "Ġis", "Ġ", "ĠParis"]
    assert encoded.start == 3
    prompt = merging("France i")["input_ids"]
    encoded = Encoder(merging, 64).answered("France", "is")
    assert encoded.ids[encoded.start :] == tuple(merging(" is")["input_ids"])
    assert list(encoded.ids[: encoded.start]) == prompt[: encoded.start]


def test_an_answer_begins_with_the_token_it_shares_with_the_prompt():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "bĠ"])}
    bpe = Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[("b", "Ġ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    encoded = Encoder(tokenizer, 64).answered("ab", "c")
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == ["a", "bĠ", "c"]
    assert encoded.start == 1


def test_the_end_of_text_is_trained_after_the_answer(tokenizer):
    encoder = Encoder(tokenizer, 64)
    plain, ended = encoder.answered("A", "b"), encoder.answered("A", "b", end_of_text=True)
    assert ended.ids == (*plain.ids, tiny.END)
    assert ended.wanted == (*plain.wanted, tiny.END)


def test_texts_that_cannot_be_used_are_refused(tokenizer):
    encoder = Encoder(tokenizer, 12)
    assert len(encoder.answered("eight in", "all").ids) == 12
    with pytest.raises(EncodingError, match=r"13 tokens, but the model's context is 12: 'nine here all'"):
        encoder.answered("nine here", "all")
    with pytest.raises(EncodingError, match="13 tokens"):
        encoder.answered("eight in", "all", end_of_text=True)
    with pytest.raises(EncodingError, match="13 tokens"):
        encoder.prompt("x" * 13)
    with pytest.raises(EncodingError, match="nothing stands before the answer 'a': the prompt ''"):
        encoder.answered("", "a")
    with pytest.raises(EncodingError, match="the prompt '' becomes no token at all"):
        encoder.prompt("")
    with pytest.raises(EncodingError, match="7 tokens, but the model's context is 10, of which the method takes 4"):
        Encoder(tokenizer, 10, 4).prompt("x" * 7)


def test_an_answer_of_no_token_is_refused(tokenizer):
    silent = SimpleNamespace(eos_token_id=0)
    with pytest.raises(EncodingError, match="the answer 'b' adds no token to the prompt 'a'"):
        Encoder(lambda text: {"input_ids": [1]} | vars(silent), 9).answered("a", "b")


def test_padding_is_known_by_length():
    ids, mask = padded([[1, 0], [2], [0, 3, 0]], "cpu")
    assert ids.tolist() == [[1, 0, 0], [2, 0, 0], [0, 3, 0]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    ids, mask = padded([[1, 0], [2], [0, 3, 0]], "cpu", left=True)
    assert ids.tolist() == [[0, 1, 0], [0, 0, 2], [0, 3, 0]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


def test_a_table_lays_uneven_groups_side_by_side():
    table = Table([2, 0, 3], "cpu")
    assert table(torch.tensor([1.0, 2, 3, 4, 5])).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert table(torch.tensor([1.0, 2, 3, 4, 5]), -1.0).tolist() == [[1, 2, -1], [-1, -1, -1], [3, 4, 5]]


def test_a_batch_predicts_each_wanted_token_from_the_one_before():
    batch = Batch.of([Encoded((7, 8, 9), 1), Encoded((5, 0), 1), Encoded((1, 2, 3, 4), 3)], "cpu")
    assert [*zip(*(t.tolist() for t in (*batch.at, batch.labels)), strict=True)] == [
        (0, 0, 8),
        (0, 1, 9),
        (1, 0, 0),
        (2, 2, 4),
    ]
    assert batch.table.counts.tolist() == [2, 1, 1]


def least(sizes: tuple[int, ...], most: int) -> float:
    """The cost of the best way to cut, found by trying all."""
    whole = max(sizes, default=0) * len(sizes)
    ways = [least(sizes[:i], most) + least(sizes[i:], most) for i in range(1, len(sizes))]
    return min([whole + most / 10] * (bool(sizes) and (whole <= most or len(sizes) == 1)) + ways, default=0.0)


@pytest.mark.parametrize(
    "sizes", [(), (30,), (7,) * 9, (7, 7, 6), (9, 9, 8, 4, 4, 3, 2), (25, 3, 3, 2, 1, 1), (1, 9, 2, 8, 1, 8)]
)
def test_chunks_are_cut_where_it_costs_least(sizes):
    found = [tuple(chunk) for chunk in chunks(sizes, sizes, 20)]
    assert sum(found, ()) == sizes
    assert all(max(chunk) * len(chunk) <= 20 or len(chunk) == 1 for chunk in found)
    assert sum(max(chunk) * len(chunk) + 2 for chunk in found) == least(sizes, 20)
