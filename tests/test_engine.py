"""The parts of the edit engine, each against what it stands for: rows, sites, encoding, Adam, dropout, replay, text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import methods
import pytest
import slow
import tiny
import torch
from loredit.engine.patches.adam import Adam
from loredit.engine.model.encoding import Batch, Encoded, Encoder, EncodingError, Table, chunks, padded
from loredit.engine.model.attention import products, plain_attention
from loredit.engine.model.passes import input_of, recorded, logits_at, replayed
from loredit.engine.model.generation import TopK, continuations, sampled_texts
from loredit.engine.seeds import PerEdit, dropout, mixed, seed_of
from loredit.engine.patches.rows import Rows
from loredit.engine.model.sites import SiteError, roles, sites, transposed, weight_shape

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loredit.data import Fact
from loredit.editors import _memory, _rows, _training
from loredit.evaluation.scoring import evaluate


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(family: str) -> dict[str, float]:
    """GPT-J and GPT-Neo compute attention in float32, whatever the model's dtype."""
    return {"rtol": 1e-4, "atol": 1e-6} if family in ("gptj", "gpt_neo") else {"rtol": 1e-9, "atol": 1e-10}


# Rows


@pytest.mark.parametrize("limit", [_rows._COPY_LIMIT, 0])  # parameters gathered once per row, rows edit by edit
@pytest.mark.parametrize("edits", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0, 0], [1, -1, 2, 1, 0], [-1], [1]])
def test_every_row_is_multiplied_by_its_own_edits_matrix(edits, limit, monkeypatch):
    monkeypatch.setattr(_rows, "_COPY_LIMIT", limit)
    weight, x = randn(3, 5, 4), randn(len(edits), 7, 4, seed=1)
    rows = Rows(edits, 3, "cpu")
    y, copies = rows.linear(x, weight), rows.per_row(weight.clone())
    for r, e in enumerate(edits):
        if e >= 0:
            torch.testing.assert_close(y[r], x[r] @ weight[e].T)
            assert torch.equal(copies[r], weight[e])
    assert y.shape == (len(edits), 7, 5)
    assert rows.edited.flatten().tolist() == [e >= 0 for e in edits]
    assert rows.any_unedited == (-1 in edits)


def test_gradients_of_rows_reach_their_own_edit_alone():
    weight, x = randn(3, 5, 4).requires_grad_(), randn(4, 7, 4, seed=1)
    Rows([2, 0, 2, -1], 3, "cpu").linear(x, weight)[[0, 2]].sum().backward()
    assert [g.any().item() for g in weight.grad] == [False, False, True]


def test_rows_count_within_their_edit():
    assert Rows([1, 0, 1, -1, 1, 0], 2, "cpu").within.tolist() == [0, 0, 1, 0, 2, 1]


def test_rows_are_computed_in_the_dtype_of_the_model():
    x, weight = randn(2, 3, 4).bfloat16(), randn(2, 5, 4).float()
    assert Rows([0, 1], 2, "cpu").linear(x, weight).dtype is torch.bfloat16


# Sites

ROLES = ("query", "key", "value", "qkv", "attention_output", "mlp_up", "mlp_gate", "mlp_down")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_role_of_a_family_is_a_linear_map_of_the_right_width(family):
    model = tiny.model(family)
    d, inner = 32, 128 if family.startswith("gpt") and family != "gpt_neox" else 48
    grouped = 16 if family in ("llama", "mistral", "qwen2", "qwen3") else 32
    widths = {
        "query": [(d, d)],
        "key": [(grouped, d)],
        "value": [(grouped, d)],
        "attention_output": [(d, d)],
        "mlp_up": [(inner, d)],
        "mlp_gate": [(inner, d)],
        "mlp_down": [(d, inner)],
    }
    fused = family in ("gpt2", "gpt_neox")
    widths["qkv"] = [(3 * d, d)] if fused else [(d, d), (grouped, d), (grouped, d)]
    gated = grouped == 16
    for role in ROLES:
        if (fused and role in ("query", "key", "value")) or (not gated and role == "mlp_gate"):
            with pytest.raises(SiteError, match=f"no site '{role}' in {family}; it has "):
                sites(model, [role])
            continue
        found = sites(model, [role], [1])
        assert [(site.outputs, site.inputs) for site in found] == widths[role]
        for site in found:
            module = model.get_submodule(site.name)
            y = module(randn(2, 3, site.inputs))
            assert y.shape == (2, 3, site.outputs)
            assert transposed(module) == (family == "gpt2")
            assert weight_shape(module) == (site.outputs, site.inputs)
            assert ".1." in site.name
            assert site.layer == 1


def test_layers_are_a_list_a_range_or_all(model, tokenizer):
    def layers(value: Any) -> set[int]:
        h = methods.hparams("lora", layers=value)
        return {site.layer for site in sites(model, h.sites, h.layers)}

    assert layers("all") == layers("0-2") == {0, 1, 2}
    assert layers("1-2") == layers([2, 1]) == {1, 2}
    assert layers(2) == layers("2") == layers([2, 2]) == {2}


def test_sites_that_overlap_are_there_once():
    found = sites(tiny.model("llama"), ["value", "qkv", "query"], [0])
    assert sorted(site.name[-6:] for site in found) == ["k_proj", "q_proj", "v_proj"]


def test_all_faults_of_sites_and_layers_are_reported_together(tokenizer):
    h = methods.hparams("lora", sites=["query", "mlp_gate", "mlp_up"], layers=[1, 3, -1])
    with pytest.raises(SiteError) as caught:
        methods.editors.find("lora")(tiny.model("gpt2"), tokenizer, h).fresh([0])
    has = "qkv, attention_output, mlp_up, mlp_down"
    assert str(caught.value).split("; ") == [
        "no site 'query' in gpt2",
        f"it has {has}",
        "no site 'mlp_gate' in gpt2",
        f"it has {has}",
        "no layer -1",
        "gpt2 has layers 0 to 2",
        "no layer 3",
        "gpt2 has layers 0 to 2",
    ]


def test_an_unknown_family_is_refused_by_name():
    model = nn.Module()
    model.config = SimpleNamespace(model_type="mamba")
    with pytest.raises(SiteError, match=r"models of type 'mamba' are not known here; known: gpt2, .*qwen3"):
        sites(model, ["qkv"])


# Encoding


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


# Adam


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_adam_is_torchs_adam_for_every_edit_from_its_own_first_step(dtype, tolerance):
    start = randn(3, 4, 5).to(dtype)
    grads, rate = [randn(3, 4, 5, seed=s).to(dtype) * 10.0**-s for s in range(1, 8)], 0.03
    p = nn.Parameter(start.clone())
    adam = Adam({"p": p}, {"p": rate})
    theirs = [nn.Parameter(one.clone()) for one in start]
    optimizers = [torch.optim.Adam([one], lr=rate) for one in theirs]

    def step(grad: Tensor, left: Sequence[int]) -> None:
        p.grad = grad[left]
        adam.step({"p": p})
        for e in left:
            theirs[e].grad = grad[e]
            optimizers[e].step()

    for grad in grads[:3]:
        step(grad, [0, 1, 2])
    adam.restart("p", torch.tensor([False, True, False]))
    optimizers[1] = torch.optim.Adam([theirs[1]], lr=rate)
    step(grads[3], [0, 1, 2])
    gone = p[1].detach().clone()
    torch.testing.assert_close(gone, theirs[1].detach(), rtol=tolerance, atol=tolerance)

    p = nn.Parameter(p.detach()[[0, 2]])
    adam.take(torch.tensor([0, 2]))
    for grad in grads[4:]:
        step(grad, [0, 2])
    torch.testing.assert_close(p.detach(), torch.stack([theirs[0], theirs[2]]).detach(), rtol=tolerance, atol=tolerance)


def test_rates_belong_to_parameters_by_name():
    p = {name: nn.Parameter(torch.zeros(1, 2)) for name in ("slow", "fast")}
    adam = Adam(p, {"slow": 0.1, "fast": 0.5})
    for one in p.values():
        one.grad = torch.ones(1, 2)
    adam.step(p)
    assert [one[0, 0].item() for one in p.values()] == pytest.approx([-0.1, -0.5])


# Random numbers


def lowbias32(x: int) -> int:
    """The hash as its author writes it, on Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x


def test_the_hash_is_lowbias32():
    values = [0, 1, 2, 77, 0x7FFFFFFF, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF]
    signed = torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32)
    assert [v & 0xFFFFFFFF for v in mixed(signed).tolist()] == [*map(lowbias32, values)]


def test_dropout_keeps_its_share_scaled_and_without_pattern():
    x, keys = torch.ones(8, 100, 100), mixed(torch.arange(8, dtype=torch.int32))
    dropped = dropout(x, 0.1, keys)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9])
    # Of 80,000 numbers the share deviates by 0.001; rows, tokens and features by 0.003 to 0.011; five times that.
    assert (dropped == 0).double().mean().item() == pytest.approx(0.1, abs=0.005)
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert (dropped == 0).double().mean(axes).sub(0.1).abs().max() < 0.055
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(dropped, 2))


def test_a_dropout_mask_does_not_depend_on_company_or_padding():
    x, keys = torch.ones(3, 9, 16), torch.tensor([3, 4, 5], dtype=torch.int32)
    together = dropout(x, 0.5, keys)
    for r in range(3):
        assert torch.equal(dropout(x[r : r + 1], 0.5, keys[r : r + 1])[0], together[r])
        assert torch.equal(dropout(x[r : r + 1, :5], 0.5, keys[r : r + 1])[0], together[r, :5])


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_initial_values_come_from_the_edits_own_seed(draw):
    together = getattr(PerEdit([5, 6, 7]), draw)((40, 50), 0.5)
    for e, seed in enumerate([5, 6, 7]):
        assert torch.equal(getattr(PerEdit([seed]), draw)((40, 50), 0.5)[0], together[e])
    assert not torch.equal(together[0], together[1])
    spread = 0.5 if draw == "normal" else 0.5 / 3**0.5
    assert together.std().item() == pytest.approx(spread, rel=0.05)
    assert draw == "normal" or together.abs().max() <= 0.5


def test_seeds_tell_their_parts_apart_and_fit_a_generator():
    seeds = [seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a"), seed_of(0, "a", "b"), seed_of("0a"), seed_of(0, "ab")]
    assert len({*seeds}) == 6
    assert seed_of(0, "a") == seeds[0]
    assert all(0 <= seed < 1 << 63 for seed in seeds)


# Running the frozen model

TEXTS = ("The capital of France", "Water is", "One, two, three, and on to the next")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replaying_lower_blocks_is_a_full_pass(family, tokenizer):
    model = tiny.model(family)
    ids, _ = padded([tokenizer(text)["input_ids"] for text in TEXTS], "cpu")
    at = (torch.tensor([0, 1, 2, 2]), torch.tensor([3, 7, 0, 30]))
    with torch.no_grad():
        full = model(ids).logits[at]
        assert torch.equal(logits_at(model, ids, at), full)
        for layer in range(3):
            with kept(model, layer) as seen:
                logits_at(model, ids, at)
            hidden = input_of(model, layer, ids)
            assert torch.equal(seen[0], hidden)
            with replayed(model, layer, hidden):
                assert torch.equal(logits_at(model, ids, at), full)
            with replayed(model, layer, hidden + 0.1 * randn(*hidden.shape)):
                assert not torch.allclose(logits_at(model, ids, at), full)
        assert torch.equal(logits_at(model, ids, at), full)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_last_blocks_maps_are_computed_only_where_logits_are_asked_for(family):
    model, ids = tiny.model(family), torch.arange(60).view(3, 20)
    needed = [role for role in roles(model) if role not in ("key", "value", "qkv")]
    maps = sum(site.inputs * site.outputs for site in sites(model, needed, [2]))
    at = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 9, 0, 1, 19])

    def operations(n: int) -> int:
        with FlopCounterMode(display=False) as count, torch.no_grad():
            logits_at(model, ids, (at[0][:n], at[1][:n]))
        return count.get_total_flops()

    head = model.get_output_embeddings().weight.numel()
    assert operations(5) - operations(2) == 2 * 3 * (maps + head)
    assert not any("forward" in vars(module) for module in model.modules())


def test_replayed_blocks_are_not_run(model, tokenizer):
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    hidden, ran = input_of(model, 2, ids), []
    handles = [m.register_forward_hook(lambda m, *_: ran.append(m)) for block in blocks for m in block.children()]
    with replayed(model, 2, hidden):
        logits_at(model, ids, (torch.tensor([0]), torch.tensor([1])))
    for handle in handles:
        handle.remove()
    assert {*ran} == {*blocks[2].children()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_edit_is_trained_and_merged_in_every_family(family, tokenizer, facts):
    model = tiny.model(family)
    roles = ["qkv", "attention_output", "mlp_up", "mlp_down"]
    editor = methods.editor("lora", model, tokenizer, sites=roles, steps=2)
    edits, ids = editor.edit_each(facts[:2]), tokenizer(facts[1].prompt)["input_ids"]
    alone, merged = editor.edit_each(facts[1:2]), edits.merged(1)
    with edits.on([1]):
        logits = slow.logits(model, ids)
    with alone.on([0]):
        torch.testing.assert_close(slow.logits(model, ids), logits, **close(family))
    torch.testing.assert_close(slow.logits(merged, ids), logits, **close(family))
    assert not torch.allclose(slow.logits(model, ids), logits, atol=1e-3)
    assert edits.outcomes[1].loss < -slow.log_probs(model, tokenizer, facts[1].prompt, facts[1].target_new).mean()


# Padding


def predictions(model: PreTrainedModel, rows: Sequence[Sequence[int]], *, left: bool) -> list[Tensor]:
    """What the engine has predicted after each row, in one padded batch."""
    if left:
        seen: list[Tensor] = []

        def choose(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
            seen.append(logits)
            return logits.argmax(-1)

        continuations(model, rows, tokens=1, choose=choose)
        return [*seen[0]]
    with torch.no_grad():
        batch = Batch.of([Encoded((*ids, 0), len(ids)) for ids in rows], "cpu")
        return [*logits_at(model, batch.ids, batch.at)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_on_either_side_predicts_as_a_row_alone(family):
    # Among the tokens are the filler's id and the end of text, which a tokenizer may use as its pad token.
    rows, model = [[5, 0, 7, 0], [tiny.END, 3], [*range(20, 60)], [0], [9, 8, tiny.END, tiny.END]], tiny.model(family)
    expected = [slow.logits(model, row)[-1] for row in rows]
    for left in (False, True):
        for actual, alone in zip(predictions(model, rows, left=left), expected, strict=True):
            torch.testing.assert_close(actual, alone, **close(family))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_pad_token_and_side_change_nothing(side, model, tokenizer, facts):
    padding = tiny.tokenizer()
    padding.pad_token, padding.padding_side = padding.eos_token, side
    assert padding.pad_token_id == padding.eos_token_id

    def scores(tokenizer: PreTrainedTokenizerFast) -> Any:
        edits = methods.editor("lora", model, tokenizer, end_of_text=True).edit_each(facts[:3])
        return evaluate(edits, modes=("generation", "probabilities"), fluency=False)

    assert scores(padding) == scores(tokenizer)


# Generation


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_with_left_padding_is_greedy_decoding_alone(family, tokenizer):
    model, prompts = tiny.model(family), [tokenizer(text)["input_ids"] for text in TEXTS]
    texts = continuations(model, prompts, tokens=12)
    assert texts == [slow.greedy(model, prompt, 12)[0] for prompt in prompts]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "opt"])
def test_plain_attention_decodes_as_the_models_own(family):
    model = tiny.model(family)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :4] = 0  # padded on the left
    ids = torch.arange(27).view(3, 9)

    def last(attention: Any) -> Tensor:
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), attention:
            for span in (slice(0, 7), slice(7, 8), slice(8, 9)):
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, span]
                seen = mask[:, : span.stop]
                out = model(ids[:, span], attention_mask=seen, position_ids=places, past_key_values=cache)
        return out.logits

    own = model.config._attn_implementation
    torch.testing.assert_close(last(plain_attention(model)), last(nullcontext()), **close(family))
    assert own == model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plain_attention_goes_forward_and_backward_as_the_models_own(family, padding):
    model = tiny.model(family)
    mask = torch.ones(3, 12, dtype=torch.long)  # more than the windows of 8 tokens
    if padding != "none":
        mask[1, :5] = 0
        mask = mask if padding == "left" else mask.flip(1)
    seen = {} if padding == "none" else {"attention_mask": mask}

    def ends(attention: Any) -> tuple[Tensor, Tensor]:
        inputs = model.get_input_embeddings()(torch.arange(36).view(3, 12)).detach().requires_grad_()
        with attention:
            logits = model(inputs_embeds=inputs, use_cache=False, **seen).logits[mask.bool()]
        return logits, torch.autograd.grad(logits.square().sum(), inputs)[0]

    for plain, own in zip(ends(plain_attention(model)), ends(nullcontext()), strict=True):
        torch.testing.assert_close(plain, own, **close(family))


@pytest.mark.parametrize("causal", [True, False])  # a decoder's and an encoder's
def test_plain_attention_sees_what_the_model_lets_it_see(causal):
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    module: Any = nn.Module()
    module.is_causal, module.num_key_value_groups = causal, 3
    for told in ({}, {"is_causal": not causal}):
        plain, own = (f(module, q, k, v, None, **told)[0] for f in (_plain_attention, sdpa_attention_forward))
        torch.testing.assert_close(plain, own)


LAST = (0, 3, 19, 1, 7, 3)  # the token of each row's text after which it is finished
PROMPTS = (*TEXTS, "No", "Yes, of course", "Or")


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neo"])
def test_rows_that_are_finished_leave_with_their_edits_and_change_nothing(family, tokenizer, facts):
    model, prompts = tiny.model(family), [tokenizer(text)["input_ids"] for text in PROMPTS]
    edits = methods.editor("lora", model, tokenizer).edit_each(facts[:3])
    owners, full = [2, -1, 0, 1, 0, 2], []
    for prompt, e in zip(prompts, owners, strict=True):
        with edits.on([e]):
            full.append(slow.greedy(model, prompt, 20)[0])
    last = [text[n] for text, n in zip(full, LAST, strict=True)]
    lengths = [text.index(token) + 1 for text, token in zip(full, last, strict=True)]
    sizes: list[int] = []

    def choose(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        sizes.append(len(rows))
        return logits.argmax(-1)

    texts = continuations(
        model,
        prompts,
        tokens=20,
        choose=choose,
        attach=lambda rows: edits.on([owners[row] for row in rows]),
        stop=lambda row, token: token == last[row],
    )
    assert texts == [text[:n] for text, n in zip(full, lengths, strict=True)]
    assert min(sizes) < len(prompts), "some rows are to leave while others go on"
    assert len(sizes) == max(lengths)


def test_rows_that_are_finished_leave_with_their_random_numbers(model, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    full = continuations(model, prompts, tokens=20, choose=TopK(5, range(6), 20))
    last = [text[n] for text, n in zip(full, LAST, strict=True)]
    cut = [text[: text.index(token) + 1] for text, token in zip(full, last, strict=True)]
    assert len({*map(len, cut)}) > 2
    choose = TopK(5, range(6), 20)
    stopped = continuations(model, prompts, tokens=20, choose=choose, stop=lambda row, token: token == last[row])
    assert stopped == cut


def test_sampling_takes_the_k_likeliest_by_their_shares():
    seeds, logits = [*range(4000)], torch.tensor([0.0, 3.0, 1.0, 2.0, -9.0]).expand(4000, 5)
    taken = TopK(3, seeds, 1)(logits, seeds, 0)
    shares = torch.tensor([3.0, 1.0, 2.0]).softmax(0)
    for token, share in zip((1, 2, 3), shares.tolist(), strict=True):
        assert (taken == token).double().mean().item() == pytest.approx(share, abs=0.03)
    assert {*taken.tolist()} == {1, 2, 3}


def test_a_sampled_text_is_of_its_own_seed_whatever_it_is_sampled_with(model, tokenizer):
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]

    def sampled(chosen: Sequence[int], seeds: Sequence[int]) -> list[list[int]]:
        return continuations(model, [prompts[i] for i in chosen], tokens=15, choose=TopK(5, seeds, 15))

    together = sampled([0, 1, 2], [10, 11, 12])
    assert sampled([2, 0], [12, 10]) == [together[2], together[0]]
    assert sampled([0], [13]) != [together[0]]


def test_context_texts_are_the_models_own_and_always_the_same(model, tokenizer):
    texts = sampled_texts(model, tokenizer, 6)
    assert sampled_texts(model, tokenizer, 6) == texts
    assert len({*texts}) == 6
    assert sampled_texts(model, tokenizer, 0) == ()
    for text, start in zip(texts, ("The", "Therefore", "Because", "I", "You", "The"), strict=True):
        assert text.startswith(start)
        assert re.fullmatch(r"\S.*[^.]\.", text, re.DOTALL)


# Lessons


def test_a_lesson_holds_a_row_for_each_fact_and_context_and_an_anchor_for_each_prompt(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, contexts=2, kl_weight=1, kl_prompts=("{} is a", "Rain"))
    made = lesson(editor, [facts[0], facts[4]])  # the latter has no subject
    contexts = ["", *(f"{text} " for text in sampled_texts(model, tokenizer, 2))]
    texts = [f"{context}{fact.prompt} {fact.target_new}" for fact in (facts[0], facts[4]) for context in contexts]
    assert [list(row.ids) for row in made.answers] == [tokenizer(text)["input_ids"] for text in texts]
    assert tokenizer.decode(made.answers[1].wanted) == " Rome"
    anchors = ["France is a", "Rain", "Rain"]
    assert [list(row.ids[: row.start]) for row in made.anchors] == [tokenizer(text)["input_ids"] for text in anchors]
    assert all(len(row.wanted) == 1 for row in made.anchors)
    editor = methods.editor("lora", model, tokenizer, kl_weight=1, kl_prompts=("{} is a", "Rain"), kl_positions="all")
    every = lesson(editor, [facts[0], facts[4]]).anchors
    assert [row.ids for row in every] == [row.ids for row in made.anchors]
    assert all(row.start == 1 for row in every)
    assert not lesson(methods.editor("lora", model, tokenizer), facts[:1]).anchors


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


@pytest.mark.parametrize("left", [[0], [1], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_when_edits_leave_the_batch_the_others_are_held_to_their_own_predictions(
    positions, left, model, tokenizer, facts
):
    changes = {"kl_weight": 0.7, "kl_prompts": ("{} is a", "The {} was"), "kl_positions": positions}
    editor = methods.editor("lora", model, tokenizer, **changes)
    lessons = [lesson(editor, [fact]) for fact in facts[:3]]
    work = _training.Work(editor, editor.fresh([0, 1, 2]), lessons)
    before, _ = work.losses()
    work.keep(left)
    torch.testing.assert_close(work.losses()[0], before[left], rtol=1e-9, atol=1e-12)


# Memory


def test_memory_is_measured_on_one_edit(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("lora", model, tokenizer)
    short, long = (lesson(editor, [fact]) for fact in (facts[4], facts[3]))
    assert _memory.bytes_per_edit(editor, long) > 1.5 * _memory.bytes_per_edit(editor, short)
    need = _memory.bytes_per_edit(editor, long)
    for free, edits in ((2 * 7.5 * need, 7), (1, 1), (1e15, _memory._MOST["cpu"])):
        monkeypatch.setattr(_memory, "_free", lambda device, free=free: free)
        assert _memory.edits_that_fit(editor, long) == edits


@pytest.mark.parametrize("method", ["lora", "finetune"])
def test_the_peak_of_training_is_what_an_edit_was_measured_to_need(method, tokenizer, facts):
    """The allocator's own records: what eight more edits add to the peak."""
    model = tiny.model("llama")
    editor = methods.editor(method, model, tokenizer, steps=2)
    one = lesson(editor, [facts[3]])
    peaks = [_peak(lambda n=n: _training.train(editor, editor.fresh(range(n)), [one] * n)) for n in (4, 12)]
    measured = (peaks[1] - peaks[0]) / 8
    # The allocator also sees what lives for one operation only; the estimate may be up to twice as cautious.
    assert 0.5 * measured <= _memory.bytes_per_edit(editor, one) <= 2 * measured


def test_memory_is_flat_however_many_facts_stream_through(tokenizer, facts):
    editor = methods.editor("lora", tiny.model("llama"), tokenizer, steps=1)

    def stream(n: int) -> None:
        alike = [facts[1].model_copy(update={"case_id": str(i)}) for i in range(n)]
        for edits in editor.edit_batches(alike, edits_at_once=4):
            evaluate(edits, fluency=False)

    few, many = (_peak(lambda n=n: stream(n)) for n in (8, 32))
    assert many <= 1.05 * few


def _peak(run: Callable[[], Any]) -> int:
    """Bytes, the most that was held at once beyond what was held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes))


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, known):
    assert _memory.is_out_of_memory(error) == known


def test_other_errors_are_not_taken_for_out_of_memory(model, tokenizer, facts, monkeypatch):
    def wrong(*_: Any) -> Callable[..., None]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(methods.editors.base.Editor, "fresh", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        methods.editor("lora", model, tokenizer).edit_each(facts, edits_at_once=2)


def test_edits_that_are_trained_in_groups_of_like_length_are_the_same(model, tokenizer, facts, monkeypatch):
    editor, told = methods.editor("lora", model, tokenizer), []
    together = editor.edit_each(facts)
    monkeypatch.setitem(_training._TOKENS, "cpu", 60)
    sizes, train = [], _training.train

    def noted(editor: Any, patch: Any, lessons: Sequence[Any], progress: Any) -> Any:
        sizes.append(len(lessons))
        return train(editor, patch, lessons, progress)

    monkeypatch.setattr(_training, "train", noted)
    grouped = editor.edit_each(facts, progress=lambda *args: told.append(args))
    assert len(sizes) > 2
    assert sum(sizes) == len(facts)
    for a, b in zip(together.patch.parameters(), grouped.patch.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    shares = [share for _, share, edits in told if edits == len(facts)]
    assert shares == sorted(shares)
    assert len(shares) == len(told)
    assert shares[-1] == 1.0


def test_an_edit_too_large_for_memory_alone_is_that_facts_error(model, tokenizer, facts, monkeypatch):
    editor, train = methods.editor("lora", model, tokenizer), _training.train
    expected = editor.edit_each(facts)
    longest = max(lesson(editor, [fact]).longest for fact in facts)

    def small(editor: Any, patch: Any, lessons: Sequence[Any], progress: Any = None) -> Any:
        if any(part.longest == longest for part in lessons):
            raise MemoryError
        return train(editor, patch, lessons, progress)

    monkeypatch.setattr(_training, "train", small)
    edits = editor.edit_each(facts, edits_at_once=4)
    assert [outcome.error is not None for outcome in edits.outcomes] == [
        lesson(editor, [fact]).longest == longest for fact in facts
    ]
    for e, outcome in enumerate(edits.outcomes):
        if outcome.error:
            assert "out of memory with this edit alone" in outcome.error
            continue
        for a, b in zip(expected.patch.parameters(), edits.patch.parameters(), strict=True):
            torch.testing.assert_close(a[e], b[e], rtol=1e-9, atol=1e-12)


def test_memory_that_does_not_suffice_for_measuring_is_one_edit_at_once(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("lora", model, tokenizer)

    def full(*_: Any) -> int:
        raise MemoryError

    monkeypatch.setattr(_memory, "bytes_per_edit", full)
    assert _memory.edits_that_fit(editor, lesson(editor, facts[:1])) == 1


def test_batches_come_as_they_are_finished_the_longest_first(model, tokenizer, facts):
    editor = methods.editor("lora", model, tokenizer, steps=1)
    broken = Fact(case_id="x", prompt="y " * 200, target_new="z")
    batches = list(editor.edit_batches([*facts, broken], edits_at_once=2))
    ids = [[fact.case_id for (fact,) in edits.facts] for edits in batches]
    assert ids == [["x"], ["ada", "sum"], ["france", "water"], ["sky"]]


def test_progress_is_told_up_to_the_end(model, tokenizer, facts):
    told: list[tuple[Any, ...]] = []
    methods.editor("lora", model, tokenizer, steps=4).edit_each(facts[:2], progress=lambda *args: told.append(args))
    assert told == [*(("training", share, 2) for share in (0.25, 0.5, 0.75, 1.0)), ("finished", 1.0, 2)]
    told.clear()
    editor = methods.editor("lora", model, tokenizer, steps=4)
    editor.edit_each(facts[:3], edits_at_once=2, progress=lambda *args: told.append(args))
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
