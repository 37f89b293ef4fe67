"""Two-level RL²: MAML with another inner algorithm, its gradient against finite differences and
against every possible data set.
"""

from dataclasses import dataclass, replace
from typing import Callable

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from helpers import (
    LEARNERS,
    all_episodes,
    learners,
    named,
    plain_log_pi,
    plain_return,
    random_tasks,
    tiny_mdp,
)

from metarl_np.check import finite_differences
from metarl_np.check.meta_gradients import (
    expected_adapted_return,
    expected_adapted_return_gradient,
    expected_meta_gradient,
)
from metarl_np.learner.optim import ascent
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import FirstOrder, Reinforce, reinforce_table
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline
from metarl_np.learner.trpo import TRPO
from metarl_np.meta.maml import adapt, meta_gradient, train
from metarl_np.tasks.exact import expected_return, optimal_return
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP

N = 3
S = 4
A = 4
K = 8
INNERS = {
    "reinforce": Reinforce(0.5),
    "ppo": PPO(0.4, epochs=3, minibatches=2, clip=0.3, entropy=0.05),
    "ppo, early stop": PPO(0.8, epochs=4, clip=0.3, target_kl=0.02),
    "trpo": TRPO(0.05, damping=0.01),
    "trpo, far": TRPO(0.5, damping=0.02, shrink=0.7),
}
every_inner = pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS.keys())


@pytest.fixture
def tasks(rng):
    return random_tasks(rng, N, S, A, 2, horizon=4)


# ---- one function, one interface


@dataclass(frozen=True)
class Ascent:
    """A fourth inner algorithm, written by a user."""

    step_size: float
    baseline: Callable = leave_one_out_baseline

    def prepare(self, policy, theta, episodes, discount):
        return reinforce_table(
            episodes, discount, policy.n_states, policy.n_actions, baseline=self.baseline
        )

    def __call__(self, policy, theta, data):
        return theta + self.step_size * policy.weighted_score(theta, data)


def trained(tasks, policy, inner, **options):
    options = dict(iterations=4, steps=2, episodes=K, step_size=0.05) | options
    return list(
        train(np.random.default_rng(3), lambda rng: tasks, policy, policy.init(), inner, **options)
    )


@pytest.mark.parametrize("score", [False, True])
def test_with_inner_reinforce_it_is_maml(tasks, score):
    """What calls itself a new inner algorithm and is REINFORCE trains as REINFORCE does."""
    for policy in SoftmaxPolicy(S, A), LogisticPolicy(S, 2):
        for mine, maml in zip(
            trained(tasks, policy, Ascent(0.5), with_score=score),
            trained(tasks, policy, Reinforce(0.5), with_score=score),
        ):
            # by autograd, and in closed form
            np.testing.assert_allclose(mine.theta, maml.theta, atol=1e-14)
            np.testing.assert_array_equal(mine.returns, maml.returns)


def test_one_epoch_of_ppo_is_maml_too(tasks):
    """θ' = θ + α∇L at ratio 1, whose derivative goes through π_old as well: REINFORCE's, and not
    LVC's.
    """
    policy = SoftmaxPolicy(S, A)
    inners = PPO(0.5, epochs=1), Reinforce(0.5), Reinforce(0.5, estimator="lvc")
    ppo, maml, lvc = (trained(tasks, policy, inner)[-1].theta for inner in inners)
    np.testing.assert_allclose(ppo, maml, atol=1e-12)
    assert abs(lvc - maml).max() > 1e-4


# ---- the derivative at fixed data


@pytest.mark.parametrize("name", LEARNERS)
@every_inner
@pytest.mark.parametrize("k", [1, 2])
def test_second_order_gradient_by_finite_differences(tasks, rng, inner, k, name):
    """Of θ ↦ Σ W log π(U(…U(θ, D_1)…, D_k)), everything that is prepared held fixed; each task's
    own part, all tasks moved at once. (CG stops at 1e-10, which differences over less than 1e-5
    would see.)
    """
    policy, theta = named(learners(rng, N, S, A), name)
    path = adapt(rng, tasks, policy, theta, inner, steps=k, episodes=K)
    g = meta_gradient(policy, path, inner)

    def objectives(move):
        adapted = theta + move
        for data in path.data:
            adapted = inner(policy, adapted, data)
        log_pi = np.array([plain_log_pi(policy, of_task) for of_task in adapted])
        return np.sum(log_pi * path.query, (1, 2))

    slope = finite_differences(objectives, np.zeros(policy.shape), 1e-5)
    assert abs(g - slope).max() < 1e-5 * abs(slope).max(), name
    if k == 1:  # it is far from the first-order one
        assert (
            abs(g - meta_gradient(policy, path, FirstOrder(inner))).max() > 1e-2 * abs(slope).max()
        ), name


@pytest.mark.parametrize("name", LEARNERS)
@every_inner
@pytest.mark.parametrize("k", [1, 2])
def test_first_order_gradient_is_the_gradient_at_the_adapted_parameters(tasks, rng, inner, k, name):
    policy, theta = named(learners(rng, N, S, A), name)
    path = adapt(rng, tasks, policy, theta, FirstOrder(inner), steps=k, episodes=K)
    expected = policy.weighted_score(path.thetas[-1], path.query)
    np.testing.assert_allclose(
        meta_gradient(policy, path, FirstOrder(inner)), expected, atol=1e-13, err_msg=name
    )
    again = adapt(np.random.default_rng(0), tasks, policy, theta, inner, steps=k, episodes=K)
    first = adapt(
        np.random.default_rng(0), tasks, policy, theta, FirstOrder(inner), steps=k, episodes=K
    )
    np.testing.assert_allclose(first.thetas[-1], again.thetas[-1], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", LEARNERS)
@every_inner
def test_the_order_of_the_tasks_does_not_matter(tasks, rng, inner, name):
    """Each task's update and gradient are what they are in a batch of its own."""
    policy, theta = named(learners(rng, N, S, A), name)
    path = adapt(rng, tasks, policy, theta, inner, steps=1, episodes=K)
    g = meta_gradient(policy, path, inner)
    for i in range(N):
        e = path.episodes[0]
        alone = replace(
            e,
            **{x: getattr(e, x)[:, [i]] for x in ("states", "actions", "rewards", "mask")},
            **{x: getattr(e, x)[[i]] for x in ("log_pi", "last_states", "truncated")},
        )
        data = inner.prepare(policy, theta[[i]], alone, tasks.discount)
        np.testing.assert_allclose(
            inner(policy, theta[[i]], data)[0], path.thetas[1][i], atol=1e-8, err_msg=name
        )
        slope = grad(lambda x: anp.sum(policy.log_pi(inner(policy, x, data)) * path.query[[i]]))(
            theta[[i]]
        )
        np.testing.assert_allclose(slope[0], g[i], atol=1e-7, err_msg=name)


# ---- the gradient of E_D[J(U(θ, D))], with the score term, over every data set of a tiny MDP


EXPECTED = {
    "ppo": (PPO(0.7, epochs=1), 2, 1),
    "ppo, more epochs": (PPO(0.7, epochs=3, minibatches=2, entropy=0.1), 2, 1),
    "ppo, two steps": (PPO(0.7, epochs=2, baseline=no_baseline), 1, 2),
    "ppo, early stop": (PPO(0.9, epochs=3, target_kl=0.05), 2, 1),
    "trpo": (TRPO(0.1, damping=0.05), 2, 1),
    "trpo, two steps": (TRPO(0.1, damping=0.05, baseline=no_baseline), 1, 2),
}


@pytest.mark.parametrize("inner, episodes, steps", EXPECTED.values(), ids=EXPECTED.keys())
@pytest.mark.parametrize(
    "policy",
    [SoftmaxPolicy(3, 2), ActorCritic(LogisticPolicy(3))],
    ids=["softmax", "logistic, critic"],
)
def test_with_the_score_it_is_the_gradient_of_the_expected_adapted_return(
    rng, policy, inner, episodes, steps
):
    mdps = tiny_mdp(rng, 2)
    theta = 0.5 * rng.normal(size=policy.init().shape)
    sizes = dict(episodes=episodes, steps=steps)
    slope = finite_differences(
        lambda x: expected_adapted_return(mdps, policy, x, inner, **sizes), theta, 1e-6
    )
    g, pathwise = (
        expected_meta_gradient(mdps, policy, theta, inner, with_score=score, **sizes)
        for score in (True, False)
    )
    np.testing.assert_allclose(g, slope, atol=1e-7)
    np.testing.assert_allclose(
        g, expected_adapted_return_gradient(mdps, policy, theta, inner, **sizes), atol=1e-12
    )
    assert abs(pathwise - slope).max() > 1e-3 * abs(slope).max()


def test_expected_adapted_return_of_one_ppo_step_by_loops(rng):
    """Σ_D p(D) J(U(θ, D)) with data sets of one episode written out: the update from sums over its
    steps, J by plain enumeration.
    """
    mdps = tiny_mdp(rng, 2)
    policy = SoftmaxPolicy(3, 2)
    theta = rng.normal(size=(3, 2))
    J = plain_return(mdps, 0)
    total = 0.0
    pi = np.exp(plain_log_pi(policy, theta))
    for p, path in ((p, path) for p, path, _ in all_episodes(mdps, 0, pi)):
        step = np.zeros((3, 2))
        for t, (s, a, _) in enumerate(path):
            G = sum(mdps.discount ** (u - t) * path[u][2] for u in range(t, len(path)))
            step[s] += mdps.discount**t * G * ((np.arange(2) == a) - pi[s])
        total += p * J(policy, theta + 0.7 * step)[0]
    value = expected_adapted_return(
        mdps, policy, theta, PPO(0.7, epochs=1, baseline=no_baseline), episodes=1
    )
    assert value == pytest.approx(total, rel=1e-12)


# ---- training


@pytest.mark.parametrize("inner", [PPO(3.0, epochs=3), TRPO(0.1, damping=0.1)], ids=["ppo", "trpo"])
def test_meta_training_improves_the_exact_return_after_adaptation(inner):
    """3×3, start in a corner, goals in the three others: one update must reach each of them from
    the same θ.
    """
    goals = GridWorld.open(3, 3, discount=0.95, horizon=6).mdps(np.array([2, 6, 8]))
    policy = SoftmaxPolicy(9, 4)

    def fractions(theta):
        path = adapt(np.random.default_rng(1), goals, policy, theta, inner, steps=1, episodes=40)
        return [
            (expected_return(goals, policy.log_pi(x)) / optimal_return(goals)).mean()
            for x in path.thetas
        ]

    batch = goals[np.arange(9) % 3]
    *_, last = train(
        np.random.default_rng(0),
        lambda rng: batch,
        policy,
        policy.init(),
        inner,
        iterations=60,
        steps=1,
        episodes=20,
        step_size=0.1,
    )
    _, after_start = fractions(policy.init())
    before, after = fractions(last.theta)
    # how good θ is before the update differs from seed to seed: by .02 to .26 less than after it
    assert after > after_start + 0.3
    assert after > before


@dataclass(frozen=True)
class Broken:
    """An update whose value, or only whose derivative, is NaN in what is its n-th call to
    `prepare`.
    """

    where: str
    calls: list
    baseline: Callable = leave_one_out_baseline

    def prepare(self, policy, theta, episodes, discount):
        self.calls.append(0)
        return len(self.calls) == 3

    def __call__(self, policy, theta, broken):
        if not broken:
            return theta
        return theta * np.nan if self.where == "value" else theta + anp.sqrt(0 * theta)


TABLE = SoftmaxPolicy(S, A)
CRITIC = ActorCritic(SoftmaxPolicy(S, A))


@pytest.mark.parametrize(
    "policy, inner, options, message",
    [
        (TABLE, Reinforce(1e308), {}, "iteration 0: adapted"),
        (TABLE, PPO(1e308), {}, "iteration 0: theta"),
        (CRITIC, PPO(1.0, epochs=1, value=1e308), {}, "iteration 0: adapted"),
        (TABLE, Broken("value", []), {}, "iteration 2: adapted"),
        (TABLE, Broken("derivative", []), {}, "iteration 2: gradient"),
        (TABLE, TRPO(), dict(step_size=1e308, optimiser=ascent), "iteration 0: parameters"),
    ],
)
def test_what_is_not_finite_stops_training_and_is_named(tasks, policy, inner, options, message):
    tasks = replace(tasks, rewards=100 * tasks.rewards)
    with pytest.raises(
        FloatingPointError, match=f"^{message}.* not finite"
    ):  # and no warning before it
        trained(tasks, policy, inner, **dict(steps=1) | options)


def test_returns_that_are_not_finite_stop_training_and_are_named():
    tasks = MDP.from_dense(np.ones((1, 2, 1)), np.array([[1.0, 1.0]]), 0, discount=1.0, horizon=2)
    # beyond what a float32 holds: an MDP would refuse it
    object.__setattr__(tasks, "rewards", tasks.rewards * 1e300)
    with pytest.raises(FloatingPointError, match="^iteration 0: returns"):
        trained(tasks, SoftmaxPolicy(1, 2), PPO(0.1), steps=0)


@pytest.mark.parametrize("score", [False, True])
def test_a_query_that_is_not_finite_is_not_blamed_on_the_parameters(score):
    """The inner step, of negative size, leads from the action that pays 1 to the one that pays more
    than a float32 holds.
    """
    tasks = MDP.from_dense(np.ones((1, 2, 1)), np.array([[1.0, 1.0]]), 0, discount=1.0, horizon=1)
    object.__setattr__(tasks, "rewards", np.array([[[[1.0], [1e300]]]]))  # which MDP refuses
    with pytest.raises(FloatingPointError, match="^iteration 0: returns"), np.errstate(
        all="ignore"
    ):
        next(
            train(
                np.random.default_rng(0),
                lambda rng: tasks,
                SoftmaxPolicy(1, 2),
                np.array([[20.0, 0.0]]),
                Reinforce(-1e11, baseline=no_baseline),
                iterations=1,
                steps=1,
                episodes=4,
                step_size=0.1,
                with_score=score,
            )
        )


def test_a_gradient_that_overflows_on_its_way_back_names_the_iteration(tasks):
    class Overflowing(SoftmaxPolicy):
        def weighted_score(self, theta, weights):
            return super().weighted_score(theta, weights) * (1e308 * 10 if self.back else 1.0)

        back = False

    policy = Overflowing(S, A)
    count = []

    def baseline(
        returns, episodes
    ):  # the third call makes the query's table, the last thing before the gradient
        count.append(0)
        Overflowing.back = len(count) == 3
        return 0 * returns

    with pytest.raises(FloatingPointError, match="^iteration 0: "), np.errstate(all="ignore"):
        trained(tasks, policy, Reinforce(0.1, baseline=baseline), steps=2)
