"""Many edits together, each used only for prompts that it is about (:mod:`.routing` says how that is found)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ..editors import editor_of, load
from ..editors.base import Edits, frame_of, manifest_of
from ..engine.model.hooks import attachable, check_free
from ..engine.model.passes import rows_counted
from ..engine.outcome import Outcome
from ..engine.patches.patch import Patch
from ..engine.patches.rows import Rows
from ..engine.storage.manifest import (
    STORE,
    EditsError,
    alone,
    check_finite,
    damaged,
    edit_of,
    filled,
    read_both,
    write,
)
from ..engine.storage.packed import Stored, dense, joined, packed, taken
from .calibration import Calibration, Routing, routing_of
from .encoder import BASE, DEFAULT, SentenceEncoder, encoder_of
from .routing import Route, Router, background

logger = logging.getLogger(__name__)

_ENOUGH = 20  # facts with rephrasings and probes from which on a store calibrates itself
_MOST = 300  # facts that it calibrates itself on


class EditStore:
    """Independent edits of one editor, and the way from a prompt to the edit that it is about.

    Args:
        model: what the edits are of; it stays as it is.
        tokenizer: the model's.
        encoder: what prompts are embedded with: a short name, hub id or folder of a sentence encoder, "base" (or
            "none") for the model's own states, or an encoder.
        calibration: the numbers that routing judges by; those of the samples if not given.
        calibrates: fit them to the store's own facts as they come: when 20 have rephrasings and probes, and whenever
            there are twice as many as the last time, on 300 of them at most.

    Edits stay on the CPU, packed; those that a batch needs are unpacked for it.

    Example:
        >>> store = EditStore(model, tokenizer)  # doctest: +SKIP
        >>> store.add(edits)  # doctest: +SKIP
        >>> with store.on(["What is France's capital?"]) as routes:  # doctest: +SKIP
        ...     model.generate(...)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder: str | SentenceEncoder = DEFAULT,
        calibration: Calibration | None = None,
        calibrates: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        if isinstance(encoder, str):
            encoder = encoder_of(encoder, model, tokenizer, background())
        self._router = Router(encoder, calibration)
        self._calibrates, self._fitted_to = calibrates and calibration is None, 0
        self._frame: Edits | None = None  # one edit, whose patch has the form of all; None while empty
        self._facts: list[tuple[Fact, ...]] = []
        self._outcomes: list[Outcome] = []
        self._tensors: dict[str, Stored] = {}

    def __len__(self) -> int:
        """Number of edits."""
        return len(self._facts)

    @property
    def router(self) -> Router:
        """The way from prompts to the edits, by their index."""
        return self._router

    @property
    def facts(self) -> list[tuple[Fact, ...]]:
        """The facts of each edit."""
        return list(self._facts)

    @property
    def outcomes(self) -> list[Outcome]:
        """How the learning of each edit ended."""
        return list(self._outcomes)

    @property
    def case_ids(self) -> list[str]:
        """Of all facts, in order."""
        return [fact.case_id for facts in self._facts for fact in facts]

    @property
    def positions(self) -> int:
        """Positions of the model's context that the edits' method takes."""
        return self._frame.editor.positions if self._frame else 0

    @property
    def nbytes(self) -> int:
        """Memory that the edits take, without the index."""
        return sum(t.nbytes for t in self._tensors.values())

    def add(self, edits: Edits) -> None:
        """Keep these edits too; a failed one is left out. The facts that are here already are not embedded again.

        Args:
            edits: of the kind and model of those that are here.

        Raises:
            EditsError: there is nothing to add, a case is here already, or these are edits of another kind or model.

        Example:
            >>> store.add(editor.edit_each(facts))  # doctest: +SKIP
        """
        good = [e for e, outcome in enumerate(edits.outcomes) if not outcome.error]
        edits = edits.taken(good)
        facts = [fact for facts in edits.facts for fact in facts]
        self.check(edits)
        owner = [len(self) + e for e, facts in enumerate(edits.facts) for _ in facts]
        self._router.add(facts, owner)
        new = {name: packed(t) for name, t in edits.patch.lasting().items()}
        self._tensors = {n: joined([self._tensors[n], t]) for n, t in new.items()} if self._facts else new
        self._frame = self._frame or edits.taken([0])
        self._facts += edits.facts
        self._outcomes += edits.outcomes
        self._calibrate_oneself()

    def check(self, edits: Edits, *, beside: Sequence[str] = ()) -> None:
        """Whether these edits can be added, before anything is changed.

        Args:
            edits: what is to be added.
            beside: cases that will be gone by then.

        Raises:
            EditsError: as :meth:`add` would raise it.

        Example:
            >>> store.check(edits, beside=["france"])  # doctest: +SKIP
        """
        good = [facts for facts, outcome in zip(edits.facts, edits.outcomes, strict=True) if not outcome.error]
        if not any(good):
            raise EditsError("there is no edit to add that has a fact and did not fail")
        seen, doubled = {*self.case_ids} - {*beside}, set()
        for case_id in (fact.case_id for facts in good for fact in facts):
            doubled |= {case_id} & seen
            seen.add(case_id)
        if doubled:
            raise EditsError(f"the store holds {', '.join(sorted(doubled)[:10])} already; remove it first")
        if edits.editor.model is not self.model:
            raise EditsError("these edits are bound to another model object than the store's; load them with this one")
        if self._frame:
            ours, theirs = ((e.editor.name(), e.editor.hparams) for e in (self._frame, edits))
            if ours != theirs:
                raise EditsError(
                    f"a store is for edits of one kind: it holds those by {ours[0]} ({ours[1]!r}), these are by "
                    f"{theirs[0]} ({theirs[1]!r})"
                )

    def remove(self, case_id: str) -> None:
        """Forget the edit of a case.

        Args:
            case_id: of the one fact that the edit carries.

        Raises:
            EditsError: there is no such case, or its edit carries other facts too.

        Example:
            >>> store.remove("france")  # doctest: +SKIP
        """
        found = edit_of(self._facts, case_id)
        alone(self._facts[found], case_id)
        rest = [e for e in range(len(self)) if e != found]
        self._router.remove(found)
        self._facts, self._outcomes = [self._facts[e] for e in rest], [self._outcomes[e] for e in rest]
        self._tensors = {name: taken(t, rest) for name, t in self._tensors.items()}
        self._frame = self._frame if rest else None

    def calibrate(
        self, facts: Sequence[Fact] | None = None, *, strays: float = 0.05, wrong: float = 0.015
    ) -> Calibration:
        """Fit the routing to facts like those that are to be added (:meth:`Router.calibrate`).

        Args:
            facts: with rephrasings and locality probes; the store's own if not given.
            strays: share of the probes that may get an edit.
            wrong: share of the rephrasings that may get a wrong one.

        Returns:
            The numbers that routing judges by from now on.

        Raises:
            ValueError: none of the facts has a rephrasing.

        Example:
            >>> store.calibrate(facts).threshold  # doctest: +SKIP
            0.62
        """
        own = [fact for facts in self._facts for fact in facts if fact.rephrase_prompts]
        chosen = _spread(own, _MOST) if facts is None else facts
        self._router.calibrate(chosen, strays=strays, wrong=wrong)
        self._fitted_to, self._calibrates = len(own) if facts is None else 0, facts is None
        return self._router.calibration

    def _calibrate_oneself(self) -> None:
        if not self._calibrates:
            return
        usable = [f for facts in self._facts for f in facts if f.rephrase_prompts and f.locality]
        if len(usable) >= max(_ENOUGH, 2 * self._fitted_to):
            self._router.calibrate(_spread(usable, _MOST))
            self._fitted_to = len(usable)

    def route(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[Route]:
        """Where each prompt goes; nothing is attached.

        Args:
            prompts: texts, or their token ids.

        Returns:
            For each the edit's index or -1, the fact, and the score.

        Example:
            >>> store.route(["What is France's capital?"])[0].fact.case_id  # doctest: +SKIP
            'france'
        """
        return self._router.route([p if isinstance(p, str) else str(self.tokenizer.decode([*p])) for p in prompts])

    @contextmanager
    def on(
        self, prompts: Sequence[str] | Sequence[Sequence[int]] | Tensor, mask: Tensor | None = None
    ) -> Iterator[list[Route]]:
        """While open, row r of a batch is computed with the edit that ``prompts[r]`` is about.

        Args:
            prompts: texts, lists of token ids, or the batch's ids (R, T).
            mask: the batch's attention mask (R, T), where ``prompts`` is a tensor.

        Yields:
            The routes.

        Raises:
            RuntimeError: edits are attached to the model already.

        Example:
            >>> with store.on(prompts) as routes:  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        if isinstance(prompts, Tensor):
            mask = torch.ones_like(prompts) if mask is None else mask
            prompts = [ids[m.bool()].tolist() for ids, m in zip(prompts, mask, strict=True)]
        check_free(self.model, "use the store")  # before it routes, which may run the model
        routes = self.route(prompts)
        with self.with_edits([route.edit for route in routes]):
            yield routes

    @contextmanager
    def with_edits(self, rows: Sequence[int]) -> Iterator[None]:
        """While open, row r of a batch is computed with edit ``rows[r]``.

        Args:
            rows: an edit's index for each row, -1 for none.

        Yields:
            Nothing; the model itself is what is used.

        Raises:
            RuntimeError: edits are attached to the model already.

        Example:
            >>> with store.with_edits([0, -1]):  # doctest: +SKIP
            ...     model(**two_rows)
        """
        needed = sorted({row for row in rows if row >= 0})
        with (
            attachable(self.model, "use the store"),
            rows_counted(self.model, len(rows)),
            self._attached(needed, rows),
        ):
            yield

    def _attached(self, needed: Sequence[int], rows: Sequence[int]) -> AbstractContextManager[None]:
        if not needed:
            return nullcontext()
        at = {edit: i for i, edit in enumerate(needed)}
        here = Rows([at.get(row, -1) for row in rows], len(needed), self.model.device)
        return self._patch(needed).attached(self.model, here)

    def _patch(self, edits: Sequence[int]) -> Patch:
        assert self._frame is not None
        own = self._frame.patch.tensors()
        tensors = {name: dense(taken(t, edits)).to(self.model.device) for name, t in self._tensors.items()}
        rest = {name: t.new_zeros(len(edits), *t.shape[1:]) for name, t in own.items() if name not in tensors}
        return self._frame.patch.rebuilt(tensors | rest).trimmed()

    def edits(self) -> Edits:
        """All edits, unpacked.

        Returns:
            Edits as an editor gives them.

        Raises:
            EditsError: the store is empty.

        Example:
            >>> store.edits().save("my-edits")  # doctest: +SKIP
        """
        return self.taken(range(len(self)))

    def taken(self, edits: Sequence[int]) -> Edits:
        """Some edits, unpacked, in this order; what becomes of the store later does not touch them.

        Args:
            edits: their indices.

        Returns:
            Edits as an editor gives them.

        Raises:
            EditsError: the store is empty.

        Example:
            >>> store.taken([0]).case_ids  # doctest: +SKIP
            ['france']
        """
        if self._frame is None:
            raise EditsError("the store is empty")
        facts, outcomes = tuple(self._facts[e] for e in edits), tuple(self._outcomes[e] for e in edits)
        return Edits(self._frame.editor, self._patch(edits), facts, outcomes)

    def save(self, folder: str | Path) -> None:
        """Write the edits as :meth:`Edits.save` does (and ``Edits.load`` reads them), with the index beside them.

        A folder that holds edits already holds either those or these at every moment.

        Args:
            folder: made if there is none.

        Raises:
            EditsError: the store is empty.

        Example:
            >>> store.save("my-edits")  # doctest: +SKIP
        """
        if self._frame is None:
            raise EditsError("the store is empty; there is nothing to save")
        router = self._router
        routing = Routing(encoder=router.encoder.name, calibration=router.calibration, fitted_to=self._fitted_to)
        manifest = manifest_of(self._frame).model_copy(
            update={
                "facts": tuple(self.facts),
                "outcomes": tuple(self._outcomes),
                "routing": routing.model_dump(mode="json"),
            }
        )
        write(Path(folder), manifest, self._tensors | {STORE + name: t for name, t in router.tensors().items()})

    @staticmethod
    def load(
        folder: str | Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder: str | SentenceEncoder | None = None,
    ) -> EditStore:
        """What :meth:`save` wrote; what :meth:`Edits.save` wrote becomes a new store.

        Args:
            folder: where it lies.
            model: what the edits were trained on.
            tokenizer: the model's.
            encoder: another encoder than the one that the folder names, as in the constructor; the facts are embedded
                again, as those of a folder of earlier releases are.

        Returns:
            The store.

        Raises:
            EditsError: the folder holds no edits, damaged ones, or those of another model.
            ModelError: the encoder cannot be loaded.

        Example:
            >>> store = EditStore.load("my-edits", model, tokenizer)  # doctest: +SKIP
        """
        folder = Path(folder)
        manifest, tensors = read_both(folder)
        if manifest.routing is None:
            store = EditStore(model, tokenizer, encoder=encoder or DEFAULT)
            store.add(load(folder, model, tokenizer))
            return store
        index = {name.removeprefix(STORE): dense(t) for name, t in tensors.items() if name.startswith(STORE)}
        tensors = {name: t for name, t in tensors.items() if not name.startswith(STORE)}
        facts = manifest.facts
        editor = editor_of(folder, manifest, model, tokenizer)
        first = filled(folder, frame_of(folder, editor), {name: taken(t, [0]) for name, t in tensors.items()}, 1)
        check_finite(folder, manifest, tensors)
        routing = routing_of(folder, manifest)
        same = routing is not None and encoder in (None, routing.encoder)
        named = encoder or (routing.encoder if routing else DEFAULT)
        store = EditStore(
            model, tokenizer, encoder=named, calibration=routing.calibration if routing and same else None
        )
        store._frame = Edits(editor, first, facts[:1], manifest.outcomes[:1])
        store._facts, store._outcomes, store._tensors = [*facts], [*manifest.outcomes], tensors
        every = [fact for carried in facts for fact in carried]
        owner = [e for e, carried in enumerate(facts) for _ in carried]
        if routing and same:
            try:
                store._router.restore(every, owner, index)
            except ValueError as error:
                raise damaged(folder, [f"its index: {error}"]) from None
            store._fitted_to, store._calibrates = routing.fitted_to, True
        else:
            logger.warning("%s: %s embedded anew with %s", folder, _count(every), store._router.encoder.name)
            store._router.add(every, owner)
            store._calibrate_oneself()
        return store


def _spread(facts: Sequence[Fact], most: int) -> list[Fact]:
    """At most so many of the facts, evenly."""
    return [facts[i * len(facts) // most] for i in range(most)] if len(facts) > most else [*facts]


def _count(facts: Sequence[Fact]) -> str:
    return f"{len(facts)} fact{'s' * (len(facts) != 1)}"


__all__ = ["BASE", "DEFAULT", "EditStore"]
