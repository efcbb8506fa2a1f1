"""The verbs of all editing methods, and the edits that they make.

A method is a :class:`~..engine.patches.patch.Patch` (what it adds to the frozen model, with an edit axis on every
tensor) and an :class:`Editor` (how fresh patches are made). Encoding, training, stopping and saving are the same for
all.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from transformers import PreTrainedModel

from ..data.facts import Fact
from ..data.messages import listed
from ..engine.method import Method
from ..engine.model.hooks import attached_to
from ..engine.model.passes import rows_counted
from ..engine.outcome import Outcome
from ..engine.patches.patch import Patch, WeightPatch
from ..engine.patches.rows import Rows
from ..engine.progress import Phase, Progress
from ..engine.storage.manifest import (
    MANIFEST,
    EditsError,
    Manifest,
    edit_of,
    patch_from,
    patch_of,
    read_manifest,
    write,
)
from ..engine.storage.packed import Stored, packed
from ..engine.training.batches import Learned, in_batches
from ..engine.training.lessons import Lesson
from ..engine.training.loop import train
from ..engine.training.together import together

NO_FACTS = "an edit carries at least one fact; the list is empty"


class Editor(Method, ABC):
    """A knowledge-editing method with its verbs: independent edits, one edit for many facts, one after another."""

    @final
    def edit_each(
        self,
        facts: Sequence[Fact],
        *,
        edits_at_once: int | None = None,
        checkpoint: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Edits:
        """Independent edits, one for each fact, trained side by side; the result is in the order of ``facts``.

        Args:
            facts: what is to be edited; at least one.
            edits_at_once: edits trained side by side; as many as memory allows if not given.
            checkpoint: a folder that gets every finished batch; what lies there of an interrupted call with the same
                settings is not trained again. The folder is the caller's to delete.
            progress: told the share of all facts.

        Raises:
            ValueError: there is no fact.
            RuntimeError: something is attached to the model.
        """
        self._may_begin(facts)
        parts = [] if checkpoint is None else _finished(self, facts, Path(checkpoint))
        known = {i for part in parts for i in part.facts}
        left = [i for i in range(len(facts)) if i not in known]
        done = len(known)

        def told(phase: Phase, share: float, edits: int) -> None:
            if progress:
                progress(phase, (done + share * edits) / len(facts), len(facts))

        for batch in in_batches(self, [facts[i] for i in left], edits_at_once, told):
            part = Learned([left[i] for i in batch.facts], batch.patch, batch.outcomes)
            if checkpoint is not None:
                _edits(self, facts, part).save(Path(checkpoint) / str(len(parts)))
            parts.append(part)
            done += len(part.facts)
            told(Phase.FINISHED, 0.0, 0)
        at = {i: place for place, i in enumerate(i for part in parts for i in part.facts)}
        every = Edits.concatenated([_edits(self, facts, part) for part in parts])
        return every.taken([at[i] for i in range(len(facts))])

    @final
    def edit_batches(
        self, facts: Sequence[Fact], *, edits_at_once: int | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """As :meth:`edit_each`, handed out as they are finished, facts of like length together.

        ``edits_at_once`` None: as many as memory allows. A batch that does not fit is halved and tried again.
        """
        if facts:
            self._may_begin(facts)
        for batch in in_batches(self, facts, edits_at_once, progress):
            yield _edits(self, facts, batch)

    @final
    def edit(self, facts: Sequence[Fact], *, after: Edits | None = None, progress: Progress | None = None) -> Edits:
        """One edit that carries all facts.

        Args:
            facts: what is to be edited; at least one.
            after: an edit to go on from, whose facts the new one carries too.
            progress: told the share of all facts.

        A fact that cannot be learned (``Outcome.lost``) leaves the others.

        Raises:
            ValueError: there is no fact.
            RuntimeError: something is attached to the model.
        """
        self._may_begin(facts)
        earlier, past = (after.facts[0], after.outcomes[0]) if after else ((), Outcome(0, None))
        seed = int(after.patch.seeds[0]) if after else self.seed_for(facts)
        patch, outcome = self.carry(facts, seed, after.patch if after else None, progress)
        lost = {**past.lost, **{len(earlier) + i: message for i, message in outcome.lost.items()}}
        carried = (*earlier, *facts)
        error = outcome.error or (None if len(lost) < len(carried) else next(iter(lost.values())))
        return Edits(self, patch, (carried,), (Outcome(past.steps + outcome.steps, outcome.loss, error, lost),))

    @final
    def edit_stream(
        self, facts: Iterable[Fact], *, after: Edits | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """Sequential editing: one fact after another on the same patch; yields the state after each.

        ``after``: a state to go on from. A fact that cannot be learned (``Outcome.lost``) leaves the patch as it was.
        """
        for fact in facts:
            after = self.edit([fact], after=after, progress=progress)
            yield after

    def _may_begin(self, facts: Sequence[Fact]) -> None:
        if not facts:
            raise ValueError(NO_FACTS)
        if attached_to(self.model):
            raise RuntimeError("edits are attached to the model; edit outside of `with edits.on(...)`")
        _ = self.model_identity  # of the model as it is now, whatever is done to it before the edits are saved


class TrainedEditor(Editor, ABC):
    """A method whose patches are trained by gradients in the one loop."""

    @final
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        return train(self, self.fresh(seeds), lessons, progress)

    @final
    def carry(
        self, facts: Sequence[Fact], seed: int, before: Patch | None, progress: Progress | None = None
    ) -> tuple[Patch, Outcome]:
        return together(self, facts, seed, before, progress)


@dataclass(frozen=True, repr=False)
class Edits:
    """Finished edits: a patch with the facts that each of its edits carries.

    ``facts[e]`` are the facts of edit e: one each after :meth:`Editor.edit_each`, all in one after :meth:`Editor.edit`.
    An edit is named by its index, or by the case id of a fact that it carries.
    """

    editor: Editor
    patch: Patch
    facts: tuple[tuple[Fact, ...], ...]
    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.facts)

    def __repr__(self) -> str:
        names = [fact.case_id for facts in self.facts for fact in facts]
        failed = sum(outcome.error is not None for outcome in self.outcomes)
        bad = f", {failed} failed" if failed else ""
        return f"<{len(self)} edits by {self.editor.name()} of {listed(names, 3)}{bad}>"

    @property
    def case_ids(self) -> list[str]:
        """Of all facts, in order."""
        return [fact.case_id for facts in self.facts for fact in facts]

    def index(self, edit: int | str) -> int:
        """The index of an edit that is named by its index or by a case id. Raises EditsError, IndexError."""
        return edit_of(self.facts, edit) if isinstance(edit, str) else range(len(self))[edit]

    def __getitem__(self, edit: int | str) -> Edits:
        return self.taken([self.index(edit)])

    @contextmanager
    def on(self, rows: int | str | Sequence[int | str]) -> Iterator[None]:
        """The model as edits have it, while open.

        Args:
            rows: one edit, by index or case id, for all rows of batches of any size (beam search too); or an edit for
                each row of a batch. -1 is the unedited model.

        Raises:
            RuntimeError: other edits are attached already.
            ValueError: a batch inside has another number of rows than are named.

        Example:
            >>> with edits.on("france"):  # doctest: +SKIP
            ...     model.generate(**inputs, num_beams=4)
        """
        model = self.editor.model
        if attached_to(model):
            raise RuntimeError("edits are attached to the model already; name all rows in one `with edits.on([...])`")
        one = isinstance(rows, (int, str))
        named = [rows] if isinstance(rows, (int, str)) else rows
        indices = [row if row == -1 else self.index(row) for row in named]
        with self.patch.attached(model, Rows(indices, len(self), model.device)):
            if one:
                yield
            else:
                with rows_counted(model, len(named)):
                    yield

    def num_trainable_parameters(self) -> int:
        """Numbers that one edit consists of."""
        return sum(t.numel() for t in self.patch.trained(0))

    def nonzero_share(self, edit: int | str) -> float:
        """Share of an edit's numbers that are not zero."""
        return self.patch.nonzero_share(self.index(edit))

    def merged(self, edit: int | str) -> PreTrainedModel:
        """A copy of the model with an edit in its weights. Refused while edits are attached to the model."""
        i = self.index(edit)
        if not isinstance(self.patch, WeightPatch):
            raise TypeError(f"{self.editor.name()} is no change of weights and cannot be merged; use `edits.on(...)`")
        if error := self.outcomes[i].error:
            raise ValueError(f"edit {edit!r} failed and changes nothing: {error}")
        if attached_to(self.editor.model):  # the copy would have the hooks too, and no one to take them off
            raise RuntimeError("edits are attached to the model; merge outside of `with edits.on(...)`")
        model = copy.deepcopy(self.editor.model)
        self.patch.merge(model, i)
        return model

    def save(self, folder: str | Path) -> None:
        """Write ``edits.json`` (facts, hyper-parameters, the model's identity) and the weights beside it.

        A folder that holds edits already holds either those or these at every moment.
        """
        write(Path(folder), manifest_of(self), {name: packed(t) for name, t in self.patch.lasting().items()})

    @staticmethod
    def concatenated(parts: Sequence[Edits]) -> Edits:
        """The edits of all parts, in order."""
        return Edits(
            parts[0].editor,
            Patch.concatenated([part.patch for part in parts]),
            tuple(facts for part in parts for facts in part.facts),
            tuple(outcome for part in parts for outcome in part.outcomes),
        )

    def taken(self, edits: Sequence[int]) -> Edits:
        """These edits, in this order."""
        return Edits(
            self.editor,
            self.patch.take(edits),
            tuple(self.facts[e] for e in edits),
            tuple(self.outcomes[e] for e in edits),
        )

    def about(self, facts: Sequence[int]) -> Edits:
        """The one edit, said to carry only these of its facts; for scoring some of many."""
        (carried,), (outcome,) = self.facts, self.outcomes
        lost = {i: outcome.lost[fact] for i, fact in enumerate(facts) if fact in outcome.lost}
        return replace(self, facts=(tuple(carried[i] for i in facts),), outcomes=(replace(outcome, lost=lost),))


def manifest_of(edits: Edits) -> Manifest:
    """What is written about edits beside their tensors."""
    editor = edits.editor
    return Manifest(
        editor=editor.name(),
        hparams=editor.hparams.model_dump(mode="json"),
        seed=editor.seed,
        base_model=editor.model_identity,
        dtype=str(editor.model.dtype).removeprefix("torch."),
        facts=edits.facts,
        outcomes=edits.outcomes,
    )


def read_edits(folder: Path, manifest: Manifest, editor: Editor, stored: Mapping[str, Stored] | None = None) -> Edits:
    """The edits in a folder, by the editor that made them. Raises EditsError.

    ``stored``: the folder's tensors, where they were read already.
    """
    frame = editor.untrained([0])
    patch = patch_of(folder, manifest, frame) if stored is None else patch_from(folder, manifest, stored, frame)
    return Edits(editor, patch, manifest.facts, manifest.outcomes)


def _edits(editor: Editor, facts: Sequence[Fact], learned: Learned) -> Edits:
    return Edits(editor, learned.patch, tuple((facts[i],) for i in learned.facts), tuple(learned.outcomes))


def _finished(editor: Editor, facts: Sequence[Fact], folder: Path) -> list[Learned]:
    """The batches that an interrupted :meth:`Editor.edit_each` has left."""
    index = {fact.case_id: i for i, fact in enumerate(facts)}
    ours = (editor.name(), editor.hparams.model_dump(mode="json"), editor.seed, editor.model_identity)
    parts = []
    for path in folder.glob(f"*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        carried = [fact for own in manifest.facts for fact in own]
        same = ours == (manifest.editor, manifest.hparams, manifest.seed, manifest.base_model)
        if not same or any(fact.case_id not in index or fact != facts[index[fact.case_id]] for fact in carried):
            raise EditsError(f"{folder} was begun with other facts or settings; go on with those, or delete it")
        edits = read_edits(path.parent, manifest, editor)
        parts.append(Learned([index[fact.case_id] for fact in carried], edits.patch, [*edits.outcomes]))
    return parts
