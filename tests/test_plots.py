"""What is drawn is read back from the axes: the numbers that were given, in the places where they
belong. Of files, the pixels are read.
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
    """[(x, y), …] of a line."""
    return list(map(tuple, line.get_xydata().tolist()))


# ---- curves


def test_curve_and_band(ax):
    plots.curve(ax, [0, 1, 2], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], label="a", colour="blue")
    line = ax.lines[0]
    band = ax.collections[0]
    assert points(line) == [(0, 1), (1, 2), (2, 3)]
    assert line.get_label() == "a"
    assert line.get_markersize() == 5
    assert line.get_linewidth() == 1.5
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == 0.9
    assert heights.max() == 3.3
    blue = plots.COLOURS["blue"].lower()
    assert to_hex(line.get_color()) == blue
    assert to_hex(band.get_facecolor()[0]) == blue


def test_curve_without_spread_has_no_band_and_long_ones_no_markers(ax):
    plots.curve(ax, range(31), range(31), colour="red", line="--", width=2.5)
    assert not ax.collections
    assert ax.lines[0].get_markersize() == 0
    assert ax.lines[0].get_linestyle() == "--"
    assert ax.lines[0].get_linewidth() == 2.5
    assert ax.get_legend_handles_labels() == ([], [])


def test_bound(ax):
    plots.bound(ax, 0.7)
    line = ax.lines[0]
    assert set(line.get_ydata()) == {0.7}
    assert line.get_label() == "optimum"
    assert line.get_linestyle() == "--"


def test_bias_is_hollow_where_it_cannot_be_told_from_none(ax):
    look = dict(label="naive", colour="orange", marker="s", line="--")
    plots.bias(ax, [2, 4, 8, 16], [0.4, 0.3, 0.1, 0.1], [0.1, 0.2, 0.01, 0.06], **look)
    line, full, hollow = ax.lines
    assert points(line) == [(2, 0.4), (4, 0.3), (8, 0.1), (16, 0.1)]
    assert line.get_linestyle() == "--"
    assert line.get_marker() == "None"
    assert line.get_label() == "naive"
    assert len(ax.get_legend_handles_labels()[1]) == 1
    assert points(full) == [(2, 0.4), (8, 0.1)]
    assert points(hollow) == [(4, 0.3), (16, 0.1)]
    assert full.get_marker() == hollow.get_marker() == "s"
    assert full.get_markerfacecolor() == plots.COLOURS["orange"]
    assert hollow.get_markerfacecolor() == "white"
    assert hollow.get_markeredgecolor() == plots.COLOURS["orange"]


def test_what_has_no_error_is_never_hollow(ax):
    plots.bias(ax, [2, 4], [0.4, 0.3], colour="green")
    assert [len(points(line)) for line in ax.lines] == [2, 2, 0]


def test_regret(ax):
    regrets = dict(b=[1.0, 4.0], a=[0.5, 1.0, 2.0], unused=[100.0])
    looks = dict(a=("A", "blue", "-"), b=("B", "red", ":"))
    plots.regret(ax, regrets, looks, unit="episode")
    a, b = ax.lines
    # from the first pull on, and in the order of `looks`
    assert points(a) == [(1, 0.5), (2, 1), (3, 2)]
    assert points(b) == [(1, 1), (2, 4)]
    assert [line.get_label() for line in (a, b)] == ["A", "B"]
    assert [line.get_linestyle() for line in (a, b)] == ["-", ":"]
    assert ax.get_ylim() == (0, pytest.approx(1.3 * 4))
    assert ax.get_xlabel() == "episode"
    assert "reward" in ax.get_ylabel()


# ---- maps


def test_heat_map_hides_walls(ax):
    plots.heat_map(ax, GRID, np.arange(6), label="value")
    image = ax.images[0].get_array()
    assert image.mask.tolist() == [[False, False, True], [False, False, False]]
    assert image[1, 2] == 5
    assert {text.get_text() for text in ax.texts} == {"S", "O"}
    assert ax.figure.axes[1].get_ylabel() == "value"


def test_letters_stand_in_their_cells(ax):
    plots.heat_map(ax, GRID, np.arange(6))
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places == {"S": (-0.42, -0.42), "O": (1 - 0.42, 1 - 0.42)}


def test_visits_are_on_one_scale_and_the_goal_is_a_star(ax):
    plots.visits(ax, GRID, np.array([1, 0.5, 0, 0.2, 0, 7]), 5)
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_array()[0, 1] == 0.5
    assert len(ax.figure.axes) == 1
    assert points(ax.lines[0]) == [(2, 1)]
    assert ax.lines[0].get_marker() == "*"


def test_visits_may_have_a_colour_bar_and_no_goal(ax):
    plots.visits(ax, GRID, np.zeros(6), label="visits")
    assert not ax.lines
    assert ax.figure.axes[1].get_ylabel() == "visits"


@pytest.fixture
def quiver(ax):
    """The arrows of a policy that goes right, but for two cells."""
    pi = np.zeros((6, 4))
    pi[:, 3] = 1  # right
    pi[0] = (0.04, 0.5, 0, 0.46)
    pi[3] = (1, 0, 0, 0)  # up
    plots.heat_map(ax, GRID, np.zeros(6))
    plots.arrows(ax, GRID, pi, goal=5)
    return ax.collections[0]


def test_arrows_point_where_the_policy_goes(quiver, ax):
    rows = zip(quiver.X, quiver.Y, quiver.U, quiver.V)
    drawn = {tuple(round(float(x), 3) for x in row) for row in rows}
    # x, y, to the right, down; none on the wall, the pit and the goal, and none for .04
    assert drawn == {(0, 0, 0, 0.225), (0, 0, 0.207, 0), (1, 0, 0.45, 0), (0, 1, 0, -0.45)}
    assert points(ax.lines[0]) == [(2, 1)]


def test_up_is_up_on_the_screen(quiver, ax):
    """Rows grow downwards, in the numbers and on the screen; an arrow is in units of cells."""
    ax.figure.canvas.draw()
    tip = ax.transData.transform((0, 1 - 0.45)) - ax.transData.transform((0, 1))
    assert tip[1] > 0
    assert (quiver.angles, quiver.scale, quiver.scale_units) == ("xy", 1, "xy")


# ---- files


def test_save(tmp_path):
    fig, _ = plots.figure(4, 3)
    path = plots.save(fig, tmp_path / "new", "picture")
    assert pathlib.Path(path).read_bytes().startswith(b"\x89PNG")
    assert not plots.plt.fignum_exists(fig.number)


def animation(folder, frames):
    """The path of a GIF with a growing bar, whose labels would change the layout."""
    fig, (ax,) = plots.figure(3, 2)
    drawn = []

    def draw(x):
        drawn.append(x)
        ax.clear()
        ax.bar([0], [x], color=plots.COLOURS["blue"])
        ax.set(ylim=(0, 4), xlabel="x" * (1 + 9 * (x > 2)), ylabel="y\ny" * int(x))

    path = plots.animate(fig, draw, frames, folder, "moving", fps=4, dpi=60)
    assert drawn == list(frames)
    assert not plots.plt.fignum_exists(fig.number)
    return pathlib.Path(path)


def test_animation_holds_every_frame_and_loops(tmp_path):
    path = animation(tmp_path / "new", [1, 2, 2, 2, 4])
    durations = []
    blue = []  # pixels
    with Image.open(path) as gif:
        assert path.name == "moving.gif"
        assert gif.size == (180, 120)
        assert gif.info["loop"] == 0  # without end
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            pixels = np.asarray(gif.convert("RGB"), float) / 255
            distance = abs(pixels - to_rgb(plots.COLOURS["blue"])).max(-1)
            blue.append((distance < 0.1).sum())
    # in milliseconds; equal frames in a row are one
    assert durations == [250, 750, 250]
    # nothing is laid out anew: the axes stay where they were
    assert np.divide(blue[1:], blue[0]) == pytest.approx([2, 4], rel=0.05)


def test_same_frames_are_the_same_bytes(tmp_path):
    one = animation(tmp_path / "a", [1, 3])
    two = animation(tmp_path / "b", [1, 3])
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "name, change",
    [
        ("colour", dict(colour="pink")),
        ("x", dict(x=1)),
        ("mean", dict(mean=[1, 2, 3])),
        ("spread", dict(spread=[1, 2, 3])),
        ("ax", dict(ax=None)),
    ],
)
def test_a_curve_names_its_bad_arguments(ax, name, change):
    arguments = dict(ax=ax, x=[1, 2], mean=[1, 2], colour="blue") | change
    with pytest.raises(ValueError, match=f"^{name}: "):
        plots.curve(**arguments)
