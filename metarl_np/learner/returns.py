"""Recorded episodes, and what is computed from their rewards: returns, advantages and baselines. Axes (T, N, K)."""

import autograd.numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import require, require_array, require_shapes, validate


def discounts(discount, steps, like):
    """γᵗ for t = 0 … T−1, shaped (T, 1, …, 1) to multiply `like` (T, …)."""
    return (discount ** np.arange(steps)).reshape((steps,) + (1,) * (np.ndim(like) - 1))


def discounted_return(rewards, discount):
    """Σ_t γᵗ r_t: rewards (T, …) → (…)."""
    return np.tensordot(discount ** np.arange(len(rewards)), rewards, 1)


@primitive
def reward_to_go(rewards, discount):
    """G_t = r_t + γ G_{t+1}, G_T = 0: rewards (T, …) → (T, …). Sutton & Barto (2018), eq. 3.9."""
    returns = np.array(rewards, float)
    for t in range(len(returns) - 2, -1, -1):
        returns[t] += discount * returns[t + 1]
    return returns


defvjp(
    reward_to_go,
    lambda ans, rewards, discount: lambda g: reward_to_go(g[::-1], discount)[::-1],
    argnums=[0],
)


def gae(rewards, values, mask, bootstrap, *, discount, lam):
    """Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V(s_{t+1}) − V(s_t). Schulman et al. (2016), eq. 16. rewards, values V(s_t), mask: (T, …), what
    is masked being worth 0; bootstrap (…): V(s_T) where the last step was *truncated*, 0 where it terminated or the horizon is reached.
    """
    require_shapes(np.shape(rewards), values=values, mask=mask)
    require_shapes(np.shape(rewards)[1:], (), bootstrap=bootstrap)
    values = np.concatenate([values * mask, (bootstrap * mask[-1])[None]])
    return reward_to_go((rewards + discount * values[1:] - values[:-1]) * mask, discount * lam)


def no_baseline(returns, episodes=None):
    """b = 0: (T, N, K) → (T, N, K)."""
    return np.zeros(np.shape(returns))


def time_mean_baseline(returns, episodes=None):
    """b_t = (1/K) Σ_k G_{t,k}, a finished episode counting with 0: (T, N, K) → (T, N, K). Biased: the expected gradient is (1 − 1/K) ∇J."""
    return np.broadcast_to(
        np.matmul(returns, np.ones((returns.shape[-1], 1))) / returns.shape[-1], returns.shape
    )


def leave_one_out_baseline(returns, episodes=None):
    """b_{t,k} = mean of G_{t,j} over the other episodes j ≠ k: (T, N, K) → (T, N, K). Unbiased; raises ValueError if K < 2."""
    k = returns.shape[-1]
    require(k >= 2, "episodes", "a leave-one-out baseline needs at least 2 episodes per task")
    first = returns[..., :1]
    above = (
        returns - returns[..., :1]
    )  # so equal returns have no advantages of 1e-17, which TRPO would follow
    return first + (np.matmul(above, np.ones((k, 1))) - above) / (k - 1)


def linear_baseline(features, ridge=1e-6):
    """The baseline b = wᵀx, x = (φ(s_t), 1, τ, τ², τ³) with τ = t/T, w by ridge regression on each task's returns: φ (S, F).
    Returns a function of returns (T, N, K) and their Episodes. Biased: it is fitted on the very episodes that it then scores.
    """
    validate(ridge=ridge)
    features = require_array("features", features)
    require(
        features.ndim == 2 and np.isfinite(features).all(),
        "features",
        f"expected finite (S, F), got {features.shape}",
    )

    def baseline(returns, episodes):
        rows = len(features)
        last = episodes.states.max()
        require(last < rows, "features", f"{rows} rows, where the episodes visit state {last}")
        time = (np.arange(len(returns))[:, None, None, None] / len(returns)) ** np.arange(4)
        x = np.concatenate(
            [features[episodes.states], np.broadcast_to(time, returns.shape + (4,))], -1
        )
        valid = x * episodes.mask[..., None]
        gram = np.einsum("tnki,tnkj->nij", valid, valid) + ridge * np.eye(x.shape[-1])
        w = np.linalg.solve(gram, np.einsum("tnki,tnk->ni", valid, returns)[..., None])[..., 0]
        return np.einsum("tnki,ni->tnk", x, w)

    return baseline
