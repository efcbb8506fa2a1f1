"""Base models of 8 and 4 bits: edits on them are as independent as on whole ones, and are theirs alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import methods
import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from loredit import editors
from loredit.data import Fact
from loredit.editors import Edits, TrainedEditor
from loredit.engine.model.identity import identity_of, is_identity_of
from loredit.engine.model.loading import LoadedModel, load
from loredit.engine.model.passes import frozen
from loredit.engine.model.quantized import Int8Linear, is_quantized, parts, plain, quantization_of
from loredit.engine.model.sites import SiteError, roles, sites, transposed
from loredit.engine.model.sources import ModelError
from loredit.engine.storage.manifest import EditsError, read_manifest
from loredit.engine.training.memory import bytes_in_training
from loredit.evaluation import runs, work
from loredit.session import loaded_for

LIBRARIES = {"8bit": "torchao", "4bit": "bitsandbytes"}
IDS = torch.arange(48).view(4, 12)
# Together and alone differ by the order of sums in float32, which Adam makes larger where a gradient is all but zero.
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


@pytest.fixture(scope="module", params=LIBRARIES)
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARIES[request.param], reason="the extra 'quantize'")
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return saved(tmp_path_factory.mktemp("whole"), "llama", tokenizer)


def saved(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny.model(family, torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, kind: str | None) -> LoadedModel:
    return load(str(folder), dtype="float32", quantize=kind)


@pytest.fixture(scope="module")
def base(folder: Path, kind: str) -> Iterator[LoadedModel]:
    """One model for all tests, which none of them may change."""
    base = loaded(folder, kind)
    before = identity_of(base.model)
    yield base
    assert identity_of(base.model) == before


@pytest.fixture
def whole(folder: Path, base: LoadedModel) -> PreTrainedModel:
    """The same numbers in a model that is not quantized."""
    model = loaded(folder, None).model
    for name, weight in base.model.named_parameters():
        model.get_parameter(name).data = plain(weight).detach().clone()
    return model


def gradient(model: PreTrainedModel, rows: int = 4) -> Tensor:
    """Of the logits' sum by the embeddings."""
    x = model.get_input_embeddings()(IDS[:rows]).detach().requires_grad_()
    with frozen(model):
        return torch.autograd.grad(model(inputs_embeds=x).logits.square().sum(), x)[0]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


# The base


def test_maps_in_blocks_are_quantized_and_nothing_else(base, kind):
    small = {name.removesuffix(".weight") for name, weight in base.model.named_parameters() if is_quantized(weight)}
    assert small == {site.name for site in sites(base.model, roles(base.model))}
    assert quantization_of(base.model) == kind


def test_it_computes_what_its_rounded_weights_say(base, whole, folder):
    torch.testing.assert_close(logits(base.model), logits(whole), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(base.model), gradient(whole), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(logits(base.model), logits(loaded(folder, None).model), atol=1e-2), "rounded at all"


def test_a_row_does_not_depend_on_the_others(base):
    """As it does where outliers are those of the whole batch."""
    torch.testing.assert_close(gradient(base.model)[:1], gradient(base.model, 1), rtol=1e-4, atol=1e-3)


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass(base):
    """Neither for longer than a product takes, nor is it counted as what one more edit costs."""
    saved: list[Tensor] = []
    widths = {site.inputs for site in sites(base.model, ["mlp_down"])}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gradient(base.model)
    assert not [t for t in saved if t.dim() == 2 and t.shape[0] in widths and t.shape[1] == 32]


def test_a_bias_is_added(kind, tmp_path, tokenizer):
    """Llama's maps have none; OPT's have."""
    model = loaded(saved(tmp_path, "opt", tokenizer), kind).model
    module = model.get_submodule(sites(model, ["mlp_down"])[0].name)
    x = torch.randn(2, 48)
    with torch.no_grad():
        module.bias.fill_(3.0)
        torch.testing.assert_close(module(x), x @ plain(module.weight).T + 3.0, rtol=1e-4, atol=1e-4)


def test_conv1d_is_quantized_to_4_bits_alone(kind, tmp_path, tokenizer):
    where = saved(tmp_path, "gpt2", tokenizer)
    if kind == "8bit":
        with pytest.raises(ModelError, match=r"none of the maps of a gpt2 would become smaller.*--quantize 4bit"):
            loaded(where, kind)
        return
    model = loaded(where, kind).model
    (site, *_) = sites(model, ["mlp_down"])
    assert (site.inputs, site.outputs) == (128, 32)
    assert not transposed(model.get_submodule(site.name))


# Edits


def some(method: str, facts: Sequence[Fact]) -> Sequence[Fact]:
    """As in the contract's tests: random weights carry nothing beyond a subject."""
    if issubclass(editors.find(method), TrainedEditor):
        return facts[:3]
    return tuple(
        fact.model_copy(update={"prompt": fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]})
        for fact in facts[:3]
    )


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_edits_together_as_alone(method, base, facts, kind):
    chosen = some(method, facts)
    editor = methods.editor(method, base.model, base.tokenizer, steps=4)
    together = editor.edit_each(chosen)
    assert not [outcome.error for outcome in together.outcomes if outcome.error]
    for e, fact in enumerate(chosen):
        (alone,) = editor.edit_each([fact]).outcomes
        assert together.outcomes[e].loss == methods.about(alone.loss, rel=2e-3)
        with together.on(e):
            edited = logits(base.model)
        with editor.edit_each([fact]).on(0):
            torch.testing.assert_close(edited, logits(base.model), **CLOSE)


def test_edits_are_float32_and_read_back(base, folder, facts, tmp_path, kind):
    edits = lora(base, facts)
    assert {t.dtype for t in edits.patch.parameters()} == {torch.float32}
    edits.save(tmp_path / "edits")
    assert read_manifest(tmp_path / "edits").quantize == kind
    again = loaded_for(tmp_path / "edits", str(folder), "cpu")
    assert quantization_of(again.model) == kind
    with editors.load(tmp_path / "edits", again.model, again.tokenizer).on(0), edits.on(0):
        torch.testing.assert_close(logits(again.model), logits(base.model), rtol=0, atol=0)


def lora(base: LoadedModel, facts: Sequence[Fact]) -> Edits:
    return methods.editor("lora", base.model, base.tokenizer, steps=4).edit_each(facts[:2])


def test_edits_are_of_the_base_that_they_were_trained_on(base, folder, facts, tmp_path, kind):
    lora(base, facts).save(tmp_path / "edits")
    other = loaded(folder, None)
    with pytest.raises(EditsError, match=f"in float32, quantized to {kind} .*this one is .*Load it in float32, quant"):
        editors.load(tmp_path / "edits", other.model, other.tokenizer)


def test_identity_is_of_what_is_kept(base, folder, whole, kind):
    own = identity_of(base.model)
    assert is_identity_of(own, loaded(folder, kind).model)
    assert own not in (identity_of(whole), identity_of(loaded(folder, None).model))
    changed = loaded(folder, kind).model
    weight = changed.get_parameter(f"{sites(changed, ['mlp_down'])[0].name}.weight")
    (scales,) = [part for _, part in parts("weight", weight) if part.is_floating_point()]
    scales.mul_(1.001)
    assert identity_of(changed) != own, "scales count"


def test_nothing_is_merged_into_rounded_weights(base, facts, kind):
    edits = lora(base, facts)
    with pytest.raises(EditsError, match=rf"the model's weights are quantized \({kind}\)"):
        edits.merged(0)


def test_what_one_more_edit_costs_does_not_contain_the_weights(base, folder, facts, kind):
    editor = methods.editor("lora", base.model, base.tokenizer)
    other = loaded(folder, None)
    like = methods.editor("lora", other.model, other.tokenizer)
    lesson = editor.lesson(facts[:1])
    assert bytes_in_training(editor, lesson) <= 1.05 * bytes_in_training(like, lesson)


# Runs


def test_a_run_records_it_and_workers_load_the_same(kind, place):
    given = {"data": "facts.json", "limit": 2, "dtype": "float32", "fluency": False, "progress": False}
    result = runs.run("lora", "tiny.yaml", quantize=kind, output="run", **given)
    record = (result.folder / runs.RUN).read_text()
    assert f'"quantize": "{kind}"' in record
    assert f"--quantize {kind}" in record
    with pytest.raises(runs.RunError, match="quantize"):
        runs.run("lora", "tiny.yaml", output="run", resume=True, **given)
    spec = work.Spec(
        editor="lora",
        hparams={"model": "tiny", "sites": ["mlp_down"], "layers": [1], "rank": 2, "alpha": 4, "lr": 1e-2, "steps": 1},
        seed=0,
        device="cpu",
        dtype="float32",
        quantize=kind,
    )
    assert f'"model": "{work.conditions(spec).model}"' in record


# What is refused


def test_unknown_kinds_and_float64_are_refused(folder):
    with pytest.raises(ModelError, match="unknown quantization '8bits'; did you mean '8bit'"):
        load(str(folder), quantize="8bits")
    with pytest.raises(ModelError, match="4bit is of float32 or less"):
        load(str(folder), dtype="float64", quantize="4bit")


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_missing_library_is_named_with_its_extra(folder, monkeypatch, kind):
    for name in ("bitsandbytes", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=rf"{kind} needs {LIBRARIES[kind]}.*pip install 'loredit\[quantize\]'"):
        loaded(folder, kind)


def test_a_folder_that_is_quantized_already_is_refused(folder, tmp_path, tokenizer):
    where = saved(tmp_path, "llama", tokenizer)
    config = (where / "config.json").read_text().replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1)
    (where / "config.json").write_text(config)
    with pytest.raises(ModelError, match="its weights are quantized already"):
        loaded(where, None)


def test_maps_that_were_quantized_otherwise_are_refused(folder):
    model = loaded(folder, None).model
    module = model.model.layers[1].mlp.down_proj
    module.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SiteError, match=r"a Linear is no linear map with a plain weight.*--quantize"):
        sites(model, ["mlp_down"])


def test_weights_without_a_number_are_refused(kind, folder, tmp_path, tokenizer):
    model = loaded(folder, None).model
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        loaded(tmp_path, kind)


def test_the_backward_pass_is_that_of_the_rounded_weight():
    quantization = pytest.importorskip("torchao.quantization", reason="the extra 'quantize'")
    linear = nn.Linear(8, 4)
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    x = torch.randn(3, 8, requires_grad=True)
    expected = torch.autograd.grad(linear(x).square().sum(), x)[0]
    linear.__class__ = Int8Linear
    torch.testing.assert_close(torch.autograd.grad(linear(x).square().sum(), x)[0], expected)
