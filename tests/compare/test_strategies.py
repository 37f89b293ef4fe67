"""Baselines: dynamic programming and indices against recursions written differently, runners
against plain loops, figures against print.
"""

from math import log, sqrt

import numpy as np
import pytest
from compare.published import PUBLISHED, PUBLISHED_MDPS
from helpers import ORDER, Shuffled, random_tasks

from metarl_np import exact, strategies
from metarl_np.compare.bayes import bayes_optimal, dependent_optimal
from metarl_np.compare.beliefs import DirichletBelief
from metarl_np.compare.planners import (
    MDPS,
    TRUE,
    greedy_plan,
    opsrl,
    planned_values,
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
from metarl_np.tasks.bandits import independent
from metarl_np.tasks.random_mdps import random_mdps

# ---- what is exact


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
        ("grid", lambda rng, m, b: tune(rng, print, ())),
        ("grid", lambda rng, m, b: tune(rng, print, 3)),
        ("play", lambda rng, m, b: tune(rng, None, (1,))),
        ("rng", lambda rng, m, b: tune(0, print, (1,))),
        ("difficulty", lambda rng, m, b: dependent_optimal(np.array(["easy", "hard"]), 3)),
        ("strategy: its index", lambda rng, m, b: play_bandits(rng, MEANS, 1, print, 0)),
        ("a", lambda rng, m, b: BANDITS["gittins"][0](rng, [[0, 1]], [[1, 1]], 0, 0.5)),
        ("a", lambda rng, m, b: BANDITS["gittins"][0](rng, [[1.5, 1]], [[1, 1]], 0, 0.5)),
        ("b", lambda rng, m, b: egreedy(rng, [[1, 1]], [[1, np.nan]], 0, 0.5)),
        ("b", lambda rng, m, b: egreedy(rng, [[1, 1]], [[1]], 0, 0.5)),
        ("t", lambda rng, m, b: ucb1(rng, [[1, 1]], [[1, 1]], -1, 0.5)),
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


@pytest.mark.parametrize(
    "argument, bad",
    [("discount", [0.9]), ("discount", "x"), ("pulls", [3]), ("pulls", 2.5), ("pulls", None)],
)
def test_gittins_index_names_what_no_cache_can_hold(argument, bad):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        strategies.gittins_index(**dict(discount=0.9, pulls=3) | {argument: bad})


def test_gittins_takes_arms_that_were_known_before_the_first_pull(rng):
    index = BANDITS["gittins"][0](rng, [[200, 3]], [[100, 1]], 0, 0.5)
    np.testing.assert_allclose(index, [[2 / 3, gittins_index(0.5, 3)[2, 0]]], atol=3e-3)
