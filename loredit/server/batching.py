"""What many clients ask, in one running batch: each row with its own edit or none, joining and leaving at any step.

A thread of its own has the model while somebody waits for a text, and gives way to others (a training, say) between two
steps. Texts are told to the event loop piece by piece.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Literal

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from ..editors.base import Edits
from ..engine.model.generation import Decoder
from ..engine.model.hooks import set_aside
from ..session import Found, Session, attached

logger = logging.getLogger(__name__)

End = Literal["stop", "length"]
_CLOSED = "the server is shutting down"


class QueueFullError(Exception):
    """More texts are asked for than may wait."""


class StoppedError(Exception):
    """The server was shut down, or the model failed, before a text was finished."""


@dataclass(frozen=True)
class Wanted:
    """A text that is to be written.

    Attributes:
        ids: what it comes after.
        tokens: its length, at most; with ``ids`` no more than the context.
        found: the edit that it is written with, or the prompt by which that is to be found.
        temperature: 0 for the likeliest token each time.
        top_p: only the likeliest tokens that together have this probability.
        seed: of its random numbers, which are its own; None for any.
        stop: texts before which it ends.
    """

    ids: tuple[int, ...]
    tokens: int
    found: Found | str
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of a text.

    Attributes:
        text: what is new, perhaps nothing.
        tokens: that have been written so far.
        ended: why this is the last; None where it is not.
    """

    text: str
    tokens: int
    ended: End | None = None


Told = tuple[int, Found | Piece]
"""Which of a client's texts, and what is new of it: first how its edit was found."""


class Texts:
    """A client's texts while they are written: an iterator over what is told of them. Closing it ends them."""

    def __init__(self, count: int) -> None:
        self.gone = False
        self._running = count
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Told | Exception] = asyncio.Queue()

    def tell(self, what: Told | Exception) -> None:
        """For the thread that writes."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, what)

    async def __aiter__(self) -> AsyncIterator[Told]:
        try:
            while self._running:
                what = await self._news.get()
                if isinstance(what, Exception):
                    raise what
                self._running -= isinstance(what[1], Piece) and what[1].ended is not None
                yield what
        finally:
            self.gone = True


class _Row:
    """One text in the batch."""

    def __init__(self, wanted: Wanted, texts: Texts, place: int) -> None:
        self.wanted, self.texts, self.place = wanted, texts, place
        self.found = wanted.found if isinstance(wanted.found, Found) else None
        self._random = torch.Generator().manual_seed(secrets.randbits(63) if wanted.seed is None else wanted.seed)
        self._stream = DecodeStream(ids=[*wanted.ids], skip_special_tokens=True)
        self._text, self._sent, self._count = "", 0, 0

    @property
    def edits(self) -> Edits | None:
        return self.found.edits if self.found else None

    def draw(self, logits: Tensor) -> int:
        """(V,) -> a token."""
        shares = (logits.float().cpu() / self.wanted.temperature).softmax(-1)
        if self.wanted.top_p >= 1:
            return int(torch.multinomial(shares, 1, generator=self._random))
        shares, tokens = shares.sort(descending=True)
        shares[shares.cumsum(-1) - shares >= self.wanted.top_p] = 0
        return int(tokens[torch.multinomial(shares, 1, generator=self._random)])

    def take(self, token: int, session: Session) -> bool:
        """Write a token; whether the text has ended."""
        self._count += 1
        ended: End | None = None
        if token == session.tokenizer.eos_token_id:
            ended = "stop"
        else:
            self._text += self._stream.step(session.tokenizer.backend_tokenizer, token) or ""
            ended = "length" if self._count == self.wanted.tokens else None
        places = [self._text.find(stop, self._sent) for stop in self.wanted.stop]
        if found := [place for place in places if place >= 0]:
            self._text, ended = self._text[: min(found)], "stop"
        certain = len(self._text) if ended else len(self._text) - _held(self._text[self._sent :], self.wanted.stop)
        new, self._sent = self._text[self._sent : certain], certain
        if new or ended:
            self.texts.tell((self.place, Piece(new, self._count, ended)))
        return ended is not None


def _held(text: str, stops: Sequence[str]) -> int:
    """Letters at a text's end that may be the beginning of one of ``stops``."""
    longest = min(max(map(len, stops), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)


class Batcher:
    """The thread that writes all texts.

    Args:
        session: the model, its edits, and their lock.
        rows: texts that are written side by side, at most.
        queue: texts that may wait beside them.

    Example:
        >>> texts = batcher.submit([Wanted(ids, 20, "The capital of France is")])  # doctest: +SKIP
        >>> async for place, told in texts:  # doctest: +SKIP
        ...     print(told)
    """

    def __init__(self, session: Session, *, rows: int = 32, queue: int = 256) -> None:
        self.session = session
        self._most, self._longest = rows, queue
        self._waiting: deque[_Row] = deque()
        self._live: dict[int, _Row] = {}
        self._beside: Edits | None = None  # the newest edit in the batch
        self._names = 0
        self._closing = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, wanted: Sequence[Wanted]) -> Texts:
        """Have texts written; to be called in the event loop. Raises QueueFullError, StoppedError."""
        texts = Texts(len(wanted))
        rows = [_Row(one, texts, place) for place, one in enumerate(wanted)]
        with self._changed:
            if self._closing:
                raise StoppedError(_CLOSED)
            if len(self._waiting) + len(rows) > self._longest:
                raise QueueFullError(
                    f"{len(self._waiting)} texts are waiting, and {self._longest} may; try again later"
                )
            self._waiting.extend(rows)
            self._changed.notify()
        return texts

    def close(self) -> None:
        """End all texts, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._something():
            why = _CLOSED
            try:
                with self.session.lock.held():
                    self._write()
            except Exception as error:  # of whatever kind: those who wait are told, and the next ones are served
                logger.exception("a batch of %d texts has failed", len(self._live))
                why = f"the model failed: {error}"
            self._fail([*self._live.values()], why)
            self._live, self._beside = {}, None
        self._fail([*self._waiting], _CLOSED)

    def _something(self) -> bool:
        """Waits until there is something to write; whether there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return not self._closing

    def _fail(self, rows: Sequence[_Row], message: str) -> None:
        for texts in {id(row.texts): row.texts for row in rows}.values():
            texts.tell(StoppedError(message))

    def _write(self) -> None:
        """Until nobody waits any more."""
        with Decoder(self.session.model, self._attach) as decoder:
            logits: Tensor | None = None
            while not self._closing:
                if new := self._joining():
                    joined = decoder.join(new, [self._live[name].wanted.ids for name in new])
                    logits = joined if logits is None else torch.cat([logits, joined])
                if logits is None:
                    return
                chosen, rows = self._chosen(logits, decoder.rows), [self._live[name] for name in decoder.rows]
                over = [
                    row.texts.gone or row.take(token, self.session)
                    for row, token in zip(rows, chosen.tolist(), strict=True)
                ]
                if any(over):
                    left = [i for i, ended in enumerate(over) if not ended]
                    decoder.keep(left)
                    self._live, chosen = {name: self._live[name] for name in decoder.rows}, chosen[left]
                self.session.lock.give_way()
                logits = decoder.step(chosen) if decoder.rows else None

    def _attach(self, names: Sequence[int]) -> AbstractContextManager[None]:
        rows = [self._live[name].edits for name in names]
        return attached(rows, self._beside)

    def _joining(self) -> list[int]:
        """Those that wait and fit into the batch, in their order, as numbers by which they are known in it."""
        with self._changed:
            room = self._most - len(self._live)
            first = [row for row in [*self._waiting][:room] if not row.texts.gone]
        self._find([row for row in first if row.found is None])
        joining = []
        with self._changed:
            while self._waiting and len(self._live) < self._most:
                row = self._waiting[0]
                if row.texts.gone:
                    self._waiting.popleft()
                    continue
                if row.found is None or not self._fits(row.edits):  # new meanwhile; of another kind
                    break
                self._waiting.popleft()
                self._beside = row.edits or self._beside
                self._names += 1
                self._live[self._names] = row
                joining.append(self._names)
                row.texts.tell((row.place, row.found))
        return joining

    def _find(self, rows: Sequence[_Row]) -> None:
        """Find the edits of rows by their prompts; rows for which that fails leave the queue."""
        sought = [(row, row.wanted.found) for row in rows if isinstance(row.wanted.found, str)]
        if not sought:
            return
        try:
            with set_aside(self.session.model):  # which may be what reads the prompts, as it is without edits
                found = self.session.found([text for _, text in sought])
        except Exception as error:
            logger.exception("the edits of %d prompts were not found", len(sought))
            with self._changed:
                self._waiting = deque(row for row in self._waiting if row not in rows)
            self._fail(rows, f"the edit of a prompt could not be looked for: {error}")
            return
        for (row, _), one in zip(sought, found, strict=True):
            row.found = one

    def _fits(self, edits: Edits | None) -> bool:
        """Whether an edit is of the kind of those in the batch."""
        if edits is None or self._beside is None:
            return True
        kinds = [(type(e.editor), e.editor.hparams) for e in (edits, self._beside)]
        return kinds[0] == kinds[1]

    def _chosen(self, logits: Tensor, names: Sequence[int]) -> Tensor:
        """(R, V) -> (R,)"""
        chosen = logits.argmax(-1)
        for place, name in enumerate(names):
            if self._live[name].wanted.temperature:
                chosen[place] = self._live[name].draw(logits[place])
        return chosen
