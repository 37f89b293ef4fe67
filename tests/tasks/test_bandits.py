"""Bandits: the tables against what was asked for, and the means' distributions against their
definitions.
"""

import numpy as np
import pytest
from helpers import chi2_p

from metarl_np.learner.rollouts import step, successor_table
from metarl_np.tasks.bandits import DEPENDENT, bernoulli, dependent, independent, informative

STATISTICAL = 1e-3  # smallest p-value that passes; the seeds are fixed


def means_of(mdps):
    """P(reward 1) of every arm, read from the successors: (N, k)."""
    n, _, k, z = mdps.successors.shape
    means = np.zeros((n, k))
    for i, a, j in np.ndindex(n, k, z):
        assert mdps.rewards[i, 0, a, j] in (0, 1) and mdps.successors[i, 0, a, j] == 0
        means[i, a] += mdps.probabilities[i, 0, a, j] * mdps.rewards[i, 0, a, j]
    return means


def test_a_pull_is_an_episode():
    means = np.array([[0.2, 0.9, 0], [1, 0.5, 0.25]])
    mdps = bernoulli(means)
    assert mdps.shape == (2, 1, 3) and mdps.horizon == 1 and mdps.discount == 1
    assert not mdps.terminal.any() and not mdps.reward_noise.any() and (mdps.start == 1).all()
    np.testing.assert_allclose(means_of(mdps), means, rtol=1e-15)
    np.testing.assert_allclose(mdps.expected_rewards[:, 0], means, rtol=1e-15)
    # integers and lists are welcome
    np.testing.assert_array_equal(means_of(bernoulli([[0, 1]])), [[0, 1]])


def test_rewards_come_as_often_as_they_should(rng):
    means = np.array([0.2, 0.9, 0, 1])
    draws = 20_000
    mdps = bernoulli(np.tile(means, (draws, 1)))
    for a, p in enumerate(means):
        rewards, after = step(
            rng, mdps, successor_table(mdps), np.zeros(draws, int), np.full(draws, a)
        )
        assert set(rewards) <= {0.0, 1.0} and not after.any()
        assert abs(rewards.mean() - p) <= 4 * np.sqrt(p * (1 - p) / draws)


def test_independent_arms_are_uniform_and_independent(rng):
    means = means_of(independent(rng, 10_000, 3))
    assert means.shape == (10_000, 3)
    for column in means.T:
        assert (
            chi2_p(np.bincount((column * 20).astype(int), minlength=20), np.full(20, 500), 19)
            > STATISTICAL
        )
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = np.bincount(
            (means[:, a] * 5).astype(int) * 5 + (means[:, b] * 5).astype(int), minlength=25
        )
        assert chi2_p(pairs, np.full(25, 400), 24) > STATISTICAL


@pytest.mark.parametrize("difficulty, p", [("easy", 0.1), ("medium", 0.25), ("hard", 0.4)])
def test_dependent_arms_are_p_and_its_rest_in_random_order(rng, difficulty, p):
    means = means_of(dependent(rng, 4000, difficulty))
    np.testing.assert_allclose(np.sort(means, 1), np.tile([p, 1 - p], (4000, 1)), rtol=1e-15)
    assert abs((means[:, 0] < 0.5).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_dependent_uniform_arms(rng):
    for means in (means_of(dependent(rng, 10_000)), means_of(dependent(rng, 10_000, "uniform"))):
        np.testing.assert_allclose(means.sum(1), 1, rtol=1e-15)
        assert (
            chi2_p(np.bincount((means[:, 0] * 20).astype(int), minlength=20), np.full(20, 500), 19)
            > STATISTICAL
        )


@pytest.mark.parametrize("difficulty", [None, "uniform", *DEPENDENT])
def test_seeds(difficulty):
    rngs = [np.random.default_rng(seed) for seed in (3, 3, 4)]
    one, again, other = (
        (dependent(rng, 8, difficulty) if difficulty else independent(rng, 5, 3)).probabilities
        for rng in rngs
    )
    assert one.tobytes() == again.tobytes() and one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "means, message",
    [
        ([[0.5, -0.1]], "means: .*task 0, arm 1"),
        ([[0.5, 0.5], [1.0001, 0.5]], "means: .*task 1, arm 0"),
        ([[np.nan, 0.5]], "means: .*task 0, arm 0"),
        ([[np.inf]], "means"),
        ([0.5, 0.5], r"means: expected shape \(N, k\)"),
        ([[[0.5]]], "means: expected"),
        (0.5, "means: expected"),
        (np.zeros((3, 0)), "means: expected"),
        (np.zeros((0, 3)), "means: expected"),
    ],
)
def test_means_that_are_none_are_named(means, message):
    with pytest.raises(ValueError, match=message):
        bernoulli(means)


def test_bad_input_is_named(rng):
    for arms in (0, -2):
        with pytest.raises(ValueError, match="arms"):
            independent(rng, 3, arms)
    for difficulty in ("impossible", "", None):
        with pytest.raises(ValueError, match="difficulty.*easy, medium, hard"):
            dependent(rng, 3, difficulty)


def test_informative_arms_pay_what_wang_et_al_say():
    mdps = informative()
    payoffs = mdps.expected_rewards[:, 0]
    assert mdps.shape == (10, 1, 11) and (mdps.discount, mdps.horizon) == (1, 1)
    for n, row in enumerate(payoffs.tolist()):
        expected = [1.1] * 10 + [(n + 1) / 10]
        expected[n] = 5.0
        assert row == expected
    np.testing.assert_array_equal(informative([7, 7, 0]).rewards, mdps[[7, 7, 0]].rewards)


@pytest.mark.parametrize("targets", [[10], [0, -1], [1.0], [], [[1]], "1"])
def test_targets_that_are_none_are_named(targets):
    with pytest.raises(ValueError, match="^targets: "):
        informative(targets)
