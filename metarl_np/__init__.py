"""Meta-reinforcement learning in NumPy, checked against exact answers: the table of contents.

    1  tasks     what is to be learned: finite MDPs, and what can be computed in a known one
    2  learner   one learner in one task: policies, rollouts, returns, REINFORCE, PPO, TRPO
    3  meta      learning to learn: MAML, and recurrent RL²
    4  check     is it right? Exact meta-gradients, and which estimator a gradient is
    5  compare   compared with what? Classical strategies, planners, the Bayes optimum
       runs      long runs and many machines
       plots     pictures (imported on its own: `from metarl_np import plots`)

Each section can be imported by its name alone: `from metarl_np import exact, maml`.
"""

from metarl_np import arguments, check
from metarl_np.check import (
    clipped,
    diagnosis,
    differences,
    enumeration,
    estimators,
    explanations,
    inputs,
    meta_gradients,
    records,
    replays,
    scores,
    verdict,
)
from metarl_np.compare import bayes, beliefs, planners, priors, strategies
from metarl_np.learner import (
    advantages,
    alias,
    optim,
    policies,
    ppo,
    reinforce,
    returns,
    rollouts,
    surrogates,
    trpo,
)
from metarl_np.meta import gru, maml, rl2, rl2_training, rl2_trpo, values
from metarl_np.runs import checkpoint, study
from metarl_np.tasks import bandits, exact, gridworld, gymnasium, mdp, random_mdps

__version__ = "0.1.0"
