"""Meta-learned values: each step against λ-returns in their forward view, the meta-gradient against
finite differences, and the truth.
"""

from dataclasses import replace
from types import GeneratorType

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from helpers import all_episodes, random_tasks

from metarl_np.check import finite_differences
from metarl_np import exact
from metarl_np.learner.advantages import td_errors
from metarl_np.learner.optim import ascent
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.meta.values import (
    adapt_values,
    meta_value_objective,
    train_values,
    value_error,
    value_step,
)
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP

N = 2
S = 4
A = 2
T = 5
K = 6


@pytest.fixture
def tasks(rng):
    return random_tasks(rng, N, S, A, 2, horizon=T, discount=0.8)


@pytest.fixture
def log_pi(rng):
    return np.log(rng.dirichlet(np.ones(A), (N, S)))


def lambda_returns(v, e, discount, lam):
    """V̂_t of the steps that were taken, {(t, n, k): V̂}: Sutton & Barto (2018), eq. 12.3 with
    12.1, a truncated end worth V(s_T).
    """
    targets = {}
    for n, k in np.ndindex(e.last_states.shape):
        length = int(e.mask[:, n, k].sum())
        r = e.rewards[:, n, k].astype(float)
        visited = [*e.states[:length, n, k], e.last_states[n, k]]
        for t in range(length):

            def n_step(m):
                worth = v[n, visited[t + m]] if t + m < length or e.truncated[n, k] else 0.0
                return sum(discount**i * r[t + i] for i in range(m)) + discount**m * worth

            rest = length - t
            targets[t, n, k] = lam ** (rest - 1) * n_step(rest) + (1 - lam) * sum(
                lam ** (m - 1) * n_step(m) for m in range(1, rest)
            )
    return targets


def plain_step(v, e, step_size, discount, lam):
    new = v.copy()
    for (t, n, k), target in lambda_returns(v, e, discount, lam).items():
        s = e.states[t, n, k]
        new[n, s] += step_size * (target - v[n, s]) / e.states.shape[2]
    return new


def plain_error(v, e, targets):
    """½ mean (V̂ − V)² over the steps of each task: (N,)."""
    return np.array(
        [
            np.mean(
                [
                    0.5 * (g - v[n, e.states[t, n, k]]) ** 2
                    for (t, n, k), g in targets.items()
                    if n == i
                ]
            )
            for i in range(len(v))
        ]
    )


# ---- a step, and the error


def test_by_hand():
    """Rewards 1 and 2 on the way 0 → 1 → 0, γ = ½, V = (4, 8): δ = (1 + 4 − 4, 2 + 2 − 8), or 2 − 8
    where the way ends there.
    """

    def path(truncated):
        column = np.array([0, 1])[:, None, None]
        return Episodes(
            column,
            column,
            np.array([1.0, 2])[:, None, None],
            column >= 0,
            None,
            np.array([[0]]),
            np.array([[truncated]]),
        )

    v = np.array([[4.0, 8]])
    for truncated, lam, errors in (
        (True, 0, [1, -4]),
        (False, 0, [1, -6]),
        (True, 1, [-1, -4]),
        (False, 0.5, [-0.5, -6]),
    ):
        assert td_errors(v, path(truncated), 0.5, lam).ravel().tolist() == errors
        new = value_step(v, path(truncated), step_size=0.5, discount=0.5, lam=lam)
        assert new.tolist() == [[4 + errors[0] / 2, 8 + errors[1] / 2]]
    assert value_error(v, path(True), 0.5).tolist() == [(1 + 16) / 4]


@pytest.mark.parametrize("lam", [0, 0.6, 1])
@pytest.mark.parametrize("steps", [3, T])
def test_step_and_error_against_loops(rng, tasks, log_pi, lam, steps):
    e = rollout(rng, tasks, log_pi, K, steps=steps)
    v = rng.normal(size=(N, S))
    # some end early, and only a rollout cut short is truncated
    assert not e.mask.all() and e.truncated.any() == (steps < T)
    want = plain_step(v, e, 0.3, 0.8, lam)
    np.testing.assert_allclose(
        value_step(v, e, step_size=0.3, discount=0.8, lam=lam), want, atol=1e-14
    )
    np.testing.assert_allclose(
        value_error(v, e, 0.8), plain_error(v, e, lambda_returns(v, e, 0.8, 1)), atol=1e-14
    )
    where = np.argwhere(~e.mask)[-1]
    rewards = e.rewards.copy()
    rewards[tuple(where)] = 100
    np.testing.assert_array_equal(
        value_step(v, replace(e, rewards=rewards), step_size=0.3, discount=0.8, lam=lam),
        value_step(v, e, step_size=0.3, discount=0.8, lam=lam),
    )


@pytest.mark.parametrize("lam", [0, 0.6, 1])
def test_adaptation_is_its_steps(rng, tasks, log_pi, lam):
    values, data = adapt_values(
        rng, tasks, log_pi, np.arange(S), steps=2, step_size=0.4, episodes=K, length=3, lam=lam
    )
    assert len(values) == len(data) == 3 and values[0].tolist() == [[0, 1, 2, 3]] * N
    for j, e in enumerate(data):
        assert e.states.shape == (3, N, K)
        if j:
            np.testing.assert_allclose(
                values[j], plain_step(values[j - 1], data[j - 1], 0.4, 0.8, lam), atol=1e-14
            )
    assert (data[0].actions != data[1].actions).any() and (data[1].actions != data[2].actions).any()


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("lam, length", [(0, 3), (1, 3), (0.5, None)])
def test_meta_gradient_against_finite_differences(rng, tasks, log_pi, steps, lam, length):
    """Through the loops above; the query's targets are held where V was, as they are constants of
    the objective.
    """
    v = rng.normal(size=(N, S))
    values, data = adapt_values(
        rng, tasks, log_pi, v, steps=steps, step_size=0.4, episodes=3, length=length, lam=lam
    )
    targets = lambda_returns(values[-1], data[-1], 0.8, 1)

    def plain(v):
        for e in data[:-1]:
            v = plain_step(v, e, 0.4, 0.8, lam)
        return plain_error(v, data[-1], targets)

    def objective(v):
        return meta_value_objective(v, data, step_size=0.4, discount=0.8, lam=lam)

    np.testing.assert_allclose(objective(v), plain(v), atol=1e-14)
    want = finite_differences(plain, v)
    np.testing.assert_allclose(
        grad(lambda x: anp.sum(objective(x)))(v), want[np.arange(N), np.arange(N)], atol=1e-9
    )
    # a task's error depends on its own V only
    assert not want[0, 1].any() and abs(want).max() > 0.02


# ---- the truth


def every_episode(mdps, length, truncated):
    """All 4^T equally likely outcomes of a task whose π and P are halves, one that ended early
    counting as often as it happens.
    """
    rows = []
    for p, path, last in all_episodes(replace(mdps, horizon=length), 0, np.full((S, A), 0.5)):
        ended = len(path) < length or mdps.terminal[0, last]
        steps = path + [(last, 0, 0.0)] * (length - len(path))
        mask = np.arange(length) < len(path)
        rows += [(*zip(*steps), mask, last, truncated and not ended)] * round(p * 2 * 4**length)
    states, actions, rewards, mask, last, cut = (np.array(x) for x in zip(*rows))
    return Episodes(
        *(x.T[:, None] for x in (states, actions, rewards, mask)), None, last[None], cut[None]
    )


@pytest.mark.parametrize("lam", [0, 0.6, 1])
def test_steps_converge_to_the_exact_values(rng, lam):
    """On every episode there is, so with no sampling error: cut short to V^π of no horizon; and
    with Monte-Carlo returns of a whole episode to Σ_t Pr(s_t = s) V_t(s) / Σ_t Pr(s_t = s).
    """
    successors = np.array([[[1, 2], [0, 3]], [[2, 0], [1, 3]], [[0, 1], [2, 1]], [[3, 3], [3, 3]]])[
        None
    ]
    rewards = np.where(np.arange(S) < 3, 1, 0)[:, None, None] * rng.normal(size=(1, S, A, 2))
    mdps = MDP(
        successors,
        np.full(successors.shape, 0.5),
        rewards,
        [[0.5, 0.5, 0, 0]],
        [[False] * 3 + [True]],
        0.9,
        3,
    )
    log_pi = np.full((S, A), np.log(0.5))
    for truncated in (True, False)[: 1 + (lam == 1)]:
        e = every_episode(mdps, 3, truncated)
        v = np.zeros((1, S))
        for _ in range(600):
            v = value_step(v, e, step_size=0.7, discount=0.9, lam=lam)
        want = exact.stationary_values(mdps, log_pi)
        if not truncated:
            visits = exact.occupancy(replace(mdps, discount=1), log_pi) * ~mdps.terminal
            want = (visits * exact.values(mdps, log_pi)[:3]).sum(0) / np.maximum(
                visits.sum(0), 1e-300
            )
        np.testing.assert_allclose(v, want, atol=1e-10)
        assert abs(want).max() > 0.1


def test_sampled_steps_come_close_to_the_exact_values(rng, tasks, log_pi):
    """Rollouts of 4 out of 1000 steps, K = 2000 at α = .2: the last of 60 steps leave less than
    five standard errors of a target.
    """
    long = replace(tasks, horizon=1000)
    values, data = adapt_values(
        rng, long, log_pi, np.zeros(S), steps=60, step_size=0.2, episodes=2000, length=4, lam=0.9
    )
    truth = exact.stationary_values(long, log_pi)
    v = values[-1]
    assert data[0].truncated.any()
    spread = td_errors(truth, data[-1], 0.8, 0.9)[data[-1].mask].std()
    alive = ~tasks.terminal & (exact.occupancy(tasks, log_pi).sum(0) > 0.2)
    assert (abs(v - truth)[alive] < 5 * spread / np.sqrt(2000 * 0.2)).all() and alive.any(1).all()
    assert (v[tasks.terminal] == 0).all()


# ---- training


GRID = GridWorld.open(3, 4, discount=0.9, horizon=60, slip=0.1, step_reward=-1)
TRAIN = np.array([3, 6, 7, 9, 10])
HELD_OUT = np.array([8, 11])  # goals
UNIFORM = np.full((12, 4), -np.log(4))


def training(seed, **changes):
    settings = (
        dict(iterations=40, steps=1, inner_step_size=0.3, episodes=4, step_size=0.1, length=20)
        | changes
    )
    return train_values(
        np.random.default_rng(seed),
        lambda rng: GRID.mdps(rng.choice(TRAIN, 5)),
        UNIFORM,
        np.zeros(12),
        **settings
    )


def test_training_is_a_lazy_reproducible_generator():
    run = training(1)
    assert isinstance(run, GeneratorType)
    first = list(run)
    second = list(training(1))
    other = list(training(2, iterations=2))
    assert (
        len(first) == 40
        and len(other) == 2
        and np.shape(first[0][0]) == (12,)
        and np.ndim(first[0][1]) == 0
    )
    for (v, error), (w, other_error) in zip(first, second):
        assert (v == w).all() and error == other_error
    assert (first[1][0] != other[1][0]).any()
    assert np.mean([error for _, error in first[-5:]]) < 0.8 * np.mean(
        [error for _, error in first[:5]]
    )


def test_training_descends_the_mean_meta_gradient():
    """What one iteration hands to its optimiser is −∇ of the mean objective over the tasks, and
    what it yields is the error.
    """
    seen = []

    def keep(v, g, state, step_size):
        seen.append(g)
        return v - step_size, state

    ((v, error),) = training(3, iterations=1, steps=2, optimiser=keep, step_size=0.25, lam=0.5)
    rng = np.random.default_rng(3)
    mdps = GRID.mdps(rng.choice(TRAIN, 5))
    values, data = adapt_values(
        rng, mdps, UNIFORM, np.zeros(12), steps=2, step_size=0.3, episodes=4, length=20, lam=0.5
    )
    per_task = grad(
        lambda x: anp.sum(meta_value_objective(x, data, step_size=0.3, discount=0.9, lam=0.5))
    )(np.zeros((5, 12)))
    np.testing.assert_allclose(seen[0], -per_task.sum(0) / 5, atol=1e-15)
    query = data[-1]
    assert error == pytest.approx(
        plain_error(values[-1], query, lambda_returns(values[-1], query, 0.9, 1)).mean(), abs=1e-13
    )
    assert (v == -0.25).all()


def test_meta_learned_values_are_closer_on_held_out_tasks():
    *_, (v, _) = training(1)
    mdps = GRID.mdps(np.repeat(HELD_OUT, 20))
    truth = exact.stationary_values(mdps, UNIFORM)

    def distance(start):
        values, data = adapt_values(
            np.random.default_rng(5),
            mdps,
            UNIFORM,
            start,
            steps=3,
            step_size=0.3,
            episodes=4,
            length=20,
        )
        return np.array([np.sqrt((((w - truth) * ~mdps.terminal) ** 2).mean()) for w in values])

    meta = distance(v)
    zero = distance(np.zeros(12))
    assert (meta < 0.8 * zero).all() and (np.diff(zero) < 0).all()


# ---- bad input


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(steps=-1), "steps"),
        (dict(inner_step_size=np.nan), "step_size"),
        (dict(inner_step_size=np.inf), "step_size"),
        (dict(episodes=0), "episodes"),
        (dict(length=0), "length"),
        (dict(length=61), "steps: 61 is outside"),
    ],
)
def test_bad_input(changes, why):
    with pytest.raises(ValueError, match=why):
        next(training(1, **changes))


def test_bad_policy(rng, tasks):
    with pytest.raises(ValueError, match="^log_pi: .*task 0, state 0"):
        adapt_values(rng, tasks, np.zeros((S, A)), np.zeros(S), steps=1, step_size=0.1, episodes=2)


def test_divergence_names_the_iteration():
    run = training(1, steps=2, inner_step_size=1e120, step_size=1e200)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="^iteration 0: value"):
        next(run)
    run = training(
        1, optimiser=lambda v, g, state, step_size: (v - 1 if v[0] == 0 else v * np.nan, state)
    )
    assert (next(run)[0] == -1).all()
    with pytest.raises(FloatingPointError, match="^iteration 1: value"):
        next(run)


def test_an_optimiser_in_place_changes_nothing_that_was_yielded_before():
    def in_place(v, gradient, state, *, step_size):
        v += step_size * gradient
        return v, state

    tasks = random_tasks(np.random.default_rng(0), 2, 3, 2, 2, horizon=4)
    start = np.zeros(3)
    settings = dict(iterations=3, inner_step_size=0.1, step_size=0.1, steps=1, episodes=4)
    log_pi = np.log(np.full((3, 2), 0.5))

    def trained(optimiser):
        rng = np.random.default_rng(0)
        steps = train_values(rng, lambda rng: tasks, log_pi, start, optimiser=optimiser, **settings)
        return [v for v, _ in steps]

    np.testing.assert_array_equal(trained(in_place), trained(ascent))
    assert not start.any()
