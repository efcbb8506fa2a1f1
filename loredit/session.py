"""One model, its edits and its lock: what a command, a page or a server asks, one at a time.

A session is the only way from the roof's doors (commands, page, server) to edits: they never import training or
patches themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from .data import Fact
from .data.messages import listed
from .editors import load
from .editors.base import Edits
from .engine.model.encoding import Encoder
from .engine.model.generation import Attach, continuations
from .engine.model.loading import LoadedModel
from .engine.model.loading import load as load_model
from .engine.model.passes import context_of
from .engine.storage.manifest import edit_of, read_manifest
from .store.routing import Route
from .store.store import EditStore


@dataclass(frozen=True)
class Answer:
    """What the model says after a prompt, without and with edits; an empty text where it says nothing."""

    prompt: str
    without: str
    edited: str
    facts: tuple[Fact, ...]
    """Of the edit that the prompt was given; none where it was left to the unedited model."""
    route: Route | None = None
    """How the edit was found; None where it was named."""
    learned: bool | None = None
    """Whether the edit gives its answer to its own prompt; None where there is no edit, or where that is not known."""


class Session:
    """A model with the edits of a folder.

    Of several edits, each prompt gets the one that it is about, or none; ``case`` names one for all prompts.
    Calls from several threads wait for each other.

    Args:
        folder: what ``loredit apply`` wrote, or a store.
        case: the case id of the one edit that is to be used.
        model: where the model is now; else where it was when it was edited.
        device: auto, cpu, cuda, cuda:1, mps.
        encoder: what prompts are embedded with, in place of what the folder names (:class:`EditStore`).

    Raises:
        ValueError: no such folder, case or model; the message says what there is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        case: str | None = None,
        model: str | None = None,
        device: str = "auto",
        encoder: str | None = None,
    ) -> None:
        loaded = loaded_for(folder, model, device)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._lock = Lock()
        self._store: EditStore | None = None
        self._edits: Edits | None = None
        manifest = read_manifest(folder)
        if case is None and (len(manifest.facts) > 1 or manifest.routing is not None):
            self._store = EditStore.load(folder, self.model, self.tokenizer, encoder=encoder)
        else:
            edits = load(folder, self.model, self.tokenizer)
            self._edits = edits[chosen(edits, case)]
        self._encoder = Encoder(self.tokenizer, context_of(self.model), self.positions)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's tokenizer says how a chat is written."""
        return bool(self.tokenizer.chat_template)

    @property
    def positions(self) -> int:
        """Positions of the model's context that the edits take."""
        if self._store is not None:
            return self._store.positions
        assert self._edits is not None
        return self._edits.editor.positions

    def on(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[object]:
        """While open, each row of a batch is computed with the edit that its prompt (token ids) is about, or, of one
        edit, all with that one."""
        if self._store is not None:
            return self._store.on(prompts)
        assert self._edits is not None
        return self._edits.on(0)

    def always(self) -> AbstractContextManager[object]:
        """While open, all is computed with the one edit. Raises ValueError where there are several."""
        if self._edits is None:
            raise ValueError("there are several edits; name one of them with --case")
        return self._edits.on(0)

    def ask(self, prompts: Sequence[str], *, tokens: int = 20, chat: bool = False) -> list[Answer]:
        """Greedy continuations of prompts without and with the edits, up to a line's end.

        Args:
            prompts: what the model is to continue or, in a chat, to answer.
            tokens: length of an answer, at most.
            chat: hand each prompt over as a user's turn, by the tokenizer's chat template.

        Raises:
            ValueError: ``chat`` for a tokenizer without a template, or a prompt that is too long.
        """
        with self._lock:
            ids = [self._ids(prompt, chat) for prompt in prompts]
            without = self._texts(ids, tokens, lambda some: nullcontext())
            if self._store is not None:
                store, routes = self._store, self._store.route(prompts)
                rows = [route.edit for route in routes]
                edited = self._texts(ids, tokens, lambda some: store.with_edits([rows[r] for r in some]))
                return [
                    Answer(
                        prompt,
                        before,
                        after,
                        store.facts[route.edit] if route.edit >= 0 else (),
                        route,
                        self._learned(store, route),
                    )
                    for prompt, before, after, route in zip(prompts, without, edited, routes, strict=True)
                ]
            assert self._edits is not None
            edits = self._edits
            edited = self._texts(ids, tokens, lambda some: edits.on(0))
            known = edits.outcomes[0].learned(0)
        return [
            Answer(prompt, before, after, edits.facts[0], None, known)
            for prompt, before, after in zip(prompts, without, edited, strict=True)
        ]

    def _learned(self, store: EditStore, route: Route) -> bool | None:
        if route.fact is None:
            return None
        fact = store.facts[route.edit].index(route.fact)
        return store.outcomes[route.edit].learned(fact)

    def _ids(self, prompt: str, chat: bool) -> Sequence[int]:
        if not chat:
            return self._encoder.prompt(prompt).ids
        if not self.has_chat_template:
            raise ValueError("this model has no chat template; ask without one (--raw)")
        turns = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(str(text), add_special_tokens=False)["input_ids"])

    def _texts(self, ids: Sequence[Sequence[int]], tokens: int, attach: Attach) -> list[str]:
        end = self.tokenizer.eos_token_id
        room = self._encoder.context - self._encoder.reserved
        texts = continuations(
            self.model, ids, tokens=tokens, context=room, attach=attach, stop=lambda _, token: token == end
        )
        decoded = self.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [text.strip().partition("\n")[0] for text in decoded]


def loaded_for(folder: Path, model: str | None, device: str) -> LoadedModel:
    """The model that a folder's edits are of, in the dtype that they were trained in."""
    manifest = read_manifest(folder)
    return load_model(model or manifest.model, device=device, dtype=manifest.dtype)


def chosen(edits: Edits, case: str | None) -> int:
    """The edit that is meant: the named one, or the only one. Raises ValueError."""
    if case is not None:
        return edit_of(edits.facts, case)
    if len(edits) > 1:
        raise ValueError(f"there are {len(edits)} edits; name one of them with --case: {listed(edits.case_ids)}")
    return 0
