"""GridWorld: what a map means, every move's target and reward by hand, goals, pictures, and the
maps it refuses.
"""

import numpy as np
import pytest

from metarl_np.tasks.exact import optimal_return
from metarl_np.tasks.gridworld import GridWorld, varibad

NAN = np.nan
INF = np.inf
UP, DOWN, LEFT, RIGHT = range(4)
RULES = dict(discount=0.9, horizon=8)
# S 0  . 1  G 2
# # 3  . 4  O 5
SMALL = GridWorld(
    "S.G\n#.O", goal_reward=10, step_reward=-1, pit_reward=-5, bump_penalty=0.5, **RULES
)


def outcomes(mdps, task, state, action):
    """{(s', r): probability}, of what can happen."""
    merged = {}
    for z, r, p in zip(
        *(x[task, state, action] for x in (mdps.successors, mdps.rewards, mdps.probabilities))
    ):
        if p:
            merged[int(z), float(r)] = merged.get((int(z), float(r)), 0) + p
    return merged


def test_map():
    grid = GridWorld("S.#\n.OG", **RULES)
    assert grid.layout == ("S.#", ".OG") == GridWorld(["S.#", ".OG"], **RULES).layout
    assert grid.shape == (2, 3) and grid.free_cells.tolist() == [1, 3, 5]
    mdps = grid.mdps()
    assert mdps.shape == (1, 6, 4) and (mdps.discount, mdps.horizon) == (0.9, 8)
    assert mdps.terminal.tolist() == [[False, False, True, False, True, True]]
    assert mdps.start.tolist() == [[1, 0, 0, 0, 0, 0]]


def test_open_field():
    grid = GridWorld.open(2, 3, slip=0.1, **RULES)
    assert (
        grid.layout == ("S..", "...")
        and grid.slip == 0.1
        and grid.free_cells.tolist() == [1, 2, 3, 4, 5]
    )
    assert GridWorld.open(1, 2, **RULES).layout == ("S.",) and GridWorld.open(
        2, 1, **RULES
    ).layout == ("S", ".")


@pytest.mark.parametrize(
    "state, action, target, reward",
    [
        (0, UP, 0, -1.5),
        (0, DOWN, 0, -1.5),
        (0, LEFT, 0, -1.5),
        (0, RIGHT, 1, -1),  # border, wall, border, free
        (1, UP, 1, -1.5),
        (1, DOWN, 4, -1),
        (1, LEFT, 0, -1),
        (1, RIGHT, 2, 9),  # into the goal
        (4, UP, 1, -1),
        (4, DOWN, 4, -1.5),
        (4, LEFT, 4, -1.5),
        (4, RIGHT, 5, -6),  # into the pit
        (2, UP, 2, 0),
        (2, LEFT, 2, 0),
        (5, UP, 5, 0),
        (5, LEFT, 5, 0),
        (3, UP, 3, 0),
        (3, RIGHT, 3, 0),  # an end
    ],
)
def test_moves(state, action, target, reward):
    assert outcomes(SMALL.mdps(), 0, state, action) == {(target, reward): 1.0}


@pytest.mark.parametrize(
    "state, action, want",
    [
        (0, LEFT, {(0, -1.5): 1.0}),  # the border ahead and above, the wall below
        (0, UP, {(0, -1.5): 0.9, (1, -1): 0.1}),
        (0, RIGHT, {(1, -1): 0.8, (0, -1.5): 0.2}),
        (1, DOWN, {(4, -1): 0.8, (0, -1): 0.1, (2, 9): 0.1}),
        (1, LEFT, {(0, -1): 0.8, (1, -1.5): 0.1, (4, -1): 0.1}),
        (1, RIGHT, {(2, 9): 0.8, (1, -1.5): 0.1, (4, -1): 0.1}),
        (4, UP, {(1, -1): 0.8, (4, -1.5): 0.1, (5, -6): 0.1}),
        (4, RIGHT, {(5, -6): 0.8, (1, -1): 0.1, (4, -1.5): 0.1}),
        (5, UP, {(5, 0): 1.0}),
    ],
)
def test_slip_turns_to_either_side_but_never_back(state, action, want):
    slippery = GridWorld(
        SMALL.layout,
        slip=0.2,
        goal_reward=10,
        step_reward=-1,
        pit_reward=-5,
        bump_penalty=0.5,
        **RULES,
    )
    assert outcomes(slippery.mdps(), 0, state, action) == pytest.approx(want)


def test_slip_of_one_never_goes_ahead():
    mdps = GridWorld("...\n.S.\n..G", slip=1, **RULES).mdps()
    assert outcomes(mdps, 0, 4, UP) == {(3, 0): 0.5, (5, 0): 0.5}
    assert outcomes(mdps, 0, 4, RIGHT) == {(1, 0): 0.5, (7, 0): 0.5}


def test_several_starts():
    mdps = GridWorld("S.S\n..S\nS.G", **RULES).mdps()
    assert mdps.start.tolist() == [[0.25, 0, 0.25, 0, 0, 0.25, 0.25, 0, 0]]


def test_given_goals_replace_those_of_the_map():
    mdps = SMALL.mdps([4, 1, 2])
    assert mdps.shape == (3, 6, 4)
    assert [np.flatnonzero(t).tolist() for t in mdps.terminal] == [[3, 4, 5], [1, 3, 5], [2, 3, 5]]
    assert [outcomes(mdps, i, 1, DOWN) for i in range(3)] == [
        {(4, 9): 1},
        {(1, 0): 1},
        {(4, -1): 1},
    ]
    assert [outcomes(mdps, i, 1, RIGHT) for i in range(3)] == [
        {(2, -1): 1},
        {(1, 0): 1},
        {(2, 9): 1},
    ]
    assert outcomes(mdps, 0, 2, DOWN) == {(5, -6): 1}  # the goal of the map is a free cell now
    assert mdps.start.tolist() == [[1, 0, 0, 0, 0, 0]] * 3
    assert len(SMALL.mdps(4)) == 1 and SMALL.mdps(4).terminal[0, 4]


def test_several_goals_on_the_map_make_one_task():
    mdps = GridWorld("GSG", **RULES).mdps()
    assert mdps.terminal.tolist() == [[True, False, True]]
    assert outcomes(mdps, 0, 1, LEFT) == {(0, 1): 1} and outcomes(mdps, 0, 1, RIGHT) == {(2, 1): 1}


def test_drawn_goals_are_disjoint_free_and_any_cell():
    grid = GridWorld("S..#\n.O.G\n....", **RULES)
    seen = {True: set(), False: set()}
    for seed in range(200):
        train, held_out = (
            set(x.tolist()) for x in grid.split_goals(np.random.default_rng(seed), 5, 3)
        )
        assert (len(train), len(held_out)) == (5, 3) and not train & held_out
        assert train | held_out <= {1, 2, 4, 6, 7, 8, 9, 10, 11}
        seen[True] |= train
        seen[False] |= held_out
    assert seen[True] == seen[False] == {1, 2, 4, 6, 7, 8, 9, 10, 11}


def test_drawn_goals_follow_the_seed_and_may_use_every_cell():
    grid = GridWorld.open(3, 3, **RULES)
    first, again, other = (
        np.concatenate(grid.split_goals(np.random.default_rng(s), 6, 2)).tolist() for s in (3, 3, 4)
    )
    assert first == again != other and sorted(first) == list(range(1, 9))
    assert len(grid.split_goals(np.random.default_rng(0), 8, 0)[1]) == 0


def test_render():
    assert SMALL.render() == "S.G\n#.O"
    assert SMALL.render(goal=4) == "S..\n#GO"
    actions = [RIGHT, DOWN, UP, LEFT, LEFT, UP]  # what they say on wall, pit and goal is not shown
    assert SMALL.render(actions) == "→↓G\n#←O"
    assert SMALL.render(np.array(actions), goal=1) == "→G.\n#←O"
    assert GridWorld("S...G", **RULES).render([UP, DOWN, LEFT, RIGHT, UP]) == "↑↓←→G"


# Bad input


@pytest.mark.parametrize(
    "layout, why",
    [
        ("S.G\n.x.", r"unknown map character \(at row 1, column 1\)"),
        (["S.", "G "], r"unknown map character \(at row 1, column 1\)"),
        ("..\n.G", "no start"),
        ("###", "no start"),
        ("S.G\n..", r"ragged map, .*\(at row 1\)"),
        (["S", ""], r"ragged map, .*\(at row 1\)"),
        ("", "empty"),
        ("\n", "empty"),
        ([], "empty"),
        ([""], "empty"),
    ],
)
def test_bad_maps(layout, why):
    with pytest.raises(ValueError, match=f"^layout: .*{why}"):
        GridWorld(layout, **RULES)


@pytest.mark.parametrize(
    "name, value",
    [
        ("slip", -0.1),
        ("slip", 1.1),
        ("slip", NAN),
        ("goal_reward", 0),
        ("goal_reward", -1),
        ("goal_reward", NAN),
        ("goal_reward", INF),
        ("step_reward", NAN),
        ("step_reward", -INF),
        ("pit_reward", NAN),
        ("pit_reward", INF),
        ("bump_penalty", -1),
        ("bump_penalty", NAN),
        ("bump_penalty", INF),
        ("discount", 1.1),
        ("discount", NAN),
        ("horizon", 0),
        ("horizon", 1.5),
    ],
)
def test_bad_rules(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        GridWorld("S.G", **RULES | {name: value}).mdps()


@pytest.mark.parametrize("height, width", [(1, 1), (0, 5), (5, 0), (-2, -3)])
def test_bad_sizes(height, width):
    with pytest.raises(ValueError, match="height|width"):
        GridWorld.open(height, width, **RULES)


@pytest.mark.parametrize(
    "goals, why",
    [
        ([4, 3], "task 1"),
        ([0], "task 0"),
        ([1, 2, 5], "task 2"),
        ([-1], "task 0"),
        ([1, 6], "task 1"),  # wall, start, pit, outside
        ([], "shape"),
        ([[1, 2]], "shape"),
        ([1.0], "integers"),
    ],
)
def test_bad_goals(goals, why):
    with pytest.raises(ValueError, match=f"^goals: .*{why}"):
        SMALL.mdps(goals)


def test_no_goal():
    with pytest.raises(ValueError, match="^goals: .*no goal"):
        GridWorld("S..", **RULES).mdps()


@pytest.mark.parametrize(
    "layout, n_train, n_held_out",
    [("S..G", 4, 0), ("S..G", 2, 2), ("S..G", 0, 1), ("S..G", 1, -1), ("S#O", 1, 0)],
)
def test_too_many_goals(rng, layout, n_train, n_held_out):
    with pytest.raises(ValueError, match="n_train|n_held_out"):
        GridWorld(layout, **RULES).split_goals(rng, n_train, n_held_out)


# ---- VariBAD's grid


def test_varibad_by_hand():
    """From the goal (0, 2), cell 2: stay there, bump into the border, or leave it and come back."""
    mdps = varibad([2, 24])
    assert mdps.shape == (2, 25, 5) and (mdps.discount, mdps.horizon) == (1, 15)
    assert not mdps.terminal.any() and (mdps.start == (np.arange(25) == 0)).all()
    up, down, left, right, stay = range(5)
    expected = {up: (2, 1.0), down: (7, -0.1), left: (1, -0.1), right: (3, -0.1), stay: (2, 1.0)}
    for action, outcome in expected.items():
        found = mdps.successors[0, 2, action, 0], mdps.rewards[0, 2, action, 0]
        assert found == outcome
    assert mdps.rewards[0, 1, right, 0] == 1 and mdps.rewards[1, 1, right, 0] == -0.1


def test_varibad_known_goals():
    """d steps lead to a goal, d − 1 of which are paid −0.1, and each of the others 1."""
    goals = np.arange(1, 25)
    distance = goals // 5 + goals % 5
    expected = -0.1 * (distance - 1) + (16 - distance)
    np.testing.assert_allclose(optimal_return(varibad(goals)), expected)
    np.testing.assert_allclose(optimal_return(varibad()), expected[~np.isin(goals, (1, 5, 6))])


@pytest.mark.parametrize("goals", [[0], [25], [-1], [1.0], []])
def test_varibad_refuses_what_is_no_goal(goals):
    with pytest.raises(ValueError, match="^goals: "):
        varibad(goals)
