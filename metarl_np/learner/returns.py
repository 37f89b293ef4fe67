"""What is computed from rewards: returns, advantages, and baselines.

Time leads: arrays are (T, …), of recorded episodes (T, N, K) = time, task, episode. `discount` is
always γ. Rewards of masked steps are 0, or they are set to 0 by the caller.
"""

import autograd.numpy as np

from metarl_np.arguments import (
    defvjp,
    notrace_primitive,
    primitive,
    require,
    require_finite,
    require_floats,
    require_mask,
    require_plain,
    unmasked,
    validate,
)
from metarl_np.learner.policies import sum_last


def _in_time(argument, x):
    """x (T, …) as an array of floats; raises ValueError where it has no time axis."""
    x = require_floats(argument, x, single=True)
    require(x.ndim > 0 and len(x), argument, f"expected shape (T, …), T > 0, got {x.shape}")
    return x


def discounts(discount, steps, like):
    """γᵗ for t = 0 … T − 1, shaped (T, 1, …, 1) to multiply `like` (T, …)."""
    discount, steps = validate(discount=discount, steps=steps)
    ones = [1] * (np.ndim(like) - 1)
    return (discount ** np.arange(steps)).reshape(steps, *ones)


def discounted_return(rewards, discount):
    """Σ_t γᵗ r_t: rewards (T, …) → (…)."""
    rewards = _in_time("rewards", rewards)
    discount = validate(discount=discount)
    return np.tensordot(discount ** np.arange(len(rewards)), rewards, 1)


@primitive
def reward_to_go(rewards, discount):
    """G_t = r_t + γ G_{t+1}, G_T = 0: rewards (T, …) → (T, …). Sutton & Barto (2018), eq. 3.9."""
    returns = np.array(_in_time("rewards", rewards), float)
    discount = validate(discount=discount)
    for t in range(len(returns) - 2, -1, -1):
        returns[t] += discount * returns[t + 1]
    return returns


def _reward_to_go_vjp(returns, rewards, discount):
    """From Ḡ, the gradient for the returns, to r̄, the one for the rewards.

    G_t = Σ_{u≥t} γ^(u−t) r_u, so ∂G_t/∂r_u = γ^(u−t) for t ≤ u and 0 for t > u. Hence
    r̄_u = Σ_{t≤u} γ^(u−t) Ḡ_t, that is r̄_u = Ḡ_u + γ r̄_{u−1}. This is the recursion of
    `reward_to_go` itself, run forward in time: reverse time, call it, and reverse time again.
    """
    return lambda returns_bar: reward_to_go(returns_bar[::-1], discount)[::-1]


defvjp(reward_to_go, _reward_to_go_vjp, argnums=[0])


def gae(rewards, values, mask, bootstrap, *, discount, lam):
    """Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V(s_{t+1}) − V(s_t). Schulman et al. (2016), eq. 16.

    rewards, values V(s_t) and mask: (T, …); what is masked is worth 0, NaN too. bootstrap (…):
    V(s_T) where the last step was *truncated*, 0 where it terminated or reached the horizon.
    Returns (T, …). Raises ValueError on what is no mask.
    """
    require_plain(discount=discount, lam=lam)
    rewards = _in_time("rewards", rewards)
    shape = np.shape(rewards)
    values = require_floats("values", values, shape, single=True)
    bootstrap = require_floats("bootstrap", bootstrap, shape[1:], (), single=True)
    discount, lam = validate(discount=discount, lam=lam)
    mask = require_mask(mask, np.shape(rewards))
    last_value = unmasked(bootstrap, mask[-1])
    values = np.concatenate([unmasked(values, mask), last_value[None]])
    # 0 where masked, since no step follows a masked one
    td_errors = unmasked(rewards, mask) + discount * values[1:] - values[:-1]
    return reward_to_go(td_errors, discount * lam)


# ---- baselines b: functions of the returns G (T, N, K) and, if they want, of their Episodes


def no_baseline(returns, episodes=None):
    """b = 0: (T, N, K) → (T, N, K)."""
    return np.zeros(np.shape(returns))


def _taken(returns, episodes):
    """The returns, 0 where the Episodes, if they are given, are masked."""
    return returns if episodes is None else unmasked(returns, episodes.mask)


def time_mean_baseline(returns, episodes=None):
    """b_t = (1/K) Σ_k G_{t,k}, where a finished episode counts with 0: (T, N, K) → (T, N, K).

    Biased: an episode is part of its own mean, so the expected gradient is (1 − 1/K) ∇J.
    """
    returns = require_floats("returns", returns)
    returns = _taken(returns, episodes)
    return np.broadcast_to(sum_last(returns) / returns.shape[-1], returns.shape)


def leave_one_out_baseline(returns, episodes=None):
    """b_{t,k} = mean of G_{t,j} over the other episodes j ≠ k: (T, N, K) → (T, N, K).

    Unbiased. Raises ValueError if K < 2.
    """
    returns = require_floats("returns", returns)
    k = returns.shape[-1]
    require(k >= 2, "episodes", "a leave-one-out baseline needs at least 2 episodes per task")
    returns = _taken(returns, episodes)
    # in terms of what is above the first return: where all are equal that is exactly 0, and leaves
    # no advantages of 1e-17, which TRPO would follow
    first = returns[..., :1]
    above = returns - first
    others = sum_last(above) - above
    others /= k - 1  # in place: half the time of a large batch is fresh memory
    others += first
    return others


def _solve(gram, target):
    """w with gram w = target: (N, F, F), (N, F) → (N, F)."""
    require_finite(target, "returns: numbers")
    alone = "the features depend on each other; a larger ridge would help"
    try:
        w = np.linalg.solve(gram, target[..., None])[..., 0]
    except np.linalg.LinAlgError as error:
        raise ValueError(f"ridge: {alone}") from error
    _require_small(np.einsum("nij,nj->ni", gram, w) - target, target, f"ridge: {alone}")
    return w


@notrace_primitive
def _require_small(error, target, why):
    """ValueError unless the error (N, F) is far below the target (N, F) in each task."""
    small = abs(error).max(-1) <= 1e-6 * abs(target).max(-1)
    if not small.all():
        raise ValueError(why)


def linear_baseline(features, ridge=1e-6):
    """The baseline b = wᵀx, x = (φ(s_t), 1, τ, τ², τ³) with τ = t/T, for features φ (S, F).

    w is fitted by ridge regression on each task's returns. Returns a function of returns (T, N, K)
    and their Episodes. Biased: it is fitted on the very episodes that it is then used on. That
    function raises ValueError if returns are not finite, or the ridge is too small to solve with.
    """
    ridge = validate(ridge=ridge)
    features = require_floats("features", features)
    good = features.ndim == 2 and np.isfinite(features).all()
    require(good, "features", f"expected finite (S, F), got {features.shape}")

    def baseline(returns, episodes):
        returns = require_floats("returns", returns)
        tau = np.arange(len(returns))[:, None, None, None] / len(returns)
        powers = np.broadcast_to(tau ** np.arange(4), returns.shape + (4,))
        x = np.concatenate([features[episodes.states], powers], -1)
        taken = x * episodes.mask[..., None]
        gram = np.einsum("tnki,tnkj->nij", taken, taken) + ridge * np.eye(x.shape[-1])
        target = np.einsum("tnki,tnk->ni", taken, _taken(returns, episodes))
        w = _solve(gram, target)
        return np.einsum("tnki,ni->tnk", x, w)

    return baseline
