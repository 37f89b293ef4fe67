"""What RL² is compared with: classical strategies for bandits and for random MDPs, and the exact Bayes-optimal return of bandits.

A strategy or plan says how good each action looks, with one hyperparameter as its last argument, and the runner takes the best action, for
N tasks at once. The catalogues BANDITS and MDPS name the grid of the hyperparameter beside each method; `tune` searches it.
"""

from functools import lru_cache

import numpy as np

from metarl_np.arguments import require


def tune(rng, play, grid):
    """The value in `grid` with the highest mean total, and all of them: (value, {value: mean total}).
    play(rng, value) → scores (n, N) on tuning tasks; each value is given the same random numbers.
    """
    require(len(grid) > 0, "grid", "no value to choose from")
    seed = rng.integers(2**63)
    means = {value: float(play(np.random.default_rng(seed), value).sum(0).mean()) for value in grid}
    return max(means, key=means.get), means


def _within(low, high=1e9, **arguments):
    for name, value in arguments.items():
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is outside [{low}, {high:g}]")


# ---- Bernoulli bandits: a strategy's scores of the arms are (N, k), from their posteriors Beta(a, b), (N, k) each, after t pulls
def play_bandits(rng, means, pulls, strategy, value, *, random_ties=False):
    """The pulled arms' means over n = `pulls` pulls in N bandits of k arms: means (N, k) → (n, N).
    Each arm starts from one success and one failure, a = b = 1: the prior U[0, 1]. The first of equal arms is pulled, or a random one,
    which explores more: greedy gets 77.7 or 79.1 at n = 100, k = 10, where Duan et al. (2016) print 77.1.
    """
    require((means >= 0) & (means <= 1), "means", "not a probability", ("task", "arm"))
    _within(1, pulls=pulls)
    counts = np.ones((2,) + means.shape)
    task = np.arange(len(means))
    earned = np.empty((pulls, len(means)))
    for t in range(pulls):
        index = strategy(rng, *counts, t, value)
        arm = (index + 1e-9 * random_ties * rng.random(index.shape)).argmax(1)
        earned[t] = means[task, arm]
        counts[(rng.random(len(means)) >= earned[t]).astype(int), task, arm] += 1
    return earned


def egreedy(rng, a, b, t, epsilon):
    """The highest mean a/(a + b), but with probability ε a random arm. ε = 0 is greedy, ε = 1 random."""
    _within(0, 1, epsilon=epsilon)
    return np.where(rng.random((len(a), 1)) < epsilon, rng.random(a.shape), a / (a + b))


def ucb1(rng, a, b, t, c):
    """a/(a + b) + c √(2 log t / (a + b)), t = 1, 2, …: the pseudo-counts count as pulls. Auer et al. (2002); Duan et al. (2016)."""
    _within(0, c=c)
    return a / (a + b) + c * np.sqrt(2 * np.log(t + 1) / (a + b))


def thompson(rng, a, b, t, samples):
    """A posterior sample (Thompson 1933); of several, each of all arms, the one of highest density Π_i Beta(x_i; a_i, b_i). That is what
    gives the OTS of Duan et al. (2016); to raise samples to the mean (May et al. 2012) gives .5 less at n = 10 and 2 or 3 at n = 100.
    """
    _within(1, samples=samples)
    x = rng.beta(a, b, (samples,) + a.shape).clip(1e-300, 1 - 1e-16)
    return x[((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)).sum(-1).argmax(0), np.arange(len(a))]


@lru_cache
def gittins_index(discount, pulls):
    """The λ of an arm after s successes and f failures, s + f < `pulls`: (pulls, pulls) by s and f, NaN elsewhere; right to about 1e-4.
    λ for ever is as good as going on: E[r + γV(s', f')] = λ/(1 − γ), V = max(E[r + γV'], λ/(1 − γ)), solved backwards for a grid of λ
    from 4/(1 − γ) pulls later, where the mean counts as known. Gittins (1979); Gittins, Glazebrook & Weber (2011), ch. 8.
    """
    _within(0, 0.999, discount=discount)
    last = pulls + int(np.ceil(4 / (1 - discount)))
    points = 500
    stop = np.linspace(0, 1, points + 1)[:, None] / (1 - discount)
    v = np.maximum(stop, np.arange(1, last + 2) / (last + 2) / (1 - discount))
    table = np.full((pulls, pulls), np.nan)  # v: (λ, s)
    for m in reversed(range(last)):  # after m pulls of this arm
        s = np.arange(m + 1)
        p = (s + 1) / (m + 2)
        gain = p * (1 + discount * v[:, 1:]) + (1 - p) * discount * v[:, :-1] - stop  # falls with λ
        if m < pulls:
            i = (gain > 0).sum(0)
            table[s, m - s] = (i - 1 + gain[i - 1, s] / (gain[i - 1, s] - gain[i, s])) / points
        v = np.maximum(gain, 0) + stop
    table.setflags(write=False)
    return table


BANDITS = {  # {name: (strategy, grid)}; Gittins' discount is a hyperparameter, since a trial has a horizon and no discount
    "random": (egreedy, (1,)),
    "ts": (thompson, (1,)),
    "ots": (thompson, (3, 10, 30)),
    "greedy": (egreedy, (0,)),
    "egreedy": (egreedy, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)),
    "ucb1": (ucb1, (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1)),
    "gittins": (
        lambda rng, a, b, t, g: gittins_index(g, max(128, 1 << t.bit_length()))[
            a.astype(int) - 1, b.astype(int) - 1
        ],
        (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    ),
}
