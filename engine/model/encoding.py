"""Text to token ids, and token ids to padded tensors. Padding is known by length, never by a token's id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")


class EncodingError(ValueError):
    """A text that cannot be used: nothing to predict, or longer than the model's context."""


@dataclass(frozen=True)
class Encoded:
    """Token ids whose part from ``start`` on is to be predicted from what stands before it."""

    ids: tuple[int, ...]
    start: int
    mark: int | None = None  # the position of a token of interest, before ``start``

    @property
    def wanted(self) -> tuple[int, ...]:
        return self.ids[self.start :]


class Span(NamedTuple):
    """Characters ``begin`` to ``end`` of a text, the last not included."""

    begin: int
    end: int


class Prompt(NamedTuple):
    """A text to be answered: an answer stands a space behind it, or begins the model's turn in a chat."""

    text: str
    begin: int = 0
    """Where the words that ask begin; what stands before them is a context."""
    chat: bool = False

    def span(self, subject: str | None) -> Span:
        """Where it names a subject (:func:`subject_span`)."""
        begin, end = subject_span(self.text[self.begin :], subject)
        return Span(self.begin + begin, self.begin + end)


def subject_span(prompt: str, subject: str | None) -> Span:
    """Where a prompt names its subject; the last time, if it does so more than once.

    The subject as a word of its own is preferred to a part of a longer word ("Art" in "The Art of Arthur").

    Raises:
        EncodingError: the prompt does not name it, or there is none.

    Example:
        >>> subject_span("The capital of France is", "France")
        Span(begin=15, end=21)
    """
    if subject is None:
        raise EncodingError(f"the method needs the fact's subject, and {prompt!r} comes without one")
    text = subject.strip()
    whole = list(re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", prompt))
    found = whole or list(re.finditer(re.escape(text), prompt))
    if not found:
        raise EncodingError(f"the prompt {prompt!r} does not name the subject {subject!r}")
    return Span(*found[-1].span())


class Encoder:
    """Encodes prompts and answers as ``prompt + " " + answer`` for one tokenizer and context length.

    ``reserved``: positions of the context that are not for texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, reserved: int = 0) -> None:
        self.tokenizer, self.context, self.reserved = tokenizer, context, reserved

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a template for chats."""
        return bool(self.tokenizer.chat_template)

    def chat(self, said: str | Sequence[Mapping[str, str]]) -> Prompt:
        """What a user says to the model, or the turns of a chat (role and content of each), and the beginning of the
        model's own turn. Raises EncodingError."""
        turns = [{"role": "user", "content": said}] if isinstance(said, str) else [dict(turn) for turn in said]
        try:
            text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except (ValueError, TemplateError) as error:
            raise EncodingError(f"the tokenizer's chat template does not take {said!r}: {error}") from error
        return Prompt(str(text), chat=True)

    def prompt(self, prompt: str | Prompt, *, room: int = 0, marked: Span | None = None) -> Encoded:
        """A prompt alone, nothing to predict; with ``room`` for so many tokens behind it.

        ``marked``: characters of the prompt whose last token is to be marked.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        ids = self._ids(prompt)
        if not ids:
            raise EncodingError(f"the prompt {prompt.text!r} becomes no token at all")
        mark = None if marked is None else self._last_token(prompt, marked)
        return self._fitting(Encoded(ids, len(ids), mark), prompt.text, room)

    def answered(
        self, prompt: str | Prompt, answer: str, *, end_of_text: bool = False, marked: Span | None = None
    ) -> Encoded:
        """Prompt and answer encoded together; the answer begins where the ids first differ from the prompt's alone.

        ``marked``: characters of the prompt whose last token is to be marked.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        whole = prompt._replace(text=prompt.text + ("" if prompt.chat else " ") + answer)
        ids, alone = self._ids(whole), self._ids(prompt)
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False)))
        if start == len(ids):
            raise EncodingError(f"the answer {answer!r} adds no token to the prompt {prompt.text!r}")
        if start == 0:
            raise EncodingError(
                f"nothing stands before the answer {answer!r}: the prompt {prompt.text!r} is no token of its own"
            )
        if end_of_text:
            ids = (*ids, self.tokenizer.eos_token_id)
        # Where prompt and answer share a token, the last one that is the prompt's alone stands for it.
        mark = None if marked is None else min(self._last_token(whole, marked), start - 1)
        return self._fitting(Encoded(ids, start, mark), whole.text)

    def cut(self, text: str, most: int) -> str:
        """The beginning of a text, of at most so many tokens."""
        spans = [span for span in self._offsets(Prompt(text)) if span[0] < span[1]]  # not those that mark an end
        return text if len(spans) <= most else text[: spans[most][0]].rstrip()

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self.tokenizer(prompt.text, **self._options(prompt))["input_ids"])

    @staticmethod
    def _options(prompt: Prompt) -> dict[str, bool]:
        """How a prompt is tokenized; a chat's template brings the special tokens along."""
        return {"add_special_tokens": False} if prompt.chat else {}

    def _last_token(self, prompt: Prompt, span: Span) -> int:
        """The position of the last token that has a part in these characters."""
        offsets = self._offsets(prompt)
        return max(i for i, (begin, end) in enumerate(offsets) if begin < span.end and end > span.begin)

    def _offsets(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Where in the text each token stands."""
        if not self.tokenizer.is_fast:
            raise EncodingError(
                f"a {type(self.tokenizer).__name__} does not say where its tokens stand; load a fast tokenizer"
            )
        return list(self.tokenizer(prompt.text, return_offsets_mapping=True, **self._options(prompt))["offset_mapping"])

    def _fitting(self, encoded: Encoded, text: str, room: int = 0) -> Encoded:
        if len(encoded.ids) + room + self.reserved > self.context:
            whole = f"{self.context}, of which the method takes {self.reserved}" if self.reserved else self.context
            raise EncodingError(f"{len(encoded.ids)} tokens, but the model's context is {whole}: {text[:60]!r}...")
        return encoded


def padded(
    sequences: Sequence[Sequence[int]], device: torch.device | str, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (R, T). The filler is id 0, which the mask or the causal order hides."""
    width = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        span = slice(width - len(sequence), None) if left else slice(len(sequence))
        ids[row, span] = torch.tensor(sequence)
        mask[row, span] = 1
    return ids.to(device), mask.to(device)


def chunks(items: Sequence[_T], sizes: Sequence[int], most: int) -> Iterator[list[_T]]:
    """Neighbouring items whose padded total (count times the largest size) is at most ``most``, unless it is one alone.

    They are cut where it costs least: a chunk costs its padded total and, for what it takes whatever its size, a tenth
    of ``most`` (docs/performance.md).
    """
    n = len(items)
    least, cut = np.zeros(n + 1), [0] * (n + 1)  # of the first ... items: what they cost, where their last chunk begins
    for end in range(1, n + 1):
        first = max(0, end - max(1, most // max(1, sizes[end - 1])))
        padded = np.maximum.accumulate(sizes[first:end][::-1])[::-1] * np.arange(end - first, 0, -1)
        padded[:-1] = np.where(padded[:-1] <= most, padded[:-1], np.iinfo(padded.dtype).max)
        cost = least[first:end] + padded
        cut[end], least[end] = first + int(cost.argmin()), cost.min() + most / 10
    ends = [n]
    while ends[-1]:
        ends.append(cut[ends[-1]])
    for begin, end in pairwise(ends[::-1]):
        yield list(items[begin:end])


class Table:
    """Lays N values of uneven groups side by side, (N,) -> (G, K): sums along K do not depend on other groups."""

    def __init__(self, counts: Sequence[int], device: torch.device | str) -> None:
        self.shape = len(counts), max(counts)
        self.counts = torch.tensor(counts, device=device)
        self._slot = torch.tensor(
            [g * self.shape[1] + k for g, n in enumerate(counts) for k in range(n)], device=device
        )

    def __call__(self, values: Tensor, fill: float = 0.0) -> Tensor:
        flat = values.new_full((self.shape[0] * self.shape[1],), fill)
        return flat.index_put((self._slot,), values).view(self.shape)


@dataclass(frozen=True)
class Batch:
    """Rows of token ids padded on the right, and the N positions whose next token is wanted.

    Right padding needs no attention mask under causal attention: no real token comes after a padded one.
    """

    ids: Tensor  # (R, T)
    at: tuple[Tensor, Tensor]  # row and position of each prediction, (N,) each
    labels: Tensor  # (N,)
    table: Table  # (N,) -> (R, K)
    marks: tuple[Tensor, Tensor]  # row and position of each marked token, at most one a row

    @classmethod
    def of(cls, rows: Sequence[Encoded], device: torch.device | str) -> Batch:
        ids, _ = padded([row.ids for row in rows], device)
        wanted = [(r, row.start - 1 + k) for r, row in enumerate(rows) for k in range(len(row.wanted))]
        row, position = torch.tensor(wanted, device=device).unbind(1)
        labels = torch.tensor([token for encoded in rows for token in encoded.wanted], device=device)
        marks = torch.tensor([[r, row.mark] for r, row in enumerate(rows) if row.mark is not None], device=device)
        marked, mark = marks.long().view(-1, 2).unbind(1)
        table = Table([len(encoded.wanted) for encoded in rows], device)
        return cls(ids, (row, position), labels, table, (marked, mark))


@dataclass(frozen=True)
class Passes:
    """Rows that are run a few at a time, those of like length together, since padding costs as much as text."""

    rows: list[list[int]]
    """Which rows each pass has; as many of each edit, those of an edit side by side."""
    batches: list[Batch]
    order: Tensor | None
    """(N,), where each of all rows' predictions is among those of the passes; None: in the same place."""

    @classmethod
    def of(cls, rows: Sequence[Encoded], device: torch.device | str, most: int | None, edits: int = 1) -> Passes:
        """At most so many padded tokens in a pass, or one row of each edit; None: one pass for all, in their order.

        ``edits``: so many have as many neighbouring rows each. An edit's shortest rows come first.
        """
        each = len(rows) // edits
        of_edit = [sorted(range(e * each, e * each + each), key=lambda r: len(rows[r].ids)) for e in range(edits)]
        sizes = [edits * max(len(rows[own[k]].ids) for own in of_edit) for k in range(each)]
        groups = [*chunks(range(each), sizes, most)] if most else []
        if len(groups) < 2:
            return cls([[*range(len(rows))]], [Batch.of(rows, device)], None)
        ends = [*accumulate((len(row.wanted) for row in rows), initial=0)]
        chosen = [[own[k] for own in of_edit for k in group] for group in groups]
        flat = torch.tensor([n for some in chosen for r in some for n in range(ends[r], ends[r + 1])], device=device)
        return cls(chosen, [Batch.of([rows[r] for r in some], device) for some in chosen], flat.argsort())

    def __call__(self, run: Callable[[list[int], Batch], Tensor]) -> Tensor:
        """What ``run`` gives for the predictions of each pass, (N', ...), as (N, ...) in the order of all rows."""
        found = [run(rows, batch) for rows, batch in zip(self.rows, self.batches, strict=True)]
        return found[0] if self.order is None else torch.cat(found)[self.order]
