"""Pictures in one style: curves, bias, regret; values, visits and policies on a map; animations.

What draws does so into the Axes `ax` that it is given. Colours are those of Okabe & Ito (2008), and
cividis on maps: both serve the colour-blind.
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
    """A figure of width × height inches, in the common style, and its axes as a flat list."""
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return fig, list(axes.flat)


def save(fig, folder, name):
    """Write folder/name.png, folder a pathlib.Path, and close the figure; gives the path (str)."""
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.png")
    plt.close(fig)
    return str(folder / f"{name}.png")


def animate(fig, draw, frames, folder, name, *, fps=8, dpi=80):
    """Write folder/name.gif, which loops, and close the figure; returns the path (str).

    draw(x) draws anew for each x in frames, `fps` of them a second; equal ones in a row are stored
    once. The layout is the first frame's, so that nothing jumps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.gif"
    writer = PillowWriter(fps)
    with writer.saving(fig, path, dpi):
        for x in frames:
            draw(x)
            writer.grab_frame()
            fig.set_layout_engine("none")
    plt.close(fig)
    return str(path)


def curve(ax, x, mean, spread=None, *, label=None, colour, marker="o", line="-", width=1.5):
    """One line, with a band of mean ± spread if that is given: x, mean, spread (P,).

    More than 30 points have no markers.
    """
    x = np.asarray(x)
    mean = np.asarray(mean)
    colour = COLOURS[colour]
    size = 5 if len(x) <= 30 else 0
    look = dict(color=colour, marker=marker, markersize=size, linewidth=width)
    ax.plot(x, mean, line, label=label, **look)
    if spread is not None:
        ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def bound(ax, y, label="optimum"):
    """A dashed line at y, a number: what nobody can surpass."""
    ax.axhline(y, color=COLOURS["black"], linestyle="--", linewidth=1, label=label)


def bias(ax, x, size, error=0.0, *, label=None, colour, marker="o", line="-"):
    """The size of a bias, or a standard deviation, against x, with the bias's standard error: (P,).

    A marker is hollow where the bias is below two standard errors, so that it may be zero.
    """
    x = np.asarray(x)
    size = np.asarray(size)
    hollow = size < 2 * np.asarray(error)
    curve(ax, x, size, label=label, colour=colour, marker=None, line=line, width=1.3)
    for shown, face in ((~hollow, COLOURS[colour]), (hollow, "white")):
        look = dict(color=COLOURS[colour], markersize=6, markerfacecolor=face)
        ax.plot(x[shown], size[shown], marker, **look)


def regret(ax, regrets, looks, *, unit="pull"):
    """Regret so far after each of n pulls: regrets {method: (n,)}.

    looks: {method: (label, colour, line)}, drawn in that order.
    """
    for method, (label, colour, line) in looks.items():
        pulls = np.arange(1, len(regrets[method]) + 1)
        curve(ax, pulls, regrets[method], label=label, colour=colour, line=line, marker=None)
    with_room_for_a_legend = (0, 1.3 * ax.dataLim.ymax)
    ylabel = "expected regret so far (reward units)"
    ax.set(xlabel=unit, ylabel=ylabel, ylim=with_room_for_a_legend)


def heat_map(ax, grid, cells, *, label=None, vmin=None, vmax=None):
    """A number per cell (S,) as colours on the map of `grid`, with a colour bar if it has a label.

    Walls are grey.
    """
    image = np.ma.masked_where(grid.kind(WALL), cells).reshape(grid.shape)
    colours = plt.get_cmap("cividis").with_extremes(bad="#999999")
    shown = ax.imshow(image, cmap=colours, vmin=vmin, vmax=vmax)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    look = dict(ha="left", va="top", color="white", weight="bold", size=9, path_effects=OUTLINE)
    for cell in np.flatnonzero(grid.kind(START, PIT)):
        row, column = divmod(cell, grid.shape[1])
        ax.text(column - 0.42, row - 0.42, grid.layout[row][column], **look)
    if label:
        ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)


def visits(ax, grid, counts, goal=None, *, label=None):
    """Visits per episode (S,) on the map, from 0 to 1 (more looks like 1), a star on the goal."""
    heat_map(ax, grid, counts, label=label, vmin=0, vmax=1)
    if goal is not None:
        _star(ax, grid, goal)


def arrows(ax, grid, pi, goal, *, least=0.05):
    """A policy π (S, 4) as one arrow a move, as long as the move is likely, and a star on the goal.

    Moves less likely than `least` have none.
    """
    ends = grid.kind(WALL, PIT) | (np.arange(len(pi)) == goal)
    cell, move = np.nonzero((pi > least) & ~ends[:, None])
    row, column = np.divmod(cell, grid.shape[1])
    down, right = 0.45 * pi[cell, move] * MOVES[move].T
    in_cells = dict(angles="xy", scale_units="xy", scale=1, units="xy")
    head = dict(width=0.07, headwidth=4, headlength=4, headaxislength=3.5)
    look = dict(color="white", edgecolor="black", linewidth=0.5)
    ax.quiver(column, row, right, down, **in_cells, **head, **look)
    _star(ax, grid, goal)


def _star(ax, grid, cell):
    row, column = np.divmod(cell, grid.shape[1])
    look = dict(markersize=15, color=COLOURS["red"], markeredgecolor="white")
    ax.plot(column, row, "*", **look)
