"""Pictures in one style: curves with their spread, and values, visits and policies on a GridWorld's map. Colours: Okabe & Ito (2008)."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patheffects import withStroke

from metarl_np.gridworld import MOVES, PIT, START, WALL

COLOURS = dict(blue="#0072B2", orange="#E69F00", green="#009E73", red="#D55E00", purple="#CC79A7", sky="#56B4E9", black="#000000",
               grey="#777777")
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 110}
OUTLINE = [withStroke(linewidth=2, foreground="black")]  # legible on every colour of a map


def figure(width, height, columns=1, rows=1):
    """A figure of width × height inches (float) in the common style, and its axes as a flat list."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return fig, list(axes.flat)


def save(fig, folder, name):
    """Write folder/name.png, folder a pathlib.Path, and close the figure; returns the path (str)."""
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.png")
    plt.close(fig)
    return str(folder / f"{name}.png")


def curve(ax, x, mean, spread, *, label, colour, marker="o"):
    """One line with a band of mean ± spread: x, mean, spread (P,)."""
    x, mean, spread = (np.asarray(v) for v in (x, mean, spread))
    ax.plot(x, mean, color=COLOURS[colour], marker=marker, markersize=5 if len(x) < 30 else 0, label=label)
    ax.fill_between(x, mean - spread, mean + spread, color=COLOURS[colour], alpha=0.2, linewidth=0)


def heat_map(ax, grid, cells, *, label=None, vmin=None, vmax=None):
    """A number per cell (S,) as colours on the map of `grid`, walls grey, with a colour bar if `label` is given."""
    image = np.ma.masked_where(grid.kind(WALL), cells).reshape(grid.shape)
    shown = ax.imshow(image, cmap=plt.get_cmap("cividis").with_extremes(bad="#999999"), vmin=vmin, vmax=vmax)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for cell in np.flatnonzero(grid.kind(START, PIT)):
        r, c = divmod(cell, grid.shape[1])
        ax.text(c - 0.42, r - 0.42, grid.layout[r][c], ha="left", va="top", color="white", weight="bold", size=9, path_effects=OUTLINE)
    if label:
        ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)


def arrows(ax, grid, pi, goal, *, least=0.05):
    """A policy π (S, 4) as one arrow a move, as long as the move is likely, and a star on the goal cell."""
    style = dict(arrowstyle="-|>", color="white", lw=1.2, shrinkA=0, shrinkB=0, mutation_scale=7, path_effects=OUTLINE)
    for cell in np.setdiff1d(np.flatnonzero(~grid.kind(WALL, PIT)), goal):
        r, c = divmod(cell, grid.shape[1])
        for (dr, dc), p in zip(MOVES, pi[cell]):
            if p > least:
                ax.annotate("", (c + 0.45 * p * dc, r + 0.45 * p * dr), (c, r), arrowprops=style)
    ax.plot(goal % grid.shape[1], goal // grid.shape[1], marker="*", markersize=15, color=COLOURS["red"], markeredgecolor="white")
