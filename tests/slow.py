"""What the engine does in batches, as slow and obvious loops: one text at a time, no padding, no cache, no replay."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(T, V) of one text alone."""
    return model(torch.tensor([ids], device=model.device)).logits[0]


def answer_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[Tensor, Tensor]:
    """(K, V) predictions of the answer's tokens, teacher-forced, and (K,) the tokens themselves. One token a byte."""
    start, ids = len(prompt.encode()), tokenizer(f"{prompt} {answer}")["input_ids"]
    return logits(model, ids)[start - 1 : -1], torch.tensor(ids[start:])


def log_probs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Tensor:
    """(K,) log P of each token of the answer."""
    predictions, wanted = answer_logits(model, tokenizer, prompt, answer)
    return predictions.log_softmax(-1)[range(len(wanted)), wanted]


def greedy(model: PreTrainedModel, ids: list[int], tokens: int) -> tuple[list[int], Tensor]:
    """The tokens that follow, and (tokens, V) the predictions they were chosen from."""
    seen, out = [], list(ids)
    for _ in range(tokens):
        seen.append(logits(model, out)[-1])
        out.append(int(seen[-1].argmax()))
    return out[len(ids) :], torch.stack(seen)
