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
            y = module(tiny.randn(2, 3, site.inputs))
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
