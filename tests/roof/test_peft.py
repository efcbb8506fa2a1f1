"""Edits as PEFT adapters: PEFT itself computes the same logits, and its LoRA adapters come back as edits."""

from __future__ import annotations

import copy
import json

import methods
import pytest
import slow
import tiny
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loredit import editors, from_peft, to_peft
from loredit.bridges.peft import PeftError

pytestmark = [
    # PEFT asks the model for this property, which transformers 5 has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TEXT = "The capital of France is"


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return tiny.model(request.param, torch.float32)


def in_peft(model, tokenizer, folder):
    """The logits of PEFT's model for TEXT."""
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    with torch.no_grad():
        return theirs(input_ids=torch.tensor([tokenizer(TEXT)["input_ids"]])).logits[0]


def attached(edits, i, tokenizer):
    with edits.on([i]):
        return slow.logits(edits.editor.model, tokenizer(TEXT)["input_ids"])


@pytest.mark.parametrize("method", ["lora", "roselora", "simplexlora", "adalora", "prefix"])
def test_peft_computes_the_logits_of_the_edit(method, model, tokenizer, facts, tmp_path):
    edits = methods.editor(method, model, tokenizer, steps=10).edit_each(facts[:2])
    to_peft(edits, 1, tmp_path)
    ours = attached(edits, 1, tokenizer)
    assert (ours - slow.logits(model, tokenizer(TEXT)["input_ids"])).abs().max() > 1e-2
    torch.testing.assert_close(in_peft(model, tokenizer, tmp_path), ours, rtol=0, atol=1e-5)


def test_sites_keep_their_own_ranks_and_lost_ones_are_left_out(tokenizer, facts, tmp_path):
    model = tiny.model("llama", torch.float32)
    edits = methods.editor("simplexlora", model, tokenizer, steps=10).edit_each(facts[:1])
    gone, smaller, *_ = (branch for _, branch in edits.patch.items())
    with torch.no_grad():
        for branch, r, omega in ((gone, 0, 1.0), (smaller, 1, 0.7)):
            branch.rank.fill_(r)
            branch.omega.fill_(omega)
            branch.a[:, r:] = 0
            branch.b[:, :, r:] = 0
    to_peft(edits, 0, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    first, second, *_ = (site.name for site in edits.patch.sites)
    assert first not in config["target_modules"]
    assert config["rank_pattern"][second] == 1
    torch.testing.assert_close(in_peft(model, tokenizer, tmp_path), attached(edits, 0, tokenizer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["adapter", "bitfit", "compacter", "finetune"])
def test_methods_that_peft_does_not_have_say_so(method, model, tokenizer, facts, tmp_path):
    edits = methods.editor(method, model, tokenizer, steps=1).edit_each(facts[:1])
    with pytest.raises(PeftError, match=f"{method} cannot be exported: PEFT has no adapter like"):
        to_peft(edits, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exported_edit_comes_back(model, tokenizer, facts, tmp_path):
    edits = methods.editor("roselora", model, tokenizer).edit_each(facts[:2])
    to_peft(edits, 1, tmp_path)
    again = from_peft(tmp_path, model, tokenizer, edits.facts[1])
    assert again.facts == (edits.facts[1],)
    assert (again.editor.hparams.rank, again.editor.hparams.alpha) == (4, 8)
    torch.testing.assert_close(attached(again, 0, tokenizer), attached(edits, 1, tokenizer), rtol=0, atol=1e-6)


def adapter(model, folder, *, seed=0, **config):
    """A LoRA adapter of PEFT's own making, with random factors."""
    torch.manual_seed(seed)
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.1)
    theirs.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj"], "use_rslora": True, "layers_to_transform": [0, 2]},
        {
            "r": 2,
            "target_modules": ["model.layers.1.mlp.up_proj", "model.layers.2.self_attn.o_proj"],
            "rank_pattern": {"up_proj": 5},
            "alpha_pattern": {r"layers\.2\..*": 3},
        },
    ],
)
def test_a_lora_adapter_of_pefts_comes_in_as_it_is(config, tokenizer, facts, tmp_path):
    model = tiny.model("llama", torch.float32)
    edits = from_peft(adapter(model, tmp_path, **config), model, tokenizer)
    theirs = in_peft(model, tokenizer, tmp_path)
    torch.testing.assert_close(attached(edits, 0, tokenizer), theirs, rtol=0, atol=1e-5)
    edits.save(tmp_path / "edits")
    again = editors.load(tmp_path / "edits", model, tokenizer)
    torch.testing.assert_close(attached(again, 0, tokenizer), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head: no linear map of a block"),
    ],
)
def test_what_an_edit_cannot_be_is_refused(config, message, tokenizer, tmp_path):
    model = tiny.model("llama", torch.float32)
    if config.get("bias") or config.get("lora_bias"):  # PEFT wants biases that the model has
        adapter(model, tmp_path, target_modules=["q_proj"])
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    else:
        adapter(model, tmp_path, **{"target_modules": ["q_proj"]} | config)
    with pytest.raises(PeftError, match=message):
        from_peft(tmp_path, model, tokenizer)


def test_other_adapters_and_damaged_ones_are_refused(tokenizer, tmp_path):
    model = tiny.model("llama", torch.float32)
    get_peft_model(
        copy.deepcopy(model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).save_pretrained(tmp_path / "prefix")
    with pytest.raises(PeftError, match="only LORA can be imported"):
        from_peft(tmp_path / "prefix", model, tokenizer)

    folder = adapter(model, tmp_path / "lora", target_modules=["q_proj"])
    weights = folder / "adapter_model.safetensors"
    good = load_file(weights)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for bad in (good | {name: good[name][:, 1:].contiguous()}, {k: t for k, t in good.items() if k != name}):
        save_file(bad, weights)
        with pytest.raises(PeftError, match=r"layers.0.self_attn.q_proj: factors of .*, expected A \(r, 32\)"):
            from_peft(folder, model, tokenizer)
    save_file(good | {"base_model.model.x.lora_magnitude_vector": good[name].clone()}, weights)
    with pytest.raises(PeftError, match=r"x\.lora_magnitude_vector: no factor of a linear map"):
        from_peft(folder, model, tokenizer)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(PeftError, match=r"is missing .weights are read from safetensors only"):
        from_peft(folder, model, tokenizer)
