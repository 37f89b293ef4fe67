"""Baselines: dynamic programming and indices against recursions written differently, runners
against plain loops, figures against print.
"""

from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import log, sqrt

import numpy as np
import pytest
from helpers import random_tasks

from metarl_np import exact, strategies
from metarl_np.compare.bayes import bayes_optimal, dependent_optimal
from metarl_np.compare.beliefs import DirichletBelief, Prior
from metarl_np.compare.planners import (
    BLIND,
    FLAT,
    MDPS,
    TRUE,
    act,
    planned_values,
    greedy_plan,
    opsrl,
    optimistic,
    play_mdps,
    ucrl2,
)
from metarl_np.compare.strategies import (
    BANDITS,
    egreedy,
    gittins_index,
    play_bandits,
    thompson,
    tune,
    ucb1,
)
from metarl_np.tasks.bandits import dependent, independent
from metarl_np.tasks.random_mdps import random_mdps

# ---- what is exact


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
    with pytest.raises(ValueError, match="e\\+55 states"):
        bayes_optimal(50, 500)


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


def restart_index(s, f, discount, depth=160):
    """(1 − γ) V(s, f) where at every step one may restart in (s, f). Katehakis & Veinott (1987), by
    bisection on that value.
    """
    low = 0.0
    high = 1 / (1 - discount)
    for _ in range(40):
        restart = (low + high) / 2
        v = np.full(depth + 1, restart)
        for m in range(depth - 1, -1, -1):
            won = np.arange(m + 1)
            p = (s + won + 1) / (s + f + m + 2)
            go = p * (1 + discount * v[1:]) + (1 - p) * discount * v[:-1]
            v = np.maximum(go, restart) if m else go
        low, high = (restart, high) if v[0] > restart else (low, restart)
    return (1 - discount) * restart


def test_gittins_index_known_and_by_restarts():
    assert gittins_index(0.9, 3)[0, 0] == pytest.approx(0.7029, abs=5e-5)
    assert gittins_index(0.99, 3)[0, 0] == pytest.approx(0.8699, abs=5e-5)
    for discount, s, f in ((0.9, 0, 0), (0.9, 3, 1), (0.7, 0, 5), (0.5, 2, 2), (0.9, 0, 4)):
        assert gittins_index(discount, 6)[s, f] == pytest.approx(
            restart_index(s, f, discount), abs=1e-4
        )


@pytest.mark.parametrize("pulls", [1, 9])
def test_gittins_index_orders(pulls):
    cell = np.add.outer(np.arange(pulls), np.arange(pulls)) < pulls
    mean = (np.arange(pulls)[:, None] + 1) / (np.add.outer(np.arange(pulls), np.arange(pulls)) + 2)
    tables = [gittins_index(g, pulls) for g in (0, 0.5, 0.9, 0.99)]
    np.testing.assert_allclose(tables[0][cell], mean[cell], atol=1e-4)
    for table in tables:
        assert (np.isfinite(table) == cell).all() and (table[1:, :] > table[:-1, :])[
            cell[1:, :]
        ].all()
        assert (table[:, 1:] < table[:, :-1])[cell[:, 1:]].all()
    for less, more in zip(tables, tables[1:]):
        assert (more > less)[cell].all()
    with pytest.raises(ValueError, match="read-only"):
        tables[0][0, 0] = 1
    np.testing.assert_allclose(
        gittins_index(0.9, 32)[:pulls, :pulls][cell], tables[2][cell], atol=1e-5
    )


# ---- bandits that are played


def scores(name, s, f, t, value):
    """An arm's score, by hand, after s successes and f failures."""
    mean = (s + 1) / (s + f + 2)
    n = s + f + 2
    return {
        "ucb1": lambda: mean + value * sqrt(2 * log(t + 1) / n),
        "greedy": lambda: mean,
        "gittins": lambda: gittins_index(value, 128)[s, f],
    }[name]()


@pytest.mark.parametrize("name, value", [("ucb1", 0.3), ("greedy", 0), ("gittins", 0.9)])
def test_runner_against_a_loop(name, value):
    """Task by task with the same numbers: which arm, the first of equal ones, and what it pays."""
    means = np.random.default_rng(3).random((6, 4))
    pulls = 40
    got = play_bandits(np.random.default_rng(5), means, pulls, BANDITS[name][0], value)
    rng = np.random.default_rng(5)
    counts = [[[0, 0] for _ in range(4)] for _ in range(6)]
    for t in range(pulls):
        if name == "greedy":
            rng.random((6, 1)), rng.random((6, 4))
        rng.random((6, 4))
        u = rng.random(6)
        for i in range(6):
            x = [scores(name, *counts[i][arm], t, value) for arm in range(4)]
            arm = x.index(max(x))
            assert got[t, i] == means[i, arm]
            counts[i][arm][int(u[i] >= means[i, arm])] += 1


class Shuffled:
    """Draws that are those of another generator, task by task in another order."""

    def __init__(self, seed, order):
        self.rng, self.order = np.random.default_rng(seed), order

    def __getattr__(self, name):
        def take(x, order):
            return (
                np.take(x, order, np.shape(x).index(len(order)))
                if isinstance(x, np.ndarray) and x.ndim
                else x
            )

        def draw(*arguments):
            return take(
                getattr(self.rng, name)(*(take(x, np.argsort(self.order)) for x in arguments)),
                self.order,
            )

        return draw


ORDER = np.array([3, 0, 6, 1, 5, 2, 4])


@pytest.mark.parametrize("name", BANDITS)
def test_permuted_bandits(name):
    means = np.random.default_rng(0).random((7, 4))
    strategy, grid = BANDITS[name]
    one, other = (
        play_bandits(Shuffled(1, order), means[order], 12, strategy, grid[-1])
        for order in (np.arange(7), ORDER)
    )
    np.testing.assert_array_equal(one[:, ORDER], other)
    assert len(np.unique(one)) > 7


def test_strategies_by_hand(rng):
    a, b = rng.integers(1, 9, (2, 2000, 3)).astype(float)
    chosen = egreedy(rng, a, b, 5, 0.3).argmax(1)
    p = (chosen == (a / (a + b)).argmax(1)).mean()
    assert abs(p - (0.7 + 0.3 / 3)) < 4 * sqrt(0.8 * 0.2 / 2000)
    assert (egreedy(rng, a, b, 5, 0) == a / (a + b)).all()
    assert (np.bincount(egreedy(rng, a, b, 5, 1).argmax(1)) > 580).all()
    np.testing.assert_allclose(ucb1(rng, a, b, 0, 2.0), a / (a + b))
    x = thompson(np.random.default_rng(1), a, b, 0, 1)
    assert (x == np.random.default_rng(1).beta(a, b)).all()
    draws = np.random.default_rng(1).beta(a, b, (5, 2000, 3))
    for i in range(50):
        density = [
            np.prod([d ** (u - 1) * (1 - d) ** (w - 1) for d, u, w in zip(draw, a[i], b[i])])
            for draw in draws[:, i]
        ]
        np.testing.assert_array_equal(
            thompson(np.random.default_rng(1), a, b, 0, 5)[i], draws[np.argmax(density), i]
        )
    edges = thompson(rng, np.full((3, 2), 1e6), np.ones((3, 2)), 0, 4)
    assert np.isfinite(edges).all()


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


PUBLISHED = {  # Duan et al. (2016), Table 1: means over 1000 tasks
    (10, 5): dict(random=5.0, gittins=6.6, ts=5.7, ots=6.5, ucb1=6.7, egreedy=6.6, greedy=6.6),
    (10, 10): dict(random=5.0, gittins=6.6, ts=5.5, ots=6.2, ucb1=6.7, egreedy=6.6, greedy=6.6),
    (100, 5): dict(
        random=49.9, gittins=78.3, ts=74.7, ots=77.9, ucb1=78.0, egreedy=75.4, greedy=74.8
    ),
    (100, 10): dict(
        random=49.9, gittins=82.8, ts=76.7, ots=81.4, ucb1=82.4, egreedy=77.4, greedy=77.1
    ),
}


@pytest.mark.parametrize("name", BANDITS)
@pytest.mark.parametrize("pulls, arms", PUBLISHED)
def test_tuned_bandits_are_those_in_print(name, pulls, arms):
    """1000 tasks (300 of the slow OTS), tuned on other ones: within 3 standard errors of the two
    means and half a digit.
    """
    strategy, grid = BANDITS[name]
    grid, tasks = (grid[1:], 300) if name == "ots" else (grid, 1000)

    def play(rng, value):
        return play_bandits(
            rng, independent(rng, tasks // 2, arms).expected_rewards[:, 0], pulls, strategy, value
        )

    value = tune(np.random.default_rng(1), play, grid)[0]
    means = independent(np.random.default_rng(2), tasks, arms).expected_rewards[:, 0]
    total = play_bandits(np.random.default_rng(3), means, pulls, strategy, value).sum(0)
    assert (
        abs(total.mean() - PUBLISHED[pulls, arms][name])
        < 3 * total.std() * sqrt(1 / tasks + 1 / 1000) + 0.05
    )


def test_random_ties_explore_more():
    means = independent(np.random.default_rng(2), 4000, 10).expected_rewards[:, 0]
    first, any_ = (
        play_bandits(np.random.default_rng(3), means, 100, egreedy, 0, random_ties=x).sum(0)
        for x in (False, True)
    )
    for total, want in ((first, 77.7), (any_, 79.1)):
        assert abs(total.mean() - want) < 4 * total.std() / sqrt(4000) + 0.05
    chosen = play_bandits(
        np.random.default_rng(3),
        np.tile(np.arange(5) / 10, (5000, 1)),
        1,
        egreedy,
        0,
        random_ties=True,
    )
    assert (abs(np.bincount(np.rint(10 * chosen[0]).astype(int)) - 1000) < 4 * sqrt(800)).all()


def test_tune_gives_each_value_the_same_numbers(rng):
    def play(rng, value):
        return value + rng.random((3, 5))

    best, means = tune(rng, play, (1.0, 4.0, 2.0))
    assert (
        best == 4 and means[4.0] - means[1.0] == pytest.approx(9) and set(means) == {1.0, 2.0, 4.0}
    )
    assert tune(rng, play, (1.0,))[1][1.0] != means[1.0]


# ---- MDPs


def test_action_values_are_optimal_ones(rng):
    mdps = random_tasks(rng, 3, 4, 2, 3, horizon=5)
    P = np.zeros((3, 4, 2, 4))
    np.add.at(P, (*np.indices(mdps.successors.shape)[:3], mdps.successors), mdps.probabilities)
    q = planned_values(mdps, mdps.expected_rewards, P)
    assert q.shape == (5, 3, 4, 2)
    np.testing.assert_allclose(q.max(-1), exact.optimal_values(mdps)[:-1], atol=1e-12)
    np.testing.assert_allclose(
        planned_values(mdps, mdps.expected_rewards, P, np.zeros(P.shape[:-1])), q, atol=1e-12
    )
    wild = planned_values(mdps, mdps.expected_rewards, P, np.full(P.shape[:-1], 2.0))
    best = np.zeros(3)
    for t in range(4, -1, -1):  # anything can follow
        want = np.where(
            mdps.terminal[..., None], 0, mdps.expected_rewards + 0.9 * best[:, None, None]
        )
        np.testing.assert_allclose(wild[t], want, atol=1e-12)
        best = want.max((1, 2))


def test_optimistic_sum_against_all_distributions(rng):
    """P and half the slack are multiples of 1/24, so that the best distribution is one of those
    that are enumerated.
    """
    grid = np.array([(i, j, 24 - i - j) for i in range(25) for j in range(25 - i)])
    P = grid[rng.integers(len(grid), size=(4, 3, 2))]
    half = rng.integers(0, 20, (4, 3, 2))
    P[0, 0, 0] = (24, 0, 0)
    half[0, 0, 0] = 5
    v = rng.normal(size=(4, 3))
    v[1, 1] = v[1, 2]
    got = optimistic(P / 24, half / 12, v)
    for place in np.ndindex(P.shape[:-1]):
        near = abs(grid - P[place]).sum(1) <= 2 * half[place]
        assert got[place] == pytest.approx((grid[near] @ v[place[0]]).max() / 24, abs=1e-12)


def beliefs_of(rng, mdps, belief, episodes, plan, value):
    """The scores, the plans, and the visits (N, S, A) before each episode."""
    seen = []
    plans = []

    def spy(rng, belief, value):
        seen.append(0 * mdps.expected_rewards if belief.seen is None else belief.seen[1])
        plans.append(plan(rng, belief, value))
        return plans[-1]

    return play_mdps(rng, mdps, belief, episodes, spy, value), plans, np.array(seen)


def test_episodes_are_scored_and_learned_from(rng):
    """Steps can be told from the visits: they are worth what is scored, one an unmasked step, by an
    action that the plan found best.
    """
    mdps = random_tasks(rng, 3, 4, 2, 2, horizon=5, discount=1.0, reward_noise=0.5)
    score, plans, seen = beliefs_of(rng, mdps, DirichletBelief(TRUE, mdps), 30, opsrl, 1)
    steps = np.diff(seen, axis=0)
    np.testing.assert_allclose((steps * mdps.expected_rewards).sum((2, 3)), score[:-1], atol=1e-12)
    assert (
        (steps.sum((2, 3)) <= 5).all()
        and (steps.sum((2, 3)) < 5).any()
        and (steps.sum((2, 3)) >= 1).all()
    )
    assert (steps.sum(-1)[:, mdps.terminal] == 0).all()
    for q, step in zip(plans, steps):
        best = (np.arange(2) == q.argmax(-1)[..., None]).any(0)
        assert (best | (step == 0)).all()
    assert (np.array([*steps[:, 0].sum(-1)])[:, :].sum(0) > 0).sum() > 1  # not one state only


def test_discount_and_expected_rewards_in_scores():
    """One state, one action: every episode is worth Σ γᵗ R̄, noise or no noise."""
    mdps = random_mdps(np.random.default_rng(0), 3, 1, 1, horizon=4, discount=0.5)
    score = play_mdps(
        np.random.default_rng(1), mdps, DirichletBelief(TRUE, mdps), 2, greedy_plan, 0
    )
    np.testing.assert_allclose(score, np.tile(1.875 * mdps.expected_rewards[:, 0, 0], (2, 1)))


@pytest.mark.parametrize("name", MDPS)
def test_permuted_mdps(name):
    mdps = random_mdps(np.random.default_rng(0), 7, 4, 3, horizon=5)
    plan, grid, prior = MDPS[name]
    one, other = (
        play_mdps(
            Shuffled(1, order), mdps[order], DirichletBelief(prior, mdps[order]), 3, plan, grid[-1]
        )
        for order in (np.arange(7), ORDER)
    )
    np.testing.assert_allclose(one[:, ORDER], other)
    assert len(np.unique(one)) > 18


def test_plans_by_hand(rng):
    mdps = random_mdps(rng, 2, 3, 2, horizon=3)
    belief = DirichletBelief(Prior(0.5, 2.0, 1.0, 1.0), mdps)
    play_mdps(rng, mdps, belief, 1, lambda rng, b, _: np.zeros((3, 2, 3, 2)), None)
    steps_left = np.broadcast_to(np.arange(3, 0, -1)[:, None, None, None], (3, 2, 3, 2))
    for beta in (
        0.0,
        4.0,
    ):  # before anything is seen all is alike: each step is worth 2 + β/(1 + 1.5)
        np.testing.assert_allclose(greedy_plan(rng, belief, 0, beta), (2 + beta / 2.5) * steps_left)
    np.testing.assert_allclose(
        ucrl2(rng, belief, 0.5), (2 + 0.5 * sqrt(7 * log(2 * 3 * 2 / 0.05) / 2)) * steps_left
    )
    one, many = (
        np.array([opsrl(rng, belief, m).max(-1).mean() for _ in range(200)]).mean() for m in (1, 8)
    )
    assert many > one + 0.5
    chance = np.mean(
        [
            (greedy_plan(rng, belief, x) == greedy_plan(rng, belief, 0)).all(-1).mean()
            for x in (0.25,) * 300
        ]
    )
    assert abs(chance - 0.75) < 4 * sqrt(0.75 * 0.25 / 300 / 18)


def test_ucrl2_by_a_loop(rng):
    """Confidence sets, and extended value iteration state by state, from the recorded visits; .2 of
    the widths, so that the sets matter.
    """
    mdps = random_mdps(rng, 3, 4, 2, horizon=4)
    beliefs = []

    def spy(rng, belief, _):
        beliefs.append(belief)
        return greedy_plan(rng, belief, 1)

    play_mdps(rng, mdps, DirichletBelief(FLAT, mdps), 12, spy, None)
    alpha, mean, _ = beliefs[-1].posterior()
    visits = beliefs[-1].seen[1]
    q = ucrl2(rng, beliefs[-1], 0.2)
    for i in range(3):
        v = np.zeros(4)
        for t in range(3, -1, -1):
            for s, a in np.ndindex(4, 2):
                n = max(1, visits[i, s, a])
                spare = (
                    0.2 * sqrt(14 * 4 * log(2 * 2 * 45 / 0.05) / n) / 2
                )  # 11 episodes of 4 steps are over
                p = alpha[i, s, a] / alpha[i, s, a].sum()
                ranks = list(np.argsort(v))
                p[ranks[-1]] = min(1, p[ranks[-1]] + spare)
                while p.sum() > 1 + 1e-14:
                    worst = ranks.pop(0)
                    p[worst] = max(0, 1 - (p.sum() - p[worst]))
                want = mean[i, s, a] + 0.2 * sqrt(7 * log(2 * 4 * 2 * 45 / 0.05) / 2 / n) + p @ v
                assert q[t, i, s, a] == pytest.approx(want, abs=1e-9)
            v = q[t, i].max(-1)


@pytest.mark.parametrize("prior", [FLAT, TRUE])
def test_ucrl2_is_optimistic(rng, prior):
    """Its value of the start is above the optimal one in 95 of 100 tasks at least, at the start and
    after 20 episodes.
    """
    mdps = random_mdps(rng, 100, 5, 3, horizon=6)
    best = exact.optimal_return(mdps)
    start = []

    def spy(rng, belief, scale):
        q = ucrl2(rng, belief, scale)
        start.append((q[0, :, 0].max(-1), ucrl2(rng, belief, scale / 4)[0, :, 0].max(-1)))
        return q

    play_mdps(rng, mdps, DirichletBelief(prior, mdps), 21, spy, 1.0)
    for full, quarter in (start[0], start[-1]):
        assert (full >= best).sum() >= 95 and (full > quarter).all()


def test_psrl_is_that_of_act(rng):
    """The same tasks by `model_based.act`, which scores exactly: the difference of 200 tasks within
    4 standard errors.
    """
    mdps = random_mdps(rng, 200, 5, 3, horizon=6)
    belief = DirichletBelief(TRUE, mdps)
    other = sum(value for value, *_ in act(rng, mdps, belief, episodes=8))
    paired = (
        np.mean([play_mdps(rng, mdps, belief, 8, opsrl, 1).sum(0) for _ in range(4)], 0) - other
    )
    assert abs(paired.mean()) < 4 * paired.std() / sqrt(200)


def test_psrl_with_the_true_prior_is_the_computed_one():
    """134.5 ± .8 and 406.9 ± 1.9, computed elsewhere, within 3 standard errors of it."""
    mdps = random_mdps(np.random.default_rng(3), 600)
    score = play_mdps(np.random.default_rng(4), mdps, DirichletBelief(TRUE, mdps), 25, opsrl, 1)
    for n, want, error in ((10, 134.5, 0.8), (25, 406.9, 1.9)):
        total = score[:n].sum(0)
        assert abs(total.mean() - want) < 3 * sqrt(total.var() / 600 + error**2)


PUBLISHED_MDPS = {  # Duan et al. (2016), Table 2
    10: dict(
        random=100.1, psrl=138.1, opsrl=144.1, ucrl2=146.6, beb=150.2, egreedy=132.8, greedy=134.8
    ),
    25: dict(
        random=250.2, psrl=408.8, opsrl=425.2, ucrl2=424.1, beb=427.8, egreedy=377.3, greedy=368.8
    ),
}


@pytest.mark.parametrize("name", MDPS)
def test_tuned_mdps_are_those_in_print(name):
    """300 tasks, tuned on 60 others, within 3 standard errors of the two means at both lengths; and
    below the known-model optimum.
    """
    plan, grid, prior = MDPS[name]
    mdps = random_mdps(np.random.default_rng(12), 300)
    for n, published in PUBLISHED_MDPS.items():

        def play(rng, value):
            train = random_mdps(rng, 60)
            return play_mdps(rng, train, DirichletBelief(prior, train), n, plan, value)

        value = tune(np.random.default_rng(1), play, grid)[0] if len(grid) > 1 else grid[0]
        total = play_mdps(
            np.random.default_rng(2), mdps, DirichletBelief(prior, mdps), n, plan, value
        ).sum(0)
        assert (
            abs(total.mean() - published[name]) < 3 * total.std() * sqrt(1 / 300 + 1 / 1000) + 0.05
        )
        assert total.mean() < n * exact.optimal_return(mdps).mean()


def test_the_true_prior_is_worth_much():
    """What the README says of Table 2: greedy and BEB with the prior that the tasks come from, and
    not the one in print.
    """
    mdps = random_mdps(np.random.default_rng(12), 500)
    for plan, value, want in ((greedy_plan, 0, 153.8), (MDPS["beb"][0], 10, 155.7)):
        total = play_mdps(
            np.random.default_rng(2), mdps, DirichletBelief(TRUE, mdps), 10, plan, value
        ).sum(0)
        assert abs(total.mean() - want) < 3 * sqrt(total.var() / 500 + 0.4**2)
    assert (TRUE.mean, BLIND.mean) == (1, 0)


# ---- bad input


MEANS = np.full((2, 3), 0.5)


@pytest.mark.parametrize(
    "argument, call",
    [
        ("pulls", lambda rng, m, b: play_bandits(rng, MEANS, 0, egreedy, 0)),
        ("means", lambda rng, m, b: play_bandits(rng, MEANS * 3, 1, egreedy, 0)),
        ("means", lambda rng, m, b: play_bandits(rng, MEANS * np.nan, 1, egreedy, 0)),
        ("epsilon", lambda rng, m, b: play_bandits(rng, MEANS, 1, egreedy, 1.5)),
        ("epsilon", lambda rng, m, b: play_bandits(rng, MEANS, 1, egreedy, -0.1)),
        ("epsilon", lambda rng, m, b: play_bandits(rng, MEANS, 1, egreedy, np.nan)),
        ("c", lambda rng, m, b: play_bandits(rng, MEANS, 1, ucb1, -1)),
        ("c", lambda rng, m, b: play_bandits(rng, MEANS, 1, ucb1, np.inf)),
        ("samples", lambda rng, m, b: play_bandits(rng, MEANS, 1, thompson, 0)),
        ("discount", lambda rng, m, b: play_bandits(rng, MEANS, 1, BANDITS["gittins"][0], 1.0)),
        ("arms", lambda rng, m, b: bayes_optimal(0, 3)),
        ("pulls", lambda rng, m, b: bayes_optimal(3, 0)),
        ("pulls", lambda rng, m, b: dependent_optimal("easy", 0)),
        ("difficulty", lambda rng, m, b: dependent_optimal("trivial", 3)),
        ("episodes", lambda rng, m, b: play_mdps(rng, m, b, 0, opsrl, 1)),
        ("belief", lambda rng, m, b: play_mdps(rng, m[:1], b, 1, opsrl, 1)),
        ("samples", lambda rng, m, b: play_mdps(rng, m, b, 1, opsrl, 0)),
        ("scale", lambda rng, m, b: play_mdps(rng, m, b, 1, ucrl2, -1)),
        ("epsilon", lambda rng, m, b: play_mdps(rng, m, b, 1, greedy_plan, 2)),
        ("beta", lambda rng, m, b: MDPS["beb"][0](rng, b, np.nan)),
        ("grid", lambda rng, m, b: tune(rng, None, ())),
    ],
)
def test_bad_input(rng, argument, call):
    mdps = random_mdps(rng, 2, 3, 2)
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(rng, mdps, DirichletBelief(TRUE, mdps))


def test_catalogues():
    assert set(BANDITS) == set(PUBLISHED[10, 5]) and set(MDPS) == set(PUBLISHED_MDPS[10])
    assert all(
        list(grid) == sorted(grid) and len(grid)
        for _, grid, *_ in (*BANDITS.values(), *MDPS.values())
    )
    assert strategies.BANDITS["ts"][1] == (1,)


def test_chance_is_drawn_anew_at_every_step_and_the_best_of_samples_is_taken(rng):
    mdps = random_mdps(rng, 4)
    belief = DirichletBelief(TRUE, mdps)
    random = greedy_plan(rng, belief, 1.0)
    assert all(abs(x - y).min() > 0 for x, y in zip(random, random[1:]))
    assert (
        0.3 < (greedy_plan(rng, belief, 0.5)[0] != greedy_plan(rng, belief, 0.5)[1]).any(-1).mean()
    )
    state = rng.bit_generator.state
    three = opsrl(rng, belief, 3)
    rng.bit_generator.state = state
    np.testing.assert_array_equal(three, np.max([opsrl(rng, belief, 1) for _ in range(3)], 0))
