"""TRPO against dense matrices built from single scores, finite differences, and 1,000 random
problems.
"""

import math
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, jacobian
from autograd.test_util import check_grads
from helpers import (
    learners,
    plain_kl,
    plain_log_pi,
    plain_score,
    plain_visits,
    policies,
    random_tasks,
)

from metarl_np.check import finite_differences
from metarl_np import exact
from metarl_np.learner.advantages import mean_kl
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import reinforce_table
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.trpo import TRPO, fisher_vector_product, natural_direction
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps

N = 3
S = 4
A = 4
K = 8


def fisher(policy, theta, nu):
    """F = Σ_s ν(s) Σ_a π ∇log π ∇log πᵀ of one task, as a matrix: (P, P)."""
    pi = np.exp(plain_log_pi(policy, theta))
    score = plain_score(policy, theta)
    return sum(
        nu[s] * pi[s, a] * np.outer(score[s, a], score[s, a]) for s, a in np.ndindex(pi.shape)
    )


@pytest.fixture
def cases(rng):
    """(name, policy, θ (N, F, ·), ν (N, S)): every kind of policy, with a critic and without; one
    state is never visited.
    """
    nu = rng.dirichlet(np.ones(S), N)
    nu[0, 1:] /= 1 - nu[0, 0]
    nu[0, 0] = 0
    every = [case for case in policies(rng, N, S, A) if case[2].ndim == 3]
    return [(*case, nu) for case in every + list(learners(rng, N, S, A))[2:]]


# ---- the Fisher matrix and the system that is solved with it


def test_fisher_is_the_hessian_of_the_kl(cases):
    """Second differences of KL(π_θ‖π_θ') at θ' = θ, written without it."""
    for name, policy, theta, nu in cases:
        x = theta[1]
        h = 1e-3
        hessian = finite_differences(
            lambda y: finite_differences(lambda z: plain_kl(policy, x, z, nu[1]), y, h), x, h
        )
        np.testing.assert_allclose(
            fisher(policy, x, nu[1]), hessian.reshape(x.size, x.size), atol=1e-5, err_msg=name
        )


def fisher_vector_product_by_autograd(policy, theta, nu, v):
    """For any policy: the derivative of vᵀ∇KL̄(π_θ‖π_θ') at θ' = θ."""
    gradient = grad(lambda new: anp.sum(mean_kl(policy, theta, new, nu)))
    return grad(lambda new: anp.sum(gradient(new) * v))(theta)


def test_both_fisher_vector_products_are_the_dense_one(cases, rng):
    for name, policy, theta, nu in cases:
        v = rng.normal(size=theta.shape)
        dense = [
            (fisher(policy, theta[i], nu[i]) @ v[i].ravel()).reshape(v[i].shape) for i in range(N)
        ]
        for product in fisher_vector_product, fisher_vector_product_by_autograd:
            np.testing.assert_allclose(
                product(policy, theta, nu, v), dense, atol=1e-13, err_msg=name
            )


def test_a_softmaxs_fisher_matrix_is_singular_and_damping_mends_it(cases, rng):
    """Adding the same number to all of a state's logits changes nothing."""
    _, policy, theta, nu = cases[0]
    shift = np.broadcast_to(rng.normal(size=(N, S, 1)), theta.shape)
    np.testing.assert_allclose(fisher_vector_product(policy, theta, nu, shift), 0, atol=1e-15)
    np.testing.assert_allclose(
        natural_direction(policy, theta, shift, nu, 0.01), shift / 0.01, rtol=1e-9
    )


def solve(policy, theta, g, nu, damping):
    """(F + λI)⁻¹ g by a dense solve, per task."""
    return np.stack(
        [
            np.linalg.solve(fisher(policy, th, v) + damping * np.eye(th.size), x.ravel()).reshape(
                th.shape
            )
            for th, x, v in zip(theta, g, nu)
        ]
    )


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_natural_direction_is_the_dense_solve(cases, rng, damping):
    for name, policy, theta, nu in cases:
        g = rng.normal(size=theta.shape) * np.array([1, 1e-6, 1e6])[:, None, None]
        x = natural_direction(policy, theta, g, nu, damping)
        residual = np.zeros(N)
        np.testing.assert_allclose(
            x / abs(g).max((1, 2), keepdims=True),
            solve(policy, theta, g, nu, damping) / abs(g).max((1, 2), keepdims=True),
            atol=1e-7,
            err_msg=name,
        )
        for i in range(N):
            left = (fisher(policy, theta[i], nu[i]) + damping * np.eye(x[i].size)) @ x[
                i
            ].ravel() - g[i].ravel()
            residual[i] = np.linalg.norm(left) / np.linalg.norm(g[i])
        assert residual.max() < 2e-10, name


def test_natural_direction_is_differentiable_twice(cases, rng):
    for name, policy, theta, nu in cases:
        g = rng.normal(size=theta.shape)
        check_grads(
            lambda th, x: natural_direction(policy, th, x, nu, 0.3), (0, 1), modes=["rev"], order=2
        )(theta, g)
        for argument in range(2):
            slope = jacobian(lambda th, x: natural_direction(policy, th, x, nu, 0.3), argument)(
                theta, g
            )
            expected = finite_differences(
                lambda x: solve(policy, *((x, g) if argument == 0 else (theta, x)), nu, 0.3),
                (theta, g)[argument],
            )
            np.testing.assert_allclose(slope, expected, atol=1e-7, err_msg=name)


# ---- the step


def surrogate_gain(policy, theta, new, table):
    """Σ W(s, a) (π_new/π_old − 1) of one task."""
    return np.sum(table * (np.exp(plain_log_pi(policy, new) - plain_log_pi(policy, theta)) - 1))


@pytest.fixture
def batch(rng):
    """(name, policy, θ, tasks, Episodes, W (N, S, A) of the same steps, ν) of every kind of
    learner; critics start at V = 0.
    """
    mdps = random_tasks(rng, N, S, A, 2, horizon=5)
    cases = []
    for name, policy, theta in learners(rng, N, S, A):
        critic = hasattr(policy, "values")
        theta[..., -1] *= not critic
        e = rollout(rng, mdps, policy.log_pi(theta), K)
        table = reinforce_table(
            e,
            mdps.discount,
            *mdps.shape[1:],
            baseline=no_baseline if critic else leave_one_out_baseline
        )
        cases.append((name, policy, theta, mdps, e, table, plain_visits(e, S)))
    return cases


def test_step_length_by_hand():
    """Softmax, two states and two actions, π = ½: F's eigenvalue on (1, −1) in state s is ν_s/2. g
    = (w, −w) and x = g/(ν/2 + λ).

    w = (1, 2), ν = (.8, .2), λ = .1: x = (1/.5, 2/.2) = (2, 10), xᵀFx = .8·2² + .2·10² = 23.2.
    """
    trpo = TRPO(radius=0.0232, damping=0.1)
    nu = np.array([[0.8, 0.2]])
    w = np.array([[[1.0, -1], [2, -2]]])
    theta = np.zeros((1, 2, 2))
    full = math.sqrt(2 * 0.0232 / 23.2) * np.array([[[2.0, -2], [10, -10]]])
    for exponent, factor in (0, 1), (3, 1 / 8), (-1, 0):
        new = trpo.step(SoftmaxPolicy(2, 2), theta, w, nu, np.array([exponent]))
        np.testing.assert_allclose(new, factor * full, rtol=1e-9, atol=0)
    thrice = TRPO(radius=0.0232, damping=0.1, shrink=0.3).step(
        SoftmaxPolicy(2, 2), theta, 5 * w, nu, np.array([2])
    )
    # the size of the advantages does not matter
    np.testing.assert_allclose(thrice, 0.09 * full, rtol=1e-9)


def test_a_short_full_step_has_the_kl_of_its_radius(batch):
    for name, policy, theta, mdps, e, table, nu in batch:
        trpo = TRPO(radius=1e-8, damping=0.01)
        new = trpo.step(policy, theta, table, nu, np.zeros(N, int))
        np.testing.assert_allclose(
            [plain_kl(policy, theta[i], new[i], nu[i]) for i in range(N)],
            1e-8,
            rtol=1e-2,
            err_msg=name,
        )


def test_at_the_old_parameters_the_surrogates_gradient_is_reinforces(batch):
    """…and the step's, which with much damping goes along the gradient."""
    for name, policy, theta, mdps, e, table, nu in batch:
        g = policy.weighted_score(theta, table)
        for i in range(N):
            slope = finite_differences(
                lambda x: surrogate_gain(policy, theta[i], x, table[i]), theta[i]
            )
            np.testing.assert_allclose(g[i], slope, atol=1e-8, err_msg=name)
        trpo = TRPO(radius=0.01, damping=1e8, lam=1.0)
        step = trpo(policy, theta, trpo.prepare(policy, theta, e, mdps.discount)) - theta
        length = np.linalg.norm(step, axis=(1, 2), keepdims=True)
        assert (length > 0).all()
        np.testing.assert_allclose(
            step / length,
            g / np.linalg.norm(g, axis=(1, 2), keepdims=True),
            atol=1e-7,
            err_msg=name,
        )


def test_prepare_and_call_are_search_and_step_on_the_episodes_weights(batch):
    for name, policy, theta, mdps, e, table, nu in batch:
        trpo = TRPO(radius=0.1, lam=1.0)
        data = trpo.prepare(policy, theta, e, mdps.discount)
        exponent = trpo.search(policy, theta, table, nu)
        assert data.exponent.tolist() == exponent.tolist()
        np.testing.assert_allclose(
            trpo(policy, theta, data),
            trpo.step(policy, theta, table, nu, exponent),
            atol=1e-9,
            err_msg=name,
        )


def test_a_critic_shifts_the_advantages_but_is_not_moved(batch, rng):
    for name, policy, theta, mdps, e, table, nu in batch[2:]:
        trpo = TRPO(radius=0.1, lam=0.7)
        moved = theta.copy()
        moved[..., -1] = rng.normal(size=theta.shape[:2])
        plain, shifted = (
            trpo(policy, th, trpo.prepare(policy, th, e, mdps.discount)) for th in (theta, moved)
        )
        np.testing.assert_array_equal(shifted[..., -1], moved[..., -1])
        assert abs(shifted - plain)[..., :-1].max() > 0.01, name


# ---- the line search


def plain_search(policy, theta, table, nu, trpo, *, gain=surrogate_gain, kl=plain_kl):
    """The first exponent at which one task's step gains something and stays inside the radius, from
    a dense solve; −1: none.
    """
    g = np.tensordot(table, plain_score(policy, theta), 2)
    F = fisher(policy, theta, nu)
    x = np.linalg.solve(F + trpo.damping * np.eye(g.size), g.ravel())
    full = math.sqrt(2 * trpo.radius / (x @ F @ x)) * x.reshape(theta.shape)
    for j in range(trpo.max_backtracks + 1):
        new = theta + trpo.shrink**j * full
        if gain(policy, theta, new, table) > 0 and kl(policy, theta, new, nu) <= trpo.radius:
            return j
    return -1


@pytest.fixture
def rough(rng):
    """Weights as no policy would have sampled them and a large radius: the full step often is not
    the one. policy, TRPO, θ, W, ν.
    """
    policy = LogisticPolicy(S, 2, rng.normal(size=(S, 2)))
    return (
        policy,
        TRPO(3.0, damping=0.01, shrink=0.8),
        rng.normal(size=(300, 2, 2)),
        rng.normal(size=(300, S, A)),
        rng.dirichlet(np.ones(S), 300),
    )


def by_hand(policy, trpo, theta, table, nu, **options):
    return [plain_search(policy, *task, trpo, **options) for task in zip(theta, table, nu)]


def test_line_search_takes_the_first_step_that_gains_by_the_ratio_surrogate_inside_the_radius(
    rough,
):
    """Σ W log π, KL(new‖old), or one condition alone would have decided otherwise somewhere."""
    policy, trpo, theta, table, nu = rough
    exponent = trpo.search(policy, theta, table, nu).tolist()
    assert exponent == by_hand(*rough) and len(set(exponent)) > 3
    others = (
        dict(
            gain=lambda policy, theta, new, table: np.sum(
                table * (plain_log_pi(policy, new) - plain_log_pi(policy, theta))
            )
        ),
        dict(kl=lambda policy, theta, new, nu: plain_kl(policy, new, theta, nu)),
        dict(gain=lambda *_: 1.0),
        dict(kl=lambda *_: 0.0),
    )
    for other in others:
        assert by_hand(*rough, **other) != exponent


@pytest.mark.parametrize("options", [dict(max_backtracks=0), dict(shrink=0.999, max_backtracks=3)])
def test_a_line_search_that_finds_no_step_keeps_the_parameters_and_says_so(rough, options):
    policy, trpo, theta, table, nu = rough
    trpo = replace(trpo, **options)
    exponent = trpo.search(policy, theta, table, nu)
    assert exponent.tolist() == by_hand(policy, trpo, theta, table, nu)
    stays = exponent < 0
    slope = grad(lambda x: trpo.step(policy, x, table, nu, exponent).sum())(theta)
    assert 3 < stays.sum() < 297
    np.testing.assert_array_equal(
        (trpo.step(policy, theta, table, nu, exponent) == theta).all((1, 2)), stays
    )
    np.testing.assert_array_equal((slope == 1).all((1, 2)), stays)


def test_one_task_without_a_step_does_not_hold_up_the_others(batch):
    for name, policy, theta, mdps, e, table, nu in batch:
        e = replace(e, rewards=e.rewards * (np.arange(N) != 1)[:, None])
        trpo = TRPO(radius=0.05, lam=1.0)
        data = trpo.prepare(policy, theta, e, mdps.discount)
        moved = (trpo(policy, theta, data) != theta).any((1, 2))
        assert moved.tolist() == [True, False, True] == (data.exponent >= 0).tolist(), name


def test_zero_advantages_are_no_step_and_no_nan(batch):
    for name, policy, theta, mdps, e, table, nu in batch:
        trpo = TRPO()
        e = replace(e, rewards=0 * e.rewards)
        data = trpo.prepare(policy, theta, e, mdps.discount)
        assert data.exponent.tolist() == [-1] * N
        np.testing.assert_array_equal(trpo(policy, theta, data), theta)
        np.testing.assert_array_equal(
            trpo.step(policy, theta, 0 * table, nu, np.zeros(N, int)), theta
        )
        np.testing.assert_array_equal(
            grad(lambda x: trpo.step(policy, x, 0 * table, nu, np.zeros(N, int)).sum())(theta), 1.0
        )


def test_equal_returns_are_no_reason_to_move(rng):
    """A reward of .1 whatever is done. One rounding error among the advantages would be a
    direction, and the step as long as any.
    """
    mdps = random_mdps(rng, 20, 4, 3, horizon=5, discount=0.9)
    policy = SoftmaxPolicy(4, 3)
    theta = rng.normal(size=(20, 4, 3))
    e = rollout(rng, mdps, policy.log_pi(theta), 7)
    equal = replace(e, rewards=np.full(e.rewards.shape, 0.1, np.float32))
    data = TRPO().prepare(policy, theta, equal, mdps.discount)
    assert (data.exponent == -1).all()
    np.testing.assert_array_equal(TRPO()(policy, theta, data), theta)


def test_weights_proportional_to_pi_are_no_direction_either(rng):
    """Their gradient is zero but for rounding."""
    policy = SoftmaxPolicy(1, 3)
    theta = rng.normal(size=(50, 1, 3))
    table = rng.normal(size=(50, 1, 1)) * np.exp(policy.log_pi(theta))
    assert (TRPO().search(policy, theta, table, np.ones((50, 1))) == -1).all()


# ---- 1,000 random problems


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_never_leaves_its_radius_and_improves_the_exact_return(rng, radius):
    """Exact advantages: W = Σ_t d_t π (Q_t − V_t), ν ∝ Σ_t d_t. Promised are 1% beyond the radius
    and 95% of the problems.
    """
    n = 1000
    policy = SoftmaxPolicy(10, 5)
    trpo = TRPO(radius)
    mdps = random_mdps(rng, n, discount=0.95)
    theta = rng.normal(size=(n, 10, 5))
    log_pi = policy.log_pi(theta)
    table = exact.policy_gradient_table(mdps, log_pi)
    table = table - np.exp(log_pi) * table.sum(-1, keepdims=True)
    nu = exact.occupancy(mdps, log_pi).sum(0)
    nu /= nu.sum(1, keepdims=True)
    exponent = trpo.search(policy, theta, table, nu)
    new = policy.log_pi(trpo.step(policy, theta, table, nu, exponent))
    kl = np.einsum("ns,nsa,nsa->n", nu, np.exp(log_pi), log_pi - new)
    better = exact.expected_return(mdps, new) > exact.expected_return(mdps, log_pi)
    assert kl.max() <= 1.01 * radius and kl.max() > 0.9 * radius
    assert better.mean() >= 0.95 and (exponent >= 0).mean() >= 0.95


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(radius=0.0), "radius"),
        (dict(radius=-0.01), "radius"),
        (dict(radius=np.nan), "radius"),
        (dict(radius=np.inf), "radius"),
        (dict(damping=0.0), "damping"),
        (dict(damping=-1.0), "damping"),
        (dict(damping=np.nan), "damping"),
        (dict(lam=1.5), "lam"),
        (dict(shrink=0.0), "shrink"),
        (dict(shrink=1.0), "shrink"),
        (dict(max_backtracks=-1), "max_backtracks"),
    ],
)
def test_bad_input(options, name):
    with pytest.raises(ValueError, match=name):
        TRPO(**options)


def test_no_step_along_a_rounding_error(rng):
    """All episodes of a bandit take the same action: with leave-one-out baselines W is 0, or 1e-17,
    and says nothing.
    """
    rewards = np.array([[[[1.0, -0.37, 0.91]] * 2, [[0] * 3] * 2]])
    bandit = MDP(
        np.ones((1, 2, 2, 3), int),
        np.broadcast_to([[0.2, 0.3, 0.5]], rewards.shape),
        rewards,
        np.array([[1.0, 0.0]]),
        np.array([[False, True]]),
        0.9,
        1,
    )
    policy = SoftmaxPolicy(2, 2)
    theta = np.array([[[2.0, 0.0], [0.0, 0.0]]])
    still = moved = 0
    for _ in range(60):
        e = rollout(rng, bandit, policy.log_pi(theta), 7)
        new = TRPO(0.05)(policy, theta, TRPO(0.05).prepare(policy, theta, e, bandit.discount))
        if len(set(e.actions.ravel())) == 1:
            assert (new == theta).all()
            still += 1
        else:
            moved += (new != theta).any()
    assert still > 10 and moved > 10
