"""The Bayes optimum against recursion over histories, and what strategies get beside it."""

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import sqrt

import numpy as np
import pytest

from metarl_np import arguments
from metarl_np.compare.bayes import bayes_optimal, dependent_optimal, optimal_returns
from metarl_np.compare.beliefs import FiniteBelief
from metarl_np.compare.planners import act, mean_plan, sample_plan
from metarl_np.compare.strategies import (
    BANDITS,
    play_bandits,
    thompson,
)
from metarl_np.tasks.bandits import bernoulli, dependent, independent, informative
from metarl_np.tasks.exact import optimal_return
from metarl_np.tasks.gridworld import GridWorld, varibad
from metarl_np.tasks.mdp import MDP


@pytest.mark.parametrize(
    "arms, pulls, total",
    [(2, 10, 6.0217857), (5, 10, 6.6599880), (10, 10, 6.7139512), (50, 10, 6.7139512)],
)
def test_bayes_optimal_figures(arms, pulls, total):
    assert bayes_optimal(arms, pulls) == pytest.approx(total, abs=2e-7)


@pytest.mark.parametrize("arms, pulls", [(1, 1), (1, 4), (2, 1), (2, 5), (3, 4), (4, 2), (2, 7)])
def test_bayes_optimal_by_recursion_over_histories(arms, pulls):
    @lru_cache(None)
    def value(counts, left):  # arms told apart, in fractions
        totals = [0]
        for i, (s, f) in enumerate(counts if left else ()):
            p = Fraction(s + 1, s + f + 2)
            won, lost = (counts[:i] + (new,) + counts[i + 1 :] for new in ((s + 1, f), (s, f + 1)))
            totals.append(p * (1 + value(won, left - 1)) + (1 - p) * value(lost, left - 1))
        return max(totals)

    assert bayes_optimal(arms, pulls) == pytest.approx(
        float(value(((0, 0),) * arms, pulls)), abs=1e-13
    )


@pytest.mark.parametrize("arms, pulls", [(1, 5), (2, 6), (3, 5), (6, 4)])
def test_bayes_optimal_counts_its_states(arms, pulls):
    cells = [(s, f) for s in range(pulls) for f in range(pulls - s)]
    states = {
        tuple(sorted(x))
        for x in product(cells, repeat=min(arms, pulls))
        if sum(map(sum, x)) < pulls
    }
    bayes_optimal(arms, pulls, max_states=len(states))
    with pytest.raises(
        ValueError, match=rf"^arms, pulls: .* need {len(states)} states.* for {pulls - 1} pulls"
    ):
        bayes_optimal(arms, pulls, max_states=len(states) - 1)


def test_bayes_optimal_says_how_far_it_goes():
    for arms, reach in ((2, 81), (5, 23), (10, 20)):
        with pytest.raises(ValueError, match=f"{arms} arms can be solved for {reach} pulls"):
            bayes_optimal(arms, 100)
    with pytest.raises(ValueError, match="^arms, pulls: 50, 500 need more than .* for 20 pulls"):
        bayes_optimal(50, 500)
    with pytest.raises(ValueError, match="2 arms can be solved for 81 pulls"):
        bayes_optimal(2, 10**12)  # whose number of states is no float, and takes long to count


def moments(difficulty, s, f):
    """(∫ p^s (1 − p)^f, and the same with one more p) under the prior of the dependent arms."""
    if difficulty == "uniform":
        grid = (np.arange(200000) + 0.5) / 200000
        return (grid**s * (1 - grid) ** f).mean(), (grid ** (s + 1) * (1 - grid) ** f).mean()
    d = dict(easy=0.1, medium=0.25, hard=0.4)[difficulty]
    p = np.array([d, 1 - d])
    return (p**s * (1 - p) ** f).mean(), (p ** (s + 1) * (1 - p) ** f).mean()


@pytest.mark.parametrize("difficulty", ["uniform", "easy", "medium", "hard"])
def test_dependent_optimum_by_recursion(difficulty):
    """A pull of arm 0 that pays, or of arm 1 that doesn't, is a sign for p; the best arm is sought
    at each step, greedy or not.
    """

    @lru_cache(None)
    def value(s, f, left):
        if not left:
            return 0
        one, more = moments(difficulty, s, f)
        p = more / one
        go_on = p * value(s + 1, f, left - 1) + (1 - p) * value(s, f + 1, left - 1)
        return max(p + go_on, 1 - p + go_on)

    best = dependent_optimal(difficulty, 6)
    assert best.shape == (6,) and best[0] == pytest.approx(0.5) and (np.diff(best) > -1e-12).all()
    np.testing.assert_allclose(np.cumsum(best), [value(0, 0, n) for n in range(1, 7)], atol=1e-8)


def test_dependent_optimum_is_reached_and_not_exceeded(rng):
    """Greedy in the posterior of p, n = 100, 4000 tasks, within 4 standard errors; Thompson
    sampling stays below it.
    """
    means = dependent(rng, 4000).expected_rewards[:, 0]

    def both(rng, a, b, t, _):  # arm 1's failures are arm 0's successes
        p = (a[:, :1] + b[:, 1:] - 1) / (t + 2)
        return np.concatenate([p, 1 - p], 1)

    best = dependent_optimal("uniform", 100).sum()
    for strategy, value, low in ((both, None, -4), (thompson, 1, -np.inf)):
        total = play_bandits(rng, means, 100, strategy, value).sum(0)
        assert low < (total.mean() - best) / (total.std() / sqrt(4000)) < 4


@pytest.mark.parametrize("name", BANDITS)
def test_nobody_beats_the_bayes_optimum(name):
    """k = 5, n = 10, every value of every grid: at most 4 standard errors above it, and the good
    ones close to it.
    """
    strategy, grid = BANDITS[name]
    tasks = 1500 if name == "ots" else 20000
    means = independent(np.random.default_rng(7), tasks, 5).expected_rewards[:, 0]
    for value in grid:
        total = play_bandits(np.random.default_rng(8), means, 10, strategy, value).sum(0)
        above = total.mean() - bayes_optimal(5, 10)
        error = total.std() / sqrt(tasks)
        assert above < 4 * error
        if (name, value) in (("ucb1", 0.1), ("gittins", 0.7)):
            assert above > -0.03 - 4 * error


# ---- optimal_returns


def outcomes(mdps, weights, s, a):
    """{(s', terminal, r): joint weights (C,)} after action a in state s, by loops over tasks."""
    found = {}
    for c in range(len(mdps)):
        for z, p, r in zip(
            mdps.successors[c, s, a], mdps.probabilities[c, s, a], mdps.rewards[c, s, a]
        ):
            if weights[c] * p:
                key = int(z), bool(mdps.terminal[c, z]), float(r)
                found.setdefault(key, np.zeros(len(mdps)))[c] += weights[c] * p
    return found


def starts(mdps, weights):
    """{start: joint weights (C,)}."""
    joint = {int(s): weights * mdps.start[:, s] for s in range(mdps.shape[1])}
    return {s: w for s, w in joint.items() if w.any()}


def every_policy(mdps, episodes, weights, e=0, t=0, s=None):
    """Σ_c of the joint weights × the return of each episode, of every deterministic policy.

    (policies, n), for policies that may depend on the whole history. Nothing is merged.
    """
    if e == episodes:
        return np.zeros((1, episodes))
    if s is None:
        parts = [every_policy(mdps, episodes, w, e, t, s) for s, w in starts(mdps, weights).items()]
        return combined(parts)
    policies = []
    for a in range(mdps.shape[2]):
        parts = []
        for (z, end, r), w in outcomes(mdps, weights, s, a).items():
            over = end or t + 1 == mdps.horizon
            going_on = (e + 1, 0, None) if over else (e, t + 1, z)
            after = every_policy(mdps, episodes, w, *going_on).copy()
            after[:, e] += w.sum() * mdps.discount**t * r
            parts.append(after)
        policies.append(combined(parts))
    return np.concatenate(policies)


def combined(parts):
    """One policy for each part, chosen in every way: sums (policies, n)."""
    total = np.zeros((1, parts[0].shape[1]))
    for part in parts:
        total = (total[:, None] + part).reshape(-1, part.shape[1])
    return total


def best_by_recursion(mdps, episodes, weights, e=0, t=0, s=None):
    """The largest Σ_c of joint weights × the trial's return, by recursion over histories."""
    if e == episodes:
        return 0.0
    if s is None:
        return sum(
            best_by_recursion(mdps, episodes, w, e, t, s) for s, w in starts(mdps, weights).items()
        )
    totals = []
    for a in range(mdps.shape[2]):
        total = 0.0
        for (z, end, r), w in outcomes(mdps, weights, s, a).items():
            over = end or t + 1 == mdps.horizon
            going_on = (e + 1, 0, None) if over else (e, t + 1, z)
            total += w.sum() * mdps.discount**t * r
            total += best_by_recursion(mdps, episodes, w, *going_on)
        totals.append(total)
    return max(totals)


def corridor(goals, width, horizon, discount=0.9):
    """Cells in a row, start in the middle, left or right; one task for each goal."""
    cell = np.arange(width)
    target = np.clip(cell[:, None] + (-1, 1), 0, width - 1)
    is_goal = np.array(goals)[:, None] == cell
    stays = np.where(is_goal[..., None], cell[:, None], target)
    P = (stays[..., None] == cell).astype(float)
    R = is_goal[:, target] * ~is_goal[..., None]
    return MDP.from_dense(P, R, width // 2, discount=discount, horizon=horizon, terminal=is_goal)


def two_coins(chances, discount=1.0):
    """Two states, two actions, horizon 2: action a leads to state 1, which pays, at a chance."""
    p = np.array(chances)[:, None] * np.ones((1, 2, 1))  # (C, S, A)
    P = np.stack([1 - p, p], -1)
    R = np.zeros(P.shape)
    R[..., 1] = [[1.0, 1.0], [2.0, 0.5]]
    return MDP.from_dense(P, R, 0, discount=discount, horizon=2)


def told_by_the_start():
    """Where an episode starts tells something of the task, and state 1 is terminal in one only."""
    P = np.zeros((2, 3, 2, 3))
    P[:, :, 0, 1] = 1
    P[:, :, 1, 2] = 1
    P[0, 1] = [0, 1, 0]
    R = np.zeros((2, 3, 2, 3))
    R[0, :, 0, 1] = [1, 0, 1]
    R[1, :, 1, 2] = [0.3, 2, 0.5]
    R[1, :, 0, 1] = 1
    start = [[0.75, 0, 0.25], [0.5, 0, 0.5]]
    terminal = [[False, True, False], [False, False, False]]
    return MDP.from_dense(P, R, start, discount=0.9, horizon=2, terminal=terminal)


TINY = {
    "corridor of 3 cells": (corridor([0, 2], 3, 3), [0.6, 0.4]),
    "corridor of 5 cells, horizon 3": (corridor([0, 3, 4], 5, 3), [0.2, 0.3, 0.5]),
    "coins": (two_coins([[0.2, 0.7], [0.9, 0.4], [0.5, 0.5]]), [0.5, 0.3, 0.2]),
    "discounted coins": (two_coins([[0.0, 0.7], [1.0, 0.4]], 0.8), [0.5, 0.5]),
    "a task that is ruled out": (two_coins([[0.2, 0.7], [0.9, 0.4]]), [0.0, 1.0]),
    "the start tells": (told_by_the_start(), [0.3, 0.7]),
}


@pytest.mark.parametrize("name", TINY)
def test_no_history_dependent_policy_is_better(name):
    """All deterministic ones are enumerated; two episodes of two or three steps."""
    mdps, prior = TINY[name]
    policies = every_policy(mdps, 2, np.array(prior))
    totals = policies.sum(1)
    returns = optimal_returns(mdps, 2, prior)
    assert len(policies) > 100 and np.ptp(totals) > 0.1
    assert returns.sum() == pytest.approx(totals.max(), abs=1e-12)
    best = policies[totals > totals.max() - 1e-12]
    assert abs(best - returns).max(1).min() < 1e-12  # episode by episode, of one that is the best


@pytest.mark.parametrize(
    "horizon, episodes, seed", [(1, 4, 0), (1, 4, 1), *((2, 2, i) for i in range(6)), (3, 2, 0)]
)
def test_optimal_returns_by_recursion_over_histories(horizon, episodes, seed):
    """Random families of any starts, ends and rewards."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet([0.3] * 3, (3, 3, 2)) * rng.integers(0, 2, (3, 3, 2, 3))
    P[..., 0] += 1 - P.sum(-1)
    R = rng.integers(0, 3, (3, 3, 2, 3)) / 2
    terminal = np.zeros((3, 3), bool)
    terminal[rng.integers(3), 2] = seed % 2
    P[terminal] = [0, 0, 1]
    R[terminal] = 0
    start = np.pad(rng.dirichlet([1, 1]) * np.ones((3, 1)), ((0, 0), (0, 1)))
    mdps = MDP.from_dense(P, R, start, discount=0.9, horizon=horizon, terminal=terminal)
    prior = rng.dirichlet(np.ones(3))
    best = best_by_recursion(mdps, episodes, prior)
    assert optimal_returns(mdps, episodes, prior).sum() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    "mdps, episodes",
    [
        (GridWorld.open(3, 3, discount=0.9, horizon=5).mdps(range(1, 9)), 3),
        (GridWorld("S.#.. .....", discount=0.9, horizon=4).mdps([1, 3, 4, 6, 7, 9]), 3),
        (replace(varibad([2, 3, 10, 12, 24]), horizon=7), 3),
    ],
    ids=["grid", "grid with a wall", "varibad"],
)
def test_optimal_returns_by_recursion_over_sets_of_tasks(mdps, episodes):
    """Without chance what counts of a history is which tasks are left."""

    @lru_cache(None)
    def best(left, e, t, s):
        """Σ over the tasks that are left of what the best policy gets from here on."""
        if e == episodes:
            return 0.0
        totals = []
        for a in range(mdps.shape[2]):
            seen = {}
            for c in left:
                z = int(mdps.successors[c, s, a, 0])
                key = z, bool(mdps.terminal[c, z]), float(mdps.rewards[c, s, a, 0])
                seen.setdefault(key, []).append(c)
            total = 0.0
            for (z, end, r), tasks in seen.items():
                over = end or t + 1 == mdps.horizon
                total += len(tasks) * mdps.discount**t * r
                total += best(tuple(tasks), *((e + 1, 0, 0) if over else (e, t + 1, z)))
            totals.append(total)
        return max(totals)

    expected = best(tuple(range(len(mdps))), 0, 0, 0) / len(mdps)
    assert optimal_returns(mdps, episodes).sum() == pytest.approx(expected, abs=1e-12)


def test_optimal_returns_of_bernoulli_arms_over_a_grid_of_means():
    """Gauss–Legendre points take the place of U[0, 1]: exact for the moments that ten pulls ask."""
    x, w = np.polynomial.legendre.leggauss(6)
    p = (1 + x) / 2
    means = np.stack(np.meshgrid(p, p), -1).reshape(-1, 2)
    returns = optimal_returns(bernoulli(means), 10, np.outer(w, w).ravel() / 4)
    assert returns.sum() == pytest.approx(bayes_optimal(2, 10), abs=1e-12)


@pytest.mark.parametrize("arms", [5, 64, 65, 70])
def test_the_one_arm_that_pays_is_looked_for(arms):
    """Of any number of tasks: 64 bits hold the set of 64 tasks, not of more."""
    returns = optimal_returns(bernoulli(np.eye(arms)), 3)
    np.testing.assert_allclose(returns, np.arange(1, 4) / arms, atol=1e-14)


def test_eleven_arms_are_told_first():
    np.testing.assert_allclose(optimal_returns(informative(), 5), [0.55, 5, 5, 5, 5], atol=1e-14)


def test_a_goal_is_looked_for_a_new_cell_at_each_step():
    """24 goals on 5×5, 15 steps: each step a new cell, Σ γᵗ / 24 in the first episode."""
    grid = GridWorld.open(5, 5, discount=0.95, horizon=15)
    best = (0.95 ** np.arange(15)).sum() / 24
    np.testing.assert_allclose(optimal_returns(grid.mdps(grid.free_cells), 1), [best], atol=1e-12)


@pytest.mark.parametrize("plan", [sample_plan, mean_plan])
@pytest.mark.parametrize(
    "mdps, episodes",
    [
        (GridWorld.open(3, 3, discount=0.9, horizon=6).mdps(range(1, 9)), 3),
        (GridWorld.open(2, 3, discount=0.9, horizon=4, slip=0.3).mdps(range(1, 6)), 2),
        (informative(), 5),
        (bernoulli([[0.2, 0.5], [0.6, 0.5]]), 6),
    ],
    ids=["grid", "slippery grid", "eleven arms", "coins"],
)
def test_no_planner_gets_more(mdps, episodes, plan):
    """Within 4 standard errors; who knows the task gets more."""
    n_tasks = len(mdps)
    met = mdps[np.repeat(np.arange(n_tasks), 300)]
    belief = FiniteBelief(mdps, np.full((len(met), n_tasks), 1 / n_tasks))
    acted = act(np.random.default_rng(3), met, belief, episodes=episodes, plan=plan)
    total = sum(value for value, _, _ in acted)
    best = optimal_returns(mdps, episodes)
    assert total.mean() < best.sum() + 4 * total.std() / sqrt(len(total)) + 1e-12
    known = optimal_return(mdps).mean()
    assert (best < known + 1e-12).all() and best[0] < known - 1e-3


def test_optimal_returns_says_what_is_too_large():
    mdps = bernoulli(np.random.default_rng(0).random((4, 3)))
    with pytest.raises(
        ValueError, match=r"^episodes: \d+ posteriors met .* max_posteriors = 50: lower episodes"
    ):
        optimal_returns(mdps, 20, max_posteriors=50)
    assert optimal_returns(mdps, 3, max_posteriors=50).shape == (3,)


@pytest.mark.parametrize("room", [2_000, 20_000])
def test_optimal_returns_keeps_to_the_memory_that_there_is(monkeypatch, room):
    monkeypatch.setattr(arguments, "MAX_BYTES", room)
    mdps = bernoulli(np.random.default_rng(0).random((4, 3)))
    with pytest.raises(ValueError, match=r"^episodes: \d+ posteriors met .*: lower episodes"):
        optimal_returns(mdps, 20)


@pytest.mark.parametrize(
    "prior", [[0.5], [0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], [[0.5, 0.5]], "even"]
)
def test_optimal_returns_refuses_what_is_no_prior(prior):
    with pytest.raises(ValueError, match="^prior: "):
        optimal_returns(bernoulli([[0.1, 0.9], [0.9, 0.1]]), 2, prior)


def test_optimal_returns_refuses_gaussian_rewards():
    mdps = replace(bernoulli([[0.1, 0.9]]), reward_noise=0.5)
    with pytest.raises(ValueError, match="^mdps: rewards with Gaussian noise"):
        optimal_returns(mdps, 2)
