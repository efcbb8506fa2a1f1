"""Keys and values before a text's own, in every layer.

Shapes: R rows of a batch, T tokens, l or P positions of the prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..model.encoding import padded
from ..model.hooks import after, before
from ..model.passes import frozen
from ..model.sites import blocks


@contextmanager
def prepended(model: PreTrainedModel, kv: Iterable[Iterable[Tensor]], seen: Tensor) -> Iterator[None]:
    """While open, texts are attended to behind a prefix.

    Args:
        model: any causal LM whose cache is a ``DynamicCache``.
        kv: for each layer keys and values, (R, heads, l, head width) each; R may be 1, for all rows.
        seen: (R, l), 1 where a row sees the prefix, 0 where it does not.

    Raises:
        ValueError: inside, where the model is called with a cache that does not grow, or with a mask that is no
            (R, T).
    """
    length = seen.shape[1]
    devices = [next(block.parameters()).device for block in blocks(model)]
    uncached: list[DynamicCache] = []  # of the call that runs, where it is not to give a cache back

    def prepend(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = args[0] if args else kwargs.get("input_ids")
        ids = (
            kwargs["inputs_embeds"] if ids is None else ids
        )  # (R, T) or (R, T, d): rows and tokens are all that is read
        cache, mask, positions = (kwargs.get(key) for key in ("past_key_values", "attention_mask", "position_ids"))
        if not isinstance(cache, DynamicCache | None):
            raise ValueError(
                f"a prefix needs room in the cache, which a {type(cache).__name__} of fixed size has not; generate "
                "without cache_implementation"
            )
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"a prefix needs a mask of rows and tokens (R, T), not {tuple(mask.shape)}")
        uncached.clear()  # of a call that ended with an error
        if cache is None:
            cache = DynamicCache(config=model.config)
            if kwargs.get("use_cache") is False:
                uncached.append(cache)
        past = cache.get_seq_length()
        if not past:  # a new text; else the prefix is already there
            for layer, both in enumerate(kv):
                keys, values = (t.to(devices[layer], model.dtype).expand(len(ids), -1, -1, -1) for t in both)
                cache.update(keys, values, layer)
            past = length
        tokens = past - length + ids.shape[1]
        mask = seen.new_ones(len(ids), tokens) if mask is None else mask
        positions = torch.arange(tokens - ids.shape[1], tokens, device=ids.device) if positions is None else positions
        return args, kwargs | {
            "past_key_values": cache,
            "attention_mask": torch.cat([seen.expand(len(ids), length), mask], 1),
            "position_ids": positions + seen.sum(1, keepdim=True),
        }

    def withhold(_: nn.Module, __: Any, output: Any) -> Any:
        """Without the cache that nobody asked for: ``generate`` would take it for that of the text so far."""
        if not uncached:
            return output
        own = uncached.pop()
        if isinstance(output, tuple):
            return tuple(part for part in output if part is not own)
        output.past_key_values = None
        return output

    handles = before(model, prepend), after(model, withhold)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Behind:
    """The beginnings of R texts as the unedited model sees them, for what comes behind them to be run alone.

    They are of uneven lengths, padded on the left to P tokens.
    """

    model: PreTrainedModel
    seen: Tensor  # (R, P), 1 where there is a token
    kv: Sequence[tuple[Tensor, Tensor]]  # keys and values of each layer, (R, heads, P, head width) ...
    below: int = 0  # ... above so many, which are not run again

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, beginnings: Sequence[Sequence[int]]) -> Behind:
        """All layers' keys and values, of one pass."""
        ids, seen = padded(beginnings, model.device, left=True)
        cache = DynamicCache()  # of the config's, a layer with a window would keep no more than its window
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        body = model.base_model
        with frozen(model):
            body(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True)
        return cls(model, seen, [(layer.keys, layer.values) for layer in cache.layers])  # type: ignore[union-attr, misc]

    def above(self, first: int) -> Behind:
        """For runs of the layers from ``first`` on."""
        return replace(self, kv=self.kv[first:], below=first)

    def rows(self, chosen: Tensor) -> Behind:
        """Some of them."""
        kv = [(keys[here], values[here]) for keys, values in self.kv for here in [chosen.to(keys.device)]]
        return replace(self, seen=self.seen[chosen], kv=kv)

    def attached(self) -> AbstractContextManager[None]:
        """While open, row r of a batch is attended to behind beginning r."""
        keys, _ = self.kv[0]
        length = keys[:, :1, :, :1].expand_as(keys)  # all that is asked of layers that are not run
        return prepended(self.model, [*[(length, length)] * self.below, *self.kv], self.seen)


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(l, layers, 2, heads, head width), what the model computes for l tokens, on the CPU and at least in float32."""
    cache = DynamicCache()
    with frozen(model):
        model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
    kv = torch.stack([torch.cat([layer.keys, layer.values]).cpu() for layer in cache.layers])  # type: ignore[union-attr, list-item]
    return kv.permute(3, 0, 1, 2, 4).to(torch.promote_types(torch.float32, model.dtype))
