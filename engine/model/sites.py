"""Sites: the linear maps of a model where a patch sits, named by role, so that one YAML fits every family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...data.messages import listed
from .quantized import is_quantized, plain

# Where the blocks of a family are, and what each role is called inside a block. Keys are transformers' `model_type`.
# A role that a family does not have (a gate in GPT-2) is absent; "qkv" is all three, whether fused or not.
_LLAMA = (
    "model.layers",
    {
        "query": ["self_attn.q_proj"],
        "key": ["self_attn.k_proj"],
        "value": ["self_attn.v_proj"],
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention_output": ["self_attn.o_proj"],
        "mlp_up": ["mlp.up_proj"],
        "mlp_gate": ["mlp.gate_proj"],
        "mlp_down": ["mlp.down_proj"],
    },
)
_BLOOM = {
    "qkv": ["self_attention.query_key_value"],
    "attention_output": ["self_attention.dense"],
    "mlp_up": ["mlp.dense_h_to_4h"],
    "mlp_down": ["mlp.dense_4h_to_h"],
}
_BERT = {
    "query": ["attention.self.query"],
    "key": ["attention.self.key"],
    "value": ["attention.self.value"],
    "qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention_output": ["attention.output.dense"],
    "mlp_up": ["intermediate.dense"],
    "mlp_down": ["output.dense"],
}
_FAMILIES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "gpt2": (
        "transformer.h",
        {
            "qkv": ["attn.c_attn"],
            "attention_output": ["attn.c_proj"],
            "mlp_up": ["mlp.c_fc"],
            "mlp_down": ["mlp.c_proj"],
        },
    ),
    "gpt_neo": (
        "transformer.h",
        {
            "query": ["attn.attention.q_proj"],
            "key": ["attn.attention.k_proj"],
            "value": ["attn.attention.v_proj"],
            "qkv": ["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"],
            "attention_output": ["attn.attention.out_proj"],
            "mlp_up": ["mlp.c_fc"],
            "mlp_down": ["mlp.c_proj"],
        },
    ),
    "gptj": (
        "transformer.h",
        {
            "query": ["attn.q_proj"],
            "key": ["attn.k_proj"],
            "value": ["attn.v_proj"],
            "qkv": ["attn.q_proj", "attn.k_proj", "attn.v_proj"],
            "attention_output": ["attn.out_proj"],
            "mlp_up": ["mlp.fc_in"],
            "mlp_down": ["mlp.fc_out"],
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "qkv": ["attention.query_key_value"],
            "attention_output": ["attention.dense"],
            "mlp_up": ["mlp.dense_h_to_4h"],
            "mlp_down": ["mlp.dense_4h_to_h"],
        },
    ),
    "opt": (
        "model.decoder.layers",
        {
            "query": ["self_attn.q_proj"],
            "key": ["self_attn.k_proj"],
            "value": ["self_attn.v_proj"],
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "attention_output": ["self_attn.out_proj"],
            "mlp_up": ["fc1"],
            "mlp_down": ["fc2"],
        },
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "smollm3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": (
        "model.layers",
        {
            "query": ["self_attn.q_proj"],
            "key": ["self_attn.k_proj"],
            "value": ["self_attn.v_proj"],
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "attention_output": ["self_attn.dense"],
            "mlp_up": ["mlp.fc1"],
            "mlp_down": ["mlp.fc2"],
        },
    ),
    "phi3": (
        "model.layers",
        {
            "qkv": ["self_attn.qkv_proj"],
            "attention_output": ["self_attn.o_proj"],
            "mlp_up": ["mlp.gate_up_proj"],  # with the gate in the same map
            "mlp_down": ["mlp.down_proj"],
        },
    ),
    "falcon": ("transformer.h", _BLOOM),
    "bloom": ("transformer.h", _BLOOM),
    "starcoder2": (
        "model.layers",
        {
            "query": ["self_attn.q_proj"],
            "key": ["self_attn.k_proj"],
            "value": ["self_attn.v_proj"],
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "attention_output": ["self_attn.o_proj"],
            "mlp_up": ["mlp.c_fc"],
            "mlp_down": ["mlp.c_proj"],
        },
    ),
    # Encoders, under a classification head. MiniLM is a BERT, DistilRoBERTa a RoBERTa.
    "bert": ("bert.encoder.layer", _BERT),
    "roberta": ("roberta.encoder.layer", _BERT),
    "deberta": (
        "deberta.encoder.layer",
        {
            "qkv": ["attention.self.in_proj"],
            "attention_output": ["attention.output.dense"],
            "mlp_up": ["intermediate.dense"],
            "mlp_down": ["output.dense"],
        },
    ),
    "deberta-v2": (
        "deberta.encoder.layer",
        _BERT
        | {
            "query": ["attention.self.query_proj"],
            "key": ["attention.self.key_proj"],
            "value": ["attention.self.value_proj"],
            "qkv": ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
        },
    ),
}


_REFUSED = {
    "mixtral": "its MLPs are experts of which a text takes some, so that no edit could count on being seen",
    "gemma3": "it sees pictures too; its language model alone (gemma3_text) is known",
}
"""Families that are known not to work, and why."""

_IN_A_TUPLE = ("gpt_neo", "gptj", "falcon", "bloom")
"""Families whose blocks return their hidden states in a tuple, the others return them bare."""


class SiteError(ValueError):
    """The model has no such site, layer or family; the message lists what it has."""


@dataclass(frozen=True)
class Site:
    """One linear map of the model: its module name, the block it is in, its role, and its input and output width."""

    name: str
    layer: int
    role: str
    inputs: int
    outputs: int


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's transformer blocks, first to last."""
    found = model.get_submodule(_family(model)[0])
    assert isinstance(found, nn.ModuleList)
    return found


def returned(model: nn.Module, hidden: Tensor) -> Tensor | tuple[Tensor]:
    """Hidden states in the form in which a block of this model returns them."""
    return (hidden,) if _model_type(model) in _IN_A_TUPLE else hidden


def sites(model: nn.Module, roles: Sequence[str], layers: str | Iterable[int] = "all") -> list[Site]:
    """The sites with these roles in these blocks, in the order in which the model runs its blocks.

    Raises :class:`SiteError` naming every role and layer that the model does not have, with those it has.
    """
    path, known = _family(model)
    depth = len(blocks(model))
    faults = [
        f"no site {role!r} in {_model_type(model)}; it has {', '.join(known)}" for role in roles if role not in known
    ]
    chosen = within(layers, depth) if isinstance(layers, str) else sorted({*map(int, layers)})
    if beyond := [str(layer) for layer in chosen if not 0 <= layer < depth]:
        faults.append(f"no layer {listed(beyond, 5)}; {_model_type(model)} has layers 0 to {depth - 1}")
    if faults:
        raise SiteError("; ".join(faults))
    role_of: dict[str, str] = {}  # "qkv" may stand beside "query": each map is taken once
    for role in roles:
        for ending in known[role]:
            role_of.setdefault(ending, role)
    found = [(f"{path}.{layer}.{ending}", layer, role) for layer in chosen for ending, role in role_of.items()]
    shapes = [weight_shape(model.get_submodule(name)) for name, _, _ in found]
    return [Site(*named, inputs, outputs) for named, (outputs, inputs) in zip(found, shapes, strict=True)]


def within(layers: str, depth: int) -> list[int]:
    """Which of a model's blocks ``"all"`` or a range of shares means: those that begin within it, at least one.

    Example:
        >>> within("0.66-0.83", 30), within("0.66-0.83", 12), within("0.7-0.7", 30), within("0.66-0.83", 2)
        ([20, 21, 22, 23, 24], [8, 9], [21], [1])
    """
    if layers == "all":
        return list(range(depth))
    begin, end = map(float, layers.split("-"))
    return [i for i in range(depth) if begin <= i / depth <= end] or [min(depth - 1, int((begin + end) / 2 * depth))]


def head(model: PreTrainedModel) -> list[Site]:
    """The linear maps behind the last block of a model with a classification head, in the order in which they run.

    They are all that such a model has beside its base model, and the base model's pooler.
    """
    base, depth = f"{model.base_model_prefix}.", len(blocks(model))
    maps = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (not name.startswith(base) or ".pooler." in name)
    }
    return [Site(name, depth, "head", m.in_features, m.out_features) for name, m in maps.items()]


def roles(model: nn.Module) -> list[str]:
    """The roles that the model's family has; taken together they are every map that a patch can sit on."""
    return list(_family(model)[1])


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear map. GPT-2's Conv1D keeps its weight as (I, O)."""
    if transposed(module):
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return outputs, inputs
    return module.out_features, module.in_features  # type: ignore[return-value]


def weight_norm(module: nn.Module) -> float:
    """Frobenius norm of a linear map's weight."""
    return float(plain(module.weight).detach().norm())  # type: ignore[arg-type]


def transposed(module: nn.Module) -> bool:
    """Does this module hold its weight as (I, O)? Here alone Conv1D and Linear are told apart.

    Raises SiteError for any other kind of map (quantized otherwise than here, cut over devices).
    """
    if isinstance(module, (nn.Linear, Conv1D)) and (module.weight.is_floating_point() or is_quantized(module.weight)):
        return isinstance(module, Conv1D)
    raise SiteError(
        f"a {type(module).__name__} is no linear map with a plain weight, and cannot be edited; load it unquantized, "
        "or quantized by loredit itself (--quantize)"
    )


def _model_type(model: nn.Module) -> str:
    return str(model.config.model_type)  # type: ignore[union-attr]


def _family(model: nn.Module) -> tuple[str, dict[str, list[str]]]:
    try:
        return _FAMILIES[_model_type(model)]
    except KeyError:
        if reason := _REFUSED.get(_model_type(model)):
            raise SiteError(f"models of type {_model_type(model)!r} cannot be edited here: {reason}") from None
        raise SiteError(
            f"models of type {_model_type(model)!r} are not known here; known: {', '.join(_FAMILIES)}. "
            "A family is one entry in engine/model/sites.py"
        ) from None
