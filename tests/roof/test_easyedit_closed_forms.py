"""ROME, MEMIT and AlphaEdit against EasyEdit's, from the same statistics, contexts and settings, in float64.

``LOREDIT_EASYEDIT`` names a checkout of zjunlp/EasyEdit; without it these tests are skipped. Nothing but the modules of
these methods is imported, so what else EasyEdit needs may be absent.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path

import methods
import pytest
import tiny
import torch

from benchmarks.closed_forms import LLAMA, easyedit, request, settings
from loredit.data import Fact

pytestmark = [
    pytest.mark.real_easyedit,
    pytest.mark.skipif(not os.environ.get("LOREDIT_EASYEDIT"), reason="LOREDIT_EASYEDIT names no checkout"),
]

CONTEXT = "The sky was blue."
FACTS = [
    Fact(case_id="a", prompt="The capital of France is", subject="France", target_new="Rome"),
    Fact(case_id="b", prompt="Water is", subject="Water", target_new="dry"),
    Fact(case_id="c", prompt="The number ten is", subject="ten", target_new="odd"),
]
GPT2 = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",  # tied: a model names its parameters once
}


@pytest.fixture(scope="module")
def theirs():
    """A module of EasyEdit's, by name; its packages do not import the rest of it."""
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in sys.modules if name.split(".")[0] == "easyeditor"]:
            patched.delitem(sys.modules, name)
        yield easyedit(Path(os.environ["LOREDIT_EASYEDIT"]))
        for name in [name for name in sys.modules if name.split(".")[0] == "easyeditor"]:
            del sys.modules[name]


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture
def both(family, tokenizer):
    """An editor of ours, and the settings of theirs that mean the same."""

    def made(name, layers, **more):
        model = tiny.model(family)
        common = {"layers": layers, "steps": 5, "lr": 0.3, "weight_decay": 0.5, "clamp": 0.9}
        editor = methods.editor(name, model, tokenizer, **common, kl_weight=0, stop_at=None, contexts=1, **more)
        editor.__dict__["contexts"] = (CONTEXT,)
        editor.__dict__["moments"] = {site.name: moments(site.inputs, i) for i, site in enumerate(editor.sites)}
        names = GPT2 if family == "gpt2" else LLAMA | {"lm_head_module": "lm_head"}
        return editor, settings(editor, names, layers)

    return made


def moments(width, seed):
    """(I, I), as of inputs some of whose directions are rare."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8 * width, width, generator=draw, dtype=torch.float64) * torch.linspace(0.3, 2, width)
    return inputs.T @ inputs / len(inputs)


def padding(tokenizer):
    """Theirs needs a filler; texts are padded on the right, where causal attention does not look."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    return tokenizer


def assert_same(edits, deltas, edit=0, rtol=1e-6):
    """(O, I) of ours and theirs, site by site; theirs by the name of the weight, in the model's own layout."""
    assert {f"{site.name}.weight" for site in edits.patch.sites} == {*deltas}
    for site, branch in edits.patch.items():
        mine, other = branch.delta(edit), deltas[f"{site.name}.weight"].to(torch.float64)
        other = other if other.shape == mine.shape else other.T
        assert float(mine.norm()) > 1e-3
        assert float((mine - other).norm() / other.norm()) < rtol, site.name


def test_rome(both, theirs, tokenizer, monkeypatch):
    editor, asked = both("rome", [1], form="original")
    main, u = theirs("models.rome.rome_main"), theirs("models.rome.compute_u")
    inverse = {name: torch.linalg.inv(c) for name, c in editor.moments.items()}
    monkeypatch.setattr(u, "get_inv_cov", lambda model, tok, name, *_, **__: inverse[name])
    monkeypatch.setattr(main, "CONTEXT_TEMPLATES_CACHE", ["{}", CONTEXT + " {}"])
    edits = editor.edit_each(FACTS)
    for e, fact in enumerate(FACTS):
        with redirect_stdout(StringIO()):
            found = main.execute_rome(editor.model, padding(tokenizer), request(fact), asked)
        assert_same(edits, {name: left[:, None] @ right[None] for name, (left, right) in found.items()}, e)


def test_memit(both, theirs, tokenizer, monkeypatch):
    editor, asked = both("memit", [0, 1], mom2_update_weight=3.0)
    main = theirs("models.memit.memit_main")
    monkeypatch.setattr(main, "get_cov", lambda model, tok, name, *_, **__: editor.moments[name])
    # One context: theirs weighs the prompt alone as much as all contexts together, ours as much as each of them.
    monkeypatch.setattr(main, "CONTEXT_TEMPLATES_CACHE", [["{}"], [CONTEXT + " {}"]])
    edits = editor.edit(FACTS)
    with redirect_stdout(StringIO()):
        found = main.execute_memit(editor.model, padding(tokenizer), [*map(request, FACTS)], asked)
    assert_same(edits, {name: right @ left.T for name, (left, right) in found.items()})


def test_alphaedit(both, theirs, tokenizer, monkeypatch):
    editor, asked = both("alphaedit", [0, 1], null_energy=0.3, ridge=2.0)
    main = theirs("models.alphaedit.AlphaEdit_main")
    spaces = [space for space, _ in editor.spaces.values()]
    assert all(0 < space.shape[1] < space.shape[0] for space in spaces)
    monkeypatch.setattr(main, "P", torch.stack([space @ space.T for space in spaces]), raising=False)
    seen = torch.zeros(len(spaces), *spaces[0].shape[:1] * 2, dtype=torch.float64)
    monkeypatch.setattr(main, "cache_c", seen, raising=False)
    monkeypatch.setattr(main, "CONTEXT_TEMPLATES_CACHE", [["{}"], [CONTEXT + " {}"]])
    *_, edits = editor.edit_stream(FACTS, chunk=2)  # the third fact beside the keys of the first two
    every: dict[str, torch.Tensor] = {}
    for part in (FACTS[:2], FACTS[2:]):
        with redirect_stdout(StringIO()):
            found = main.execute_AlphaEdit(editor.model, padding(tokenizer), [*map(request, part)], asked)
        for name, change in found.items():
            weight = editor.model.get_parameter(name)
            with torch.no_grad():
                weight += change
            every[name] = every.get(name, 0) + change
    assert_same(edits, every, rtol=1e-4)  # theirs solves in float32
