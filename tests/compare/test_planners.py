"""Planners for random MDPs against loops, all distributions, and the published table."""

from math import log, sqrt

import numpy as np
import pytest
from compare.published import PUBLISHED_MDPS
from helpers import ORDER, Shuffled

from metarl_np import exact
from metarl_np.compare.beliefs import DirichletBelief, Prior
from metarl_np.compare.planners import (
    BLIND,
    FLAT,
    MDPS,
    TRUE,
    act,
    greedy_plan,
    opsrl,
    optimistic,
    play_mdps,
    ucrl2,
)
from metarl_np.compare.strategies import tune
from metarl_np.tasks.random_mdps import random_mdps


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
                # 11 episodes of 4 steps are over
                spare = 0.2 * sqrt(14 * 4 * log(2 * 2 * 45 / 0.05) / n) / 2
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
    """The same tasks by `planners.act`, which gives exact returns: the difference of 200 tasks
    within 4 standard errors.
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
