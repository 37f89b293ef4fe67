"""A meta-learned value function: the V from which k TD(λ) steps on a new task come closest to V^π.

MAML's two levels with regression in both. V (S,) is a table that all tasks share, or (N, S) with
one per task. The policy is fixed.
"""

from copy import deepcopy

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    require_finite,
    require_floats,
    unmasked,
    validate,
)
from metarl_np.learner.advantages import at_states, fold_states, td_errors
from metarl_np.learner.optim import adam
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.surrogates import stop


def value_step(v, episodes, *, step_size, discount, lam=1.0):
    """V'(s) = V(s) + α Σ_t mean_k [s_t = s] (V̂_t − V(s_t)): V (N, S) → (N, S).

    Sutton & Barto (2018), eq. 12.2, offline.
    """
    v = require_floats("v", v)
    step_size = validate(step_size=step_size)
    errors = td_errors(v, episodes, discount, lam)
    return v + step_size * fold_states(errors, episodes.states, np.shape(v)[1])


def value_error(v, episodes, discount):
    """½ mean over steps and episodes of (G_t − V(s_t))², the target a constant: V (N, S) → (N,)."""
    v = require_floats("v", v)
    now = at_states(v, episodes.states)
    target = stop(td_errors(v, episodes, discount, 1.0) + now)
    errors = unmasked(target - now, episodes.mask)
    return 0.5 * np.sum(errors**2, (0, 2)) / episodes.mask.sum((0, 2))


def adapt_values(rng, mdps, log_pi, v, *, steps, step_size, episodes, length=None, lam=1.0):
    """V after 0..k value steps in every task, (N, S) each, and k + 1 Episodes: two lists.

    Each of the k = `steps` is made on K = `episodes` new episodes of `length` time steps under
    log π (S, A) or (N, S, A). v: (S,), shared, or (N, S). The last Episodes are the query.
    """
    steps, step_size, lam = validate(steps=steps, step_size=step_size, lam=lam)
    length = mdps.horizon if length is None else validate(length=length)
    settings = dict(step_size=step_size, discount=mdps.discount, lam=lam)
    values = [np.zeros(mdps.shape[:2]) + require_floats("v", v)]
    data = []
    for j in range(steps + 1):
        data.append(rollout(rng, mdps, log_pi, episodes, steps=length))
        if j < steps:
            values.append(value_step(values[j], data[j], **settings))
    return values, data


def meta_value_objective(v, data, *, step_size, discount, lam=1.0):
    """The value error on the last of `data` after a step on each of the others: V (N, S) → (N,)."""
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
    """Meta-train V (S,) on the adapted value error: a generator of (V, mean error before the step).

    iterations: of steps downhill. sizes: steps, episodes and length of `adapt_values`. Raises
    FloatingPointError, naming the iteration, where something is not finite.
    """
    validate(rng=rng, sample_tasks=sample_tasks, optimiser=optimiser)
    iterations, step_size = validate(iterations=iterations, step_size=step_size)
    v = require_floats("v", v)
    state = None
    for iteration in range(iterations):
        mdps = sample_tasks(rng)
        inner = dict(step_size=inner_step_size, lam=lam)
        values, data = adapt_values(rng, mdps, log_pi, v, **inner, **sizes)

        def total(x):
            return np.sum(meta_value_objective(x, data, discount=mdps.discount, **inner))

        g = grad(total)(values[0]).mean(0)
        # copies: an optimiser that works in place must not change what was yielded before
        before = deepcopy((v, state))
        v, state = optimiser(before[0], -g, before[1], step_size=step_size)
        error = value_error(values[-1], data[-1], mdps.discount).mean()
        where = f"iteration {iteration}: value error or values"
        require_finite(error, where)
        require_finite(v, where)
        yield v, error
