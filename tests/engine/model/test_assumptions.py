"""What the engine takes for granted about transformers, one assumption a test, for every family.

Where a newer transformers breaks one of these, the code that relies on it is named in the test.
"""

from __future__ import annotations

import inspect

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.pytorch_utils import Conv1D

from loredit.engine.model import attention, identity
from loredit.engine.model.attention import plain_attention
from loredit.engine.model.passes import input_of, replayed
from loredit.engine.model.sites import blocks, returned, roles, sites

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(params=sorted(tiny.FAMILIES))
def family(request):
    return tiny.model(request.param)


def run(model: nn.Module, **more: object) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def test_a_block_returns_its_hidden_states_bare_or_in_a_tuple_as_its_family_is_said_to(family):
    """passes.replayed lets skipped blocks return what they got, in the form that the next one expects: a bare tensor
    in a tuple's place would lose an axis in each of them."""
    seen = []
    handle = blocks(family)[0].register_forward_hook(lambda _, args, out: seen.append(out))
    run(family)
    handle.remove()
    assert [isinstance(out, tuple) for out in seen] == [isinstance(returned(family, IDS), tuple)]


def test_blocks_that_are_skipped_leave_the_others_as_they_are(family):
    """passes.replayed, with every block but the last one skipped."""
    layer = len(blocks(family)) - 1
    before, hidden = run(family), input_of(family, layer, IDS)
    with replayed(family, layer, hidden):
        torch.testing.assert_close(run(family), before, rtol=0, atol=0)


def test_a_block_gets_its_hidden_states_first_or_by_name(family):
    """passes.input_of, passes.recorded and passes.replayed read and exchange them."""
    seen = []

    def look(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        seen.append(kwargs.get("hidden_states", args[0] if args else None))

    handle = blocks(family)[1].register_forward_pre_hook(look, with_kwargs=True)
    run(family)
    handle.remove()
    assert [tuple(hidden.shape) for hidden in seen] == [(2, 4, family.config.hidden_size)]


def test_a_pass_that_is_broken_off_leaves_nothing_behind(family):
    """passes.input_of ends a forward pass by an exception; decorators around forwards must not mind."""
    before = run(family)
    input_of(family, 1, IDS)
    assert torch.equal(run(family), before)
    assert not any("forward" in vars(module) for module in family.modules())


def test_the_output_layer_gets_all_hidden_states_as_its_first_argument(family):
    """passes.head_sees selects among them."""
    seen = []
    handle = family.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    run(family)
    handle.remove()
    assert [tuple(shape[:2]) for shape in seen] == [(2, 4)]


def test_every_role_is_a_plain_linear_map(family):
    """sites.transposed tells Linear from Conv1D and knows no third kind."""
    for site in sites(family, roles(family)):
        assert isinstance(family.get_submodule(site.name), (nn.Linear, Conv1D))


def test_in_the_last_block_only_keys_and_values_are_seen_by_others(family):
    """passes.logits_at computes its other maps at the wanted places alone: a change of an earlier token's query, output
    or MLP there must not reach the last token's logits."""
    own = [role for role in roles(family) if role not in ("key", "value", "qkv")]
    before = run(family)[:, -1]
    handles = []
    for site in sites(family, own, [len(blocks(family)) - 1]):

        def spoiled(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            flat = out.view(2, 4, -1).clone()
            flat[:, :-1] = 7.0
            return flat.view_as(out)

        handles.append(family.get_submodule(site.name).register_forward_hook(spoiled))
    after = run(family)[:, -1]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_attention_is_chosen_by_name_at_every_call(family, monkeypatch):
    """attention.plain_attention registers a function and changes the config's name for it, both ways."""
    if family.config._attn_implementation != "sdpa" or not attention.chosen_by_name(family):
        pytest.skip("this family has an attention of its own, which is left alone")
    called, own = [], attention.products

    def spied(*args: object, **kwargs: object) -> object:
        called.append(1)
        return own(*args, **kwargs)

    monkeypatch.setattr(attention, "products", spied)
    with plain_attention(family):
        run(family)
    assert len(called) == len(blocks(family))
    run(family)
    assert len(called) == len(blocks(family)), "the model's own attention is back"


def test_a_cache_can_be_filled_cut_and_read_layer_by_layer(family):
    """generation.continuations and prefixes.prepended keep keys and values in a DynamicCache."""
    cache = DynamicCache(config=family.config)
    mask, places = torch.ones(2, 4, dtype=torch.long), torch.arange(4).expand(2, 4)
    run(family, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 4
    assert len(cache.layers) == len(blocks(family))
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.layers[0].keys.shape[0] == cache.layers[0].values.shape[0] == 1


def test_generation_without_a_cache_is_asked_for_by_name(family):
    """passes run the model with use_cache=False."""
    assert family(input_ids=IDS, use_cache=False).past_key_values is None


def test_the_config_names_what_an_identity_is_made_of(family):
    """identity.identity_of reads the architecture from config keys; a key renamed would fall out of it."""
    config = family.config.to_dict()
    rope = config.get("rope_parameters") or {}
    found = {key for key in identity._KNOWN["3:"] if config.get(key) is not None or rope.get(key) is not None}
    assert {"model_type", "vocab_size"} <= found
    assert found & {"hidden_size", "n_embd"}
    assert found & {"num_hidden_layers", "n_layer", "num_layers"}
    assert found & {"num_attention_heads", "n_head", "num_heads"}
    assert (
        found & {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}
        or family.config.model_type == "opt"
    )


def test_loading_says_which_weights_are_missing_or_of_another_shape(tmp_path):
    """loading.load refuses a model that transformers would fill up with random numbers."""
    model = tiny.model("gpt2", torch.float32)
    model.save_pretrained(tmp_path)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {"missing_keys", "mismatched_keys"} <= report.keys()


def test_a_fresh_cache_takes_the_models_config():
    """DynamicCache(config=...) lays out layers as the model wants them (sliding windows)."""
    assert "config" in inspect.signature(DynamicCache.__init__).parameters
