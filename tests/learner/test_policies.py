"""Policies against naive loops, finite differences and autograd; entropy and KL by hand."""

import math

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads

from metarl_np.arguments import NotFinite
from metarl_np.learner.policies import (
    ActorCritic,
    LogisticPolicy,
    SoftmaxPolicy,
    entropy,
    kl,
    log_softmax,
)

PHI = np.random.default_rng(7).normal(size=(4, 3))
POLICIES = {
    "softmax table": SoftmaxPolicy(4, 3),
    "softmax features": SoftmaxPolicy(4, 3, PHI),
    "logistic table, 1 unit": LogisticPolicy(4),
    "logistic features, 1 unit": LogisticPolicy(4, 1, PHI),
    "logistic table, 2 units": LogisticPolicy(4, 2),
    "logistic features, 3 units": LogisticPolicy(4, 3, PHI),
}
INF = np.inf


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys())
def policy(request):
    return request.param


def parameters(rng, policy, tasks, scale=1.5):
    """θ, shared (tasks is None) or with a leading axis of tasks, different for each."""
    return scale * rng.normal(size=(() if tasks is None else (tasks,)) + policy.init().shape)


def naive_pi(policy, theta):
    """π(a|s) of one task by products and quotients of exponentials, number by number: (S, A)."""
    phi = np.eye(policy.n_states) if policy.features is None else policy.features
    pi = np.zeros((policy.n_states, policy.n_actions))
    for s in range(policy.n_states):
        for a in range(policy.n_actions):
            if isinstance(policy, SoftmaxPolicy):
                pi[s, a] = math.exp(phi[s] @ theta[:, a]) / sum(
                    math.exp(phi[s] @ theta[:, b]) for b in range(policy.n_actions)
                )
            else:
                pi[s, a] = 1
                for u in range(policy.units):
                    one = 1 / (1 + math.exp(-phi[s] @ theta[:, u]))
                    pi[s, a] *= one if a // 2**u % 2 else 1 - one
    return pi


def finite_differences(f, x, h=1e-5):
    """Central differences of a scalar f at every entry of x."""
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        g[i] = (f(x + step) - f(x - step)) / (2 * h)
    return g


# log π


@pytest.mark.parametrize("tasks", [None, 2])
def test_log_pi_is_the_log_of_the_naive_pi(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    log_pi = policy.log_pi(theta)
    want = (
        naive_pi(policy, theta)
        if tasks is None
        else np.stack([naive_pi(policy, th) for th in theta])
    )
    np.testing.assert_allclose(log_pi, np.log(want), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.exp(log_pi).sum(-1), 1, rtol=1e-12)


def test_init_is_uniform(policy):
    np.testing.assert_allclose(
        policy.log_pi(policy.init()), np.full((4, policy.n_actions), -np.log(policy.n_actions))
    )


def test_log_pi_at_extreme_parameters(rng, policy):
    theta = rng.choice([-1e4, 1e4], (5,) + policy.init().shape)
    weights = rng.normal(size=(5, 4, policy.n_actions))
    log_pi = policy.log_pi(theta)
    gradient = grad(lambda th: anp.sum(weights * policy.log_pi(th)))(theta)
    assert np.isfinite(log_pi).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(np.exp(log_pi).sum(-1), 1)
    np.testing.assert_allclose(policy.weighted_score(theta, weights), gradient, atol=1e-9)


def test_extreme_log_probabilities_are_exact():
    assert SoftmaxPolicy(1, 2).log_pi(np.array([[1e4, -1e4]])).tolist() == [[0, -2e4]]
    np.testing.assert_allclose(
        SoftmaxPolicy(1, 2).log_pi(np.array([[1e4, 1e4]])), -np.log(2), rtol=1e-12
    )
    assert LogisticPolicy(2).log_pi(np.array([[1e4], [-1e4]])).tolist() == [[-1e4, 0], [0, -1e4]]
    assert LogisticPolicy(1, 2).log_pi(np.array([[1e4, -1e4]])).tolist() == [[-1e4, 0, -2e4, -1e4]]


def test_one_logistic_unit_is_sigma():
    pi = np.exp(LogisticPolicy(4, 1, PHI).log_pi(np.array([[0.3], [-2.0], [1.1]])))
    for s in range(4):
        x = 0.3 * PHI[s, 0] - 2.0 * PHI[s, 1] + 1.1 * PHI[s, 2]
        assert pi[s, 1] == pytest.approx(1 / (1 + math.exp(-x)))


def test_units_multiply_and_bit_u_is_unit_u():
    policy = LogisticPolicy(1, 2)
    assert policy.n_actions == 4 and policy.bits.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    theta = np.log([[0.8 / 0.2, 0.3 / 0.7]])  # unit 0 says 1 with .8, unit 1 with .3
    np.testing.assert_allclose(
        np.exp(policy.log_pi(theta)), [[0.2 * 0.7, 0.8 * 0.7, 0.2 * 0.3, 0.8 * 0.3]]
    )


# Derivatives


@pytest.mark.parametrize(
    "tasks, weighted",
    [(None, None), (2, 2), (2, None)],
    ids=["shared", "per task", "shared weights"],
)
def test_weighted_score_is_the_gradient(rng, policy, tasks, weighted):
    theta = parameters(rng, policy, tasks)
    weights = rng.normal(size=(() if weighted is None else (weighted,)) + (4, policy.n_actions))
    score = policy.weighted_score(theta, weights)
    assert score.shape == theta.shape
    np.testing.assert_allclose(
        score, finite_differences(lambda th: np.sum(weights * policy.log_pi(th)), theta), atol=1e-8
    )
    np.testing.assert_allclose(
        score, grad(lambda th: anp.sum(weights * policy.log_pi(th)))(theta), atol=1e-12
    )


def test_weighted_score_of_shared_parameters_is_one_per_task(rng, policy):
    theta = parameters(rng, policy, None)
    weights = rng.normal(size=(3, 4, policy.n_actions))
    score = policy.weighted_score(theta, weights)
    assert score.shape == (3,) + theta.shape
    for i in range(3):
        np.testing.assert_allclose(
            score[i], grad(lambda th: anp.sum(weights[i] * policy.log_pi(th)))(theta), atol=1e-12
        )


@pytest.mark.parametrize("tasks", [None, 2])
def test_tangent_is_the_directional_derivative(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    v = parameters(rng, policy, tasks)
    ahead = policy.log_pi(theta + 1e-5 * v)
    behind = policy.log_pi(theta - 1e-5 * v)
    np.testing.assert_allclose(policy.tangent(theta, v), (ahead - behind) / 2e-5, atol=1e-8)
    check_grads(policy.tangent, (0, 1), modes=["rev"], order=2)(theta, v)


def test_tangent_is_the_transpose_of_weighted_score(rng, policy):
    """⟨w, tangent(v)⟩ = ⟨weighted_score(w), v⟩."""
    theta = parameters(rng, policy, 2)
    v = parameters(rng, policy, 2)
    weights = rng.normal(size=(2, 4, policy.n_actions))
    left = (weights * policy.tangent(theta, v)).sum((1, 2))
    right = (policy.weighted_score(theta, weights) * v).sum((1, 2))
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_expected_score_is_zero(rng, policy):
    theta = parameters(rng, policy, 2)
    np.testing.assert_allclose(
        policy.weighted_score(theta, np.exp(policy.log_pi(theta))), 0, atol=1e-14
    )


@pytest.mark.parametrize("tasks", [None, 2])
def test_derivatives_to_second_order(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    weights = rng.normal(size=(() if tasks is None else (tasks,)) + (4, policy.n_actions))
    check_grads(policy.log_pi, modes=["rev"], order=2)(theta)
    check_grads(policy.weighted_score, (0, 1), modes=["rev"], order=2)(theta, weights)


def test_second_derivative_by_finite_differences(rng, policy):
    """∇²(w·log π) v without autograd: differences of the closed score."""
    theta = parameters(rng, policy, 2)
    v = parameters(rng, policy, 2)
    weights = rng.normal(size=(2, 4, policy.n_actions))
    got = grad(lambda th: anp.sum(v * grad(lambda x: anp.sum(weights * policy.log_pi(x)))(th)))(
        theta
    )
    ahead, behind = (policy.weighted_score(theta + h * v, weights) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(got, (ahead - behind) / 2e-5, atol=1e-7)


def test_log_softmax_derivatives(rng):
    check_grads(log_softmax, modes=["rev"], order=2)(rng.normal(size=(2, 3, 4)))


# A policy and its values


@pytest.mark.parametrize("tasks", [None, 2])
def test_actor_critic_is_the_actor_beside_the_values(rng, policy, tasks):
    """Every function is the actor's on all columns but the last; V(s) = φ(s)ᵀw of the last; neither
    moves the other.
    """
    both = ActorCritic(policy)
    phi = np.eye(4) if policy.features is None else policy.features
    theta = parameters(rng, both, tasks)
    v = parameters(rng, both, tasks)
    actor = theta[..., :-1]
    weights = rng.normal(size=theta.shape[:-2] + (4, policy.n_actions))
    assert (
        both.init().tolist()
        == np.zeros((policy.init().shape[0], policy.init().shape[1] + 1)).tolist()
    )
    assert (both.n_states, both.n_actions) == (4, policy.n_actions)
    np.testing.assert_allclose(both.log_pi(theta), policy.log_pi(actor), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(
        both.tangent(theta, v), policy.tangent(actor, v[..., :-1]), rtol=1e-14, atol=1e-15
    )
    np.testing.assert_allclose(
        both.weighted_score(theta, weights)[..., :-1],
        policy.weighted_score(actor, weights),
        rtol=1e-13,
        atol=1e-15,
    )
    assert (
        both.weighted_score(theta, weights).shape == theta.shape
        and not both.weighted_score(theta, weights)[..., -1].any()
    )
    values = both.values(theta)
    assert values.shape == theta.shape[:-2] + (4,)
    for i in np.ndindex(values.shape):
        assert values[i] == pytest.approx(
            sum(phi[i[-1], f] * theta[i[:-1] + (f, -1)] for f in range(phi.shape[1]))
        )


def test_actor_critic_derivatives(rng, policy):
    both = ActorCritic(policy)
    theta = parameters(rng, both, 2)
    weights = rng.normal(size=(2, 4, policy.n_actions))
    for f in both.log_pi, both.values, lambda th: both.weighted_score(th, weights):
        check_grads(f, modes=["rev"], order=2)(theta)
    score = grad(lambda th: anp.sum(weights * both.log_pi(th)))(theta)
    np.testing.assert_allclose(both.weighted_score(theta, weights), score, atol=1e-12)
    assert not grad(lambda th: anp.sum(both.values(th)))(theta)[..., :-1].any()


# Entropy and KL


def test_entropy_by_hand():
    p = np.array([[0.5, 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0]])
    log_p = np.log(p, out=np.full(p.shape, -INF), where=p > 0)
    np.testing.assert_allclose(entropy(log_p), [1.5 * np.log(2), 2 * np.log(2), 0])


@pytest.mark.parametrize(
    "p, q, want",
    [
        ([0.5, 0.5], [0.25, 0.75], 0.5 * math.log(4 / 3)),
        ([0.25, 0.75], [0.5, 0.5], 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ([0.0, 1.0], [0.5, 0.5], math.log(2)),
        ([0.5, 0.5], [0.0, 1.0], INF),  # q calls impossible what p does
        (
            [0.0, 0.5, 0.5],
            [0.0, 0.125, 0.875],
            0.5 * math.log(4) + 0.5 * math.log(4 / 7),
        ),  # impossible under both
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5], 0.0),
    ],
)
def test_kl_by_hand(p, q, want):
    log_p, log_q = (np.log(x, out=np.full(len(x), -INF), where=np.array(x) > 0) for x in (p, q))
    assert kl(log_p, log_q) == pytest.approx(want)


def test_entropy_and_kl_by_loops(rng):
    p, q = rng.dirichlet(np.ones(4), (2, 2, 3))  # each (2, 3, 4)
    h = entropy(np.log(p))
    d = kl(np.log(p), np.log(q))
    assert h.shape == d.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert h[i] == pytest.approx(-sum(x * math.log(x) for x in p[i]))
        assert d[i] == pytest.approx(sum(x * math.log(x / y) for x, y in zip(p[i], q[i])))
    assert (d > 0).all()
    # distance to uniform
    np.testing.assert_allclose(h, np.log(4) - kl(np.log(p), np.full(p.shape, -np.log(4))))


def test_entropy_and_kl_derivatives(rng, policy):
    theta = parameters(rng, policy, 2)
    old = parameters(rng, policy, 2)
    check_grads(lambda th: entropy(policy.log_pi(th)), modes=["rev"], order=2)(theta)
    check_grads(
        lambda o, th: kl(policy.log_pi(o), policy.log_pi(th)), (0, 1), modes=["rev"], order=2
    )(old, theta)
    gradient = grad(lambda th: anp.sum(kl(policy.log_pi(theta), policy.log_pi(th))))(theta)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)  # KL is smallest at the old parameters


# Bad input


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: SoftmaxPolicy(0, 2), "n_states"),
        (lambda: SoftmaxPolicy(3, 0), "n_actions"),
        (lambda: LogisticPolicy(0), "n_states"),
        (lambda: LogisticPolicy(3, 0), "units"),
        (lambda: LogisticPolicy(3, -1), "units"),
        (lambda: SoftmaxPolicy(3, 2, PHI), "features"),
        (lambda: LogisticPolicy(4, 1, PHI[:, 0]), "features"),
        (lambda: SoftmaxPolicy(4, 2, np.where(PHI == PHI[2, 1], np.nan, PHI)), "features"),
        (lambda: LogisticPolicy(4, 2, np.where(PHI == PHI[2, 1], INF, PHI)), "features"),
    ],
)
def test_bad_policies(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize("cut", [np.s_[:-1], np.s_[:, :-1], np.s_[0], np.s_[..., None]])
def test_parameters_of_a_wrong_shape(policy, cut):
    theta = policy.init()[cut]
    good = policy.init()
    weights = np.ones((4, policy.n_actions))
    calls = (
        lambda: policy.log_pi(theta),
        lambda: policy.weighted_score(theta, weights),
        lambda: policy.tangent(theta, good),
        lambda: policy.tangent(good, theta),
        lambda: ActorCritic(policy).log_pi(theta),
    )
    for call in calls:
        with pytest.raises(ValueError, match="^(theta|v): "):
            call()


def test_a_single_action_is_sure_and_has_no_score(rng):
    for policy in (SoftmaxPolicy(3, 1), ActorCritic(SoftmaxPolicy(3, 1))):
        theta, v = rng.normal(size=(2, 2) + policy.shape)
        for zero in (
            policy.log_pi(theta),
            policy.tangent(theta, v),
            policy.weighted_score(theta, rng.normal(size=(2, 3, 1))),
        ):
            np.testing.assert_allclose(zero, 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [int, bool, np.float32])
def test_parameters_of_another_dtype_mean_the_same(policy, dtype):
    theta = np.indices(policy.init().shape).sum(0) % 2
    np.testing.assert_allclose(
        policy.log_pi(theta.astype(dtype)), policy.log_pi(theta * 1.0), rtol=1e-6
    )


def test_log_softmax_of_any_strides_leaves_its_argument_alone(rng):
    x = rng.normal(size=(4, 5, 6))
    for y in (
        x[:, ::2],
        x.transpose(2, 0, 1),
        x[..., ::-1],
        np.broadcast_to(x[0], (3, 5, 6)),
        np.asfortranarray(x),
        x[0, 0],
    ):
        before = y.copy()
        np.testing.assert_allclose(
            log_softmax(y), before - np.log(np.exp(before).sum(-1, keepdims=True)), atol=1e-14
        )
        assert (y == before).all()


@pytest.mark.parametrize("bad", [np.nan, INF, -INF])
def test_parameters_that_are_not_finite(policy, bad):
    """Bad input to who passed them, an accident of arithmetic to who computed them: either except
    clause catches it.
    """
    theta = np.full(policy.init().shape, bad)
    for error in ValueError, FloatingPointError, NotFinite:
        with pytest.raises(error, match="^theta: .*not finite"):
            policy.log_pi(theta)


def test_a_critic_is_checked_like_its_actor():
    policy = ActorCritic(SoftmaxPolicy(3, 2))
    for f in (policy.values, policy.log_pi):
        f([[0.0] * 3] * 3)
        with pytest.raises(ValueError, match=r"theta: expected shape \(…, 3, 3\), got \(3, 4\)"):
            f(np.zeros((3, 4)))
        with pytest.raises(
            ValueError, match="theta: .*not finite .at task 1, state or feature 2, column 2"
        ):
            f(np.where(np.arange(18).reshape(2, 3, 3) == 17, np.nan, 0.0))
