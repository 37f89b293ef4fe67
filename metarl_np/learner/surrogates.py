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
from autograd.extend import defvjp, notrace_primitive, primitive

from metarl_np.arguments import require_shapes
from metarl_np.learner.returns import discounts, no_baseline, reward_to_go
from metarl_np.tasks.mdp import for_each_task


@notrace_primitive
def stop(x):
    """⊥x: the value of x, a constant to every derivative; any shape (…) → (…)."""
    return x


def magic_box(x):
    """□(x) = exp(x − ⊥x). Foerster et al. (2018), §4."""
    return np.exp(x - stop(x))


@primitive
def gather(table, states, actions):
    """table(s_t, a_t): table (N, S, A), states and actions (T, N, K) → (T, N, K)."""
    require_shapes(np.shape(states), actions=actions)
    require_shapes((states.shape[1],) + np.shape(table)[-2:], table=table)
    return table[np.arange(states.shape[1])[:, None], states, actions]


@primitive
def scatter(steps, states, actions, n_states, n_actions):
    """Σ_{t,k} steps_t [s_t = s, a_t = a]: (T, N, K) → (N, S, A). The transpose of `gather`."""
    require_shapes(steps.shape, states=states, actions=actions)
    n = states.shape[1]
    cell = (
        states * np.int32(n_actions) + actions + np.arange(n)[:, None] * (n_states * n_actions)
    )  # recorded states may be int8
    return np.bincount(cell.ravel(), steps.ravel(), n * n_states * n_actions).reshape(
        n, n_states, n_actions
    )


defvjp(gather, lambda ans, table, s, a: lambda g: scatter(g, s, a, *table.shape[1:]), argnums=[0])


defvjp(
    scatter, lambda ans, steps, s, a, n_states, n_actions: lambda g: gather(g, s, a), argnums=[0]
)


def reinforce_weights(episodes, discount, *, baseline=no_baseline, drop_discount=False):
    """γᵗ (G_t − b_t), 0 on masked steps: Episodes → (T, N, K). drop_discount leaves γᵗ out: the gradient of nothing in particular."""
    returns = reward_to_go(episodes.rewards * episodes.mask, discount)
    b = baseline(returns, episodes)
    require_shapes(returns.shape, (), baseline=b)
    weights = returns - b
    weights *= episodes.mask  # in place: half the time of a large batch is fresh memory
    weights *= 1.0 if drop_discount else discounts(discount, len(returns), returns)
    return weights


def fold(weights, states, actions, n_states, n_actions):
    """W(s, a) = mean_k Σ_t w_t [s_t = s, a_t = a]: weights, states, actions (T, N, K) → (N, S, A). All that REINFORCE needs."""
    return scatter(weights, states, actions, n_states, n_actions) / states.shape[2]


def gather_log_probs(log_pi, states, actions):
    """log π(a_t|s_t) from a table that all tasks share or from theirs: (S, A) or (N, S, A), (T, N, K) → (T, N, K)."""
    return gather(
        for_each_task(log_pi, states.shape[1]) if np.ndim(log_pi) == 2 else log_pi,
        states,
        actions,
    )


def reinforce(log_probs, weights):
    """Σ_t mean_k w_t log π(a_t|s_t): (T, N, K), (T, N, K) → (N,). Its gradient is the REINFORCE estimate of ∇J.
    With w_t = γᵗ (G_t − b_t): ∇J = E Σ_t γᵗ ∇log π(a_t|s_t) Q_t(s_t, a_t). Williams (1992); Sutton & Barto (2018), §13.3.
    """
    require_shapes(np.shape(weights), log_probs=log_probs)
    return np.sum(np.mean(log_probs * weights, -1), 0)


def reinforce_folded(log_pi, table):
    """Σ_{s,a} W(s, a) log π(a|s): (S, A) or (N, S, A), (N, S, A) → (N,). Equal to `reinforce` on what was folded into W."""
    require_shapes(np.shape(table), np.shape(table)[-2:], log_pi=log_pi)
    return np.sum(log_pi * table, (-2, -1))


def naive(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ log π_t (G_t − b_t), mean over K: the surrogate of most public code. All arguments (T, N, K) → (N,)."""
    return reinforce(log_probs, _weights(rewards, baseline, mask, discount))


def lvc(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(log π_t) (G_t − b_t): low-variance curvature. Rothfuss et al. (2019), eq. 9."""
    return reinforce(magic_box(log_probs), _weights(rewards, baseline, mask, discount))


def dice(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(Σ_{t'≤t} log π_t') r_t + Σ_t γᵗ (1 − □(log π_t)) b_t. Foerster et al. (2018), §4. (Inside the product, as r_t − b_t, b would
    bias the first derivative already; Mao et al. (2019) add a baseline for the second, which is not here.)
    """
    require_shapes(np.shape(mask), (), log_probs=log_probs, rewards=rewards, baseline=baseline)
    steps = (
        magic_box(np.cumsum(log_probs * mask, 0)) * rewards + (1 - magic_box(log_probs)) * baseline
    )
    return np.sum(np.mean(steps * mask * discounts(discount, len(mask), mask), -1), 0)


def loaded_dice(log_probs, rewards, baseline, mask, discount, *, lam=1.0):
    """Σ_t γᵗ (G_t − b_t) [□(w_t) − □(w_t − log π_t)], w_t = λ w_{t−1} + log π_t. Farquhar et al. (2019), §4."""
    require_shapes(np.shape(mask), log_probs=log_probs)
    lag = np.arange(len(mask))[:, None] - np.arange(len(mask))
    w = np.tensordot(np.where(lag >= 0, float(lam) ** np.maximum(lag, 0), 0.0), log_probs * mask, 1)
    return reinforce(
        magic_box(w) - magic_box(w - log_probs), _weights(rewards, baseline, mask, discount)
    )


SURROGATES = dict(naive=naive, lvc=lvc, dice=dice, loaded_dice=loaded_dice)


def _weights(rewards, baseline, mask, discount):
    """γᵗ (G_t − b_t) on unmasked steps: (T, N, K)."""
    require_shapes(np.shape(mask), (), rewards=rewards, baseline=baseline)
    return (
        (reward_to_go(rewards * mask, discount) - baseline)
        * mask
        * discounts(discount, len(mask), mask)
    )


def log_likelihood(log_pi, episodes):
    """log p(D) = Σ_k Σ_t log π(a_t|s_t) of all episodes of a task, up to what does not depend on θ: (N, S, A) → (N,)."""
    return reinforce_folded(
        log_pi,
        scatter(episodes.mask * 1.0, episodes.states, episodes.actions, *np.shape(log_pi)[1:]),
    )
