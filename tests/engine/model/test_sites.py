"""Sites by role, in every family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import methods
import pytest
import tiny
from torch import nn

from loredit.engine.model.sites import SiteError, sites, transposed, weight_shape

ROLES = ("query", "key", "value", "qkv", "attention_output", "mlp_up", "mlp_gate", "mlp_down")


GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
ALL_HEADS = ("gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "phi", "bloom", "falcon")


@pytest.mark.parametrize(("family", "reason"), [("mixtral", "its MLPs are experts"), ("gemma3", "it sees pictures")])
def test_families_that_do_not_work_are_refused_by_name(family, reason):
    with pytest.raises(SiteError, match=f"models of type '{family}' cannot be edited here: {reason}"):
        sites(SimpleNamespace(config=SimpleNamespace(model_type=family)), ["mlp_down"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_role_of_a_family_is_a_linear_map_of_the_right_width(family):
    model = tiny.model(family)
    d, inner = 32, 128 if family in ("gpt2", "gptj", "gpt_neo", "bloom") else 48
    grouped = 16 if family not in ALL_HEADS else 32
    widths = {
        "query": [(d, d)],
        "key": [(grouped, d)],
        "value": [(grouped, d)],
        "attention_output": [(d, d)],
        "mlp_up": [(2 * inner if family == "phi3" else inner, d)],
        "mlp_gate": [(inner, d)],
        "mlp_down": [(d, inner)],
    }
    # Falcon has one head of keys and values for all of its queries.
    fused = {"gpt2": 3 * d, "gpt_neox": 3 * d, "bloom": 3 * d, "phi3": d + 2 * grouped, "falcon": d + 2 * 8}
    widths["qkv"] = [(fused[family], d)] if family in fused else [(d, d), (grouped, d), (grouped, d)]
    gated = family in GATED
    for role in ROLES:
        if (family in fused and role in ("query", "key", "value")) or (not gated and role == "mlp_gate"):
            with pytest.raises(SiteError, match=f"no site '{role}' in {family}; it has "):
                sites(model, [role])
            continue
        found = sites(model, [role], [1])
        assert [(site.outputs, site.inputs) for site in found] == widths[role]
        for site in found:
            module = model.get_submodule(site.name)
            y = module(tiny.randn(2, 3, site.inputs).to(model.dtype))
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
        "no layer -1, 3",
        "gpt2 has layers 0 to 2",
    ]


def test_an_unknown_family_is_refused_by_name():
    model = nn.Module()
    model.config = SimpleNamespace(model_type="mamba")
    with pytest.raises(SiteError, match=r"models of type 'mamba' are not known here; known: gpt2, .*qwen3"):
        sites(model, ["qkv"])
