"""MAML against loops: the chain rule with dense Jacobians, one task at a time, finite differences
of the objective, and a training that is replayed step by step.
"""

from itertools import islice, permutations

import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads
from helpers import (
    POLICIES,
    SHARED,
    all_episodes,
    named,
    plain_log_pi,
    policies,
    random_tasks,
    return_of,
)

from metarl_np.check import finite_differences
from metarl_np.check.meta_gradients import (
    expected_adapted_return_gradient,
    expected_meta_gradient,
)
from metarl_np import maml
from metarl_np.learner.optim import adam, ascent
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import FirstOrder, Reinforce, reinforce_table
from metarl_np.learner.returns import no_baseline
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.surrogates import reinforce_folded
from metarl_np.meta.maml import Adaptation, adapt, closed_form, train
from metarl_np.tasks.bandits import bernoulli
from metarl_np.tasks.exact import expected_return, optimal_return, policy_gradient_table
from metarl_np.tasks.gridworld import GridWorld

N = 3
S = 4
A = 4
ALPHA = 0.7
INNER = Reinforce(ALPHA)


def meta_objective(policy, theta, support, query, alpha):
    """The library's objective on given tables, its mean over tasks; θ shared or per task."""
    theta = theta + np.zeros((N, 1, 1))
    path = Adaptation([theta], [None] * len(support), support, None, query)
    return maml.meta_objective(
        policy, theta, path, Reinforce(alpha), lambda x: reinforce_folded(policy.log_pi(x), query)
    ).mean()


def meta_gradient(policy, theta, support, query, alpha, estimator="naive"):
    inner = Reinforce(alpha, estimator=estimator)
    thetas = [theta + np.zeros((len(query), 1, 1))]
    for table in support:
        thetas.append(inner(policy, thetas[-1], table))
    return maml.meta_gradient(
        policy, Adaptation(thetas, [None] * len(thetas), support, None, query), inner
    ).mean(0)


def first_order_gradient(*arguments):
    return meta_gradient(*arguments, estimator="first_order")


def shared(rng, n=N):
    return [
        (name, policy, theta) for name, policy, theta in policies(rng, n, S, A) if theta.ndim == 2
    ]


def tables(rng, k, n=N):
    """k support tables and a query table, different for every task."""
    return [rng.normal(size=(n, S, A)) for _ in range(k)], rng.normal(size=(n, S, A))


# ---- an independent MAML for one task at a time, with finite differences for every derivative


def plain_gradient(policy, theta, table):
    return finite_differences(lambda x: (plain_log_pi(policy, x) * table).sum(), theta, 1e-4)


def chain_rule(policy, theta, support, query, alpha):
    """(I + αH_1)ᵀ … (I + αH_k)ᵀ ∇L(θ_k) of one task, H_j the Hessian of the surrogate Σ W_j log π
    at θ_{j−1}.
    """
    jacobians = []
    for table in support:
        H = finite_differences(lambda x: plain_gradient(policy, x, table), theta, 1e-3).reshape(
            theta.size, theta.size
        )
        jacobians.append(np.eye(theta.size) + alpha * H)
        theta = theta + alpha * plain_gradient(policy, theta, table)
    g = plain_gradient(policy, theta, query).ravel()
    for jacobian in reversed(jacobians):
        g = jacobian.T @ g
    return g.reshape(theta.shape)


# ---- the two meta-gradients


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("k", [0, 1, 2])
def test_meta_gradient_is_the_chain_rule_and_the_slope_of_the_objective(rng, k, name):
    support, query = tables(rng, k)
    policy, theta = named(shared(rng), name)
    g = meta_gradient(policy, theta, support, query, ALPHA)
    by_hand = np.mean(
        [chain_rule(policy, theta, [w[i] for w in support], query[i], ALPHA) for i in range(N)],
        0,
    )
    slope = finite_differences(lambda x: meta_objective(policy, x, support, query, ALPHA), theta)
    np.testing.assert_allclose(g, by_hand, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(g, slope, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("k", [0, 1, 2])
def test_objective_is_the_mean_over_tasks_of_the_adapted_surrogate(rng, k, name):
    support, query = tables(rng, k)
    policy, theta = named(shared(rng), name)
    total = 0.0
    for i in range(N):
        adapted = theta
        for w in support:
            adapted = adapted + ALPHA * plain_gradient(policy, adapted, w[i])
        total += (plain_log_pi(policy, adapted) * query[i]).sum()
    assert meta_objective(policy, theta, support, query, ALPHA) == pytest.approx(
        total / N, abs=1e-6
    ), name


@pytest.mark.parametrize("estimator", ["first_order", "naive", "lvc"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_closed_form_is_what_autograd_finds(rng, estimator, k):
    """Of every policy of the family, with task parameters too; an exact query and the score are
    autograd's.
    """
    mdps = random_tasks(rng, N, S, A, 2, horizon=4)
    inner = Reinforce(ALPHA, estimator=estimator)
    actors = [policy for _, policy, _ in policies(rng, N, S, A)]
    for policy in actors + [ActorCritic(actors[0])]:
        theta = rng.normal(size=(N,) + policy.shape)
        path = adapt(rng, mdps, policy, theta, inner, steps=k, episodes=5)
        assert closed_form(policy, inner)
        by_autograd = maml.meta_gradient(
            policy, path, inner, outer=lambda th: reinforce_folded(policy.log_pi(th), path.query)
        )
        np.testing.assert_allclose(maml.meta_gradient(policy, path, inner), by_autograd, atol=1e-13)


def test_an_outer_objective_of_ones_own_is_the_one_that_is_differentiated(rng):
    """The exact J at the adapted parameters, of an inner step that has a closed form: by finite
    differences through both steps.
    """
    mdps = random_tasks(rng, N, S, A, 2, horizon=4)
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(N, S, A))
    path = adapt(rng, mdps, policy, theta, INNER, steps=2, episodes=5)

    def after(theta):
        for data in path.data:
            theta = theta + ALPHA * np.array(
                [plain_gradient(policy, x, w) for x, w in zip(theta, data)]
            )
        return expected_return(mdps, policy.log_pi(theta)).sum()

    g = maml.meta_gradient(
        policy, path, INNER, outer=lambda th: expected_return(mdps, policy.log_pi(th))
    )
    np.testing.assert_allclose(g, finite_differences(after, theta, 1e-3), atol=1e-5)
    assert abs(g - maml.meta_gradient(policy, path, INNER)).max() > 1e-2


def test_what_has_no_closed_form_goes_by_autograd(rng):
    class Wrapped:  # a user's policy: the same π, but nothing says that it is linear in θ
        log_pi = staticmethod(SoftmaxPolicy(S, A).log_pi)
        weighted_score = staticmethod(SoftmaxPolicy(S, A).weighted_score)

    mdps = random_tasks(rng, N, S, A, 2, horizon=4)
    theta = rng.normal(size=(S, A))
    softmax = SoftmaxPolicy(S, A)
    path = adapt(rng, mdps, softmax, theta, INNER, steps=2, episodes=5)

    class Halved(Reinforce):  # a user's step that is no longer REINFORCE's
        def __call__(self, policy, theta, data):
            return theta + (super().__call__(policy, theta, data) - theta) / 2

    np.testing.assert_allclose(
        maml.meta_gradient(softmax, path, Halved(2 * ALPHA)),
        maml.meta_gradient(softmax, path, INNER),
        atol=1e-13,
    )
    for inner in (
        Halved(1.0),
        Reinforce(1.0, estimator="dice"),
        Reinforce(1.0, estimator="loaded_dice"),
        FirstOrder(INNER),
        PPO(1.0),
    ):
        assert not closed_form(softmax, inner)
    assert closed_form(softmax, INNER) and not closed_form(Wrapped(), INNER)
    np.testing.assert_allclose(
        maml.meta_gradient(Wrapped(), path, INNER),
        maml.meta_gradient(softmax, path, INNER),
        atol=1e-13,
    )


@pytest.mark.parametrize("name", SHARED)
def test_objective_to_second_order(rng, name):
    support, query = tables(rng, 2)
    policy, theta = named(shared(rng), name)
    check_grads(lambda x: meta_objective(policy, x, support, query, ALPHA), modes=["rev"], order=2)(
        theta
    )


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("k", [1, 2])
def test_first_order_gradient_is_the_mean_gradient_at_the_adapted_parameters(rng, k, name):
    support, query = tables(rng, k)
    policy, theta = named(shared(rng), name)
    parts = []
    for i in range(N):
        adapted = theta
        for w in support:
            adapted = adapted + ALPHA * plain_gradient(policy, adapted, w[i])
        parts.append(plain_gradient(policy, adapted, query[i]))
    g = first_order_gradient(policy, theta, support, query, ALPHA)
    assert g.shape == theta.shape
    np.testing.assert_allclose(g, np.mean(parts, 0), atol=1e-6, err_msg=name)
    assert abs(g - meta_gradient(policy, theta, support, query, ALPHA)).max() > 1e-2


@pytest.mark.parametrize("gradient", [meta_gradient, first_order_gradient])
def test_without_inner_steps_or_with_steps_of_size_zero_it_is_the_multi_task_policy_gradient(
    rng, gradient
):
    support, query = tables(rng, 2)
    for name, policy, theta in shared(rng):
        plain = np.mean([plain_gradient(policy, theta, query[i]) for i in range(N)], 0)
        np.testing.assert_allclose(
            gradient(policy, theta, support, query, 0.0), plain, atol=1e-7, err_msg=name
        )
        np.testing.assert_allclose(
            gradient(policy, theta, [], query, ALPHA), plain, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("gradient", [meta_gradient, first_order_gradient])
def test_the_order_of_the_tasks_does_not_matter_but_their_data_does(rng, gradient, name):
    support, query = tables(rng, 2)
    order = np.array([2, 0, 1])
    policy, theta = named(shared(rng), name)
    g = gradient(policy, theta, support, query, ALPHA)
    permuted = gradient(policy, theta, [w[order] for w in support], query[order], ALPHA)
    np.testing.assert_allclose(permuted, g, atol=1e-13, err_msg=name)
    assert abs(gradient(policy, theta, support, query[order], ALPHA) - g).max() > 1e-3
    alone = [
        gradient(policy, theta, [w[[i]] for w in support], query[[i]], ALPHA) for i in range(N)
    ]
    np.testing.assert_allclose(np.mean(alone, 0), g, atol=1e-13, err_msg=name)
    own = np.stack([theta] * N)  # a θ of its own per task: each gets its own part
    np.testing.assert_allclose(
        grad(meta_objective, 1)(policy, own, support, query, ALPHA).sum(0),
        meta_gradient(policy, theta, support, query, ALPHA),
        atol=1e-13,
        err_msg=name,
    )


@pytest.mark.parametrize("name", SHARED)
def test_with_exact_tables_it_is_the_gradient_of_the_adapted_return_at_fixed_data(rng, name):
    """Query W = the theorem's table at the adapted θ_i: ∇ of J(U(θ, D)) at fixed D, by finite
    differences of the exact return.
    """
    mdps = random_tasks(rng, N, S, A, 2, horizon=4, discount=0.8)
    support, _ = tables(rng, 1)
    policy, theta = named(shared(rng), name)

    def adapted(theta):
        return np.stack(
            [theta + ALPHA * plain_gradient(policy, theta, support[0][i]) for i in range(N)]
        )

    query = policy_gradient_table(mdps, policy.log_pi(adapted(theta)))
    slope = finite_differences(
        lambda x: expected_return(mdps, policy.log_pi(adapted(x))).mean(), theta
    )
    np.testing.assert_allclose(
        meta_gradient(policy, theta, support, query, ALPHA), slope, atol=1e-6, err_msg=name
    )


# ---- adapt


@pytest.fixture
def tasks(rng):
    return random_tasks(rng, N, S, A, 2, horizon=4, discount=0.8)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_adapt_goes_up_its_own_tables(tasks, rng, steps, name):
    policy, theta = named(policies(rng, N, S, A), name)
    path = adapt(rng, tasks, policy, theta, INNER, steps=steps, episodes=5)
    assert (
        len(path.thetas)
        == len(path.episodes)
        == len(path.returns)
        == len(path.data) + 1
        == steps + 1
    )
    assert path.returns.shape == (steps + 1, N) and path.query.shape == (N, S, A)
    assert path.thetas[0].shape == (N,) + theta.shape[-2:] and (path.thetas[0] == theta).all()
    tables = [*path.data, path.query]
    for j in range(steps):
        for i in range(N):
            expected = path.thetas[j][i] + ALPHA * plain_gradient(
                policy, path.thetas[j][i], tables[j][i]
            )
            np.testing.assert_allclose(path.thetas[j + 1][i], expected, atol=1e-6, err_msg=name)
    assert all((tables[j] != tables[j + 1]).any() for j in range(steps))


def test_adapt_samples_with_the_adapted_policies(tasks, rng):
    """Replayed by hand from the same seed: k + 1 rollouts, each with the θ_i of its step."""
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    path = adapt(np.random.default_rng(5), tasks, policy, theta, INNER, steps=2, episodes=6)
    replay = np.random.default_rng(5)
    for j in range(3):
        e = rollout(
            replay, tasks, np.array([plain_log_pi(policy, path.thetas[j][i]) for i in range(N)]), 6
        )
        np.testing.assert_allclose(
            [*path.data, path.query][j],
            reinforce_table(e, tasks.discount, *tasks.shape[1:]),
            atol=1e-12,
        )
        for i in range(N):
            mean = sum(0.8**t * float(e.rewards[t, i, k]) for t in range(4) for k in range(6)) / 6
            assert path.returns[j, i] == pytest.approx(mean, abs=1e-12)


def test_adapt_uses_the_baseline_it_is_given(tasks, rng):
    policy = LogisticPolicy(S, 2)
    theta = policy.init()
    seeds = [np.random.default_rng(2) for _ in range(3)]
    one = adapt(seeds[0], tasks, policy, theta, Reinforce(ALPHA, no_baseline), steps=1, episodes=1)
    e = rollout(seeds[1], tasks, policy.log_pi(theta), 1)
    np.testing.assert_array_equal(
        one.data[0], reinforce_table(e, tasks.discount, *tasks.shape[1:], baseline=no_baseline)
    )
    with pytest.raises(ValueError, match="episodes.*leave-one-out"):
        adapt(seeds[2], tasks, policy, theta, INNER, steps=1, episodes=1)


def test_adapt_same_seed_same_bits_and_its_theta_is_left_alone(tasks, rng):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    before = theta.copy()
    a, b, c = (
        adapt(np.random.default_rng(seed), tasks, policy, theta, INNER, steps=2, episodes=4)
        for seed in (1, 1, 2)
    )
    assert (theta == before).all()
    assert (a.returns == b.returns).all() and all(
        (x == y).all() for x, y in zip(a.thetas, b.thetas)
    )
    assert (a.returns != c.returns).any()


def test_sampled_returns_are_the_exact_ones_within_four_standard_errors(tasks, rng):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    episodes = 20_000
    path = adapt(rng, tasks, policy, theta, INNER, steps=2, episodes=episodes)
    for j in range(3):
        log_pi = policy.log_pi(path.thetas[j])
        exact = expected_return(tasks, log_pi)
        for i in range(N):
            second = sum(
                p * return_of(steps, 0.8) ** 2
                for p, steps, _ in all_episodes(tasks, i, np.exp(log_pi[i]))
            )
            assert abs(path.returns[j, i] - exact[i]) < 4 * np.sqrt(
                (second - exact[i] ** 2) / episodes
            )
    assert (np.diff(path.returns.mean(1)) > 0.02).all()


def test_adapt_with_many_episodes_follows_the_exact_gradient(tasks, rng):
    policy = LogisticPolicy(S, 2)
    theta = rng.normal(size=(S, 2))
    g = np.array(
        [
            policy.weighted_score(theta, w)
            for w in policy_gradient_table(tasks, policy.log_pi(theta))
        ]
    )
    paths = [adapt(rng, tasks, policy, theta, INNER, steps=1, episodes=2000) for _ in range(30)]
    steps = np.array([path.thetas[1] - theta for path in paths])
    error = np.maximum(steps.std(0, ddof=1) / np.sqrt(30), 1e-12)
    assert (abs(steps.mean(0) - ALPHA * g) / error).max() < 4.5
    assert abs(ALPHA * g / error).max() > 30  # what is tested is not zero


@pytest.mark.parametrize(
    "keywords, message",
    [
        (dict(steps=-1), "steps"),
        (dict(episodes=0), "episodes"),
        (dict(episodes=-2), "episodes"),
        (dict(theta=np.full((S, A), np.nan)), "theta"),
        (dict(theta=np.where(np.arange(S * A).reshape(S, A) == 3, np.inf, 0)), "theta"),
        (dict(theta=np.zeros((S + 1, A))), "theta"),
        (dict(theta=np.zeros((S, A + 1))), "theta"),
    ],
)
def test_bad_input_is_named_before_anything_is_sampled(tasks, keywords, message):
    rng = np.random.default_rng(0)
    arguments = dict(theta=np.zeros((S, A)), inner=INNER, steps=1, episodes=4) | keywords
    with pytest.raises(ValueError, match=message):
        adapt(rng, tasks, SoftmaxPolicy(S, A), **arguments)
    assert rng.random() == np.random.default_rng(0).random()


# ---- train


@pytest.mark.parametrize("estimator", ["naive", "first_order"])
@pytest.mark.parametrize("k", [0, 2])
def test_an_iteration_is_one_ascent_step_on_the_adapted_data(tasks, rng, estimator, k):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    beta = 0.05
    run = train(
        np.random.default_rng(8),
        lambda rng: tasks,
        policy,
        theta,
        Reinforce(ALPHA, estimator=estimator),
        iterations=2,
        steps=k,
        episodes=6,
        step_size=beta,
        optimiser=ascent,
    )
    replay = np.random.default_rng(8)
    for iteration, record in enumerate(run):
        path = adapt(replay, tasks, policy, theta, INNER, steps=k, episodes=6)
        g = meta_gradient(policy, theta, path.data, path.query, ALPHA, estimator)
        theta = theta + beta * g
        np.testing.assert_allclose(record.theta, theta, atol=1e-14)
        np.testing.assert_allclose(record.returns, path.returns.mean(1), atol=1e-14)
        assert record.returns.shape == (k + 1,) and record.iteration == iteration
        assert record.gradient_norm == pytest.approx(np.sqrt((g**2).sum()), rel=1e-12)
    assert iteration == 1


def test_train_with_the_score_uses_the_query_returns_of_the_other_tasks(tasks, rng):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    record = next(
        train(
            np.random.default_rng(8),
            lambda rng: tasks,
            policy,
            theta,
            INNER,
            iterations=1,
            steps=2,
            episodes=6,
            step_size=0.05,
            optimiser=ascent,
            with_score=True,
        )
    )
    path = adapt(np.random.default_rng(8), tasks, policy, theta, INNER, steps=2, episodes=6)
    j = path.returns[-1]
    factor = np.array([j[i] - np.delete(j, i).mean() for i in range(N)])
    g = maml.meta_gradient(policy, path, INNER, score_factor=factor).mean(0)
    np.testing.assert_allclose(record.theta, theta + 0.05 * g, atol=1e-14)
    assert abs(g - maml.meta_gradient(policy, path, INNER).mean(0)).max() > 1e-2


def test_replay_follows_recorded_episodes_and_refuses_those_of_others(tasks, rng):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    path = adapt(rng, tasks, policy, theta, INNER, steps=2, episodes=6)
    again = maml.replay(policy, theta, INNER, path.episodes, tasks.discount)
    assert (
        all((x == y).all() for x, y in zip(path.thetas, again.thetas))
        and (path.query == again.query).all()
    )
    with pytest.raises(ValueError, match=r"recorded\[0\].*do not belong"):
        maml.replay(
            policy, theta + 0.1 * rng.normal(size=(S, A)), INNER, path.episodes, tasks.discount
        )
    with pytest.raises(ValueError, match=r"recorded\[1\].*do not belong"):
        maml.replay(policy, theta, Reinforce(2 * ALPHA), path.episodes, tasks.discount)
    first, second, query = path.episodes
    fewer = [first, second.part(tasks=slice(2)), query]
    with pytest.raises(ValueError, match=r"recorded\[1\]: 2 tasks, where there should be 3"):
        maml.replay(policy, theta, INNER, fewer, tasks.discount)
    with pytest.raises(ValueError, match=r"theta: shape \(3, 4, 4\), where there are 2 tasks"):
        adapt(rng, tasks[:2], policy, path.thetas[0], INNER, steps=1, episodes=2)


def test_multi_task_training_ascends_the_mean_return_of_the_tasks(tasks, rng):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    record = next(
        maml.train_multi_task(
            np.random.default_rng(8),
            lambda rng: tasks,
            policy,
            theta,
            iterations=1,
            episodes=6,
            step_size=0.05,
            optimiser=ascent,
        )
    )
    e = rollout(np.random.default_rng(8), tasks, policy.log_pi(theta), 6)
    table = reinforce_table(e, tasks.discount, *tasks.shape[1:])
    g = np.mean([plain_gradient(policy, theta, table[i]) for i in range(N)], 0)
    np.testing.assert_allclose(record.theta, theta + 0.05 * g, atol=1e-7)
    assert record.returns.shape == (1,)


@pytest.mark.parametrize(
    "change, name",
    [(dict(theta=np.zeros((N, S, A))), "theta"), (dict(step_size=np.nan), "step_size")],
)
def test_train_refuses_what_would_come_out_as_nonsense(tasks, change, name):
    arguments = dict(theta=np.zeros((S, A)), iterations=1, episodes=4, step_size=0.05) | change
    with pytest.raises(ValueError, match=name):
        next(
            maml.train_multi_task(
                np.random.default_rng(0), lambda rng: tasks, SoftmaxPolicy(S, A), **arguments
            )
        )


def test_adam_keeps_its_state_from_one_iteration_to_the_next(tasks):
    policy = SoftmaxPolicy(S, A)
    seen = []

    def spy(theta, gradient, state, *, step_size):
        seen.append((state, step_size))
        return adam(theta, gradient, state, step_size=step_size)

    records = list(
        train(
            np.random.default_rng(0),
            lambda rng: tasks,
            policy,
            policy.init(),
            INNER,
            iterations=3,
            steps=1,
            episodes=4,
            step_size=0.05,
            optimiser=spy,
        )
    )
    assert seen[0] == (None, 0.05) and [state[2] for state, _ in seen[1:]] == [1, 2]
    assert [record.state[2] for record in records] == [1, 2, 3]
    for record, (state, _) in zip(records, seen[1:]):
        np.testing.assert_equal(record.state, state)


def test_train_is_lazy_reproducible_and_draws_new_tasks_each_iteration(rng):
    pool = random_tasks(rng, 6, S, A, 2, horizon=4)
    policy = SoftmaxPolicy(S, A)
    drawn = []

    def sample_tasks(rng):
        drawn.append(rng.integers(6, size=N))
        return pool[drawn[-1]]

    def run(seed):
        return train(
            np.random.default_rng(seed),
            sample_tasks,
            policy,
            policy.init(),
            INNER,
            iterations=10**9,
            steps=1,
            episodes=4,
            step_size=0.05,
        )

    endless = run(3)
    assert not drawn
    a = [r.theta for r in islice(endless, 4)]
    assert len(drawn) == 4 and len({tuple(d) for d in drawn}) > 1
    assert (np.array(a) == [r.theta for r in islice(run(3), 4)]).all()
    assert (np.array(a) != [r.theta for r in islice(run(4), 4)]).any()
    assert (np.diff(a, axis=0) != 0).any((1, 2)).all()  # a record keeps its own θ


def test_train_refuses_bad_input(tasks):
    policy = SoftmaxPolicy(S, A)
    good = dict(inner=INNER, iterations=1, steps=1, episodes=4, step_size=0.05)
    bad = (
        (dict(episodes=0), "episodes"),
        (dict(steps=-1), "steps"),
        (dict(first=2), "first"),
        (dict(first=-1), "first"),
    )
    for keywords, message in bad:
        with pytest.raises(ValueError, match=message):
            next(
                train(
                    np.random.default_rng(0),
                    lambda rng: tasks,
                    policy,
                    policy.init(),
                    **good | keywords,
                )
            )


@pytest.mark.parametrize("policy", [SoftmaxPolicy(16, 4), LogisticPolicy(16, 2)])
def test_meta_training_improves_the_exact_return_after_adaptation(policy):
    """4×4, start in a corner, goals in the three other corners: one step must reach each of them
    from the same θ.
    """
    goals = GridWorld.open(4, 4, discount=0.95, horizon=8).mdps(np.array([3, 12, 15]))

    def fractions(theta):
        path = adapt(
            np.random.default_rng(1), goals, policy, theta, Reinforce(10.0), steps=1, episodes=40
        )
        return [
            (expected_return(goals, policy.log_pi(x)) / optimal_return(goals)).mean()
            for x in path.thetas
        ]

    batch = goals[np.arange(12) % 3]
    records = list(
        train(
            np.random.default_rng(0),
            lambda rng: batch,
            policy,
            policy.init(),
            Reinforce(10.0),
            iterations=150,
            steps=1,
            episodes=20,
            step_size=0.1,
        )
    )
    start, after_start = fractions(policy.init())
    _, after = fractions(records[-1].theta)
    assert start < 0.3 and after > 0.8 and after > after_start + 0.2
    assert (
        np.mean([r.returns[1] for r in records[-20:]])
        > np.mean([r.returns[1] for r in records[:20]]) + 0.1
    )


# ---- what symmetry leaves to learn


@pytest.mark.parametrize("steps, episodes", [(1, 1), (1, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize(
    "gradient",
    [expected_adapted_return_gradient, expected_meta_gradient],
    ids=["with score", "naive"],
)
def test_no_start_is_better_than_uniform_on_exchangeable_arms(gradient, steps, episodes):
    """Arms in every order: at uniform parameters the meta-gradient, summed over the orders, is the
    same in each component, since any two arms may change places; and a shift of all components
    changes no softmax, so they add up to 0. Both together make it 0. All that is left to learn is
    the inner step: MAML on bandits is the gradient bandit (Sutton & Barto 2018, §2.8), its step
    size tuned. In half of the orders the arms are not alike, and it is not 0.
    """
    policy = SoftmaxPolicy(1, 3)
    inner = Reinforce(2.0, baseline=no_baseline)
    gradients = []
    for means in permutations([0.2, 0.5, 0.9]):
        arms = bernoulli([means])
        sizes = dict(episodes=episodes, steps=steps)
        gradients.append(gradient(arms, policy, policy.init(), inner, **sizes))
    assert abs(sum(gradients)).max() < 1e-14
    assert abs(sum(gradients[:3])).max() > 0.01
