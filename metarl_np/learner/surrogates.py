"""Surrogates: functions of recorded episodes whose derivatives are estimators of those of J.

A surrogate is a pure function of arrays (T, N, K): log π(a_t|s_t), which alone depends on θ,
rewards and baselines. It sums over time and takes means over episodes, and so gives one number for
each task, (N,). All surrogates here have the same first derivative, the REINFORCE estimate of ∇J.
They differ in the second, Ĥ, by which MAML differentiates its inner step:

    naive        Ĥ → H₂            Σ γᵗ log π_t (G_t − b_t)
    lvc          Ĥ → H₁ + H₂       Σ γᵗ □(log π_t) (G_t − b_t)
    dice         Ĥ → H             Σ γᵗ □(Σ_{t'≤t} log π_t') r_t + Σ γᵗ (1 − □(log π_t)) b_t
    loaded_dice  Ĥ → H at λ = 1    Σ γᵗ (G_t − b_t) [□(w_t) − □(w_t − log π_t)],
                                   w_t = λ w_{t−1} + log π_t

The magic box □(x) = exp(x − ⊥x) is 1, but differentiates like a product of probabilities. (A fifth
estimator, first-order MAML, takes the gradient of `naive` as a constant: Ĥ = 0. See `reinforce`.)

The Hessian of J has three parts, H = H₁ + H₂ + H₁₂ + H₁₂ᵀ:

    H₁  = E Σ γᵗ ∇log π_t ∇log π_tᵀ G_t    the score, a factor of the gradient, changes the data
    H₂  = E Σ γᵗ ∇²log π_t G_t             the score itself changes
    H₁₂ = E Σ γᵗ ∇log π_t (∇Q_t)ᵀ          what follows an action changes

With a baseline that does not depend on the action, lvc and dice keep their expectations, and
naive's becomes H₂ − E Σ γᵗ b_t ∇²log π_t. Foerster et al. (2018); Rothfuss et al. (2019).
"""

import autograd.numpy as np
from autograd.extend import defvjp, notrace_primitive, primitive

from metarl_np.arguments import require_shapes
from metarl_np.learner.returns import discounts, no_baseline, reward_to_go
from metarl_np.tasks.mdp import for_each_task


@notrace_primitive
def stop(x):
    """⊥x: the value of x, a constant to every derivative; any shape (…) → (…).

    The function is the identity. What stops the gradient is the decorator: autograd follows
    primitives only, and does not trace this one.
    """
    return x


def magic_box(x):
    """□(x) = exp(x − ⊥x): (…) → (…), all ones. Foerster et al. (2018), §4."""
    return np.exp(x - stop(x))


# ---- from tables (N, S, A) to steps (T, N, K) and back


@primitive
def gather(table, states, actions):
    """table(s_t, a_t): table (N, S, A), states and actions (T, N, K) → (T, N, K)."""
    require_shapes(np.shape(states), actions=actions)
    n_tasks = states.shape[1]
    require_shapes((n_tasks,) + np.shape(table)[-2:], table=table)
    return table[np.arange(n_tasks)[:, None], states, actions]


@primitive
def scatter(steps, states, actions, n_states, n_actions):
    """Σ_{t,k} steps_t [s_t = s, a_t = a]: (T, N, K) → (N, S, A). The transpose of `gather`."""
    require_shapes(steps.shape, states=states, actions=actions)
    n_tasks = states.shape[1]
    first_cell = np.arange(n_tasks)[:, None] * (n_states * n_actions)
    cell = states * np.int32(n_actions) + actions + first_cell  # recorded states may be int8
    size = n_tasks * n_states * n_actions
    return np.bincount(cell.ravel(), steps.ravel(), size).reshape(n_tasks, n_states, n_actions)


def _gather_vjp(_, table, states, actions):
    return lambda g: scatter(g, states, actions, *table.shape[1:])


def _scatter_vjp(_, steps, states, actions, n_states, n_actions):
    return lambda g: gather(g, states, actions)


defvjp(gather, _gather_vjp, argnums=[0])
defvjp(scatter, _scatter_vjp, argnums=[0])


def gather_log_probs(log_pi, states, actions):
    """log π(a_t|s_t) from a table that all tasks share, (S, A), or theirs, (N, S, A): (T, N, K)."""
    if np.ndim(log_pi) == 2:
        log_pi = for_each_task(log_pi, states.shape[1])
    return gather(log_pi, states, actions)


def fold(weights, states, actions, n_states, n_actions):
    """W(s, a) = mean_k Σ_t w_t [s_t = s, a_t = a]: (T, N, K) → (N, S, A).

    It is all that REINFORCE needs to know of the episodes.
    """
    return scatter(weights, states, actions, n_states, n_actions) / states.shape[2]


# ---- REINFORCE


def reinforce_weights(episodes, discount, *, baseline=no_baseline, drop_discount=False):
    """γᵗ (G_t − b_t), 0 on masked steps, of Episodes: (T, N, K).

    drop_discount leaves γᵗ out, as most public code does: the result is then the gradient of
    nothing in particular (Nota & Thomas 2020).
    """
    returns = reward_to_go(episodes.rewards * episodes.mask, discount)
    b = baseline(returns, episodes)
    require_shapes(returns.shape, (), baseline=b)
    weights = returns - b
    weights *= episodes.mask  # in place: half the time of a large batch is fresh memory
    if not drop_discount:
        weights *= discounts(discount, len(returns), returns)
    return weights


def reinforce(log_probs, weights):
    """Σ_t mean_k w_t log π(a_t|s_t): (T, N, K), (T, N, K) → (N,).

    With w_t = γᵗ (G_t − b_t) its gradient is the REINFORCE estimate of
    ∇J = E Σ_t γᵗ ∇log π(a_t|s_t) Q_t(s_t, a_t). Williams (1992); Sutton & Barto (2018), §13.3.
    """
    require_shapes(np.shape(weights), log_probs=log_probs)
    return np.sum(np.mean(log_probs * weights, -1), 0)


def reinforce_folded(log_pi, table):
    """Σ_{s,a} W(s, a) log π(a|s): log π (S, A) or (N, S, A), W (N, S, A) → (N,).

    Equal to `reinforce` on what was folded into W.
    """
    require_shapes(np.shape(table), np.shape(table)[-2:], log_pi=log_pi)
    return np.sum(log_pi * table, (-2, -1))


def log_likelihood(log_pi, episodes):
    """log p(D) = Σ_k Σ_t log π(a_t|s_t) of all episodes of a task: (N, S, A) → (N,).

    That is, up to what does not depend on θ. Its gradient is the score of the data.
    """
    visits = scatter(episodes.mask * 1.0, episodes.states, episodes.actions, *log_pi.shape[1:])
    return reinforce_folded(log_pi, visits)


# ---- the four surrogates: all arguments are (T, N, K), a baseline may also be a number → (N,)


def _weights(rewards, baseline, mask, discount):
    """γᵗ (G_t − b_t) on unmasked steps: (T, N, K)."""
    require_shapes(np.shape(mask), (), rewards=rewards, baseline=baseline)
    returns = reward_to_go(rewards * mask, discount)
    return (returns - baseline) * mask * discounts(discount, len(mask), mask)


def naive(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ log π_t (G_t − b_t): the surrogate of most public code."""
    return reinforce(log_probs, _weights(rewards, baseline, mask, discount))


def lvc(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(log π_t) (G_t − b_t): low-variance curvature. Rothfuss et al. (2019), eq. 9."""
    return reinforce(magic_box(log_probs), _weights(rewards, baseline, mask, discount))


def dice(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(Σ_{t'≤t} log π_t') r_t + Σ_t γᵗ (1 − □(log π_t)) b_t. Foerster et al. (2018), §4.

    (Inside the product, as r_t − b_t, the baseline would bias the first derivative already. Mao et
    al. (2019) add a baseline for the second derivative, which is not here.)
    """
    require_shapes(np.shape(mask), (), log_probs=log_probs, rewards=rewards, baseline=baseline)
    so_far = np.cumsum(log_probs * mask, 0)
    steps = magic_box(so_far) * rewards + (1 - magic_box(log_probs)) * baseline
    return np.sum(np.mean(steps * mask * discounts(discount, len(mask), mask), -1), 0)


def loaded_dice(log_probs, rewards, baseline, mask, discount, *, lam=1.0):
    """Σ_t γᵗ (G_t − b_t) [□(w_t) − □(w_t − log π_t)], w_t = λ w_{t−1} + log π_t.

    Farquhar et al. (2019), §4. At λ = 0 it is `lvc`.
    """
    require_shapes(np.shape(mask), log_probs=log_probs)
    t = np.arange(len(mask))
    lag = t[:, None] - t
    decay = np.where(lag >= 0, float(lam) ** np.maximum(lag, 0), 0.0)
    w = np.tensordot(decay, log_probs * mask, 1)
    boxes = magic_box(w) - magic_box(w - log_probs)
    return reinforce(boxes, _weights(rewards, baseline, mask, discount))


SURROGATES = dict(naive=naive, lvc=lvc, dice=dice, loaded_dice=loaded_dice)
