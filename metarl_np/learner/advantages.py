"""Surrogates: pure functions of recorded arrays whose derivatives are estimators. Sums over time, means over episodes.
log π(a_t|s_t), which alone depends on θ, rewards and baselines are (T, N, K), a surrogate (N,). All have the same first derivative, the
REINFORCE estimate of ∇J; they differ in the second, by which MAML differentiates its inner step:
    first_order  Ĥ = 0                naive's, taken as a constant
    naive        Ĥ → H₂               Σ γᵗ log π_t (G_t − b_t)
    lvc          Ĥ → H₁ + H₂          Σ γᵗ □(log π_t) (G_t − b_t)
    dice         Ĥ → H                Σ γᵗ □(Σ_{t'≤t} log π_t') r_t + Σ γᵗ (1 − □(log π_t)) b_t
    loaded_dice  Ĥ → H at λ = 1       Σ γᵗ (G_t − b_t) [□(w_t) − □(w_t − log π_t)],  w_t = λ w_{t−1} + log π_t
with □(x) = exp(x − ⊥x), which is 1 but differentiates like a product of probabilities, and H = H₁ + H₂ + H₁₂ + H₁₂ᵀ the Hessian of J: H₁ =
E Σ γᵗ ∇log π_t ∇log π_tᵀ G_t, H₂ = E Σ γᵗ ∇²log π_t G_t, H₁₂ = E Σ γᵗ ∇log π_t (∇Q_t)ᵀ. (With a baseline that does not depend on the
action, lvc and dice keep theirs, and naive's becomes H₂ − E Σ γᵗ b_t ∇²log π_t.)"""

import autograd.numpy as np

from metarl_np.arguments import require_shapes
from metarl_np.learner.policies import kl
from metarl_np.learner.returns import gae
from metarl_np.learner.surrogates import fold, gather, reinforce_weights


def td_errors(v, episodes, discount, lam):
    """V̂_t − V(s_t), V̂ the λ-return: one-step TD errors at λ = 0, the error against the returns at λ = 1: V (N, S) → (T, N, K).
    Where an episode was truncated V(s_T) stands for the rest, so with rollouts shorter than the horizon V is that of no horizon.
    """
    bootstrap = at_states(v, episodes.last_states[None])[0] * episodes.truncated
    return gae(
        episodes.rewards * episodes.mask,
        at_states(v, episodes.states),
        episodes.mask,
        bootstrap,
        discount=discount,
        lam=lam,
    )


def advantages(policy, theta, episodes, discount, *, baseline, lam):
    """Â_t, 0 on masked steps, (T, N, K): GAE of an ActorCritic, differentiable through θ (N, F, A + 1), or G_t − b_t for another policy."""
    if hasattr(policy, "values"):
        return td_errors(policy.values(theta), episodes, discount, lam)
    return reinforce_weights(episodes, discount, baseline=baseline, drop_discount=True)


def at_states(v, states):
    """v(s_t): v (N, S), states (T, N, K) → (T, N, K)."""
    return gather(v[..., None], states, np.zeros(states.shape, int))


def visits(episodes, n_states):
    """ν(s), the share of a task's unmasked steps that were taken in s: (N, S), rows summing to one."""
    counts = fold(
        episodes.mask * 1.0, episodes.states, np.zeros(episodes.states.shape, int), n_states, 1
    )[..., 0]
    return counts / counts.sum(1, keepdims=True)


def mean_kl(policy, old, new, nu):
    """KL̄ = Σ_s ν(s) KL(π_old(·|s)‖π_new(·|s)) in nats: θ (N, F, A) twice, ν (N, S) → (N,)."""
    require_shapes((len(old), policy.n_states), nu=nu)
    return np.sum(nu * kl(policy.log_pi(old), policy.log_pi(new)), -1)
