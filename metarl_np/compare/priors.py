"""Priors fitted to training tasks by maximum likelihood, to start a belief about a new task from.

Of a GridWorld family the slip probability and the distribution of goals; of random MDPs the
Dirichlet and the Gaussians.
"""

from dataclasses import replace

import numpy as np

from metarl_np.arguments import require, require_array, require_floats, validate
from metarl_np.compare.beliefs import Prior, transitions


def fit_slip(grid, goals, episodes, iterations=200):
    """The maximum-likelihood slip of a GridWorld, from Episodes in tasks with goals (N,).

    By EM. E-step: the chance that a step slipped, given where it went. M-step: the mean of those
    chances. Moves that walls make indistinguishable count with their chance. Raises ValueError if
    there is no step, or one that no slip explains.
    """
    iterations = validate(iterations=iterations)
    task, s, a, _, after = transitions(episodes)
    successors = replace(grid, slip=0.5).mdps(goals).successors
    ways = successors[task, s, a] == after[:, None]  # straight, and the two turns
    possible = len(ways) and ways.any(1).all()
    why = "no step at all, or one that this grid with these goals cannot make"
    require(possible, "episodes", why)
    slip = 0.5
    for _ in range(iterations):
        straight = (1 - slip) * ways[:, 0]
        turned = slip / 2 * (ways[:, 1] + 0.0 + ways[:, 2])
        slip = (turned / (straight + turned)).mean()
    return float(slip)


def fit_goals(grid, goals):
    """The distribution of goals over the F free cells, from those of training tasks: (N,) → (F,).

    (count + 1) / total, the posterior mean under a flat prior: so a goal that no training task had
    keeps a chance.
    """
    goals = np.atleast_1d(require_array("goals", goals, kinds="iu"))
    counts = (goals[:, None] == grid.free_cells).sum(0) + 1
    return counts / counts.sum()


def fit_prior(next_counts, visits, total, squares, *, iterations=300):
    """The maximum-likelihood Prior (type II) of the Counts of training tasks.

    next_counts: (N, S, A, S); visits, total (of the rewards) and squares: (N, S, A). α lies in
    [1e-3, 1e3], and no standard deviation falls below 1e-6. Raises ValueError if no state and
    action was visited twice.
    """
    next_counts = require_floats("next_counts", next_counts)
    visits = require_floats("visits", visits, next_counts.shape[:-1])
    total = require_floats("total", total, visits.shape)
    squares = require_floats("squares", squares, visits.shape)
    iterations = validate(iterations=iterations)
    twice = "no state and action was visited twice, so nothing tells noise from spread"
    require((visits > 1).any(), "visits", twice)
    concentration = _fit_concentration(next_counts, visits)
    met = visits > 0
    mean, spread, noise = _fit_rewards(visits[met], total[met], squares[met], iterations)
    return Prior(float(concentration), float(mean), float(np.sqrt(spread)), float(np.sqrt(noise)))


def _fit_concentration(next_counts, visits):
    """α by bisection of the derivative of Σ log Γ(Sα)/Γ(Sα + n) + Σ log Γ(α + n_z)/Γ(α).

    log Γ(α + n)/Γ(α) is Σ_{i<n} log(α + i). Minka (2000).
    """
    n_states = next_counts.shape[-1]
    i = np.arange(visits.max())
    above = (np.ravel(next_counts)[:, None] > i).sum(0)  # how many counts exceed i
    all_above = (np.ravel(visits)[:, None] > i).sum(0)
    low = 1e-3
    high = 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        gain = (above / (middle + i)).sum()
        loss = (n_states * all_above / (n_states * middle + i)).sum()
        if gain > loss:
            low = middle
        else:
            high = middle
    return np.sqrt(low * high)


def _fit_rewards(n, total, squares, iterations):
    """Mean, variance and noise variance of normal means with normal noise, by EM: (M,) each."""
    n = n.astype(float)
    mean = total.sum() / n.sum()
    spread = 1.0
    noise = 1.0
    for _ in range(iterations):
        variance = 1 / (n / noise + 1 / spread)
        m = variance * (total / noise + mean / spread)
        mean = m.mean()
        spread = max((variance + (m - mean) ** 2).mean(), 1e-12)
        residual = squares - 2 * m * total + n * (m**2 + variance)
        noise = max(residual.sum() / n.sum(), 1e-12)
    return mean, spread, noise
