"""Attention as plain products, against each family's own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loredit.engine.model.attention import plain_attention, products


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "opt"])
def testproducts_decodes_as_the_models_own(family):
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
    torch.testing.assert_close(last(plain_attention(model)), last(nullcontext()), **tiny.close(family))
    assert own == model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def testproducts_goes_forward_and_backward_as_the_models_own(family, padding):
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
        torch.testing.assert_close(plain, own, **tiny.close(family))


@pytest.mark.parametrize("causal", [True, False])  # a decoder's and an encoder's
def testproducts_sees_what_the_model_lets_it_see(causal):
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    module: Any = nn.Module()
    module.is_causal, module.num_key_value_groups = causal, 3
    for told in ({}, {"is_causal": not causal}):
        plain, own = (f(module, q, k, v, None, **told)[0] for f in (products, sdpa_attention_forward))
        torch.testing.assert_close(plain, own)
