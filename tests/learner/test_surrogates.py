"""Surrogates at two steps by hand, in loops over steps, and by autograd to second order. What
their derivatives converge to is in tests/check/test_estimators.py, by enumeration.
"""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad, hessian
from autograd.test_util import check_grads
from helpers import POLICIES, named, policies

from metarl_np.check import finite_differences
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline, time_mean_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import (
    SURROGATES,
    dice,
    fold,
    gather_log_probs,
    loaded_dice,
    log_likelihood,
    lvc,
    magic_box,
    naive,
    reinforce,
    reinforce_folded,
    reinforce_weights,
    stop,
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
    states = rng.integers(S, size=(T, N, K))
    return Episodes(
        states=states,
        actions=rng.integers(A, size=(T, N, K)),
        rewards=rng.normal(size=(T, N, K)) * mask + garbage * ~mask,
        mask=mask,
        log_pi=np.zeros((N, S, A)),
        last_states=states[-1],
        truncated=np.zeros((N, K), bool),
    )


def by_hand(rewards):
    """Episodes of one task with one state and one action: rewards (T, K)."""
    rewards = np.array(rewards, float)[:, None]  # (T, 1, K)
    zeros = np.zeros(rewards.shape, int)
    return Episodes(
        states=zeros,
        actions=zeros,
        rewards=rewards,
        mask=np.ones(rewards.shape, bool),
        log_pi=np.zeros((1, 1, 1)),
        last_states=zeros[0],
        truncated=np.zeros(rewards.shape[1:], bool),
    )


# ---- stop and the magic box


def test_stop_is_the_identity_and_has_no_derivative():
    assert stop(3.0) == 3.0
    slope = grad(lambda x: stop(x) * x)(3.0)
    assert slope == 3.0  # and not 6


def test_the_magic_box_is_one_and_has_every_derivative_of_exp(rng):
    x = rng.normal(size=4)
    once = elementwise_grad(magic_box)
    assert magic_box(x).tolist() == once(x).tolist() == elementwise_grad(once)(x).tolist()
    assert magic_box(x).tolist() == [1] * 4


# ---- weights


@pytest.mark.parametrize(
    "options, expected",
    [
        # G_0 = 1 + .9·3 and 2 + .9·4; at t = 1 the return 3 or 4 is itself discounted by γ¹
        (dict(), [[3.7, 5.6], [2.7, 3.6]]),
        (dict(drop_discount=True), [[3.7, 5.6], [3, 4]]),
        (dict(baseline=leave_one_out_baseline), [[-1.9, 1.9], [-0.9, 0.9]]),
        (dict(baseline=time_mean_baseline), [[-0.95, 0.95], [-0.45, 0.45]]),
    ],
    ids=["plain", "without discounts", "leave-one-out", "time mean"],
)
def test_weights_at_two_steps_by_hand(options, expected):
    weights = reinforce_weights(by_hand([[1, 2], [3, 4]]), 0.9, **options)
    np.testing.assert_allclose(weights[:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize(
    "discount, expected",
    [(1, [6, 5, 3]), (0, [1, 0, 0]), (0.5, [2.75, 1.75, 0.75])],
)
def test_weights_at_three_steps_by_hand(discount, expected):
    weights = reinforce_weights(by_hand([[1], [2], [3]]), discount)
    assert weights[:, 0, 0].tolist() == expected


def test_weights_against_loops(rng):
    e = recorded(rng)
    weights = reinforce_weights(e, 0.8, baseline=leave_one_out_baseline)
    for t, i, k in np.ndindex(T, N, K):
        returns = [0.0] * K
        for j in range(K):
            for u in range(t, T):
                returns[j] += 0.8 ** (u - t) * e.rewards[u, i, j]
        others = sum(returns) - returns[k]
        expected = 0.8**t * (returns[k] - others / (K - 1)) if e.mask[t, i, k] else 0
        assert weights[t, i, k] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("drop_discount", [False, True])
def test_masked_steps_weigh_nothing_whatever_stands_in_them(drop_discount):
    options = dict(baseline=leave_one_out_baseline, drop_discount=drop_discount)
    clean = recorded(np.random.default_rng(1))
    dirty = recorded(np.random.default_rng(1), garbage=1e3)
    assert (clean.rewards != dirty.rewards).any()
    weights = reinforce_weights(dirty, 0.9, **options)
    assert (weights == reinforce_weights(clean, 0.9, **options)).all()
    assert (weights[~dirty.mask] == 0).all()
    assert (weights[dirty.mask] != 0).all()


# ---- from tables to steps and back


def test_fold_by_hand():
    weights = np.array([[[1.0, 2]], [[4, 8]]])  # T = 2, N = 1, K = 2
    states = np.array([[[0, 1]], [[1, 1]]])
    actions = np.array([[[1, 0]], [[2, 0]]])
    expected = [[[0, 0.5, 0], [5, 0, 2]]]
    assert fold(weights, states, actions, 2, 3).tolist() == expected


def fold_by_loops(weights, states, actions, n_states, n_actions):
    table = np.zeros((N, n_states, n_actions))
    for t, i, k in np.ndindex(T, N, K):
        table[i, states[t, i, k], actions[t, i, k]] += weights[t, i, k] / K
    return table


def test_fold_against_loops(rng):
    e = recorded(rng)
    arguments = (reinforce_weights(e, 0.9), e.states, e.actions, S, A)
    np.testing.assert_allclose(fold(*arguments), fold_by_loops(*arguments), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_episodes_recorded_in_small_integers_fold_alike(rng, dtype):
    """State 60 of 64 with 5 actions is entry 300, beyond what 8 bits hold."""
    states = rng.integers(64, size=(T, N, K))
    actions = rng.integers(5, size=(T, N, K))
    weights = rng.normal(size=(T, N, K))
    assert (5 * states).max() > 255
    expected = fold_by_loops(weights, states, actions, 64, 5)
    small = (states.astype(dtype), actions.astype(dtype))
    np.testing.assert_allclose(fold(weights, *small, 64, 5), expected, atol=1e-14)


shared_and_per_task = pytest.mark.parametrize(
    "shape", [(S, A), (N, S, A)], ids=["shared", "per task"]
)


@shared_and_per_task
def test_gather_against_loops(rng, shape):
    e = recorded(rng)
    table = rng.normal(size=shape)
    gathered = gather_log_probs(table, e.states, e.actions)
    assert gathered.shape == (T, N, K)
    for t, i, k in np.ndindex(T, N, K):
        own = table if len(shape) == 2 else table[i]
        assert gathered[t, i, k] == own[e.states[t, i, k], e.actions[t, i, k]]


@shared_and_per_task
def test_folding_changes_no_value(rng, shape):
    e = recorded(rng)
    table = rng.normal(size=shape)
    weights = reinforce_weights(e, 0.9)
    by_step = reinforce(gather_log_probs(table, e.states, e.actions), weights)
    assert by_step.shape == (N,)
    folded = reinforce_folded(table, fold(weights, e.states, e.actions, S, A))
    np.testing.assert_allclose(folded, by_step, rtol=1e-12)


def test_log_likelihood_against_loops(rng):
    e = recorded(rng)
    log_pi = rng.normal(size=(N, S, A))
    expected = np.zeros(N)
    for t, i, k in zip(*np.nonzero(e.mask)):
        expected[i] += log_pi[i, e.states[t, i, k], e.actions[t, i, k]]
    np.testing.assert_allclose(log_likelihood(log_pi, e), expected, rtol=1e-12)


# ---- REINFORCE


def test_reinforce_sums_over_time_and_means_over_episodes_by_hand():
    first_task = -np.array([[1.0, 2, 3], [4, 5, 6]])  # log π, (T, K)
    log_probs = np.stack([first_task, 10 * first_task], 1)  # (T, N, K)
    weights = np.array([[[1.0, 2, 3], [1, 1, 1]], [[2, 0, 1], [0, 3, 0]]])
    expected = [-(1 + 4 + 9 + 8 + 6) / 3, -(10 + 20 + 30 + 150) / 3]
    assert reinforce(log_probs, weights).tolist() == expected


@pytest.mark.parametrize("name", POLICIES)
def test_gradient_three_ways_is_one(rng, name):
    """Autograd of the surrogate step by step, autograd of the folded one, and the closed form;
    finite differences stand beside.
    """
    e = recorded(rng)
    weights = reinforce_weights(e, 0.9, baseline=leave_one_out_baseline)
    table = fold(weights, e.states, e.actions, S, A)
    policy, theta = named(policies(rng, N, S, A), name)

    def by_step(th):
        log_probs = gather_log_probs(policy.log_pi(th), e.states, e.actions)
        return anp.sum(reinforce(log_probs, weights))

    def folded(th):
        return anp.sum(reinforce_folded(policy.log_pi(th), table))

    closed = policy.weighted_score(theta, table)
    closed = closed if theta.ndim == 3 else closed.sum(0)
    np.testing.assert_allclose(grad(by_step)(theta), closed, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(grad(folded)(theta), closed, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(finite_differences(by_step, theta), closed, atol=1e-8)


@pytest.mark.parametrize("name", POLICIES)
def test_reinforce_to_second_order(rng, name):
    e = recorded(rng)
    weights = reinforce_weights(e, 0.9)
    table = fold(weights, e.states, e.actions, S, A)
    policy, theta = named(policies(rng, N, S, A), name)

    def by_step(th):
        return reinforce(gather_log_probs(policy.log_pi(th), e.states, e.actions), weights)

    def folded(th):
        return reinforce_folded(policy.log_pi(th), table)

    check_grads(by_step, modes=["rev"])(theta)
    check_grads(folded, modes=["rev"], order=2)(theta)


# ---- the four surrogates, as functions of the log-probabilities of one task's episodes


every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)


def steps(rng, n_tasks=1):
    """log π_t, and the rest of a surrogate's arguments: (T, N, K) each."""
    shape = (T, n_tasks, K)
    mask = np.arange(T)[:, None, None] < rng.integers(1, T + 1, shape[1:])
    log_probs, rewards, baseline = rng.normal(size=(3,) + shape)
    return log_probs, rewards, baseline, mask


@every_surrogate
def test_every_surrogate_has_the_gradient_of_reinforce(rng, surrogate):
    log_probs, rewards, baseline, mask = steps(rng)
    slope = grad(lambda x: surrogate(x, rewards, baseline, mask, 0.9)[0])(log_probs)
    for t, n, k in np.ndindex(slope.shape):
        to_go = sum(0.9**u * rewards[u, n, k] * mask[u, n, k] for u in range(t, T))
        weight = (to_go - 0.9**t * baseline[t, n, k]) * mask[t, n, k]
        assert slope[t, n, k] == pytest.approx(weight / K)


@every_surrogate
def test_rewards_in_masked_steps_do_not_reach_a_surrogate(rng, surrogate):
    log_probs, rewards, baseline, mask = steps(rng, n_tasks=2)
    clean = surrogate(log_probs, rewards * mask, baseline, mask, 0.9)
    garbage = np.where(mask, rewards, 1e3)
    dirty = surrogate(log_probs, garbage, baseline, mask, 0.9)
    np.testing.assert_allclose(dirty, clean, atol=1e-12)


def second_derivative(surrogate, log_probs, *arguments, **options):
    return hessian(lambda x: surrogate(x, *arguments, 0.9, **options)[0])(log_probs)


def test_loaded_dice_without_memory_has_the_second_derivative_of_lvc(rng):
    arguments = steps(rng)
    loaded = second_derivative(loaded_dice, *arguments, lam=0)
    np.testing.assert_allclose(loaded, second_derivative(lvc, *arguments), atol=1e-12)


def test_loaded_dice_with_full_memory_and_no_baseline_has_the_second_derivative_of_dice(rng):
    log_probs, rewards, _, mask = steps(rng)
    arguments = (log_probs, rewards, no_baseline(rewards), mask)
    loaded = second_derivative(loaded_dice, *arguments, lam=1)
    np.testing.assert_allclose(loaded, second_derivative(dice, *arguments), atol=1e-12)


@pytest.mark.parametrize("surrogate", [naive, lvc, dice, loaded_dice])
def test_dones_in_the_place_of_a_mask_are_refused(surrogate, rng):
    log_probs, rewards = rng.normal(size=(2, 4, 1, 2))
    dones = np.array([[0, 0], [0, 1], [0, 0], [1, 0]])[:, None]
    with pytest.raises(ValueError, match="^mask: .*dones"):
        surrogate(log_probs, rewards, 0.0, dones, 0.9)
