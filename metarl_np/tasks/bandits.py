"""Bandits as MDPs of one state and one step: a trial is n episodes, n pulls."""

import numpy as np

from metarl_np.arguments import (
    require,
    require_array,
    require_floats,
    require_memory,
    validate,
)
from metarl_np.tasks.mdp import MDP

# the smaller of the two arms' means; "uniform" draws it
DEPENDENT = dict(easy=0.1, medium=0.25, hard=0.4)
# of the eleven arms, the last of which tells where the target is
TARGETS = 10


def bernoulli(means):
    """MDP of N tasks with k arms each, which pay 1 with the probabilities `means` (N, k).

    S = 1, T = 1 and γ = 1. Raises ValueError unless the means are in [0, 1].
    """
    means = require_floats("means", means, traced=False)
    two_axes = f"expected shape (N, k), not empty, got {means.shape}"
    require(means.ndim == 2 and means.size, "means", two_axes)
    require((means >= 0) & (means <= 1), "means", "not a probability", ("task", "arm"))
    n_tasks, arms = means.shape
    win_or_lose = np.stack([means, 1 - means], -1)
    return MDP(
        successors=np.zeros((n_tasks, 1, arms, 2), int),  # S = 1: always state 0
        probabilities=win_or_lose[:, None],
        rewards=np.broadcast_to([1.0, 0.0], (n_tasks, 1, arms, 2)),
        start=np.ones((n_tasks, 1)),
        terminal=np.zeros((n_tasks, 1), bool),
        discount=1.0,
        horizon=1,
    )


def independent(rng, n_tasks, arms):
    """MDP of N tasks with k = `arms` arms, their means from U[0, 1]. Duan et al. (2016), §3.1."""
    rng, n_tasks, arms = validate(rng=rng, n_tasks=n_tasks, arms=arms)
    require_memory(80, n_tasks, arms)
    return bernoulli(rng.random((n_tasks, arms)))


def dependent(rng, n_tasks, difficulty="uniform"):
    """MDP of N tasks with two arms whose means are p and 1 − p. Wang et al. (2016), §3.1.

    difficulty: "uniform" for p ~ U[0, 1], or a key of DEPENDENT: the better arm is either one.
    """
    rng, n_tasks = validate(rng=rng, n_tasks=n_tasks)
    require_memory(160, n_tasks)
    known = ("uniform", *DEPENDENT)
    unknown = f"{difficulty!r:.99} is not one of {', '.join(known)}"
    require(difficulty in known, "difficulty", unknown)
    p = rng.random(n_tasks)
    if difficulty != "uniform":
        smaller = DEPENDENT[difficulty]
        p = np.where(p < 0.5, smaller, 1 - smaller)
    return bernoulli(np.stack([p, 1 - p], -1))


def informative(targets=range(TARGETS)):
    """MDP of N tasks with eleven arms of fixed payoffs, 5 pulls being a trial. Wang et al. (2016).

    Of ten arms the target pays 5 and each other one 1.1. The eleventh pays less than all of them,
    but tells the target: (its number, from 1) / 10. targets: (N,), each of 0 … 9; by default every
    one once. Raises ValueError on others.
    """
    targets = np.atleast_1d(require_array("targets", targets, kinds="iu"))
    one_axis = f"expected shape (N,), not empty, got {targets.shape}"
    require(targets.ndim == 1 and targets.size, "targets", one_axis)
    require((targets >= 0) & (targets < TARGETS), "targets", f"outside 0..{TARGETS - 1}")
    is_target = targets[:, None] == np.arange(TARGETS)
    payoffs = np.column_stack([np.where(is_target, 5.0, 1.1), (targets + 1) / TARGETS])
    n_tasks, arms = payoffs.shape
    return MDP(
        successors=np.zeros((n_tasks, 1, arms, 1), int),
        probabilities=np.ones((n_tasks, 1, arms, 1)),
        rewards=payoffs[:, None, :, None],
        start=np.ones((n_tasks, 1)),
        terminal=np.zeros((n_tasks, 1), bool),
        discount=1.0,
        horizon=1,
    )
