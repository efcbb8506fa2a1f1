"""Our editors as EasyEdit's algorithms, and its ``edit`` on our engine, against a stand-in and against EasyEdit itself.

``LOREDIT_EASYEDIT`` names a checkout of zjunlp/EasyEdit; without it the tests marked ``real_easyedit`` are skipped. The
packages that EasyEdit imports for images and video may be absent: empty modules take their places.
"""

from __future__ import annotations

import gc
import importlib.machinery
import logging
import math
import os
import random
import subprocess
import sys
import types
import unicodedata
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import methods
import numpy as np
import pytest
import slow
import tiny
import torch
from methods import METHODS
from observed import FACTS
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import import_utils
from where import ROOT, SHARED

import loredit.easyedit as bridge
from loredit import editors
from loredit.bridges.easyedit import _LAST, _alg_name
from loredit.data import Fact, FactError, from_request, load
from loredit.easyedit import EasyEditHparams, to_easyedit
from loredit.editors import Editor, WeightPatch
from loredit.engine.model.loading import load as load_model
from loredit.evaluation.scoring import evaluate

STAND_IN = Path(__file__).parent / "easyedit_standin"
ABSENT = ("av", "cv2", "fairscale", "qwen_vl_utils", "timm", "torchvision")

# The two probes of one group are of equal length: EasyEdit pads a group, which moves GPT-2's positions.
ARGUMENTS: dict[str, Any] = {
    "prompts": ["The capital of France is", "Water is", "Two plus two makes"],
    "target_new": ["Rome", "dry", "five hundred"],
    "subject": ["France", "Water", "Two plus two"],
    "rephrase_prompts": ["France's capital:", "If you touch it, water feels", "Adding two to two makes"],
    "locality_inputs": {
        "relation": {
            "prompt": [["France lies in"], ["Water boils at"], None],
            "ground_truth": [["Europe"], ["100 degrees"], None],
        },
        "other": {
            "prompt": [["Ten is", "Six is"], None, ["Three plus one makes"]],
            "ground_truth": [["even", "good"], None, ["four"]],
        },
    },
    "portability_inputs": {
        "alias": {
            "prompt": [["L'Hexagone is led from"], ["H2O is"], ["The sum of two twos is"]],
            "ground_truth": [["Rome"], ["dry"], ["five hundred"]],
        }
    },
}


class _Empty(types.ModuleType):
    """A module with everything in it, all of it empty classes."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__call__": lambda self, *_: None})


class _StandIns:
    """Finds empty modules in place of the absent packages and whatever is in them."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        known = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, _StandIns, is_package=True) if known else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    @staticmethod
    def exec_module(_: types.ModuleType) -> None: ...


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("easyeditor", *ABSENT)]:
        del sys.modules[name]


def _importable(source: str) -> None:
    """Put one of the two EasyEdits on the path, nothing of it imported yet."""
    _forget()
    if source == "stand-in":
        sys.path.insert(0, str(STAND_IN))
        return
    if not os.environ.get("LOREDIT_EASYEDIT"):
        pytest.skip("LOREDIT_EASYEDIT names no checkout of zjunlp/EasyEdit")
    for name in ABSENT:  # asked before there are stand-ins, which transformers would take for the packages
        getattr(import_utils, f"is_{name}_available", bool)()
    sys.meta_path.append(_StandIns)  # type: ignore[arg-type]
    sys.path.insert(0, os.environ["LOREDIT_EASYEDIT"])


REAL = pytest.param("real", marks=[pytest.mark.real_easyedit, pytest.mark.slow, pytest.mark.filterwarnings("default")])


@pytest.fixture(scope="module", params=["stand-in", REAL])
def source(request: pytest.FixtureRequest) -> Iterator[str]:
    """The stand-in or a checkout, importable."""
    path, finders = list(sys.path), list(sys.meta_path)
    try:
        _importable(request.param)
        yield request.param
    finally:
        _forget()
        sys.path[:], sys.meta_path[:] = path, finders


@pytest.fixture
def easyedit(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """EasyEdit with our editors, in a folder of its own, as it writes its logs where it is."""
    monkeypatch.chdir(tmp_path)
    bridge.register()
    return importlib.import_module("easyeditor")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk. EasyEdit knows a family by the folder's name; for "gpt" it insists on GPT-2's tokenizer."""
    path = tmp_path_factory.mktemp("models") / f"{request.param.replace('gpt2', 'conv1d')}-llama"
    tiny.model(request.param, torch.float32).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def hparams(method: str, folder: str, **changes: Any) -> EasyEditHparams:
    settings = methods.hparams(method, **changes)
    return EasyEditHparams(_alg_name(method), folder, "cpu", method, settings)


def loaded(folder: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def arguments(**changes: Any) -> dict[str, Any]:
    return deepcopy(ARGUMENTS) | changes


def requests() -> list[dict[str, Any]]:
    columns = zip(ARGUMENTS["prompts"], ARGUMENTS["target_new"], ARGUMENTS["subject"], strict=True)
    return [{"prompt": p, "target_new": t, "subject": s} for p, t, s in columns]


def own(method: str, folder: str) -> tuple[Editor, list[Any]]:
    """The editor as a library user has it, and the facts as the bridge calls them."""
    facts = [from_request(r, case_id=f"{r['prompt']} -> {r['target_new']}") for r in requests()]
    return editors.find(method)(*loaded(folder), methods.hparams(method)), facts


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logits(model: Any) -> torch.Tensor:
    """A batch of two, so that an attached edit must reach every row."""
    ids = torch.tensor([list(b"The capital of France is"), list(b"Two plus two makes six..")])
    with torch.no_grad():
        return model(ids).logits


def numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """What both count, without what only EasyEdit keeps: predicted tokens, and in newer versions the protocol."""
    return {
        phase: {
            "rewrite_acc": entry[phase]["rewrite_acc"],
            "rephrase_acc": entry[phase]["rephrase_acc"],
            "portability": entry[phase]["portability"],
            "locality": {key: acc for key, acc in entry[phase]["locality"].items() if not key.endswith("_output")},
        }
        for phase in ("pre", "post")
    }


# Registering


def test_the_module_imports_no_easyedit():
    code = "import sys, loredit.easyedit; print([m for m in sys.modules if 'easyeditor' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.fixture(params=["stand-in", REAL])
def fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """An EasyEdit that has not been imported."""
    path, finders, modules = list(sys.path), list(sys.meta_path), dict(sys.modules)
    _importable(request.param)
    yield
    _forget()
    sys.path[:], sys.meta_path[:] = path, finders
    sys.modules |= {name: module for name, module in modules.items() if name.partition(".")[0] == "easyeditor"}


def test_importing_easyedit_leaves_the_process_as_it_was(fresh):
    def state() -> tuple[Any, ...]:
        root = logging.getLogger()
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return (
            *(random.getstate(), numpy, torch.get_rng_state().tolist(), dict(os.environ), list(warnings.filters)),
            *(list(root.handlers), root.level),
        )

    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    before = state()
    bridge.register()
    assert "easyeditor" in sys.modules
    assert state() == before


def test_every_editor_is_registered_under_its_name_and_easyedits_own_stay(fresh):
    algorithms = _algorithms()
    theirs = dict(algorithms)
    names = bridge.register()
    own = {editors.find(e).__name__ for e in editors.available()}
    assert set(names) == {f"loredit-{name}" if name in theirs else name for name in own}
    assert "loredit-LoRA" in names
    assert {"RoseLoRA", "SimplexLoRA", "AdaLoRA", "Adapter", "Prefix"} <= set(names)
    assert all(algorithms[name] is bridge.apply for name in names)
    assert {name: algorithms[name] for name in theirs} == theirs
    assert bridge.register() == names  # once more does no harm


def test_a_name_that_is_taken_is_overwritten_only_when_asked(fresh):
    algorithms, utils = _algorithms(), importlib.import_module("easyeditor.editors.utils")
    algorithms["RoseLoRA"] = theirs = object()
    with pytest.raises(ValueError, match=r"already has RoseLoRA; register\(overwrite=True\) replaces it"):
        bridge.register()
    assert algorithms["RoseLoRA"] is theirs
    assert "SimplexLoRA" not in algorithms
    assert "LoRA" in bridge.register(overwrite=True)
    assert algorithms["RoseLoRA"] is algorithms["LoRA"] is bridge.apply
    assert "LoRA" not in utils.PEFT_RESTORE_ALGS  # ours leaves no PEFT model to unload


def _algorithms() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("easyeditor.util.alg_dict").ALG_DICT


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("import easyeditor.no_such", "a checkout of zjunlp/EasyEdit of June 2026 or later is to be on PYTHONPATH"),
        ("import torchvision", r"pip install timm torchvision 'torch==\d"),
        ("import timm.models.hub", r"pip install timm torchvision 'torch==\d"),
        ("import zhipuai", r"pip install 'loredit\[easyedit\]'"),
        ("import transformers.no_such", r"transformers up to 5\.23, and this is .*pip install 'transformers<5\.24'"),
        ("from transformers.modeling_utils import no_such", "or take a newer checkout"),
        ("CALLABLE_RESTORE_ALGS = __import__('types').no_such", "a checkout of zjunlp/EasyEdit of June 2026 or later"),
    ],
)
def test_where_easyedit_cannot_be_imported_the_error_says_what_helps(line, remedy, tmp_path, monkeypatch):
    _forget()
    for module in ("torchvision", "timm", "zhipuai"):
        monkeypatch.setitem(sys.modules, module, None)  # not installed
    package = tmp_path / "easyeditor" / "util"
    package.mkdir(parents=True)
    (package / "alg_dict.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=f"(?s)EasyEdit cannot be used here.*{remedy}"):
        bridge.register()


# EasyEdit's own edit and batch_edit


def test_one_by_one_edits_are_scored_as_by_us_and_undone_bit_by_bit(easyedit, method, folder):
    h = hparams(method, folder)
    editor = easyedit.BaseEditor.from_hparams(h)
    before, unedited = deepcopy(editor.model.state_dict()), logits(editor.model)
    metrics, _, _ = editor.edit(**arguments(), verbose=False)
    torch.testing.assert_close(editor.model.state_dict(), before, rtol=0, atol=0)
    assert hooks(editor.model) == 0
    assert torch.equal(logits(editor.model), unedited)
    ours = bridge.edit(h, **arguments(), verbose=False)
    assert [numbers(entry) for entry in ours] == [numbers(entry) for entry in metrics]
    assert any(entry["pre"] != entry["post"] for entry in map(numbers, ours))
    for entry, theirs in zip(ours, metrics, strict=True):
        assert entry["case_id"] == theirs["case_id"]
        assert entry["requested_rewrite"] == theirs["requested_rewrite"]
        assert entry["post"]["metric_meta"] == theirs["post"].get("metric_meta", entry["post"]["metric_meta"])


def test_sequential_edits_are_those_of_edit_stream(easyedit, method, folder):
    h = hparams(method, folder)
    editor = easyedit.BaseEditor.from_hparams(h)
    metrics, edited, _ = editor.edit(**arguments(), sequential_edit=True, verbose=False)
    same, facts = own(method, folder)
    *_, last = same.edit_stream(facts)
    with last.on([0, 0]):
        expected = logits(same.model)
    # Merged and attached differ by float32's rounding, which Adam's first steps enlarge.
    torch.testing.assert_close(logits(edited), expected, rtol=1e-3, atol=1e-3)
    ours = bridge.edit(h, **arguments(), sequential_edit=True, verbose=False)
    assert [numbers(entry) for entry in ours] == [numbers(entry) for entry in metrics]


@pytest.mark.parametrize("method", ["lora", "simplexlora", "adapter", "prefix"])
def test_batches_are_one_edit_each_and_undone(easyedit, method, folder, monkeypatch):
    h = hparams(method, folder)
    h.batch_size = 2
    editor = easyedit.BaseEditor.from_hparams(h)
    before, seen = deepcopy(editor.model.state_dict()), []

    def spied(model: Any, tok: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        edited, undo = bridge.apply(model, tok, requests, *args, **kwargs)
        seen.append(([request["prompt"] for request in requests], logits(edited)))
        return edited, undo

    monkeypatch.setattr(editor, "apply_algo", spied)
    metrics, _, _ = editor.batch_edit(**arguments(), verbose=False)
    torch.testing.assert_close(editor.model.state_dict(), before, rtol=0, atol=0)
    assert hooks(editor.model) == 0
    assert len(metrics) == 3
    assert [prompts for prompts, _ in seen] == [ARGUMENTS["prompts"][:2], ARGUMENTS["prompts"][2:]]
    same, facts = own(method, folder)
    with same.edit(facts[:2]).on([0, 0]):
        torch.testing.assert_close(seen[0][1], logits(same.model), rtol=1e-3, atol=1e-3)


def test_batches_in_a_row_add_up(easyedit, folder):
    h = hparams("lora", folder)
    h.batch_size = 2
    editor = easyedit.BaseEditor.from_hparams(h)
    _, edited, _ = editor.batch_edit(**arguments(), sequential_edit=True, verbose=False)
    same, facts = own("lora", folder)
    first = same.edit(facts[:2])
    with first.on([0, 0]):
        assert not torch.allclose(logits(edited), logits(same.model), atol=1e-2)
    model, tok = loaded(folder)
    for chunk in (requests()[:2], requests()[2:]):
        bridge.apply(model, tok, chunk, h)
    assert torch.equal(logits(edited), logits(model))


# What apply returns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_before_come_back_bit_by_bit_and_sums_are_rounded_once(folder, dtype):
    model, tok = loaded(folder)
    model.to(dtype)
    before = deepcopy(model.state_dict())
    h = hparams("finetune", folder)
    edited, weights = bridge.apply(model, tok, requests()[:1], h, return_orig_weights=True)
    assert edited is model
    patch = _LAST[h].edits.patch
    assert isinstance(patch, WeightPatch)
    assert set(weights) == set(patch.delta_weights(0))
    for name, delta in patch.delta_weights(0).items():
        turned = delta.T if delta.shape != before[name].shape else delta
        exact = (before[name].double() + turned.double()).to(torch.float32).to(dtype)
        assert torch.equal(model.get_parameter(name), exact)
        assert not torch.equal(model.get_parameter(name), before[name])
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name)[...] = weight
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["adapter", "prefix", "lora"])
def test_undoing_a_sequential_edit_goes_back_to_the_one_before(folder, method):
    model, tok = loaded(folder)
    h, (first, second, third) = hparams(method, folder), requests()
    bridge.apply(model, tok, [first], h)
    once = logits(model)
    _, undo = bridge.apply(model, tok, [second], h, return_orig_weights=True)
    assert not torch.allclose(logits(model), once, atol=1e-3)
    if callable(undo):
        undo()
        undo()  # twice is once
    else:
        for name, weight in undo.items():
            model.get_parameter(name).data.copy_(weight)
    assert torch.equal(logits(model), once)
    if callable(undo):  # and from there it goes on
        bridge.apply(model, tok, [third], h)
        other, _ = loaded(folder)
        g = hparams(method, folder)
        for request in (first, third):
            bridge.apply(other, tok, [request], g)
        torch.testing.assert_close(logits(model), logits(other))


@pytest.mark.parametrize("copy", [False, True])
def test_an_attached_edit_of_other_settings_is_to_be_undone_first(copy, folder):
    model, tok = loaded(folder)
    first, second, _ = requests()
    h = hparams("adapter", folder)
    _, undo = bridge.apply(model, tok, [first], h, return_orig_weights=True)
    once = logits(model)
    h.settings = h.settings.model_copy(update={"lr": 1e-4})
    for settings in (h, hparams("prefix", folder)):
        with pytest.raises(
            RuntimeError, match=r"other settings .* is attached to the model; undo it first \(by the func"
        ):
            bridge.apply(model, tok, [second], settings, copy=copy)
    assert torch.equal(logits(model), once)
    undo()
    bridge.apply(model, tok, [second], h)


@pytest.mark.parametrize("method", ["adapter", "finetune"])
def test_an_edit_that_fails_leaves_those_before(folder, method):
    model, tok = loaded(folder)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # GPT-2's is its embedding
    with torch.no_grad():
        model.get_input_embeddings().weight[tok("~")["input_ids"]] = math.nan
    h = hparams(method, folder)
    bridge.apply(model, tok, requests()[:1], h)
    once = logits(model)
    for prompt in ("x" * 300, "A tilde ~ is"):
        with pytest.raises(ValueError, match=r"context is 192|a lower lr may help"):
            bridge.apply(model, tok, [{"prompt": prompt, "target_new": "b"}], h)
        assert torch.equal(logits(model), once)


def test_a_copy_is_edited_where_one_is_asked_for(folder):
    model, tok = loaded(folder)
    before = deepcopy(model.state_dict())
    edited, weights = bridge.apply(model, tok, requests()[:1], hparams("lora", folder), copy=True)
    assert edited is not model
    assert weights == {}
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(logits(edited), logits(model))


@pytest.mark.parametrize("method", [m for m in METHODS if not editors.find(m).merges])
def test_an_attached_edit_lasts_and_transformers_own_generation_sees_it_in_every_row(folder, method):
    model, tok = loaded(folder)
    bridge.apply(model, tok, requests()[:1], hparams(method, folder, steps=30))  # of which nothing is kept
    gc.collect()
    ids = tok("The capital of France is")["input_ids"]
    batch = {"input_ids": torch.tensor([ids] * 3), "attention_mask": torch.ones(3, len(ids), dtype=torch.long)}
    expected = [*ids, *slow.greedy(model, ids, 3)[0]]
    assert expected != [*ids, *slow.greedy(loaded(folder)[0], ids, 3)[0]]
    assert slow.greedy(deepcopy(model), ids, 3)[0] == expected[-3:]
    for cached in (True, False):
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=cached)
        assert out.tolist() == [expected] * 3


# Our edit in the place of EasyEdit's


def test_edit_takes_a_loaded_model_a_single_text_and_requests(folder):
    h = hparams("lora", folder)
    by_name = bridge.edit(h, **arguments(), verbose=False)
    h.model_name = loaded(folder)
    assert bridge.edit(h, **arguments(), verbose=False) == by_name
    asked = [entry["requested_rewrite"] for entry in by_name]
    assert bridge.edit(h, ARGUMENTS["prompts"], ARGUMENTS["target_new"], requests=asked, verbose=False) == by_name
    flat = {"relation": {"prompt": "France lies in", "ground_truth": "Europe"}}
    (one,) = bridge.edit(h, "The capital of France is", "Rome", subject="France", locality_inputs=flat, verbose=False)
    assert one["post"]["rewrite_acc"] == by_name[0]["post"]["rewrite_acc"]
    assert one["post"]["locality"] == {"relation_acc": by_name[0]["post"]["locality"]["relation_acc"]}
    assert "rephrase_acc" not in one["post"]
    assert hooks(h.model_name[0]) == 0


def test_what_changes_nothing_is_taken_and_what_is_not_known_is_refused(folder):
    h = hparams("lora", folder, steps=1)
    plain = bridge.edit(h, "A is", "b", verbose=False)
    script = {
        "train_ds": None,
        "keep_original_weight": True,
        "pre_file": "pre.json",
        "pre_edit": None,
        "target_neg": ["c"],
    }
    assert bridge.edit(h, "A is", "b", verbose=False, eval_metric="exact match", **script) == plain
    assert not Path("pre.json").exists()
    with pytest.raises(TypeError, match="arguments foo that are not known"):
        bridge.edit(h, "A is", "b", foo=1)
    h.evaluation_type = "LLM-judge"
    with pytest.raises(ValueError, match="eval_metric='ppl' and evaluation_type='LLM-judge': only"):
        bridge.edit(h, "A is", "b", eval_metric="ppl")


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_with_a_chat_template_all_but_locality_is_asked_in_it(folder):
    pair = model, tokenizer = loaded(folder)
    tokenizer.chat_template = TEMPLATE
    by_hand = [f"<user>{prompt}\n>" for prompt in ("Water is", "Water feels", "Rain is")]
    stays = {"locality_inputs": {"g": {"prompt": ["Stone is"], "ground_truth": ["hard"]}}}

    def scores(prompt: str, rephrased: str, follows: str, **fields: Any) -> dict[str, Any]:
        h = replace(hparams("lora", folder, steps=30, lr=2e-2), model_name=pair, **fields)
        portability = {"g": {"prompt": [follows], "ground_truth": ["dry"]}}
        more = {"rephrase_prompts": rephrased, "portability_inputs": portability, **stays}
        (found,) = bridge.edit(h, prompt, "dry", **more, verbose=False)
        return found

    chat = scores("Water is", "Water feels", "Rain is", use_chat_template=True)
    assert chat["post"]["rewrite_acc"] == [1.0]
    assert chat["requested_rewrite"]["prompt"] == "Water is"
    same = scores(*by_hand)
    for key in ("rewrite_acc", "rephrase_acc", "portability"):
        assert same["pre"][key] == chat["pre"][key]
    request = {"prompt": "Water is", "target_new": "dry", "subject": "Water"}
    h = replace(hparams("lora", folder, steps=30, lr=2e-2), use_chat_template=True)
    edited, _ = bridge.apply(model, tokenizer, [request], h, copy=True)
    before, after = (slow.log_probs(each, tokenizer, by_hand[0], "dry").exp().min() for each in (model, edited))
    assert before < 0.05 < 0.3 < after
    with pytest.raises(ValueError, match="chat_template has to be none"):
        bridge.apply(model, tokenizer, [request], replace(h, settings=methods.hparams("lora", chat_template="both")))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        bridge.apply(model, tokenizer, [request], h)


def test_all_faults_of_the_requests_are_told_at_once(folder):
    h = hparams("lora", folder)
    with pytest.raises(
        ValueError, match=r"there are 3: target_new has 2, locality\.g\.prompt has 1, locality\.g\.ground"
    ):
        bridge.edit(h, ["a", "b", "c"], ["x", "y"], locality_inputs={"g": {"prompt": ["p"], "ground_truth": ["q"]}})
    with pytest.raises(FactError, match=r"(?s)2 faults.*request 0: target_new: is empty.*request 2: prompt: is blank"):
        bridge.edit(h, ["a", "b", " "], ["", "y", "z"])


def test_a_fact_that_cannot_be_edited_leaves_the_others(folder):
    good, bad = bridge.edit(hparams("lora", folder, steps=2), ["Sky:", "x" * 300], ["a", "b"], verbose=False)
    assert good["post"]["rewrite_acc"]
    assert bad == {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "x" * 300,
            "target_new": "b",
            "ground_truth": None,
            "portability": {},
            "locality": {},
        },
        "error": bad["error"],
        "pre": {},
        "post": {},
    }
    assert "context is 192" in bad["error"]


def test_fluency_is_measured_on_request(folder):
    (entry,) = bridge.edit(hparams("lora", folder, steps=1), "Sky:", "a", test_generation=True, verbose=False)
    assert entry["pre"]["fluency"]["ngram_entropy"] > 0 < entry["post"]["fluency"]["ngram_entropy"]


def test_hparams_come_from_a_preset_with_changes(tmp_path):
    h = bridge.hparams(
        "roselora", "gpt2.yaml", {"lr": 1e-3}, model_name="path/to/gpt2", device="cpu", batch_size=4, seed=3
    )
    assert (h.alg_name, h.model_name, h.device, h.batch_size, h.seed) == ("RoseLoRA", "path/to/gpt2", "cpu", 4, 3)
    assert (h.settings.lr, h.settings.tau) == (1e-3, 0.17)
    assert (h.model_parallel, h.evaluation_type, h.use_chat_template, h.api_key) == (False, None, False, None)
    assert bridge.hparams("lora", "gpt2").alg_name == "loredit-LoRA"
    assert bridge.hparams("lora", "gpt2").model_name == "gpt2"
    with pytest.raises(ValueError, match="lr: Input should be greater than 0, got -1"):
        bridge.hparams("lora", "gpt2", {"lr": -1})
    with pytest.raises(ValueError, match="did you mean 'roselora'"):
        bridge.hparams("roslora", "gpt2")


# EasyEdit's own scores, and where they differ (docs/easyedit.md)


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The checkout's scoring: ``evaluate.evaluate_utils``, ``evaluate.evaluate`` and ``util.generate``."""
    monkeypatch.chdir(tmp_path)
    path, finders = list(sys.path), list(sys.meta_path)
    try:
        _importable("real")
        bridge.register()
        yield types.SimpleNamespace(
            accuracy=importlib.import_module("easyeditor.evaluate.evaluate_utils").test_prediction_acc,
            quality=importlib.import_module("easyeditor.evaluate.evaluate").compute_edit_quality,
            generate=importlib.import_module("easyeditor.util.generate").generate_fast,
            summary=importlib.import_module("easyeditor.editors.utils").summary_metrics,
        )
    finally:
        _forget()
        sys.path[:], sys.meta_path[:] = path, finders


def against_easyedit(test: Any) -> Any:
    for mark in (pytest.mark.filterwarnings("default"), pytest.mark.slow, pytest.mark.real_easyedit):
        test = mark(test)
    return test


@against_easyedit
def test_easyedits_own_summary_reads_our_entries(real, capsys):
    real.summary([to_easyedit(scores) for scores in FACTS])
    assert "'rewrite_acc': np.float64(0.75)" in capsys.readouterr().out


@against_easyedit
@pytest.mark.pretrained
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no ../shared/data")
def test_twenty_zsre_cases_have_the_same_scores_number_by_number(real):
    """Half-trained edits, so that there is every kind of score; ours attached, EasyEdit's of the merged model."""
    model = load_model("smollm2-135m", device="cpu", dtype="float32")
    settings = editors.settings("lora", "smollm2-published", {"steps": 8})
    facts = [first_answers(fact) for fact in load(SHARED / "knowedit" / "ZsRE-test-1001.json").facts[:20]]
    edits = editors.find("lora")(model.model, model.tokenizer, settings).edit_each(facts)
    compared: list[float] = []
    for i, scores in enumerate(evaluate(edits, fluency=False)):
        entry = to_easyedit(scores)
        theirs = {
            phase: real.quality(
                of, "llama", SCORING, model.tokenizer, {**entry["requested_rewrite"], "ground_truth": None}, "cpu"
            )
            for phase, of in (("pre", model.model), ("post", edits.merged(i)))
        }
        for group in entry["requested_rewrite"]["locality"]:
            outputs = [theirs[phase]["locality"][f"{group}_output"] for phase in ("pre", "post")]
            theirs["post"]["locality"][f"{group}_acc"] = [
                np.mean(np.equal(*pair)) for pair in zip(*outputs, strict=True)
            ]
        assert numbers(entry) == numbers(theirs)
        compared += [*entry["post"]["rewrite_acc"], *entry["post"]["rephrase_acc"]]
        compared += [a for kind in ("locality", "portability") for acc in entry["post"][kind].values() for a in acc]
    assert len(compared) > 80
    assert fmean(0 < a < 1 for a in compared) > 0.2


SCORING = types.SimpleNamespace(alg_name="RoseLoRA", max_length=40)


def first_answers(fact: Fact) -> Fact:
    """The fact with one answer to each probe: EasyEdit takes no more."""
    kinds = {
        kind: {
            g: tuple(p.model_copy(update={"answers": p.answers[:1]}) for p in ps)
            for g, ps in getattr(fact, kind).items()
        }
        for kind in ("locality", "portability")
    }
    return fact.model_copy(update=kinds)


@pytest.fixture
def padded_tokenizer() -> Any:
    """As EasyEdit sets it up."""
    tok = tiny.tokenizer()
    tok.pad_token_id, tok.padding_side = tok.eos_token_id, "left"
    return tok


def predicted(model: Any, prompt: str, answer: str) -> list[int]:
    """What the model predicts for the answer's tokens, as we score it: the text alone, no padding."""
    return slow.answer_logits(model, tiny.tokenizer(), prompt, answer)[0].argmax(-1).tolist()


@against_easyedit
@pytest.mark.parametrize(("family", "same"), [("gpt2", False), ("llama", True)])
def test_padding_moves_the_positions_of_easyedits_shorter_prompts(real, padded_tokenizer, family, same):
    model = tiny.model(family, torch.float32)
    prompts, answers = ["The capital of France is", "Water is wet and it is also"], ["abcdefgh", "xyz"]
    together = real.accuracy(model, padded_tokenizer, SCORING, prompts, answers, "cpu", locality=True)
    alone = [
        real.accuracy(model, padded_tokenizer, SCORING, *pair, "cpu", locality=True)[0]
        for pair in zip(prompts, answers, strict=True)
    ]
    assert alone == [predicted(model, *pair) for pair in zip(prompts, answers, strict=True)]
    assert (together == alone) == same


@against_easyedit
def test_an_end_of_text_in_the_answer_is_padding_to_easyedit(real, padded_tokenizer):
    model = tiny.model("llama", torch.float32)
    prompt, answer = "The capital of France is", "Rome<|endoftext|>"
    (theirs,) = real.accuracy(model, padded_tokenizer, SCORING, prompt, answer, "cpu", locality=True)
    assert theirs == predicted(model, prompt, answer)[1:]


@against_easyedit
@pytest.mark.pretrained
def test_easyedit_drops_a_nan_of_a_group_and_fails_on_it_alone(real):
    model = load_model("smollm2-135m", device="cpu", dtype="float32")
    answered, unanswered = ("The capital of France is", "Paris"), ("Hello ", "")
    group = real.accuracy(model.model, model.tokenizer, SCORING, *zip(answered, unanswered, strict=True), "cpu")
    assert len(group) == 1
    with pytest.raises(IndexError):
        real.accuracy(model.model, model.tokenizer, SCORING, *unanswered, "cpu")
    with pytest.raises(FactError, match="target_new: is empty"):
        from_request({"prompt": "Hello ", "target_new": ""})


@against_easyedit
@pytest.mark.parametrize(("family", "right"), [("gpt2", False), ("llama", True)])
def test_easyedits_fluency_counts_the_prompt_and_loses_sight_of_it_unless_it_is_a_llama(
    real, padded_tokenizer, family, right
):
    model = tiny.model(family, torch.float32)
    model.name_or_path = family
    prompt = "The capital of France is"
    ids = padded_tokenizer(prompt)["input_ids"]
    (text,) = real.generate(model, padded_tokenizer, [prompt], max_out_len=60, top_k=1)
    expected = padded_tokenizer.decode([*ids, *slow.greedy(model, ids, 60 - len(ids))[0]])
    assert text.startswith(prompt)
    assert (text == unicodedata.normalize("NFKD", expected)) == right
