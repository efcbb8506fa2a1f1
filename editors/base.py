"""The one interface of all editing methods: hyper-parameters, patches, editors, edits.

Shapes: E edits, R rows of a batch, T tokens, I/O a module's input/output width.

A method is a :class:`Patch` (what it adds to the frozen model, with an edit axis on every tensor) and an
:class:`Editor` (how fresh patches are made). Encoding, training, stopping and saving are the same for all.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, final

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ._encoding import Encoder
from ._forward import hooked, rows_counted
from ._generation import sampled_texts
from ._random import seed_of
from ._rows import Rows
from ._shapes import fitted
from ._sites import Role, transposed

Progress = Callable[[str, float, int], None]
"""Told what is being done, which share of it (0 to 1) is finished, and for how many edits at once."""


def _layers(value: object) -> object:
    """Layers as a list, as ``"20-24"`` (both ends included) or as ``"all"``."""
    if isinstance(value, str) and value != "all":
        first, dash, last = value.partition("-")
        try:
            return list(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise ValueError('layers are a list, a range such as "20-24", or "all"') from None
    return [value] if isinstance(value, int) else value


Layers = Annotated[Literal["all"] | list[int], BeforeValidator(_layers)]


class Hparams(BaseModel):
    """Hyper-parameters that every method has. Each method adds its own; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Model the preset is for: hub id, local folder, GGUF file or short name")
    in_steps: ClassVar[tuple[str, ...]] = ("steps",)
    """Fields that count optimizer steps; in an edit with many mini-batches they count passes over them."""

    steps: int = Field(gt=0, description="Optimizer steps of an edit, at most; with many facts, on each of them")
    lr: float = Field(gt=0, description="Learning rate of Adam")
    stop_at: float | None = Field(
        None, gt=0, lt=1, description="An edit is finished once every target token has this probability; null: never"
    )
    order: Literal["breadth_first", "depth_first"] = Field(
        "breadth_first", description="Of an edit with many facts: all mini-batches in turn, or each to its end"
    )
    batch_size: int = Field(16, gt=0, description="Facts of one optimizer step, in an edit with many facts")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of one edit's gradient; null: any")
    end_of_text: bool = Field(
        False, description="Train an end-of-text token after the target, so that generation stops"
    )
    contexts: int = Field(
        0, ge=0, description="Train each prompt also behind this many texts sampled from the model (as ROME does)"
    )
    kl_weight: float = Field(0.0, ge=0, description="Weight of KL(unedited || edited) on kl_prompts")
    kl_prompts: tuple[str, ...] = Field(
        ("{} is a",), description="Prompts whose predictions are to stay; {} is the fact's subject"
    )
    kl_positions: Literal["last", "all"] = Field(
        "last", description="What is to stay: the prediction after a prompt's last token, or after each of its tokens"
    )


class SiteHparams(Hparams):
    """Hyper-parameters of a method that sits on linear maps of the model."""

    sites: Annotated[list[Role], Field(min_length=1)] = Field(description="Which linear maps of a block, by role")
    layers: Layers = Field("all", description='Which blocks: a list, a range such as "20-24", or "all"')


H = TypeVar("H", bound=Hparams)


class Patch(nn.Module, ABC):
    """What a method adds to the frozen model for E edits. The first axis of every parameter and buffer is the edit."""

    seeds: Tensor  # (E,) int64
    steps: Tensor  # (E,) int64, optimizer steps each edit has taken

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("seeds", torch.tensor(list(seeds), dtype=torch.long))
        self.register_buffer("steps", torch.zeros(len(seeds), dtype=torch.long))

    @final
    def __len__(self) -> int:
        return len(self.seeds)

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """The lowest block whose computation the patch changes; blocks below it are computed once and replayed."""

    @abstractmethod
    def attached(self, model: PreTrainedModel, rows: Rows) -> AbstractContextManager[None]:
        """While open, row r of the model's batch is computed with edit ``rows.edits[r]``; -1 is the unedited model.

        A single row stands for all rows of batches of any size.
        """

    def before_step(self) -> None:
        """Runs between backward and the optimizer, with gradients and the weights they were taken at."""

    def after_step(self) -> Mapping[str, Tensor]:
        """Pruning, projection or rank allocation, after each optimizer step; within an edit, never across.

        Returns, by the name of a parameter, the edits whose Adam moments of it begin anew, (E,) bool.
        """
        return {}

    def penalty(self) -> Tensor | float:
        """(E,) added to each edit's loss."""
        return 0.0

    def settle(self) -> None:
        """Puts what training leaves behind into its lasting form, once, when edits are finished."""

    def trained(self, edit: int) -> list[Tensor]:
        """The numbers that one edit keeps, for counting them."""
        return [p[edit] for p in self.parameters()]

    def report(self, edit: int) -> dict[str, Any]:
        """What the method has found out about one edit, by site: ``{"ranks": {module name: rank}}``, say."""
        return {}

    def trimmed(self) -> Patch:
        """This patch without padding that none of its edits needs."""
        return self

    @final
    def take(self, edits: Sequence[int]) -> Patch:
        """A patch of these edits alone, its tensors copied."""
        index = torch.tensor(edits, device=self.seeds.device)
        return self.rebuilt({name: t.index_select(0, index) for name, t in self.tensors().items()}).trimmed()

    @final
    def finished(self, edits: Sequence[int]) -> Patch:
        """As :meth:`take`, settled and without what only training needs (the buffers that are not persistent)."""
        taken = self.take(edits)
        with torch.no_grad():
            taken.settle()
        lasting = taken.lasting()
        return taken.rebuilt(
            {n: t if n in lasting else t.new_zeros(len(t), 0) for n, t in taken.tensors().items()}
        ).eval()

    @final
    @staticmethod
    def concatenated(patches: Sequence[Patch]) -> Patch:
        """One patch with the edits of all, in order; where they differ in size, the smaller are padded with zeros."""
        parts = [patch.tensors() for patch in patches]
        return patches[0].rebuilt({name: _stacked([part[name] for part in parts]) for name in parts[0]})

    @final
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {name: t.detach() for name, t in (*self.named_parameters(), *self.named_buffers())}

    @final
    def lasting(self) -> dict[str, Tensor]:
        """The tensors that finished edits consist of, by name; one that several branches share is there once."""
        names = self.state_dict().keys()
        return {name: t for name, t in self.tensors().items() if name in names}

    @final
    def rebuilt(self, tensors: Mapping[str, Tensor]) -> Patch:
        """A patch like this one with these tensors; this one's own are not copied."""
        memo: dict[int, Any] = {id(b): tensors[name] for name, b in self.named_buffers()}
        memo |= {id(p): nn.Parameter(tensors[name]) for name, p in self.named_parameters()}
        return copy.deepcopy(self, memo)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    shape = [max(lengths) for lengths in zip(*(t.shape[1:] for t in tensors), strict=True)]
    return torch.cat([fitted(t, shape) for t in tensors])


class WeightPatch(Patch):
    """A patch that is a change of weights, so that an edit can be merged into the model."""

    @abstractmethod
    def delta_weights(self, edit: int) -> dict[str, Tensor]:
        """Parameter name -> what the edit adds to it: (O, I) for the weight of a linear map, whatever its layout."""

    @final
    @torch.no_grad()
    def merge(self, model: PreTrainedModel, edit: int) -> None:
        """Add an edit to the model's weights, in place. The sums are rounded to the model's dtype once."""
        for name, delta in self.delta_weights(edit).items():
            module, _, leaf = name.rpartition(".")
            turn = leaf == "weight" and transposed(model.get_submodule(module))
            model.get_parameter(name).add_(delta.T if turn else delta)


@dataclass(frozen=True)
class Outcome:
    """How the training of one edit ended."""

    steps: int
    loss: float
    """The last training loss that was seen, before the last step was taken."""
    error: str | None = None
    """Why there is no edit; its rows are to be computed unedited."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """The facts that an edit of many does not carry, by their place among its facts, and why."""


class Editor(ABC, Generic[H]):
    """One knowledge-editing method, bound to a model, its tokenizer and hyper-parameters.

    ``seed`` makes runs differ; the edit of a fact is initialised from the seed and the fact's own ``case_id``, so it
    is the same in every order and company. The model is never changed.
    """

    Hparams: ClassVar[type[Hparams]]

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: H, *, seed: int = 0
    ) -> None:
        self.model, self.tokenizer, self.hparams, self.seed = model, tokenizer, hparams, seed
        self.encoder = Encoder(tokenizer, model.config.max_position_embeddings, self.positions)

    @classmethod
    def name(cls) -> str:
        """The method's name: that of its module."""
        return cls.__module__.rpartition(".")[2]

    @abstractmethod
    def patch(self, seeds: Sequence[int]) -> Patch:
        """Fresh parameters on the CPU in float32, one edit for each seed; edit e comes from ``seeds[e]`` alone."""

    @property
    def positions(self) -> int:
        """Positions of the model's context that the method itself takes."""
        return 0

    def learning_rate(self, parameter: str) -> float:
        """The learning rate of a patch's parameter, by its name."""
        return self.hparams.lr

    def may_stop(self, steps: Tensor) -> Tensor | bool:
        """(E,) steps taken -> (E,): may the edit stop early now? Not while a schedule is still running."""
        return True

    @final
    def edit_each(
        self,
        facts: Sequence[Fact],
        *,
        edits_at_once: int | None = None,
        kept: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Edits:
        """Independent edits, one for each fact, trained side by side; the result is in the order of ``facts``.

        ``kept``: a folder that gets every finished batch; what lies there of an interrupted call with the same settings
        is not trained again. The folder is the caller's to delete. ``progress`` is told the share of all facts.
        """
        from ._training import in_batches  # the loop knows this module, not the other way round

        parts = [] if kept is None else _kept(self, facts, Path(kept))
        known = {place for places, _ in parts for place in places}
        left = [place for place in range(len(facts)) if place not in known]
        done = len(known)

        def told(phase: str, share: float, edits: int) -> None:
            if progress:
                progress(phase, (done + share * edits) / len(facts), len(facts))

        for places, edits in in_batches(self, [facts[place] for place in left], edits_at_once, told):
            if kept is not None:
                edits.save(Path(kept) / str(len(parts)))
            parts.append(([left[place] for place in places], edits))
            done += len(places)
            told("finished", 0.0, 0)
        at = {place: i for i, place in enumerate(place for places, _ in parts for place in places)}
        return Edits.concatenated([edits for _, edits in parts]).taken([at[place] for place in range(len(facts))])

    @final
    def edit_batches(
        self, facts: Sequence[Fact], *, edits_at_once: int | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """As :meth:`edit_each`, handed out as they are finished, facts of like length together.

        ``edits_at_once`` None: as many as memory allows. A batch that does not fit is halved and tried again.
        """
        from ._training import in_batches

        for _, edits in in_batches(self, facts, edits_at_once, progress):
            yield edits

    @final
    def edit(self, facts: Sequence[Fact], *, progress: Progress | None = None) -> Edits:
        """One edit that carries all facts, in mini-batches of ``hparams.batch_size`` and in ``hparams.order``.

        A fact that cannot be learned (``Outcome.lost``) leaves the others.
        """
        from ._together import together

        return together(self, facts, None, progress)

    @final
    def edit_stream(
        self, facts: Iterable[Fact], *, after: Edits | None = None, progress: Progress | None = None
    ) -> Iterator[Edits]:
        """Sequential editing: one fact after another on the same patch; yields the state after each.

        ``after``: a state to go on from. A fact that cannot be learned (``Outcome.lost``) leaves the patch as it was.
        """
        from ._together import together

        for fact in facts:
            after = together(self, [fact], after, progress)
            yield after

    @final
    def fresh(self, seeds: Sequence[int]) -> Patch:
        """:meth:`patch`, on the model's device and in float32 (float64 for a float64 model), ready for use."""
        dtype = torch.promote_types(torch.float32, self.model.dtype)
        return self.patch(seeds).to(self.model.device, dtype).eval()

    @final
    def untrained(self, seeds: Sequence[int]) -> Patch:
        """:meth:`fresh` in the form of finished edits, for edits that failed and those that are read from a file."""
        return self.fresh(seeds).finished(range(len(seeds)))

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """Texts of the model's own; each prompt is trained behind every one of them too."""
        return sampled_texts(self.model, self.tokenizer, self.hparams.contexts)

    @cached_property
    def model_identity(self) -> str:
        """Content hash of the model's config and weights, taken when it is first asked for."""
        from ._models import identity_of

        return identity_of(self.model)

    @final
    def seed_for(self, facts: Sequence[Fact]) -> int:
        """The seed of the edit that carries these facts."""
        return seed_of(self.seed, *(fact.case_id for fact in facts))


@dataclass(frozen=True)
class Edits:
    """Trained edits: a patch with the facts that each of its edits carries.

    ``facts[e]`` are the facts of edit e: one each after :meth:`Editor.edit_each`, all in one after :meth:`Editor.edit`.
    """

    editor: Editor[Any]
    patch: Patch
    facts: tuple[tuple[Fact, ...], ...]
    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, i: int) -> Edits:
        return self.taken([range(len(self))[i]])

    @contextmanager
    def on(self, rows: Sequence[int]) -> Iterator[None]:
        """While open, row r of a batch is computed with edit ``rows[r]``; -1 is the unedited model.

        A batch of another number of rows is a ValueError.
        """
        model = self.editor.model
        with rows_counted(model, len(rows)), self.patch.attached(model, Rows(rows, len(self), model.device)):
            yield

    def num_trainable_parameters(self) -> int:
        """Trained numbers of one edit."""
        return sum(t.numel() for t in self.patch.trained(0))

    def nonzero_share(self, i: int) -> float:
        """Share of edit i's trained numbers that are not zero."""
        trained = self.patch.trained(i)
        return sum(int(t.count_nonzero()) for t in trained) / sum(t.numel() for t in trained)

    def merged(self, i: int) -> PreTrainedModel:
        """A copy of the model with edit i in its weights. Refused while edits are attached to the model."""
        if not isinstance(self.patch, WeightPatch):
            raise TypeError(f"{self.editor.name()} is no change of weights and cannot be merged; use `edits.on([...])`")
        if error := self.outcomes[i].error:
            raise ValueError(f"edit {i} failed and changes nothing: {error}")
        if hooked(self.editor.model):  # the copy would have the hooks too, and no one to take them off
            raise RuntimeError("edits are attached to the model; merge outside of `with edits.on(...)`")
        model = copy.deepcopy(self.editor.model)
        self.patch.merge(model, i)
        return model

    def to_peft(self, i: int, folder: str | Path) -> None:
        """Write edit i as an adapter folder for ``PeftModel.from_pretrained``; low-rank methods and prefix tuning."""
        from ._peft import export

        export(self, i, Path(folder))

    @staticmethod
    def from_peft(
        folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact] = ()
    ) -> Edits:
        """A LoRA adapter of PEFT's as one edit of the ``lora`` editor, said to carry ``facts``.

        An adapter that does more (DoRA, biases, whole modules, maps that have no role here) is a PeftError.
        """
        from ._peft import imported

        return imported(Path(folder), model, tokenizer, facts)

    def save(self, folder: str | Path) -> None:
        """Write ``edits.json`` (facts, hyper-parameters, the model's identity) and the weights beside it.

        A folder that holds edits already holds either those or these at every moment.
        """
        from ._saving import save

        save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Edits:
        """Read what :meth:`save` wrote. Another model than the one the edits were trained on is refused."""
        from ._saving import load

        return load(Path(folder), model, tokenizer)

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


def _kept(editor: Editor[Any], facts: Sequence[Fact], folder: Path) -> list[tuple[list[int], Edits]]:
    """The batches that an interrupted :meth:`Editor.edit_each` has left, each with the places of its facts."""
    from ._saving import MANIFEST, EditsError, edits_of, read_manifest

    places = {fact.case_id: place for place, fact in enumerate(facts)}
    ours = (editor.name(), editor.hparams.model_dump(mode="json"), editor.seed, editor.model_identity)
    parts = []
    for path in folder.glob(f"*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        carried = [fact for (fact,) in manifest.facts]
        same = ours == (manifest.editor, manifest.hparams, manifest.seed, manifest.base_model)
        if not same or any(fact.case_id not in places or fact != facts[places[fact.case_id]] for fact in carried):
            raise EditsError(f"{folder} was begun with other facts or settings; go on with those, or delete it")
        parts.append(([places[fact.case_id] for fact in carried], edits_of(path.parent, manifest, editor)))
    return parts
