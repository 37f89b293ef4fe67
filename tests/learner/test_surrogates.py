"""Surrogates at two steps by hand, in loops over steps, and by autograd to second order. What
their derivatives converge to is in tests/check/test_estimators.py, by enumeration.
"""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads
from helpers import POLICIES, named, policies

from metarl_np.check import finite_differences
from metarl_np.learner.returns import leave_one_out_baseline, time_mean_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import (
    dice,
    fold,
    gather_log_probs,
    loaded_dice,
    lvc,
    naive,
    reinforce,
    reinforce_folded,
    reinforce_weights,
)

T = 5
N = 3
K = 4
S = 6
A = 4


def recorded(rng, garbage=0.0):
    """Random episodes of every length 1..T; `garbage` is added to what is masked."""
    length = rng.integers(1, T + 1, (N, K))
    length[:, 0] = T
    mask = np.arange(T)[:, None, None] < length
    rewards = rng.normal(size=(T, N, K)) * mask + garbage * ~mask
    states = rng.integers(S, size=(T, N, K))
    actions = rng.integers(A, size=(T, N, K))
    return Episodes(
        states, actions, rewards, mask, np.zeros((N, S, A)), states[-1], np.zeros((N, K), bool)
    )


def by_hand(rewards, mask=True):
    rewards = np.array(rewards, float)[:, None]  # (T, 1, K)
    zeros = np.zeros(rewards.shape, int)
    return Episodes(
        zeros,
        zeros,
        rewards,
        np.broadcast_to(mask, rewards.shape),
        np.zeros((1, 1, 1)),
        zeros[0],
        zeros[0] > 0,
    )


# ---- weights


def test_weights_at_two_steps_by_hand():
    e = by_hand([[1, 2], [3, 4]])
    # G_0 = 1 + .9·3 and 2 + .9·4; at t = 1 the return 3 or 4 is itself discounted by γ¹
    np.testing.assert_allclose(
        reinforce_weights(e, 0.9)[:, 0], [[3.7, 5.6], [2.7, 3.6]], rtol=1e-14
    )
    np.testing.assert_allclose(
        reinforce_weights(e, 0.9, drop_discount=True)[:, 0], [[3.7, 5.6], [3, 4]], rtol=1e-14
    )
    signs = np.array([[-1, 1], [-1, 1]])
    for baseline, size in (
        (leave_one_out_baseline, [[1.9], [0.9]]),
        (time_mean_baseline, [[0.95], [0.45]]),
    ):
        np.testing.assert_allclose(
            reinforce_weights(e, 0.9, baseline=baseline)[:, 0], signs * size, rtol=1e-13
        )


@pytest.mark.parametrize(
    "discount, expected", [(1, [6, 5, 3]), (0, [1, 0, 0]), (0.5, [2.75, 1.75, 0.75])]
)
def test_weights_at_three_steps_by_hand(discount, expected):
    assert reinforce_weights(by_hand([[1], [2], [3]]), discount)[:, 0, 0].tolist() == expected


def test_weights_against_loops(rng):
    e = recorded(rng)
    weights = reinforce_weights(e, 0.8, baseline=leave_one_out_baseline)
    for i in range(N):
        for t in range(T):
            returns = [
                sum(0.8 ** (u - t) * e.rewards[u, i, k] for u in range(t, T)) for k in range(K)
            ]
            for k in range(K):
                others = [returns[j] for j in range(K) if j != k]
                expected = (
                    0.8**t * (returns[k] - sum(others) / len(others)) if e.mask[t, i, k] else 0
                )
                assert weights[t, i, k] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("drop_discount", [False, True])
def test_masked_steps_weigh_nothing_whatever_stands_in_them(drop_discount):
    options = dict(baseline=leave_one_out_baseline, drop_discount=drop_discount)
    clean, dirty = (recorded(np.random.default_rng(1), garbage) for garbage in (0, 1e3))
    assert (clean.rewards != dirty.rewards).any()
    weights = reinforce_weights(dirty, 0.9, **options)
    assert (weights == reinforce_weights(clean, 0.9, **options)).all()
    assert (weights[~dirty.mask] == 0).all() and (weights[dirty.mask] != 0).all()


# ---- surrogates


def test_reinforce_sums_over_time_and_means_over_episodes_by_hand():
    # (T, N, K) = (2, 2, 3)
    log_probs = -np.array([[[1.0, 2, 3], [10, 20, 30]], [[4, 5, 6], [40, 50, 60]]])
    weights = np.array([[[1.0, 2, 3], [1, 1, 1]], [[2, 0, 1], [0, 3, 0]]])
    assert reinforce(log_probs, weights).tolist() == [
        -(1 + 4 + 9 + 8 + 6) / 3,
        -(10 + 20 + 30 + 150) / 3,
    ]


def test_fold_by_hand():
    weights = np.array([[[1.0, 2]], [[4, 8]]])  # T = 2, N = 1, K = 2
    states = np.array([[[0, 1]], [[1, 1]]])
    actions = np.array([[[1, 0]], [[2, 0]]])
    assert fold(weights, states, actions, 2, 3).tolist() == [[[0, 0.5, 0], [5, 0, 2]]]


def test_fold_against_loops(rng):
    e = recorded(rng)
    weights = reinforce_weights(e, 0.9)
    expected = np.zeros((N, S, A))
    for t, i, k in np.ndindex(T, N, K):
        expected[i, e.states[t, i, k], e.actions[t, i, k]] += weights[t, i, k] / K
    np.testing.assert_allclose(fold(weights, e.states, e.actions, S, A), expected, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_episodes_recorded_in_small_integers_fold_alike(rng, dtype):
    """State 60 of 64 with 5 actions is cell 300, beyond what 8 bits hold."""
    states = rng.integers(64, size=(T, N, K))
    actions = rng.integers(5, size=(T, N, K))
    weights = rng.normal(size=(T, N, K))
    expected = np.zeros((N, 64, 5))
    for t, i, k in np.ndindex(T, N, K):
        expected[i, states[t, i, k], actions[t, i, k]] += weights[t, i, k] / K
    assert (5 * states).max() > 255
    np.testing.assert_allclose(
        fold(weights, states.astype(dtype), actions.astype(dtype), 64, 5), expected, atol=1e-14
    )


@pytest.mark.parametrize("shape", [(S, A), (N, S, A)])
def test_gather_against_loops(rng, shape):
    e = recorded(rng)
    table = rng.normal(size=shape)
    gathered = gather_log_probs(table, e.states, e.actions)
    assert gathered.shape == (T, N, K)
    for t, i, k in np.ndindex(T, N, K):
        row = table if len(shape) == 2 else table[i]
        assert gathered[t, i, k] == row[e.states[t, i, k], e.actions[t, i, k]]


@pytest.mark.parametrize("shape", [(S, A), (N, S, A)])
def test_folding_changes_no_value(rng, shape):
    e = recorded(rng)
    table = rng.normal(size=shape)
    weights = reinforce_weights(e, 0.9)
    steps = reinforce(gather_log_probs(table, e.states, e.actions), weights)
    assert steps.shape == (N,)
    np.testing.assert_allclose(
        reinforce_folded(table, fold(weights, e.states, e.actions, S, A)), steps, rtol=1e-12
    )


@pytest.mark.parametrize("name", POLICIES)
def test_gradient_three_ways_is_one(rng, name):
    """Autograd of the stepwise surrogate, autograd of the folded one, and the closed form; finite
    differences stand beside.
    """
    e = recorded(rng)
    weights = reinforce_weights(e, 0.9, baseline=leave_one_out_baseline)
    table = fold(weights, e.states, e.actions, S, A)
    policy, theta = named(policies(rng, N, S, A), name)

    def stepwise(theta):
        return anp.sum(
            reinforce(gather_log_probs(policy.log_pi(theta), e.states, e.actions), weights)
        )

    closed = policy.weighted_score(theta, table)
    closed = closed if theta.ndim == 3 else closed.sum(0)
    options = dict(rtol=1e-11, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(grad(stepwise)(theta), closed, **options)
    np.testing.assert_allclose(
        grad(lambda x: anp.sum(reinforce_folded(policy.log_pi(x), table)))(theta), closed, **options
    )
    np.testing.assert_allclose(finite_differences(stepwise, theta), closed, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", POLICIES)
def test_surrogates_to_second_order(rng, name):
    e = recorded(rng)
    weights = reinforce_weights(e, 0.9)
    table = fold(weights, e.states, e.actions, S, A)
    policy, theta = named(policies(rng, N, S, A), name)
    check_grads(
        lambda x: reinforce(gather_log_probs(policy.log_pi(x), e.states, e.actions), weights),
        modes=["rev"],
    )(theta)
    check_grads(lambda x: reinforce_folded(policy.log_pi(x), table), modes=["rev"], order=2)(theta)


@pytest.mark.parametrize("surrogate", [naive, lvc, dice, loaded_dice])
def test_rewards_in_masked_steps_do_not_reach_a_surrogate(rng, surrogate):
    shape = (4, 2, 3)
    log_probs, rewards, b = (rng.normal(size=shape) for _ in range(3))
    mask = np.arange(4)[:, None, None] < rng.integers(1, 4, shape[1:])
    clean = surrogate(log_probs, rewards * mask, b, mask, 0.9)
    np.testing.assert_allclose(
        surrogate(log_probs, np.where(mask, rewards, 1e3), b, mask, 0.9), clean, atol=1e-12
    )
