"""What can be computed exactly in a known MDP, by dynamic programming: V, Q, J, the optimum, ∇J.

A policy is given as its table of log-probabilities, log π (S, A), or (N, S, A) with one for each
task; ValueError if it is none. autograd differentiates the functions of a finite horizon through
it, to any order.
"""

from functools import reduce

import autograd.numpy as np

from metarl_np.arguments import (
    defvjp,
    primitive,
    require,
    require_floats,
    require_memory,
    require_plain,
    validate,
)
from metarl_np.tasks.mdp import for_each_task, require_log_pi

LONGEST = 1e11  # steps: rounding spoils 2e-16 of a value for each step that an episode lasts
# states whose action values stay in a core's cache until a sweep has reduced them to one number
BLOCK = 16_384


@primitive
def expect(mdps, v):
    """E[v(s') | s, a] = Σ_z P(z|s, a) v(s'_z): v (N, S) → (N, S, A)."""
    v = require_floats("v", v, mdps.shape[:2])
    return _expect(v.ravel(), mdps.next_rows, mdps.probabilities)


def _expect(v, rows, p):
    """Σ_z p v(row): v (N·S,), rows and p (…, A, Z) → (…, A)."""
    n_slots = p.shape[-1]
    if n_slots == 1:  # one successor, of probability 1
        return v.take(rows)[..., 0]
    weighted = (v.take(rows) * p).reshape(-1, n_slots)
    total = weighted @ np.ones(n_slots)  # ten times as fast as a sum over a short last axis
    return total.reshape(p.shape[:-1])


@primitive
def push(mdps, mass):
    """Σ_{s,a} m(s, a) P(s'|s, a), mass on (s, a) moved on to s': (N, S, A) → (N, S).

    As a matrix it is the transpose of `expect`: each is the derivative of the other.
    """
    mass = require_floats("mass", mass, mdps.shape)
    moved = mass[..., None]
    if mdps.probabilities.shape[-1] > 1:
        moved = moved * mdps.probabilities
    arrived = np.bincount(mdps.next_rows.ravel(), moved.ravel(), mdps.start.size)
    return arrived.reshape(mdps.start.shape)


def _expect_vjp(_, mdps, v):
    return lambda g: push(mdps, g)


def _push_vjp(_, mdps, mass):
    return lambda g: expect(mdps, g)


defvjp(expect, _expect_vjp, argnums=[1])
defvjp(push, _push_vjp, argnums=[1])


def action_values(mdps, v):
    """Q(s, a) = R̄(s, a) + γ E[v(s')]: v (N, S) → (N, S, A). Sutton & Barto (2018), eq. 4.6."""
    return mdps.expected_rewards + mdps.discount * expect(mdps, v)


def _sweep(mdps, v, over_actions):
    """One pass over all states, a block at a time: v (N, S) → (N, S).

    over_actions(Q (B, A), part) → (B,), `part` being the slice of the N·S states. The same as
    over_actions of `action_values` of all states at once, in fewer trips to memory.
    """
    n_actions, n_slots = mdps.successors.shape[2:]
    v = require_floats("v", v, mdps.shape[:2])
    rows = mdps.next_rows.reshape(-1, n_actions, n_slots)
    p = mdps.probabilities.reshape(-1, n_actions, n_slots)
    r = mdps.expected_rewards.reshape(-1, n_actions)
    old = v.ravel()
    new = np.empty(old.size)
    for low in range(0, old.size, BLOCK):
        part = slice(low, low + BLOCK)
        q = _expect(old, rows[part], p[part])
        q *= mdps.discount
        q += r[part]
        new[part] = over_actions(q, part)
    return new.reshape(v.shape)


@primitive
def backup(mdps, pi, v):
    """T_π v = Σ_a π(a|s) Q(s, a), a sweep of policy evaluation: π (N, S, A), v (N, S) → (N, S).

    Sutton & Barto (2018), eq. 4.5.
    """
    pi = require_floats("pi", pi, mdps.shape)
    n_actions = pi.shape[-1]
    rows = pi.reshape(-1, n_actions)
    return _sweep(mdps, v, lambda q, part: (q * rows[part]) @ np.ones(n_actions))


def _backup_pi_vjp(_, mdps, pi, v):
    """∂(T_π v)(s) / ∂π(a|s) = Q(s, a)."""
    return lambda g: g[..., None] * action_values(mdps, v)


def _backup_v_vjp(_, mdps, pi, v):
    """∂(T_π v)(s) / ∂v(s') = γ Σ_a π(a|s) P(s'|s, a), transposed."""
    return lambda g: mdps.discount * push(mdps, g[..., None] * pi)


defvjp(backup, _backup_pi_vjp, _backup_v_vjp, argnums=[1, 2])


def optimal_backup(mdps, v):
    """T* v = max_a Q(s, a), a sweep of value iteration: (N, S) → (N, S).

    Sutton & Barto (2018), eq. 4.10.
    """
    return _sweep(mdps, v, lambda q, part: reduce(np.maximum, q.T))


def values(mdps, log_pi):
    """V_t(s) with T − t steps to go, by backward induction from V_T = 0: (T + 1, N, S)."""
    log_pi = require_log_pi(log_pi, mdps)
    require_memory(8, mdps.horizon + 1, *mdps.shape[:2])
    pi = for_each_task(np.exp(log_pi), len(mdps))
    v = [np.zeros(mdps.shape[:2])]
    for _ in range(mdps.horizon):
        v.append(backup(mdps, pi, v[-1]))
    return np.array(v[::-1])


def expected_return(mdps, log_pi):
    """J = E Σ_{t<T} γᵗ r_t = Σ_s start(s) V_0(s): (N,)."""
    return np.sum(values(mdps, log_pi)[0] * mdps.start, -1)


def stationary_values(mdps, log_pi, *, tolerance=None, max_sweeps=100_000):
    """V(s) over an infinite horizon, (I − γ P_π) V = R_π: (N, S). Sutton & Barto (2018), eq. 4.4.

    Solved densely, with S² numbers per task, which at γ = 1 needs a policy that surely ends; or,
    where a tolerance is given, by sweeps as in `stationary_optimal_values`, at a cost linear in S.
    Raises ValueError where Σ_t γᵗ Pr(not ended at t), the steps that count, are so many that
    rounding would spoil the fourth digit of what a reward of 1 at each of them is worth.
    """
    log_pi = require_log_pi(log_pi, mdps)
    n_tasks, n_states, _ = mdps.shape
    pi = np.exp(log_pi) * ~mdps.terminal[..., None]
    if tolerance is not None:
        return _fixed_point(mdps, lambda v: backup(mdps, pi, v), tolerance, max_sweeps)
    require_plain(log_pi=log_pi)
    require_memory(8, n_tasks, n_states, n_states)
    dense = (n_tasks, n_states, n_states)
    from_row = np.arange(n_tasks * n_states).reshape(n_tasks, n_states, 1, 1)
    cell = from_row * n_states + mdps.successors
    chances = pi[..., None] * mdps.probabilities
    p_pi = np.bincount(cell.ravel(), chances.ravel(), np.prod(dense)).reshape(dense)
    if mdps.discount == 1:
        surely_ends = "an infinite horizon at γ = 1 needs sure termination"
        require(
            _reaches_end(mdps, p_pi > 0), "discount", f"{surely_ends}; this policy may never end"
        )
    r_pi = np.sum(pi * mdps.expected_rewards, -1)
    # (I − γ P_π)⁻¹ has no negative entries, so its norm is the largest of what it makes of ones
    steps_and_values = np.stack([np.ones(r_pi.shape), r_pi], -1)
    try:
        solved = np.linalg.solve(np.eye(n_states) - mdps.discount * p_pi, steps_and_values)
    except np.linalg.LinAlgError:
        solved = np.full(steps_and_values.shape, np.inf)
    steps = solved[..., 0]
    too_long = f"episodes last for more than {LONGEST:.0e} discounted steps: too many for float64"
    require((steps >= 0) & (steps < LONGEST), "discount", too_long)
    return solved[..., 1]


def _reaches_end(mdps, can_follow):
    """From which states a terminal one can be reached: can_follow (N, S, S) → (N, S) bool."""
    reaches = mdps.terminal
    for _ in range(mdps.shape[1]):
        reaches = reaches | (can_follow & reaches[:, None]).any(-1)
    return reaches


def optimal_values(mdps):
    """V*_t(s) = max_a Q*_t(s, a) by backward induction from V*_T = 0: (T + 1, N, S).

    The optimum over all policies, those that depend on time too.
    """
    validate(mdps=mdps)
    require_memory(8, mdps.horizon + 1, *mdps.shape[:2])
    v = np.zeros((mdps.horizon + 1,) + mdps.shape[:2])
    for t in reversed(range(mdps.horizon)):
        v[t] = optimal_backup(mdps, v[t + 1])
    return v


def optimal_log_pi(mdps):
    """log π of the optimal policy, on the states of `mdps.with_time()`: (N, (T + 1)·S, A)."""
    best = [action_values(mdps, v).argmax(-1) for v in optimal_values(mdps)[1:]]
    at_end = np.zeros(mdps.shape[:2], int)
    best = np.concatenate([*best, at_end], 1)
    return np.where(best[..., None] == np.arange(mdps.shape[2]), 0.0, -np.inf)


def optimal_return(mdps):
    """J* = Σ_s start(s) V*_0(s): (N,)."""
    return np.sum(optimal_values(mdps)[0] * mdps.start, -1)


def stationary_optimal_values(mdps, *, tolerance=1e-10, max_sweeps=100_000):
    """V*(s) over an infinite horizon, to `tolerance`, by value iteration: (N, S).

    Sutton & Barto (2018), eq. 4.10. With Δ the change in a sweep and ρ its rounding, the error is
    at most (γΔ + ρ)/(1 − γ). It stops when that is no more than the tolerance; at γ = 1 when Δ is,
    which bounds nothing. Raises ValueError after max_sweeps, and where float64 cannot meet the
    tolerance.
    """
    return _fixed_point(mdps, lambda v: optimal_backup(mdps, v), tolerance, max_sweeps)


def _fixed_point(mdps, sweep, tolerance, max_sweeps):
    """v = sweep(v) from 0, (N, S), to `tolerance`."""
    validate(mdps=mdps)
    tolerance, max_sweeps = validate(tolerance=tolerance, max_sweeps=max_sweeps)
    gamma = mdps.discount
    v = np.zeros(mdps.shape[:2])
    for _ in range(max_sweeps):
        old = v
        v = sweep(v)
        change = abs(v - old).max()
        rounding = 4e-16 * abs(v).max()
        if gamma in (0, 1):  # without discount nothing is bounded; with γ = 0 a sweep is exact
            if change <= max(tolerance, rounding):
                return v
        elif gamma * change + rounding <= tolerance * (1 - gamma):
            return v
        elif change <= rounding:
            reached = (gamma * change + rounding) / (1 - gamma)
            below = f"{tolerance:g} is less than rounding allows at discount {gamma}"
            raise ValueError(f"tolerance: {below}; {reached:.1e} can be reached")
    slow = f"at discount {gamma} the values have not converged after {max_sweeps} sweeps"
    raise ValueError(f"max_sweeps: {slow}")


def occupancy(mdps, log_pi):
    """d_t(s) = γᵗ Pr(s_t = s), by pushing the start distribution forward: (T, N, S)."""
    log_pi = require_log_pi(log_pi, mdps)
    require_memory(8, mdps.horizon, *mdps.shape[:2])
    d = [mdps.start]
    for _ in range(mdps.horizon - 1):
        acting = d[-1][..., None] * np.exp(log_pi)
        d.append(mdps.discount * push(mdps, acting))
    return np.array(d)


def policy_gradient_table(mdps, log_pi):
    """W(s, a) = Σ_t d_t(s) π(a|s) Q_t(s, a), (N, S, A): ∇J = Σ_{s,a} W(s, a) ∇log π(a|s).

    This is the policy-gradient theorem, with the γᵗ that the discounted objective has: Sutton &
    Barto (2018), eq. 13.5. `policy.weighted_score(theta, W)` is the exact ∇J.
    """
    log_pi = require_log_pi(log_pi, mdps)
    occupied = occupancy(mdps, log_pi)
    after = values(mdps, log_pi)[1:]
    return sum(
        d[..., None] * np.exp(log_pi) * action_values(mdps, v) for d, v in zip(occupied, after)
    )
