"""Pictures of runs: editors side by side, what edits report by site, what is left of many edits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...engine.files import replacing
from ..metrics import Estimate, Summary
from ..retention import Checkpoint
from ..scores import FactScores

# Okabe and Ito's palette, told apart by colour-blind readers too; its yellow is too pale on white for text. After it,
# four of Paul Tol's "muted" colours and a brown of ColorBrewer's.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"),
    *("#882255", "#999933", "#332288", "#44AA99", "#A6761D"),
)
_SITE = re.compile(r".*?\.(\d+)\.(.+)")  # a module's name: its block, and its place in the block


def plot_locality_success(summaries: Mapping[str, Summary], path: str | os.PathLike[str]) -> None:
    """Locality against edit success, one point per editor, beside portability as bars; all ``token_em``.

    Lines through points and bars are 95 % intervals, black ticks the unedited model. The suffix of ``path`` chooses
    the format (png, svg, pdf).

    Raises ValueError naming the summaries that lack edit success or locality.
    """
    lacking = [
        name for name, summary in summaries.items() if not {"edit_success", "locality"} <= summary.metrics.keys()
    ]
    if lacking or not summaries:
        raise ValueError(f"nothing to plot: no edit success or locality in {', '.join(lacking) or 'no summaries'}")

    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(summaries)}
    figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=150)
    scatter, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    _scatter(scatter, summaries, colours)
    _bars(bars, summaries, colours)
    for axes in (scatter, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)

    save(figure, path)


def plot_reports(scores: Sequence[FactScores], folder: Path) -> None:
    """A figure for each thing that edits report by site: ``ranks.png``, say, in a run's folder."""
    for key in sorted({key for fact in scores for key in fact.report}):
        values = [fact.report[key] for fact in scores if key in fact.report]
        plot_sites(values, folder / f"{key}.png", title=key.capitalize().replace("_", " "))


def plot_sites(values: Sequence[Mapping[str, float]], path: str | os.PathLike[str], *, title: str) -> None:
    """Where edits have put their rank, say: the mean over edits at each site, blocks from left to right.

    ``values``: for each edit a number by module name, such as the ``ranks`` of ``FactScores.report``. The suffix of
    ``path`` chooses the format. Raises ValueError if there is no edit.
    """
    if not values:
        raise ValueError("nothing to plot: no edit has a number for each site")

    sites = {(int(found[1]), found[2]): name for name in values[0] if (found := _SITE.fullmatch(name))}
    means = {site: fmean(edit[name] for edit in values) for site, name in sites.items()}
    blocks, maps = sorted({block for block, _ in sites}), [*dict.fromkeys(place for _, place in sites)]
    grid = [[means.get((block, place), float("nan")) for block in blocks] for place in maps]
    figure = Figure(figsize=(2.5 + 0.36 * len(blocks), 1.5 + 0.36 * len(maps)), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (block, place), mean in means.items():
        colour = "white" if mean > 0.6 * max(means.values()) else "black"
        label = f"{mean:.3g}" if mean >= 1 else f"{mean:.2g}"
        axes.text(blocks.index(block), maps.index(place), label, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(blocks)), map(str, blocks))
    axes.set_yticks(range(len(maps)), maps)
    axes.set_xlabel("block")
    axes.set_title(f"{title} by site" + (f" (mean of {len(values)} edits)" if len(values) > 1 else ""), loc="left")
    save(figure, path)


def plot_retention(checkpoints: Sequence[Checkpoint], path: str | os.PathLike[str]) -> None:
    """Retention against the number of edits: metrics of all facts edited so far, edit success by the age of the edit,
    and perplexity where it was measured.

    Bands are 95 % intervals. The suffix of ``path`` chooses the format. Raises ValueError if there is no checkpoint.
    """
    if not checkpoints:
        raise ValueError("nothing to plot: there is no checkpoint")

    measured = [point for point in checkpoints if point.perplexity]
    figure = Figure(figsize=(14 if measured else 9.6, 4.8), layout="constrained", dpi=150)
    panels = figure.subplots(1, 3 if measured else 2)
    _overall(panels[0], checkpoints)
    _by_age(panels[1], checkpoints)
    if measured:
        _perplexity(panels[2], measured)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, path)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all; the suffix of ``path`` chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole:
        figure.savefig(whole, format=path.suffix.removeprefix(".") or "png")


def _scatter(axes: Axes, summaries: Mapping[str, Summary], colours: Mapping[str, str]) -> None:
    points = {name: (s.metrics["edit_success"].edited, s.metrics["locality"].edited) for name, s in summaries.items()}
    for name, (success, locality) in points.items():
        axes.errorbar(
            success.mean,
            locality.mean,
            xerr=_error(success),
            yerr=_error(locality),
            fmt="o",
            markersize=8,
            elinewidth=1.2,
            color=colours[name],
            alpha=0.9,
        )
    ends = {name: _ends(success) for name, (success, _) in points.items()}
    left = max(-3, min(80, *(low for low, _ in ends.values())) - 5)
    width = 103 - left
    axes.set_xlim(left, 103)
    axes.set_ylim(-3, 103)
    for side in (-1, 1):  # names stand on the side where there is room, and share a side without touching
        names = [name for name, (success, _) in points.items() if (success.mean < left + width / 2) == (side > 0)]
        names.sort(key=lambda name: points[name][1].mean)
        heights = _spread([points[name][1].mean for name in names], gap=6, ceiling=100)
        for name, height in zip(names, heights, strict=True):
            x = ends[name][1] + 0.02 * width if side > 0 else ends[name][0] - 0.02 * width
            ha = "left" if side > 0 else "right"
            axes.text(x, height, name, ha=ha, va="center", color=colours[name], fontweight="bold")
            at = [metric.mean for metric in points[name]]
            axes.plot([x, at[0]], [height, at[1]], color=colours[name], linewidth=0.7, alpha=0.6, zorder=1)
    axes.set_xlabel("edit success (token_em, %) →")
    axes.set_ylabel("locality (token_em, %) →")
    axes.set_title("Locality against edit success", loc="left")
    axes.grid(alpha=0.25)


def _bars(axes: Axes, summaries: Mapping[str, Summary], colours: Mapping[str, str]) -> None:
    for place, (name, summary) in enumerate(summaries.items()):
        if (metric := summary.metrics.get("portability")) is None:
            axes.text(0, place, " no portability probes", va="center", color="#777777")
            continue
        mean, error = metric.edited.mean, _error(metric.edited)
        axes.barh(place, mean, height=0.6, xerr=error, color=colours[name], ecolor="#333333", error_kw={"lw": 1.2})
        if metric.base:
            axes.plot([metric.base.mean] * 2, [place - 0.38, place + 0.38], color="black", linewidth=2)
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
    axes.axhline(base, color="#555555", linestyle=":", label="unedited")
    axes.set_xscale("log")
    if finite and max(y for _, y in finite) > 10 * base:
        axes.set_yscale("log")
    _counted(axes, [x for x, _ in points])
    axes.set_xlabel("edits made on one model")
    axes.set_title(f"Perplexity ({points[0][1].tokens} tokens)", loc="left")
    axes.legend(frameon=False)


def _band(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: str, label: str) -> None:
    """A line through the means within their intervals."""
    if not points:
        return
    x = [place for place, _ in points]
    low, high = zip(*(_ends(estimate) for _, estimate in points), strict=True)
    axes.plot(x, [estimate.mean for _, estimate in points], marker="o", markersize=4, color=colour, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _counted(axes: Axes, places: Sequence[int]) -> None:
    axes.set_xticks(places, map(str, places))
    axes.set_xticks([], minor=True)


def _percent(axes: Axes) -> None:
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The interval widened to hold the mean, which percentiles need not do; of no width where there is none."""
    bounds = [bound for bound in (estimate.low, estimate.mean, estimate.high) if bound is not None]
    return min(bounds), max(bounds)


def _error(estimate: Estimate) -> list[list[float]]:
    """:func:`_ends` as matplotlib wants it: (2, 1) distances below and above the mean."""
    low, high = _ends(estimate)
    return [[estimate.mean - low], [high - estimate.mean]]


def _spread(heights: Sequence[float], *, gap: float, ceiling: float) -> list[float]:
    """Ascending heights moved apart, up first, until neighbours are ``gap`` apart and none is above the ceiling."""
    up: list[float] = []
    for height in heights:
        up.append(max(height, up[-1] + gap if up else height))
    down: list[float] = []
    for height in reversed(up):
        down.append(min(height, down[-1] - gap if down else ceiling))
    return down[::-1]
