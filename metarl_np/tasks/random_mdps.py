"""Random tabular MDPs, the second task family of RL² (Duan et al. 2016, §3.2)."""

import numpy as np

from metarl_np.arguments import require_memory, validate
from metarl_np.tasks.mdp import MDP


def random_mdps(
    rng,
    n_tasks,
    n_states=10,
    n_actions=5,
    *,
    horizon=10,
    discount=1.0,
    reward_mean=1.0,
    reward_std=1.0,
    reward_noise=1.0,
):
    """MDP of N tasks with P(·|s, a) ~ Dirichlet(1, …, 1), which start in state 0.

    A reward is N(m, reward_noise²), its mean m(s, a) being N(reward_mean, reward_std²).
    """
    validate(rng=rng)
    n_tasks, n_states, n_actions = validate(n_tasks=n_tasks, n_states=n_states, n_actions=n_actions)
    reward_mean, reward_std = validate(reward_mean=reward_mean, reward_std=reward_std)
    require_memory(80, n_tasks, n_states, n_states, n_actions)
    P = rng.dirichlet(np.ones(n_states), (n_tasks, n_states, n_actions))
    R = rng.normal(reward_mean, reward_std, (n_tasks, n_states, n_actions))
    return MDP.from_dense(P, R, 0, discount=discount, horizon=horizon, reward_noise=reward_noise)
