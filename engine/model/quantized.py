"""Weights of 8 or 4 bits (the extra ``quantize``): rounded while a model is loaded, multiplied in the model's dtype.

``8bit`` is torchao's int8 with a scale for each output, ``4bit`` bitsandbytes' NF4 with a scale for 64 numbers each
(https://arxiv.org/abs/2305.14314). Both round weights alone. Where a library rounds what is multiplied with them too
(bitsandbytes' own 8 bit, whose outliers are those of the whole batch), one row's numbers depend on the others'; and
torchao has no 4 bit through which gradients pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from ...data.messages import unknown
from .sources import ModelError

Kind = Literal["8bit", "4bit"]


def settings_of(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    """What transformers is to be told. Raises ModelError: no such quantization, or its library is not installed."""
    if quantize not in get_args(Kind):
        raise ModelError(unknown("quantization", quantize, get_args(Kind)))
    if dtype == torch.float64:
        raise ModelError(f"{quantize} is of float32 or less, not of float64; take --dtype float32")
    try:
        if quantize == "4bit":
            import bitsandbytes  # noqa: F401, PLC0415 - which transformers would miss with many words

            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415 - an extra, which takes a second to import

        return TorchAoConfig(Int8WeightOnlyConfig())
    except ImportError as missing:
        raise ModelError(
            f"{quantize} needs {missing.name}, which is not installed; pip install 'loredit[quantize]'"
        ) from None


def prepare(model: PreTrainedModel) -> None:
    """Make what was just loaded fit to be trained through. Raises ModelError where nothing of it was quantized."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear) and is_quantized(module.weight)]
    if not maps:
        raise ModelError(
            f"none of the maps of a {model.config.model_type} would become smaller: torchao quantizes torch's Linear "
            "alone; take 4bit (--quantize 4bit)"
        )
    for module in maps:
        if hasattr(module.weight, "quant_state"):
            # On some CPUs a pass without gradients would lay the weight out anew, and one with gradients fail on it.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        else:
            module.__class__ = Int8Linear


def quantization_of(model: PreTrainedModel) -> Kind | None:
    """What :func:`~.loading.load` was told to quantize to; None of a model as it is."""
    told = getattr(model.config, "quantization_config", None)
    return None if told is None else "8bit" if isinstance(told, TorchAoConfig) else "4bit"


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is one of bitsandbytes' 4 bits or of torchao's."""
    return hasattr(weight, "quant_state") or hasattr(weight, "__tensor_flatten__")


def plain(weight: Tensor) -> Tensor:
    """The numbers of a weight, whatever it is kept as."""
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 - an extra

        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize() if is_quantized(weight) else weight


def parts(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a weight is kept as, by names."""
    if hasattr(weight, "quant_state"):
        yield from ((name, weight.data), (f"{name}.absmax", weight.quant_state.absmax))
    elif is_quantized(weight):
        kept, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
        yield from ((f"{name}.{part}", getattr(weight, part)) for part in kept)
    else:
        yield name, weight


class Int8Linear(nn.Linear):
    """Keeps no copy of its weight in the model's dtype for the backward pass, as torchao does, but makes it again."""

    def forward(self, input: Tensor) -> Tensor:
        y = _Product.apply(input, self.weight)
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.weight.dequantize(grad.dtype), None
