"""The ladder: every data set of a tiny MDP is an entry of the task axis, so an estimator's
expectation is an exact sum over it.
"""

from dataclasses import replace
from functools import cache
from itertools import combinations, product

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from helpers import (
    POLICIES,
    all_episodes,
    named,
    plain_log_pi,
    plain_score,
    policies,
    random_tasks,
    return_of,
    tiny_mdp,
)

from metarl_np.check import finite_differences
from metarl_np.check.enumeration import enumerate_episodes
from metarl_np.check.meta_gradients import (
    expected_adapted_return_gradient,
    expected_meta_gradient,
    hessians,
)
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline, reward_to_go
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.learner.surrogates import SURROGATES, gather_log_probs, log_likelihood, lvc, naive
from metarl_np.meta.maml import centred_returns, meta_gradient, meta_objective, replay
from metarl_np.tasks.exact import expected_return

GAMMA = 0.9
ALPHA = 0.8
ACTORS = pytest.mark.parametrize(
    "policy", [SoftmaxPolicy(3, 2), LogisticPolicy(3)], ids=["softmax", "logistic"]
)
DATA = pytest.mark.parametrize(
    "episodes, baseline",
    [(1, no_baseline), (2, no_baseline), (2, leave_one_out_baseline)],
    ids=["1 episode", "2", "2, leave-one-out"],
)


def as_episodes(mdps, states, actions, rewards, mask):
    lanes = states.shape[1:]
    return Episodes(
        states, actions, rewards, mask, None, np.zeros(lanes, int), np.zeros(lanes, bool)
    )


def histories(mdps, policy, theta, inner, *, steps, episodes, query=None):
    """Every sequence of k = `steps` data sets of K episodes and a query: (copies of the task,
    Adaptation, probabilities).

    A data set's probability is that under the parameters which the data sets before it led to.
    Without a number of query episodes the query is a dummy, for those who use the exact return
    instead.
    """
    every, dynamics = enumerate_episodes(mdps)
    sizes = [episodes] * steps + ([query] if query else [])
    sets = [np.array(list(product(range(dynamics.shape[1]), repeat=k))) for k in sizes]
    # which of its sets each step of a history has
    place = np.indices([len(x) for x in sets]).reshape(len(sets), -1)
    chosen = [x[i] for x, i in zip(sets, place)]  # (H, K) which episodes that is
    copies = mdps[np.zeros(len(chosen[0]), int)]
    recorded = [
        as_episodes(
            copies, *(x[:, 0, c] for x in (every.states, every.actions, every.rewards, every.mask))
        )
        for c in chosen
    ]
    path = replay(
        policy, theta, inner, recorded + ([] if query else recorded[-1:]), copies.discount
    )
    probability = 1.0
    for e, th, c in zip(recorded, path.thetas, chosen):
        log_p = policy.log_pi(th)[np.arange(len(c))[:, None], e.states, e.actions] * e.mask
        probability = probability * np.exp(log_p.sum((0, 2))) * dynamics[0][c].prod(-1)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    return copies, path, probability


def estimated_hessians(policy, theta, inner, data):
    """Ĥ = (∂θ'/∂θ − I)/α for each task's data: (N, P, P)."""

    def row(p):
        return grad(lambda x: anp.sum(inner(policy, x, data)[(slice(None),) + p]))(theta).reshape(
            len(theta), -1
        )

    jacobian = np.stack([row(p) for p in np.ndindex(theta.shape[1:])], 1)
    return (jacobian - np.eye(jacobian.shape[-1])) / inner.step_size


def sampled_gradient(e, i, score, others):
    """The REINFORCE estimate of ∇J from the episodes of task i, in loops; score (S, A, …)."""
    steps, _, K = e.rewards.shape
    returns = np.zeros((steps, K))
    for t, k in np.ndindex(steps, K):
        later = [u for u in range(t, steps) if e.mask[u, i, k]]
        returns[t, k] = sum(GAMMA ** (u - t) * e.rewards[u, i, k] for u in later)
    g = 0.0
    for k, t in product(range(K), range(steps)):
        if e.mask[t, i, k]:
            b = others and sum(returns[t, j] for j in range(K) if j != k) / (K - 1)
            s = e.states[t, i, k]
            a = e.actions[t, i, k]
            g = g + GAMMA**t * (returns[t, k] - b) * score[s, a] / K
    return g


# ---- E[Ĥ]


def cross_terms(mdps, policy, theta, lam):
    """E Σ_t Σ_{t'<t} λ^{t−t'} γᵗ G_t ∇log π_t' ∇log π_tᵀ: what Loaded DiCE has of H₁₂, which is
    this at λ = 1.
    """
    score = plain_score(policy, theta).reshape(3, 2, -1)
    total = 0.0
    for p, path, _ in all_episodes(mdps, 0, np.exp(plain_log_pi(policy, theta))):
        for t, (s, a, _) in enumerate(path):
            for earlier, (s0, a0, _) in enumerate(path[:t]):
                total = total + p * lam ** (t - earlier) * GAMMA**t * return_of(
                    path[t:], GAMMA
                ) * np.outer(score[s0, a0], score[s, a])
    return total


def baseline_curvature(mdps, policy, theta):
    """E Σ_t γᵗ b_t ∇²log π_t, b_t an independent episode's return from t on."""
    curvature = finite_differences(lambda x: plain_score(policy, x), theta).reshape(
        3, 2, theta.size, theta.size
    )
    total = 0.0
    every = list(all_episodes(mdps, 0, np.exp(plain_log_pi(policy, theta))))
    for (p, path, _), (p_other, other, _) in product(every, every):
        total = total + sum(
            p * p_other * GAMMA**t * return_of(other[t:], GAMMA) * curvature[s, a]
            for t, (s, a, _) in enumerate(path)
        )
    return total


@cache
def expected_hessian_of_each(policy, baseline):
    """(MDP, θ, {(estimator, λ): E[Ĥ]}) by loops over episodes, and H by its parts."""
    rng = np.random.default_rng(20261122)
    mdps = tiny_mdp(rng, 3)
    theta = rng.normal(size=policy.init().shape)
    h = {name: x[0] for name, x in hessians(mdps, policy, theta).items()}
    half = cross_terms(mdps, policy, theta, 0.5)
    b = 0 if baseline is no_baseline else baseline_curvature(mdps, policy, theta)
    np.testing.assert_allclose(cross_terms(mdps, policy, theta, 1), h["H12"], atol=1e-12)
    expected = {
        ("first_order", 1): 0 * h["H"],
        ("naive", 1): h["H2"] - b,
        ("lvc", 1): h["H1"] + h["H2"],
        ("dice", 1): h["H"],
        ("loaded_dice", 1): h["H"],
        ("loaded_dice", 0): h["H1"] + h["H2"],
        ("loaded_dice", 0.5): h["H1"] + h["H2"] + half + half.T,
    }
    return mdps, theta, expected


@ACTORS
@DATA
@pytest.mark.parametrize(
    "estimator, lam",
    [*((name, 1) for name in ESTIMATORS), ("loaded_dice", 0), ("loaded_dice", 0.5)],
)
def test_expected_hessians(policy, episodes, baseline, estimator, lam):
    mdps, theta, expected = expected_hessian_of_each(policy, baseline)
    inner = Reinforce(ALPHA, baseline, estimator, lam)
    _, path, probability = histories(mdps, policy, theta, inner, steps=1, episodes=episodes)
    estimates = estimated_hessians(policy, path.thetas[0], inner, path.data[0])
    mean = np.tensordot(probability, estimates, 1)
    np.testing.assert_allclose(mean, expected[estimator, lam], atol=1e-8)


@ACTORS
@pytest.mark.parametrize("baseline", [no_baseline, leave_one_out_baseline])
def test_expected_hessians_are_far_enough_apart_to_be_told_apart(policy, baseline):
    _, _, expected = expected_hessian_of_each(policy, baseline)
    different = ("naive", 1), ("lvc", 1), ("dice", 1), ("loaded_dice", 0.5)
    for one, other in combinations(different, 2):
        assert abs(expected[one] - expected[other]).max() > 0.002


@ACTORS
@DATA
@pytest.mark.parametrize(
    "estimator, lam",
    [*((name, 1) for name in ESTIMATORS), ("loaded_dice", 0), ("loaded_dice", 0.3)],
)
def test_first_derivative_is_one_on_every_data_set(rng, policy, episodes, baseline, estimator, lam):
    mdps = tiny_mdp(rng, 2)
    theta = rng.normal(size=policy.init().shape)
    score = plain_score(policy, theta)
    others = baseline is leave_one_out_baseline
    inner = Reinforce(ALPHA, baseline, estimator, lam)
    _, path, _ = histories(mdps, policy, theta, inner, steps=1, episodes=episodes)
    g = inner.gradient(policy, path.thetas[0], path.data[0])
    expected = [sampled_gradient(path.episodes[0], i, score, others) for i in range(len(g))]
    np.testing.assert_allclose(g, expected, atol=1e-13)
    np.testing.assert_allclose(path.thetas[1], theta + ALPHA * g, atol=1e-15)


# ---- two input forms, and masks


def sampled(rng, garbage=None):
    """Three tasks with terminal states, and episodes of them; `garbage`, a generator, fills the
    masked steps.
    """
    mdps = random_tasks(rng, 3, 4, 4, 2, horizon=5)
    e = rollout(rng, mdps, np.full((4, 4), -np.log(4)), 6)
    assert not e.mask.all((0, 2)).any()
    states = e.states
    actions = e.actions
    rewards = np.float64(e.rewards)
    if garbage:
        noise = (
            garbage.integers(4, size=e.mask.shape),
            garbage.integers(4, size=e.mask.shape),
            garbage.normal(0, 100, e.mask.shape),
        )
        states, actions, rewards = (
            np.where(e.mask, x, y) for x, y in zip((states, actions, rewards), noise)
        )
    return mdps, as_episodes(mdps, states, actions, rewards, e.mask)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "estimator, surrogate", [("first_order", naive), ("naive", naive), ("lvc", lvc)]
)
@pytest.mark.parametrize("baseline", [no_baseline, leave_one_out_baseline])
def test_folded_and_per_step_forms_are_one(rng, estimator, surrogate, baseline, name):
    mdps, e = sampled(rng)
    inner = Reinforce(ALPHA, baseline, estimator)
    b = baseline(reward_to_go(e.rewards, GAMMA), e)
    data = inner.prepare(SoftmaxPolicy(4, 4), None, e, mdps.discount)
    assert np.shape(data) == mdps.shape  # the folded form
    policy, theta = named(policies(rng, 3, 4, 4), name)
    theta = theta + np.zeros((3, 1, 1))

    def per_step(x):
        return anp.sum(
            surrogate(
                gather_log_probs(policy.log_pi(x), e.states, e.actions), e.rewards, b, e.mask, GAMMA
            )
        )

    np.testing.assert_allclose(
        inner.gradient(policy, theta, data), grad(per_step)(theta), atol=1e-12, err_msg=name
    )
    rows = [
        grad(lambda x: anp.sum(grad(per_step)(x)[(slice(None),) + p]))(theta)
        for p in np.ndindex(theta.shape[1:])
    ]
    expected = np.stack(rows, 1).reshape(3, theta[0].size, -1) * (estimator != "first_order")
    np.testing.assert_allclose(
        estimated_hessians(policy, theta, inner, data), expected, atol=1e-12, err_msg=name
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_stands_in_masked_steps_changes_nothing(estimator):
    results = []
    for garbage in (None, np.random.default_rng(1)):
        mdps, e = sampled(np.random.default_rng(0), garbage)
        policy = SoftmaxPolicy(4, 4)
        theta = np.random.default_rng(2).normal(size=(4, 4))
        inner = Reinforce(ALPHA, estimator=estimator, lam=0.7)
        path = replay(policy, theta, inner, [e, e, e], mdps.discount)
        results.append(
            [
                path.thetas[-1],
                path.returns,
                *(meta_gradient(policy, path, inner, score_factor=s) for s in (None, np.ones(3))),
            ]
        )
    for clean, dirty in zip(*results):
        np.testing.assert_allclose(dirty, clean, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_derivative_passes_through_a_masked_step(rng, estimator):
    """To second order, in episodes of any length, none at all included."""
    x, v, rewards, baseline = rng.normal(size=(4, 5, 2, 3))
    steps = np.arange(5)[:, None, None]
    mask = steps < [[0, 1, 3], [2, 5, 4]]  # the lengths of 2 tasks' 3 episodes

    def surrogate(x):
        return anp.sum(SURROGATES.get(estimator, naive)(-(x**2), rewards, baseline, mask, GAMMA))

    for derivative in (grad(surrogate)(x), grad(lambda x: anp.sum(v * grad(surrogate)(x)))(x)):
        assert (derivative[~mask] == 0).all() and (derivative[mask] != 0).all()


# ---- the score term: what is trained, E_D[J(U(θ, D))]


def expectations(mdps, policy, theta, baseline, **size):
    """{name: E_D of the meta-gradient with an exact query}, for each estimator with and without the
    score term.
    """
    result = {}
    for estimator in ESTIMATORS:
        inner = Reinforce(ALPHA, baseline, estimator)
        copies, path, probability = histories(mdps, policy, theta, inner, **size)

        def outer(x):
            return expected_return(copies, policy.log_pi(x))

        for name, score in ((estimator, None), (estimator + "+score", outer(path.thetas[-1]))):
            result[name] = np.tensordot(
                probability, meta_gradient(policy, path, inner, outer=outer, score_factor=score), 1
            )
    return result


@ACTORS
@pytest.mark.parametrize(
    "steps, episodes, horizon, baseline",
    [
        (1, 1, 3, no_baseline),
        (1, 2, 3, no_baseline),
        (1, 2, 3, leave_one_out_baseline),
        (2, 1, 3, no_baseline),
        (2, 2, 2, no_baseline),
        (2, 2, 2, leave_one_out_baseline),
    ],
)
def test_naive_with_the_score_is_exact_and_nothing_else_is(
    rng, policy, steps, episodes, horizon, baseline
):
    mdps = tiny_mdp(rng, horizon)
    theta = rng.normal(size=policy.init().shape)
    size = dict(steps=steps, episodes=episodes)
    exact = expected_adapted_return_gradient(
        mdps, policy, theta, Reinforce(ALPHA, baseline), **size
    )
    errors = {
        name: abs(g - exact).max() / abs(exact).max()
        for name, g in expectations(mdps, policy, theta, baseline, **size).items()
    }
    print(
        f"k={steps} K={episodes} T={horizon}:",
        ", ".join(f"{name} off by {x:.2%}" for name, x in errors.items()),
    )
    assert errors.pop("naive+score") < 1e-8
    assert (
        min(errors[name] for name in ("naive", "lvc+score", "dice+score", "loaded_dice+score"))
        > 0.01
    ), errors
    # the others come nearer by chance, or as DiCE alone does since E[Ĥ] = H makes it right to first
    # order in α; right they are not
    assert min(errors.values()) > 0.001, errors


@ACTORS
@pytest.mark.parametrize(
    "steps, episodes, baseline", [(1, 2, leave_one_out_baseline), (2, 1, no_baseline)]
)
def test_expected_meta_gradient_is_that_sum(rng, policy, steps, episodes, baseline):
    mdps = tiny_mdp(rng, 2)
    theta = rng.normal(size=policy.init().shape)
    size = dict(steps=steps, episodes=episodes)
    for name, g in expectations(mdps, policy, theta, baseline, **size).items():
        inner = Reinforce(ALPHA, baseline, name.removesuffix("+score"))
        scored = name.endswith("+score")
        library = expected_meta_gradient(mdps, policy, theta, inner, with_score=scored, **size)
        np.testing.assert_allclose(library, g, atol=1e-13, err_msg=name)


@ACTORS
def test_naive_with_the_score_is_exact_with_a_sampled_query_too(rng, policy):
    """The query's surrogate in the place of J, and its return in the score: 40 data sets of one
    episode, 40 queries each.
    """
    mdps = tiny_mdp(rng, 3)
    theta = rng.normal(size=policy.init().shape)
    inner = Reinforce(ALPHA, no_baseline)
    exact = expected_adapted_return_gradient(mdps, policy, theta, inner, episodes=1)
    _, path, probability = histories(mdps, policy, theta, inner, steps=1, episodes=1, query=1)
    g, without = (
        np.tensordot(probability, meta_gradient(policy, path, inner, score_factor=score), 1)
        for score in (path.returns[-1], None)
    )
    np.testing.assert_allclose(g, exact, atol=1e-10)
    assert abs(without - exact).max() > 0.01 * abs(exact).max()
    # a constant taken off the score changes nothing, which is what the other tasks' mean relies on
    shifted = meta_gradient(policy, path, inner, score_factor=path.returns[-1] - 3)
    np.testing.assert_allclose(np.tensordot(probability, shifted, 1), exact, atol=1e-10)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("scored", [False, True])
def test_naive_meta_gradient_is_the_slope_of_its_objective_in_loops(rng, k, scored, name):
    mdps, e = sampled(rng)
    recorded = [replace(e, rewards=rng.normal(size=e.rewards.shape) * e.mask) for _ in range(k + 1)]
    score = rng.normal(size=3) if scored else None
    query = rng.normal(size=mdps.shape)
    inner = Reinforce(ALPHA)
    policy, theta = named(policies(rng, 3, 4, 4), name)

    def objective(x, i):
        log_p = 0.0
        for e in recorded[:k]:
            log_pi = plain_log_pi(policy, x)
            log_p += sum(
                log_pi[e.states[step], e.actions[step]]
                for step in product(range(5), [i], range(6))
                if e.mask[step]
            )
            x = x + ALPHA * sampled_gradient(e, i, plain_score(policy, x), True)
        return (plain_log_pi(policy, x) * query[i]).sum() + (score[i] * log_p if scored else 0)

    def outer(x):
        return anp.sum(policy.log_pi(x) * query, (-2, -1))

    path = replay(policy, theta, inner, recorded, mdps.discount)
    own = path.thetas[0]
    value = meta_objective(policy, own, path, inner, outer, score)
    np.testing.assert_allclose(
        value, [objective(own[i], i) for i in range(3)], rtol=1e-10, err_msg=name
    )
    g = meta_gradient(policy, path, inner, outer=outer, score_factor=score)
    slope = [finite_differences(lambda x: objective(x, i), own[i]) for i in range(3)]
    np.testing.assert_allclose(g, slope, atol=1e-6, err_msg=name)


def test_log_likelihood_is_a_sum_over_episodes_and_unmasked_steps(rng):
    mdps, e = sampled(rng, garbage=rng)
    table = rng.normal(size=mdps.shape)
    steps = [
        (i, table[i, e.states[t, i, k], e.actions[t, i, k]])
        for t, i, k in np.ndindex(e.mask.shape)
        if e.mask[t, i, k]
    ]
    expected = [sum(x for task, x in steps if task == i) for i in range(3)]
    np.testing.assert_allclose(log_likelihood(table, e), expected, rtol=1e-12)
    twice = as_episodes(
        mdps, *(np.concatenate([x, x], -1) for x in (e.states, e.actions, e.rewards, e.mask))
    )
    # a mean would not grow
    np.testing.assert_allclose(log_likelihood(table, twice), 2 * np.array(expected), rtol=1e-12)


def test_score_factor_takes_off_the_mean_of_the_other_tasks():
    assert centred_returns(np.array([1.0, 2, 6])).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]
    # its own return is not in what is taken off it
    assert centred_returns(np.array([1.0, 2, 60]))[2] == 60 - 1.5
    assert centred_returns(np.array([5.0])).tolist() == [5]


# ---- bad input


@pytest.mark.parametrize(
    "keywords, message",
    [
        (dict(estimator="maml"), "estimator: 'maml' .*first_order, naive, lvc, dice, loaded_dice"),
        (dict(step_size=np.nan), "step_size: nan"),
        (dict(step_size=np.inf), "step_size: inf"),
        (dict(step_size=-np.inf), "step_size"),
        (dict(lam=-0.1), "lam: -0.1"),
        (dict(lam=1.1), "lam: 1.1"),
        (dict(lam=np.nan), "lam: nan"),
    ],
)
def test_an_inner_update_refuses_bad_input(keywords, message):
    with pytest.raises(ValueError, match=message):
        Reinforce(**dict(step_size=0.1) | keywords)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_refuses_a_leave_one_out_baseline_of_one_episode(rng, estimator):
    mdps = tiny_mdp(rng, 2)
    e = rollout(rng, mdps, np.full((3, 2), -np.log(2)), 1)
    with pytest.raises(ValueError, match="leave-one-out"):
        Reinforce(ALPHA, estimator=estimator).prepare(SoftmaxPolicy(3, 2), None, e, mdps.discount)
