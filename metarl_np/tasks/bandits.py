"""Bernoulli bandits as MDPs of one state and one step: a trial is n episodes, n pulls."""

import numpy as np

from metarl_np.arguments import require, require_array, require_memory, validate
from metarl_np.tasks.mdp import MDP

DEPENDENT = dict(
    easy=0.1, medium=0.25, hard=0.4
)  # the smaller of the two arms' means; "uniform" draws it


def bernoulli(means):
    """N tasks with success probabilities `means` (N, k): MDP with S = 1, T = 1, γ = 1. Raises ValueError unless they are in [0, 1]."""
    means = require_array("means", means)
    require(
        means.ndim == 2 and means.size,
        "means",
        f"expected shape (N, k), not empty, got {means.shape}",
    )
    require((means >= 0) & (means <= 1), "means", "not a probability", ("task", "arm"))
    p = np.stack([means, 1 - means], -1)[:, None]
    n = len(means)
    return MDP(
        np.zeros(p.shape, int),
        p,
        np.broadcast_to([1.0, 0.0], p.shape),
        np.ones((n, 1)),
        np.zeros((n, 1), bool),
        1.0,
        1,
    )


def independent(rng, n_tasks, arms):
    """k = `arms` arms with means from U[0, 1]: MDP. Duan et al. (2016), §3.1."""
    validate(rng=rng, n_tasks=n_tasks, arms=arms)
    require_memory(80, n_tasks, arms)
    return bernoulli(rng.random((n_tasks, arms)))


def dependent(rng, n_tasks, difficulty="uniform"):
    """Two arms with means p and 1 − p: p ~ U[0, 1] ("uniform"), or by DEPENDENT and in random order: MDP. Wang et al. (2016), §3.1."""
    validate(rng=rng, n_tasks=n_tasks)
    require_memory(160, n_tasks)
    require(
        difficulty in ("uniform", *DEPENDENT),
        "difficulty",
        f"{difficulty!r:.99} is not one of uniform, {', '.join(DEPENDENT)}",
    )
    u = rng.random(n_tasks)
    p = (
        u
        if difficulty == "uniform"
        else np.where(u < 0.5, DEPENDENT[difficulty], 1 - DEPENDENT[difficulty])
    )
    return bernoulli(np.stack([p, 1 - p], -1))
