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
from .engine.storage.manifest import edit_of, read_manifest
from .store.store import EditStore


@dataclass(frozen=True)
class Answer:
    """What the model says after a prompt, without and with edits."""

    prompt: str
    without: str
    edited: str
    facts: tuple[Fact, ...]
    """Of the edit that the prompt was given; none where it was left to the unedited model."""


class Session:
    """A model with the edits of a folder.

    Of several edits, each prompt gets the one that it is about, or none; ``case`` names one for all prompts.
    Calls from several threads wait for each other.
    """

    def __init__(
        self, folder: Path, *, case: str | None = None, model: str | None = None, device: str = "auto"
    ) -> None:
        loaded = loaded_for(folder, model, device)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._encoder = Encoder(self.tokenizer, self.model.config.max_position_embeddings)
        self._lock = Lock()
        self._store: EditStore | None = None
        self._edits: Edits | None = None
        if case is None and len(read_manifest(folder).facts) > 1:
            self._store = EditStore.load(folder, self.model, self.tokenizer)
        else:
            edits = load(folder, self.model, self.tokenizer)
            self._edits = edits[chosen(edits, case)]

    def ask(self, prompts: Sequence[str], *, tokens: int = 20) -> list[Answer]:
        """Greedy continuations of prompts without and with the edits, up to a line's end."""
        with self._lock:
            ids = [self._encoder.prompt(prompt).ids for prompt in prompts]
            without = self._texts(ids, tokens, lambda rows: nullcontext())
            if self._store is not None:
                store = self._store
                edited = self._texts(ids, tokens, lambda rows: store.on([ids[r] for r in rows]))
                facts = [store.facts[e] if e >= 0 else () for e in store.route(ids)]
            else:
                assert self._edits is not None
                edits = self._edits
                edited = self._texts(ids, tokens, lambda rows: edits.on(0))
                facts = [edits.facts[0]] * len(ids)
        return [Answer(*parts) for parts in zip(prompts, without, edited, facts, strict=True)]

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

    def _texts(
        self,
        ids: Sequence[Sequence[int]],
        tokens: int,
        attach: Attach,
    ) -> list[str]:
        texts = continuations(self.model, ids, tokens=tokens, attach=attach)
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
