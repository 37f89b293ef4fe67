"""What RL² is compared with: classical strategies for bandits and for random MDPs, and the exact Bayes-optimal return of bandits.

A strategy or plan says how good each action looks, with one hyperparameter as its last argument, and the runner takes the best action, for
N tasks at once. The catalogues BANDITS and MDPS name the grid of the hyperparameter beside each method; `tune` searches it.
"""

from math import comb

import numpy as np

from metarl_np.arguments import require
from metarl_np.compare.strategies import _within
from metarl_np.tasks.bandits import DEPENDENT


def bayes_optimal(arms, pulls, *, max_states=1_000_000):
    """max E Σ r over `pulls` pulls of k = `arms` arms with means from U[0, 1], by dynamic programming over sorted lists of (s, f): a float.
    Raises ValueError, with their number and how far one gets, if that is above max_states: k = 2, 5, 10 go to n = 81, 23, 20.
    """
    _within(1, arms=arms, pulls=pulls)
    k = min(arms, pulls)
    codes = np.arange(pulls)  # more arms than pulls are all the same
    ways = np.pad(
        [[1.0]], ((0, k), (0, pulls - 1))
    )  # [j, t]: lists with t pulls in all, of j arms; then add r arms of m pulls each
    for m in range(1, pulls):
        ways = sum(
            comb(m + r, r) * np.pad(ways, ((r, 0), (r * m, 0)))[: k + 1, :pulls]
            for r in range(min(k, pulls // m) + 1)
        )
    total = ways.sum(0).cumsum()
    require(
        total[-1] <= max_states,
        "arms, pulls",
        f"{arms}, {pulls} need {total[-1]:.4g} states, above max_states = {max_states}; "
        f"{arms} arms can be solved for {(total <= max_states).sum()} pulls",
    )
    mean = (
        (codes[:, None] + 1) / (codes[:, None] + codes + 2)
    ).ravel()  # of an arm with the code s·n + f
    layer = np.zeros((1, k), int)
    stack = []
    for _ in range(pulls - 1):
        after = (
            layer[:, None, None] + np.array([pulls, 1])[:, None] * np.eye(k, dtype=int)[:, None]
        )  # (states, arm, outcome, k)
        stack.append([mean[layer]])
        layer, link = np.unique(np.sort(after).reshape(-1, k), axis=0, return_inverse=True)
        stack[-1].append(link.reshape(after.shape[:3]))
    v = mean[layer].max(1)
    for p, link in reversed(stack):
        v = (p * (1 + v[link[..., 0]]) + (1 - p) * v[link[..., 1]]).max(1)
    return float(v[0])


def dependent_optimal(difficulty, pulls):
    """The best expected reward of each pull of `bandits.dependent` arms, whose means are p and 1 − p: (n,). Both arms tell the same of p,
    so greedy is optimal: Σ_s max(E[p; s], E[1 − p; s]), s of t signs being for p. The integral over U[0, 1] by Gauss–Legendre is exact.
    """
    _within(1, pulls=pulls)
    require(
        difficulty in ("uniform", *DEPENDENT),
        "difficulty",
        f"{difficulty!r} is not one of uniform, {', '.join(DEPENDENT)}",
    )
    x, w = (
        np.polynomial.legendre.leggauss(pulls)
        if difficulty == "uniform"
        else (np.array([1, -1]) * (1 - 2 * DEPENDENT[difficulty]), 1)
    )
    p = (1 + x[:, None]) / 2
    chance = (w / 2 + 0 * x)[:, None]
    best = np.empty(pulls)  # chance of p and s: (points of p, t + 1)
    for t in range(pulls):
        best[t] = np.maximum((p * chance).sum(0), ((1 - p) * chance).sum(0)).sum()
        chance = np.pad(chance * (1 - p), ((0, 0), (0, 1))) + np.pad(chance * p, ((0, 0), (1, 0)))
    return best
