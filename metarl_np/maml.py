"""MAML for reinforcement learning (Finn, Abbeel & Levine 2017): learn the θ from which k policy-gradient steps go furthest."""

from dataclasses import dataclass

import autograd.numpy as np
from autograd import grad

from metarl_np.losses import reinforce_folded
from metarl_np.optim import adam
from metarl_np.returns import discounted_return, leave_one_out_baseline
from metarl_np.rollouts import rollout
from metarl_np.updates import reinforce_step, reinforce_table


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What k inner steps in N tasks went through, before the first and after each: k + 1 entries."""

    thetas: list  # k+1 arrays (N, …): θ_i after 0..k steps
    tables: list  # k+1 arrays (N, S, A): folded REINFORCE weights of the episodes sampled with each
    returns: np.ndarray  # (k+1, N): mean discounted return of those episodes

    @property
    def support(self):
        """The tables that the k inner steps used."""
        return self.tables[:-1]

    @property
    def query(self):
        """The table of the episodes drawn with the adapted policies."""
        return self.tables[-1]


def adapt(rng, mdps, policy, theta, *, steps, step_size, episodes, baseline=leave_one_out_baseline):
    """k = `steps` inner updates θ_i ← θ_i + α ∇J_i(θ_i) in every task at once, each on `episodes` new episodes: Adaptation.

    theta: shared (F, A), or one per task (N, F, A). Finn et al. (2017), Algorithm 3, lines 5–8. Raises ValueError on k < 0, on
    a step size or parameters that are not finite, and as `rollout` does.
    """
    if steps < 0:
        raise ValueError(f"steps: {steps} is negative")
    if not np.isfinite(step_size):
        raise ValueError(f"step_size: {step_size} is not finite")
    if not np.isfinite(theta).all():
        raise ValueError("theta: parameters that are not finite")
    thetas, tables, returns = [theta + np.zeros((len(mdps),) + np.shape(theta)[-2:])], [], []
    for j in range(steps + 1):
        data = rollout(rng, mdps, policy.log_pi(thetas[j]), episodes)
        tables.append(reinforce_table(mdps, data, baseline=baseline))
        returns.append(discounted_return(data.rewards, mdps.discount).mean(-1))
        if j < steps:
            thetas.append(reinforce_step(policy, thetas[j], tables[j], step_size))
    return Adaptation(thetas, tables, np.array(returns))


def meta_objective(policy, theta, support, query, step_size):
    """(1/N) Σ_i L_i(U(…U(θ, W_i1)…, W_ik)), L_i the REINFORCE surrogate of the query episodes: scalar.

    Its gradient through all inner steps U is MAML's second-order one, at fixed data. Finn et al. (2017), eq. 1 and 4.
    """
    for table in support:
        theta = reinforce_step(policy, theta, table, step_size)
    return np.mean(reinforce_folded(policy.log_pi(theta), query))


meta_gradient = grad(meta_objective, 1)


def first_order_gradient(policy, theta, support, query, step_size):
    """(1/N) Σ_i ∇L_i at the adapted parameters, as if ∂θ_i/∂θ were I: the shape of θ. Finn et al. (2017), §5.2."""
    adapted = theta
    for table in support:
        adapted = reinforce_step(policy, adapted, table, step_size)
    return policy.weighted_score(adapted, query).mean(0)


@dataclass(frozen=True, eq=False)
class Iteration:
    """One meta-iteration, as `train` yields it."""

    iteration: int
    theta: np.ndarray  # the initial parameters after the update
    returns: np.ndarray  # (k+1,) mean over tasks of the sampled return after 0..k inner steps
    gradient_norm: float


def train(rng, sample_tasks, policy, theta, *, iterations, steps, inner_step_size, episodes, step_size, optimiser=adam,
          gradient=meta_gradient, baseline=leave_one_out_baseline):
    """Meta-train θ by `iterations` outer steps of size β = `step_size`: a generator of Iteration. Finn et al. (2017), Algorithm 3.

    sample_tasks(rng) → MDP draws the batch of tasks. gradient: `meta_gradient` (second order) or `first_order_gradient`.
    steps = 0 maximises the mean return of the tasks: multi-task learning, or plain REINFORCE when there is one task.
    """
    state = None
    for iteration in range(iterations):
        path = adapt(rng, sample_tasks(rng), policy, theta, steps=steps, step_size=inner_step_size, episodes=episodes,
                     baseline=baseline)
        g = gradient(policy, theta, path.support, path.query, inner_step_size)
        theta, state = optimiser(theta, g, state, step_size=step_size)
        yield Iteration(iteration, theta, path.returns.mean(1), np.linalg.norm(g))
