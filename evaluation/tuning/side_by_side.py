"""A model with several patches side by side, and the classifier that has a head for each.

Shapes: E edits (seeds, or the members of an ensemble), b examples for each, C texts of an example (options; 1 in
classification), R = E b C rows in edit order, T tokens, d the model's width, K outputs.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ...engine.model.kept import Kept
from ...engine.model.passes import input_of, replayed
from ...engine.model.sites import blocks, head
from ...engine.patches.branches import Branch, SitePatch
from ...engine.patches.patch import Patch
from ...engine.patches.rows import Rows
from ...engine.seeds import PerEdit, seed_of


class Map(Branch):
    """W x + b in place of the model's own map, one of each for each edit."""

    def __init__(self, weight: Tensor, bias: Tensor, *, last: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.last = nn.Parameter(weight), nn.Parameter(bias), last  # (E, O, I), (E, O)

    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        exact = x.to(self.weight.dtype)
        new = rows.linear(exact, self.weight) + rows.per_row(self.bias)[:, None]
        return new if self.last else new.to(y.dtype)  # logits stay exact: options may differ by little


def fresh_head(model: PreTrainedModel, seeds: Sequence[int]) -> SitePatch[Map]:
    """A head for each seed: the base model's pooler, if it has one, as it is, all behind it drawn as transformers does.

    Weights are normal with the config's ``initializer_range``, biases zero.
    """
    chosen, draw = head(model), PerEdit([seed_of(seed, "head") for seed in seeds])
    std, base = model.config.initializer_range, f"{model.base_model_prefix}."
    maps = []
    for site in chosen:
        module, size = model.get_submodule(site.name), (len(seeds), site.outputs)
        weight, bias = draw.normal((site.outputs, site.inputs), std), torch.zeros(size)
        if site.name.startswith(base):
            weight = module.weight.detach().cpu().float().expand(*size, -1).clone()  # type: ignore[operator]
            bias = module.bias.detach().cpu().float().expand(size).clone()  # type: ignore[operator]
        maps.append(Map(weight, bias, last=site is chosen[-1]))
    return SitePatch(seeds, chosen, maps).to(model.device, torch.promote_types(torch.float32, model.dtype))


@torch.no_grad()
def set_head(model: PreTrainedModel, fresh: SitePatch[Map], edit: int) -> None:
    """Put one edit's head into the model's own weights."""
    for site, part in fresh.items():
        module = model.get_submodule(site.name)
        module.weight.copy_(part.weight[edit])  # type: ignore[operator]
        if isinstance(module.bias, Tensor):
            module.bias.copy_(part.bias[edit])


class Tuned(nn.Module, ABC):
    """The frozen model in eval mode with E edits on it; what it is trained for is a subclass's.

    Blocks below the first patched one give the same output at every step and for every edit: with ``replay`` it is
    computed once for each text (T d numbers are stored). Without patches ``own`` is trained, as one edit: the model
    itself, or its blocks from ``first`` on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        patches: Sequence[Patch],
        *,
        autocast: bool,
        replay: bool = True,
        own: nn.Module | None = None,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.patches = model, nn.ModuleList(patches)
        self._autocast, self._own = autocast, [model if own is None else own]  # in a list: no module of this one's
        lowest = min((patch.first_layer for patch in patches), default=first)
        self._below = Below(model, min(lowest, len(blocks(model)) - 1) if replay else 0)

    @abstractmethod
    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """(E,), each edit's mean over its own part of a batch."""

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.model.eval()
        self._own[0].train(mode and not len(self.patches))
        return self

    @contextmanager
    def edited(self, inputs: dict[str, Tensor], keys: Sequence[int], edits: int) -> Iterator[None]:
        """While open, rows (R, T) in edit order, R / E of each, are computed with their edits; a key names a text."""
        owner = [e for e in range(edits) for _ in range(len(keys) // edits)]
        device = inputs["input_ids"].device
        with ExitStack() as stack:
            stack.enter_context(self._below.replayed(keys, inputs))
            for patch in self.patches:
                stack.enter_context(patch.attached(self.model, Rows(owner, edits, device)))  # type: ignore[operator]
            if self._autocast:
                stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            yield


class SideBySide(Tuned):
    """A classifier: (b, E, C, T) -> logits (b, E, K), with options (b, E, C); see :func:`losses`."""

    def __init__(
        self,
        model: PreTrainedModel,
        patches: Sequence[Patch],
        *,
        options: bool,
        autocast: bool,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(model, patches, autocast=autocast)
        self.options, self._weights = options, weights

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        labels, keys = batch.pop("labels"), batch.pop("keys")
        return losses(self.logits(batch, keys), labels, self._weights)

    def logits(self, inputs: dict[str, Tensor], keys: Tensor) -> Tensor:
        b, edits, texts = keys.shape
        flat = {name: t.transpose(0, 1).flatten(0, 2) for name, t in inputs.items()}  # (R, T), in edit order
        with self.edited(flat, keys.transpose(0, 1).flatten().tolist(), edits):
            out: Tensor = self.model(**flat).logits
        out = out.float() if out.dtype != torch.float64 else out
        out = out.view(edits, b, texts if self.options else -1)
        return out.transpose(0, 1)


class Below:
    """What block ``layer`` gets for each text, stored from the first time that the text is met while memory lasts.

    Nothing is stored for layer 0, nor for models that cannot be run without a cache for generation (DeBERTa, whose
    blocks return pairs).
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._model, self._layer, self._kept = model, layer, Kept[int](model.device)
        self._on = layer > 0 and "use_cache" in inspect.signature(model.base_model.forward).parameters

    @contextmanager
    def replayed(self, keys: Sequence[int], inputs: dict[str, Tensor]) -> Iterator[None]:
        """R keys that name texts, and their inputs (R, T)."""
        with replayed(self._model, self._layer, self._hidden(keys, inputs)) if self._on else nullcontext():
            yield

    def _hidden(self, keys: Sequence[int], inputs: dict[str, Tensor]) -> Tensor:
        def fresh(new: list[int]) -> list[Tensor]:
            rows = torch.tensor(new, device=inputs["input_ids"].device)
            part = {name: t[rows] for name, t in inputs.items()}
            hidden = input_of(self._model, self._layer, part.pop("input_ids"), **part)
            return [text[:n] for text, n in zip(hidden, part["attention_mask"].sum(1).tolist(), strict=True)]

        return pad_sequence(self._kept.of(keys, fresh), batch_first=True)


def losses(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """(b, E, K) logits, (b, E) labels -> (E,), each edit's mean; squared error where there is one output.

    ``weights`` (E, K): of the classes, as in torch's weighted cross-entropy.
    """
    if logits.shape[2] == 1:
        return (logits.squeeze(2) - labels).square().mean(0)
    wanted = labels.long()
    nll = -logits.log_softmax(2).gather(2, wanted[..., None]).squeeze(2)
    if weights is None:
        return nll.mean(0)
    weight = weights.gather(1, wanted.T).T
    return (weight * nll).sum(0) / weight.sum(0)


def parameters_of(module: nn.Module) -> int:
    """Numbers that are trained in a model."""
    return sum(p.numel() for p in module.parameters())
