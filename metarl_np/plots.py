"""Pictures in one style: curves, maps of a GridWorld, and animations.

The only section that imports matplotlib. A function that draws does so into the matplotlib Axes
`ax` that it is given. A colour is a name from COLOURS (Okabe & Ito 2008); maps are in cividis. The
colour-blind can tell both.
"""

import os
from importlib.util import find_spec

# A notebook names its own backend to the programs that it starts. Where that is not installed,
# matplotlib could not be imported.
if os.environ.get("MPLBACKEND", "").startswith("module://"):
    package = os.environ["MPLBACKEND"].removeprefix("module://").split(".")[0]
    if find_spec(package) is None:
        os.environ["MPLBACKEND"] = "Agg"

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from metarl_np.arguments import require, require_floats
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

# letters with this outline are legible on every colour of a map
OUTLINE = [withStroke(linewidth=2, foreground="black")]


# ---- figures and files


def figure(width, height, columns=1, rows=1):
    """A figure in the common style, and its axes as a flat list, row by row.

    width, height: of the figure, in inches.
    columns, rows: how many axes stand side by side, and one above the other.
    """
    plt.rcParams.update(STYLE)
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return fig, list(axes.flat)


def save(fig, folder, name):
    """Write folder/name.png and close the figure; returns the path, a string.

    folder: a pathlib.Path; it is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    fig.savefig(path)
    plt.close(fig)
    return str(path)


def animate(fig, draw, frames, folder, name, *, fps, dpi):
    """Write folder/name.gif, which loops, and close the figure; returns the path, a string.

    draw: draw(x) draws the figure anew, for each x in `frames`. Equal frames in a row are stored
        once. The layout of the first frame is kept, so that nothing jumps.
    folder: a pathlib.Path; it is made if it is not there.
    fps: frames a second.
    dpi: pixels an inch.
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


# ---- curves


def _require_axes(ax):
    require(isinstance(ax, Axes), "ax", f"{ax!r:.99} is no matplotlib Axes")


def _colour(name):
    known = isinstance(name, str) and name in COLOURS
    require(known, "colour", f"{name!r:.99} is not one of {', '.join(COLOURS)}")
    return COLOURS[name]


def _points(name, x, *shapes):
    """x as floats, of one of the shapes, or (P,) if none is given."""
    x = require_floats(name, x, *shapes, traced=False)
    require(bool(shapes) or x.ndim == 1, name, f"expected shape (P,), got {x.shape}")
    return x


def curve(ax, x, mean, spread=None, *, colour, label=None, marker="o", line="-", width=1.5):
    """One line through P points, with a band of mean ± spread if a spread is given.

    x, mean, spread: (P,), in the units of the axes.
    colour: a name in COLOURS.
    marker, line: as matplotlib writes them. More than 30 points have no markers.
    width: of the line, in points of 1/72 inch.
    """
    _require_axes(ax)
    x = _points("x", x)
    mean = _points("mean", mean, x.shape)
    colour = _colour(colour)
    size = 5 if len(x) <= 30 else 0
    look = dict(color=colour, linewidth=width, marker=marker, markersize=size)
    ax.plot(x, mean, line, label=label, **look)
    if spread is not None:
        spread = _points("spread", spread, x.shape, ())
        band = dict(color=colour, alpha=0.2, linewidth=0)
        ax.fill_between(x, mean - spread, mean + spread, **band)


def bound(ax, y, label="optimum"):
    """A dashed line at the height y, which nobody can surpass."""
    ax.axhline(y, color=COLOURS["black"], linestyle="--", linewidth=1, label=label)


def bias(ax, x, size, error=0.0, *, colour, label=None, marker="o", line="-"):
    """How large the bias of an estimator is, at P points; or its standard deviation.

    Markers are hollow where the bias is below two standard errors, so that it may be zero.

    x: (P,), such as numbers of episodes.
    size, error: (P,), of the bias and of its standard error; no marker is hollow without an error.
    """
    _require_axes(ax)
    x = _points("x", x)
    size = _points("size", size, x.shape)
    hollow = size < 2 * _points("error", error, x.shape, ())
    look = dict(color=_colour(colour), linewidth=1.3, markersize=6)
    ax.plot(x, size, line, label=label, **look)
    ax.plot(x[~hollow], size[~hollow], marker, **look)
    ax.plot(x[hollow], size[hollow], marker, markerfacecolor="white", **look)


def regret(ax, regrets, looks, *, unit="pull"):
    """The expected regret so far, in units of reward, after each of n pulls.

    regrets: {method: (n,)}.
    looks: {method: (label, colour, line)}, in the order of the legend; others are not drawn.
    unit: what is counted along x, a string.
    """
    for method, (label, colour, line) in looks.items():
        require(method in regrets, "regrets", f"there are none of {method!r}, which looks names")
        so_far = regrets[method]
        pulls = np.arange(1, len(so_far) + 1)
        curve(ax, pulls, so_far, colour=colour, label=label, line=line, marker=None)
    ax.set(xlabel=unit, ylabel="expected regret so far (reward units)")
    # with room for a legend above
    ax.set_ylim(0, 1.3 * ax.dataLim.ymax)


# ---- maps


def heat_map(ax, grid, cells, *, label=None, vmin=None, vmax=None):
    """A number for each cell, as colours on the map of a GridWorld; walls are grey.

    grid: a GridWorld.
    cells: (S,).
    label: what the numbers are. If it is given there is a colour bar.
    vmin, vmax: the numbers at the ends of the scale; the least and the largest if not given.
    """
    image = np.ma.masked_where(grid.kind(WALL), cells).reshape(grid.shape)
    colours = plt.get_cmap("cividis").with_extremes(bad="#999999")
    shown = ax.imshow(image, cmap=colours, vmin=vmin, vmax=vmax)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    look = dict(color="white", weight="bold", size=9, path_effects=OUTLINE)
    for cell in np.flatnonzero(grid.kind(START, PIT)):
        x, y = _position(grid, cell)
        letter = grid.layout[y][x]
        # in the corner, where an arrow leaves room for it
        ax.text(x - 0.42, y - 0.42, letter, ha="left", va="top", **look)
    if label:
        ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)


def visits(ax, grid, counts, goal=None, *, label=None):
    """Visits on the map of a GridWorld, and a star on the goal if it is given.

    counts: (S,), visits per episode; the scale goes from 0 to 1, and more looks like 1.
    goal: a cell, an integer.
    label: as in `heat_map`.
    """
    heat_map(ax, grid, counts, label=label, vmin=0, vmax=1)
    if goal is not None:
        _star(ax, grid, goal)


def arrows(ax, grid, pi, goal):
    """A policy on the map of a GridWorld, and a star on the goal.

    An arrow stands for one move, and is as long as the move is likely. Moves of probability .05 or
    less have none.

    pi: (S, 4), the probabilities of the moves up, down, left, right.
    goal: a cell, an integer.
    """
    pi = np.asarray(pi, float)
    acts = ~grid.kind(WALL, PIT)
    acts[goal] = False
    cell, move = np.nonzero((pi > 0.05) & acts[:, None])
    x, y = _position(grid, cell)
    down, right = 0.45 * pi[cell, move] * MOVES[move].T
    in_cells = dict(angles="xy", scale_units="xy", scale=1, units="xy")
    shape = dict(width=0.07, headwidth=4, headlength=4, headaxislength=3.5)
    look = dict(color="white", edgecolor="black", linewidth=0.5)
    ax.quiver(x, y, right, down, **in_cells, **shape, **look)
    _star(ax, grid, goal)


def _position(grid, cell):
    """(x, y) of a cell on its map: the column and the row."""
    row, column = np.divmod(cell, grid.shape[1])
    return column, row


def _star(ax, grid, cell):
    x, y = _position(grid, cell)
    look = dict(color=COLOURS["red"], markeredgecolor="white")
    ax.plot(x, y, "*", markersize=15, **look)
