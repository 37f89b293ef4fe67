"""Surrogates: pure functions of recorded arrays whose derivative is an estimator. Sums over time, means over episodes.

What is recorded (weights) enters as a constant; only log-probabilities depend on θ.
"""

import autograd.numpy as np

from metarl_np.returns import discounts, no_baseline, reward_to_go


def reinforce_weights(episodes, discount, *, baseline=no_baseline, drop_discount=False):
    """γᵗ (G_t − b_t) on the steps that were taken, 0 on masked ones: Episodes → (T, N, K).

    drop_discount leaves γᵗ out: what many texts print, and the gradient of nothing in particular.
    """
    returns = reward_to_go(episodes.rewards * episodes.mask, discount)
    weights = (returns - baseline(returns, episodes)) * episodes.mask
    return weights if drop_discount else weights * discounts(discount, len(returns), returns)


def gather_log_probs(log_pi, states, actions):
    """log π(a_t|s_t) from a table: log π (S, A) or (N, S, A), states and actions (T, N, K) → (T, N, K)."""
    return log_pi[states, actions] if np.ndim(log_pi) == 2 else log_pi[np.arange(states.shape[1])[:, None], states, actions]


def reinforce(log_probs, weights):
    """Σ_t mean_k w_t log π(a_t|s_t): (T, N, K), (T, N, K) → (N,). Its gradient is the REINFORCE estimate of ∇J.

    With w_t = γᵗ (G_t − b_t): ∇J = E Σ_t γᵗ ∇log π(a_t|s_t) Q_t(s_t, a_t). Williams (1992); Sutton & Barto (2018), §13.3.
    """
    return np.sum(np.mean(log_probs * weights, -1), 0)


def fold(weights, states, actions, n_states, n_actions):
    """W(s, a) = mean_k Σ_t w_t [s_t = s, a_t = a]: weights, states, actions (T, N, K) → (N, S, A). All that REINFORCE needs."""
    n, k = states.shape[1:]
    cell = (np.arange(n)[:, None] * n_states + states) * n_actions + actions
    return np.bincount(cell.ravel(), weights.ravel(), n * n_states * n_actions).reshape(n, n_states, n_actions) / k


def reinforce_folded(log_pi, table):
    """Σ_{s,a} W(s, a) log π(a|s): (S, A) or (N, S, A), (N, S, A) → (N,). Equal to `reinforce` on what was folded into W."""
    return np.sum(log_pi * table, (-2, -1))
