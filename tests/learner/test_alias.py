"""Alias tables: what they hold is added up, column by column, and compared with what they were made
of.
"""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from helpers import chi2_p, coded, random_log_pi, random_tasks

from metarl_np.learner import alias
from metarl_np.learner.alias import NUMBERS, AliasTables, _alias_tables, _jointly, sampling_tables
from metarl_np.learner.rollouts import rollout
from metarl_np.tasks import bandits
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps


@pytest.fixture(params=["one draw", "two draws"])
def way(request, monkeypatch):
    """Small tasks sampled with one random number a step, or with two as large ones are."""
    if request.param == "two draws":
        monkeypatch.setattr(alias, "JOINT", 0)
    return request.param


def added_up(keeps, others):
    """How many of the 2³² numbers draw each outcome of one table, as a list of W integers.

    Column c owns 2³²/W numbers; it keeps some, and the rest draws the other outcome.
    """
    width = len(keeps)
    count = [0] * width
    for c in range(width):
        assert 0 <= keeps[c] <= NUMBERS // width
        count[c] += int(keeps[c])
        count[others[c]] += NUMBERS // width - int(keeps[c])
    return count


def test_the_example_of_the_docstring():
    """m = .25, 2, .5, 1.25: what each outcome keeps of its column, and who fills the rest."""
    p = np.array([1, 8, 2, 5]) / 16
    keeps, others = _alias_tables(p[None])
    assert keeps.tolist() == [2**28, 3 * 2**28, 2**29, 2**30]
    assert others[:3].tolist() == [1, 3, 1]


def distributions(rng, kind, width):
    """Some p (R, W), rows summing to one."""
    if kind == "any":
        return rng.dirichlet(np.full(width, 0.5), 20)
    if kind == "with zeros":
        p = rng.dirichlet(np.full(width, 0.5), 20) * (rng.random((20, width)) < 0.5)
        p[:, 0] += 0.1
    elif kind == "sure":
        p = np.eye(width)[rng.integers(width, size=10)]
    elif kind == "uniform":
        p = np.ones((1, width))
    elif kind == "padded":
        p = rng.dirichlet(np.full(width, 0.5), 10)
        p[:, width // 2 :] = 0
    elif kind == "nearly sure":
        p = np.full((1, width), 1e-12)
        p[0, -1] = 1
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("width", [2, 3, 4, 8, 13, 16, 32, 33, 64])
@pytest.mark.parametrize("kind", ["any", "with zeros", "sure", "uniform", "padded", "nearly sure"])
def test_alias_tables_hold_the_probabilities_to_a_2_32th(rng, kind, width):
    p = distributions(rng, kind, width)
    tables = [x.reshape(len(p), -1) for x in _alias_tables(p)]
    for row, keeps, others in zip(p, *tables):
        count = np.array(added_up(keeps, others))
        assert count.sum() == NUMBERS
        assert (count[width:] == 0).all()
        count = count[:width]
        assert (count[row == 0] == 0).all()
        assert abs(count - row * NUMBERS).max() <= 1 + 1e-5


@pytest.mark.parametrize(
    "parts",
    [
        [3, 1, 3, 1],
        [1, 3, 1, 3],
        [0, 2, 2, 0, 0, 1, 2, 1],
        [4, 4, 0, 0],
        [1, 0, 3, 0],
        [5, 1, 1, 1, 5, 1, 1, 1],
        [1],
        [0, 1],
    ],
    ids=str,
)
def test_alias_tables_where_a_heavy_outcome_gives_exactly_what_it_has(parts):
    """Eighths and sixteenths are exact, so is their table."""
    p = np.array(parts) / sum(parts)
    count = added_up(*_alias_tables(p[None]))
    assert count[: len(p)] == (p * NUMBERS).tolist()


def test_alias_tables_of_rows_that_sum_to_one_only_nearly(rng):
    p = rng.dirichlet(np.ones(16), 50)
    nearly = p * (1 + rng.uniform(-1e-6, 1e-6, (50, 1)))
    keeps, others = _alias_tables(p)
    other_keeps, other_others = _alias_tables(nearly)
    assert (abs(keeps - other_keeps) <= 16).all()
    assert (others == other_others).all()


def thresholds_of(draw):
    """(R·W,) of 0 … 2³², from the borders."""
    column = np.arange(len(draw.borders))
    return draw.borders + 1 - NUMBERS * (2 * column + 1)


def test_a_draw_finds_the_cell_at_the_borders_of_every_column(rng):
    """The first and the last number of a column, and those next to its threshold."""
    p = np.concatenate([rng.dirichlet(np.ones(5), 20), np.eye(5)])
    draw, _ = alias._tables(p, np.arange(p.size), 3)
    column = np.arange(len(draw.borders))
    row, place = column // 8, column % 8
    first = place * (NUMBERS // 8)
    last = first + NUMBERS // 8 - 1
    threshold = thresholds_of(draw)
    assert (threshold >= first).all() and (threshold <= last + 1).all()
    for u in (first, last, threshold - 1, threshold):
        here = (first <= u) & (u <= last)
        u_here = u[here]
        cells = u_here >> (32 - draw.width_bits)
        row_start = 8 * row[here]
        draw.draw(u_here, cells, row_start)
        np.testing.assert_array_equal(cells, 2 * column[here] + (u < threshold)[here])
        np.testing.assert_array_equal(row_start, draw.leads_to[cells])


def shares(draw):
    """Of each cell: how many of the numbers that come to its row draw it, a part of one."""
    column = np.arange(len(draw.borders))
    width = 2**draw.width_bits
    keeps = thresholds_of(draw) - column % width * (NUMBERS // width)
    return np.stack([NUMBERS // width - keeps, keeps], -1).ravel() / NUMBERS


def test_sampling_tables_reconstruct_the_joint_distribution_of_action_and_successor(rng, way):
    """Each cell's share of the numbers is added to the outcome that it stands for."""
    mdps = coded(random_tasks(rng, 3, 5, 3, 3, horizon=4))
    log_pi = random_log_pi(rng, 3, 5, 3)
    tables = sampling_tables(mdps, log_pi)
    assert [draw.width_bits for draw in tables.draws] == dict(
        [("one draw", [4]), ("two draws", [2, 2])]
    )[way]
    steps = [(row, [], 1.0) for row in range(15)]  # row of the next draw, cells drawn, chance
    for draw in tables.draws:
        width = 2**draw.width_bits
        share = shares(draw)
        steps = [
            (int(draw.leads_to[cell]), [*cells, cell], chance * share[cell])
            for row, cells, chance in steps
            for cell in range(2 * width * row, 2 * width * (row + 1))
            if share[cell]
        ]
        next_width = 2 ** tables.draws[len(steps[0][1]) % len(tables.draws)].width_bits
        assert all(start % next_width == 0 for start, _, _ in steps)
        steps = [(start // next_width, cells, chance) for start, cells, chance in steps]
    joint = np.zeros(mdps.rewards.shape)
    for next_row, cells, chance in steps:
        row = cells[0] // 2 ** (tables.draws[0].width_bits + 1)
        task, state = divmod(row, 5)
        recorded, action = divmod(int(tables.pairs[cells[0]]), 2**tables.action_bits)
        assert recorded == state
        assert tables.alive[cells[0]] != mdps.terminal[task, state]
        next_state = next_row - 5 * task
        if mdps.terminal[task, state]:
            assert next_state == state and tables.rewards[cells[-1]] == 0
        else:
            outcome = np.unravel_index(int(tables.rewards[cells[-1]]) - 1, joint.shape)
            assert outcome[:3] == (task, state, action)
            assert mdps.successors[outcome] == next_state
            joint[outcome] += chance
    expected = np.exp(log_pi)[..., None] * mdps.probabilities
    expected[mdps.terminal] = 0
    resolution = dict([("one draw", 2.0**-32), ("two draws", 2.0**-31)])[way]
    np.testing.assert_allclose(joint, expected, atol=resolution * (1 + 1e-5), rtol=0)


@pytest.mark.parametrize(
    "shape, joint",
    [
        ((4, 16), True),  # 64 outcomes
        ((5, 13), False),
        ((13, 5), False),
        ((1000, 1), True),
        ((1, 1000), True),
    ],
)
def test_one_draw_where_the_outcomes_are_few(shape, joint):
    n_actions, n_slots = shape
    mdps = bandits.bernoulli(np.full((1, n_actions), 0.5))
    p = np.full((1, 1, *shape), 1 / n_slots)
    mdps = type(mdps)(np.zeros(p.shape, int), p, 0 * p, [[1.0]], [[False]], 1, 1)
    assert _jointly(mdps) == joint
    tables = sampling_tables(mdps, np.full((1, n_actions), -np.log(n_actions)))
    assert len(tables.draws) == (1 if joint else 2)


def test_the_successors_tables_are_made_once_for_tasks_and_go_with_them(rng):
    first, other = (random_mdps(rng, 2, n_states=20) for _ in range(2))
    made = [sampling_tables(mdps, random_log_pi(rng, 2, 20, 5)) for mdps in (first, first, other)]
    assert made[0].draws[1] is made[1].draws[1]
    assert made[0].rewards is made[1].rewards
    assert made[0].draws[0] is not made[1].draws[0]
    assert made[0].draws[1] is not made[2].draws[1]
    kept = weakref.ref(made[0].draws[1])
    del first, made
    gc.collect()
    assert kept() is None


def test_tables_of_very_many_arms():
    """Their cost is that of their entries: what took W passes over W columns did not come to an
    end here.
    """
    arms = 200_000
    means = np.arange(arms) % 2
    mdps = bandits.bernoulli(means[None].astype(float))
    pi = np.arange(1, arms + 1) / (arms * (arms + 1) / 2)
    e = rollout(np.random.default_rng(0), mdps, np.log(pi)[None], 100_000)
    assert (e.rewards[0, 0] == means[e.actions[0, 0]]).all()
    # P(the first half) = 1/4
    few = (e.actions < arms // 2).mean()
    assert abs(few - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 100_000)


def test_more_columns_than_can_be_numbered_are_refused():
    p = np.full((1, 2), 0.5)
    with pytest.raises(ValueError, match="^mdps: .* tables of 2 columns, above"):
        alias._tables(p, np.broadcast_to(0, 2**50), 1)


def test_the_columns_that_are_counted_are_those_of_the_tables(monkeypatch):
    """Three outcomes take four columns."""
    monkeypatch.setattr(alias, "COLUMNS", 32)
    p = np.full((1, 3), 1 / 3)
    alias._tables(p, np.zeros(3 * 8, int), 2)
    with pytest.raises(ValueError, match="^mdps: 9 tables of 4 columns, above 32"):
        alias._tables(p, np.zeros(3 * 9, int), 2)


def test_the_border_of_the_last_column_is_the_largest_that_an_int64_can_hold():
    last = alias.COLUMNS - 1
    assert NUMBERS * (2 * last + 1) + NUMBERS - 1 == np.iinfo(np.int64).max


def several_successors(rng):
    return random_tasks(rng, 3, 5, 4, 3, horizon=4)


def one_successor(rng):
    return GridWorld.open(2, 3, discount=0.9, horizon=4).mdps([3, 4, 5])


def parts_of(tables):
    """{name: array}, those of each draw included."""
    parts = dict(vars(tables))
    del parts["mdps"]
    for i, draw in enumerate(parts.pop("draws")):
        assert isinstance(draw, AliasTables)
        parts |= {f"{name} of draw {i}": x for name, x in vars(draw).items()}
    return parts


@pytest.mark.parametrize("tasks", [several_successors, one_successor])
def test_a_shared_policy_gives_the_tables_of_one_that_each_task_has(rng, tasks, way):
    mdps = tasks(rng)
    n_tasks, n_states, n_actions = mdps.shape
    log_pi = random_log_pi(rng, 1, n_states, n_actions)[0]
    shared = parts_of(sampling_tables(mdps, log_pi))
    own = parts_of(sampling_tables(mdps, np.array([log_pi] * n_tasks)))
    for name in shared:
        np.testing.assert_array_equal(shared[name], own[name], err_msg=name)


def test_tables_of_other_tasks_are_refused(rng):
    two = random_tasks(rng, 2, 3, 2, 2, horizon=2)
    three = random_tasks(rng, 3, 3, 2, 2, horizon=2)
    tables = sampling_tables(two, np.full((3, 2), -np.log(2)))
    with pytest.raises(ValueError, match=r"log_pi: tables made for .*\(2, 3, 2\).*\(3, 3, 2\)"):
        rollout(rng, three, tables, 4)


def ends_nowhere(mdps):
    return replace(mdps, terminal=np.zeros_like(mdps.terminal))


def turned(name):
    """The same tasks, but the two tasks change places in one array."""
    return lambda mdps: replace(mdps, **{name: getattr(mdps, name)[::-1]})


@pytest.mark.parametrize(
    "change",
    [turned("successors"), turned("probabilities"), turned("rewards"), ends_nowhere],
    ids=["successors", "probabilities", "rewards", "terminal"],
)
def test_tables_of_other_tasks_of_the_same_shape_are_refused(rng, change):
    mdps = ends_nowhere(coded(random_tasks(rng, 2, 3, 2, 2, horizon=2)))
    if change is ends_nowhere:
        mdps = coded(random_tasks(rng, 2, 3, 2, 2, horizon=2))
    tables = sampling_tables(mdps, np.full((3, 2), -np.log(2)))
    rollout(rng, mdps, tables, 4)
    with pytest.raises(ValueError, match="^log_pi: tables made for other tasks"):
        rollout(rng, change(mdps), tables, 4)


SAME_STEPS = {
    "a copy": deepcopy,
    "a slice": lambda mdps: mdps[:],
    "another horizon": lambda mdps: replace(mdps, horizon=1),
    "another discount": lambda mdps: replace(mdps, discount=0.1),
    "another start": lambda mdps: replace(mdps, start=np.eye(3)[[1, 1]]),
    "noise": lambda mdps: replace(mdps, reward_noise=2.0),
}


@pytest.mark.parametrize("change", SAME_STEPS.values(), ids=SAME_STEPS)
def test_tables_serve_all_tasks_of_the_same_steps(rng, change):
    mdps = random_tasks(rng, 2, 3, 2, 2, horizon=2)
    log_pi = random_log_pi(rng, 2, 3, 2)
    other = change(mdps)
    tables = sampling_tables(mdps, log_pi)
    with_tables, without = (
        rollout(np.random.default_rng(0), other, x, 50) for x in (tables, log_pi)
    )
    for name in ("states", "actions", "rewards", "mask", "last_states"):
        np.testing.assert_array_equal(getattr(with_tables, name), getattr(without, name))


def test_many_threads_may_ask_for_the_tables_of_new_tasks_at_once(rng, monkeypatch):
    monkeypatch.setattr(alias, "JOINT", 0)
    tasks = [random_tasks(rng, 2, 5, 3, 3, horizon=3) for _ in range(40)]
    log_pi = random_log_pi(rng, 2, 5, 3)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: sampling_tables(tasks[i // 8], log_pi), range(320)))
    for i, tables in enumerate(made):
        again = parts_of(sampling_tables(deepcopy(tasks[i // 8]), log_pi))
        for name, x in parts_of(tables).items():
            np.testing.assert_array_equal(x, again[name], err_msg=name)


@pytest.mark.parametrize("n_actions, n_slots", [(1, 1), (1, 3), (3, 1), (1, 70), (70, 1)])
def test_one_state_with_one_action_or_one_successor(rng, n_actions, n_slots):
    """The smallest tables there are, and those where a second draw would decide nothing."""
    shape = (1, 1, n_actions, n_slots)
    p = rng.dirichlet(np.full(n_slots, 5), shape[:3])
    mdps = coded(MDP(np.zeros(shape, int), p, np.zeros(shape), [[1.0]], [[False]], 1, 3))
    pi = rng.dirichlet(np.full(n_actions, 5), 1)
    k = 30_000
    e = rollout(rng, mdps, np.log(pi), k)
    count = np.bincount(e.rewards.astype(int).ravel() - 1, minlength=p.size)
    expected = pi.reshape(-1, 1) * p[0, 0]
    assert chi2_p(count, 3 * k * expected, max(1, p.size - 1)) > 1e-3
    np.testing.assert_array_equal(e.actions, (e.rewards.astype(int) - 1) // n_slots)
    assert not e.states.any() and not e.last_states.any()


@pytest.mark.parametrize("least", [0.0, 1e-300, 1e-30])
def test_what_is_as_good_as_impossible_is_never_drawn(rng, way, least):
    """Of actions and of successors: the other one keeps all 2³² numbers."""
    p = np.array([least, 1 - least])
    mdps = MDP.from_dense(
        np.broadcast_to(p, (2, 2, 2)), np.zeros((2, 2)), 1, discount=1, horizon=500
    )
    with np.errstate(divide="ignore"):
        log_pi = np.log(np.stack([p, p]))
    tables = sampling_tables(mdps, log_pi)
    for draw in tables.draws:
        assert set(shares(draw)) <= {0, 0.25, 0.5, 1}
    e = rollout(rng, mdps, tables, 1000)
    assert e.actions.all() and e.states.all() and e.last_states.all()


def test_a_batch_in_which_one_task_is_dense_and_one_has_a_single_successor(rng):
    """The second task's successors are filled up with some of probability 0."""
    n_states = 20
    P = np.zeros((2, n_states, 5, n_states))
    P[0] = rng.dirichlet(np.ones(n_states), (n_states, 5))
    after = rng.integers(n_states, size=(n_states, 5))
    P[1] = np.eye(n_states)[after]
    mdps = MDP.from_dense(P, np.zeros(P.shape), 0, discount=1, horizon=50)
    assert not _jointly(mdps)
    pi = rng.dirichlet(np.ones(5), n_states)
    e = rollout(rng, mdps, np.log(pi), 20_000)
    path = np.concatenate([e.states, e.last_states[None]])
    np.testing.assert_array_equal(path[1:, 1], after[path[:-1, 1], e.actions[:, 1]])
    step = np.zeros(P.shape[1:])
    np.add.at(step, (path[:-1, 0], e.actions[:, 0], path[1:, 0]), 1)
    visits = step.sum((1, 2), keepdims=True)
    expected = visits * pi[..., None] * P[0]
    often = expected > 20
    assert chi2_p(step[often], expected[often], often.sum()) > 1e-3
