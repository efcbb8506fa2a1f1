"""Pictures of a run: confusion matrix, scores by class, share of non-zeros and ranks against the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.figures import COLOURS, save
from ..tuning.training import Curves


def plot_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """Share of each true class (rows) that got each answer (columns), with the counts."""
    side = 2.2 + 0.8 * len(classes)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", dpi=150)
    axes = figure.subplots()
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, n in enumerate(row):
            colour = "white" if shares[i][j] > 0.6 else "black"
            axes.text(j, i, f"{100 * shares[i][j]:.0f} %\n{n}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(title, loc="left", fontsize=10)
    save(figure, path)


def plot_by_class(found: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Precision, recall and F1 of each class, a bar for each way to an answer; lines are standard deviations."""
    classes, height = [*next(iter(found.values()))], 0.8 / len(found)
    figure = Figure(figsize=(9, 1.2 + 0.13 * len(classes) * max(len(found), 3)), layout="constrained", dpi=150)
    for axes, metric in zip(figure.subplots(1, 3, sharey=True), ("precision", "recall", "f1"), strict=True):
        for i, (name, by_class) in enumerate(found.items()):
            scores = [by_class[one][metric] for one in classes]
            axes.barh(
                [at + (i - (len(found) - 1) / 2) * height for at in range(len(classes))],
                [100 * score["mean"] for score in scores],
                height,
                xerr=[100 * (score["std"] or 0) for score in scores],
                color=COLOURS[i % len(COLOURS)],
                error_kw={"elinewidth": 0.8},
                label=name,
            )
        axes.set_xlim(0, 105)
        axes.set_xlabel(f"{metric.replace('f1', 'F1')}, %")
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_yticks(range(len(classes)), classes)
    first.set_ylim(len(classes) - 0.5, -0.5)
    if len(found) > 1:
        figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save(figure, path)


def plot_nonzero(curves: Curves, seeds: Sequence[int], title: str, path: Path) -> None:
    """Share of the trained numbers that are not zero, a line for each seed."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained", dpi=150)
    axes = figure.subplots()
    for e, seed in enumerate(seeds):
        share = [100 * values[e] for values in curves.nonzero]
        axes.plot(curves.steps, share, color=COLOURS[e % len(COLOURS)], label=f"seed {seed}", linewidth=1.2)
    axes.set_ylim(0, 103)
    axes.set_xlabel("step")
    axes.set_ylabel("non-zero, % of trained numbers")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def plot_ranks(curves: Curves, seed: int, title: str, path: Path) -> None:
    """The rank at each site (rows) against the step (columns), of the first seed."""
    ranks = [at[0] for at in curves.ranks]
    sites = [*ranks[0]]
    figure = Figure(figsize=(6.5, 1.6 + 0.2 * len(sites)), layout="constrained", dpi=150)
    axes = figure.subplots()
    grid = [[at[site] for at in ranks] for site in sites]
    edge = (0, curves.steps[-1], len(sites) - 0.5, -0.5)
    image = axes.imshow(grid, cmap="viridis", vmin=0, aspect="auto", interpolation="nearest", extent=edge)
    axes.set_yticks(range(len(sites)), sites, fontsize=7)
    axes.set_xlabel("step")
    axes.set_title(f"{title}, seed {seed}", loc="left", fontsize=10)
    figure.colorbar(image, ax=axes, label="rank", ticks=MaxNLocator(integer=True))
    save(figure, path)
