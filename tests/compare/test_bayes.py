"""The Bayes optimum against recursion over histories, and what strategies get beside it."""

from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import sqrt

import numpy as np
import pytest

from metarl_np.compare.bayes import bayes_optimal, dependent_optimal
from metarl_np.compare.strategies import (
    BANDITS,
    play_bandits,
    thompson,
)
from metarl_np.tasks.bandits import dependent, independent


@pytest.mark.parametrize(
    "arms, pulls, total",
    [(2, 10, 6.0217857), (5, 10, 6.6599880), (10, 10, 6.7139512), (50, 10, 6.7139512)],
)
def test_bayes_optimal_figures(arms, pulls, total):
    assert bayes_optimal(arms, pulls) == pytest.approx(total, abs=2e-7)


@pytest.mark.parametrize("arms, pulls", [(1, 1), (1, 4), (2, 1), (2, 5), (3, 4), (4, 2), (2, 7)])
def test_bayes_optimal_by_recursion_over_histories(arms, pulls):
    @lru_cache(None)
    def value(counts, left):  # arms told apart, in fractions
        totals = [0]
        for i, (s, f) in enumerate(counts if left else ()):
            p = Fraction(s + 1, s + f + 2)
            won, lost = (counts[:i] + (new,) + counts[i + 1 :] for new in ((s + 1, f), (s, f + 1)))
            totals.append(p * (1 + value(won, left - 1)) + (1 - p) * value(lost, left - 1))
        return max(totals)

    assert bayes_optimal(arms, pulls) == pytest.approx(
        float(value(((0, 0),) * arms, pulls)), abs=1e-13
    )


@pytest.mark.parametrize("arms, pulls", [(1, 5), (2, 6), (3, 5), (6, 4)])
def test_bayes_optimal_counts_its_states(arms, pulls):
    cells = [(s, f) for s in range(pulls) for f in range(pulls - s)]
    states = {
        tuple(sorted(x))
        for x in product(cells, repeat=min(arms, pulls))
        if sum(map(sum, x)) < pulls
    }
    bayes_optimal(arms, pulls, max_states=len(states))
    with pytest.raises(
        ValueError, match=rf"^arms, pulls: .* need {len(states)} states.* for {pulls - 1} pulls"
    ):
        bayes_optimal(arms, pulls, max_states=len(states) - 1)


def test_bayes_optimal_says_how_far_it_goes():
    for arms, reach in ((2, 81), (5, 23), (10, 20)):
        with pytest.raises(ValueError, match=f"{arms} arms can be solved for {reach} pulls"):
            bayes_optimal(arms, 100)
    with pytest.raises(ValueError, match="^arms, pulls: 50, 500 need more than .* for 20 pulls"):
        bayes_optimal(50, 500)
    with pytest.raises(ValueError, match="2 arms can be solved for 81 pulls"):
        bayes_optimal(2, 10**12)  # whose number of states is no float, and takes long to count


def moments(difficulty, s, f):
    """(∫ p^s (1 − p)^f, and the same with one more p) under the prior of the dependent arms."""
    if difficulty == "uniform":
        grid = (np.arange(200000) + 0.5) / 200000
        return (grid**s * (1 - grid) ** f).mean(), (grid ** (s + 1) * (1 - grid) ** f).mean()
    d = dict(easy=0.1, medium=0.25, hard=0.4)[difficulty]
    p = np.array([d, 1 - d])
    return (p**s * (1 - p) ** f).mean(), (p ** (s + 1) * (1 - p) ** f).mean()


@pytest.mark.parametrize("difficulty", ["uniform", "easy", "medium", "hard"])
def test_dependent_optimum_by_recursion(difficulty):
    """A pull of arm 0 that pays, or of arm 1 that doesn't, is a sign for p; the best arm is sought
    at each step, greedy or not.
    """

    @lru_cache(None)
    def value(s, f, left):
        if not left:
            return 0
        one, more = moments(difficulty, s, f)
        p = more / one
        go_on = p * value(s + 1, f, left - 1) + (1 - p) * value(s, f + 1, left - 1)
        return max(p + go_on, 1 - p + go_on)

    best = dependent_optimal(difficulty, 6)
    assert best.shape == (6,) and best[0] == pytest.approx(0.5) and (np.diff(best) > -1e-12).all()
    np.testing.assert_allclose(np.cumsum(best), [value(0, 0, n) for n in range(1, 7)], atol=1e-8)


def test_dependent_optimum_is_reached_and_not_exceeded(rng):
    """Greedy in the posterior of p, n = 100, 4000 tasks, within 4 standard errors; Thompson
    sampling stays below it.
    """
    means = dependent(rng, 4000).expected_rewards[:, 0]

    def both(rng, a, b, t, _):  # arm 1's failures are arm 0's successes
        p = (a[:, :1] + b[:, 1:] - 1) / (t + 2)
        return np.concatenate([p, 1 - p], 1)

    best = dependent_optimal("uniform", 100).sum()
    for strategy, value, low in ((both, None, -4), (thompson, 1, -np.inf)):
        total = play_bandits(rng, means, 100, strategy, value).sum(0)
        assert low < (total.mean() - best) / (total.std() / sqrt(4000)) < 4


@pytest.mark.parametrize("name", BANDITS)
def test_nobody_beats_the_bayes_optimum(name):
    """k = 5, n = 10, every value of every grid: at most 4 standard errors above it, and the good
    ones close to it.
    """
    strategy, grid = BANDITS[name]
    tasks = 1500 if name == "ots" else 20000
    means = independent(np.random.default_rng(7), tasks, 5).expected_rewards[:, 0]
    for value in grid:
        total = play_bandits(np.random.default_rng(8), means, 10, strategy, value).sum(0)
        above = total.mean() - bayes_optimal(5, 10)
        error = total.std() / sqrt(tasks)
        assert above < 4 * error
        if (name, value) in (("ucb1", 0.1), ("gittins", 0.7)):
            assert above > -0.03 - 4 * error
