import numpy as np
import pytest
from autograd import jacobian
from autograd.test_util import check_grads
from helpers import numerical_gradient, policies, random_tasks

from metarl_np.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.returns import Episodes, no_baseline, time_mean_baseline
from metarl_np.rollouts import rollout
from metarl_np.updates import Reinforce, reinforce_table

N, S, A = 2, 4, 4


def loop_table(mdps, e, baseline):
    """Σ_t mean_k γᵗ (G_t − b) for one baseline name, written out."""
    steps, n, k = e.rewards.shape
    table = np.zeros(mdps.shape)
    for i in range(n):
        for t in range(steps):
            g = [sum(mdps.discount**(u - t) * float(e.rewards[u, i, j]) for u in range(t, steps)) for j in range(k)]
            for j in range(k):
                b = {"none": 0, "mean": sum(g) / k, "others": (sum(g) - g[j]) / (k - 1)}[baseline]
                if e.mask[t, i, j]:
                    table[i, e.states[t, i, j], e.actions[t, i, j]] += mdps.discount**t * (g[j] - b) / k
    return table


def test_table_against_loops(rng):
    mdps = random_tasks(rng, N, S, A, 2, horizon=5, discount=.8)
    e = rollout(rng, mdps, np.full((S, A), -np.log(A)), 6)
    assert not e.mask.all()
    np.testing.assert_allclose(reinforce_table(mdps, e), loop_table(mdps, e, "others"), atol=1e-12)
    np.testing.assert_allclose(reinforce_table(mdps, e, baseline=no_baseline), loop_table(mdps, e, "none"), atol=1e-12)
    np.testing.assert_allclose(reinforce_table(mdps, e, baseline=time_mean_baseline), loop_table(mdps, e, "mean"), atol=1e-12)


def test_one_episode_has_no_others_to_take_a_baseline_from(rng):
    mdps = random_tasks(rng, N, S, A, 2, horizon=5)
    e = rollout(rng, mdps, np.full((S, A), -np.log(A)), 1)
    with pytest.raises(ValueError, match="episodes.*leave-one-out"):
        reinforce_table(mdps, e)
    assert np.isfinite(reinforce_table(mdps, e, baseline=no_baseline)).all()


def test_step_by_hand():
    """One state, two steps, one episode: actions 1 then 0, rewards 2 and 3, γ = .9: W(1) = 2 + .9·3, W(0) = .9·3."""
    mdps = random_tasks(np.random.default_rng(0), 1, 2, 2, 2, horizon=2)
    actions, zeros = np.array([[[1]], [[0]]]), np.zeros((2, 1, 1), int)
    e = Episodes(zeros, actions, np.array([[[2.0]], [[3.0]]]), zeros == 0, np.zeros((1, 2, 2)), zeros[0], zeros[0] > 0)
    table = reinforce_table(mdps, e, baseline=no_baseline)
    np.testing.assert_allclose(table, [[[2.7, 4.7], [0, 0]]], rtol=1e-14)
    # softmax, π = (½, ½): W(a) − ½ ΣW = ∓1; logistic at σ = ½: 4.7·½ − 2.7·½ = 1
    np.testing.assert_allclose(Reinforce(.1)(SoftmaxPolicy(2, 2), np.zeros((2, 2)), table), [[[-.1, .1], [0, 0]]], atol=1e-14)
    np.testing.assert_allclose(Reinforce(.1)(LogisticPolicy(2), np.zeros((2, 1)), table), [[[.1], [0]]], atol=1e-14)


def test_step_goes_uphill_on_the_surrogate_by_alpha(rng):
    table = rng.normal(size=(N, S, A))
    for name, policy, theta in policies(rng, N, S, A):
        def surrogate(theta):
            return (policy.log_pi(theta) * table).sum((-2, -1))

        slope = numerical_gradient(surrogate, theta)  # (N,) + θ; task i has no say in what belongs to task j
        slope = slope if theta.ndim == 2 else slope[np.arange(N), np.arange(N)]
        np.testing.assert_allclose(Reinforce(.3)(policy, theta, table), theta + .3 * slope, atol=1e-8, err_msg=name)
        np.testing.assert_array_equal(Reinforce(0.0)(policy, theta, table), theta + np.zeros_like(slope))


def test_step_is_differentiable_twice(rng):
    table = rng.normal(size=(N, S, A))
    for name, policy, theta in policies(rng, N, S, A):
        check_grads(lambda x: Reinforce(.3)(policy, x, table), modes=["rev"], order=2)(theta)
        by_autograd = jacobian(lambda x: Reinforce(.3)(policy, x, table))(theta)
        expected = numerical_gradient(lambda x: Reinforce(.3)(policy, x, table), theta)
        np.testing.assert_allclose(by_autograd, expected, atol=1e-8, err_msg=name)
