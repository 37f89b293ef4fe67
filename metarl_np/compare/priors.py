"""What the training tasks have in common, fitted by maximum likelihood: the priors that `model_based` starts from in a new task.

Of a GridWorld family the slip probability and the distribution of goals; of random MDPs the Dirichlet and the Gaussian.
"""

from dataclasses import replace

import numpy as np

from metarl_np.arguments import require
from metarl_np.compare.beliefs import Prior, transitions


def fit_slip(grid, goals, episodes, iterations=200):
    """Maximum-likelihood slip probability of a GridWorld, from Episodes in tasks with known goals (N,), by EM: a number in [0, 1].

    E-step: the chance that a step slipped, given where it went; M-step: the mean of those chances. Moves that walls make
    indistinguishable count with their chance. Raises ValueError if there is no step, or one that no slip explains.
    """
    task, s, a, _, after = transitions(episodes)
    ways = (
        replace(grid, slip=0.5).mdps(goals).successors[task, s, a] == after[:, None]
    )  # straight, and the two turns
    if not len(ways) or not ways.any(1).all():
        raise ValueError(
            "episodes: no step at all, or one that this grid with these goals cannot make"
        )
    slip = 0.5
    for _ in range(iterations):
        straight = (1 - slip) * ways[:, 0]
        turned = slip / 2 * (ways[:, 1] + 0.0 + ways[:, 2])
        slip = (turned / (straight + turned)).mean()
    return float(slip)


def fit_goals(grid, goals):
    """The distribution of goals over the F free cells, (count + 1) / total: the posterior mean under a flat prior, so that a goal that no
    training task had keeps a chance. (N,) → (F,)."""
    counts = (np.asarray(goals)[:, None] == grid.free_cells).sum(0) + 1
    return counts / counts.sum()


def fit_prior(next_counts, n, total, squares, *, iterations=300):
    """The maximum-likelihood Prior of `counts` over training tasks (type II). Raises ValueError if no pair was visited twice.
    α: Σ log Γ(Sα)/Γ(Sα + n) + Σ log Γ(α + n_z)/Γ(α), with log Γ(α + n)/Γ(α) = Σ_{i<n} log(α + i); its derivative by bisection (Minka 2000),
    in [1e-3, 1e3]. Rewards: EM for a normal mean with normal noise, no standard deviation falling below 1e-6.
    """
    require(
        (n > 1).any(),
        "n",
        "no state and action was visited twice, so nothing tells noise from spread",
    )
    s = next_counts.shape[-1]
    i = np.arange(n.max())
    above, all_above = (
        (np.ravel(x)[:, None] > i).sum(0) for x in (next_counts, n)
    )  # how many counts exceed i
    low = 1e-3
    high = 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        uphill = (above / (middle + i)).sum() > (s * all_above / (s * middle + i)).sum()
        low, high = (middle, high) if uphill else (low, middle)
    n, total, squares = (x[n > 0].astype(float) for x in (n, total, squares))
    mean = total.sum() / n.sum()
    spread = 1.0
    noise = 1.0  # spread and noise are variances
    for _ in range(iterations):
        variance = 1 / (n / noise + 1 / spread)
        m = variance * (total / noise + mean / spread)
        mean, spread = m.mean(), max((variance + (m - m.mean()) ** 2).mean(), 1e-12)
        noise = max((squares - 2 * m * total + n * (m**2 + variance)).sum() / n.sum(), 1e-12)
    return Prior(
        float(np.sqrt(low * high)), float(mean), float(np.sqrt(spread)), float(np.sqrt(noise))
    )
