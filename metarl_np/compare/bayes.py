"""The Bayes-optimal return of bandits, exactly: what no learner can surpass."""

from math import comb

import numpy as np

from metarl_np.arguments import require, require_memory, validate
from metarl_np.tasks.bandits import DEPENDENT


def bayes_optimal(arms, pulls, *, max_states=1_000_000):
    """max E Σ r over `pulls` pulls of k = `arms` arms with means from U[0, 1]: a number.

    By dynamic programming over sorted lists of (s, f), the successes and failures of each arm.
    Raises ValueError, with the number of states and how far one gets, if that is above max_states:
    k = 2, 5, 10 go to n = 81, 23, 20.
    """
    arms, pulls, max_states = validate(arms=arms, pulls=pulls, max_states=max_states)
    counted = min(pulls, 16)  # only as many as are needed: the numbers grow beyond floats
    states = _number_of_states(min(arms, counted), counted)
    while counted < pulls and states[-1] <= max_states:
        counted = min(2 * counted, pulls)
        states = _number_of_states(min(arms, counted), counted)
    most = (states <= max_states).sum()
    at_least = "" if counted == pulls else "more than "
    needs = f"{arms}, {pulls} need {at_least}{states[-1]:.4g} states"
    why = f"{needs}, above max_states = {max_states}; {arms} arms can be solved for {most} pulls"
    require(states[-1] <= max_states, "arms, pulls", why)
    k = min(arms, pulls)  # more arms than pulls are all the same
    require_memory(16, k, k, states[-1])  # every outcome of every arm

    # An arm's (s, f) is the code s·n + f, a state a sorted list of codes. Forward: the states that
    # are reached after each pull, and which state follows each pull and outcome.
    s = np.arange(pulls)[:, None]
    f = np.arange(pulls)
    mean = ((s + 1) / (s + f + 2)).ravel()  # by code
    success_or_failure = np.array([pulls, 1])[:, None] * np.eye(k, dtype=int)[:, None]
    layer = np.zeros((1, k), int)
    steps = []
    for _ in range(pulls - 1):
        p = mean[layer]  # (states, k)
        after = layer[:, None, None] + success_or_failure  # (states, arm, outcome, k)
        every = np.sort(after).reshape(-1, k)
        layer, link = np.unique(every, axis=0, return_inverse=True)
        steps.append((p, link.reshape(after.shape[:3])))

    v = mean[layer].max(1)  # backward
    for p, link in reversed(steps):
        q = p * (1 + v[link[..., 0]]) + (1 - p) * v[link[..., 1]]
        v = q.max(1)
    return float(v[0])


def _number_of_states(k, pulls):
    """How many states can be met in the first n pulls, n = 1 … `pulls`: (pulls,).

    ways[j, t] counts the sorted lists of j arms with t pulls in all. Arms of m pulls each, which
    have m + 1 codes, are added for one m after the other: r of them in comb(m + r, r) ways.
    """
    ways = np.pad([[1.0]], ((0, k), (0, pulls - 1)))
    for m in range(1, pulls):
        total = 0
        for r in range(min(k, pulls // m) + 1):
            shifted = np.pad(ways, ((r, 0), (r * m, 0)))[: k + 1, :pulls]
            total = total + comb(m + r, r) * shifted
        ways = total
    return ways.sum(0).cumsum()


def dependent_optimal(difficulty, pulls):
    """The best expected reward of each pull of `bandits.dependent` arms: (n,).

    The arms' means are p and 1 − p, so both tell the same of p, and greedy is optimal: it earns
    Σ_s max(E[p; s], E[1 − p; s]), s being how many of t signs are for p. The integral over U[0, 1]
    by Gauss–Legendre is exact. Raises ValueError for another difficulty.
    """
    pulls = validate(pulls=pulls)
    require_memory(8, pulls, pulls)
    known = ("uniform", *DEPENDENT)
    is_known = isinstance(difficulty, str) and difficulty in known
    require(is_known, "difficulty", f"{difficulty!r:.99} is not one of {', '.join(known)}")
    if difficulty == "uniform":
        x, weights = np.polynomial.legendre.leggauss(pulls)  # on [−1, 1]
    else:
        x = np.array([1, -1]) * (1 - 2 * DEPENDENT[difficulty])
        weights = np.ones(2)
    p = (1 + x[:, None]) / 2
    chance = weights[:, None] / 2  # of p and s: (points of p, t + 1)
    best = np.empty(pulls)
    for t in range(pulls):
        best[t] = np.maximum((p * chance).sum(0), ((1 - p) * chance).sum(0)).sum()
        against = np.pad(chance * (1 - p), ((0, 0), (0, 1)))
        in_favour = np.pad(chance * p, ((0, 0), (1, 0)))
        chance = against + in_favour
    return best
