"""The exact meta-gradients against their objectives, written again here by enumeration, with
neither autograd nor dynamic programming.
"""

from itertools import product
from math import prod

import numpy as np
import pytest
from helpers import (
    POLICIES,
    all_episodes,
    named,
    plain_log_pi,
    plain_return,
    plain_score,
    policies,
    random_tasks,
    return_of,
    tiny_mdp,
)

from metarl_np.check import finite_differences
from metarl_np.check.enumeration import enumerate_adaptations
from metarl_np.check.meta_gradients import (
    adapted_return,
    adapted_return_gradient,
    expected_adapted_return,
    expected_adapted_return_gradient,
    hessians,
)
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, FirstOrder, Reinforce
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps

N = 2
S = 3
A = 4
T = 3
ALPHA = 0.8
GAMMA = 0.9
ACTORS = pytest.mark.parametrize(
    "policy", [SoftmaxPolicy(3, 2), LogisticPolicy(3)], ids=["softmax", "logistic"]
)


@pytest.fixture
def tasks(rng):
    return random_tasks(rng, N, S, A, 2, horizon=T)


def own(theta, i):
    return theta if theta.ndim == 2 else theta[i]


# ---- (a): exact inner gradients


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adapted_return_and_its_gradient_against_enumeration_and_finite_differences(
    tasks, rng, steps, name
):
    policy, theta = named(policies(rng, N, S, A), name)
    oracles = [plain_return(tasks, i) for i in range(N)]

    def objective(theta, i):
        for _ in range(steps):
            theta = theta + ALPHA * oracles[i](policy, theta)[1]
        return oracles[i](policy, theta)[0]

    options = dict(step_size=ALPHA, steps=steps)
    value = adapted_return(tasks, policy, theta, **options)
    expected = [objective(own(theta, i), i) for i in range(N)]
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    g = adapted_return_gradient(tasks, policy, theta, **options)
    slope = [finite_differences(lambda x: objective(x, i), own(theta, i)) for i in range(N)]
    np.testing.assert_allclose(g, slope, atol=1e-8)
    assert abs(g[0] - g[1]).max() > 0.01


@pytest.mark.parametrize("name", POLICIES)
def test_its_gradient_is_the_chain_rule_with_the_exact_hessian(tasks, rng, name):
    """(I + αH)ᵀ ∇J(θ')."""
    policy, theta = named(policies(rng, N, S, A), name)
    H = hessians(tasks, policy, theta)["H"]
    for i in range(N):
        J = plain_return(tasks, i)
        adapted = own(theta, i) + ALPHA * J(policy, own(theta, i))[1]
        expected = (np.eye(len(H[i])) + ALPHA * H[i]).T @ J(policy, adapted)[1].ravel()
        g = adapted_return_gradient(tasks, policy, theta, step_size=ALPHA)[i]
        np.testing.assert_allclose(g.ravel(), expected, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "options", [dict(step_size=ALPHA, steps=0), dict(step_size=0.0)], ids=["no step", "of size 0"]
)
def test_without_a_step_it_is_the_policy_gradient(tasks, rng, options):
    policy = SoftmaxPolicy(S, A)
    theta = rng.normal(size=(S, A))
    plain = [plain_return(tasks, i)(policy, theta)[1] for i in range(N)]
    g = adapted_return_gradient(tasks, policy, theta, **options)
    np.testing.assert_allclose(g, plain, atol=1e-13)


@pytest.mark.parametrize("f", [adapted_return, adapted_return_gradient, hessians])
def test_what_is_no_mdp_is_named(f):
    options = {} if f is hessians else dict(step_size=ALPHA)
    with pytest.raises(ValueError, match="mdps: None is not an MDP"):
        f(None, SoftmaxPolicy(S, A), np.zeros((S, A)), **options)


# ---- the Hessian and its parts


def action_values(mdps, i, policy, theta):
    """Q_t(s, a) = E[G_t | s_t = s, a_t = a], (T, S, A), as an average over trajectories."""
    mass = np.full((T,) + mdps.shape[1:], 1e-300)
    total = np.zeros(mass.shape)
    for p, path, _ in all_episodes(mdps, i, np.exp(plain_log_pi(policy, theta))):
        for t, (s, a, _) in enumerate(path):
            mass[t, s, a] += p
            total[t, s, a] += p * return_of(path[t:], GAMMA)
    return total / mass


def parts_by_definition(mdps, i, policy, theta):
    """{"H1": E Σ γᵗ ∇log π_t ∇log π_tᵀ G_t, "H2": E Σ γᵗ ∇²log π_t G_t, "H12": E Σ γᵗ ∇log π_t
    (∇Q_t)ᵀ}, as loops.
    """
    P = theta.size
    score = plain_score(policy, theta).reshape(S, -1, P)
    curvature = finite_differences(lambda x: plain_score(policy, x), theta).reshape(S, -1, P, P)
    q_slope = finite_differences(lambda x: action_values(mdps, i, policy, x), theta).reshape(
        T, S, -1, P
    )
    h1, h2, h12 = np.zeros((3, P, P))
    for p, path, _ in all_episodes(mdps, i, np.exp(plain_log_pi(policy, theta))):
        for t, (s, a, _) in enumerate(path):
            weight = p * GAMMA**t * return_of(path[t:], GAMMA)
            h1 += weight * np.outer(score[s, a], score[s, a])
            h2 += weight * curvature[s, a]
            h12 += p * GAMMA**t * np.outer(score[s, a], q_slope[t, s, a])
    return dict(H1=h1, H2=h2, H12=h12)


@pytest.mark.parametrize("name", POLICIES)
def test_hessian_and_its_three_parts_are_what_they_are_defined_to_be(rng, name):
    tasks = random_tasks(rng, N, S, 2, 2, horizon=T)
    policy, theta = named(policies(rng, N, S, 2), name)
    h = hessians(tasks, policy, theta)
    H = h["H"]
    P = H.shape[-1]
    np.testing.assert_allclose(H, H.transpose(0, 2, 1), atol=1e-14)
    whole = h["H1"] + h["H2"] + h["H12"] + h["H12"].transpose(0, 2, 1)
    np.testing.assert_allclose(H, whole, atol=1e-13)
    for i in range(N):
        J = plain_return(tasks, i)
        slope = finite_differences(lambda x: J(policy, x)[1], own(theta, i)).reshape(P, P)
        np.testing.assert_allclose(H[i], slope, atol=1e-8)
        for part, expected in parts_by_definition(tasks, i, policy, own(theta, i)).items():
            assert abs(expected).max() > 1e-4, part
            np.testing.assert_allclose(h[part][i], expected, atol=1e-8, err_msg=part)


# ---- (b): what is trained


def trained_objective(J, mdps, policy, theta, *, episodes, steps, others):
    """E_D[J(U(…U(θ, D_1)…, D_k))]: over every data set D of this step, its probability times what
    follows from θ'.

    others: with the leave-one-out baseline.
    """
    if steps == 0:
        return J(policy, theta)[0]
    score = plain_score(policy, theta)
    total = 0.0
    every = [
        (
            p,
            path,
            [return_of(path[t:], GAMMA) for t in range(mdps.horizon)],
        )  # after its end an episode's return is 0
        for p, path, _ in all_episodes(mdps, 0, np.exp(plain_log_pi(policy, theta)))
    ]
    for D in product(every, repeat=episodes):
        g = 0.0
        for k, (_, path, returns) in enumerate(D):
            for t, (s, a, _) in enumerate(path):
                b = others and sum(D[j][2][t] for j in range(episodes) if j != k) / (episodes - 1)
                g = g + GAMMA**t * (returns[t] - b) * score[s, a] / episodes
        rest = trained_objective(
            J, mdps, policy, theta + ALPHA * g, episodes=episodes, steps=steps - 1, others=others
        )
        total += prod(p for p, _, _ in D) * rest
    return total


def assert_agrees_with_loops(mdps, policy, theta, directions, *, others, **size):
    """The library's objective (b), and its slope along some directions (B, F, A), are those of the
    loops.
    """
    J = plain_return(mdps, 0)

    def loops(x):
        return trained_objective(
            J, mdps, policy, theta + np.tensordot(x, directions, 1), others=others, **size
        )

    arguments = (
        mdps,
        policy,
        theta,
        Reinforce(ALPHA, leave_one_out_baseline if others else no_baseline),
    )
    zero = np.zeros(len(directions))
    assert expected_adapted_return(*arguments, **size) == pytest.approx(loops(zero), rel=1e-12)
    slopes = np.tensordot(directions, expected_adapted_return_gradient(*arguments, **size), 2)
    np.testing.assert_allclose(slopes, finite_differences(loops, zero), atol=1e-8)
    assert abs(slopes).max() > 1e-3


@ACTORS
@pytest.mark.parametrize(
    "steps, episodes, horizon, others",
    [(1, 1, 3, False), (1, 2, 2, False), (1, 2, 2, True), (2, 1, 2, False)],
)
def test_trained_objective_and_its_gradient_against_loops(
    rng, policy, steps, episodes, horizon, others
):
    theta = rng.normal(size=policy.init().shape)
    every_direction = np.eye(theta.size).reshape((-1,) + theta.shape)
    assert_agrees_with_loops(
        tiny_mdp(rng, horizon),
        policy,
        theta,
        every_direction,
        steps=steps,
        episodes=episodes,
        others=others,
    )


@ACTORS
@pytest.mark.parametrize("steps, episodes, others", [(3, 1, False), (2, 2, False), (2, 2, True)])
def test_trained_objective_of_many_histories_against_loops_along_one_direction(
    rng, policy, steps, episodes, others
):
    theta = rng.normal(size=policy.init().shape)
    direction = rng.normal(size=(1,) + theta.shape)
    assert_agrees_with_loops(
        tiny_mdp(rng, 2, ends=True),
        policy,
        theta,
        direction,
        steps=steps,
        episodes=episodes,
        others=others,
    )


@ACTORS
def test_trained_objective_is_smooth_where_there_are_too_many_histories_for_loops(rng, policy):
    """k = 2, K = 2 on 13 episodes, 28,561 histories: the gradient is at least that of the library's
    own objective.
    """
    mdps = tiny_mdp(rng, 2)
    theta = rng.normal(size=policy.init().shape)
    inner = Reinforce(ALPHA)
    size = dict(episodes=2, steps=2)
    direction = rng.normal(size=theta.shape)
    slope = finite_differences(
        lambda x: expected_adapted_return(mdps, policy, theta + x * direction, inner, **size),
        np.zeros(()),
    )
    g = expected_adapted_return_gradient(mdps, policy, theta, inner, **size)
    assert (g * direction).sum() == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_of_what_is_trained_does_not_depend_on_the_estimator(rng, estimator):
    """All surrogates lead to the same θ', so the objective is one; only naive's second derivative
    is that of the step.
    """
    mdps = tiny_mdp(rng, 2)
    policy = SoftmaxPolicy(3, 2)
    theta = rng.normal(size=(3, 2))
    g, expected = (
        expected_adapted_return_gradient(
            mdps, policy, theta, Reinforce(ALPHA, estimator=name), episodes=2, steps=1
        )
        for name in (estimator, "naive")
    )
    np.testing.assert_allclose(g, expected, atol=1e-13)


@pytest.mark.parametrize(
    "keywords, message",
    [
        (
            dict(max_datasets=28_560),
            r"max_datasets: 13 episodes make 13\^4 = 28561 data sets.*28560; lower .*horizon",
        ),
        (dict(episodes=40), f"max_datasets.* = {13**80} data sets"),
        (dict(episodes=0), "episodes.*at least 1"),
        (dict(steps=0), "steps.*at least 1"),
        (dict(steps=-1), "steps.*at least 0"),
        (
            dict(mdps=random_tasks(np.random.default_rng(0), 2, 3, 2, 2, horizon=2)),
            "mdps: .*one task.* not of 2",
        ),
        (dict(theta=np.full((3, 2), np.nan)), "theta"),
        (dict(theta=np.zeros((4, 2))), "theta"),
        (dict(inner=Reinforce(ALPHA), episodes=1), "leave-one-out"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(rng, keywords, message):
    arguments = (
        dict(
            mdps=tiny_mdp(rng, 2),
            policy=SoftmaxPolicy(3, 2),
            theta=np.zeros((3, 2)),
            inner=Reinforce(ALPHA, no_baseline),
            episodes=2,
            steps=2,
        )
        | keywords
    )
    with pytest.raises(ValueError, match=message):
        expected_adapted_return(**arguments)
    if "max_datasets" in keywords:
        assert np.isfinite(expected_adapted_return(**arguments | dict(max_datasets=28_561)))


def test_gaussian_rewards_cannot_be_enumerated():
    noisy = random_mdps(np.random.default_rng(0), 1, 2, 2, horizon=2)
    with pytest.raises(ValueError, match="mdps: reward_noise"):
        expected_adapted_return(
            noisy, SoftmaxPolicy(2, 2), np.zeros((2, 2)), Reinforce(1.0), episodes=2
        )


def test_the_trained_gradient_is_that_of_the_inner_update_whatever_its_wrapper():
    mdps = random_mdps(np.random.default_rng(0), 1, 2, 2, horizon=2, discount=0.9, reward_noise=0.0)
    policy = SoftmaxPolicy(2, 2)
    plain, wrapped = (
        expected_adapted_return_gradient(mdps, policy, np.eye(2), inner, episodes=2)
        for inner in (Reinforce(1.0), FirstOrder(Reinforce(1.0)))
    )
    np.testing.assert_array_equal(plain, wrapped)


def test_enumerated_histories_are_consistent_with_themselves():
    """The second data set is drawn with the parameters that the first led to; returns carry γᵗ;
    each episode ends where it ends.
    """
    mdps = tiny_mdp(np.random.default_rng(1), 2)
    policy = SoftmaxPolicy(3, 2)
    theta = np.random.default_rng(2).normal(size=(3, 2))
    path, probability = enumerate_adaptations(
        mdps, policy, theta, Reinforce(1.0, no_baseline), episodes=1, steps=2
    )
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    for j, e in enumerate(path.episodes):
        np.testing.assert_allclose(e.log_pi, policy.log_pi(path.thetas[j]), atol=1e-14)
        for i in range(0, len(probability), 7):
            assert path.returns[j, i] == pytest.approx(
                sum(mdps.discount**t * r for t, r in enumerate(e.rewards[:, i, 0])), abs=1e-12
            )
            t = e.mask[:, i, 0].sum() - 1
            s = e.states[t, i, 0]
            a = e.actions[t, i, 0]
            last = e.last_states[i, 0]
            here = (mdps.successors[0, s, a] == last) & (mdps.probabilities[0, s, a] > 0)
            assert (here & np.isclose(mdps.rewards[0, s, a], e.rewards[t, i, 0])).any()
    assert abs(path.thetas[1] - path.thetas[0]).max() > 1e-3


def test_where_all_episodes_are_the_same_any_number_of_them_is_one_history():
    mdps = MDP.from_dense(np.ones((1, 1, 1)), np.ones((1, 1, 1)), [1.0], discount=0.5, horizon=2)
    path, probability = enumerate_adaptations(
        mdps, SoftmaxPolicy(1, 1), np.zeros((1, 1)), Reinforce(1.0, no_baseline), episodes=500
    )
    assert probability == 1 and path.returns == 1.5
