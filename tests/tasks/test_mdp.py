"""The batch of tabular MDPs: its constructors, sub-batches, auto-reset, and what each of them
refuses.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers import dense, pattern, random_tasks

from metarl_np import exact
from metarl_np.learner.rollouts import rollout
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.gymnasium import mdp_from_gymnasium
from metarl_np.tasks.mdp import MDP

NAN = np.nan
INF = np.inf


def random_dense(rng, n=3, s=5, a=2):
    """Sparse P and R (N, S, A, S) and terminal (N, S): the last state of every task, and state 1 of
    the last task.
    """
    P = rng.random((n, s, a, s)) * (rng.random((n, s, a, s)) < 0.6) + 0.1 * np.eye(s)[0]
    P /= P.sum(-1, keepdims=True)
    R = rng.normal(size=P.shape)
    terminal = np.zeros((n, s), bool)
    terminal[:, -1] = terminal[-1, 1] = True
    P[terminal] = np.eye(s)[np.nonzero(terminal)[1]][:, None]
    R[terminal] = 0.0
    return P, R, terminal


def parts():
    """Valid arrays of 2 tasks, 3 states (the last terminal), 2 actions and 2 successors."""
    successors = np.array(
        [
            [[[1, 2], [0, 1]], [[2, 0], [1, 2]], [[2, 2], [2, 2]]],
            [[[0, 2], [2, 1]], [[0, 1], [0, 2]], [[2, 2], [2, 2]]],
        ]
    )
    rewards = np.arange(24.0).reshape(2, 3, 2, 2)
    rewards[:, 2] = 0
    return dict(
        successors=successors,
        probabilities=np.full((2, 3, 2, 2), 0.5),
        rewards=rewards,
        start=np.array([[1.0, 0, 0], [0.5, 0.5, 0]]),
        terminal=np.array([[False, False, True]] * 2),
        discount=0.9,
        horizon=4,
        reward_noise=np.array([0.0, 0.3]),
    )


def chain(**changes):
    """Arguments of from_dense for two states of which the second is terminal."""
    args = dict(
        P=[[[0.5, 0.5], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]],
        R=[[1.0, 2.0], [0.0, 0.0]],
        start=0,
        terminal=[False, True],
        discount=0.9,
        horizon=3,
    )
    return args | changes


# Dense tables


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("per_transition", [True, False])
def test_from_dense(rng, one, per_transition):
    P, R, terminal = random_dense(rng)
    R = R if per_transition else R[..., 0]
    if one:
        P = P[2]
        R = R[2]
        terminal = terminal[2]
    mdps = MDP.from_dense(P, R, 0, discount=0.9, horizon=7, terminal=terminal, reward_noise=0.5)
    got_P, got_PR = dense(mdps)
    np.testing.assert_allclose(got_P, P[None] if one else P, atol=1e-15)
    want_PR = P * (R if per_transition else R[..., None])
    np.testing.assert_allclose(got_PR, want_PR[None] if one else want_PR, atol=1e-15)
    np.testing.assert_allclose(mdps.expected_rewards, got_PR.sum(-1), atol=1e-14)
    assert mdps.shape == ((1, 5, 2) if one else (3, 5, 2)) and len(mdps) == mdps.shape[0]
    # no slot is wasted on what cannot happen
    assert mdps.successors.shape[-1] == (P > 0).sum(-1).max()
    assert (mdps.terminal == terminal).all() and (mdps.discount, mdps.horizon) == (0.9, 7)
    assert (mdps.reward_noise == 0.5).all() and mdps.reward_noise.shape == (len(mdps),)
    assert mdps.start.tolist() == [[1, 0, 0, 0, 0]] * len(mdps)


def test_from_dense_start_distributions(rng):
    P, R, terminal = random_dense(rng)
    shared = np.array([0.75, 0, 0.25, 0, 0])
    own = np.array([[1.0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0.25, 0, 0, 0.75, 0]])
    rules = dict(discount=1, horizon=1, terminal=terminal)
    assert (MDP.from_dense(P, R, shared, **rules).start == shared).all()
    assert (MDP.from_dense(P, R, own, **rules).start == own).all()
    assert MDP.from_dense(P, R, 3, **rules).start[:, 3].tolist() == [1, 1, 1]


def test_two_rewards_on_one_successor():
    mdps = MDP(
        [[[[0, 0]]], [[[0, 0]]]],
        [[[[0.7, 0.3]]], [[[0.9, 0.1]]]],
        [[[[0, 1.0]]], [[[5.0, -5.0]]]],
        np.ones((2, 1)),
        np.zeros((2, 1), bool),
        1.0,
        1,
    )
    np.testing.assert_allclose(mdps.expected_rewards.ravel(), [0.3, 4.0])


# Gymnasium's tables


def frozen_lake(rows):
    """Gymnasium's table by its rule: actions left, down, right, up; each neighbouring direction of
    the wanted one as likely.
    """
    h = len(rows)
    w = len(rows[0])
    table = {}
    for r in range(h):
        for c in range(w):
            table[r * w + c] = {}
            for a in range(4):
                outcomes = []
                for b in ((a - 1) % 4, a, (a + 1) % 4):
                    row = max(0, min(h - 1, r + (0, 1, 0, -1)[b]))
                    col = max(0, min(w - 1, c + (-1, 0, 1, 0)[b]))
                    outcomes.append(
                        (1 / 3, row * w + col, float(rows[row][col] == "G"), rows[row][col] in "GH")
                    )
                table[r * w + c][a] = (
                    [(1.0, r * w + c, 0, True)] if rows[r][c] in "GH" else outcomes
                )
    return table


def test_frozen_lake_is_a_grid_world():
    rows = ["SFFF", "FHFH", "FFFH", "HFFG"]
    lake = mdp_from_gymnasium(frozen_lake(rows), 0, discount=0.99, horizon=100)
    grid = GridWorld(
        [row.replace("H", "O").replace("F", ".") for row in rows],
        discount=0.99,
        horizon=100,
        slip=2 / 3,
    ).mdps()
    ours = [2, 1, 3, 0]  # up, down, left, right in Gymnasium's order
    for got, want in zip(dense(grid), dense(lake)):
        np.testing.assert_allclose(got[:, :, ours], want, atol=1e-15)
    assert (grid.terminal == lake.terminal).all() and (grid.start == lake.start).all()


# Sub-batches and start states


@pytest.mark.parametrize(
    "tasks, names",
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(2), [2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -2), [2, 0]),
        ([2, 0, 0], [2, 0, 0]),
        (np.array([True, False, True]), [0, 2]),
    ],
)
def test_sub_batches(rng, tasks, names):
    P, R, terminal = random_dense(rng)
    mdps = MDP.from_dense(
        P, R, 0, discount=0.9, horizon=7, terminal=terminal, reward_noise=[0.1, 0.2, 0.3]
    )
    part = mdps[tasks]
    assert len(part) == len(names) and (part.discount, part.horizon) == (0.9, 7) and len(mdps) == 3
    for name in ("successors", "probabilities", "rewards", "start", "terminal", "reward_noise"):
        np.testing.assert_array_equal(
            getattr(part, name), np.stack([getattr(mdps, name)[i] for i in names])
        )
        assert not getattr(part, name).flags.writeable


def test_start_support(rng):
    P, R, terminal = random_dense(rng)
    start = np.array([[0, 1.0, 0, 0, 0], [0, 0.25, 0, 0.75, 0], [0.5, 0, 0.3, 0.2, 0]])
    states, chances = MDP.from_dense(
        P, R, start, discount=0.9, horizon=7, terminal=terminal
    ).start_support
    assert states.shape == chances.shape == (3, 3)
    for i, want in enumerate([{1: 1.0}, {1: 0.25, 3: 0.75}, {0: 0.5, 2: 0.3, 3: 0.2}]):
        assert {int(s): p for s, p in zip(states[i], chances[i]) if p} == want


def test_iteration_and_empty_batches():
    mdps = MDP(**parts())
    assert [m.reward_noise.tolist() for m in mdps] == [[0.0], [0.3]]
    with pytest.raises(IndexError):
        mdps[2]
    with pytest.raises(ValueError, match="tasks"):
        mdps[2:]


def test_arrays_are_copied_and_read_only():
    given = parts()
    mdps = MDP(**given)
    for name, array in given.items():
        if isinstance(array, np.ndarray):
            before = array.copy()
            with pytest.raises(ValueError, match="read-only"):
                getattr(mdps, name)[0] = 1
            array[...] = 0  # the caller's stays his own, and changing it does not change the MDP
            np.testing.assert_array_equal(getattr(mdps, name), before)
    with pytest.raises(AttributeError):
        mdps.discount = 0.5


def test_next_rows_find_successors_in_a_flat_table(rng):
    mdps = random_tasks(rng, 3, 5, 2, 2, horizon=4)
    v = rng.normal(size=(3, 5))
    assert mdps.next_rows.shape == mdps.successors.shape
    for place in np.ndindex(mdps.successors.shape):
        assert v.ravel()[mdps.next_rows[place]] == v[place[0], mdps.successors[place]]


@pytest.mark.parametrize("tasks", [slice(1, None), [2, 0], 1])
def test_sub_batches_do_not_inherit_what_was_computed_of_the_whole(rng, tasks):
    mdps = random_tasks(rng, 3, 5, 2, 2, horizon=4)
    whole = mdps.expected_rewards
    rows = mdps.next_rows
    part = mdps[tasks]
    np.testing.assert_allclose(
        part.expected_rewards, whole[np.atleast_1d(np.arange(3)[tasks])], rtol=1e-14
    )
    np.testing.assert_array_equal(
        part.next_rows, part.successors + 5 * np.arange(len(part))[:, None, None, None]
    )
    assert mdps.expected_rewards is whole and mdps.next_rows is rows  # computed once
    double = replace(mdps, rewards=2 * mdps.rewards)
    np.testing.assert_allclose(double.expected_rewards, 2 * whole, rtol=1e-14)


# Time in the state


@pytest.fixture
def timed(rng):
    """3 tasks of 4 states, another one terminal in each, 2 actions and 3 steps; and the same with
    time.
    """
    mdps = random_tasks(rng, 3, 4, 2, 2, horizon=3, discount=0.8, reward_noise=[0.1, 0.2, 0.3])
    return mdps, mdps.with_time()


def test_with_time_by_loops(timed):
    mdps, clocked = timed
    assert clocked.shape == (3, 16, 2) and (clocked.discount, clocked.horizon) == (0.8, 3)
    assert clocked.reward_noise.tolist() == [0.1, 0.2, 0.3]
    P, PR = dense(mdps)
    got_P, got_PR = dense(clocked)
    want_P, want_PR = np.zeros((2, 3, 16, 2, 16))
    for i, t, s in np.ndindex(3, 4, 4):
        ends = t == 3 or mdps.terminal[i, s]
        assert clocked.terminal[i, 4 * t + s] == ends
        assert clocked.start[i, 4 * t + s] == pytest.approx(
            mdps.start[i, s] if t == 0 else 0, abs=1e-15
        )
        for a in range(2):
            if ends:
                want_P[i, 4 * t + s, a, 4 * t + s] = 1
            else:
                want_P[i, 4 * t + s, a, 4 * (t + 1) : 4 * (t + 2)] = P[i, s, a]
                want_PR[i, 4 * t + s, a, 4 * (t + 1) : 4 * (t + 2)] = PR[i, s, a]
    np.testing.assert_allclose(got_P, want_P, atol=1e-15)
    np.testing.assert_allclose(got_PR, want_PR, atol=1e-15)


def test_with_time_keeps_every_value(rng, timed):
    """A copy's value with the whole horizon left is that of its state with T − t steps to go, since
    the copies at T are the end.
    """
    mdps, clocked = timed
    log_pi = np.log(rng.dirichlet((1, 1), (3, 4)))
    v = exact.values(mdps, log_pi)
    copies = np.tile(log_pi, (1, 4, 1))
    got = exact.values(clocked, copies).reshape(4, 3, 4, 4)  # clock, task, t, s
    for t in range(4):
        np.testing.assert_allclose(got[t, :, t], v[t], atol=1e-14)
        np.testing.assert_allclose(got[0, :, t], v[t], atol=1e-14)
    np.testing.assert_allclose(
        exact.expected_return(clocked, copies), exact.expected_return(mdps, log_pi), atol=1e-14
    )
    occupancy = exact.occupancy(clocked, copies).reshape(3, 3, 4, 4) * ~clocked.terminal.reshape(
        3, 4, 4
    )
    for t in range(3):  # all of it is where the clock says, and there it is the original's
        np.testing.assert_allclose(occupancy[t].sum(1), occupancy[t, :, t], atol=1e-15)
        np.testing.assert_allclose(
            occupancy[t, :, t], exact.occupancy(mdps, log_pi)[t] * ~mdps.terminal, atol=1e-14
        )


def test_rollouts_with_time_keep_the_clock(rng, timed):
    mdps, clocked = timed
    log_pi = np.log(rng.dirichlet((1, 1), (3, 4)))
    e = rollout(rng, clocked, np.tile(log_pi, (1, 4, 1)), 4000)
    clock = np.broadcast_to(np.arange(3)[:, None, None], e.states.shape)
    assert (e.states // 4 == clock)[e.mask].all() and not e.truncated.any() and not e.mask.all()
    assert (e.last_states[e.mask[-1]] // 4 == 3).all()
    returns = np.tensordot(0.8 ** np.arange(3), e.rewards, 1)
    error = returns.std(1) / np.sqrt(4000)
    assert (abs(returns.mean(1) - exact.expected_return(mdps, log_pi)) < 4.5 * error).all()
    assert len(np.unique(e.rewards[0, 1])) > 1000  # the noise came along


# Auto-reset


def test_auto_reset(rng):
    P, R, terminal = random_dense(rng)
    start = np.array([[1.0, 0, 0, 0, 0], [0.25, 0.75, 0, 0, 0], [0.5, 0, 0.3, 0.2, 0]])
    mdps = MDP.from_dense(
        P, R, start, discount=0.9, horizon=7, terminal=terminal, reward_noise=[0.1, 0.2, 0.3]
    )
    reset = mdps.auto_reset()
    want = P.copy()
    got = dense(reset)[0]
    for i in range(3):
        for s in np.flatnonzero(~terminal[i]):
            for a in range(2):
                want[i, s, a] = (
                    np.where(terminal[i], 0, P[i, s, a]) + P[i, s, a, terminal[i]].sum() * start[i]
                )
    np.testing.assert_allclose(got, want, atol=1e-15)
    # the last reward is kept
    np.testing.assert_allclose(reset.expected_rewards, (P * R).sum(-1), atol=1e-14)
    assert not reset.terminal.any() and (reset.start == start).all()
    assert (reset.discount, reset.horizon, reset.reward_noise.tolist()) == (0.9, 7, [0.1, 0.2, 0.3])
    assert reset.successors.shape[-1] == 3 * mdps.successors.shape[-1]


# Bad input


@pytest.mark.parametrize(
    "name, place, value, why",
    [
        (
            "probabilities",
            (1, 0, 1, 0),
            -0.5,
            "probabilities: negative (at task 1, state 0, action 1, successor 0)",
        ),
        (
            "probabilities",
            (1, 0, 1, 0),
            NAN,
            "probabilities: NaN (at task 1, state 0, action 1, successor 0)",
        ),
        (
            "probabilities",
            (1, 1, 0, 1),
            0.4,
            "probabilities: sum to one (at task 1, state 1, action 0)",
        ),
        (
            "probabilities",
            (1, 1, 0, 1),
            INF,
            "probabilities: sum to one (at task 1, state 1, action 0)",
        ),
        (
            "successors",
            (0, 1, 1, 1),
            3,
            "successors: outside 0..2 (at task 0, state 1, action 1, successor 1)",
        ),
        (
            "successors",
            (1, 0, 1, 1),
            -1,
            "successors: outside 0..2 (at task 1, state 0, action 1, successor 1)",
        ),
        (
            "rewards",
            (1, 0, 0, 1),
            NAN,
            "rewards: not finite (at task 1, state 0, action 0, successor 1)",
        ),
        (
            "rewards",
            (0, 1, 0, 0),
            -INF,
            "rewards: not finite (at task 0, state 1, action 0, successor 0)",
        ),
        ("start", (1, 0), -0.5, "start: negative (at task 1, state 0)"),
        ("start", (1, 1), NAN, "start: NaN (at task 1, state 1)"),
        ("start", (1, 1), 0.4, "start: sum to one (at task 1)"),
        ("terminal", (1, 1), True, "start: terminal state (at task 1, state 1)"),
        (
            "terminal",
            (0, 1),
            True,
            "terminal: absorbing (at task 0, state 1, action 0, successor 0)",
        ),
        (
            "rewards",
            (1, 2, 1, 0),
            1.0,
            "terminal: pay 0 (at task 1, state 2, action 1, successor 0)",
        ),
        (
            "successors",
            (0, 2, 0, 1),
            1,
            "terminal: absorbing (at task 0, state 2, action 0, successor 1)",
        ),
        ("reward_noise", (1,), -1.0, "reward_noise: negative (at task 1)"),
        ("reward_noise", (1,), NAN, "reward_noise: not finite (at task 1)"),
        ("reward_noise", (0,), INF, "reward_noise: not finite (at task 0)"),
    ],
)
def test_bad_entries(name, place, value, why):
    bad = parts()
    bad[name][place] = value
    with pytest.raises(ValueError, match=pattern(why)):
        MDP(**bad)


@pytest.mark.parametrize(
    "name, value",
    [
        ("discount", -0.01),
        ("discount", 1.01),
        ("discount", NAN),
        ("horizon", 0),
        ("horizon", -3),
        ("horizon", 2.5),
        ("horizon", NAN),
        ("horizon", INF),
        ("successors", np.zeros((2, 3, 2), int)),
        ("successors", np.zeros((2, 3, 2, 0), int)),
        ("successors", np.zeros((2, 3, 2, 2))),
        ("probabilities", np.full((2, 3, 2), 0.5)),
        ("rewards", np.zeros((2, 3, 2, 1))),
        ("start", np.ones(3) / 3),
        ("terminal", np.zeros((3, 2), bool)),
        ("reward_noise", np.zeros(3)),
        ("reward_noise", np.zeros((1, 2))),
    ],
)
def test_bad_numbers_and_shapes(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        MDP(**parts() | {name: value})


@pytest.mark.parametrize("discount", [0, 1, 0.5])
def test_the_bounds_of_what_is_allowed(discount):
    good = parts() | dict(discount=discount, horizon=1, reward_noise=0.0)
    good["probabilities"][0, 2, 1] = 1.0, 0.0
    # never taken: even a terminal state may say anything
    good["successors"][0, 2, 1, 1], good["rewards"][0, 2, 1, 1] = (0, 3.0)
    assert MDP(**good).reward_noise.tolist() == [0, 0] and list(range(MDP(**good).horizon)) == [0]


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(P=[[1.0]]), "P: shape"),
        (dict(P=np.ones((2, 2, 3)) / 3), "P: shape"),
        (dict(P=np.zeros((0, 2, 0))), "P: shape"),
        (
            dict(P=[[[NAN, 0.5], [0, 1]], [[0, 1], [0, 1]]]),
            "P: NaN (at task 0, state 0, action 0, successor 0)",
        ),
        (
            dict(P=[[[0.5, 0.5], [-0.5, 1.5]], [[0, 1], [0, 1]]]),
            "P: negative (at task 0, state 0, action 1, successor 0)",
        ),
        (
            dict(P=[[[0.5, 0.5], [0, 1]], [[0, 1], [0, 0.9]]]),
            "P: sum to one (at task 0, state 1, action 1)",
        ),
        (
            dict(P=[[[0.5, 0.5], [0, 1]], [[0, 1], [0, 0]]]),
            "P: sum to one (at task 0, state 1, action 1)",
        ),
        (dict(R=np.zeros((2, 2, 1))), "R: shape"),
        (dict(R=np.zeros((1, 2, 2))), "R: shape"),
        (dict(R=[[0, NAN], [0, 0]]), "R: not finite (at task 0, state 0, action 1, successor 0)"),
        (dict(R=[[0, 0], [INF, 0]]), "R: not finite (at task 0, state 1, action 0, successor 0)"),
        (dict(R=[[0, 0], [0, 1.0]]), "terminal: pay 0 (at task 0, state 1, action 1, successor 0)"),
        (
            dict(terminal=[True, False], start=1),
            "terminal: absorbing (at task 0, state 0, action 0",
        ),
        (dict(terminal=[True]), "terminal: shape"),
        (dict(start=1), "start: terminal state (at task 0, state 1)"),
        (dict(start=2), "start: outside 0..1"),
        (dict(start=-1), "start: outside 0..1"),
        (dict(start=0.5), "start: outside 0..1"),
        (dict(start=[1.0, 0, 0]), "start: shape"),
    ],
)
def test_from_dense_refuses(changes, why):
    with pytest.raises(ValueError, match=pattern(why)):
        MDP.from_dense(**chain(**changes))


def test_from_dense_names_the_task(rng):
    P, R, terminal = random_dense(rng)
    P[1, 3, 1] *= 1.5
    with pytest.raises(ValueError, match=pattern("P: sum to one (at task 1, state 3, action 1)")):
        MDP.from_dense(P, R, 0, discount=0.9, horizon=7, terminal=terminal)


@pytest.mark.parametrize(
    "index",
    [
        1.0,
        [],
        "x",
        None,
        (0, 1),
        [0, 3],
        3,
        -4,
        [True, False],
        [False] * 3,
        True,
        [[0], [1]],
        slice(0, 2.0),
        slice(None, None, 0),
        slice(3, 5),
        slice(0, 0),
        [0.5],
        [1, "x"],
        [2**70],
    ],
    ids=repr,
)
def test_a_bad_index_of_tasks_is_named(rng, index):
    with pytest.raises(ValueError, match="^tasks: (?!expected numbers)"):
        random_tasks(rng, 3, 3, 2, 2, horizon=2)[index]


@pytest.mark.parametrize(
    "index, chosen",
    [
        (-1, [2]),
        ([2, -3], [2, 0]),
        (slice(None, None, -1), [2, 1, 0]),
        ([True, False, True], [0, 2]),
        (np.uint8(1), [1]),
    ],
    ids=repr,
)
def test_an_index_chooses_what_numpy_says(rng, index, chosen):
    mdps = random_tasks(rng, 3, 3, 2, 2, horizon=2)
    np.testing.assert_array_equal(mdps[index].rewards, mdps.rewards[chosen])


def test_a_loop_over_tasks_ends(rng):
    mdps = random_tasks(rng, 3, 3, 2, 2, horizon=2)
    assert [len(task) for task in mdps] == [1, 1, 1]


def test_an_index_of_few_bits_reaches_all_of_many_tasks(rng):
    mdps = random_tasks(rng, 300, 2, 2, 2, horizon=2)
    assert len(mdps[np.arange(3, dtype=np.uint8)]) == 3
