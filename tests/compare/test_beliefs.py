"""Model-based meta-learning: fits against likelihoods written out, posteriors against Bayes' rule
by loops, acts against exact returns.
"""

from dataclasses import replace
from itertools import product
from math import lgamma, sqrt

import numpy as np
import pytest
from helpers import all_episodes, chi2_p, random_tasks

from metarl_np.check import finite_differences
from metarl_np import exact
from metarl_np.compare.beliefs import (
    Counts,
    DirichletBelief,
    FiniteBelief,
    Prior,
    counts,
    transitions,
)
from metarl_np.compare.planners import act, mean_plan, sample_plan
from metarl_np.compare.priors import fit_goals, fit_prior, fit_slip
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps


def uniform(mdps):
    return np.full(mdps.shape[1:], -np.log(mdps.shape[2]))


def steps_of(e, task):
    """(s, a, r, s') of the steps that were taken in a task, one by one."""
    for k in range(e.last_states.shape[1]):
        visited = [*e.states[:, task, k], e.last_states[task, k]]
        for t in np.flatnonzero(e.mask[:, task, k]):
            yield int(visited[t]), int(e.actions[t, task, k]), float(e.rewards[t, task, k]), int(
                visited[t + 1]
            )


def with_rubbish(e):
    """The same steps taken, and nonsense in all that is masked but the state in which an episode
    ended.
    """
    after_end = ~e.mask & np.pad(~e.mask, ((1, 0), (0, 0), (0, 0)))[:-1]
    assert after_end.any()
    actions = np.where(e.mask, e.actions, 1)
    rewards = np.where(e.mask, e.rewards, 9)
    return replace(e, states=np.where(after_end, 0, e.states), actions=actions, rewards=rewards)


def test_transitions_against_loops(rng):
    mdps = random_tasks(rng, 3, 4, 2, 2, horizon=5)
    for steps in (3, 5):
        e = rollout(rng, mdps, uniform(mdps), 4, steps=steps)
        want = sorted((i, *step) for i in range(3) for step in steps_of(e, i))
        for episodes in (e, with_rubbish(e)):
            assert sorted(zip(*(x.tolist() for x in transitions(episodes)))) == want


# ---- finitely many candidates


def candidates(rng, n=4):
    """Tasks over the same successors and rewards, so that nothing is certain; state 3 ends in all,
    2 in every other. (0, 0): s' = 1 twice with reward 0 and once with 1. Some outcomes are
    impossible in some, and the starts differ.
    """
    z = np.array(
        [
            [[1, 1, 1, 0], [2, 2, 0, 3]],
            [[0, 2, 3, 3], [1, 1, 0, 2]],
            [[0, 1, 2, 2], [3, 3, 0, 2]],
            [[3] * 4] * 2,
        ]
    )
    r = np.array(
        [
            [[0, 0, 1, 0], [0, 1, 1, 0]],
            [[1, 0, 2, 0], [0, 1, 0, 0]],
            [[1, 0, 0, 0], [0, 1, 0, 0]],
            [[0] * 4] * 2,
        ]
    )
    p = rng.dirichlet(np.ones(4), (n, 4, 2))
    p[0, 0, 1] = 0, 0.5, 0.5, 0
    terminal = np.zeros((n, 4), bool)
    terminal[:, 3] = terminal[1::2, 2] = True
    p[terminal] = np.eye(4)[3]
    start = np.concatenate([rng.dirichlet((1, 1), n), np.zeros((n, 2))], 1)
    return MDP(np.repeat(z[None], n, 0), p, np.repeat(r[None], n, 0), start, terminal, 0.9, 5)


def chance(c, i, s, a, r, after):
    """P_i(s', r | s, a) of candidate i."""
    return sum(
        p
        for p, z, pay in zip(c.probabilities[i, s, a], c.successors[i, s, a], c.rewards[i, s, a])
        if z == after and abs(pay - r) < 1e-4
    )


def bayes(belief, e):
    """Bayes' rule, an episode and a step at a time; a step leaves a state that does not end, and an
    early end is in one that does.
    """
    w = belief.weights.copy()
    c = belief.candidates
    for n, k in np.ndindex(e.last_states.shape):
        one = e.part([k])
        length = e.mask[:, n, k].sum()
        for step in steps_of(one, n):
            w[n] *= [chance(c, i, *step) * (not c.terminal[i, step[0]]) for i in range(len(c))]
            w[n] /= w[n].sum()
        if length < c.horizon:  # else it is the horizon that ended it, wherever it was
            w[n] *= [c.terminal[i, step[3]] == (not e.truncated[n, k]) for i in range(len(c))]
    return w / w.sum(1, keepdims=True)


def test_posterior_against_loops(rng):
    c = candidates(rng)
    truth = c[[2, 1, 3]]
    prior = FiniteBelief(c, rng.dirichlet(np.ones(4), 3))
    cut = rollout(rng, truth, uniform(c), 6, steps=3)
    assert cut.truncated.any() and not cut.truncated.all()
    for episodes in (cut, cut.part([0])):
        np.testing.assert_allclose(
            prior.update(episodes).weights, bayes(prior, episodes), rtol=1e-12, atol=1e-12
        )
    e = with_rubbish(rollout(rng, truth, uniform(c), 6))
    posterior = prior.update(e)
    np.testing.assert_allclose(posterior.weights, bayes(prior, e), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(posterior.weights.sum(1), 1, rtol=1e-14)
    assert (posterior.weights.max(1) > 0.5).all() and (
        posterior.weights[0] != posterior.weights[2]
    ).any()
    one_by_one = prior
    for k in range(6):
        one_by_one = one_by_one.update(e.part(slice(k, k + 1)))
    np.testing.assert_allclose(one_by_one.weights, posterior.weights, rtol=1e-12, atol=1e-12)
    assert prior.update(e.part(slice(0, 0))).weights.tolist() == pytest.approx(prior.weights)


@pytest.mark.parametrize(
    "states, ended, truncated, horizon, weight",
    [
        ([0, 1, 1, 1], 1, False, 3, 1),
        ([0, 1, 1, 1], 3, False, 3, 0),
        ([1, 1], 1, False, 1, 0),
        ([0, 1], 1, True, 3, 0),
        ([0, 1], 1, False, 3, 1),
        ([0, 1], 1, False, 1, 0.5),
        ([0, 1, 1, 1], 3, True, 4, 0),
        ([0, 0], 1, True, 3, 0.5),
    ],
)
def test_an_end_is_evidence(states, ended, truncated, horizon, weight):
    """State 1 is where all steps lead from it and pays nothing; it ends an episode in the second of
    two candidates only. At the horizon every state does.
    """
    mdps = MDP(
        [[[[0, 1]], [[1, 1]]]] * 2,
        np.full((2, 2, 1, 2), 0.5),
        np.zeros((2, 2, 1, 2)),
        [[1, 0]] * 2,
        [[0, 0], [0, 1]],
        0.9,
        horizon,
    )
    column = np.array(states)[:, None, None]
    mask = np.arange(len(states) - 1)[:, None, None] < ended
    e = Episodes(
        column[:-1],
        0 * column[:-1],
        0.0 * column[:-1],
        mask,
        None,
        column[-1],
        np.array([[truncated]]),
    )
    assert FiniteBelief(mdps, np.array([[0.5, 0.5]])).update(e).weights[0, 1] == weight


@pytest.mark.parametrize("slip", [0, 0.3, 1])
def test_posterior_of_goals_against_loops(rng, slip):
    """Walls, bumps, a pit, and a goal that is only seen when it is entered."""
    grid = GridWorld(
        "S.#. .O.. ....", discount=0.9, horizon=9, slip=slip, step_reward=-0.1, bump_penalty=0.3
    )
    c = grid.mdps(grid.free_cells)
    truth = grid.mdps(grid.free_cells[[2, 5, 6]])
    prior = FiniteBelief(c, np.full((3, len(c)), 1 / len(c)))
    e = rollout(rng, truth, uniform(truth), 2)
    for episodes in (e, rollout(rng, truth, uniform(truth), 40)):
        w = prior.update(episodes).weights
        np.testing.assert_allclose(w, bayes(prior, episodes), rtol=1e-12, atol=1e-12)
    assert (w[np.arange(3), [2, 5, 6]] > 0.2).all()
    for n in range(
        3
    ):  # a goal is ruled out where it was passed through, and all are equal that were not
        passed = {s for s, _, _, _ in steps_of(e, n)} | {after for _, _, _, after in steps_of(e, n)}
        w = prior.update(e).weights[n]
        found = e.rewards[:, n].max() > 0.5
        assert [x > 0 for x in w] == (
            [
                g == truth.terminal[n].nonzero()[0][0] or g in (grid.free_cells[[2, 5, 6]][n],)
                for g in grid.free_cells
            ]
            if found
            else [g not in passed for g in grid.free_cells]
        )
        np.testing.assert_allclose(w[w > 0], 1 / (w > 0).sum())


def test_posterior_averages_to_the_prior(rng):
    """E[w'] = w over everything that may be seen when the candidates have the chances w: Bayes'
    rule as a whole.
    """
    c = replace(candidates(rng), horizon=3)
    w = np.array([0.1, 0.4, 0.2, 0.3])
    pi = rng.dirichlet((1, 1), 4)
    start = np.full((4, 4), [0.5, 0.5, 0, 0])  # starts tell nothing: a belief looks at steps
    c = replace(c, start=start)
    chances = []
    paths = []
    for i in range(4):
        for p, path, last in all_episodes(c, i, pi):
            chances.append(w[i] * p)
            paths.append(
                ([*path, *[(last, 0, 0.0)] * (3 - len(path))], np.arange(3) < len(path), last)
            )
    states, actions, rewards = np.array([path for path, _, _ in paths]).T
    mask = np.array([m for _, m, _ in paths]).T
    last = np.array([x for _, _, x in paths])
    e = Episodes(
        *(x[..., None] for x in (states.astype(int), actions.astype(int), rewards, mask)),
        None,
        last[:, None],
        last[:, None] < 0
    )
    posterior = FiniteBelief(c, np.repeat(w[None], len(last), 0)).update(e)
    assert sum(chances) == pytest.approx(1)
    np.testing.assert_allclose(chances @ posterior.weights, w, atol=1e-12)


def test_the_truth_is_never_ruled_out(rng):
    """After 200 episodes of 18 steps, where a likelihood is some 1e-1000, in 40 tasks."""
    grid = GridWorld.open(4, 4, discount=0.9, horizon=18, slip=0.4, step_reward=-0.05)
    truth = np.repeat(np.arange(15), 3)
    mdps = grid.mdps(grid.free_cells[truth])
    belief = FiniteBelief(grid.mdps(grid.free_cells), np.full((45, 15), 1 / 15))
    for _ in range(3):
        belief = belief.update(rollout(rng, mdps, uniform(mdps), 70))
        assert (
            np.isfinite(belief.weights).all() and (belief.weights[np.arange(45), truth] > 0.3).all()
        )


def test_impossible_episodes_are_refused(rng):
    c = candidates(rng)
    e = rollout(rng, c[[0, 2]], uniform(c), 4)
    belief = FiniteBelief(c, np.full((2, 4), 0.25))
    rewards = e.rewards.copy()
    rewards[0, 1, 2] += 0.01
    with pytest.raises(ValueError, match=r"^episodes: .*\(at task 1\)"):
        belief.update(replace(e, rewards=rewards))
    e = rollout(rng, c[[2, 2]], uniform(c), 40)
    with pytest.raises(
        ValueError, match=r"^episodes: .*\(at task 0\)"
    ):  # what the others say cannot happen, the only one left does
        FiniteBelief(c, np.array([[1.0, 0, 0, 0], [0, 0, 1, 0]])).update(e)
    sure = FiniteBelief(c, np.array([[0.5, 0, 0.5, 0], [0, 0, 1, 0]])).update(e)
    assert sure.weights.tolist() == [[0, 0, 1, 0]] * 2


def test_sample_follows_the_weights(rng):
    c = candidates(rng)
    w = np.array([[0.1, 0, 0.3, 0.6], [0, 1, 0, 0]])
    drawn = FiniteBelief(c, np.repeat(w, 4000, 0)).sample(rng)
    assert drawn.shape == (8000, 4, 2) and (drawn.discount, drawn.horizon) == (0.9, 5)
    which = (drawn.probabilities[:, None, 0, 0] == c.probabilities[:, 0, 0]).all(-1).argmax(1)
    assert (
        chi2_p(np.bincount(which[:4000], minlength=4), 4000 * w[0], 2) > 1e-3
        and (which[4000:] == 1).all()
    )
    for name in ("successors", "probabilities", "rewards", "start", "terminal"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(c, name)[which])


def dense(mdps):
    P = np.zeros(mdps.shape + mdps.shape[1:2])
    R = np.zeros(mdps.shape)
    for i, s, a, z in np.ndindex(mdps.successors.shape):
        P[i, s, a, mdps.successors[i, s, a, z]] += mdps.probabilities[i, s, a, z]
        R[i, s, a] += mdps.probabilities[i, s, a, z] * mdps.rewards[i, s, a, z]
    return P, R


def test_mean_against_loops(rng):
    c = candidates(rng)
    w = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0]])
    mean = FiniteBelief(c, w).mean()
    P, R = dense(c)
    got_P, got_R = dense(mean)
    for n, s, a in product(range(3), range(4), range(2)):
        np.testing.assert_allclose(
            got_P[n, s, a], sum(w[n, i] * P[i, s, a] for i in range(4)), atol=1e-15
        )
        assert got_R[n, s, a] == pytest.approx(
            sum(w[n, i] * R[i, s, a] for i in range(4)), abs=1e-15
        )
    np.testing.assert_allclose(
        mean.start, [sum(w[n, i] * c.start[i] for i in range(4)) for n in range(3)]
    )
    # where all surely end
    assert mean.terminal.tolist() == [
        [False] * 3 + [True],
        [False, False, True, True],
        [False] * 3 + [True],
    ]
    assert (mean.discount, mean.horizon) == (0.9, 5)
    one = FiniteBelief(c, np.eye(4)[[2]]).mean()  # a sure belief's mean is that candidate
    np.testing.assert_allclose(
        exact.optimal_values(one)[:, 0], exact.optimal_values(c)[:, 2], atol=1e-14
    )


@pytest.mark.parametrize(
    "weights, why",
    [
        (np.full((2, 3), 1 / 3), "weights: .*shape"),
        (np.full(4, 0.25), "weights: .*shape"),
        (np.full((2, 4), 0.2), "weights: .*probabilities"),
        (np.array([[1.5, -0.5, 0, 0]]), "weights: .*probabilities"),
        (np.array([[np.nan, 0, 0, 1]]), "weights: .*probabilities"),
    ],
)
def test_weights_that_are_none(rng, weights, why):
    with pytest.raises(ValueError, match=why):
        FiniteBelief(candidates(rng), weights)


def test_noisy_candidates_are_refused(rng):
    with pytest.raises(ValueError, match="^candidates: .*noise"):
        FiniteBelief(replace(candidates(rng), reward_noise=[0, 0, 0.1, 0]), np.full((1, 4), 0.25))


# ---- what the tasks of a GridWorld family have in common


def slip_likelihood(grid, goals, e):
    """p → the log-likelihood of a slip probability p, step by step with the rule of the moves."""
    h, w = grid.shape
    tally = {}

    def move(s, dr, dc):
        row = s // w + dr
        column = s % w + dc
        inside = 0 <= row < h and 0 <= column < w and grid.layout[row][column] != "#"
        return row * w + column if inside else s

    for task in range(len(goals)):
        for s, a, _, after in steps_of(e, task):
            straight = ((-1, 0), (1, 0), (0, -1), (0, 1))[a]
            turns = ((0, 1), (0, -1)) if straight[0] else ((1, 0), (-1, 0))
            kind = move(s, *straight) == after, sum(move(s, *turn) == after for turn in turns)
            tally[kind] = tally.get(kind, 0) + 1
    assert len(tally) > 1
    return lambda p: sum(
        n * np.log(np.maximum((1 - p) * kind[0] + p / 2 * kind[1], 1e-300))
        for kind, n in tally.items()
    )


@pytest.mark.parametrize("slip", [0, 0.1, 2 / 3, 1])
@pytest.mark.parametrize("layout", ["S... .... ....", "S.#. .#.. ...O", "S.. ### ..."])
def test_slip_is_the_maximum_of_its_likelihood(rng, slip, layout):
    grid = GridWorld(layout, discount=0.9, horizon=12, slip=slip)
    goals = grid.free_cells[[1, -1, -2]]
    e = rollout(rng, grid.mdps(goals), np.full((len(layout.replace(" ", "")), 4), -np.log(4)), 150)
    if (~e.mask).any():
        e = with_rubbish(e)
    log_likelihood = slip_likelihood(grid, goals, e)
    p = np.linspace(0, 1, 2001)
    on_grid = log_likelihood(p)
    # the slip of the grid itself counts for nothing
    found = fit_slip(replace(grid, slip=0.77), goals, e)
    assert (
        log_likelihood(found) >= on_grid.max() - 1e-9 and abs(found - p[on_grid.argmax()]) <= p[1]
    )
    if slip in (0, 1):
        assert found == pytest.approx(slip, abs=1e-6)
    else:
        h = 1e-3
        error = 1 / sqrt(
            -(log_likelihood(slip + h) - 2 * log_likelihood(slip) + log_likelihood(slip - h)) / h**2
        )
        assert abs(found - slip) < 4 * error < 0.15


def test_slip_of_impossible_episodes(rng):
    grid = GridWorld.open(3, 3, discount=0.9, horizon=5)
    mdps = grid.mdps([8])
    e = rollout(rng, mdps, uniform(mdps), 3)
    with pytest.raises(ValueError, match="^episodes"):
        fit_slip(grid, [8], replace(e, last_states=(e.states[-1] + 4) % 9))
    with pytest.raises(ValueError, match="^episodes"):
        fit_slip(grid, [8], replace(e, mask=np.zeros_like(e.mask)))


def test_goals_by_hand():
    grid = GridWorld("S.. .#G", discount=0.9, horizon=5)  # free: 1, 2, 3 and 5
    np.testing.assert_allclose(fit_goals(grid, [1, 1, 5]), np.array([3, 1, 1, 2]) / 7)
    np.testing.assert_allclose(fit_goals(grid, np.array([3])), np.array([1, 1, 2, 1]) / 5)


# ---- Dirichlet transitions and Gaussian rewards


def test_counts_against_loops(rng):
    mdps = random_tasks(rng, 3, 4, 2, 2, horizon=5, reward_noise=0.5)
    e = with_rubbish(rollout(rng, mdps, uniform(mdps), 20))
    c, n, total, squares = np.zeros((3, 4, 2, 4)), *np.zeros((3, 3, 4, 2))
    for i in range(3):
        for s, a, r, after in steps_of(e, i):
            c[i, s, a, after] += 1
            n[i, s, a] = n[i, s, a] + 1
            total[i, s, a] = total[i, s, a] + r
            squares[i, s, a] = squares[i, s, a] + r**2
    for got, want in zip(counts(mdps.shape, e), (c, n, total, squares)):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-13)


def polya(alpha, c):
    """log ∫ Π p_z^c_z Dirichlet(p; α) dp of counts c (S,) with a parameter for each: Γ(Σα)/Γ(Σα +
    n) Π Γ(α + c)/Γ(α).
    """
    return (
        lgamma(sum(alpha))
        - lgamma(sum(alpha) + sum(c))
        + sum(lgamma(x + y) - lgamma(x) for x, y in zip(alpha, c))
    )


def reward_likelihood(groups, mean, std, noise):
    """Σ log N(r; mean · 1, std² 1 1ᵀ + noise² I) over the rewards r of each state and action,
    densely.
    """
    total = 0.0
    for r in groups:
        cov = std**2 + noise**2 * np.eye(len(r))
        total -= 0.5 * (
            np.linalg.slogdet(cov)[1]
            + (r - mean) @ np.linalg.solve(cov, r - mean)
            + len(r) * np.log(2 * np.pi)
        )
    return total


def rewards_by_pair(e):
    groups = {}
    for i in range(e.states.shape[1]):
        for s, a, r, _ in steps_of(e, i):
            groups.setdefault((i, s, a), []).append(r)
    return [np.array(r) for r in groups.values()]


def test_fitted_prior_maximises_the_likelihoods_written_out(rng):
    mdps = random_mdps(rng, 6, 4, 2, horizon=6, reward_mean=-1, reward_std=0.7, reward_noise=1.5)
    e = rollout(rng, mdps, uniform(mdps), 12)
    seen = counts(mdps.shape, e)
    prior = fit_prior(*seen)

    def transition_likelihood(alpha):
        return sum(polya([alpha] * 4, c) for c in seen[0].reshape(-1, 4))

    alpha = prior.concentration
    best = transition_likelihood(prior.concentration)
    assert all(transition_likelihood(a) <= best + 1e-9 for a in np.geomspace(1e-2, 1e2, 200))
    assert abs(
        transition_likelihood(alpha * 1.001) - transition_likelihood(alpha / 1.001)
    ) < 1e-7 * abs(best)
    groups = rewards_by_pair(e)
    found = np.array([prior.mean, prior.std, prior.noise])
    assert max(map(len, groups)) > 5
    best = reward_likelihood(groups, *found)
    for i, h in product(range(3), (0.01, 0.05)):
        up, down = (reward_likelihood(groups, *(found + x * np.eye(3)[i])) for x in (h, -h))
        assert max(up, down) < best
    np.testing.assert_allclose(
        finite_differences(lambda x: reward_likelihood(groups, *x), found), 0, atol=1e-4
    )


@pytest.mark.parametrize("alpha, mean, std, noise", [(1, 1, 1, 1), (0.3, -2, 0.5, 2)])
def test_fitted_prior_recovers_what_made_the_tasks(rng, alpha, mean, std, noise):
    """Within five standard errors: of a mean and a standard deviation, and for α what the curvature
    of its likelihood says.
    """
    n = 60
    s = 5
    a = 3
    mdps = random_mdps(
        rng, n, s, a, horizon=10, reward_mean=mean, reward_std=std, reward_noise=noise
    )
    if alpha != 1:
        mdps = MDP.from_dense(
            rng.dirichlet([alpha] * s, (n, s, a)),
            mdps.expected_rewards,
            0,
            discount=1,
            horizon=10,
            reward_noise=noise,
        )
    seen = counts(mdps.shape, rollout(rng, mdps, uniform(mdps), 100))
    prior = fit_prior(*seen)
    pairs = n * s * a
    steps = 1000 * n
    assert abs(prior.mean - mean) < 5 * std / sqrt(pairs) + 0.05 * noise * sqrt(pairs / steps)
    assert abs(prior.std - std) < 6 * std / sqrt(2 * pairs) and abs(
        prior.noise - noise
    ) < 5 * noise / sqrt(2 * steps)
    rows = seen[0].reshape(-1, s)
    h = 0.01
    low, middle, high = (
        sum(polya([x] * s, c) for c in rows) for x in (alpha - h, alpha, alpha + h)
    )
    assert abs(prior.concentration - alpha) < 5 / sqrt((2 * middle - low - high) / h**2) < 0.2


def test_prior_of_deterministic_tasks_is_finite_and_can_be_sampled(rng):
    """α falls to its bound, the deviations to theirs, and neither leads to a NaN."""
    successors = rng.integers(3, size=(20, 3, 2, 1))
    for rewards in (np.zeros((20, 3, 2, 1)), rng.normal(size=(20, 3, 2, 1))):
        mdps = MDP(
            successors,
            np.ones((20, 3, 2, 1)),
            rewards,
            [[1, 0, 0]] * 20,
            np.zeros((20, 3), bool),
            1,
            5,
        )
        e = rollout(rng, mdps, uniform(mdps), 50)
        prior = fit_prior(*counts(mdps.shape, e))
        assert (
            prior.concentration == pytest.approx(1e-3)
            and 0 < prior.noise < 1e-5
            and np.isfinite([prior.mean, prior.std]).all()
        )
        belief = DirichletBelief(prior, mdps)
        assert belief.sample(rng).shape == (20, 3, 2)
        sampled = belief.update(e).sample(rng)
        seen = counts(mdps.shape, e)[1] > 0
        np.testing.assert_allclose(
            sampled.expected_rewards[seen], mdps.expected_rewards[seen], atol=1e-4
        )


def test_a_prior_needs_a_pair_seen_twice(rng):
    mdps = random_mdps(rng, 2, 3, 2)
    with pytest.raises(ValueError, match="^visits: "):
        fit_prior(*counts(mdps.shape, rollout(rng, mdps, uniform(mdps), 1, steps=1)))


def rewards_and_counts(e):
    """{(task, s, a): rewards} and how often s' followed, (2, 4, 2, 4), by counting."""
    rewards = {}
    c = np.zeros((2, 4, 2, 4))
    for i in range(2):
        for s, a, r, after in steps_of(e, i):
            rewards.setdefault((i, s, a), []).append(r)
            c[i, s, a, after] += 1
    return rewards, c


def test_dirichlet_posterior_exact(rng):
    """P(s' | all seen) is a ratio of marginal likelihoods; the mean reward is conditioned on the
    rewards in a dense joint normal.
    """
    mdps = random_tasks(rng, 2, 4, 2, 2, horizon=6, reward_noise=0.8)
    prior = Prior(0.6, -1.0, 0.7, 0.8)
    e = with_rubbish(rollout(rng, mdps, uniform(mdps), 16))
    belief = DirichletBelief(prior, mdps).update(e)
    alpha, mean, variance = belief.posterior()
    predictive, mean_rewards = dense(belief.mean())[:2]
    known = np.where(mdps.terminal[..., None], 0, mean)
    np.testing.assert_allclose(mean_rewards, known, atol=1e-14)
    rewards, c = rewards_and_counts(e)
    assert 0 < len(rewards) < 16  # terminal states are never left
    assert max(map(len, rewards.values())) > 2
    for place in np.ndindex(2, 4, 2):
        assert (alpha[place] == 0.6 + c[place]).all()
        if not mdps.terminal[place[:2]]:
            before = polya([0.6] * 4, c[place])
            for z in range(4):
                after = polya([0.6] * 4, c[place] + np.eye(4)[z])
                assert predictive[place][z] == pytest.approx(np.exp(after - before), abs=1e-12)
        r = np.array(rewards.get(place, []))
        joint = 0.7**2 + np.diag([0] + [0.8**2] * len(r))  # of (m, r_1, …, r_n)
        weights = np.linalg.solve(joint[1:, 1:], joint[1:, 0])
        assert mean[place] == pytest.approx(-1 + weights @ (r + 1), abs=1e-12)
        assert variance[place] == pytest.approx(joint[0, 0] - weights @ joint[1:, 0], abs=1e-12)


def test_dirichlet_posterior_is_the_same_episode_by_episode(rng):
    mdps = random_tasks(rng, 2, 4, 2, 2, horizon=6, reward_noise=0.8)
    e = rollout(rng, mdps, uniform(mdps), 16)
    nothing = DirichletBelief(Prior(0.6, -1.0, 0.7, 0.8), mdps)
    one_by_one = nothing
    for k in range(16):
        one_by_one = one_by_one.update(e.part(slice(k, k + 1)))
    for got, want in zip(one_by_one.posterior(), nothing.update(e).posterior()):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("of", ["mean", "sample"])
def test_what_is_known_to_end_ends_in_every_model_and_pays_nothing(rng, of):
    mdps = random_tasks(rng, 2, 4, 2, 2, horizon=6, reward_noise=0.8)
    belief = DirichletBelief(Prior(0.6, -1.0, 0.7, 0.8), mdps)
    model = belief.mean() if of == "mean" else belief.sample(rng)
    assert (model.terminal == mdps.terminal).all()


def test_belief_before_anything_is_seen_is_the_prior(rng):
    alpha, mean, variance = DirichletBelief(
        Prior(0.5, 2.0, 3.0, 1.0), random_mdps(rng, 2, 3, 2)
    ).posterior()
    assert alpha.shape == (2, 3, 2, 3) and mean.shape == variance.shape == (2, 3, 2)
    assert (
        (alpha == 0.5).all()
        and mean == pytest.approx(np.full((2, 3, 2), 2))
        and variance == pytest.approx(np.full((2, 3, 2), 9))
    )


def test_dirichlet_sample_has_the_moments_of_the_posterior(rng):
    """Mean and second moments of P and of the mean reward: 4000 draws, five standard errors."""
    one = random_mdps(rng, 1, 3, 2, horizon=7, discount=0.8)
    belief = DirichletBelief(Prior(0.4, 1.0, 0.5, 1.0), one).update(
        rollout(rng, one, uniform(one), 2)
    )
    alpha, mean, variance = (x[0] for x in belief.posterior())
    many = replace(
        belief, like=one[[0] * 4000], seen=Counts(*(np.repeat(x, 4000, 0) for x in belief.seen))
    ).sample(rng)
    P = np.zeros((4000, 3, 2, 3))
    R = many.expected_rewards
    np.put_along_axis(P, many.successors, many.probabilities, -1)
    a0 = alpha.sum(-1, keepdims=True)
    for power, moment in ((1, alpha / a0), (2, alpha * (alpha + 1) / (a0 * (a0 + 1)))):
        assert (abs((P**power).mean(0) - moment) < 5 * (P**power).std(0) / sqrt(4000)).all()
    both = alpha[..., 0] * alpha[..., 1] / (a0 * (a0 + 1))[..., 0]
    assert (
        abs((P[..., 0] * P[..., 1]).mean(0) - both)
        < 5 * (P[..., 0] * P[..., 1]).std(0) / sqrt(4000)
    ).all()
    assert (abs(R.mean(0) - mean) < 5 * np.sqrt(variance / 4000)).all()
    assert (abs(R.std(0) - np.sqrt(variance)) < 5 * np.sqrt(variance / 8000)).all() and np.ptp(
        variance
    ) > 0.02
    assert (many.horizon, many.discount) == (7, 0.8) and (many.start == one.start).all()


# ---- acting


GRID = GridWorld.open(3, 4, discount=0.95, horizon=9, slip=0.15)
EDGE = np.array([3, 7, 8, 9, 10, 11])  # where the goals of the family are


def grid_belief(n, grid=GRID, prior=None):
    prior = np.isin(GRID.free_cells, EDGE) / len(EDGE) if prior is None else prior
    return FiniteBelief(grid.mdps(grid.free_cells), np.repeat(prior[None], n, 0))


def test_act_plans_optimally_in_the_mean_or_in_a_candidate(rng):
    c = candidates(rng)
    belief = FiniteBelief(c, np.full((6, 4), 0.25))
    truth = c[[0, 1, 2, 3, 0, 1]]
    for value, log_pi, before in act(rng, truth, belief, episodes=3, plan=mean_plan):
        mean = before.mean()
        np.testing.assert_allclose(
            exact.expected_return(mean.with_time(), log_pi), exact.optimal_return(mean), atol=1e-12
        )
        np.testing.assert_allclose(
            value, exact.expected_return(truth.with_time(), log_pi), atol=1e-12
        )
    plans = set()
    for value, log_pi, before in act(rng, truth, belief, episodes=12):
        returns = np.array(
            [exact.expected_return(c[[i] * 6].with_time(), log_pi) for i in range(4)]
        )
        optimal = returns > exact.optimal_return(c)[:, None] - 1e-12
        assert (optimal & (before.weights.T > 0)).any(0).all()
        np.testing.assert_allclose(
            value, exact.expected_return(truth.with_time(), log_pi), atol=1e-12
        )
        plans |= set(optimal.nonzero()[0])
    assert len(plans) > 1  # not the most likely one, or the mean, each time


def assert_dirichlet_posterior(belief, steps):
    """Of three tasks of three states and two actions, under a prior of ones."""
    alpha, mean, _ = belief.posterior()
    want_alpha = np.ones((3, 3, 2, 3))
    n = np.zeros((3, 3, 2))
    total = np.zeros((3, 3, 2))
    for i, state, a, r, after in steps:
        want_alpha[i, state, a, after] += 1
        n[i, state, a] += 1
        total[i, state, a] += r
    np.testing.assert_allclose(alpha, want_alpha)
    np.testing.assert_allclose(mean, (total + 1) / (n + 1), atol=1e-12)


@pytest.mark.parametrize("kind", ["finite", "dirichlet"])
def test_act_learns_from_the_episode_that_its_policy_made(kind):
    """Planning in the mean draws no number, so the episodes can be made again, and their steps put
    together by loops.
    """
    rng = np.random.default_rng(7)
    again = np.random.default_rng(7)
    setup = np.random.default_rng(1)
    mdps = GRID.mdps([3, 8, 11]) if kind == "finite" else random_mdps(setup, 3, 3, 2, horizon=4)
    first = grid_belief(3) if kind == "finite" else DirichletBelief(Prior(1.0, 1.0, 1.0, 1.0), mdps)
    s = mdps.shape[1]
    log_c = np.zeros((3, len(GRID.free_cells)))
    steps = []
    for _, log_pi, belief in act(rng, mdps, first, episodes=4, plan=mean_plan):
        if kind == "finite":
            w = first.weights * np.exp(log_c)
            np.testing.assert_allclose(belief.weights, w / w.sum(1, keepdims=True), atol=1e-12)
        else:
            assert_dirichlet_posterior(belief, steps)
        e = rollout(again, mdps.with_time(), log_pi, 1)
        for i in range(3):
            for clock_state, a, r, after in steps_of(e, i):
                step = clock_state % s, a, r, after % s
                steps.append((i, *step))
                if kind == "finite":
                    with np.errstate(divide="ignore"):
                        log_c[i] += np.log(
                            [
                                chance(first.candidates, c, *step)
                                for c in range(len(GRID.free_cells))
                            ]
                        )
    assert len(steps) > 12


def test_exact_return_agrees_with_sampled_returns(rng):
    """Of three policies, 4000 episodes a task, within 4.5 standard errors, or five episodes where a
    goal is hardly ever reached.
    """
    mdps = GRID.mdps(EDGE)
    for value, log_pi, _ in act(rng, mdps, grid_belief(len(EDGE)), episodes=3):
        e = rollout(rng, mdps.with_time(), log_pi, 4000)
        returns = np.tensordot(0.95 ** np.arange(9), e.rewards * e.mask, 1)
        assert (abs(returns.mean(1) - value) <= 4.5 * returns.std(1) / sqrt(4000) + 5 / 4000).all()
        assert (value <= exact.optimal_return(mdps) + 1e-12).all()


@pytest.mark.parametrize("plan", [sample_plan, mean_plan])
def test_fitted_prior_acts_as_well_as_the_true_one_in_grids(rng, plan):
    """Fitted on 60 tasks; 25 new draws of each goal, episode by episode within 4 standard errors of
    the difference plus 2%, which is left to the goals that the flat prior keeps possible though no
    task of the family has them. (The mean plan's first episodes hang on which goals happen to be
    the likelier, because in a mean model a goal pays its share again at each visit.)
    """
    goals = rng.choice(EDGE, 60)
    training = rollout(rng, GRID.mdps(goals), np.full((12, 4), -np.log(4)), 30)
    fitted = replace(GRID, slip=fit_slip(replace(GRID, slip=0), goals, training))
    mdps = GRID.mdps(np.repeat(EDGE, 25))
    best = exact.optimal_return(mdps)
    beliefs = grid_belief(150), grid_belief(150, fitted, fit_goals(GRID, goals))
    true, learned = (
        np.array([value / best for value, *_ in act(rng, mdps, b, episodes=10, plan=plan)])
        for b in beliefs
    )
    error = np.sqrt((true.var(1) + learned.var(1)) / 150)
    close = abs(true.mean(1) - learned.mean(1)) < 4 * error + 0.02
    assert close[4 if plan is mean_plan else 0 :].all()
    for ratio in true, learned:
        assert ratio[0].mean() < 0.85 and ratio[-1].mean() > 0.97


def test_fitted_prior_acts_as_well_as_the_true_one_in_random_mdps(rng):
    """PSRL with the prior fitted on 40 training tasks, episode by episode within 4 standard errors
    of the difference.
    """
    train = random_mdps(rng, 40, 4, 3, horizon=6)
    mdps = random_mdps(rng, 200, 4, 3, horizon=6)
    fitted = fit_prior(*counts(train.shape, rollout(rng, train, uniform(train), 60)))
    true, learned = (
        np.array([value for value, *_ in act(rng, mdps, DirichletBelief(prior, mdps), episodes=12)])
        for prior in (Prior(1.0, 1.0, 1.0, 1.0), fitted)
    )
    paired = true - learned
    assert (abs(paired.mean(1)) < 4 * paired.std(1) / sqrt(200)).all()
    best = exact.optimal_return(mdps)
    assert (true[0] / best).mean() < 0.7 * (true[-1] / best).mean()


def test_posterior_concentrates_on_the_truth(rng):
    truth = np.repeat(np.arange(len(GRID.free_cells)), 10)
    mdps = GRID.mdps(GRID.free_cells[truth])
    prior = np.full(len(GRID.free_cells), 1 / len(GRID.free_cells))
    run = list(act(rng, mdps, grid_belief(len(mdps), prior=prior), episodes=25))
    on_truth = np.array(
        [belief.weights[np.arange(len(mdps)), truth].mean() for _, _, belief in run]
    )
    assert (
        on_truth[0] == pytest.approx(1 / 11)
        and on_truth[-1] > 0.95
        and (np.diff(on_truth) > -1e-12).all()
    )
    assert (run[-1][0] / exact.optimal_return(mdps)).mean() > 0.95


def test_psrl_on_random_mdps_earns_its_published_kind_of_return():
    """10 states, 5 actions, 10 episodes of 10 steps, the true prior: 134.5 ± .8 over 1000 MDPs,
    computed elsewhere (Duan et al. 2016, Table 2, print 138.1); 300 here, within 4 standard errors
    of the difference.
    """
    rng = np.random.default_rng(0)
    mdps = random_mdps(rng, 300)
    total = np.sum(
        [
            value
            for value, *_ in act(
                rng, mdps, DirichletBelief(Prior(1.0, 1.0, 1.0, 1.0), mdps), episodes=10
            )
        ],
        0,
    )
    assert abs(total.mean() - 134.5) < 4 * sqrt(total.var() / 300 + 0.8**2)


def test_act_follows_any_plan_that_it_is_handed(rng):
    """One that goes nowhere but down, told so by the belief before each episode, and with the
    caller's generator.
    """
    mdps = GRID.mdps(EDGE)
    seen = []

    def down(given, belief):
        seen.append(belief)
        assert given is rng
        return np.broadcast_to(np.where(np.arange(4) == 1, 0.0, -np.inf), mdps.with_time().shape)

    for value, log_pi, belief in act(rng, mdps, grid_belief(len(EDGE)), episodes=3, plan=down):
        assert belief is seen[-1]
        np.testing.assert_allclose(value, exact.expected_return(mdps, log_pi[:, :12]), atol=1e-14)
    assert len(seen) == 3 and (seen[0].weights != seen[2].weights).any()


def test_act_is_reproducible_and_lazy():
    mdps = GRID.mdps(EDGE)
    a, b, c = (
        act(np.random.default_rng(seed), mdps, grid_belief(len(EDGE)), episodes=4)
        for seed in (1, 1, 2)
    )
    first = next(a)
    second = next(b)
    other = next(c)
    assert (
        (first[1] == second[1]).all()
        and (first[1] != other[1]).any()
        and (first[0] == second[0]).all()
    )
    assert len(list(a)) == 3 and list(act(None, mdps, None, episodes=0)) == []
