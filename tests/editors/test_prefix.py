"""Prefix tuning against PEFT's, given the same prefix and trained from the same start."""

from __future__ import annotations

import copy

import methods
import pytest
import slow
import tiny
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from loredit.data import Fact
from loredit.editors import prefix
from loredit.editors.prefix import PrefixPatch
from loredit.engine.model.generation import continuations
from loredit.engine.patches.rows import Rows
from loredit.engine.training.loop import Work

# PEFT asks the model for this property, which transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TEXTS = ("Water is", "The capital of France is", "Ada", "Sky: what else")


def random(patch: PrefixPatch) -> PrefixPatch:
    """Finished edits with random keys and values."""
    torch.manual_seed(2)
    done = patch.finished(range(len(patch)))
    return done.rebuilt(done.tensors() | {"kv": torch.randn_like(done.kv)})


def by_peft(model: PreTrainedModel, kv: Tensor, **options: object) -> PeftModel:
    """A copy of the model with PEFT's prefix tuning of one edit, kv (l, layers, 2, heads, head width)."""
    length, layers, _, heads, width = kv.shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * width,
        **options,
    )
    theirs = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).to(model.dtype).eval()
    if not config.prefix_projection:
        theirs.prompt_encoder["default"].embedding.weight.data.copy_(kv.reshape(length, -1))
    return theirs


# Predictions


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "falcon"])  # PEFT gives it too many heads
def test_the_same_prefix_makes_the_same_predictions_as_in_peft(family, tokenizer):
    model = tiny.model(family)
    patch = random(methods.editor("prefix", model, tokenizer).fresh([0, 1, 2]))
    ids, rows = [tokenizer(text)["input_ids"] for text in TEXTS], [2, -1, 0, 2]
    width = max(map(len, ids))
    with patch.attached(model, Rows(rows, 3, "cpu")), torch.no_grad():
        logits = model(torch.tensor([row + [0] * (width - len(row)) for row in ids])).logits
    for row, edit, text in zip(logits, rows, ids, strict=True):
        theirs = model if edit < 0 else by_peft(model, patch.kv[edit])
        near = {name: 10 * value for name, value in tiny.close(family).items()}
        torch.testing.assert_close(row[: len(text)], slow.logits(theirs, text), **near)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
def test_a_left_padded_batch_is_continued_as_by_peft_alone(family, tokenizer):
    model = tiny.model(family)
    patch = random(methods.editor("prefix", model, tokenizer).fresh([0, 1, 2]))
    prompts, rows = [tokenizer(text)["input_ids"] for text in TEXTS], [2, -1, 0, 2]
    lengths = [1, 9, 9, 3]  # rows leave while others go on, so the cache is cut and the patch attached anew
    made = [0] * len(rows)

    def stop(row: int, token: int) -> bool:
        made[row] += 1
        return made[row] == lengths[row]

    texts = continuations(
        model,
        prompts,
        tokens=9,
        stop=stop,
        attach=lambda left: patch.attached(model, Rows([rows[r] for r in left], 3, "cpu")),
    )
    for row, edit in enumerate(rows):
        theirs = model if edit < 0 else by_peft(model, patch.kv[edit])
        assert texts[row] == slow.greedy(theirs, prompts[row], lengths[row])[0]


def test_transformers_own_generation_sees_the_prefix(model, tokenizer):
    patch = random(methods.editor("prefix", model, tokenizer).fresh([0]))
    ids = tokenizer(TEXTS[1])["input_ids"]
    with patch.attached(model, Rows([0], 1, "cpu")):
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )
    assert out[0, len(ids) :].tolist() == slow.greedy(by_peft(model, patch.kv[0]), ids, 6)[0]


# Start and training


@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize(("init_text", "tokens"), [("Fact:", "Fac"), ("A", "AAA")])
def test_a_fresh_edit_is_the_model_with_the_text_in_front(init_text, tokens, hidden, model, tokenizer):
    patch = methods.editor("prefix", model, tokenizer, init_text=init_text, hidden=hidden).fresh([0, 1])
    ids = tokenizer(TEXTS[1])["input_ids"]
    with patch.attached(model, Rows([1], 2, "cpu")):
        logits = slow.logits(model, ids)
    torch.testing.assert_close(
        logits, slow.logits(model, tokenizer(tokens)["input_ids"] + ids)[3:], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("hidden", [None, 8])
def test_an_edit_is_what_peft_trains_in_a_plain_loop(hidden, model, tokenizer, facts, monkeypatch):
    h = {"hidden": hidden, "steps": 8, "lr": 1e-2}
    # As PEFT's "zero".
    monkeypatch.setattr(prefix, "keys_and_values", lambda model, ids: torch.zeros(len(ids), *shape))
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    shape = (config.num_hidden_layers, 2, heads, config.hidden_size // config.num_attention_heads)
    editor = methods.editor("prefix", model, tokenizer, **h)
    start = editor.fresh([editor.seed_for(facts[:2])])
    theirs = by_peft(
        model, start.kv[0], prefix_projection=bool(hidden), encoder_hidden_size=hidden, init_weights="zero"
    )
    encoder = theirs.prompt_encoder["default"]
    if hidden:
        encoder.embedding.weight.data.copy_(start.mlp.inputs[0])
        encoder.transform[0].weight.data.copy_(start.mlp.w1[0].T)
        encoder.transform[0].bias.data.zero_()
    assert sum(p[0].numel() for p in start.parameters()) == sum(p.numel() for p in encoder.parameters())
    losses = slow.train(theirs, tokenizer, encoder.parameters(), facts[:2], lr=h["lr"], steps=h["steps"])
    edit = editor.edit(facts[:2])
    assert edit.outcomes[0].loss == pytest.approx(losses[-1], rel=1e-8)
    prompt = theirs.get_prompt_embedding_to_save("default")
    # PEFT trains from float64 numbers that have passed float32 once.
    torch.testing.assert_close(edit.patch.kv[0].flatten(1), prompt.flatten(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("hidden", [None, 8])
def test_side_by_side_is_one_by_one_without_the_mlp_as_with_it(hidden, model, tokenizer, facts):
    editor = methods.editor("prefix", model, tokenizer, hidden=hidden)
    together = editor.edit_each(facts[:3])
    for e in range(3):
        torch.testing.assert_close(
            together.patch.kv[e], editor.edit_each([facts[e]]).patch.kv[0], rtol=1e-9, atol=1e-10
        )


def test_a_later_fact_starts_from_the_prefix_before_and_has_an_mlp_too(model, tokenizer, facts, monkeypatch):
    starts, losses = [], Work.losses_leaving

    def noted(work: Work, leave_at: float | None) -> tuple[Tensor, ...]:
        if not work.patch.steps.any():
            starts.append(work.patch.keys_and_values().detach().clone())
        return losses(work, leave_at)

    monkeypatch.setattr(Work, "losses_leaving", noted)
    first, second = methods.editor("prefix", model, tokenizer, hidden=1, length=4).edit_stream(facts[:2])
    torch.testing.assert_close(starts[1], first.patch.kv, rtol=0, atol=0)
    change = (second.patch.kv - first.patch.kv)[0].flatten(1)  # one hidden unit and a bias
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == 2


# What is kept


def test_only_keys_and_values_are_kept(model, tokenizer, facts, tmp_path):
    editor = methods.editor("prefix", model, tokenizer, length=5, hidden=7, stop_at=0.02)
    edits = editor.edit_each([*facts[:2], Fact(case_id="long", prompt="so " * tiny.CONTEXT, target_new="long")])
    edits.save(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    assert load_file(weights).keys() == {"kv", "seeds", "steps"} == edits.patch.state_dict().keys()
    config = model.config
    width = {"gpt2": 32, "llama": 16}[config.model_type]  # two of the tiny Llama's four heads have keys and values
    outputs = 2 * config.num_hidden_layers * width
    assert edits.num_trainable_parameters() == outputs * 5
    trained = sum(p.numel() for p in editor.fresh([0]).parameters())
    assert trained == 5 * width + (width + 1) * 7 + (7 + 1) * outputs


def test_a_text_leaves_room_for_the_prefix(model, tokenizer):
    editor = methods.editor("prefix", model, tokenizer, steps=1)
    fits, long = (
        Fact(case_id=str(n), prompt="p" * (n - 2), target_new="a") for n in (tiny.CONTEXT - 3, tiny.CONTEXT - 2)
    )
    edits = editor.edit_each([fits, long])
    assert edits.outcomes[0].error is None
    assert "190 tokens, but the model's context is 192, of which the method takes 3" in edits.outcomes[1].error


# Ways of generating


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generating_without_a_cache_gives_the_same_text(family, tokenizer):
    model = tiny.model(family)
    patch = random(methods.editor("prefix", model, tokenizer).fresh([0]))
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with patch.attached(model, Rows([0], 1, "cpu")):
        wanted = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, use_cache=False, **options), wanted)
        assert model(input_ids=ids, use_cache=False).past_key_values is None
        assert len(model(input_ids=ids, use_cache=False, return_dict=False)) == 1


def test_a_cache_or_mask_without_room_for_the_prefix_is_told(tokenizer):
    model = tiny.model("llama")
    patch = random(methods.editor("prefix", model, tokenizer).fresh([0]))
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with patch.attached(model, Rows([0], 1, "cpu")):
        with pytest.raises(ValueError, match="a prefix needs room in the cache, which a StaticCache"):
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, cache_implementation="static")
        with pytest.raises(ValueError, match="needs a mask of rows and tokens"):
            model(input_ids=ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1]))
        assert model(input_ids=ids).logits.isfinite().all()


def test_a_prefix_that_leaves_no_room_for_texts_is_told(tokenizer):
    with pytest.raises(ValueError, match=f"takes {tiny.CONTEXT} positions of the model's context"):
        methods.editor("prefix", tiny.model("llama"), tokenizer, length=tiny.CONTEXT)
