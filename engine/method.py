"""What a knowledge-editing method says about itself; the engine knows methods through this and nothing else.

Shapes: E edits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.facts import Fact
from ..hparams import base as settings
from .model.encoding import Encoder
from .model.generation import sampled_texts
from .model.identity import identity_of
from .model.passes import context_of
from .model.sites import sites
from .model.statistics import second_moments, whitening
from .outcome import Outcome
from .patches.branches import WeightSitePatch, Whitening
from .patches.patch import Patch
from .progress import Progress
from .seeds import seed_of
from .training.lessons import Lesson, lesson
from .training.nulls import null_directions


class Method(ABC):
    """One knowledge-editing method, bound to a model, its tokenizer and hyper-parameters.

    ``seed`` makes runs differ; the edit of a fact is initialised from the seed and the fact's own ``case_id``, so it
    is the same in every order and company. The model is never changed.
    """

    Hparams: ClassVar[type[settings.Hparams]]

    merges: ClassVar[bool] = False
    """Whether its patches are changes of weights on every model (:class:`~.patches.patch.WeightPatch`)."""

    subjects: ClassVar[bool] = False
    """Whether it works at the last token of a fact's subject, which each fact then has to name."""

    hparams: settings.Hparams

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: settings.Hparams, *, seed: int = 0
    ) -> None:
        self.model, self.tokenizer, self.hparams, self.seed = model, tokenizer, hparams, seed
        context = context_of(model)
        if self.positions >= context:
            raise ValueError(
                f"{self.name()} takes {self.positions} positions of the model's context, which has {context}; none "
                "would be left for texts"
            )
        self.encoder = Encoder(tokenizer, context, self.positions)

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

    @abstractmethod
    def learn(
        self, lessons: Sequence[Lesson], seeds: Sequence[int], progress: Progress | None = None
    ) -> tuple[Patch, list[Outcome]]:
        """The seam between all methods and what is shared: edit e from ``lessons[e]`` and ``seeds[e]`` alone.

        Everything in front of it (encoding, batching, memory, halving, progress) and behind it (storing, merging,
        scoring, shipping) is the same for all methods. A lesson that cannot be learned is that edit's
        ``Outcome.error``; running out of memory is raised.
        """

    @abstractmethod
    def bytes_per_edit(self, lesson: Lesson) -> int:
        """Peak bytes that one more edit like this one takes beside others, measured."""

    @final
    def lesson(self, facts: Sequence[Fact]) -> Lesson:
        """What an edit that carries these facts is to learn. Raises EncodingError."""
        return lesson(self.encoder, self.hparams, self.contexts, facts, self.seed, subjects=self.subjects)

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
        count = self.hparams.contexts if isinstance(self.hparams, settings.WordingHparams) else 0
        return sampled_texts(self.model, self.tokenizer, count)

    @cached_property
    def model_identity(self) -> str:
        """Content hash of the model's config and weights, taken when it is first asked for."""
        return identity_of(self.model)

    @cached_property
    def model_dtype(self) -> str:
        """The dtype of the weights that :attr:`model_identity` is of, if it is asked for with it."""
        return str(self.model.dtype).removeprefix("torch.")

    @final
    def seed_for(self, facts: Sequence[Fact]) -> int:
        """The seed of the edit that carries these facts."""
        return seed_of(self.seed, *(fact.case_id for fact in facts))


class Trainable(Method, ABC):
    """A method whose patch is trained in the one loop."""

    hparams: settings.StepHparams

    def may_stop(self, steps: Tensor) -> Tensor | bool:
        """(E,) steps taken -> (E,): may the edit stop early now? Not while a schedule is still running."""
        return True


class Trained(Trainable, ABC):
    """A method whose trained patch is the edit itself, of one fact or of many."""

    hparams: settings.TrainedHparams

    @final
    def begun(self, seeds: Sequence[int], lessons: Sequence[Lesson] = (), before: Patch | None = None) -> Patch:
        """A patch to be trained: fresh, or one that goes on from ``before``; it sees its inputs whitened, and not at
        all what is null in its lesson, where that is asked for."""
        patch = self.fresh(seeds)
        if before is not None:
            patch = patch.rebuilt(patch.tensors() | before.lasting())
            patch.steps.zero_()
        if self.whitening is not None:
            assert isinstance(patch, WeightSitePatch), "these hyper-parameters are of patches that change weights"
            patch.whiten(self.whitening, going_on=before is not None)
        if any(lesson.nulls for lesson in lessons):
            assert isinstance(patch, WeightSitePatch), "these hyper-parameters are of patches that change weights"
            patch.blind(null_directions(self.model, patch.sites, lessons, self.whitening))
        return patch

    @cached_property
    def whitening(self) -> Whitening | None:
        """How patches see their inputs while they train; None: as they are. Raises SiteError, StatisticsError."""
        h = self.hparams
        if not isinstance(h, settings.WeightHparams) or h.whiten is None:
            return None
        found = second_moments(
            self.model,
            self.tokenizer,
            sites(self.model, h.sites, h.layers),
            identity=self.model_identity,
            text=h.statistics_text,
            tokens=h.statistics_tokens,
        )
        return Whitening([whitening(c, h.whiten) for c in found])
