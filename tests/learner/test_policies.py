"""Policies against products of exponentials written out number by number, finite differences and
autograd; entropy and KL by hand.
"""

import math

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads
from helpers import plain_score

from metarl_np.arguments import NotFinite
from metarl_np.check import finite_differences
from metarl_np.learner.policies import (
    ActorCritic,
    LogisticPolicy,
    SoftmaxPolicy,
    entropy,
    kl,
    log_softmax,
)

S = 4
INF = np.inf
PHI = np.random.default_rng(7).normal(size=(S, 3))
POLICIES = {
    "softmax table": SoftmaxPolicy(S, 3),
    "softmax features": SoftmaxPolicy(S, 3, PHI),
    "logistic table, 1 unit": LogisticPolicy(S),
    "logistic features, 1 unit": LogisticPolicy(S, 1, PHI),
    "logistic table, 2 units": LogisticPolicy(S, 2),
    "logistic features, 3 units": LogisticPolicy(S, 3, PHI),
}

shared_and_per_task = pytest.mark.parametrize("tasks", [None, 2], ids=["shared", "per task"])


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys())
def policy(request):
    return request.param


def leading(tasks):
    """The axis of tasks, or none where parameters are shared (tasks is None)."""
    return () if tasks is None else (tasks,)


def parameters(rng, policy, tasks):
    """θ, different for each task if there are any."""
    return 1.5 * rng.normal(size=leading(tasks) + policy.shape)


def table(rng, policy, tasks):
    """Weights w(s, a), (S, A) or (N, S, A)."""
    return rng.normal(size=leading(tasks) + (S, policy.n_actions))


def features(policy):
    return np.eye(S) if policy.features is None else policy.features


def naive_pi(policy, theta):
    """π(a|s) of one task by products and quotients of exponentials, number by number: (S, A)."""
    phi = features(policy)
    pi = np.zeros((S, policy.n_actions))
    for s, a in np.ndindex(pi.shape):
        x = [phi[s] @ column for column in theta.T]
        if isinstance(policy, SoftmaxPolicy):
            pi[s, a] = math.exp(x[a]) / sum(map(math.exp, x))
        else:
            pi[s, a] = 1
            for u, x_u in enumerate(x):
                one = 1 / (1 + math.exp(-x_u))
                pi[s, a] *= one if a // 2**u % 2 else 1 - one
    return pi


def log(p):
    """log p where p = 0 is allowed and gives −∞ without a warning."""
    p = np.array(p)
    return np.log(p, out=np.full(p.shape, -INF), where=p > 0)


def along(f, theta, v):
    """vᵀ∇f(θ) by a central difference."""
    h = 1e-5
    return (f(theta + h * v) - f(theta - h * v)) / (2 * h)


# ---- log π


@shared_and_per_task
def test_log_pi_is_the_log_of_the_naive_pi(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    log_pi = policy.log_pi(theta)
    each = theta if tasks else [theta]
    want = np.array([naive_pi(policy, th) for th in each]).reshape(log_pi.shape)
    np.testing.assert_allclose(log_pi, np.log(want), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.exp(log_pi).sum(-1), 1, rtol=1e-12)


def test_init_is_uniform(policy):
    uniform = np.full((S, policy.n_actions), -np.log(policy.n_actions))
    np.testing.assert_allclose(policy.log_pi(policy.init()), uniform)


def test_log_pi_at_extreme_parameters(rng, policy):
    theta = rng.choice([-1e4, 1e4], (5,) + policy.shape)
    weights = table(rng, policy, 5)
    log_pi = policy.log_pi(theta)
    gradient = grad(lambda th: anp.sum(weights * policy.log_pi(th)))(theta)
    assert np.isfinite(log_pi).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(np.exp(log_pi).sum(-1), 1)
    np.testing.assert_allclose(policy.weighted_score(theta, weights), gradient, atol=1e-9)


@pytest.mark.parametrize(
    "policy, theta, want",
    [
        (SoftmaxPolicy(1, 2), [[1e4, -1e4]], [[0, -2e4]]),
        (LogisticPolicy(2), [[1e4], [-1e4]], [[-1e4, 0], [0, -1e4]]),
        (LogisticPolicy(1, 2), [[1e4, -1e4]], [[-1e4, 0, -2e4, -1e4]]),
    ],
    ids=["softmax", "one unit", "two units"],
)
def test_extreme_log_probabilities_are_exact(policy, theta, want):
    assert policy.log_pi(np.array(theta)).tolist() == want


def test_two_large_equal_logits_share():
    log_pi = SoftmaxPolicy(1, 2).log_pi(np.array([[1e4, 1e4]]))
    np.testing.assert_allclose(log_pi, -np.log(2), rtol=1e-12)


def test_one_logistic_unit_is_sigma():
    theta = np.array([[0.3], [-2.0], [1.1]])
    pi = np.exp(LogisticPolicy(S, 1, PHI).log_pi(theta))
    for s in range(S):
        x = 0.3 * PHI[s, 0] - 2.0 * PHI[s, 1] + 1.1 * PHI[s, 2]
        assert pi[s, 1] == pytest.approx(1 / (1 + math.exp(-x)))


def test_units_multiply_and_bit_u_is_unit_u():
    policy = LogisticPolicy(1, 2)
    assert policy.n_actions == 4
    assert policy.bits.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    theta = np.log([[0.8 / 0.2, 0.3 / 0.7]])  # unit 0 says 1 with .8, unit 1 with .3
    want = [[0.2 * 0.7, 0.8 * 0.7, 0.2 * 0.3, 0.8 * 0.3]]
    np.testing.assert_allclose(np.exp(policy.log_pi(theta)), want)


# ---- derivatives


@pytest.mark.parametrize(
    "tasks, weighted",
    [(None, None), (2, 2), (2, None)],
    ids=["shared", "per task", "shared weights"],
)
def test_weighted_score_is_the_gradient(rng, policy, tasks, weighted):
    theta = parameters(rng, policy, tasks)
    weights = table(rng, policy, weighted)

    def weighted_sum(th):
        return anp.sum(weights * policy.log_pi(th))

    score = policy.weighted_score(theta, weights)
    assert score.shape == theta.shape
    np.testing.assert_allclose(score, finite_differences(weighted_sum, theta), atol=1e-8)
    np.testing.assert_allclose(score, grad(weighted_sum)(theta), atol=1e-12)


def test_weighted_score_of_shared_parameters_is_one_per_task(rng, policy):
    theta = parameters(rng, policy, None)
    weights = table(rng, policy, 3)
    score = policy.weighted_score(theta, weights)
    assert score.shape == (3,) + theta.shape
    for i in range(3):
        want = grad(lambda th: anp.sum(weights[i] * policy.log_pi(th)))(theta)
        np.testing.assert_allclose(score[i], want, atol=1e-12)


@shared_and_per_task
def test_tangent_is_the_directional_derivative(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    v = parameters(rng, policy, tasks)
    want = along(policy.log_pi, theta, v)
    np.testing.assert_allclose(policy.tangent(theta, v), want, atol=1e-8)
    check_grads(policy.tangent, (0, 1), modes=["rev"], order=2)(theta, v)


def test_tangent_is_the_transpose_of_weighted_score(rng, policy):
    """⟨w, tangent(v)⟩ = ⟨weighted_score(w), v⟩."""
    theta = parameters(rng, policy, 2)
    v = parameters(rng, policy, 2)
    weights = table(rng, policy, 2)
    left = (weights * policy.tangent(theta, v)).sum((1, 2))
    right = (policy.weighted_score(theta, weights) * v).sum((1, 2))
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_sums_of_scores_are_those_of_the_scores_written_out(rng, policy):
    """Each of them a sum over the (S, A, F, m) numbers, task by task."""
    for each in (policy, ActorCritic(policy)):
        theta = parameters(rng, each, 2)
        v = parameters(rng, each, 2)
        weights = table(rng, policy, 2)
        scores = each.scores(theta)
        for i in range(2):
            g = plain_score(each, theta[i])
            x = np.tensordot(g, v[i], 2)
            np.testing.assert_allclose(scores.weighted(weights)[i], np.tensordot(weights[i], g, 2))
            np.testing.assert_allclose(scores.along(v)[i], x, atol=1e-13)
            outer = np.tensordot(weights[i] * x, g, 2)
            np.testing.assert_allclose(scores.outer_products(weights, v)[i], outer, atol=1e-13)


def test_expected_score_is_zero(rng, policy):
    theta = parameters(rng, policy, 2)
    expected_score = policy.weighted_score(theta, np.exp(policy.log_pi(theta)))
    np.testing.assert_allclose(expected_score, 0, atol=1e-14)


@shared_and_per_task
def test_derivatives_to_second_order(rng, policy, tasks):
    theta = parameters(rng, policy, tasks)
    weights = table(rng, policy, tasks)
    check_grads(policy.log_pi, modes=["rev"], order=2)(theta)
    check_grads(policy.weighted_score, (0, 1), modes=["rev"], order=2)(theta, weights)


def test_second_derivative_by_finite_differences(rng, policy):
    """∇²(w·log π) v without autograd: differences of the closed score."""
    theta = parameters(rng, policy, 2)
    v = parameters(rng, policy, 2)
    weights = table(rng, policy, 2)
    gradient = grad(lambda th: anp.sum(weights * policy.log_pi(th)))
    got = grad(lambda th: anp.sum(v * gradient(th)))(theta)
    want = along(lambda th: policy.weighted_score(th, weights), theta, v)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_log_softmax_derivatives(rng):
    check_grads(log_softmax, modes=["rev"], order=2)(rng.normal(size=(2, 3, 4)))


# ---- a policy and its values in one θ


def test_an_actor_critic_has_one_column_more(policy):
    both = ActorCritic(policy)
    n_features, columns = policy.shape
    assert both.init().tolist() == np.zeros((n_features, columns + 1)).tolist()
    assert (both.n_states, both.n_actions) == (S, policy.n_actions)


@shared_and_per_task
def test_an_actor_critic_acts_like_its_actor(rng, policy, tasks):
    """Every function is the actor's on all columns but the last, and the last has no score."""
    both = ActorCritic(policy)
    theta = parameters(rng, both, tasks)
    v = parameters(rng, both, tasks)
    weights = table(rng, policy, tasks)
    actor = theta[..., :-1]
    rounding = dict(rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(both.log_pi(theta), policy.log_pi(actor), **rounding)
    tangent = policy.tangent(actor, v[..., :-1])
    np.testing.assert_allclose(both.tangent(theta, v), tangent, **rounding)
    score = both.weighted_score(theta, weights)
    assert score.shape == theta.shape
    want = policy.weighted_score(actor, weights)
    np.testing.assert_allclose(score[..., :-1], want, **rounding)
    assert not score[..., -1].any()


@shared_and_per_task
def test_the_values_are_linear_in_the_last_column(rng, policy, tasks):
    both = ActorCritic(policy)
    theta = parameters(rng, both, tasks)
    values = both.values(theta)
    phi = features(policy)
    assert values.shape == leading(tasks) + (S,)
    for *task, s in np.ndindex(values.shape):
        w = theta[tuple(task)][:, -1]
        assert values[*task, s] == pytest.approx(sum(phi[s, f] * w[f] for f in range(len(w))))


@pytest.mark.parametrize("name", ["log_pi", "values", "weighted_score"])
def test_actor_critic_derivatives_to_second_order(rng, policy, name):
    both = ActorCritic(policy)
    theta = parameters(rng, both, 2)
    more = [table(rng, policy, 2)] if name == "weighted_score" else []
    check_grads(lambda th: getattr(both, name)(th, *more), modes=["rev"], order=2)(theta)


def test_actor_critic_gradients_go_to_their_own_columns(rng, policy):
    both = ActorCritic(policy)
    theta = parameters(rng, both, 2)
    weights = table(rng, policy, 2)
    score = grad(lambda th: anp.sum(weights * both.log_pi(th)))(theta)
    np.testing.assert_allclose(both.weighted_score(theta, weights), score, atol=1e-12)
    assert not grad(lambda th: anp.sum(both.values(th)))(theta)[..., :-1].any()


# ---- entropy and KL


@pytest.mark.parametrize(
    "p, want",
    [
        ([0.5, 0.25, 0.25, 0], 1.5 * math.log(2)),
        ([0.25, 0.25, 0.25, 0.25], 2 * math.log(2)),
        ([0, 1, 0, 0], 0),
    ],
)
def test_entropy_by_hand(p, want):
    assert entropy(log(p)) == pytest.approx(want)


@pytest.mark.parametrize(
    "p, q, want",
    [
        ([0.5, 0.5], [0.25, 0.75], 0.5 * math.log(4 / 3)),
        ([0.25, 0.75], [0.5, 0.5], 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ([0.0, 1.0], [0.5, 0.5], math.log(2)),
        # q calls impossible what p does
        ([0.5, 0.5], [0.0, 1.0], INF),
        # impossible under both
        ([0.0, 0.5, 0.5], [0.0, 0.125, 0.875], 0.5 * math.log(4) + 0.5 * math.log(4 / 7)),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5], 0.0),
    ],
)
def test_kl_by_hand(p, q, want):
    assert kl(log(p), log(q)) == pytest.approx(want)


def test_entropy_and_kl_by_loops(rng):
    p, q = rng.dirichlet(np.ones(4), (2, 2, 3))  # each (2, 3, 4)
    h = entropy(np.log(p))
    d = kl(np.log(p), np.log(q))
    assert h.shape == d.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert h[i] == pytest.approx(-sum(x * math.log(x) for x in p[i]))
        ratios = [x * math.log(x / y) for x, y in zip(p[i], q[i])]
        assert d[i] == pytest.approx(sum(ratios))
    assert (d > 0).all()


def test_entropy_is_that_of_the_uniform_distribution_less_the_kl_from_it(rng):
    log_p = np.log(rng.dirichlet(np.ones(4), (2, 3)))
    uniform = np.full(log_p.shape, -np.log(4))
    np.testing.assert_allclose(entropy(log_p), np.log(4) - kl(log_p, uniform))


def test_entropy_and_kl_derivatives(rng, policy):
    theta = parameters(rng, policy, 2)
    old = parameters(rng, policy, 2)

    def divergence(p, q):
        return kl(policy.log_pi(p), policy.log_pi(q))

    check_grads(lambda th: entropy(policy.log_pi(th)), modes=["rev"], order=2)(theta)
    check_grads(divergence, (0, 1), modes=["rev"], order=2)(old, theta)


def test_kl_is_smallest_at_the_old_parameters(rng, policy):
    theta = parameters(rng, policy, 2)
    gradient = grad(lambda th: anp.sum(kl(policy.log_pi(theta), policy.log_pi(th))))(theta)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)


# ---- bad and unusual input


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


@pytest.mark.parametrize("units", [60, 10_000, 10**18])
def test_too_many_units_are_refused_without_counting_the_actions(units):
    with pytest.raises(ValueError, match="^arguments.MAX_BYTES: "):
        LogisticPolicy(2, units)


WRONG_SHAPES = {
    "a state too few": lambda theta: theta[:-1],
    "a column too few": lambda theta: theta[:, :-1],
    "one row": lambda theta: theta[0],
    "an axis too many": lambda theta: theta[..., None],
}
CALLS = {
    "log_pi": lambda policy, bad: policy.log_pi(bad),
    "weighted_score": lambda policy, bad: policy.weighted_score(bad, policy.log_pi(policy.init())),
    "tangent at": lambda policy, bad: policy.tangent(bad, policy.init()),
    "tangent along": lambda policy, bad: policy.tangent(policy.init(), bad),
    "actor-critic": lambda policy, bad: ActorCritic(policy).log_pi(bad),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("spoil", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_parameters_of_a_wrong_shape(policy, spoil, call):
    with pytest.raises(ValueError, match="^(theta|v): "):
        call(policy, spoil(policy.init()))


@pytest.mark.parametrize("error", [ValueError, FloatingPointError, NotFinite])
@pytest.mark.parametrize("bad", [np.nan, INF, -INF])
def test_parameters_that_are_not_finite(policy, bad, error):
    """They are bad input to who passed them, and an accident of arithmetic to who computed them:
    the except clause of either catches it.
    """
    with pytest.raises(error, match="^theta: .*not finite"):
        policy.log_pi(np.full(policy.shape, bad))


@pytest.mark.parametrize("bad", [np.nan, INF])
def test_a_direction_that_is_not_finite_is_called_by_its_own_name(policy, bad):
    scores = policy.scores(policy.init())
    v = policy.init()
    v[-1, 0] = bad
    for call in (scores.along, lambda v: scores.outer_products(scores.pi, v)):
        with pytest.raises(NotFinite, match="^v: .*not finite"):
            call(v)


@pytest.mark.parametrize("shape", [lambda s, a: (s, 1), lambda s, a: (a,), lambda s, a: (1, a)])
@pytest.mark.parametrize("name", ["weighted", "outer_products"])
def test_weights_are_not_broadcast_to_the_states_and_actions(policy, name, shape):
    weights = np.ones(shape(policy.n_states, policy.n_actions))
    more = [policy.init()] if name == "outer_products" else []
    with pytest.raises(ValueError, match="^weights: expected shape"):
        getattr(policy.scores(policy.init()), name)(weights, *more)


@pytest.mark.parametrize("name", ["values", "log_pi"])
def test_a_critic_is_checked_like_its_actor(name):
    f = getattr(ActorCritic(SoftmaxPolicy(3, 2)), name)
    f([[0.0] * 3] * 3)
    with pytest.raises(ValueError, match=r"theta: expected shape \(…, 3, 3\), got \(3, 4\)"):
        f(np.zeros((3, 4)))
    theta = np.zeros((2, 3, 3))
    theta[1, 2, 2] = np.nan
    place = "at task 1, state or feature 2, column 2"
    with pytest.raises(NotFinite, match=f"theta: .*not finite .{place}"):
        f(theta)


@pytest.mark.parametrize(
    "policy", [SoftmaxPolicy(3, 1), ActorCritic(SoftmaxPolicy(3, 1))], ids=["softmax", "critic"]
)
def test_a_single_action_is_sure_and_has_no_score(rng, policy):
    theta, v = rng.normal(size=(2, 2) + policy.shape)
    weights = rng.normal(size=(2, 3, 1))
    np.testing.assert_allclose(policy.log_pi(theta), 0, atol=1e-15)
    np.testing.assert_allclose(policy.tangent(theta, v), 0, atol=1e-15)
    np.testing.assert_allclose(policy.weighted_score(theta, weights), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [int, bool, np.float32])
def test_parameters_of_another_dtype_mean_the_same(policy, dtype):
    theta = np.indices(policy.shape).sum(0) % 2
    want = policy.log_pi(theta * 1.0)
    np.testing.assert_allclose(policy.log_pi(theta.astype(dtype)), want, rtol=1e-6)


STRIDES = {
    "every other": lambda x: x[:, ::2],
    "transposed": lambda x: x.transpose(2, 0, 1),
    "backwards": lambda x: x[..., ::-1],
    "broadcast": lambda x: np.broadcast_to(x[0], (3, 5, 6)),
    "Fortran's": np.asfortranarray,
    "one row": lambda x: x[0, 0],
}


@pytest.mark.parametrize("view", STRIDES.values(), ids=STRIDES)
def test_log_softmax_of_any_strides_leaves_its_argument_alone(rng, view):
    x = view(rng.normal(size=(4, 5, 6)))
    before = x.copy()
    want = before - np.log(np.exp(before).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_softmax(x), want, atol=1e-14)
    assert (x == before).all()


@pytest.mark.parametrize("size", [1e4, 1e300, 8e307])
def test_log_probabilities_are_finite_up_to_where_the_chapter_says(size):
    theta = size * np.array([[1.0, -1.0, 0.0], [-1.0, -1.0, 1.0]])
    with np.errstate(all="raise", under="ignore"):
        log_pi = SoftmaxPolicy(2, 3).log_pi(theta)
    assert np.isfinite(log_pi).all()
    np.testing.assert_allclose(np.exp(log_pi), [[1, 0, 0], [0, 0, 1]])
