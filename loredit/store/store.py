r"""Many edits kept together, each used only for prompts that it is about.

A prompt is embedded by the unedited model itself: of the hidden states h_1 ... h_T that enter one of its lower blocks,
each scaled to length 1, the mean m (without h_1, which is hardly more than a mark of the beginning) and the last one,
l = h_T. Both are whitened by the mean and covariance of other prompts and scaled to length 1. Prompt p matches the
prompt q of an edited fact by

.. math::  s(p, q) = (1 - w) \cos(m_p, m_q) + w \cos(l_p, l_q)

and goes to the best match, or to no edit where s is below a threshold: one product with the matrix of all facts, exact.

Which prompts to whiten by (the samples', or these and the facts' own), w and the threshold depend on what prompts look
like, and are calibrated on rephrasings and on prompts that must be left alone: the last state knows whether a prompt is
a question, which tells apart the probes of some benchmarks, and says nothing in others (docs/keeping-edits.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import load as load_facts
from ..data.facts import Fact
from ..editors import editor_of, load
from ..editors.base import Edits, manifest_of
from ..engine.model.encoding import Encoder, padded
from ..engine.model.hooks import attached_to
from ..engine.model.passes import frozen, input_of, rows_counted
from ..engine.outcome import Outcome
from ..engine.patches.patch import Patch
from ..engine.patches.rows import Rows
from ..engine.storage.manifest import (
    MANIFEST,
    STORE,
    EditsError,
    alone,
    damaged,
    edit_of,
    filled,
    read_manifest,
    read_tensors,
    write,
)
from ..engine.storage.packed import Stored, dense, joined, packed, taken

_AT_ONCE = 128  # prompts of one forward pass
_SHRINKAGE = 0.3  # of the covariance towards a multiple of the identity: there are fewer prompts than widths may be
_LAST = (0.0, 0.25, 0.5)  # choices of w


class Routing(BaseModel):
    """How a store finds the edit that a prompt is about; a part of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Annotated[int, Field(gt=0)]
    last: Annotated[float, Field(ge=0, le=1)]
    threshold: float


@dataclass(frozen=True)
class Whitening:
    """What makes the numbers of an embedding uncorrelated and equally large."""

    mean: Tensor  # (2, d)
    turn: Tensor  # (2, d, d)

    @staticmethod
    def of(states: Tensor) -> Whitening:
        """(N, 2, d), the embeddings of any prompts."""
        x = states.transpose(0, 1)
        mean = x.mean(1)
        centred = x - mean[:, None]
        values, vectors = torch.linalg.eigh(centred.mT @ centred / x.shape[1])
        values = values.clamp(min=0) + _SHRINKAGE * values.mean(1, keepdim=True)
        return Whitening(mean, vectors * values.rsqrt()[:, None])

    def __call__(self, states: Tensor) -> Tensor:
        """(N, 2, d) -> (N, 2, d), each of length 1."""
        return normalize(torch.einsum("nkd,kde->nke", states - self.mean, self.turn), dim=-1)


class EditStore:
    """Independent edits of one editor, and the way from a prompt to the edit that it is about.

    ``layer``: the block whose input prompts are embedded with; so many blocks run once more for each prompt.
    Edits stay on the CPU, packed; those that a batch needs are unpacked for it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layer: int = 1,
        calibration: tuple[Routing, Whitening] | None = None,
    ) -> None:
        """Calibrated on the samples until :meth:`calibrate` is called, or as another store was."""
        self.model, self.tokenizer = model, tokenizer
        self._encoder = Encoder(tokenizer, model.config.max_position_embeddings)
        self._frame: Edits | None = None  # one edit, whose patch has the form of all; None while empty
        self._facts: list[tuple[Fact, ...]] = []
        self._outcomes: list[Outcome] = []
        self._tensors: dict[str, Stored] = {}
        self._states = torch.zeros(0, 2, model.config.hidden_size)  # of the prompt of each fact
        self._owner = torch.zeros(0, dtype=torch.long)  # the edit of each fact
        if calibration:
            self.routing, self._whitening = calibration
            self._index()
        else:
            self.routing = Routing(layer=layer, last=0, threshold=0)
            self.calibrate(_samples())

    def __len__(self) -> int:
        """Number of edits."""
        return len(self._facts)

    @property
    def facts(self) -> list[tuple[Fact, ...]]:
        """The facts of each edit."""
        return list(self._facts)

    @property
    def case_ids(self) -> list[str]:
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
        """Keep these edits too. A failed edit is left out; a case that is here already is an EditsError."""
        good = [e for e, outcome in enumerate(edits.outcomes) if not outcome.error]
        edits = edits.taken(good)
        facts = [fact for facts in edits.facts for fact in facts]
        self._check(edits, [fact.case_id for fact in facts])
        new = {name: packed(t) for name, t in edits.patch.lasting().items()}
        self._tensors = {n: joined([self._tensors[n], t]) for n, t in new.items()} if self._facts else new
        self._frame = self._frame or edits.taken([0])
        owner = [len(self) + e for e, facts in enumerate(edits.facts) for _ in facts]
        self._owner = torch.cat([self._owner, torch.tensor(owner, dtype=torch.long)])
        self._states = torch.cat([self._states, self._embedded([fact.prompt for fact in facts])])
        self._facts += edits.facts
        self._outcomes += edits.outcomes
        self._index()

    def _check(self, edits: Edits, case_ids: Sequence[str]) -> None:
        if not case_ids:
            raise EditsError("there is no edit to add that has a fact and did not fail")
        seen, doubled = {*self.case_ids}, set()
        for case_id in case_ids:
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
        """Forget the edit of a case. One that carries other facts too is an EditsError."""
        found = edit_of(self._facts, case_id)
        alone(self._facts[found], case_id)
        rest = [e for e in range(len(self)) if e != found]
        others = self._owner != found
        self._states, owner = self._states[others], self._owner[others]
        self._owner = owner - (owner > found).long()
        self._facts, self._outcomes = [self._facts[e] for e in rest], [self._outcomes[e] for e in rest]
        self._tensors = {name: taken(t, rest) for name, t in self._tensors.items()}
        self._frame = self._frame if rest else None
        self._index()

    def calibrate(self, facts: Sequence[Fact]) -> None:
        """Fit the routing to facts like those to be kept, by their rephrasings and their locality probes.

        Background, w and threshold are those of the largest share of rephrasings that find their fact, less the share
        of probes that find any. Facts without rephrasings are a ValueError; without locality probes, those of the
        samples are taken.
        """
        asked = [(fact, text) for fact in facts for text in fact.rephrase_prompts]
        if not asked:
            raise ValueError("none of these facts has a rephrasing to calibrate with")
        samples, own = self._embedded(_texts(_samples())), self._embedded([fact.prompt for fact in facts])
        again = self._embedded([text for _, text in asked])
        others = self._embedded(_probes(facts) or _probes(_samples()))
        best = -1.0
        for background in (samples, torch.cat([samples, own])):
            whitening = Whitening.of(background)
            keys, prompts, alone = whitening(own), whitening(again), whitening(others)
            for last in _LAST:
                score, found = _matches(prompts, keys, last)
                right = [f.target_new == facts[i].target_new for (f, _), i in zip(asked, found.tolist(), strict=True)]
                gain, threshold = _parted(score, torch.tensor(right), _matches(alone, keys, last)[0])
                if gain > best:
                    best, self._whitening = gain, whitening
                    self.routing = Routing(layer=self.routing.layer, last=last, threshold=threshold)
        self._index()

    def route(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[int]:
        """The edit of each prompt (a text or its token ids), or -1 for none. ``facts[edit]`` says what it is about."""
        if not len(self) or not len(prompts):
            return [-1] * len(prompts)
        score, fact = _matches(self._whitening(self._embedded(prompts)), self._keys, self.routing.last)
        return torch.where(score >= self.routing.threshold, self._owner[fact], -1).tolist()

    @contextmanager
    def on(
        self, prompts: Sequence[str] | Sequence[Sequence[int]] | Tensor, mask: Tensor | None = None
    ) -> Iterator[list[int]]:
        """While open, row r of a batch is computed with the edit that ``prompts[r]`` is about; yields these edits.

        ``prompts``: texts, lists of token ids, or the batch's ids (R, T) with its attention ``mask``.
        """
        if isinstance(prompts, Tensor):
            mask = torch.ones_like(prompts) if mask is None else mask
            prompts = [ids[m.bool()].tolist() for ids, m in zip(prompts, mask, strict=True)]
        if attached_to(self.model):
            raise RuntimeError("edits are attached to the model already; use the store outside of `edits.on(...)`")
        rows = self.route(prompts)
        needed = sorted({row for row in rows if row >= 0})
        with rows_counted(self.model, len(rows)), self._attached(needed, rows):
            yield rows

    def _attached(self, needed: Sequence[int], rows: Sequence[int]) -> AbstractContextManager[None]:
        if not needed:
            return nullcontext()
        places = {edit: i for i, edit in enumerate(needed)}
        here = Rows([places.get(row, -1) for row in rows], len(needed), self.model.device)
        return self._patch(needed).attached(self.model, here)

    def _patch(self, edits: Sequence[int]) -> Patch:
        assert self._frame is not None
        own = self._frame.patch.tensors()
        tensors = {name: dense(taken(t, edits)).to(self.model.device) for name, t in self._tensors.items()}
        rest = {name: t.new_zeros(len(edits), *t.shape[1:]) for name, t in own.items() if name not in tensors}
        return self._frame.patch.rebuilt(tensors | rest).trimmed()

    def edits(self) -> Edits:
        """All edits, unpacked."""
        if self._frame is None:
            raise EditsError("the store is empty")
        return Edits(self._frame.editor, self._patch(range(len(self))), tuple(self.facts), tuple(self._outcomes))

    def save(self, folder: str | Path) -> None:
        """Write the edits as :meth:`Edits.save` does (and ``Edits.load`` reads them), with the index beside them."""
        if self._frame is None:
            raise EditsError("the store is empty; there is nothing to save")
        manifest = manifest_of(self._frame).model_copy(
            update={"facts": tuple(self.facts), "outcomes": tuple(self._outcomes), "routing": self.routing.model_dump()}
        )
        index = {
            "states": self._states,
            "mean": self._whitening.mean,
            "turn": self._whitening.turn,
        }
        write(Path(folder), manifest, self._tensors | {STORE + name: t for name, t in index.items()})

    @staticmethod
    def load(folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EditStore:
        """What :meth:`save` wrote; what :meth:`Edits.save` wrote becomes a new store."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest.routing is None:
            store = EditStore(model, tokenizer)
            store.add(load(folder, model, tokenizer))
            return store
        tensors = read_tensors(folder, manifest)
        index = {name: dense(t) for name, t in tensors.items() if name.startswith(STORE)}
        tensors = {name: t for name, t in tensors.items() if name not in index}
        facts, width = manifest.facts, model.config.hidden_size
        owner = [e for e, carried in enumerate(facts) for _ in carried]
        shapes = {"states": (len(owner), 2, width), "mean": (2, width), "turn": (2, width, width)}
        editor = editor_of(folder, manifest, model, tokenizer)
        if {name: tuple(t.shape) for name, t in index.items()} != {STORE + n: shape for n, shape in shapes.items()}:
            raise damaged(folder, [f"its index is not {shapes}"])
        if wrong := [name for name, t in tensors.items() if t.shape[:1] != (len(facts),)]:
            raise damaged(folder, [f"{name}: not of {len(facts)} edits" for name in wrong])
        first = filled(folder, editor.untrained([0]), {name: taken(t, [0]) for name, t in tensors.items()}, 1)
        whitening = Whitening(index[STORE + "mean"], index[STORE + "turn"])
        store = EditStore(model, tokenizer, calibration=(_routing(folder, manifest.routing), whitening))
        store._frame = Edits(editor, first, facts[:1], manifest.outcomes[:1])
        store._facts, store._outcomes, store._tensors = [*facts], [*manifest.outcomes], tensors
        store._states, store._owner = index[STORE + "states"], torch.tensor(owner)
        store._index()
        return store

    def _index(self) -> None:
        self._keys = self._whitening(self._states)

    @torch.no_grad()
    def _embedded(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> Tensor:
        """(N, 2, d): the mean and the last of each prompt's hidden states."""
        ids = [self._encoder.prompt(p).ids if isinstance(p, str) else p for p in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = torch.empty(len(ids), 2, self.model.config.hidden_size)
        with frozen(self.model):
            for begin in range(0, len(order), _AT_ONCE):
                chunk = order[begin : begin + _AT_ONCE]
                batch, mask = padded([ids[i] for i in chunk], self.model.device)
                hidden = normalize(input_of(self.model, self.routing.layer, batch).float(), dim=-1)
                used, length = mask.clone(), mask.sum(1)
                used[length > 1, 0] = 0
                mean = torch.einsum("rt,rtd->rd", used.float(), hidden) / used.sum(1, keepdim=True)
                last = hidden[torch.arange(len(chunk), device=hidden.device), length - 1]
                out[chunk] = torch.stack([mean, last], 1).cpu()
        return out


def _routing(folder: Path, values: Mapping[str, float]) -> Routing:
    try:
        return Routing.model_validate(values)
    except ValidationError as error:
        faults = [f"routing.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise damaged(folder / MANIFEST, faults) from None


def _matches(prompts: Tensor, keys: Tensor, last: float) -> tuple[Tensor, Tensor]:
    """(N, 2, d), (K, 2, d) -> the best score of each prompt and the key that has it, (N,) each."""
    weight = prompts.new_tensor([1 - last, last])[:, None]
    return ((prompts * weight).flatten(1) @ keys.flatten(1).T).max(1)


def _parted(scores: Tensor, right: Tensor, others: Tensor) -> tuple[float, float]:
    """The threshold with the largest share of rephrasings that go right, less the share of others that go anywhere,
    and this difference. Between two scores it lies half-way."""
    values = torch.cat([scores, others]).unique()
    between = torch.cat([values[:1], (values[1:] + values[:-1]) / 2, values[-1:] + 1e-3])
    went = torch.stack([(scores[right] >= t).sum() for t in between]) / len(scores)
    strayed = torch.stack([(others >= t).float().mean() for t in between])
    best = int((went - strayed).argmax())
    return float((went - strayed)[best]), float(between[best])


@cache
def _samples() -> tuple[Fact, ...]:
    return tuple(load_facts("samples").facts)


def _texts(facts: Sequence[Fact]) -> list[str]:
    return [*(f.prompt for f in facts), *(text for f in facts for text in f.rephrase_prompts), *_probes(facts)]


def _probes(facts: Sequence[Fact]) -> list[str]:
    return [probe.prompt for fact in facts for group in fact.locality.values() for probe in group]
