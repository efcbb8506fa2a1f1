"""Pictures of runs: editors side by side, what edits report by site, what is left of many edits."""

from __future__ import annotations

import io
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from ...engine.files import replacing
from ..metrics import Estimate, Summary
from ..retention import Checkpoint
from ..scores import FactScores

# Okabe and Ito's palette, told apart by colour-blind readers too, without its yellow, which is too pale on white. After
# it, colours near four of Paul Tol's "muted" ones and a brown of ColorBrewer's, that show on black as well.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"),
    *("#A83268", "#999933", "#7A6BD1", "#44AA99", "#A6761D"),
)
MARKERS = "osD^vP*Xph<>"
_SITE = re.compile(r".*?\.(\d+)\.(.+)")  # a module's name: its block, and its name in the block


def plot_generalization_locality(summaries: Mapping[str, Summary], path: str | os.PathLike[str]) -> None:
    """Generalization against locality, one point an editor, beside portability as bars; all ``token_em``.

    What an edit learns beyond its own prompt is bought with what it does to others, so this is where editors differ;
    edit success is near 100 for all.

    Args:
        summaries: by the name that is shown.
        path: its suffix chooses the format (png, svg, pdf).

    Raises:
        ValueError: naming the summaries that lack generalization or locality.

    Example:
        >>> plot_generalization_locality({"LoRA": a, "RoseLoRA": b}, "editors.png")  # doctest: +SKIP
    """
    lacking = unplaced(summaries)
    if lacking or not summaries:
        raise ValueError(f"nothing to plot: no generalization or locality in {', '.join(lacking) or 'no summaries'}")
    with style():
        figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
        scatter, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        colours = _colours(summaries)
        _scatter(scatter, summaries, colours)
        _bars(bars, summaries, colours)
        for axes in (scatter, bars):
            _bare(axes)
    save(figure, path)


def unplaced(summaries: Mapping[str, Summary]) -> list[str]:
    """The names of those that have no point in generalization against locality.

    Example:
        >>> unplaced({})
        []
    """
    return [name for name, s in summaries.items() if not {"generalization", "locality"} <= s.metrics.keys()]


# Panels, each a figure of its own for a page


@contextmanager
def style() -> Iterator[None]:
    """Names that users have given are text: ``$`` begins no formula."""
    with rc_context({"text.parse_math": False, "svg.fonttype": "none", "font.size": 10, "axes.titlesize": 11}):
        yield


def panel_tradeoff(summaries: Mapping[str, Summary]) -> Figure:
    """The left half of :func:`plot_generalization_locality`."""
    figure, axes = _panel(6.4, 4.2)
    _scatter(axes, summaries, _colours(summaries))
    return figure


def panel_portability(summaries: Mapping[str, Summary]) -> Figure:
    """The right half of :func:`plot_generalization_locality`."""
    figure, axes = _panel(5.2, 1.2 + 0.34 * len(summaries))
    _bars(axes, summaries, _colours(summaries))
    return figure


def panel_metrics(summary: Summary) -> Figure:
    """A run's shares before (ring) and after (dot) the edits, with intervals, by family."""
    shown = [m for m in summary.metrics.values() if m.family != "fluency" and "margin" not in m.label]
    figure, axes = _panel(5.6, 1.1 + 0.25 * (len(shown) + len({metric.family for metric in shown})))
    y, ticks = 0.0, []
    for colour, (family, metrics) in zip(
        cycle(COLOURS), groupby(shown, key=lambda metric: metric.family), strict=False
    ):
        y += 0.9
        axes.text(0, y - 0.75, family, style="italic", va="center", fontsize=9)
        for metric in metrics:
            low, high = _ends(metric.edited)
            axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
            if metric.base:
                axes.plot([metric.base.mean, metric.edited.mean], [y, y], color=colour, linewidth=0.8)
                axes.plot(metric.base.mean, y, marker="o", markersize=6, fillstyle="none", color=colour)
            axes.plot(metric.edited.mean, y, marker="o", markersize=6, color=colour)
            ticks.append((y, metric.label))
            y += 1
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(y - 0.4, -0.4)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("%")
    axes.set_title("Before (ring) and after (dot), with 95 % intervals", loc="left")
    axes.grid(axis="x", alpha=0.25)
    return figure


def panels_retention(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, Figure]]:
    """The parts of :func:`plot_retention`, each with its name."""
    figure, axes = _panel(5.4, 4.4)
    _overall(axes, checkpoints)
    yield "What is left of all edits so far", figure
    figure, axes = _panel(5.4, 4.4)
    _by_age(axes, checkpoints)
    yield "Edit success by age", figure
    if measured := [point for point in checkpoints if point.perplexity]:
        figure, axes = _panel(5.4, 3.6)
        _perplexity(axes, measured)
        yield "Perplexity", figure
    if moved := [point for point in checkpoints if point.norm is not None]:
        figure, axes = _panel(5.4, 3.6)
        _norm(axes, moved)
        yield "Norm of the change", figure


def panels_reports(scores: Sequence[FactScores]) -> Iterator[tuple[str, Figure]]:
    """A figure for each thing that edits report by site, with its name."""
    for key in sorted({key for fact in scores for key in fact.report}):
        title = key.capitalize().replace("_", " ")
        yield f"{title} by site", sites(_reported(scores, key), title)


def _reported(scores: Sequence[FactScores], key: str) -> list[dict[str, int | float]]:
    """What each edit says; once where all facts say the same, as those of one edit do."""
    values = [fact.report[key] for fact in scores if key in fact.report]
    return values[:1] if all(value == values[0] for value in values) else values


def inline(figure: Figure, salt: str) -> str:
    """A figure as SVG for a page, whose colour its lines and letters take.

    Args:
        figure: drawn within :func:`style`.
        salt: another one for each figure of a page, so that what they refer to by name is their own.

    Returns:
        An ``<svg>`` element.
    """
    buffer = io.StringIO()
    with style(), rc_context({"svg.hashsalt": salt}), _any_letters():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", text)  # names that nothing refers to, alike in every figure
    return re.sub(r"#000000\b", "currentColor", text)


def plot_reports(scores: Sequence[FactScores], folder: Path) -> None:
    """A figure for each thing that edits report by site: ``ranks.png``, say, in a run's folder."""
    for key in sorted({key for fact in scores for key in fact.report}):
        plot_sites(_reported(scores, key), folder / f"{key}.png", title=key.capitalize().replace("_", " "))


def plot_sites(values: Sequence[Mapping[str, float]], path: str | os.PathLike[str], *, title: str) -> None:
    """Where edits have put their rank, say: the mean over edits at each site, blocks from left to right.

    ``values``: for each edit a number by module name, such as the ``ranks`` of ``FactScores.report``. The suffix of
    ``path`` chooses the format. Raises ValueError if there is no edit.
    """
    if not values:
        raise ValueError("nothing to plot: no edit has a number for each site")
    with style():
        save(sites(values, title), path)


def sites(values: Sequence[Mapping[str, float]], title: str) -> Figure:
    """What :func:`plot_sites` saves."""
    names = {(int(found[1]), found[2]): name for name in values[0] if (found := _SITE.fullmatch(name))}
    means = {site: fmean(edit[name] for edit in values) for site, name in names.items()}
    blocks, maps = sorted({block for block, _ in names}), [*dict.fromkeys(name for _, name in names)]
    grid = [[means.get((block, name), float("nan")) for block in blocks] for name in maps]
    said = f"{title} by site" + (f" (mean of {len(values)} edits)" if len(values) > 1 else "")
    width = max(3.4, 0.4 * len(blocks))  # of the axes, in inches: room for the title
    labels = 0.3 + 0.08 * max(map(len, maps), default=0)
    figure, axes = _panel(labels + width, 1.2 + 0.4 * len(maps))
    top = max(means.values(), default=0) or 1
    # Drawn as shapes, which stay sharp in a page; an image would not.
    edges = [np.arange(len(along) + 1) - 0.5 for along in (blocks, maps)]
    axes.pcolormesh(*edges, np.array(grid), cmap="Blues", vmin=0, vmax=top)
    axes.invert_yaxis()
    for (block, name), mean in means.items():
        colour = "white" if mean > 0.6 * top else "#111111"
        label = f"{mean:.3g}" if mean >= 1 else f"{mean:.2g}"
        axes.text(blocks.index(block), maps.index(name), label, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(blocks)), map(str, blocks))
    axes.set_yticks(range(len(maps)), maps)
    axes.set_xlabel("block")
    axes.set_title(textwrap.fill(said, int(11 * width)), loc="left")
    axes.spines[:].set_visible(False)
    return figure


def plot_retention(checkpoints: Sequence[Checkpoint], path: str | os.PathLike[str]) -> None:
    """Retention against the number of edits: metrics of all facts edited so far, edit success by the age of the edit,
    perplexity where it was measured, and how far the weights have moved.

    Bands are 95 % intervals. The suffix of ``path`` chooses the format. Raises ValueError if there is no checkpoint.
    """
    if not checkpoints:
        raise ValueError("nothing to plot: there is no checkpoint")

    parts: list[tuple[Callable[[Axes, Sequence[Checkpoint]], None], Sequence[Checkpoint]]] = [
        (_overall, checkpoints),
        (_by_age, checkpoints),
        (_perplexity, [point for point in checkpoints if point.perplexity]),
        (_norm, [point for point in checkpoints if point.norm is not None]),
    ]
    parts = [(draw, points) for draw, points in parts if points]
    with style():
        figure = Figure(figsize=(5 * len(parts), 4.8), layout="constrained", dpi=150)
        panels = figure.subplots(1, len(parts))
        for axes, (draw, points) in zip(panels, parts, strict=True):
            draw(axes, points)
            _bare(axes)
    save(figure, path)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all; the suffix of ``path`` chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole, style(), _any_letters():
        figure.savefig(whole, format=path.suffix.removeprefix(".") or "png")


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _colours(names: Iterable[str]) -> dict[str, str]:
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


@contextmanager
def _any_letters() -> Iterator[None]:
    """Without matplotlib's warnings about letters of a name that its font does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def _scatter(axes: Axes, summaries: Mapping[str, Summary], colours: Mapping[str, str]) -> None:
    points = {name: (s.metrics["generalization"].edited, s.metrics["locality"].edited) for name, s in summaries.items()}
    for i, (name, (generalization, locality)) in enumerate(points.items()):
        axes.errorbar(
            generalization.mean,
            locality.mean,
            xerr=_error(generalization),
            yerr=_error(locality),
            fmt=MARKERS[i % len(MARKERS)],
            markersize=7,
            elinewidth=1,
            color=colours[name],
            ecolor=to_rgba(colours[name], 0.35),
        )
    axes.set_xlim(_around([generalization for generalization, _ in points.values()]))
    axes.set_ylim(_around([locality for _, locality in points.values()]))
    _named(axes, [(found[0].mean, found[1].mean) for found in points.values()], [*points], [*colours.values()])
    axes.set_xlabel("generalization (token_em, %) →")
    axes.set_ylabel("locality (token_em, %) →")
    axes.set_title("Generalization against locality", loc="left")
    axes.grid(alpha=0.25)


def _named(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str]) -> None:
    """Names in a column beside the axes, each joined to its point by a line; no two lines cross.

    Of all ways to join points to labels, the one whose lines are shortest in sum has none that cross: exchanging the
    ends of two that do would make it shorter. Crossing is the same in any affine coordinates, so the axes' own will do.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    inside = np.array([((x - left) / (right - left), (y - bottom) / (top - bottom)) for x, y in points])
    slots = np.array([(1.06, y) for y in np.linspace(0, 1, max(len(points), 18))])
    lengths = np.linalg.norm(inside[:, None] - slots[None], axis=2)
    for i, slot in zip(*linear_sum_assignment(lengths), strict=True):
        x, y = slots[slot]
        axes.annotate(
            names[i],
            points[i],
            xytext=(x + 0.01, y),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            fontsize=9,
        )
        ends = [inside[i][0], x], [inside[i][1], y]
        line = {"color": colours[i], "linewidth": 1.3, "linestyle": ":"}
        axes.plot(*ends, **line, transform=axes.transAxes, clip_on=False, zorder=1)


def _bars(axes: Axes, summaries: Mapping[str, Summary], colours: Mapping[str, str]) -> None:
    for row, (name, summary) in enumerate(summaries.items()):
        if (metric := summary.metrics.get("portability")) is None:
            axes.text(0, row, " no portability probes", va="center", color="#777777")
            continue
        mean, error = metric.edited.mean, _error(metric.edited)
        axes.barh(row, mean, height=0.6, xerr=error, color=colours[name], ecolor="#888888", error_kw={"lw": 1.2})
        if metric.base:
            axes.plot([metric.base.mean] * 2, [row - 0.38, row + 0.38], color="black", linewidth=2)
    axes.set_yticks(range(len(summaries)), list(summaries))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("portability (token_em, %) →")
    axes.set_title("Portability (tick: unedited)", loc="left")
    axes.grid(axis="x", alpha=0.25)


def _overall(axes: Axes, checkpoints: Sequence[Checkpoint]) -> None:
    for colour, name in zip(COLOURS, ("edit_success", "generalization", "locality", "portability"), strict=False):
        points = [(point.edits, found) for point in checkpoints if (found := point.summary.metrics.get(name))]
        _band(axes, [(x, found.edited) for x, found in points], colour, points[0][1].label if points else "")
        based = [(x, found.base.mean) for x, found in points if found.base]
        axes.plot(*zip(*based, strict=True) if based else ([], []), color=colour, linestyle=":", linewidth=1.2)
    axes.set_xscale("log")
    _counted(axes, [point.edits for point in checkpoints])
    axes.set_xlabel("edits made on one model")
    axes.set_ylabel("token_em, %, all facts so far (dotted: unedited)")
    axes.set_title("What is left", loc="left")
    _percent(axes)


def _by_age(axes: Axes, checkpoints: Sequence[Checkpoint]) -> None:
    for colour, point in zip(cycle(COLOURS), checkpoints[::-1], strict=False):
        groups = [
            ((group.youngest + group.oldest) / 2, group.metrics["edit_success"])
            for group in point.by_age
            if "edit_success" in group.metrics
        ]
        _band(axes, groups, colour, f"after {point.edits} edits" if point.edits > 1 else "after 1 edit")
    axes.set_xscale("symlog", linthresh=1)
    ages = sorted({age for point in checkpoints for age in (0, 10 ** (len(str(point.edits)) - 1))})
    _counted(axes, ages)
    axes.set_xlabel("age: edits made since")
    axes.set_ylabel("edit success (token_em, %)")
    axes.set_title("Edit success by age", loc="left")
    _percent(axes)


def _perplexity(axes: Axes, checkpoints: Sequence[Checkpoint]) -> None:
    points = [(point.edits, point.perplexity) for point in checkpoints if point.perplexity]
    finite = [(x, found.edited) for x, found in points if found.edited is not None]
    axes.plot(*zip(*finite, strict=True) if finite else ([], []), marker="o", color=COLOURS[1], label="edited")
    base = points[0][1].base
    assert base is not None, "the unedited model's perplexity is a number"
    axes.axhline(base, color="#777777", linestyle=":", label="unedited")
    axes.set_xscale("log")
    if finite and max(y for _, y in finite) > 10 * base:
        axes.set_yscale("log")
    _counted(axes, [x for x, _ in points])
    axes.set_xlabel("edits made on one model")
    axes.set_title(f"Perplexity ({points[0][1].tokens} tokens)", loc="left")
    axes.legend(frameon=False)


def _norm(axes: Axes, checkpoints: Sequence[Checkpoint]) -> None:
    axes.plot([p.edits for p in checkpoints], [p.norm or 0.0 for p in checkpoints], marker="o", color=COLOURS[2])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _counted(axes, [point.edits for point in checkpoints])
    axes.set_xlabel("edits made on one model")
    axes.set_title("Norm of the change of weights", loc="left")


def _band(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: str, label: str) -> None:
    """A line through the means within their intervals."""
    if not points:
        return
    x = [count for count, _ in points]
    low, high = zip(*(_ends(estimate) for _, estimate in points), strict=True)
    axes.plot(x, [estimate.mean for _, estimate in points], marker="o", markersize=4, color=colour, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _counted(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xticks(counts, map(str, counts))
    axes.set_xticks([], minor=True)


def _percent(axes: Axes) -> None:
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The interval widened to hold the mean, which percentiles need not do; of no width where there is none."""
    bounds = [bound for bound in (estimate.low, estimate.mean, estimate.high) if bound is not None]
    return min(bounds), max(bounds)


def _around(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Limits that leave some room around all intervals."""
    low, high = min(_ends(e)[0] for e in estimates), max(_ends(e)[1] for e in estimates)
    margin = 0.04 * max(high - low, 5)
    return low - margin, high + margin


def _error(estimate: Estimate) -> list[list[float]]:
    """:func:`_ends` as matplotlib wants it: (2, 1) distances below and above the mean."""
    low, high = _ends(estimate)
    return [[estimate.mean - low], [high - estimate.mean]]
