"""All probes of all edits through the unedited and the edited model, in batched passes.

Shapes: R rows of a batch, T tokens, N predictions of all rows, V vocabulary.

Every probe is run teacher-forced on ``prompt + " " + answer``, padded on the right, each row with its own edit. Blocks
below the first edited one are computed once for both models. Texts are generated with the key-value cache, the
unedited and the edited model's side by side. The model is in eval mode throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.facts import Fact
from ..editors.base import Edits
from ..engine.devices import Budget
from ..engine.model.encoding import Batch, Encoded, Encoder, EncodingError, Prompt, chunks
from ..engine.model.generation import Attach, TopK, continuations, greedy
from ..engine.model.hooks import check_free
from ..engine.model.passes import frozen, logits_at, recorded, replayed
from ..engine.patches.branches import WeightSitePatch
from ..engine.patches.patch import Patch, Report
from ..engine.progress import Phase, Shown, shown
from ..engine.seeds import seed_of
from .scores import AnswerScore, FactScores, Kind, Place, ProbeScores, Seen
from .unedited import Texts

_T = TypeVar("_T")
Measure = Literal["generation", "probabilities"]
"""What can be scored beside ``token_em``: free generation, and ROME's probabilities."""

# Tokens of one forward pass and rows of one generation: enough to keep the device busy.
_TOKENS = Budget(cpu=1024, mps=8192, accelerator=1 << 16)
_ROWS = Budget(cpu=256, mps=128, accelerator=2048)
_ANSWER_TOKENS = 32
FLUENCY_TOKENS = 100
"""Of each text that is sampled for fluency."""


def evaluate(
    edits: Edits,
    *,
    measures: Collection[Measure] = (),
    fluency: bool = True,
    seed: int = 0,
    texts: Texts | None = None,
    progress: Shown = None,
) -> list[FactScores]:
    """Score every fact of every edit, in order.

    Args:
        edits: finished edits.
        measures: what is scored beside ``token_em``.
        fluency: sample a text for each fact through both models.
        seed: of the texts that are sampled.
        texts: what the unedited model has written before, and what it writes now; None: it writes all anew.
        progress: told the phase and its share; a bar in a terminal or notebook if not given, False for none.

    Returns:
        What was seen of each fact; :func:`~.metrics.summarise` makes numbers of it.

    Raises:
        RuntimeError: something is attached to the model, which would be taken for the unedited one.

    Example:
        >>> scores = evaluate(edits, measures=["generation"], fluency=False)  # doctest: +SKIP
        >>> summarise(scores).metrics["edit_success"].edited.mean  # doctest: +SKIP
        100.0
    """
    check_free(edits.editor.model, "evaluate")
    carried = ((e, i) for e, facts in enumerate(edits.facts) for i in range(len(facts)))
    # Of an edit, however many facts it carries.
    found = [(edits.nonzero_share(e), _report(edits.patch, e)) for e in range(len(edits))]
    jobs = [Job(edits, e, i, *found[e], measures) for e, i in carried]
    good = [job for job in jobs if not job.error]

    with shown(progress) as tell, frozen(edits.editor.model), torch.no_grad():

        def told(phase: Phase) -> Callable[[float], None]:
            return lambda share: tell(phase, share, len(edits))

        _teacher_force(edits, good, told(Phase.SCORING))
        if "generation" in measures:
            _generate(edits, good, texts, told(Phase.ANSWERS))
        if fluency:
            _write(edits, good, seed, texts, told(Phase.TEXTS))
    return [job.scores() for job in jobs]


def _report(patch: Patch, edit: int) -> Report:
    """What the method says of an edit by site, and how far each site's weight has moved."""
    if not isinstance(patch, WeightSitePatch):
        return patch.report(edit)
    return patch.report(edit) | {"norms": {name: float(f"{norm:.5g}") for name, norm in patch.norms(edit).items()}}


@dataclass(frozen=True)
class Pass:
    """What one model did with one teacher-forced row."""

    argmax: tuple[int, ...]
    log_prob: float


class Job:
    """One fact under one edit: its probes, and what has been seen of them so far."""

    def __init__(
        self, edits: Edits, edit: int, fact: int, share: float, report: Report, measures: Collection[Measure]
    ) -> None:
        self.edits, self.edit, self.fact = edits, edit, edits.facts[edit][fact]
        self.share, self.report = share, report
        self.error = edits.outcomes[edit].lost.get(fact, edits.outcomes[edit].error)
        self.probes: list[_Probe] = []
        self.rows: dict[tuple[Prompt, str], Encoded] = {}
        self.passes: dict[tuple[Prompt, str], tuple[Pass, Pass]] = {}  # unedited, edited
        self.answers: dict[Prompt, tuple[str, str]] = {}
        self.texts: tuple[str, str] | None = None
        try:
            self.probes = list(_probes(self.fact, edits.editor.encoder, measures))
            self.rows = _rows(self.probes, edits.editor.encoder)
        except EncodingError as error:
            self.error = self.error or str(error)

    def scores(self) -> FactScores:
        outcome = self.edits.outcomes[self.edit]
        error = self.error
        if not all(math.isfinite(p.log_prob) for both in self.passes.values() for p in both):
            error = "the model's outputs are not finite numbers"
        base_text, edited_text = self.texts if self.texts and not error else (None, None)
        return FactScores(
            case_id=self.fact.case_id,
            prompt=self.fact.prompt,
            target_new=self.fact.target_new,
            probes=() if error else tuple(self._probe_scores(probe) for probe in self.probes),
            base_text=base_text,
            edited_text=edited_text,
            steps=outcome.steps,
            loss=outcome.loss,
            nonzero_share=self.share,
            notes=outcome.notes,
            report={} if error else self.report,
            error=error,
        )

    def _probe_scores(self, probe: _Probe) -> ProbeScores:
        base, edited = (self._seen(probe, model) for model in (0, 1))
        same: tuple[bool, ...] = ()
        if probe.answers:
            first = self.passes[probe.prompt, probe.answers[0]]
            same = tuple(a == b for a, b in zip(first[0].argmax, first[1].argmax, strict=True))
        return ProbeScores(
            kind=probe.kind,
            group=probe.group,
            prompt=probe.said,
            answers=probe.answers,
            base=base,
            edited=edited,
            same=same,
            place=probe.place,
        )

    def _seen(self, probe: _Probe, model: int) -> Seen:
        def score(answer: str) -> AnswerScore:
            seen, wanted = self.passes[probe.prompt, answer][model], self.rows[probe.prompt, answer].wanted
            return AnswerScore(
                correct=tuple(a == b for a, b in zip(seen.argmax, wanted, strict=True)), log_prob=seen.log_prob
            )

        return Seen(
            answers=tuple(map(score, probe.answers)),
            contrast=score(probe.contrasts[0]) if probe.contrasts else None,
            generated=self.answers[probe.prompt][model] if self.answers else None,
        )


@dataclass(frozen=True)
class _Probe:
    kind: Kind
    group: str
    said: str
    prompt: Prompt
    answers: tuple[str, ...]
    contrasts: tuple[str, ...] = ()  # none or one
    place: Place | None = None


def _probes(fact: Fact, encoder: Encoder, measures: Collection[Measure]) -> Iterator[_Probe]:
    """The fact's own prompt, rephrasings and questions ask for the new answer; every other probe has its own, or none,
    where it is asked only if answers are generated.

    Questions are asked in a chat, of a model that has a template for it. Raises EncodingError.
    """
    probabilities, generation = "probabilities" in measures, "generation" in measures
    old = tuple(a for a in fact.ground_truth[:1] if probabilities and a != fact.target_new)
    new = (fact.target_new,)
    yield _Probe("rewrite", "rewrite", fact.prompt, Prompt(fact.prompt), new, old)
    for prompt in fact.rephrase_prompts:
        yield _Probe("rephrase", "rephrase", prompt, Prompt(prompt), new, old)
    for message in fact.chat_prompts if encoder.chats else ():
        yield _Probe("chat", "chat", message, encoder.chat(message), new, old)
    for group, probes in fact.locality.items():
        for probe in probes:
            if not probe.answers and not generation:
                continue
            rival = new if probabilities and probe.answers and fact.target_new not in probe.answers else ()
            yield _Probe("locality", group, probe.prompt, Prompt(probe.prompt), probe.answers, rival)
    for group, probes in fact.portability.items():
        for probe in probes:
            yield _Probe("portability", group, probe.prompt, Prompt(probe.prompt), probe.answers)
    for group, claims in fact.claims.items():
        for number, claim in enumerate(claims):
            for way, probes in ((None, claim.given), *enumerate(claim.ways)):
                for probe in probes:
                    place = Place(claim=number, way=way)
                    yield _Probe("claim", group, probe.prompt, Prompt(probe.prompt), probe.answers, place=place)


def rows_of(fact: Fact, encoder: Encoder, *, measures: Collection[Measure] = ()) -> list[Encoded]:
    """The texts that are teacher-forced to score a fact, each once. Raises EncodingError."""
    return [*_rows(_probes(fact, encoder, measures), encoder).values()]


def _rows(probes: Iterable[_Probe], encoder: Encoder) -> dict[tuple[Prompt, str], Encoded]:
    """Each prompt with each of its answers, by both."""
    return {
        (probe.prompt, answer): encoder.answered(probe.prompt, answer)
        for probe in probes
        for answer in (*probe.answers, *probe.contrasts)
    }


def _teacher_force(edits: Edits, jobs: Sequence[Job], progress: Callable[[float], None]) -> None:
    rows = sorted(((job, key) for job in jobs for key in job.rows), key=lambda row: len(row[0].rows[row[1]].ids))
    done = 0
    for chunk in chunks(rows, [len(job.rows[key].ids) for job, key in rows], _TOKENS.on(edits.editor.model.device)):
        passes = both_passes(edits, [job.edit for job, _ in chunk], [job.rows[key] for job, key in chunk])
        for (job, key), both in zip(chunk, passes, strict=True):
            job.passes[key] = both
        progress((done := done + len(chunk)) / len(rows))


def both_passes(edits: Edits, owners: Sequence[int], rows: Sequence[Encoded]) -> list[tuple[Pass, Pass]]:
    """The unedited model and row r's edit ``owners[r]`` on teacher-forced rows."""
    model, first = edits.editor.model, edits.patch.first_layer
    batch = Batch.of(rows, model.device)
    with recorded(model, first) as hidden:
        base = _passes(logits_at(model, batch.ids, batch.at), batch)
    with edits.on(owners), replayed(model, first, hidden[0]) if first else nullcontext():
        edited = _passes(logits_at(model, batch.ids, batch.at), batch)
    return list(zip(base, edited, strict=True))


def _passes(logits: Tensor, batch: Batch) -> list[Pass]:
    """(N, V) -> one result for each row."""
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    log_prob = logits.gather(-1, batch.labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    sums = batch.table(log_prob).sum(1).tolist()
    argmax = iter(logits.argmax(-1).tolist())
    return [
        Pass(tuple(next(argmax) for _ in range(n)), total)
        for n, total in zip(batch.table.counts.tolist(), sums, strict=True)
    ]


@dataclass(frozen=True)
class _Request:
    """A prompt to be continued under a job's edit."""

    job: Job
    prompt: Prompt
    full_stops: int = 0
    """How many full stops an accepted answer holds ("St. Louis"): the text is read on past as many."""
    tokens: int = 0
    """The longest text."""

    def manner(self, tokens: int, *of: Hashable) -> Hashable:
        """What the unedited model's text of so many tokens, or of those that the context has room for, depends on."""
        encoder = self.job.edits.editor.encoder
        ids = encoder.prompt(self.prompt).ids
        return ids, min(tokens, encoder.context - encoder.reserved - len(ids)), self.full_stops, *of


def _generate(edits: Edits, jobs: Sequence[Job], known: Texts | None, progress: Callable[[float], None]) -> None:
    """Greedy answers, as a person would see them: up to a full stop, line end or end of text."""
    requests = []
    for job in jobs:
        held: dict[Prompt, tuple[int, int]] = {}
        for probe in job.probes:
            stops = (answer.count(".") for answer in probe.answers)
            known_stops, known_tokens = held.get(probe.prompt, (0, _ANSWER_TOKENS))
            held[probe.prompt] = max([known_stops, *stops]), max([known_tokens, *_room(job, probe)])
        requests += [_Request(job, prompt, *both) for prompt, both in held.items()]
    ends, full_stops = _natural_stops(edits.editor.tokenizer)

    def stop(request: _Request, token: int) -> bool:
        return token in ends or (token in full_stops and not request.full_stops)

    done = 0
    for tokens in sorted({request.tokens for request in requests}):
        some = [request for request in requests if request.tokens == tokens]
        manners = [request.manner(tokens, "greedy") for request in some]
        told = _within(progress, done / len(requests), len(some) / len(requests))
        texts = _both_texts(edits, some, manners, known, tokens, lambda chunk: greedy, stop, told)
        for request, (base, edited) in zip(some, texts, strict=True):
            n = request.full_stops
            request.job.answers[request.prompt] = natural(base, n), natural(edited, n)
        done += len(some)


def _room(job: Job, probe: _Probe) -> list[int]:
    """Tokens of the probe's accepted answers, in steps, so that texts of like length are written together."""
    lengths = [len(job.rows[probe.prompt, answer].wanted) for answer in probe.answers]
    return [_ANSWER_TOKENS * -(-n // _ANSWER_TOKENS) for n in lengths]


def _write(
    edits: Edits, jobs: Sequence[Job], seed: int, known: Texts | None, progress: Callable[[float], None]
) -> None:
    """Sampled texts for fluency; the unedited and the edited model draw the same random numbers."""

    def drawn(request: _Request) -> int:
        return seed_of("fluency", seed, request.job.fact.case_id)

    def sampler(chunk: Sequence[_Request]) -> TopK:
        return TopK(5, [drawn(request) for request in chunk], FLUENCY_TOKENS)

    requests = [_Request(job, Prompt(job.fact.prompt)) for job in jobs]
    manners = [request.manner(FLUENCY_TOKENS, "top 5", drawn(request)) for request in requests]
    texts = _both_texts(edits, requests, manners, known, FLUENCY_TOKENS, sampler, lambda _, __: False, progress)
    for request, both in zip(requests, texts, strict=True):
        request.job.texts = both


def _both_texts(
    edits: Edits,
    requests: Sequence[_Request],
    manners: Sequence[Hashable],
    known: Texts | None,
    tokens: int,
    chooser: Callable[[Sequence[_Request]], Callable[[Tensor, Sequence[int], int], Tensor]],
    stop: Callable[[_Request, int], bool],
    progress: Callable[[float], None],
) -> list[tuple[str, str]]:
    """The unedited and the edited model's continuation of each prompt, in one batch but for what is known."""
    editor = edits.editor
    base = known.get(manners) if known else {}
    fresh: dict[Hashable, str] = {}
    out: list[tuple[str, str]] = []
    most, context = _ROWS.on(editor.model.device) // 2, editor.encoder.context - editor.encoder.reserved
    prompts = {request.prompt: editor.encoder.prompt(request.prompt).ids for request in requests}
    # A text that may fill the context is written alone: its width would push the others' beyond it.
    sizes = [most if len(prompts[request.prompt]) + tokens > context else 1 for request in requests]
    for chunk in chunks(range(len(requests)), sizes, most):
        unknown = [i for i in chunk if manners[i] not in base]
        rows = [requests[i] for i in (*unknown, *chunk)]
        ids = continuations(
            editor.model,
            [prompts[request.prompt] for request in rows],
            tokens=tokens,
            context=context,
            choose=chooser(rows),
            attach=_attaching(edits, [-1] * len(unknown) + [requests[i].job.edit for i in chunk]),
            stop=_stopping(stop, rows),
            progress=_within(progress, len(out) / len(requests), len(chunk) / len(requests)),
        )
        texts = editor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        fresh |= {manners[i]: text for i, text in zip(unknown, texts, strict=False)}
        both = base | fresh
        out += [(both[manners[i]], text) for i, text in zip(chunk, texts[len(unknown) :], strict=True)]
    if known:
        known.put(fresh)
    return out


def _attaching(edits: Edits, owners: Sequence[int]) -> Attach:
    return lambda rows: edits.on([owners[row] for row in rows])


def _stopping(stop: Callable[[_Request, int], bool], rows: Sequence[_Request]) -> Callable[[int, int], bool]:
    return lambda row, token: stop(rows[row], token)


def _within(progress: Callable[[float], None], done: float, share: float) -> Callable[[float], None]:
    return lambda part: progress(done + share * part)


def natural(text: str, full_stops: int = 0) -> str:
    """A text up to its natural end: the line end, or the full stop that comes after so many others."""
    line = text.partition("\n")[0]
    return ".".join(line.split(".")[: full_stops + 1]).strip()


@lru_cache(maxsize=4)
def _natural_stops(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], frozenset[int]]:
    """Tokens that end an answer in any case, and those with a full stop."""
    texts = list(enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])))
    ends = {i for i, text in texts if "\n" in text} | {tokenizer.eos_token_id}
    return frozenset(ends), frozenset(i for i, text in texts if "." in text)
