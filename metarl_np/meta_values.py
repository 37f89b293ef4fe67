"""A meta-learned value function: the V_θ from which k TD(λ) steps on a new task's episodes come closest to its V^π.

MAML's two levels with regression in both: V (S,) is a table shared by all tasks, or (N, S) one per task. The policy is fixed.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd import grad

from metarl_np.losses import at_states, scatter, stop
from metarl_np.optim import adam
from metarl_np.returns import gae
from metarl_np.rollouts import rollout


def td_errors(v, episodes, discount, lam):
    """V̂_t − V(s_t), V̂ the λ-return: one-step TD errors at λ = 0, the error against the returns at λ = 1: V (N, S) → (T, N, K).

    Where a row was truncated V(s_T) stands for the rest, so with rollouts shorter than the horizon V is that of no horizon.
    """
    bootstrap = at_states(v, episodes.last_states[None])[0] * episodes.truncated
    return gae(episodes.rewards * episodes.mask, at_states(v, episodes.states), episodes.mask, bootstrap, discount=discount, lam=lam)


def value_step(v, episodes, *, step_size, discount, lam=1.0):
    """V'(s) = V(s) + α Σ_t mean_k [s_t = s] (V̂_t − V(s_t)): V (N, S) → (N, S). Sutton & Barto (2018), eq. 12.2, offline."""
    errors = td_errors(v, episodes, discount, lam)
    update = scatter(errors, episodes.states, np.zeros(episodes.states.shape, int), np.shape(v)[1], 1)[..., 0]
    return v + step_size * update / episodes.states.shape[2]


def value_error(v, episodes, discount):
    """½ mean over steps and episodes of (G_t − V(s_t))², the target a constant: V (N, S) → (N,)."""
    target = stop(td_errors(v, episodes, discount, 1.0) + at_states(v, episodes.states))
    errors = (target - at_states(v, episodes.states)) * episodes.mask
    return 0.5 * np.sum(errors**2, (0, 2)) / episodes.mask.sum((0, 2))


@dataclass(frozen=True, eq=False)
class ValueAdaptation:
    """What k value steps in N tasks went through."""

    values: list  # k+1 arrays (N, S)
    episodes: list  # k+1 Episodes; the last are the query


def adapt_values(rng, mdps, log_pi, v, *, steps, step_size, episodes, length=None, lam=1.0):
    """k = `steps` value steps in every task at once, each on K new episodes of `length` steps under log π: ValueAdaptation.

    log π (S, A) or (N, S, A); V (S,), shared, or (N, S). Raises ValueError on a step size that is not finite, and as `rollout` does.
    """
    if steps < 0 or not np.isfinite(step_size) or not 0 <= lam <= 1:
        raise ValueError(f"steps, step_size, lam: {steps} must not be negative, {step_size} must be finite, {lam} must be in [0, 1]")
    values, data = [np.zeros(mdps.shape[:2]) + v], []
    for j in range(steps + 1):
        data.append(rollout(rng, mdps, log_pi, episodes, steps=length))
        if j < steps:
            values.append(value_step(values[j], data[j], step_size=step_size, discount=mdps.discount, lam=lam))
    return ValueAdaptation(values, data)


def meta_value_objective(v, path, *, step_size, discount, lam=1.0):
    """The adapted value error on the query episodes, per task, at fixed data: V (N, S) → (N,)."""
    for episodes in path.episodes[:-1]:
        v = value_step(v, episodes, step_size=step_size, discount=discount, lam=lam)
    return value_error(v, path.episodes[-1], discount)


def train_values(rng, sample_tasks, log_pi, v, *, iterations, steps, inner_step_size, episodes, step_size, length=None, lam=1.0,
                 optimiser=adam):
    """Meta-train V (S,) by `iterations` descent steps on the adapted value error: a generator of (V, mean error before the step).

    sample_tasks(rng) → MDP. Raises FloatingPointError, naming the iteration, if the error or V is not finite.
    """
    state = None
    for iteration in range(iterations):
        mdps = sample_tasks(rng)
        path = adapt_values(rng, mdps, log_pi, v, steps=steps, step_size=inner_step_size, episodes=episodes, length=length, lam=lam)
        settings = dict(step_size=inner_step_size, discount=mdps.discount, lam=lam)
        g = grad(lambda x: np.sum(meta_value_objective(x, path, **settings)))(path.values[0]).mean(0)
        v, state = optimiser(v, -g, state, step_size=step_size)
        error = value_error(path.values[-1], path.episodes[-1], mdps.discount).mean()
        if not np.isfinite(error) or not np.isfinite(v).all():
            raise FloatingPointError(f"iteration {iteration}: value error or values that are not finite")
        yield v, error
