"""A meta-learned value function: the V_θ from which k TD(λ) steps on a new task's episodes come closest to its V^π.

MAML's two levels with regression in both: V (S,) is a table shared by all tasks, or (N, S) one per task. The policy is fixed.
"""

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import require
from metarl_np.learner.advantages import at_states, td_errors
from metarl_np.learner.optim import adam
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.surrogates import fold, stop


def value_step(v, episodes, *, step_size, discount, lam=1.0):
    """V'(s) = V(s) + α Σ_t mean_k [s_t = s] (V̂_t − V(s_t)): V (N, S) → (N, S). Sutton & Barto (2018), eq. 12.2, offline."""
    states = episodes.states
    return (
        v
        + step_size
        * fold(
            td_errors(v, episodes, discount, lam),
            states,
            np.zeros(states.shape, int),
            np.shape(v)[1],
            1,
        )[..., 0]
    )


def value_error(v, episodes, discount):
    """½ mean over steps and episodes of (G_t − V(s_t))², the target a constant: V (N, S) → (N,)."""
    target = stop(td_errors(v, episodes, discount, 1.0) + at_states(v, episodes.states))
    errors = (target - at_states(v, episodes.states)) * episodes.mask
    return 0.5 * np.sum(errors**2, (0, 2)) / episodes.mask.sum((0, 2))


def adapt_values(rng, mdps, log_pi, v, *, steps, step_size, episodes, length=None, lam=1.0):
    """k = `steps` value steps in every task at once, each on K new episodes of `length` steps under log π (S, A) or (N, S, A), from V (S,),
    shared, or (N, S): V after 0..k steps (N, S) and the k + 1 Episodes, the last being the query, as two lists.
    """
    require(steps >= 0, "steps", f"{steps} is negative")
    require(np.isfinite(step_size), "step_size", f"{step_size} is not finite")
    require(0 <= lam <= 1, "lam", f"{lam} is outside [0, 1]")
    values = [np.zeros(mdps.shape[:2]) + v]
    data = []
    for j in range(steps + 1):
        data.append(rollout(rng, mdps, log_pi, episodes, steps=length))
        if j < steps:
            values.append(
                value_step(values[j], data[j], step_size=step_size, discount=mdps.discount, lam=lam)
            )
    return values, data


def meta_value_objective(v, data, *, step_size, discount, lam=1.0):
    """The adapted value error on the last of `data`, the query Episodes, after a step on each of the others: V (N, S) → (N,)."""
    for episodes in data[:-1]:
        v = value_step(v, episodes, step_size=step_size, discount=discount, lam=lam)
    return value_error(v, data[-1], discount)


def train_values(
    rng,
    sample_tasks,
    log_pi,
    v,
    *,
    iterations,
    inner_step_size,
    step_size,
    lam=1.0,
    optimiser=adam,
    **sizes,
):
    """Meta-train V (S,) by `iterations` descent steps on the adapted value error: a generator of (V, mean error before the step).
    sizes: steps, episodes and length of `adapt_values`. Raises FloatingPointError, naming the iteration, where something is not finite.
    """
    state = None
    for iteration in range(iterations):
        mdps = sample_tasks(rng)
        values, data = adapt_values(
            rng, mdps, log_pi, v, step_size=inner_step_size, lam=lam, **sizes
        )
        settings = dict(step_size=inner_step_size, discount=mdps.discount, lam=lam)
        g = grad(lambda x: np.sum(meta_value_objective(x, data, **settings)))(values[0]).mean(0)
        v, state = optimiser(v, -g, state, step_size=step_size)
        error = value_error(values[-1], data[-1], mdps.discount).mean()
        if not np.isfinite(error) or not np.isfinite(v).all():
            raise FloatingPointError(
                f"iteration {iteration}: value error or values that are not finite"
            )
        yield v, error
