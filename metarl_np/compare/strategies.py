"""Classical strategies for Bernoulli bandits, played in N of them at once.

A strategy gives an index of each arm, (N, k), and the arm of highest index is pulled. It is called
as strategy(rng, a, b, t, value): a, b (N, k) are the posteriors Beta(a, b) of the arms after t
pulls, and `value` is its one hyperparameter. BANDITS has the grid of it beside each strategy.
"""

from functools import lru_cache
from typing import Callable, NamedTuple

import numpy as np

from metarl_np.arguments import require, require_array, require_floats, require_memory, validate


class Strategy(NamedTuple):
    """A strategy, and the values of its hyperparameter to choose from."""

    index: Callable
    grid: tuple


def tune(rng, play, grid):
    """The value in `grid` with the highest mean total, and all of them: (value, {value: mean}).

    play(rng, value) → earned (n, N) on tuning tasks; each value is given the same random numbers.
    """
    rng, play = validate(rng=rng, play=play)
    listed = isinstance(grid, (list, tuple, np.ndarray)) and np.ndim(grid) > 0
    require(listed, "grid", f"expected a list of values, got {grid!r:.99}")
    require(len(grid) > 0, "grid", "no value to choose from")
    seed = rng.integers(2**63)
    means = {}
    for value in grid:
        earned = play(np.random.default_rng(seed), value)
        means[value] = float(np.sum(earned, 0).mean())
    return max(means, key=means.get), means


def play_bandits(rng, means, pulls, strategy, value, *, random_ties=False):
    """The means of the pulled arms over n = `pulls` pulls in N bandits: means (N, k) → (n, N).

    An arm starts from one success and one failure, a = b = 1: the prior U[0, 1]. Of equal arms the
    first is pulled, or a random one, which explores more: greedy gets 77.7 or 79.1 at n = 100, k =
    10, where Duan et al. (2016) print 77.1. Raises ValueError on means that are no probabilities.
    """
    strategy, pulls = validate(strategy=strategy, pulls=pulls)
    means = require_floats("means", means, traced=False)
    two_axes = f"expected shape (N, k), not empty, got {means.shape}"
    require(means.ndim == 2 and means.size, "means", two_axes)
    require((means >= 0) & (means <= 1), "means", "not a probability", ("task", "arm"))
    require_memory(8, pulls, len(means))
    task = np.arange(len(means))
    a = np.ones(means.shape)
    b = np.ones(means.shape)
    earned = np.empty((pulls, len(means)))
    for t in range(pulls):
        index = require_array("strategy: its index", strategy(rng, a, b, t, value), means.shape)
        arm = (index + 1e-9 * random_ties * rng.random(index.shape)).argmax(1)
        earned[t] = means[task, arm]
        wins = rng.random(len(means)) < earned[t]
        a[task, arm] += wins
        b[task, arm] += ~wins
    return earned


def _counts(a, b):
    """The parameters of Beta(a, b) as floats (N, k); raises ValueError if they are none."""
    a = require_floats("a", a, traced=False)
    require(a.ndim == 2, "a", f"expected shape (N, k), got {a.shape}")
    b = require_floats("b", b, a.shape, traced=False)
    for name, x in (("a", a), ("b", b)):
        require((x > 0) & (x < np.inf), name, "not finite and above 0", ("task", "arm"))
    return a, b


def egreedy(rng, a, b, t, epsilon):
    """The mean a/(a + b), but with probability ε random numbers: (N, k).

    ε = 0 is greedy, ε = 1 random.
    """
    epsilon = validate(epsilon=epsilon)
    a, b = _counts(a, b)
    explores = rng.random((len(a), 1)) < epsilon
    return np.where(explores, rng.random(a.shape), a / (a + b))


def ucb1(rng, a, b, t, c):
    """a/(a + b) + c √(2 log t / (a + b)), t = 1, 2, …: (N, k). Auer et al. (2002).

    As in Duan et al. (2016) the prior's counts count as pulls.
    """
    t, c = validate(t=t, c=c)
    a, b = _counts(a, b)
    return a / (a + b) + c * np.sqrt(2 * np.log(float(t) + 1) / (a + b))


def thompson(rng, a, b, t, samples):
    """A posterior sample (Thompson 1933), or of several, each of all arms, the densest: (N, k).

    The density is Π_i Beta(x_i; a_i, b_i). That is what gives the OTS of Duan et al. (2016); to
    raise samples to the mean (May et al. 2012) gives .5 less at n = 10 and 2 or 3 at n = 100.
    """
    samples = validate(samples=samples)
    a, b = _counts(a, b)
    x = rng.beta(a, b, (samples,) + a.shape).clip(1e-300, 1 - 1e-16)
    log_density = ((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)).sum(-1)
    return x[log_density.argmax(0), np.arange(len(a))]


def gittins_index(discount, pulls):
    """The Gittins index λ of an arm after s successes and f failures: (pulls, pulls) by s and f.

    For s + f < `pulls`, NaN elsewhere; right to about 1e-4. An income of λ for ever is as good as
    going on with the arm: V = max(E[r + γV(s', f')], λ/(1 − γ)), solved backwards for a grid of λ
    from 4/(1 − γ) pulls later, where the mean counts as known. Gittins (1979); Gittins, Glazebrook
    & Weber (2011), ch. 8. Raises ValueError for γ above .999.
    """
    discount, pulls = validate(discount=discount, pulls=pulls)
    require(discount <= 0.999, "discount", f"{discount} is above 0.999")
    require_memory(8, pulls, pulls)
    return _gittins_table(discount, pulls)


@lru_cache
def _gittins_table(discount, pulls):
    """`gittins_index` of checked arguments; each table is made once."""
    last = pulls + int(np.ceil(4 / (1 - discount)))
    points = 500
    stop = np.linspace(0, 1, points + 1)[:, None] / (1 - discount)  # λ/(1 − γ) for each λ
    known_mean = np.arange(1, last + 2) / (last + 2)
    v = np.maximum(stop, known_mean / (1 - discount))  # (λ, s), after `last` pulls of this arm
    table = np.full((pulls, pulls), np.nan)
    for m in reversed(range(last)):  # after m pulls of it
        s = np.arange(m + 1)
        p = (s + 1) / (m + 2)
        win = p * (1 + discount * v[:, 1:])
        loss = (1 - p) * discount * v[:, :-1]
        gain = win + loss - stop  # of going on; it falls with λ
        if m < pulls:
            i = (gain > 0).sum(0)  # it is 0 between the λ of i − 1 and i
            above = gain[i - 1, s]
            below = gain[i, s]
            table[s, m - s] = (i - 1 + above / (above - below)) / points
        v = np.maximum(gain, 0) + stop
    table.setflags(write=False)
    return table


def gittins(rng, a, b, t, discount):
    """The Gittins index of each arm: (N, k).

    The discount is a hyperparameter, since a trial has a horizon and no discount. Raises ValueError
    unless a and b are whole numbers, as the tables are made for the prior U[0, 1].
    """
    t = validate(t=t)
    a, b = _counts(a, b)
    for name, x in (("a", a), ("b", b)):
        require(x == np.floor(x), name, "not a whole number", ("task", "arm"))
    most = int((a + b).max(initial=2)) - 2  # pulls of an arm; more than t if it was known before
    pulls = max(128, 1 << max(t, most).bit_length())  # so few tables are made
    return gittins_index(discount, pulls)[a.astype(int) - 1, b.astype(int) - 1]


BANDITS = {
    "random": Strategy(egreedy, (1,)),
    "ts": Strategy(thompson, (1,)),
    "ots": Strategy(thompson, (3, 10, 30)),
    "greedy": Strategy(egreedy, (0,)),
    "egreedy": Strategy(egreedy, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)),
    "ucb1": Strategy(ucb1, (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1)),
    "gittins": Strategy(gittins, (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)),
}
