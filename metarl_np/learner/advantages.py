"""What PPO and TRPO see of recorded episodes: advantages, the visits of each state, and KL̄."""

import autograd.numpy as np

from metarl_np.arguments import require, require_floats, unmasked
from metarl_np.learner.policies import kl
from metarl_np.learner.returns import gae
from metarl_np.learner.surrogates import fold, gather, reinforce_weights


def at_states(v, states):
    """v(s_t): v (N, S), states (T, N, K) → (T, N, K)."""
    return gather(v[..., None], states, np.zeros(states.shape, int))


def fold_states(steps, states, n_states):
    """mean_k Σ_t steps_t [s_t = s]: (T, N, K) → (N, S)."""
    return fold(steps, states, np.zeros(states.shape, int), n_states, 1)[..., 0]


def td_errors(v, episodes, discount, lam):
    """V̂_t − V(s_t), V̂ the λ-return: V (N, S) → (T, N, K).

    At λ = 0 these are the one-step TD errors, at λ = 1 the errors against the returns. Where an
    episode was truncated V(s_T) stands for what would have followed; so if rollouts are shorter
    than the horizon, V is taken for the value without a horizon.
    """
    known = episodes.last_states is not None and episodes.truncated is not None
    require(known, "episodes", "a value function needs their last_states and truncated")
    last_states = unmasked(episodes.last_states, episodes.truncated)
    last_values = at_states(v, last_states[None])[0]
    return gae(
        episodes.rewards,
        at_states(v, episodes.states),
        episodes.mask,
        bootstrap=unmasked(last_values, episodes.truncated),
        discount=discount,
        lam=lam,
    )


def advantages(policy, theta, episodes, discount, *, baseline, lam):
    """Â_t of Episodes, 0 on masked steps: (T, N, K).

    For an ActorCritic it is GAE(λ), which can be differentiated by θ (N, F, A + 1); for another
    policy G_t − b_t, with the baseline's b.
    """
    if hasattr(policy, "values"):
        return td_errors(policy.values(theta), episodes, discount, lam)
    return reinforce_weights(episodes, discount, baseline=baseline, drop_discount=True)


def visits(episodes, n_states):
    """ν(s), the share of a task's unmasked steps that were taken in s: (N, S), rows sum to one."""
    counts = fold_states(episodes.mask * 1.0, episodes.states, n_states)
    return counts / counts.sum(1, keepdims=True)


def mean_kl(policy, old, new, nu):
    """KL̄ = Σ_s ν(s) KL(π_old(·|s)‖π_new(·|s)) in nats: θ (N, F, A) twice, ν (N, S) → (N,)."""
    old = require_floats("old", old)
    new = require_floats("new", new)
    nu = require_floats("nu", nu, (len(old), policy.n_states))
    return np.sum(nu * kl(policy.log_pi(old), policy.log_pi(new)), -1)
