"""The oracles of `exact`, against figures printed in Sutton & Barto (2018) and for FrozenLake,
against recursion over all episodes, finite differences, and limits by hand. The enumeration of
episodes is checked here too, by plain recursion, since it is what most other chapters lean on.
"""

from dataclasses import replace
from itertools import product

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads
from helpers import (
    POLICIES,
    all_episodes,
    named,
    policies,
    random_tasks,
    return_of,
    terminal_state,
)

from metarl_np.check import finite_differences
from metarl_np import enumeration, exact
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import reinforce_table
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline, time_mean_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.gymnasium import mdp_from_gymnasium
from metarl_np.tasks.mdp import MDP

N = 2
S = 3
A = 2
Z = 2
T = 3
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@pytest.fixture
def tasks(rng):
    return random_tasks(rng, N, S, A, Z, horizon=T, discount=0.8)


@pytest.fixture
def log_pi(rng):
    return np.log(rng.dirichlet(np.ones(A), (N, S)))


def uniform(mdps):
    return np.full(mdps.shape[1:], -np.log(mdps.shape[2]))


def transitions(mdps, i, s, a):
    return zip(mdps.probabilities[i, s, a], mdps.successors[i, s, a], mdps.rewards[i, s, a])


def recursive_value(mdps, i, s, t, act):
    """V_t(s) by the definition; act(t, s) → π(·|s) at time t."""
    if t == mdps.horizon or mdps.terminal[i, s]:
        return 0.0
    return sum(
        pa * p * (r + mdps.discount * recursive_value(mdps, i, z, t + 1, act))
        for a, pa in enumerate(act(t, s))
        if pa
        for p, z, r in transitions(mdps, i, s, a)
    )


# ---- published figures


def example_3_5():
    """Sutton & Barto (2018), Example 3.5: 5×5; A = (0, 1) → (4, 1) pays 10, B = (0, 3) → (2, 3)
    pays 5, leaving the grid −1.
    """
    P = np.zeros((25, 4, 25))
    R = np.zeros((25, 4))
    for row, column in product(range(5), range(5)):
        for a, (dr, dc) in enumerate(MOVES):
            s = 5 * row + column
            to = (row + dr, column + dc)
            pay = 0
            if not (0 <= to[0] < 5 and 0 <= to[1] < 5):
                to = (row, column)
                pay = -1
            if (row, column) == (0, 1):
                to = (4, 1)
                pay = 10
            if (row, column) == (0, 3):
                to = (2, 3)
                pay = 5
            P[s, a, 5 * to[0] + to[1]] = 1
            R[s, a] = pay
    return MDP.from_dense(P, R, 0, discount=0.9, horizon=300)


def test_sutton_barto_example_3_5_uniform_policy():
    published = [
        [3.3, 8.8, 4.4, 5.3, 1.5],
        [1.5, 3.0, 2.3, 1.9, 0.5],
        [0.1, 0.7, 0.7, 0.4, -0.4],
        [-1.0, -0.4, -0.4, -0.6, -1.2],
        [-1.9, -1.3, -1.2, -1.4, -2.0],
    ]
    mdps = example_3_5()
    v = exact.stationary_values(mdps, uniform(mdps))
    np.testing.assert_allclose(v.reshape(5, 5), published, atol=0.05)
    np.testing.assert_allclose(exact.values(mdps, uniform(mdps))[0], v, atol=1e-10)


def test_sutton_barto_example_3_5_optimum():
    published = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    mdps = example_3_5()
    v = exact.stationary_optimal_values(mdps)
    np.testing.assert_allclose(v.reshape(5, 5), published, atol=0.05)
    assert v.max() == pytest.approx(10 / (1 - 0.9**5), abs=1e-9) and v.argmax() == 1
    np.testing.assert_allclose(exact.optimal_values(mdps)[0], v, atol=1e-10)


def example_4_1():
    """Sutton & Barto (2018), Example 4.1: 4×4, −1 a move, two opposite corners end it, γ = 1."""
    P = np.zeros((16, 4, 16))
    R = -np.ones((16, 4))
    for s, (a, (dr, dc)) in product(range(16), enumerate(MOVES)):
        P[s, a, 4 * min(max(s // 4 + dr, 0), 3) + min(max(s % 4 + dc, 0), 3)] = 1
    for s in (0, 15):
        P[s] = np.eye(16)[s]
        R[s] = 0
    return MDP.from_dense(
        P, R, 1, discount=1, horizon=1000, terminal=np.isin(np.arange(16), [0, 15])
    )


def test_sutton_barto_example_4_1_undiscounted():
    published = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    mdps = example_4_1()
    v = exact.stationary_values(mdps, uniform(mdps))
    np.testing.assert_allclose(v.reshape(4, 4), published, atol=1e-10)
    np.testing.assert_allclose(exact.values(mdps, uniform(mdps))[0], v, atol=1e-8)
    best = [[0, -1, -2, -3], [-1, -2, -3, -2], [-2, -3, -2, -1], [-3, -2, -1, 0]]
    assert exact.stationary_optimal_values(mdps).reshape(4, 4).tolist() == best


FROZEN_LAKE = "SFFF", "FHFH", "FFFH", "HFFG"


def gymnasium_frozen_lake():
    """{s: {a: [(p, s', r, done)]}} by Gymnasium's rule: left, down, right, up; the action or a
    perpendicular one, a third each.
    """
    cells = "".join(FROZEN_LAKE)

    def move(s, a):
        row, column = divmod(s, 4)
        dr, dc = ((0, -1), (1, 0), (0, 1), (-1, 0))[a]
        z = 4 * min(max(row + dr, 0), 3) + min(max(column + dc, 0), 3)
        return 1 / 3, z, float(cells[z] == "G"), cells[z] in "GH"

    return {
        s: {
            a: (
                [(1.0, s, 0, True)]
                if cells[s] in "GH"
                else [move(s, b % 4) for b in (a - 1, a, a + 1)]
            )
            for a in range(4)
        }
        for s in range(16)
    }


def test_frozen_lake_two_ways():
    table = mdp_from_gymnasium(gymnasium_frozen_lake(), 0, discount=0.99, horizon=100)
    layout = tuple(row.replace("F", ".").replace("H", "O") for row in FROZEN_LAKE)
    grid = GridWorld(layout, slip=2 / 3, discount=0.99, horizon=100).mdps()
    for mdps in (table, grid):
        assert exact.stationary_optimal_values(mdps)[0, 0] == pytest.approx(0.5420259, abs=5e-8)
    np.testing.assert_allclose(
        exact.stationary_optimal_values(table)[:, :16],
        exact.stationary_optimal_values(grid),
        atol=1e-8,
    )
    np.testing.assert_allclose(
        exact.optimal_values(table)[:, :, :16], exact.optimal_values(grid), atol=1e-14
    )


# ---- values and occupancy


def test_one_step_and_two_steps_by_hand():
    """State 0 pays 1 and goes to 1 or ends, ½ each; state 1 pays 4 and ends. γ = ½."""
    P = np.array([[[0, 0.5, 0.5]], [[0, 0, 1]], [[0, 0, 1]]])
    mdps = MDP.from_dense(P, [[1], [4], [0]], 0, discount=0.5, horizon=2, terminal=[0, 0, 1])
    assert exact.values(mdps, np.zeros((3, 1)))[:, 0].tolist() == [[2, 4, 0], [1, 4, 0], [0, 0, 0]]
    assert exact.expected_return(mdps, np.zeros((3, 1))).tolist() == [2]
    assert exact.occupancy(mdps, np.zeros((3, 1)))[:, 0].tolist() == [[1, 0, 0], [0, 0.25, 0.25]]
    assert exact.action_values(mdps, np.array([[8.0, 4, 0]])).tolist() == [[[2], [4], [0]]]


def test_values_against_recursion(tasks, log_pi):
    v = exact.values(tasks, log_pi)
    assert v.shape == (T + 1, N, S)
    for t, i, s in np.ndindex(v.shape):
        assert v[t, i, s] == pytest.approx(
            recursive_value(tasks, i, s, t, lambda t, s: np.exp(log_pi[i, s])), abs=1e-13
        )


def test_return_and_occupancy_against_every_trajectory(tasks, log_pi):
    returns = exact.expected_return(tasks, log_pi)
    d = exact.occupancy(tasks, log_pi)
    for i in range(N):
        episodes = list(all_episodes(tasks, i, np.exp(log_pi[i])))
        assert returns[i] == pytest.approx(
            sum(p * return_of(path, 0.8) for p, path, _ in episodes), abs=1e-13
        )
        expected = np.zeros((T, S))
        end = terminal_state(i, S)
        for p, path, _ in episodes:
            visited = [s for s, _, _ in path] + [end] * (T - len(path))
            for t, s in enumerate(visited):
                expected[t, s] += 0.8**t * p
        np.testing.assert_allclose(d[:, i], expected, atol=1e-14)


def test_a_shared_table_and_a_sub_batch(tasks, log_pi):
    shared = exact.values(tasks, log_pi[0])
    np.testing.assert_array_equal(shared, exact.values(tasks, np.stack([log_pi[0]] * N)))
    np.testing.assert_array_equal(
        exact.values(tasks[::-1], log_pi[::-1]), exact.values(tasks, log_pi)[:, ::-1]
    )
    assert (
        abs(exact.expected_return(tasks, log_pi)[0] - exact.expected_return(tasks, log_pi)[1])
        > 1e-3
    )


def test_stationary_values_are_the_limit(tasks, log_pi):
    for discount, horizon in ((0.9, 350), (0, 3)):
        mdps = replace(tasks, discount=discount, horizon=horizon)
        np.testing.assert_allclose(
            exact.stationary_values(mdps, log_pi), exact.values(mdps, log_pi)[0], atol=1e-13
        )
        np.testing.assert_allclose(
            exact.stationary_optimal_values(mdps), exact.optimal_values(mdps)[0], atol=1e-9
        )


def test_stationary_values_without_discount_need_sure_termination():
    """Action 0 ends the second task from everywhere, action 1 only leads back and forth; the first
    task always ends.
    """
    P = np.zeros((2, 3, 2, 3))
    P[0, :, :, 2] = P[:, 2, :, 2] = P[1, :2, 0, 2] = P[1, 0, 1, 1] = P[1, 1, 1, 0] = 1
    mdps = MDP.from_dense(
        P,
        np.where(np.arange(3) < 2, 1.0, 0)[None, :, None] * np.ones((2, 3, 2)),
        0,
        discount=1,
        horizon=5,
        terminal=[0, 0, 1],
    )
    half = np.full((2, 3, 2), np.log(0.5))
    np.testing.assert_allclose(
        exact.stationary_values(mdps, half), [[1, 1, 0], [2, 2, 0]], atol=1e-12
    )
    never = np.where(np.arange(2) == 1, 0, -np.inf) * np.ones((3, 1))
    with pytest.raises(ValueError, match="discount.*task 1, state 0"):
        exact.stationary_values(mdps, never)
    assert np.isfinite(exact.stationary_values(replace(mdps, discount=0.99), never)).all()
    with pytest.raises(ValueError, match="max_sweeps"):
        exact.stationary_optimal_values(mdps, max_sweeps=200)


def test_optimum_is_the_best_of_all_time_dependent_deterministic_policies(tasks):
    best = exact.optimal_values(tasks)
    for i in range(N):
        states = [s for s in range(S) if not tasks.terminal[i, s]]
        keys = list(product(range(T), states))
        brute = np.full(S, -np.inf)
        brute[terminal_state(i, S)] = 0
        for choice in product(range(A), repeat=len(keys)):
            plan = dict(zip(keys, choice))
            for s in states:
                brute[s] = max(
                    brute[s], recursive_value(tasks, i, s, 0, lambda t, s: np.eye(A)[plan[t, s]])
                )
        np.testing.assert_allclose(best[0, i], brute, atol=1e-13)
        assert exact.optimal_return(tasks)[i] == pytest.approx(tasks.start[i] @ brute, abs=1e-13)


def test_optimum_bounds_every_policy_and_its_greedy_policy_reaches_it(rng):
    mdps = random_tasks(rng, 3, 6, 3, 3, horizon=7)
    best = exact.optimal_values(mdps)
    for _ in range(5):
        assert (exact.values(mdps, np.log(rng.dirichlet(np.ones(3), (3, 6)))) <= best + 1e-12).all()
    long = replace(mdps, horizon=400)
    v = exact.stationary_optimal_values(long)
    greedy = np.eye(3)[exact.action_values(long, v).argmax(-1)]
    np.testing.assert_allclose(
        exact.stationary_values(long, np.where(greedy == 1, 0, -np.inf)), v, atol=1e-8
    )


@pytest.mark.parametrize("discount", [0.8, 1])
def test_optimal_policy_in_time_earns_the_optimum(rng, discount):
    """By dynamic programming on the tasks with time, and by a plain recursion that follows the
    policy at each time.
    """
    mdps = random_tasks(rng, N, 4, 3, Z, horizon=5, discount=discount)
    log_pi = exact.optimal_log_pi(mdps)
    timed = mdps.with_time()
    assert (
        log_pi.shape == (N, 6 * 4, 3)
        and ((log_pi == 0).sum(-1) == 1).all()
        and (np.exp(log_pi).sum(-1) == 1).all()
    )
    best = exact.optimal_return(mdps)
    np.testing.assert_allclose(exact.expected_return(timed, log_pi), best, atol=1e-13)
    act = np.exp(log_pi).reshape(N, 6, 4, 3)
    for i in range(N):
        assert best[i] == pytest.approx(
            mdps.start[i]
            @ [recursive_value(mdps, i, s, 0, lambda t, s: act[i, t, s]) for s in range(4)]
        )
        for s in np.flatnonzero(~mdps.terminal[i]):  # and at the last step it is greedy
            assert act[i, 4, s].argmax() == np.argmax(
                [sum(p * r for p, _, r in transitions(mdps, i, s, a)) for a in range(3)]
            )


@pytest.mark.parametrize(
    "function",
    [
        exact.values,
        exact.expected_return,
        exact.stationary_values,
        exact.occupancy,
        exact.policy_gradient_table,
    ],
)
def test_what_is_no_policy_is_refused(tasks, log_pi, function):
    """Parameters θ, probabilities, a NaN, another shape: nothing of it is silently summed up."""
    assert (
        np.isfinite(function(tasks, log_pi)).all() and np.isfinite(function(tasks, log_pi[0])).all()
    )
    wrong = log_pi.copy()
    nan = log_pi.copy()
    wrong[1, 2] = (0.3, -1.2)
    nan[1, 1, 0] = np.nan
    for bad, where in (
        (wrong, "task 1, state 2"),
        (nan, "task 1, state 1"),
        (np.exp(log_pi), "task 0, state 0"),
        (np.zeros((S, A)), "task 0, state 0"),
        (np.full((N, S, A), -np.inf), "task 0, state 0"),
        (np.full((S, A), 1e300), "task 0, state 0"),
    ):
        with pytest.raises(ValueError, match=rf"^log_pi: .*\(at {where}\)"):
            function(tasks, bad)
    for bad in (log_pi[:1], log_pi[..., :1], log_pi[:, :2], log_pi[0, 0], 0.0):
        with pytest.raises(
            ValueError, match=rf"^log_pi: expected shape \({S}, {A}\) or \({N}, {S}, {A}\)"
        ):
            function(tasks, bad)


# ---- derivatives


def test_expectation_and_its_transpose_against_loops(tasks, rng):
    v = rng.normal(size=(N, S))
    m = rng.normal(size=(N, S, A))
    forward = np.zeros((N, S, A))
    backward = np.zeros((N, S))
    for i, s, a in np.ndindex(N, S, A):
        for p, z, _ in transitions(tasks, i, s, a):
            forward[i, s, a] += p * v[i, z]
            backward[i, z] += m[i, s, a] * p
    np.testing.assert_allclose(exact.expect(tasks, v), forward, atol=1e-14)
    np.testing.assert_allclose(exact.push(tasks, m), backward, atol=1e-14)
    check_grads(lambda v: exact.expect(tasks, v**2), modes=["rev"], order=2)(v)
    check_grads(lambda m: exact.push(tasks, m**2), modes=["rev"], order=2)(m)


@pytest.mark.parametrize("name", POLICIES)
def test_expected_return_to_second_order(tasks, rng, name):
    policy, theta = named(policies(rng, N, S, A), name)
    check_grads(
        lambda theta: exact.expected_return(tasks, policy.log_pi(theta)), modes=["rev"], order=2
    )(theta)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_gradient_four_ways(tasks, rng, name):
    """The theorem, autograd of dynamic programming, autograd of the enumeration, finite differences
    of a plain recursion.
    """
    episodes, dynamics = enumeration.enumerate_episodes(tasks)
    policy, theta = named(policies(rng, N, S, A), name)
    theta = theta + np.zeros((N,) + theta.shape[-2:])

    def plain(theta):
        pi = np.exp(policy.log_pi(theta))
        return sum(
            p * return_of(path, 0.8)
            for i in range(N)
            for p, path, _ in all_episodes(tasks, i, pi[i])
        )

    theorem = policy.weighted_score(theta, exact.policy_gradient_table(tasks, policy.log_pi(theta)))
    by_dp = grad(lambda x: anp.sum(exact.expected_return(tasks, policy.log_pi(x))))(theta)
    enumerated = grad(
        lambda x: anp.sum(enumeration.enumerated_return(policy.log_pi(x), episodes, dynamics, 0.8))
    )(theta)
    np.testing.assert_allclose(theorem, by_dp, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(enumerated, by_dp, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(finite_differences(plain, theta), by_dp, atol=1e-8, err_msg=name)
    assert abs(by_dp).max() > 1e-2


@pytest.mark.parametrize("name", POLICIES)
def test_policy_gradient_with_four_actions_of_two_units(rng, name):
    mdps = random_tasks(rng, N, S, 4, Z, horizon=4, discount=0.7)
    policy, theta = named(policies(rng, N, S, 4), name)
    theorem = policy.weighted_score(theta, exact.policy_gradient_table(mdps, policy.log_pi(theta)))
    differences = finite_differences(lambda x: exact.expected_return(mdps, policy.log_pi(x)), theta)
    differences = differences if theta.ndim == 2 else differences[np.arange(N), np.arange(N)]
    np.testing.assert_allclose(theorem, differences, atol=1e-8, err_msg=name)


# ---- enumeration


@pytest.fixture
def two_trees():
    """Task 0 branches in two at every step from two starts: 2·2³ episodes. Task 1: one start;
    action 0 ends, action 1 stays: 1 + 1 + 2.
    """
    stay = [1.0, 0]
    go = [0, 1.0]
    P = np.array([[[stay, go], [stay, go]], [[go, stay], [go, go]]])
    R = np.array([[[1.0, 2], [3, 4]], [[5, 6], [0, 0]]])
    starts = [[0.25, 0.75], [1, 0]]
    terminal = [[0, 0], [0, 1]]
    return MDP.from_dense(P, R, starts, discount=0.5, horizon=3, terminal=terminal)


def test_number_of_episodes_by_hand(two_trees):
    episodes, dynamics = enumeration.enumerate_episodes(two_trees)
    assert (dynamics > 0).sum(1).tolist() == [16, 4]
    assert episodes.states.shape == (3, 2, 16) and dynamics.shape == (2, 16)
    assert sorted(dynamics[0].tolist()) == [0.25] * 8 + [0.75] * 8
    assert sorted(dynamics[1, :4].tolist()) == [1] * 4
    assert sorted(episodes.mask[:, 1].sum(0).tolist()) == [0] * 12 + [1, 2, 3, 3]


def test_episodes_by_hand(two_trees):
    episodes, _ = enumeration.enumerate_episodes(two_trees)
    actions = episodes.actions[:, 1].tolist()
    rewards = episodes.rewards[:, 1].tolist()
    paths = {tuple((actions[t][m], rewards[t][m]) for t in range(3)) for m in range(4)}
    assert paths == {
        ((0, 5), (0, 0), (0, 0)),
        ((1, 6), (0, 5), (0, 0)),
        ((1, 6), (1, 6), (0, 5)),
        ((1, 6), (1, 6), (1, 6)),
    }


def test_the_limit_is_the_largest_number_of_a_task(two_trees):
    with pytest.raises(ValueError, match="max_episodes.*16"):
        enumeration.enumerate_episodes(two_trees, max_episodes=15)
    assert enumeration.enumerate_episodes(two_trees, max_episodes=16)[1].shape == (2, 16)
    # an ended episode branches no more
    assert enumeration.enumerate_episodes(two_trees[1], max_episodes=4)[1].shape == (1, 4)


def probability(episodes, dynamics, pi):
    """Pr(τ) of every enumerated episode under π (N, S, A), (N, M)."""
    p = dynamics.copy()
    for t, i, m in zip(*np.nonzero(episodes.mask)):
        p[i, m] *= pi[i, episodes.states[t, i, m], episodes.actions[t, i, m]]
    return p


def test_enumeration_against_recursion(tasks, log_pi):
    episodes, dynamics = enumeration.enumerate_episodes(tasks)
    p = probability(episodes, dynamics, np.exp(log_pi))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-14)
    for i in range(N):
        theirs = {
            (tuple(path), last): q for q, path, last in all_episodes(tasks, i, np.exp(log_pi[i]))
        }
        real = np.flatnonzero(p[i])
        ours = {}
        for m in real:
            steps = (
                x[:, i, m][episodes.mask[:, i, m]].tolist()
                for x in (episodes.states, episodes.actions, episodes.rewards)
            )
            ours[tuple(zip(*steps)), episodes.last_states[i, m]] = p[i, m]
        assert ours.keys() == theirs.keys() and len(ours) == len(real)
        assert all(ours[key] == pytest.approx(theirs[key], rel=1e-12) for key in ours)
    sure = np.where(np.arange(A) == 1, 0, -np.inf) * np.ones((S, 1))
    for table in (log_pi, log_pi[0], sure):
        enumerated = enumeration.enumerated_return(table, episodes, dynamics, 0.8)
        np.testing.assert_allclose(enumerated, exact.expected_return(tasks, table), rtol=1e-12)


def expected_table(mdps, pi, k, baseline):
    """E[folded REINFORCE weights] over every data set of k episodes, each one of them a task of K =
    k episodes: (N, S, A).
    """
    episodes, dynamics = enumeration.enumerate_episodes(mdps)
    p = probability(episodes, dynamics, pi)
    tables = []
    for i in range(len(mdps)):
        real = np.flatnonzero(p[i])
        sets = np.array(list(product(real, repeat=k)))
        recorded = (episodes.states, episodes.actions, episodes.rewards, episodes.mask)
        data = Episodes(*(x[:, i][:, sets] for x in recorded), None, None, None)
        tables.append(
            np.einsum(
                "d,dsa->sa",
                p[i][sets].prod(1),
                reinforce_table(data, mdps.discount, *mdps.shape[1:], baseline=baseline),
            )
        )
    return np.array(tables)


@pytest.mark.parametrize(
    "k, baseline, share",
    [
        (1, no_baseline, 1),
        (2, no_baseline, 1),
        (2, leave_one_out_baseline, 1),
        (3, leave_one_out_baseline, 1),
        (1, time_mean_baseline, 0),
        (2, time_mean_baseline, 1 / 2),
        (3, time_mean_baseline, 2 / 3),
    ],
)
def test_expectation_of_reinforce_over_every_data_set(rng, k, baseline, share):
    """Unbiased without a baseline and with leave-one-out; exactly (1 − 1/K)∇J with the mean of the
    batch itself.
    """
    mdps = random_tasks(rng, N, S, A, Z, horizon=2, discount=0.8)
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(N, S, A))
    gradient = grad(lambda x: anp.sum(exact.expected_return(mdps, policy.log_pi(x))))(theta)
    table = expected_table(mdps, np.exp(policy.log_pi(theta)), k, baseline)
    np.testing.assert_allclose(policy.weighted_score(theta, table), share * gradient, atol=1e-13)
    assert abs(gradient).max() > 1e-2


def test_table_of_the_theorem_is_the_expected_table(rng):
    mdps = random_tasks(rng, N, S, A, Z, horizon=3, discount=0.8)
    log_pi = np.log(rng.dirichlet(np.ones(A), (N, S)))
    expected = expected_table(mdps, np.exp(log_pi), 1, no_baseline)
    np.testing.assert_allclose(exact.policy_gradient_table(mdps, log_pi), expected, atol=1e-13)


def test_sure_termination_may_be_as_far_away_as_there_are_states():
    """A chain 0 → 1 → … → 6, each step costing 1, at γ = 1."""
    P = np.eye(7, k=1)[:, None]
    P[6, 0, 6] = 1
    chain = MDP.from_dense(
        P,
        np.where(np.arange(7) < 6, -1.0, 0.0)[:, None],
        0,
        discount=1,
        horizon=1,
        terminal=np.arange(7) == 6,
    )
    np.testing.assert_allclose(
        exact.stationary_values(chain, np.zeros((7, 1))), [np.arange(-6.0, 1)], atol=1e-12
    )


@pytest.mark.parametrize("slip", [0, 0.3])
def test_sweeps_over_many_states_in_blocks(slip, rng):
    """Three tasks of 6,400 states are two blocks, the border inside a task; against plain sums over
    all successors.
    """
    mdps = GridWorld.open(80, 80, discount=0.9, horizon=2, slip=slip).mdps([5, 77, 6399])
    assert mdps.start.size > exact.BLOCK
    pi = rng.dirichlet(np.ones(4), mdps.shape[:2])
    v = rng.normal(size=mdps.shape[:2])
    task = np.arange(3)[:, None, None, None]
    q = (mdps.probabilities * (mdps.rewards + 0.9 * v[task, mdps.successors])).sum(-1)
    np.testing.assert_allclose(exact.backup(mdps, pi, v), (pi * q).sum(-1), atol=1e-14)
    np.testing.assert_allclose(exact.optimal_backup(mdps, v), q.max(-1), atol=1e-14)


def test_a_backup_to_second_order(tasks, log_pi, rng):
    v = rng.normal(size=(N, S))
    pi = np.exp(log_pi)
    check_grads(lambda pi, v: exact.backup(tasks, pi**2, v**3), modes=["rev"], order=2)(pi, v)


def test_stationary_values_by_sweeps_keep_their_error_bound(tasks, log_pi):
    mdps = replace(tasks, discount=0.95)
    for table in log_pi, log_pi[0]:
        solved = exact.stationary_values(mdps, table)
        for tolerance in (1e-2, 1e-9):
            gap = abs(exact.stationary_values(mdps, table, tolerance=tolerance) - solved).max()
            assert 1e-14 < gap <= tolerance
    with pytest.raises(ValueError, match="max_sweeps"):
        exact.stationary_values(mdps, log_pi, tolerance=1e-9, max_sweeps=3)


def test_a_coarser_tolerance_takes_fewer_sweeps():
    """One state that pays 1 for ever, γ = ½: the n-th sweep changes V by 2¹⁻ⁿ, which is then its
    error too.
    """
    forever = MDP.from_dense(np.ones((1, 1, 1)), np.ones((1, 1)), 0, discount=0.5, horizon=1)
    for solve in (
        lambda **options: exact.stationary_values(forever, np.zeros((1, 1)), **options),
        lambda **options: exact.stationary_optimal_values(forever, **options),
    ):
        # a little more than that error, since rounding is counted too
        assert solve(tolerance=1.001 * 2.0**-5, max_sweeps=6)[0, 0] == 2 - 2.0**-5
        with pytest.raises(ValueError, match="max_sweeps"):
            solve(tolerance=2.0**-6, max_sweeps=6)


def test_without_discount_sweeps_stop_at_a_change_below_the_tolerance():
    """A state that ends with probability ½ and else pays 1 and stays: V = 1, the n-th sweep adds
    2⁻ⁿ.
    """
    coin = MDP(
        [[[[0, 1]], [[1, 1]]]],
        [[[[0.5, 0.5]], [[1, 0]]]],
        [[[[1, 0]], [[0, 0]]]],
        [[1, 0]],
        [[0, 1]],
        1,
        1,
    )
    assert (
        exact.stationary_values(coin, np.zeros((2, 1)), tolerance=2.0**-5, max_sweeps=5)[0, 0]
        == 1 - 2.0**-5
    )
    assert (
        exact.stationary_optimal_values(coin, tolerance=2.0**-5, max_sweeps=5)[0, 0] == 1 - 2.0**-5
    )


@pytest.mark.parametrize("seed, discount", [(37, 0.7), (372, 0.5), (442, 0.9), (808, 0.5), (1, 0)])
def test_a_tolerance_below_rounding_is_refused_with_one_that_can_be_met(seed, discount):
    """In most of these the sweeps end in a cycle, where the last bit of V goes up and down for
    ever. At γ = 0 a sweep is exact.
    """
    mdps = random_tasks(np.random.default_rng(seed), 1, 3, 2, 2, horizon=2)
    log_pi = np.full((3, 2), -np.log(2))
    mdps = replace(mdps, discount=discount)
    reached = 0
    if discount:
        with pytest.raises(ValueError, match="tolerance: 0 .* can be reached") as refusal:
            exact.stationary_values(mdps, log_pi, tolerance=0, max_sweeps=3000)
        reached = 2 * float(str(refusal.value).split()[-4])
        with pytest.raises(ValueError, match="tolerance: 0 .* can be reached"):
            exact.stationary_optimal_values(mdps, tolerance=0, max_sweeps=3000)
    swept = exact.stationary_values(mdps, log_pi, tolerance=reached, max_sweeps=3000)
    np.testing.assert_allclose(swept, exact.stationary_values(mdps, log_pi), atol=1e-13)


@pytest.mark.parametrize("discount, reward", [(0.99, 1.0), (0.995, 1.0), (0.998, 0.7)])
def test_sweeps_meet_the_tolerance_where_rounding_takes_a_part_of_it(discount, reward):
    """One state that pays for ever, V = r/(1 − γ), at a tolerance three times what can be met."""
    forever = MDP.from_dense(
        np.ones((1, 1, 1)), np.full((1, 1), reward), 0, discount=discount, horizon=1
    )
    right = reward / (1 - discount)
    tolerance = 3 * 4e-16 * right / (1 - discount)
    v = exact.stationary_optimal_values(forever, tolerance=tolerance)
    assert abs(v[0, 0] - right) <= tolerance


@pytest.mark.parametrize("discount, reward", [(0.999, 1.0), (0.9995, 1.0), (0.999, 1e6)])
def test_a_tolerance_that_floats_cannot_meet_is_refused(discount, reward):
    forever = MDP.from_dense(
        np.ones((1, 1, 1)), np.full((1, 1), reward), 0, discount=discount, horizon=1
    )
    with pytest.raises(ValueError, match="tolerance: 1e-10 is less than rounding allows"):
        exact.stationary_optimal_values(forever, tolerance=1e-10)


def test_value_iteration_keeps_its_error_bound():
    """One state that pays 1 for ever: V = 1/(1 − γ). Stopping at a change of the tolerance would be
    off by 99 times that.
    """
    forever = MDP.from_dense(np.ones((1, 1, 1)), np.ones((1, 1)), 0, discount=0.99, horizon=1)
    for tolerance in (1e-2, 1e-6):
        assert (
            abs(exact.stationary_optimal_values(forever, tolerance=tolerance)[0, 0] - 100)
            <= tolerance
        )


def test_nearly_is_not_a_policy(rng):
    mdps = random_tasks(rng, 2, 3, 2, 2, horizon=2)
    exact.values(mdps, np.log([[0.5, 0.5]] * 3))
    with pytest.raises(ValueError, match="log_pi: .*at task 0, state 1"):
        exact.values(mdps, np.log([[0.5, 0.5], [0.5, 0.501], [0.5, 0.5]]))


@pytest.mark.parametrize("discount, stay", [(1 - 2.0**-53, 1.0), (1 - 1e-14, 1.0), (1, 1 - 1e-15)])
def test_stationary_values_say_when_episodes_are_too_long_for_float64(discount, stay):
    P = np.zeros((3, 1, 3))
    P[0, 0, :2] = 0.3, 0.7
    P[1, 0] = 0.7 * stay, 0.3 * stay, 1 - stay
    P[2, 0, 2] = 1
    end = [False, False, True]
    R = [[1.0], [1.0], [0.0]]
    mdps = MDP.from_dense(P, R, 0, terminal=end, discount=discount, horizon=1)
    with pytest.raises(ValueError, match="^discount: episodes last"):
        exact.stationary_values(mdps, np.zeros((3, 1)))
