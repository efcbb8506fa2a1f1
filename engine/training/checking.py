"""Whether facts have been learned: each is asked once, in its own words, of the edit that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from ...data.facts import Fact
from ..devices import Budget
from ..method import Method
from ..model.encoding import Batch, Encoded, EncodingError, chunks
from ..model.passes import frozen, logits_at
from ..outcome import Check
from ..patches.patch import Patch
from ..patches.rows import Rows

_TOKENS = Budget(cpu=1024, mps=8192, accelerator=1 << 16)  # padded, of one pass


@torch.no_grad()
def checked(method: Method, patch: Patch, facts: Sequence[tuple[int, Fact]]) -> list[Check | None]:
    """For each fact and the edit that carries it, whether the answer is the model's first choice, token by token.

    None for a fact that cannot be encoded, or not be computed.
    """
    rows: dict[int, Encoded] = {}
    for i, (_, fact) in enumerate(facts):
        try:
            rows[i] = method.encoder.answered(fact.prompt, fact.target_new)
        except EncodingError:
            continue
    found: dict[int, Check] = {}
    order = sorted(rows, key=lambda i: len(rows[i].ids))
    device = method.model.device
    with frozen(method.model):
        for chunk in chunks(order, [len(rows[i].ids) for i in order], _TOKENS.on(device)):
            batch = Batch.of([rows[i] for i in chunk], device)
            with patch.attached(method.model, Rows([facts[i][0] for i in chunk], len(patch), device)):
                logits = logits_at(method.model, batch.ids, batch.at)
            log_prob = logits.double().log_softmax(-1).gather(-1, batch.labels[:, None]).squeeze(-1)
            right = batch.table((logits.argmax(-1) == batch.labels).double(), fill=1.0).bool().all(1)
            for i, learned, total in zip(
                chunk, right.tolist(), batch.table(log_prob).sum(1).exp().tolist(), strict=True
            ):
                if isfinite(total):  # of a fact that the model cannot compute there is nothing to say
                    found[i] = Check(learned, total)
    return [found.get(i) for i in range(len(facts))]
