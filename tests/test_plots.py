import pathlib

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402

from metarl_np import plots  # noqa: E402
from metarl_np.gridworld import GridWorld  # noqa: E402

GRID = GridWorld("S.# .OG", discount=0.9, horizon=3)


def test_curve_and_band():
    _, (ax,) = plots.figure(4, 3)
    plots.curve(ax, [0, 1, 2], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], label="a", colour="blue")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 2, 3])
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == 0.9 and corners.max() == 3.3


def test_heat_map_hides_walls():
    _, (ax,) = plots.figure(4, 3)
    plots.heat_map(ax, GRID, np.arange(6), label="value")
    image = ax.images[0].get_array()
    assert image.mask.tolist() == [[False, False, True], [False, False, False]]
    assert image[1, 2] == 5 and {text.get_text() for text in ax.texts} == {"S", "O"}


def test_arrows_point_where_the_policy_goes():
    _, (ax,) = plots.figure(4, 3)
    pi = np.zeros((6, 4))
    pi[:, 3] = 1  # right
    pi[3] = (1, 0, 0, 0)  # up
    plots.arrows(ax, GRID, pi, goal=5)
    directions = {tuple(text.xyann): tuple(np.subtract(text.xy, text.xyann).round(3)) for text in ax.texts}
    assert directions == {(0, 0): (0.45, 0), (1, 0): (0.45, 0), (0, 1): (0, -0.45)}  # none on the wall, the pit, the goal
    assert ax.lines[0].get_xydata().tolist() == [[2, 1]]


def test_save(tmp_path):
    fig, _ = plots.figure(4, 3)
    path = plots.save(fig, tmp_path / "new", "picture")
    assert pathlib.Path(path).read_bytes().startswith(b"\x89PNG")
