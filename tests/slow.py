"""What the engine does in batches, as slow and obvious loops: one text at a time, no padding, no cache, no replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loredit.data import Fact


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


def next_log_probs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    """(T, V) log P of each token after each of a prompt's tokens."""
    return logits(model, tokenizer(prompt)["input_ids"]).log_softmax(-1)


def greedy(model: PreTrainedModel, ids: list[int], tokens: int) -> tuple[list[int], Tensor]:
    """The tokens that follow, and (tokens, V) the predictions they were chosen from."""
    seen, out = [], list(ids)
    for _ in range(tokens):
        seen.append(logits(model, out)[-1])
        out.append(int(seen[-1].argmax()))
    return out[len(ids) :], torch.stack(seen)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parameters: Iterable[Tensor],
    facts: Sequence[Fact],
    *,
    lr: float,
    steps: int,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """The losses of a plain loop over the mean of the facts; the parameters change in place. One token a byte."""
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(steps):
        loss = torch.zeros((), dtype=model.dtype)
        for fact in facts:
            ids, n = tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"], len(fact.prompt.encode())
            predictions = model(input_ids=torch.tensor([ids])).logits[0, n - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(predictions, torch.tensor(ids[n:])) / len(facts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            after_step()
        losses.append(loss.item())
    return losses
