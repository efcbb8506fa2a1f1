"""Reports as pages: one file each, that opens without a network, in light and dark, on a phone and on a screen.

Tables and figures are written by templates; what is long, the facts with their probes and texts, lies in the page as
JSON, and its script draws what is asked for. Whatever a user or a model has written is escaped on its way: by jinja2 in
the page, by :func:`json` for a script's element, and the script itself makes text, never markup. The page's own rules
(``Content-Security-Policy``) let no other script run, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...engine.files import replacing
from ...engine.version import VERSION
from ..metrics import Comparison, Estimate, PairedDifference, Summary, compare, failure, summarise
from ..scores import AnswerScore, FactScores, Kind, ProbeScores, Seen
from ..tuning.methods import ways
from . import figures
from .changes import Mark, mark, outcome
from .reading import ClassificationRun, EditingRun, UnreadableRunError, read_run

REPORT, COMPARISON = "report.html", "compare.html"

KINDS = get_args(Kind)
MARKS = [*Mark]
TITLES = {
    "rewrite": "The edited prompt",
    "rephrase": "Rephrased",
    "chat": "Asked in a chat",
    "portability": "What follows from it (portability)",
    "locality": "Neighbours (locality)",
    "claim": "Asked by the benchmark",
}


@dataclass(frozen=True)
class Drawing:
    """A figure in a page."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Tally:
    """Of one kind of probe, or of the facts, how many have which mark."""

    title: str
    good: int
    total: int
    marks: Mapping[Mark, int]


@dataclass(frozen=True)
class Line:
    """A row of a table of several runs: each run's mean, and each but the first's difference from the first."""

    label: str
    family: str
    means: Sequence[Estimate | None]
    differences: Sequence[PairedDifference | None]
    sub: bool = False
    """Whether it belongs to the row above."""


def write_report(folder: Path, summary: Summary | None = None) -> Path:
    """Write ``report.html`` into a run's folder, from the files that are there.

    Args:
        folder: of a run of knowledge editing or classification, also one that is not finished.
        summary: of a run of knowledge editing, where it is known already.

    Returns:
        The page.

    Raises:
        UnreadableRunError: there is no run, or nothing of its results.

    Example:
        >>> write_report(Path("results/lora-smollm2-001"))  # doctest: +SKIP
    """
    run = read_run(folder)
    page = editing_page(run, summary) if isinstance(run, EditingRun) else classification_page(run)
    return _written(folder / REPORT, page)


def write_comparison(folders: Sequence[Path], path: Path) -> list[tuple[str, str, Comparison]]:
    """Write a page with runs of knowledge editing side by side.

    Args:
        folders: the first is the one that the others are compared with, case by case.
        path: of the page.

    Returns:
        For each run but the first, the first's name, its own, and their comparison.

    Raises:
        UnreadableRunError: a folder holds no run of knowledge editing.
        ValueError: there are fewer than two, or they have no case in common.

    Example:
        >>> write_comparison([Path("results/a"), Path("results/b")], Path("compare.html"))  # doctest: +SKIP
    """
    if len(folders) < 2:
        raise ValueError("a comparison is of two runs or more")
    runs = []
    for folder in folders:
        run = read_run(folder)
        if not isinstance(run, EditingRun):
            raise UnreadableRunError(f"{folder} holds a classification run; runs of knowledge editing are compared")
        runs.append(run)
    names = distinct([folder.resolve() for folder in folders])
    compared = [compare(runs[0].scores, run.scores) for run in runs[1:]]
    for name, found in zip(names[1:], compared, strict=True):
        if not found.common:
            raise ValueError(f"{names[0]} and {name} have no case in common, so there is nothing to compare")
    _written(path, comparison_page(runs, names, compared))
    return [(names[0], name, found) for name, found in zip(names[1:], compared, strict=True)]


def distinct(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; equal paths get numbers.

    Example:
        >>> distinct([Path("/x/a/lora"), Path("/x/b/lora")])
        ['a/lora', 'b/lora']
    """
    longest = max(len(path.parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len({*names}) == len({*paths}):
            break
    count = Counter(names)
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names, 1)]


def editing_page(run: EditingRun, summary: Summary | None = None) -> str:
    """The page of one run of knowledge editing. ``summary``: of its scores, where it is known already."""
    summary = summary or summarise(run.scores)
    with figures.style():
        drawn = []
        if summary.metrics:
            drawn.append(("Before and after", figures.panel_metrics(summary)))
        if len(run.checkpoints) > 1:
            drawn += figures.panels_retention(run.checkpoints)
        drawn += figures.panels_reports(run.scores)
        drawings = [_drawing(title, figure) for title, figure in drawn]
    return _rendered(
        "run.html.jinja",
        title=f"{run.record.get('editor', 'run')}: {run.name}",
        run=run,
        summary=summary,
        tallies=tallies(run.scores),
        drawings=drawings,
        data=page_data([run], [run.name]),
    )


def comparison_page(runs: Sequence[EditingRun], names: Sequence[str], compared: Sequence[Comparison]) -> str:
    """The page of several runs beside each other. ``compared``: each but the first with the first."""
    summaries = {name: summarise(run.scores) for name, run in zip(names, runs, strict=True)}
    placed = {name: s for name, s in summaries.items() if not figures.unplaced({name: s})}
    with figures.style():
        drawings = []
        if placed:
            drawings.append(_drawing("Generalization against locality", figures.panel_tradeoff(placed)))
        if any("portability" in s.metrics for s in summaries.values()):
            drawings.append(_drawing("Portability", figures.panel_portability(summaries)))
    return _rendered(
        "comparison.html.jinja",
        title=f"{names[0]} beside {', '.join(names[1:])}",
        names=names,
        runs=runs,
        compared=compared,
        lines=comparison_lines([*summaries.values()], compared),
        tallies=[tallies(run.scores) for run in runs],
        differing=differing([run.record for run in runs]),
        drawings=drawings,
        data=page_data(runs, names),
    )


def classification_page(run: ClassificationRun) -> str:
    """The page of a classification run: its scores, and the pictures that it has drawn."""
    pictures = [
        (path.stem, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())
        for path in sorted(run.folder.glob("*.png"))
        if not path.name.startswith(".")
    ]
    return _rendered(
        "classification.html.jinja",
        title=f"{run.record.get('editor')} on {run.record.get('task')}: {run.folder.resolve().name}",
        run=run,
        rows=[*_scored(run.metrics.get("splits", {}))],
        pictures=pictures,
        data=None,
    )


# What the page's script draws from


def page_data(runs: Sequence[EditingRun], names: Sequence[str]) -> dict[str, object]:
    """Facts with their probes and texts before and after, in lists, for the page's script.

    A fact is [case id, prompt, new answer, text before, runs, probes]; in it a run is [mark, steps, loss, text after,
    error, notes], a probe [kind, group, prompt, answers, before, runs], and there a run is [after, mark]. ``before``
    and ``after`` are [generated text, share of right tokens, P(right), P(rival)]; a text after that is the one before
    is 0. What a run lacks is null.
    """
    groups: dict[str, int] = {}
    facts = [_fact(case, groups) for case in _cases(runs)]
    return {
        "runs": list(names),
        "kinds": [TITLES[kind] for kind in KINDS],
        "marks": [found.value for found in MARKS],
        "groups": [*groups],
        "facts": facts,
    }


def _cases(runs: Sequence[EditingRun]) -> Iterator[list[FactScores | None]]:
    """Each case that some run has, once for each run."""
    by_case: dict[str, list[FactScores | None]] = {}
    for i, run in enumerate(runs):
        for fact in _with_examples(run):
            by_case.setdefault(fact.case_id, [None] * len(runs))[i] = fact
    yield from by_case.values()


def _with_examples(run: EditingRun) -> Iterator[FactScores]:
    """The run's facts, and with some of them texts that it has generated beside what it measures."""
    shown = {fact.case_id: fact for fact in run.examples}
    for fact in run.scores:
        example = shown.get(fact.case_id)
        others = [] if example is None else [*example.probes]
        if all(probe.answers for probe in fact.probes):  # those without are asked only where all texts are written
            others = [probe for probe in others if probe.answers]
        if len(others) != len(fact.probes):
            yield fact
            continue
        probes = [
            own.model_copy(
                update={
                    side: getattr(own, side).model_copy(update={"generated": getattr(other, side).generated})
                    for side in ("base", "edited")
                }
            )
            for own, other in zip(fact.probes, others, strict=True)
        ]
        yield fact.model_copy(update={"probes": tuple(probes)})


def _fact(case: Sequence[FactScores | None], groups: dict[str, int]) -> list[object]:
    first = next(fact for fact in case if fact is not None)
    probes: dict[tuple[object, ...], list[ProbeScores | None]] = {}
    for i, fact in enumerate(case):
        seen: Counter[tuple[object, ...]] = Counter()
        for probe in fact.probes if fact else ():
            key = (probe.kind, probe.group, probe.prompt, probe.answers)
            seen[key] += 1  # a list may hold a probe twice
            probes.setdefault((*key, seen[key]), [None] * len(case))[i] = probe
    base = next((fact.base_text for fact in case if fact and fact.base_text is not None), None)
    return [
        first.case_id,
        first.prompt,
        first.target_new,
        base,
        [None if fact is None else _edit(fact, base) for fact in case],
        [_probe(found, first.target_new, groups) for found in probes.values()],
    ]


def _edit(fact: FactScores, base: str | None) -> list[object]:
    why = failure(fact)
    text = 0 if fact.edited_text is not None and fact.edited_text == base else fact.edited_text
    loss = None if fact.loss is None else round(fact.loss, 4)
    notes = list(fact.notes)
    return [MARKS.index(outcome(fact, why)), fact.steps, loss, text, why, notes]


def _probe(found: Sequence[ProbeScores | None], target_new: str, groups: dict[str, int]) -> list[object]:
    first = next(probe for probe in found if probe is not None)
    group = None if first.group == first.kind else groups.setdefault(first.group, len(groups))
    return [
        KINDS.index(first.kind),
        group,
        first.prompt,
        list(first.answers),
        _seen(first, first.base, None),
        [
            None
            if probe is None
            else [_seen(probe, probe.edited, first.base.generated), MARKS.index(mark(probe, target_new))]
            for probe in found
        ],
    ]


def _seen(probe: ProbeScores, seen: Seen, before: str | None) -> list[object]:
    text = 0 if before is not None and seen.generated == before else seen.generated
    shown: list[object] = [text, _short(_right(probe, seen))]
    if seen.contrast is not None:
        shown += [_short(_probability(seen.answers)), _short(_probability([seen.contrast]))]
    return shown


def _right(probe: ProbeScores, seen: Seen) -> float:
    """The share of an answer's tokens that is right; of a neighbour after the edit, the share that is unchanged."""
    if probe.kind == "locality" and seen is probe.edited:
        return sum(probe.same) / max(len(probe.same), 1)
    return max((sum(answer.correct) / max(len(answer.correct), 1) for answer in seen.answers), default=0.0)


def _probability(answers: Iterable[AnswerScore]) -> float | None:
    """The likeliest answer's probability by token, as :func:`~..metrics.preferred` has it."""
    logs = [answer.log_prob / len(answer.correct) for answer in answers if answer.correct]
    return math.exp(max(logs)) if logs and not any(map(math.isnan, logs)) else None


def _short(value: float | None) -> float | int | None:
    if value is None:
        return None
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


# Numbers of the page itself


def tallies(scores: Sequence[FactScores]) -> list[Tally]:
    """How many facts and probes have which mark: what a reader would see."""
    counted: dict[str, Counter[Mark]] = {kind: Counter() for kind in KINDS}
    facts = Counter(outcome(fact, failure(fact)) for fact in scores)
    for fact in scores:
        if failure(fact) is None:
            for probe in fact.probes:
                counted[probe.kind][mark(probe, fact.target_new)] += 1
    good = (Mark.LEARNED, Mark.KNEW, Mark.KEPT)
    titles = {
        "rephrase": "rephrasings learned",
        "chat": "chats learned",
        "portability": "consequences drawn",
        "locality": "neighbours kept",
    }
    return [
        Tally(title, sum(found[one] for one in good), found.total(), {one: found[one] for one in MARKS if found[one]})
        for title, found in (("facts learned", facts), *((titles[kind], counted[kind]) for kind in titles))
        if found
    ]


def comparison_lines(summaries: Sequence[Summary], compared: Sequence[Comparison]) -> Iterator[Line]:
    """The rows of a table of several runs; a metric that failures change has a second one."""
    found = {name: (m.label, m.family) for summary in summaries for name, m in summary.metrics.items()}
    for name, (label, family) in found.items():
        metrics = [summary.metrics.get(name) for summary in summaries]
        pairs = [comparison.metrics.get(name) for comparison in compared]
        yield Line(label, family, [None if m is None else m.edited for m in metrics], pairs)
        if any(m is not None and m.with_failures for m in (*metrics, *pairs)):
            means = [None if m is None else m.with_failures or m.edited for m in metrics]
            all_pairs = [None if m is None else m.with_failures or m for m in pairs]
            yield Line("failed as 0", family, means, all_pairs, sub=True)


def differing(records: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """The settings that runs do not share, each with every run's value.

    Example:
        >>> differing([{"hparams": {"lr": 1}}, {"hparams": {"lr": 2}}])
        [('hparams.lr', ['1', '2'])]
    """
    flat = [dict(_flat(record)) for record in records]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, "–") for one in flat]) for key in keys if key not in ("begun", "command")]
    return [(key, values) for key, values in rows if len({*values}) > 1]


def settings(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """A run's settings by name, nested ones as ``hparams.lr``; without its command, which stands elsewhere.

    Example:
        >>> settings({"seed": 0, "hparams": {"lr": 0.1, "sites": ["mlp_down"]}})
        [('seed', '0'), ('hparams.lr', '0.1'), ('hparams.sites', 'mlp_down')]
    """
    return [(key, value) for key, value in _flat(record) if key != "command"]


def _flat(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        elif isinstance(value, list) and all(isinstance(one, (str, int)) for one in value):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{prefix}{key}", "–" if value is None else json.dumps(value, ensure_ascii=False)


def _scored(splits: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Split, metric, mean and standard deviation over seeds, as text."""
    for split, scores in splits.items():
        for name, part in {**ways(scores), **scores.get("members", {})}.items():
            for metric, value in part.items():
                if isinstance(value, Mapping) and "mean" in value:
                    std = "–" if value.get("std") is None else f"{value['std']:.4f}"
                    yield f"{split} {name}".strip(), metric.replace("_", " "), f"{value['mean']:.4f}", std


# Templates


def _rendered(template: str, **given: object) -> str:
    return _environment().get_template(template).render(**given)


def _drawing(title: str, figure: Any) -> Drawing:
    return Drawing(title, Markup(figures.inline(figure, title)))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    folder = files(__package__ or "") / "templates"
    script = (folder / "facts.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        version=VERSION,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        settings=settings,
    )
    environment.filters.update(number=_number, interval=_interval, verdict=_verdict)
    return environment


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(round(value, 1) + 0.0, form)  # + 0.0: no "-0.0"


def _interval(found: Estimate | PairedDifference, form: str = ".1f") -> str:
    if found.low is None or found.high is None:
        return "–"
    return f"{_number(found.low, form)} … {_number(found.high, form)}"


def _verdict(found: PairedDifference) -> str:
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "even"
    return "better" if found.difference > 0 else "worse"


def _written(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole:
        whole.write_text(page, encoding="utf-8", errors="replace")
    return path
