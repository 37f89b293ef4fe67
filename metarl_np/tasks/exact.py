"""The oracles: what can be computed exactly in a tabular MDP, by dynamic programming and by enumeration.
log π is (S, A) or (N, S, A); ValueError if it is not one. autograd differentiates the finite-horizon functions through it, to any order.
"""

from functools import reduce

import autograd.numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import require, require_memory, require_shapes, validate
from metarl_np.tasks.mdp import for_each_task, require_log_pi

BLOCK = 16_384  # states whose action values stay in a core's cache until the sweep has reduced them to one number each


@primitive
def expect(mdps, v):
    """E[v(s') | s, a] = Σ_z P(z|s,a) v(s'_z): v (N, S) → (N, S, A)."""
    require_shapes(mdps.shape[:2], v=v)
    return _expect(v.ravel(), mdps.next_rows, mdps.probabilities)


def _expect(v, rows, p):
    """Σ_z p v(row): v (N·S), rows and p (…, A, Z) → (…, A). A sum over a short last axis is fastest as a product with ones."""
    z = p.shape[-1]
    return (
        v.take(rows)[..., 0]
        if z == 1
        else ((v.take(rows) * p).reshape(-1, z) @ np.ones(z)).reshape(p.shape[:-1])
    )


@primitive
def push(mdps, m):
    """Σ_{s,a} m(s, a) P(s'|s, a): mass on (s, a) moved on to s', m (N, S, A) → (N, S). The transpose of `expect`."""
    require_shapes(mdps.shape, m=m)
    m = m[..., None] if mdps.probabilities.shape[-1] == 1 else m[..., None] * mdps.probabilities
    return np.bincount(mdps.next_rows.ravel(), m.ravel(), mdps.start.size).reshape(mdps.start.shape)


defvjp(expect, lambda ans, mdps, v: lambda g: push(mdps, g), argnums=[1])


defvjp(push, lambda ans, mdps, m: lambda g: expect(mdps, g), argnums=[1])


def action_values(mdps, v):
    """Q(s, a) = R̄(s, a) + γ E[v(s')]: v (N, S) → (N, S, A). Sutton & Barto (2018), eq. 4.6."""
    return mdps.expected_rewards + mdps.discount * expect(mdps, v)


def _sweep(mdps, v, over_actions):
    """One pass over all states, a block at a time: v (N, S) → (N, S). over_actions(Q (B, A), slice of the N·S states) → (B,)."""
    n, s, a, z = mdps.successors.shape
    require_shapes((n, s), v=v)
    rows = mdps.next_rows.reshape(-1, a, z)
    p = mdps.probabilities.reshape(-1, a, z)
    r = mdps.expected_rewards.reshape(-1, a)
    old = v.ravel()
    new = np.empty(n * s)
    for part in (slice(low, low + BLOCK) for low in range(0, n * s, BLOCK)):
        q = _expect(old, rows[part], p[part])
        q *= mdps.discount
        q += r[part]
        new[part] = over_actions(q, part)
    return new.reshape(n, s)


@primitive
def backup(mdps, pi, v):
    """T_π v = Σ_a π(a|s) Q(s, a), one sweep of policy evaluation: π (N, S, A), v (N, S) → (N, S). Sutton & Barto (2018), eq. 4.5."""
    require_shapes(mdps.shape, pi=pi)
    rows = pi.reshape(-1, pi.shape[-1])
    return _sweep(mdps, v, lambda q, part: (q * rows[part]) @ np.ones(q.shape[1]))


defvjp(
    backup,
    lambda ans, mdps, pi, v: lambda g: g[..., None] * action_values(mdps, v),
    lambda ans, mdps, pi, v: lambda g: mdps.discount * push(mdps, g[..., None] * pi),
    argnums=[1, 2],
)


def optimal_backup(mdps, v):
    """T* v = max_a Q(s, a), one sweep of value iteration: v (N, S) → (N, S). Sutton & Barto (2018), eq. 4.10."""
    return _sweep(mdps, v, lambda q, part: reduce(np.maximum, q.T))


def values(mdps, log_pi):
    """V_t(s) with T − t steps to go, by backward induction from V_T = 0: (T + 1, N, S)."""
    require_log_pi(log_pi, mdps)
    require_memory(8, mdps.horizon + 1, *mdps.shape[:2])
    v = [np.zeros(mdps.shape[:2])]
    pi = for_each_task(np.exp(log_pi), len(mdps))
    for _ in range(mdps.horizon):
        v.append(backup(mdps, pi, v[-1]))
    return np.array(v[::-1])


def expected_return(mdps, log_pi):
    """J = E Σ_{t<T} γᵗ r_t = Σ_s start(s) V_0(s): (N,)."""
    return np.sum(values(mdps, log_pi)[0] * mdps.start, -1)


def stationary_values(mdps, log_pi, *, tolerance=None, max_sweeps=100_000):
    """V(s) over an infinite horizon, (I − γ P_π) V = R_π: (N, S). Sutton & Barto (2018), eq. 4.4. Solved densely, S² numbers per
    task (which at γ = 1 needs sure termination), or, given a tolerance, by sweeps as `stationary_optimal_values`, at a cost linear in S.
    """
    require_log_pi(log_pi, mdps)
    n, s = mdps.shape[:2]
    pi = np.exp(log_pi) * ~mdps.terminal[..., None]
    if tolerance is not None:
        return _fixed_point(mdps, lambda v: backup(mdps, pi, v), tolerance, max_sweeps)
    require_memory(8, n, s, s)
    cell = np.arange(n * s).reshape(n, s, 1, 1) * s + mdps.successors
    p_pi = np.bincount(
        cell.ravel(), (pi[..., None] * mdps.probabilities).ravel(), n * s * s
    ).reshape(n, s, s)
    if mdps.discount == 1:
        reaches = mdps.terminal
        step = np.array(p_pi > 0)
        for _ in range(s):
            reaches = reaches | (step & reaches[:, None]).any(-1)
        require(
            reaches,
            "discount",
            "an infinite horizon at γ = 1 needs sure termination, and this policy may never end",
        )
    return np.linalg.solve(
        np.eye(s) - mdps.discount * p_pi, np.sum(pi * mdps.expected_rewards, -1)[..., None]
    )[..., 0]


def optimal_values(mdps):
    """V*_t(s) = max_a Q*_t(s, a) by backward induction: (T + 1, N, S). The optimum over all policies, time-dependent ones too."""
    validate(mdps=mdps)
    require_memory(8, mdps.horizon + 1, *mdps.shape[:2])
    v = np.zeros((mdps.horizon + 1,) + mdps.shape[:2])
    for t in reversed(range(mdps.horizon)):
        v[t] = optimal_backup(mdps, v[t + 1])
    return v


def optimal_log_pi(mdps):
    """log π of the optimal policy, which may depend on time, on the states of `mdps.with_time()`: (N, (T + 1)·S, A)."""
    best = np.concatenate(
        [action_values(mdps, v).argmax(-1) for v in optimal_values(mdps)[1:]]
        + [np.zeros(mdps.shape[:2], int)],
        1,
    )
    return np.where(best[..., None] == np.arange(mdps.shape[2]), 0.0, -np.inf)


def optimal_return(mdps):
    """J* = Σ_s start(s) V*_0(s): (N,)."""
    return np.sum(optimal_values(mdps)[0] * mdps.start, -1)


def stationary_optimal_values(mdps, *, tolerance=1e-10, max_sweeps=100_000):
    """V*(s) over an infinite horizon to `tolerance`, by value iteration: (N, S). Sutton & Barto (2018), eq. 4.10. Stops at a change below
    tolerance · (1 − γ)/γ, which bounds the error; at γ = 1 below tolerance, which bounds nothing. Raises ValueError after max_sweeps.
    """
    return _fixed_point(mdps, lambda v: optimal_backup(mdps, v), tolerance, max_sweeps)


def _fixed_point(mdps, sweep, tolerance, max_sweeps):
    """v = sweep(v) from 0, (N, S), to `tolerance`."""
    validate(mdps=mdps, tolerance=tolerance, max_sweeps=max_sweeps)
    v = np.zeros(mdps.shape[:2])
    gap = (1 - mdps.discount) / mdps.discount if 0 < mdps.discount < 1 else 1.0
    for _ in range(max_sweeps):
        v, old = sweep(v), v
        if abs(v - old).max() <= max(tolerance * gap, 4e-16 * abs(v).max()):
            return v
    raise ValueError(
        f"max_sweeps: at discount {mdps.discount} the values have not converged after {max_sweeps} sweeps"
    )


def occupancy(mdps, log_pi):
    """d_t(s) = γᵗ Pr(s_t = s), by pushing the start distribution forward: (T, N, S)."""
    require_log_pi(log_pi, mdps)
    require_memory(8, mdps.horizon, *mdps.shape[:2])
    d = [mdps.start]
    for _ in range(mdps.horizon - 1):
        d.append(mdps.discount * push(mdps, d[-1][..., None] * np.exp(log_pi)))
    return np.array(d)


def policy_gradient_table(mdps, log_pi):
    """W(s, a) = Σ_t d_t(s) π(a|s) Q_t(s, a), (N, S, A): ∇J = Σ_{s,a} W(s, a) ∇log π(a|s). The policy-gradient theorem.
    `policy.weighted_score(theta, W)` is the exact ∇J. Sutton & Barto (2018), eq. 13.5, with the γᵗ that the discounted objective has.
    """
    return sum(
        d[..., None] * np.exp(log_pi) * action_values(mdps, v)
        for d, v in zip(occupancy(mdps, log_pi), values(mdps, log_pi)[1:])
    )
