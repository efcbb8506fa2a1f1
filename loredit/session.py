"""One model, its edits and its lock: what a command, a page or a server asks, one at a time.

A session is the only way from the roof's doors (commands, page, server) to edits: they never import training or
patches themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from .data import Fact
from .data.messages import listed
from .editors import load
from .editors.base import Edits
from .engine.model.encoding import Encoder
from .engine.model.generation import Attach, continuations
from .engine.model.loading import LoadedModel
from .engine.model.loading import load as load_model
from .engine.model.passes import context_of
from .engine.storage.manifest import MANIFEST, alone, edit_of, erase, read_manifest
from .evaluation.scoring import natural
from .lock import ModelLock
from .store.encoder import DEFAULT
from .store.routing import Route
from .store.store import EditStore
from .store.text import folded, plain

_BRIEF = 12  # tokens


@dataclass(frozen=True)
class Found:
    """The edit that a prompt gets."""

    edits: Edits | None
    """One edit; None where the prompt is left to the unedited model."""
    route: Route | None
    """How it was found; None where it was named."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What the edit carries."""
        return self.edits.facts[0] if self.edits else ()

    @property
    def learned(self) -> bool | None:
        """Whether the edit gives its answer to its own prompt; None where there is no edit, or nobody looked."""
        if self.edits is None:
            return None
        place = 0 if self.route is None or self.route.fact is None else self.facts.index(self.route.fact)
        return self.edits.outcomes[0].learned(place)


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
        device: auto, cpu, cuda, cuda:1, mps, split (over all GPUs).
        encoder: what prompts are embedded with, in place of what the folder names (:class:`EditStore`).
        quantize: 8bit or 4bit, of a model whose folder holds no edits yet; else as it was when it was edited.
        grows: edits can be added and undone (:meth:`keep`, :meth:`undo`). The folder may hold none yet, and then
            ``model`` has to be named. To be called with the folder locked.

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
        quantize: str | None = None,
        grows: bool = False,
    ) -> None:
        self.folder = folder
        self._store: EditStore | None = None
        self._edits: Edits | None = None
        if grows and model is not None and not (folder / MANIFEST).exists():
            loaded, self.name = load_model(model, device=device, quantize=quantize), model
            self._store = EditStore(loaded.model, loaded.tokenizer, encoder=encoder or DEFAULT)
        else:
            manifest = read_manifest(folder)
            loaded, self.name = loaded_for(folder, model, device), model or manifest.model
            if grows or (case is None and (len(manifest.facts) > 1 or manifest.routing is not None)):
                self._store = EditStore.load(folder, loaded.model, loaded.tokenizer, encoder=encoder)
            else:
                edits = load(folder, loaded.model, loaded.tokenizer)
                self._edits = edits[chosen(edits, case)]
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.lock = ModelLock(self.model)

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

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.model.config.max_position_embeddings - self.positions

    @property
    def store(self) -> EditStore:
        """The edits, where each prompt gets the one that it is about. Raises ValueError where there is one for all."""
        if self._store is None:
            raise ValueError("there is one edit for all prompts, and no store")
        return self._store

    def found(self, prompts: Sequence[str]) -> list[Found]:
        """The edit of each prompt. To be called by whoever holds the lock: the model itself may read the prompts."""
        if self._store is None:
            return [Found(self._edits, None) for _ in prompts]
        routes = self._store.route(prompts)
        return [Found(self._store.taken([r.edit]) if r.edit >= 0 else None, r) for r in routes]

    def edit(self, case: str) -> Edits:
        """The edit of one fact, by its case id. Raises EditsError, which says what there is."""
        if self._store is None:
            assert self._edits is not None
            return self._edits[case]
        return self._store.taken([edit_of(self._store.facts, case)])

    def keep(self, edits: Edits) -> list[str]:
        """Add edits to the folder, in place of those of the same facts (the same case id, or the same prompt).

        Returns:
            The case ids of those that were replaced.

        Raises:
            EditsError: they are of another kind than the folder's, or one that is to be replaced carries others too.
        """
        with self.lock.held():
            cases = {*edits.case_ids}
            prompts = {_asked(fact) for facts in edits.facts for fact in facts}
            old = [
                facts for facts in self.store.facts if any(f.case_id in cases or _asked(f) in prompts for f in facts)
            ]
            for facts in old:
                alone(facts, facts[0].case_id)
            self.store.check(edits, beside=[facts[0].case_id for facts in old])
            for facts in old:
                self.store.remove(facts[0].case_id)
            self.store.add(edits)
            self.store.save(self.folder)
        return [facts[0].case_id for facts in old]

    def undo(self, case: str) -> None:
        """Take the edit of a fact out of the folder. Raises EditsError: it carries others too, or there is none."""
        with self.lock.held():
            self.store.remove(case)
            if len(self.store):
                self.store.save(self.folder)
            else:
                erase(self.folder)

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
        ids = [self.chat([{"role": "user", "content": prompt}]) if chat else self.ids(prompt) for prompt in prompts]
        with self.lock.held():
            found = self.found(prompts)
            without = self._texts(ids, tokens, lambda some: nullcontext())
            edited = self._texts(ids, tokens, lambda some: attached([found[r].edits for r in some]))
        return [
            Answer(prompt, before, after, one.facts, one.route, one.learned)
            for prompt, before, after, one in zip(prompts, without, edited, found, strict=True)
        ]

    def own(self, prompts: Sequence[str], progress: Callable[[float], None] | None = None) -> list[str]:
        """What the unedited model says briefly after each prompt. To be called by whoever holds the lock."""
        ids = [self.ids(prompt) for prompt in prompts]
        texts = continuations(self.model, ids, tokens=_BRIEF, context=self.context, progress=progress)
        return [natural(text) for text in self.tokenizer.batch_decode(texts, skip_special_tokens=True)]

    def ids(self, prompt: str) -> tuple[int, ...]:
        """A prompt's tokens, as it is. Raises ValueError: none, or more than the context holds."""
        return self._encoder.prompt(prompt).ids

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """The tokens of a chat (role and content of each turn), by the model's template, up to where it is to answer.

        Raises ValueError where there is no template, where it does not know such a chat, or where the context does not
        hold it.
        """
        if not self.has_chat_template:
            raise ValueError("this model has no chat template; ask without one (--raw)")
        return self._encoder.prompt(self._encoder.chat(messages)).ids

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer, context_of(self.model), self.positions)

    def _texts(self, ids: Sequence[Sequence[int]], tokens: int, attach: Attach) -> list[str]:
        end = self.tokenizer.eos_token_id
        texts = continuations(
            self.model, ids, tokens=tokens, context=self.context, attach=attach, stop=lambda _, token: token == end
        )
        decoded = self.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [text.strip().partition("\n")[0] for text in decoded]


@contextmanager
def attached(rows: Sequence[Edits | None], beside: Edits | None = None) -> Iterator[None]:
    """While open, row r of a batch is computed with the one edit ``rows[r]``, or with none; all of one kind.

    ``beside``: an edit of that kind which stays attached where no row has one any more, since it has put something
    before the texts.
    """
    needed = rows if any(edits is not None for edits in rows) else [beside]
    distinct = list({id(edits): edits for edits in needed if edits is not None}.values())
    if not distinct:
        yield
        return
    places = {id(edits): place for place, edits in enumerate(distinct)}
    with Edits.concatenated(distinct).on([places.get(id(edits), -1) for edits in rows]):
        yield


def _asked(fact: Fact) -> str:
    """What a fact asks, whatever case and question marks."""
    return folded(plain(fact.prompt))


def loaded_for(folder: Path, model: str | None, device: str) -> LoadedModel:
    """The model that a folder's edits are of, in the dtype that they were trained in, quantized as it was then."""
    manifest = read_manifest(folder)
    return load_model(model or manifest.model, device=device, dtype=manifest.dtype, quantize=manifest.quantize)


def chosen(edits: Edits, case: str | None) -> int:
    """The edit that is meant: the named one, or the only one. Raises ValueError."""
    if case is not None:
        return edit_of(edits.facts, case)
    if len(edits) > 1:
        raise ValueError(f"there are {len(edits)} edits; name one of them with --case: {listed(edits.case_ids)}")
    return 0
