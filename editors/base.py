"""The verbs of all editing methods, and the edits that they make.

A method is a :class:`~..engine.patches.patch.Patch` (what it adds to the frozen model, with an edit axis on every
tensor) and an :class:`Editor` (how fresh patches are made). Encoding, training, stopping and saving are the same for
all.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import final

import torch
from transformers import PreTrainedModel

from ..data.facts import Fact
from ..data.messages import listed
from ..engine.method import Method, Trained
from ..engine.model.hooks import attachable, check_free
from ..engine.model.passes import rows_counted
from ..engine.model.quantized import quantization_of
from ..engine.model.sharing import owned
from ..engine.outcome import Outcome
from ..engine.patches.patch import Patch, WeightPatch
from ..engine.patches.rows import Rows
from ..engine.progress import Phase, Progress, Shown, shown
from ..engine.storage.manifest import (
    MANIFEST,
    EditsError,
    Manifest,
    damaged,
    edit_of,
    patch_from,
    patch_of,
    read_manifest,
    write,
)
from ..engine.storage.packed import Stored, packed
from ..engine.training.batches import Learned, in_batches
from ..engine.training.checking import checked
from ..engine.training.lessons import Lesson
from ..engine.training.loop import train
from ..engine.training.memory import bytes_in_training
from ..engine.training.solving import Solver, Values, independent, joint
from ..engine.training.together import together
from ..engine.training.turns import LOST, Turner, turned, turned_each

RETRIED = "what came after the first {} facts cost {} of {} learned ones; with twice the replay {}; the better stays"
_BEARABLE = 0.05  # share of the facts learned before that a chunk may cost

NO_FACTS = "an edit carries at least one fact; the list is empty"


class Editor(Method, ABC):
    """A knowledge-editing method with its verbs: independent edits, one edit for many facts, one after another."""

    @final
    @torch.inference_mode(False)  # a caller that wants no gradients of its own does not take the edits'
    def edit_each(
        self,
        facts: Sequence[Fact],
        *,
        edits_at_once: int | None = None,
        checkpoint: str | Path | None = None,
        progress: Shown = None,
    ) -> Edits:
        """Independent edits, one for each fact, trained side by side; the result is in the order of ``facts``.

        Args:
            facts: what is to be edited; at least one.
            edits_at_once: edits trained side by side; as many as memory allows if not given.
            checkpoint: a folder that gets every finished batch; what lies there of an interrupted call with the same
                settings is not trained again. The folder is the caller's to delete.
            progress: told the share of all facts; a bar in a terminal or notebook if not given, False for none.

        Returns:
            An edit for each fact; ``outcomes`` says how each ended.

        Raises:
            ValueError: there is no fact.
            RuntimeError: something is attached to the model.

        Example:
            >>> edits = editor.edit_each(facts)  # doctest: +SKIP
            >>> with edits.on("france"):  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        self._may_begin(facts)
        parts = [] if checkpoint is None else _finished(self, facts, Path(checkpoint))
        known = {i for indices, _ in parts for i in indices}
        left = [i for i in range(len(facts)) if i not in known]
        done = len(known)

        with shown(progress) as tell:

            def told(phase: Phase, share: float, edits: int) -> None:
                tell(phase, (done + share * edits) / len(facts), len(facts))

            for batch in in_batches(self, [facts[i] for i in left], edits_at_once, told):
                indices = [left[i] for i in batch.facts]
                edits = _edits(self, facts, batch._replace(facts=indices))
                if checkpoint is not None:
                    edits.save(Path(checkpoint) / str(len(parts)))
                parts.append((indices, edits))
                done += len(indices)
                told(Phase.FINISHED, 0.0, 0)
        at = {i: n for n, i in enumerate(i for indices, _ in parts for i in indices)}
        return Edits.concatenated([edits for _, edits in parts]).taken([at[i] for i in range(len(facts))])

    @final
    @torch.inference_mode(False)
    def edit_batches(
        self, facts: Sequence[Fact], *, edits_at_once: int | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """As :meth:`edit_each`, handed out as they are finished, facts of like length together.

        Args:
            facts: what is to be edited.
            edits_at_once: edits trained side by side; None: as many as memory allows. A batch that does not fit is
                halved and tried again.
            progress: told the share of each batch.

        Yields:
            The edits of one batch after another.

        Raises:
            RuntimeError: something is attached to the model.

        Example:
            >>> for edits in editor.edit_batches(facts):  # doctest: +SKIP
            ...     store.add(edits)
        """
        if facts:
            self._may_begin(facts)
        for batch in in_batches(self, facts, edits_at_once, progress):
            yield _edits(self, facts, batch)

    @final
    @torch.inference_mode(False)
    def edit(self, facts: Sequence[Fact], *, after: Edits | None = None, progress: Shown = None) -> Edits:
        """One edit that carries all facts.

        Args:
            facts: what is to be edited; at least one.
            after: an edit to go on from, whose facts the new one carries too.
            progress: told the share of all facts; a bar in a terminal or notebook if not given, False for none.

        Returns:
            The one edit. A fact that cannot be learned (``Outcome.lost``) leaves the others.

        Raises:
            ValueError: there is no fact.
            RuntimeError: something is attached to the model.

        Example:
            >>> edits = editor.edit(facts)  # doctest: +SKIP
            >>> longer = editor.edit(more_facts, after=edits)  # doctest: +SKIP
        """
        self._may_begin(facts)
        earlier, past = (after.facts[0], after.outcomes[0]) if after else ((), Outcome(0, None))
        seed = int(after.patch.seeds[0]) if after else self.seed_for(facts)
        with shown(progress) as tell:
            good = [fact for i, fact in enumerate(earlier) if i not in past.lost]
            patch, outcome = self.carry(facts, seed, after.patch if after else None, good, tell)
        lost = {**past.lost, **{len(earlier) + i: message for i, message in outcome.lost.items()}}
        carried = (*earlier, *facts)
        error = outcome.error or (None if len(lost) < len(carried) else next(iter(lost.values())))
        notes = tuple(dict.fromkeys((*past.notes, *outcome.notes)))
        steps, loss = past.steps + outcome.steps, past.loss if outcome.loss is None else outcome.loss
        checks = tuple(checked(self, patch, [(0, fact) for fact in carried]))
        return Edits(self, patch, (carried,), (Outcome(steps, loss, error, lost, notes, checks),))

    @final
    def edit_stream(
        self, facts: Iterable[Fact], *, chunk: int = 1, after: Edits | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """Sequential editing: so many facts at a time, one chunk after another on the same patch.

        Args:
            facts: what is to be edited, in order.
            chunk: facts that are learned together.
            after: a state to go on from.
            progress: told the share of each chunk.

        Yields:
            The state after each chunk, which carries all facts so far. A fact that cannot be learned
            (``Outcome.lost``) leaves the patch as it was. A chunk that costs more than a twentieth of the earlier facts
            is learned again with twice the ``replay``, where there is any; what came of it is among the notes.

        Example:
            >>> for edits in editor.edit_stream(facts, chunk=10):  # doctest: +SKIP
            ...     print(len(edits.facts[0]), edits.unlearned)
        """
        left = iter(facts)
        while part := [*islice(left, chunk)]:
            after = self._next(part, after, progress or False)  # no bar for each single chunk
            yield after

    def _next(self, part: Sequence[Fact], after: Edits | None, progress: Shown) -> Edits:
        """The state after one more chunk."""
        new = self.edit(part, after=after, progress=progress)
        steadier = self._steadier()
        if after is None or steadier is None:
            return new
        known = [i for i in range(len(after.facts[0])) if after.outcomes[0].learned(i)]
        lost = len(known) - sum(bool(new.outcomes[0].learned(i)) for i in known)
        if lost <= _BEARABLE * len(known):
            return new
        again = steadier.edit(part, after=after, progress=progress)
        still = len(known) - sum(bool(again.outcomes[0].learned(i)) for i in known)
        better = min((lost, new), (still, again), key=lambda one: one[0])[1]
        note = RETRIED.format(len(after.facts[0]), lost, len(known), still)
        outcome = replace(better.outcomes[0], notes=(*better.outcomes[0].notes, note))
        return replace(better, editor=self, outcomes=(outcome,))

    def _steadier(self) -> Editor | None:
        """This editor, holding on to earlier facts more; None where it has no way to."""
        return None

    @abstractmethod
    def carry(
        self,
        facts: Sequence[Fact],
        seed: int,
        before: Patch | None = None,
        earlier: Sequence[Fact] = (),
        progress: Progress | None = None,
    ) -> tuple[Patch, Outcome]:
        """One edit that carries all ``facts``, going on from the patch ``before``, which carries ``earlier`` ones.

        A fact that cannot be learned is in ``Outcome.lost`` and leaves the others.
        """

    def _may_begin(self, facts: Sequence[Fact]) -> None:
        if not facts:
            raise ValueError(NO_FACTS)
        check_free(self.model, "edit")
        _ = self.model_identity, self.model_dtype  # as they are now, whatever becomes of the model before it is saved


class TrainedEditor(Editor, Trained, ABC):
    """A method whose patches are trained by gradients in the one loop."""

    def _steadier(self) -> Editor | None:
        if not self.hparams.replay:
            return None
        other = copy.copy(self)
        other.hparams = self.hparams.model_copy(update={"replay": 2 * self.hparams.replay})
        return other

    @final
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        return train(self, self.begun(seeds, lessons), lessons, progress)

    @final
    def carry(
        self,
        facts: Sequence[Fact],
        seed: int,
        before: Patch | None = None,
        earlier: Sequence[Fact] = (),
        progress: Progress | None = None,
    ) -> tuple[Patch, Outcome]:
        return together(self, facts, seed, before, earlier, progress)

    @final
    def bytes_per_edit(self, lesson: Lesson) -> int:
        return bytes_in_training(self, lesson)


class SolvedEditor(Editor, Solver, ABC):
    """A method that finds its facts' values by gradients, and the weights that give them in closed form.

    It says how one weight changes (:meth:`~..engine.training.solving.Solver.change`); facts have to name their subject.
    """

    merges = True

    @final
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        return independent(self, lessons, seeds, progress)

    @final
    def carry(
        self,
        facts: Sequence[Fact],
        seed: int,
        before: Patch | None = None,
        earlier: Sequence[Fact] = (),
        progress: Progress | None = None,
    ) -> tuple[Patch, Outcome]:
        return joint(self, facts, seed, before, progress)  # what it needs of earlier facts is in the patch

    @final
    def bytes_per_edit(self, lesson: Lesson) -> int:
        return Values(self).bytes_per_edit(lesson)  # what is solved for is small beside what training keeps


class TurnedEditor(Editor, Turner, ABC):
    """A method whose change of weights follows from one backward pass over facts, in closed form.

    It says what such a turn asks of one site (:meth:`~..engine.training.turns.Turner.turn`).
    """

    merges = True

    @final
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        return turned_each(self, lessons, seeds)

    @final
    def carry(
        self,
        facts: Sequence[Fact],
        seed: int,
        before: Patch | None = None,
        earlier: Sequence[Fact] = (),
        progress: Progress | None = None,
    ) -> tuple[Patch, Outcome]:
        return turned(self, facts, seed, before, progress)  # what it needs of earlier facts is in the patch

    @final
    def bytes_per_edit(self, lesson: Lesson) -> int:
        # A pass is of a fixed size; an edit adds its inputs, gradients and factors, some of them in float64.
        predictions = sum(len(row.wanted) for row in lesson.answers)
        return 4 * 8 * predictions * sum(site.inputs + site.outputs for site in self.sites)


class UntrainedEditor(Editor, ABC):
    """A method whose edit follows from the words of its facts alone."""

    @abstractmethod
    def stated(self, facts: Sequence[Fact], seed: int, before: Patch | None) -> tuple[Patch, dict[int, str]]:
        """One edit that carries all facts, going on from ``before``; and by index, why it does not carry others."""

    @final
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        facts = [part.fact for lesson in lessons for part in lesson.parts]
        patch, lost = self._each(facts, seeds)
        return patch, [Outcome(0, None, lost.get(e)) for e in range(len(lessons))]

    @final
    def carry(
        self,
        facts: Sequence[Fact],
        seed: int,
        before: Patch | None = None,
        earlier: Sequence[Fact] = (),
        progress: Progress | None = None,
    ) -> tuple[Patch, Outcome]:
        patch, lost = self.stated(facts, seed, before)
        fit = [i for i in range(len(facts)) if i not in lost]
        if fit:  # one that the model cannot compute would be the end of all
            _, sick = self._each([facts[i] for i in fit], [seed] * len(fit))
            lost |= {fit[k]: message for k, message in sick.items()}
            good = [i for i in fit if i not in lost]
            if sick:
                patch, _ = self.stated([facts[i] for i in good], seed, before)
        return patch, Outcome(0, None, lost=lost)

    @final
    def bytes_per_edit(self, lesson: Lesson) -> int:
        return 8 * (self.positions + lesson.longest)  # its tokens; what is computed of them is computed in chunks

    def _each(self, facts: Sequence[Fact], seeds: Sequence[int]) -> tuple[Patch, dict[int, str]]:
        """An edit for each fact; and by index, why there is none of others."""
        each = [self.stated([fact], seed, None) for fact, seed in zip(facts, seeds, strict=True)]
        patch = Patch.concatenated([patch for patch, _ in each])
        lost = {e: lost[0] for e, (_, lost) in enumerate(each) if lost}
        asked = [e for e in range(len(facts)) if e not in lost]
        checks = checked(self, patch, [(e, facts[e]) for e in asked])
        sick = {e: LOST.format("nan") for e, check in zip(asked, checks, strict=True) if check is None}
        return patch, lost | sick


@dataclass(frozen=True, repr=False)
class Edits:
    """Finished edits: a patch with the facts that each of its edits carries.

    ``facts[e]`` are the facts of edit e: one each after :meth:`Editor.edit_each`, all in one after :meth:`Editor.edit`.
    An edit is named by its index, or by the case id of a fact that it carries.

    Example:
        >>> edits = editor.edit_each(facts)  # doctest: +SKIP
        >>> edits["france"].outcomes[0].learned()  # doctest: +SKIP
        True
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

    @property
    def unlearned(self) -> list[str]:
        """The case ids of facts that were not learned: lost, failed, or answered otherwise when they were checked."""
        each = zip(self.facts, self.outcomes, strict=True)
        return [fact.case_id for facts, o in each for i, fact in enumerate(facts) if o.learned(i) is False]

    def index(self, edit: int | str) -> int:
        """The index of an edit.

        Args:
            edit: its index, from the end where negative, or the case id of a fact that it carries.

        Returns:
            0 to below the number of edits.

        Raises:
            EditsError: there is no such case.
            IndexError: there is no such index.

        Example:
            >>> edits.index("france")  # doctest: +SKIP
            0
        """
        if isinstance(edit, str):
            return edit_of(self.facts, edit)
        if not -len(self) <= edit < len(self):
            raise IndexError(f"there are edits 0 to {len(self) - 1}, not {edit}")
        return edit % len(self)

    def __getitem__(self, edit: int | str) -> Edits:
        return self.taken([self.index(edit)])

    @contextmanager
    def on(self, rows: int | str | Sequence[int | str]) -> Iterator[None]:
        """The model as edits have it, while open.

        Args:
            rows: one edit, by index or case id, for all rows of batches of any size (beam search too); or an edit for
                each row of a batch. -1 is the unedited model.

        Yields:
            Nothing; the model itself is what is used.

        Raises:
            RuntimeError: other edits are attached already.
            ValueError: a batch inside has another number of rows than are named.

        Example:
            >>> with edits.on("france"):  # doctest: +SKIP
            ...     model.generate(**inputs, num_beams=4)
        """
        model = self.editor.model
        one = isinstance(rows, (int, str))
        named = [rows] if isinstance(rows, (int, str)) else rows
        indices = [self.index(row) if isinstance(row, str) else row for row in named]  # Rows knows which there are
        counted = nullcontext() if one else rows_counted(model, len(named))  # before the patch sees a batch
        here = Rows(indices, len(self), model.device)
        with attachable(model, "attach others"), counted, self.patch.attached(model, here):
            yield

    def num_trainable_parameters(self) -> int:
        """Numbers that one edit consists of.

        Returns:
            Their count, the same for all edits.

        Example:
            >>> edits.num_trainable_parameters()  # doctest: +SKIP
            138240
        """
        return sum(t.numel() for t in self.patch.trained(0))

    def nonzero_share(self, edit: int | str) -> float:
        """Share of an edit's numbers that are not zero.

        Args:
            edit: by index or case id.

        Returns:
            0 to 1.

        Example:
            >>> edits.nonzero_share("france")  # doctest: +SKIP
            0.2
        """
        return self.patch.nonzero_share(self.index(edit))

    def merged(self, edit: int | str) -> PreTrainedModel:
        """A copy of the model with an edit in its weights.

        Args:
            edit: by index or case id.

        Returns:
            The copy; the model itself stays as it is.

        Raises:
            EditsError: the edit is no change of weights, or the weights are quantized.
            ValueError: the edit failed.
            RuntimeError: edits are attached to the model.

        Example:
            >>> edits.merged("france").save_pretrained("model-with-france")  # doctest: +SKIP
        """
        i = self.index(edit)
        if not isinstance(self.patch, WeightPatch):
            raise EditsError(f"{self.editor.name()} is no change of weights and cannot be merged; use `edits.on(...)`")
        if kind := quantization_of(self.editor.model):
            raise EditsError(
                f"the model's weights are quantized ({kind}), in which an edit would be lost by rounding; use "
                "`edits.on(...)`, or export it as an adapter (`loredit export`)"
            )
        if error := self.outcomes[i].error:
            raise ValueError(f"edit {edit!r} failed and changes nothing: {error}")
        check_free(self.editor.model, "merge")  # the copy would have the hooks too, and no one to take them off
        with owned(self.editor.model):  # no other thread's passes have hooks on it
            model = copy.deepcopy(self.editor.model)
        self.patch.merge(model, i)
        return model

    def save(self, folder: str | Path) -> None:
        """Write ``edits.json`` (facts, hyper-parameters, the model's identity) and the weights beside it.

        A folder that holds edits already holds either those or these at every moment.

        Args:
            folder: made if there is none.

        Raises:
            LockedError: another process writes to the folder.

        Example:
            >>> edits.save("my-edits")  # doctest: +SKIP
        """
        write(Path(folder), manifest_of(self), {name: packed(t) for name, t in self.patch.lasting().items()})

    @staticmethod
    def concatenated(parts: Sequence[Edits]) -> Edits:
        """The edits of all parts, in order.

        Args:
            parts: of one editor; at least one.

        Returns:
            Edits with one patch, the smaller ones padded with zeros.

        Example:
            >>> both = Edits.concatenated([edits, more])  # doctest: +SKIP
        """
        return Edits(
            parts[0].editor,
            Patch.concatenated([part.patch for part in parts]),
            tuple(facts for part in parts for facts in part.facts),
            tuple(outcome for part in parts for outcome in part.outcomes),
        )

    def taken(self, edits: Sequence[int]) -> Edits:
        """Some of the edits.

        Args:
            edits: their indices, in the order that is wanted.

        Returns:
            These edits alone; their tensors are copies.

        Example:
            >>> good = edits.taken([e for e, o in enumerate(edits.outcomes) if not o.error])  # doctest: +SKIP
        """
        return Edits(
            self.editor,
            self.patch.take(edits),
            tuple(self.facts[e] for e in edits),
            tuple(self.outcomes[e] for e in edits),
        )

    def about(self, facts: Sequence[int]) -> Edits:
        """The one edit, said to carry only some of its facts; for scoring some of many.

        Args:
            facts: their indices among those that it carries.

        Returns:
            The same patch with these facts.

        Example:
            >>> scores = evaluate(edits.about([0, 1]))  # doctest: +SKIP
        """
        (carried,), (outcome,) = self.facts, self.outcomes
        lost = {i: outcome.lost[fact] for i, fact in enumerate(facts) if fact in outcome.lost}
        checks = tuple(outcome.checks[i] for i in facts) if outcome.checks else ()
        some = replace(outcome, lost=lost, checks=checks)
        return replace(self, facts=(tuple(carried[i] for i in facts),), outcomes=(some,))


def manifest_of(edits: Edits) -> Manifest:
    """What is written about edits beside their tensors."""
    editor = edits.editor
    return Manifest(
        editor=editor.name(),
        hparams=editor.hparams.model_dump(mode="json"),
        seed=editor.seed,
        base_model=editor.model_identity,
        dtype=editor.model_dtype,
        quantize=quantization_of(editor.model),
        facts=edits.facts,
        outcomes=edits.outcomes,
    )


def read_edits(folder: Path, manifest: Manifest, editor: Editor, stored: Mapping[str, Stored] | None = None) -> Edits:
    """The edits in a folder, by the editor that made them. Raises EditsError.

    ``stored``: the folder's tensors, where they were read already.
    """
    frame = frame_of(folder, editor)
    patch = patch_of(folder, manifest, frame) if stored is None else patch_from(folder, manifest, stored, frame)
    return Edits(editor, patch, manifest.facts, manifest.outcomes)


def frame_of(folder: Path, editor: Editor) -> Patch:
    """One edit of the form of those in a folder. Raises EditsError where its settings are of no edit of the model."""
    try:
        return editor.untrained([0])
    except ValueError as error:
        raise damaged(folder / MANIFEST, [str(error)]) from None


def _edits(editor: Editor, facts: Sequence[Fact], learned: Learned) -> Edits:
    carried = [facts[i] for i in learned.facts]
    checks = checked(editor, learned.patch, [*enumerate(carried)])
    outcomes = (replace(o, checks=(check,)) for o, check in zip(learned.outcomes, checks, strict=True))
    return Edits(editor, learned.patch, tuple((fact,) for fact in carried), tuple(outcomes))


def _finished(editor: Editor, facts: Sequence[Fact], folder: Path) -> list[tuple[list[int], Edits]]:
    """The batches that an interrupted :meth:`Editor.edit_each` has left, each with the indices of its facts."""
    index = {fact.case_id: i for i, fact in enumerate(facts)}
    ours = (editor.name(), editor.hparams.model_dump(mode="json"), editor.seed, editor.model_identity)
    parts = []
    for path in folder.glob(f"*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        carried = [fact for own in manifest.facts for fact in own]
        same = ours == (manifest.editor, manifest.hparams, manifest.seed, manifest.base_model)
        same &= len(carried) == len(manifest.facts)  # an edit for each fact, as this call makes them
        if not same or any(fact.case_id not in index or fact != facts[index[fact.case_id]] for fact in carried):
            raise EditsError(f"{folder} was begun with other facts or settings; go on with those, or delete it")
        parts.append(([index[fact.case_id] for fact in carried], read_edits(path.parent, manifest, editor)))
    return parts
