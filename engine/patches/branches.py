"""Patches that sit on linear maps of the model: one branch at each site, attached through forward hooks.

Shapes: E edits, R rows of a batch, T tokens, I/O a site's input/output width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.hooks import after
from ..model.sites import Site
from ..seeds import mixed
from .patch import Patch, WeightPatch
from .rows import Rows


class Branch(nn.Module, ABC):
    """What a patch does at one site: from the site's input and output to its new output."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """(R, T, I), (R, T, O) -> (R, T, O)."""

    def before_step(self, steps: Tensor) -> None:
        """Sees gradients and the weights they were taken at. ``steps`` (E,): optimizer steps taken so far."""

    def after_step(self, steps: Tensor) -> None:
        """Sees the new weights and the same gradients. ``steps`` (E,) counts the step just taken."""


class WeightBranch(Branch):
    """A branch that is a change of its site's weight."""

    @abstractmethod
    def delta(self, edit: int) -> Tensor:
        """(O, I), what edit ``edit`` adds to W."""

    @abstractmethod
    def turn(self, turned: Callable[[Tensor], Tensor]) -> None:
        """Exchange what meets the input, (E, ..., I), for ``turned`` of it."""

    def norm(self, edit: int) -> Tensor:
        """Frobenius norm of :meth:`delta`."""
        return self.delta(edit).float().norm()


class Factors(NamedTuple):
    """A change of low rank: (alpha / r) B A."""

    a: Tensor  # (r, I)
    b: Tensor  # (O, r)
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.a)


class LowRankBranch(WeightBranch):
    """A branch whose change is of low rank, and says its factors: what other libraries call a LoRA."""

    @abstractmethod
    def factors(self, edit: int) -> Factors:
        """What edit ``edit`` adds to W, as factors; of rank 0 where it adds nothing."""

    def norm(self, edit: int) -> Tensor:
        """|c B A|^2 = c^2 <B^T B, A A^T>, of r x r numbers in place of O x I."""
        a, b, alpha = self.factors(edit)
        a, b = a.double(), b.double()
        return alpha / max(len(a), 1) * ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()


B = TypeVar("B", bound=Branch, covariant=True)
W = TypeVar("W", bound=WeightBranch, covariant=True)


class Whitening:
    r"""Matrices S by which a patch sees the inputs of its sites while it trains, y + B A S x in place of y + B A x.

    S = (C + eps mean(diag C) 1)^(-1/2) from the input's second moments C makes all directions alike: a step of the
    same size moves much where the model seldom looks and little where it always does. It is all edits' and stays as it
    is; a finished edit has it folded into its own numbers (A S), and is of the same rank as without.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._matrices = list(matrices)  # (I, I) each, symmetric, in float64
        self._cast: dict[int, Tensor] = {}

    def __deepcopy__(self, memo: object) -> Whitening:
        return self  # shared by all patches that are made of one, and never changed

    def __call__(self, i: int, x: Tensor) -> Tensor:
        """(..., I) of site i, whitened."""
        return x @ self._like(i, x)

    def fold(self, i: int, rows: Tensor) -> Tensor:
        """(..., I) numbers that have met whitened inputs of site i -> those that do the same with the inputs."""
        return (rows.double() @ self._matrices[i].to(rows.device)).to(rows.dtype)

    def unfold(self, i: int, rows: Tensor) -> Tensor:
        """The other way round."""
        return torch.linalg.solve(self._matrices[i].to(rows.device), rows.double(), left=False).to(rows.dtype)

    def _like(self, i: int, x: Tensor) -> Tensor:
        if self._cast.get(i) is None or self._cast[i].dtype != x.dtype or self._cast[i].device != x.device:
            self._cast[i] = self._matrices[i].to(x.device, x.dtype)
        return self._cast[i]


class SitePatch(Patch, Generic[B]):
    """A patch made of one :class:`Branch` at each site."""

    def __init__(self, seeds: Sequence[int], sites: Sequence[Site], branches: Sequence[B]) -> None:
        super().__init__(seeds)
        self.sites = tuple(sites)
        self.branches = nn.ModuleList(branches)

    def items(self) -> Iterator[tuple[Site, B]]:
        yield from zip(self.sites, self.branches, strict=True)

    @property
    def first_layer(self) -> int:
        return min(site.layer for site in self.sites)

    @final
    @contextmanager
    def attached(self, model: PreTrainedModel, rows: Rows) -> Iterator[None]:
        edited = rows.edited if rows.any_unedited else None
        if self.training:
            rows.keys = self._keys(rows)

        def hook(i: int, branch: Branch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def changed(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                # Some models flatten rows and tokens into one axis before a linear map (OPT's MLP). A site may be on
                # another device than the edits.
                x, y = (t.reshape(len(rows), -1, t.shape[-1]).to(rows.device) for t in (args[0], output))
                new = branch(self.seen(i, x, rows), y, rows)
                return (new if edited is None else torch.where(edited, new, y)).view(output.shape).to(output.device)

            return changed

        with ExitStack() as stack:
            for i, (site, branch) in enumerate(self.items()):
                stack.callback(after(model.get_submodule(site.name), hook(i, branch)).remove)
            yield

    def seen(self, i: int, x: Tensor, rows: Rows) -> Tensor:
        """What the branch at site i sees of its input, (R, T, I) -> (R, T, I)."""
        return x

    def _keys(self, rows: Rows) -> Tensor:
        """(R,) int32, a key for each row's dropout masks at this step, from its own edit's seed."""
        seeds = self.seeds.to(torch.int32)[rows.index] + mixed(self.steps.to(torch.int32))[rows.index]
        return mixed(seeds + rows.within.to(torch.int32) * 0x3504F333)

    def before_step(self) -> None:
        for branch in self.branches:
            branch.before_step(self.steps)  # type: ignore[operator]

    def after_step(self) -> Mapping[str, Tensor]:
        for branch in self.branches:
            branch.after_step(self.steps)  # type: ignore[operator]
        return {}


class WeightSitePatch(SitePatch[W], WeightPatch):
    r"""A change of the weight of each site.

    While it trains it may see its inputs otherwise: :math:`y + B A (1 - Q Q^T) S x` in place of :math:`y + B A x`, with
    a matrix S that all edits share (:class:`Whitening`) and directions Q of each edit's own that it is blind to. A
    finished edit has both folded into its own numbers, and is of the same rank as without.
    """

    whitening: Whitening | None = None

    @final
    def whiten(self, whitening: Whitening, *, going_on: bool) -> None:
        """Train on whitened inputs; ``going_on`` from finished edits, whose function stays the same."""
        self.whitening = whitening
        if going_on:
            self._turn(whitening.unfold)

    @final
    def blind(self, directions: Sequence[Tensor]) -> None:
        """Train without sight of these, (E, I, k) at each site: orthonormal columns, in the space of whitened inputs,
        or columns of zeros."""
        for i, q in enumerate(directions):
            self.register_buffer(f"blind_{i}", q.to(self.seeds.device, self._precision), persistent=False)

    @final
    def seen(self, i: int, x: Tensor, rows: Rows) -> Tensor:
        x = x if self.whitening is None else self.whitening(i, x)
        q = self._blind_to(i)
        return x if q is None else x - rows.linear(rows.linear(x, q.mT), q)

    @final
    def settle(self) -> None:
        if self.whitening is not None or self._blind_to(0) is not None:
            self._turn(self._as_seen)
        self.whitening = None
        for i in range(len(self.sites)):
            if self._blind_to(i) is not None:
                delattr(self, f"blind_{i}")

    @property
    def _precision(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _blind_to(self, i: int) -> Tensor | None:
        return self._buffers.get(f"blind_{i}")

    def _as_seen(self, i: int, rows: Tensor) -> Tensor:
        """(E, ..., I) numbers that have met inputs of site i as they are seen -> those that do so as they come."""
        if (q := self._blind_to(i)) is not None:
            flat, q = rows.flatten(1, -2).double(), q.double()
            rows = (flat - flat @ q @ q.mT).view(rows.shape).to(rows.dtype)
        return rows if self.whitening is None else self.whitening.fold(i, rows)

    @torch.no_grad()
    def _turn(self, turned: Callable[[int, Tensor], Tensor]) -> None:
        for i, (_, branch) in enumerate(self.items()):
            branch.turn(partial(turned, i))

    def delta_weights(self, edit: int) -> dict[str, Tensor]:
        return {f"{site.name}.weight": branch.delta(edit) for site, branch in self.items()}

    @final
    @torch.no_grad()
    def norms(self, edit: int) -> dict[str, float]:
        """By site, the Frobenius norm of what an edit adds to the weight; one site's change at a time is made."""
        return {site.name: float(branch.norm(edit)) for site, branch in self.items()}
