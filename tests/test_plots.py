"""What is drawn is read back from the axes: the numbers that were given, in the places where they
belong.
"""

import pathlib

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402
from PIL import Image  # noqa: E402

from metarl_np import plots  # noqa: E402
from metarl_np.tasks.gridworld import GridWorld  # noqa: E402

GRID = GridWorld("S.# .OG", discount=0.9, horizon=3)


@pytest.fixture
def ax():
    fig, (ax,) = plots.figure(4, 3)
    yield ax
    plots.plt.close(fig)


def points(line):
    return list(map(tuple, line.get_xydata().tolist()))


def test_curve_and_band(ax):
    plots.curve(ax, [0, 1, 2], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], label="a", colour="blue")
    assert (
        points(ax.lines[0]) == [(0, 1), (1, 2), (2, 3)]
        and ax.lines[0].get_label() == "a"
        and ax.lines[0].get_markersize() == 5
    )
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == 0.9 and corners.max() == 3.3
    assert (
        to_hex(ax.lines[0].get_color())
        == to_hex(ax.collections[0].get_facecolor()[0])
        == plots.COLOURS["blue"].lower()
    )


def test_curve_without_spread_has_no_band_and_long_ones_no_markers(ax):
    plots.curve(ax, range(31), range(31), colour="red", line="--", width=2.5)
    assert not ax.collections and ax.lines[0].get_markersize() == 0
    assert ax.lines[0].get_linestyle() == "--" and ax.lines[0].get_linewidth() == 2.5
    assert ax.get_legend_handles_labels() == ([], [])


def test_bound(ax):
    plots.bound(ax, 0.7)
    assert (
        set(ax.lines[0].get_ydata()) == {0.7}
        and ax.lines[0].get_label() == "optimum"
        and ax.lines[0].get_linestyle() == "--"
    )


def test_bias_is_hollow_where_it_cannot_be_told_from_none(ax):
    plots.bias(
        ax,
        [2, 4, 8, 16],
        [0.4, 0.3, 0.1, 0.1],
        [0.1, 0.2, 0.01, 0.06],
        label="naive",
        colour="orange",
        marker="s",
        line="--",
    )
    line, full, hollow = ax.lines
    assert points(line) == [(2, 0.4), (4, 0.3), (8, 0.1), (16, 0.1)]
    assert (line.get_linestyle(), line.get_marker(), line.get_label()) == ("--", "None", "naive")
    assert points(full) == [(2, 0.4), (8, 0.1)] and points(hollow) == [(4, 0.3), (16, 0.1)]
    assert (
        hollow.get_markerfacecolor() == "white"
        and full.get_markerfacecolor() == plots.COLOURS["orange"]
    )
    assert (
        full.get_marker() == hollow.get_marker() == "s"
        and len(ax.get_legend_handles_labels()[1]) == 1
    )


def test_what_has_no_error_is_never_hollow(ax):
    plots.bias(ax, [2, 4], [0.4, 0.3], colour="green")
    assert [len(points(line)) for line in ax.lines] == [2, 2, 0]


def test_regret(ax):
    plots.regret(
        ax,
        dict(b=[1.0, 4.0], a=[0.5, 1.0, 2.0], unused=[100.0]),
        dict(a=("A", "blue", "-"), b=("B", "red", ":")),
        unit="episode",
    )
    # from the first pull, in looks' order
    assert [points(line) for line in ax.lines] == [[(1, 0.5), (2, 1), (3, 2)], [(1, 1), (2, 4)]]
    assert [(line.get_label(), line.get_linestyle()) for line in ax.lines] == [
        ("A", "-"),
        ("B", ":"),
    ]
    assert (
        ax.get_ylim() == (0, pytest.approx(1.3 * 4))
        and ax.get_xlabel() == "episode"
        and "reward" in ax.get_ylabel()
    )


def test_heat_map_hides_walls(ax):
    plots.heat_map(ax, GRID, np.arange(6), label="value")
    image = ax.images[0].get_array()
    assert image.mask.tolist() == [[False, False, True], [False, False, False]]
    assert image[1, 2] == 5 and {text.get_text() for text in ax.texts} == {"S", "O"}
    assert ax.figure.axes[1].get_ylabel() == "value"


def test_visits_are_on_one_scale_and_the_goal_is_a_star(ax):
    plots.visits(ax, GRID, np.array([1, 0.5, 0, 0.2, 0, 7]), 5)
    assert (
        ax.images[0].get_clim() == (0, 1)
        and ax.images[0].get_array()[0, 1] == 0.5
        and len(ax.figure.axes) == 1
    )
    assert points(ax.lines[0]) == [(2, 1)] and ax.lines[0].get_marker() == "*"
    plots.visits(ax, GRID, np.zeros(6), label="visits")
    assert len(ax.lines) == 1 and ax.figure.axes[1].get_ylabel() == "visits"


def test_arrows_point_where_the_policy_goes(ax):
    pi = np.zeros((6, 4))
    pi[:, 3] = 1  # right
    pi[0] = (0.04, 0.5, 0, 0.46)
    pi[3] = (1, 0, 0, 0)  # up
    plots.heat_map(ax, GRID, np.zeros(6))
    plots.arrows(ax, GRID, pi, goal=5)
    q = ax.collections[0]
    # x, y, to the right, down
    drawn = {tuple(round(float(x), 3) for x in row) for row in zip(q.X, q.Y, q.U, q.V)}
    # none on the wall, the pit, the goal
    assert drawn == {(0, 0, 0, 0.225), (0, 0, 0.207, 0), (1, 0, 0.45, 0), (0, 1, 0, -0.45)}
    assert points(ax.lines[0]) == [(2, 1)]
    ax.figure.canvas.draw()
    tip = ax.transData.transform((0, 1 - 0.45)) - ax.transData.transform((0, 1))
    # rows grow downwards: up is up on the screen
    assert tip[1] > 0 and (q.angles, q.scale, q.scale_units) == ("xy", 1, "xy")


def test_save(tmp_path):
    fig, _ = plots.figure(4, 3)
    path = plots.save(fig, tmp_path / "new", "picture")
    assert pathlib.Path(path).read_bytes().startswith(b"\x89PNG") and not plots.plt.fignum_exists(
        fig.number
    )


def animation(folder, frames, **options):
    """A GIF with a growing bar, and whether a figure is left open."""
    fig, (ax,) = plots.figure(3, 2)
    drawn = []

    def draw(x):
        drawn.append(x)
        ax.clear()
        ax.bar([0], [x], color=plots.COLOURS["blue"])
        ax.set(ylim=(0, 4), xlabel="x" * (1 + 9 * (x > 2)), ylabel="y\ny" * int(x))

    path = pathlib.Path(plots.animate(fig, draw, frames, folder, "moving", **options))
    assert drawn == list(frames) and not plots.plt.fignum_exists(fig.number)
    return path


def test_animation_holds_every_frame_and_loops(tmp_path):
    path = animation(tmp_path / "new", [1, 2, 2, 2, 4], fps=4, dpi=60)
    blue = []
    with Image.open(path) as gif:
        # 0: without end
        assert path.name == "moving.gif" and gif.size == (180, 120) and gif.info["loop"] == 0
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            pixels = np.asarray(gif.convert("RGB"), float) / 255
            blue.append((abs(pixels - to_rgb(plots.COLOURS["blue"])).max(-1) < 0.1).sum())
    assert durations == [250, 750, 250]  # ms; equal frames are one
    # the axes stay where they were: nothing is laid out anew
    assert np.divide(blue[1:], blue[0]) == pytest.approx([2, 4], rel=0.05)


def test_same_frames_are_the_same_bytes(tmp_path):
    one, two = (animation(tmp_path / name, [1, 3]).read_bytes() for name in "ab")
    assert one == two
