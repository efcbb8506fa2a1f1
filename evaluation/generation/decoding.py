r"""Writing by beam search: transformers' own, with an edit attached.

A text t of \|t\| tokens, its end among them, is scored :math:`\log p(t) / |t|^{\alpha}` with the length penalty
:math:`\alpha`; the best of the beams that have ended is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...engine.model.attention import plain_attention
from ...engine.model.encoding import padded
from ...engine.model.passes import frozen


@dataclass(frozen=True)
class Beam:
    """How texts are looked for; the defaults are those that results on E2E are published with."""

    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    """No n-gram of this length comes twice in a text; 0: any may. The source does not count: names are copied."""
    tokens: int = 100
    """The longest text."""


class NoRepeat(NoRepeatNGramLogitsProcessor):
    """No n-gram twice behind a prompt of ``prompt`` tokens; transformers' own rule counts those of the prompt, too."""

    def __init__(self, size: int, prompt: int) -> None:
        super().__init__(size)
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(input_ids[:, self._prompt :], scores)


@torch.no_grad()
def written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    beam: Beam,
    *,
    batch_size: int,
    context: int,
) -> Iterator[tuple[list[int], list[str]]]:
    """Texts for prompts of token ids, with whatever is attached to the model.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer; a text ends with its end-of-text token.
        prompts: token ids of each.
        beam: how texts are looked for.
        batch_size: prompts at once; prompts of like length share a batch.
        context: positions that prompt and text have.

    Yields:
        The numbers of the prompts of a batch, and their texts without blanks around them.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with frozen(model), plain_attention(model):
        for begin in range(0, len(order), batch_size):
            chunk = order[begin : begin + batch_size]
            ids, mask = padded([prompts[i] for i in chunk], model.device, left=True)
            width = ids.shape[1]
            config = GenerationConfig(
                max_new_tokens=max(1, min(beam.tokens, context - width)),
                num_beams=beam.beams,
                do_sample=False,
                # Of one beam alone transformers warns that a penalty means nothing.
                **({"length_penalty": beam.length_penalty} if beam.beams > 1 else {}),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            rules = LogitsProcessorList([NoRepeat(beam.no_repeat_ngram, width)] if beam.no_repeat_ngram else [])
            generate: Any = model.generate
            out = generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=rules)
            texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            yield chunk, [" ".join(text.split()) for text in texts]
