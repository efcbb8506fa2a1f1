"""Examples as rows of a batch, each edit in an order of its own."""

from __future__ import annotations

from classified import EXAMPLES, loaded

from loredit.data.examples import Example
from loredit.evaluation.tuning.examples import Interleaved, Preparer, collated


def test_every_edit_has_an_order_of_its_own_and_meets_each_example_once_an_epoch():
    on = loaded()
    part = Preparer(on.model, on.tokenizer, 32, 0)([Example((("x" * (i // 40 + 1), None),), 0) for i in range(200)])
    items = [*Interleaved([part, part, part[:100]], [0, 1, 0])]
    orders = [[item[e].keys[0] for item in items] for e in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == [e.keys[0] for e in part]
    assert orders[0] != orders[1]
    assert all(orders[2].count(e.keys[0]) == 2 for e in part[:100])
    assert all(abs(item[0].length - item[1].length) <= 2 for item in items)


def test_texts_of_one_length_do_not_come_class_by_class():
    on = loaded()
    part = Preparer(on.model, on.tokenizer, 32, 0)([Example((("x", None),), label) for label in (0, 1, 2) * 100])
    part.sort(key=lambda example: example.label)  # as a file may have them
    labels = [item[0].label for item in Interleaved([part], [0])]
    assert all(len({*labels[i : i + 16]}) > 1 for i in range(0, 300, 16))


def test_a_pair_is_kept_apart_also_without_a_separator():
    on = loaded("llama")
    (prepared,) = Preparer(on.model, on.tokenizer, 32, 0)([Example((("ab", "c"),), 0)])
    assert on.tokenizer.decode(prepared.texts[0]["input_ids"]) == "ab\nc"
    (cut,) = Preparer(on.model, on.tokenizer, 6, 0)([Example((("a" * 30, "cd"),), 0)])
    assert on.tokenizer.decode(cut.texts[0]["input_ids"]) == "aaa\ncd"


def test_a_batch_holds_examples_by_edit():
    on = loaded()
    first, second = Preparer(on.model, on.tokenizer, 32, 0)(EXAMPLES[:2])
    batch = collated([(first, second), (second, second), (first, first)], on.tokenizer)
    assert batch["input_ids"].shape == (3, 2, 1, max(first.length, second.length))
    assert batch["labels"].tolist() == [[0, 1], [1, 1], [0, 0]]
    assert batch["keys"].flatten(1).tolist() == [[0, 1], [1, 1], [0, 0]]
