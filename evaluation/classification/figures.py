"""Pictures of a run: confusion matrix, share of non-zeros and ranks against the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
