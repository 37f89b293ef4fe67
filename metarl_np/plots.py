"""Pictures in one style: curves with their spread, bias, regret; values, visits and policies on a GridWorld's map; animations.
What draws does so into the Axes `ax` that it is given. Colours: Okabe & Ito (2008), and cividis on maps; both serve the colour-blind.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.patheffects import withStroke

from metarl_np.tasks.gridworld import MOVES, PIT, START, WALL

COLOURS = dict(
    blue="#0072B2",
    orange="#E69F00",
    green="#009E73",
    red="#D55E00",
    purple="#CC79A7",
    sky="#56B4E9",
    black="#000000",
    grey="#777777",
)


STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
}


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


def animate(fig, draw, frames, folder, name, *, fps=8, dpi=80):
    """Write folder/name.gif, which loops, and close the figure; returns the path (str). draw(x) draws anew for each x in frames, `fps` of
    them a second; equal ones in a row are stored once. The layout is the first frame's, so that nothing jumps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (writer := PillowWriter(fps)).saving(fig, folder / f"{name}.gif", dpi):
        for x in frames:
            draw(x)
            writer.grab_frame()
            fig.set_layout_engine("none")
    plt.close(fig)
    return str(folder / f"{name}.gif")


def curve(ax, x, mean, spread=None, *, label=None, colour, marker="o", line="-", width=1.5):
    """One line, with a band of mean ± spread if that is given: x, mean, spread (P,). More than 30 points have no markers."""
    x = np.asarray(x)
    mean = np.asarray(mean)
    ax.plot(
        x,
        mean,
        line,
        color=COLOURS[colour],
        marker=marker,
        markersize=5 if len(x) <= 30 else 0,
        label=label,
        linewidth=width,
    )
    if spread is not None:
        ax.fill_between(
            x, mean - spread, mean + spread, color=COLOURS[colour], alpha=0.2, linewidth=0
        )


def bound(ax, y, label="optimum"):
    """A dashed line at y, a number: what nobody can surpass."""
    ax.axhline(y, color=COLOURS["black"], linestyle="--", linewidth=1, label=label)


def bias(ax, x, size, error=0.0, *, label=None, colour, marker="o", line="-"):
    """The size of an estimator's bias, or standard deviation, against x, and the bias's standard error: (P,). Hollow where it is below two
    standard errors and cannot be told from none."""
    x, size, hollow = np.asarray(x), np.asarray(size), np.asarray(size) < 2 * np.asarray(error)
    curve(ax, x, size, label=label, colour=colour, marker=None, line=line, width=1.3)
    for shown, face in ((~hollow, COLOURS[colour]), (hollow, "white")):
        ax.plot(
            x[shown], size[shown], marker, color=COLOURS[colour], markersize=6, markerfacecolor=face
        )


def regret(ax, regrets, looks, *, unit="pull"):
    """Regret so far after each of n pulls: regrets {method: (n,)}, looks {method: (label, colour, line)}, drawn in the order of looks."""
    for method, (label, colour, line) in looks.items():
        curve(
            ax,
            np.arange(1, len(regrets[method]) + 1),
            regrets[method],
            label=label,
            colour=colour,
            line=line,
            marker=None,
        )
    ax.set(
        xlabel=unit, ylabel="expected regret so far (reward units)", ylim=(0, 1.3 * ax.dataLim.ymax)
    )  # with room for a legend


def heat_map(ax, grid, cells, *, label=None, vmin=None, vmax=None):
    """A number per cell (S,) as colours on the map of `grid`, walls grey, with a colour bar if `label` is given."""
    image = np.ma.masked_where(grid.kind(WALL), cells).reshape(grid.shape)
    shown = ax.imshow(
        image, cmap=plt.get_cmap("cividis").with_extremes(bad="#999999"), vmin=vmin, vmax=vmax
    )
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for cell in np.flatnonzero(grid.kind(START, PIT)):
        r, c = divmod(cell, grid.shape[1])
        ax.text(
            c - 0.42,
            r - 0.42,
            grid.layout[r][c],
            ha="left",
            va="top",
            color="white",
            weight="bold",
            size=9,
            path_effects=OUTLINE,
        )
    if label:
        ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)


def visits(ax, grid, counts, goal=None, *, label=None):
    """Visits per episode (S,) on the map, from 0 to 1 (more looks like 1), and a star on the goal, a cell, if it is given."""
    heat_map(ax, grid, counts, label=label, vmin=0, vmax=1)
    if goal is not None:
        _star(ax, grid, goal)


def arrows(ax, grid, pi, goal, *, least=0.05):
    """A policy π (S, 4) as one arrow a move, as long as the move is likely (none below `least`), and a star on the goal cell."""
    cell, move = np.nonzero(
        (pi > least) & ~(grid.kind(WALL, PIT) | (np.arange(len(pi)) == goal))[:, None]
    )
    r, c = np.divmod(cell, grid.shape[1])
    dr, dc = 0.45 * pi[cell, move] * MOVES[move].T
    ax.quiver(
        c,
        r,
        dc,
        dr,
        angles="xy",
        scale_units="xy",
        scale=1,
        units="xy",
        width=0.07,
        headwidth=4,
        headlength=4,
        headaxislength=3.5,
        color="white",
        edgecolor="black",
        linewidth=0.5,
    )
    _star(ax, grid, goal)


def _star(ax, grid, cell):
    ax.plot(
        *np.divmod(cell, grid.shape[1])[::-1],
        "*",
        markersize=15,
        color=COLOURS["red"],
        markeredgecolor="white",
    )
