"""Surrogates: functions of recorded episodes whose derivatives estimate those of the return J.

MAML's inner step is θ' = θ + α ∇L(θ), and MAML differentiates it: ∂θ'/∂θ = I + α Ĥ, where Ĥ is the
Hessian of L. So both the first and the second derivative of L matter. The first should be an
estimate of ∇J, and the second one of the Hessian of J. Recorded data alone cannot give them: they
are constants, and do not show that with another θ other data would have been drawn. A surrogate L
brings that back. It is a function of θ through log π_t = log π(a_t|s_t; θ) alone, in which the
rewards, the returns G_t and the baselines b_t are constants.

The gradient is the same for all surrogates here, the REINFORCE estimate

    ∇L = Σ γᵗ ∇log π_t (G_t − b_t),    with the expectation    ∇J = E Σ γᵗ ∇log π_t Q_t.

Four factors of ∇J change with θ, and each gives one part of its Hessian H = H₁ + H₂ + H₁₂ + H₁₂ᵀ:

    H₁   = E Σ γᵗ ∇log π_t ∇log π_tᵀ Q_t    the probability of the action a_t changes
    H₂   = E Σ γᵗ ∇²log π_t Q_t             the score ∇log π_t changes
    H₁₂  = E Σ γᵗ ∇log π_t (∇Q_t)ᵀ          what follows the action changes
    H₁₂ᵀ                                    what goes before it changes, the distribution of s_t

The surrogates differ in how many of these parts the expectation of Ĥ has.

first_order has none, Ĥ = 0. It is no surrogate of its own: `reinforce` takes the gradient of
`naive` as a constant. `naive` has H₂, since only the score is differentiated again; it is what most
public code computes. `lvc` (low-variance curvature) has H₁ + H₂: it writes the probability of each
action into L. `dice` writes the probability of all actions up to t, on which r_t depends, and has
all of H, at the price of a variance that grows with the length of the past. `loaded_dice` counts an
action that lies n steps back by λⁿ, as GAE does with what lies ahead: it has all of H at λ = 1, is
`lvc` at λ = 0, and trades bias for variance in between.

A baseline that does not depend on the action changes none of this, but for `naive`: there the
expectation becomes H₂ − E Σ γᵗ b_t ∇²log π_t.

All surrogates are sums over time and means over episodes. Arrays are (T, N, K), results (N,).
Foerster et al. (2018); Rothfuss et al. (2019); Farquhar et al. (2019).
"""

from math import prod

import autograd.numpy as np

from metarl_np.arguments import (
    defvjp,
    notrace_primitive,
    primitive,
    require,
    require_array,
    require_mask,
    require_floats,
    require_plain,
    unmasked,
    validate,
)
from metarl_np.learner.returns import discounts, no_baseline, reward_to_go
from metarl_np.tasks.mdp import for_each_task


@notrace_primitive
def stop(x):
    """⊥x: the value of x, a constant to every derivative: (…) → (…).

    The function is the identity, and it is its decorator that stops the gradient. To differentiate,
    autograd wraps numbers in boxes that remember where they come from. A `notrace_primitive` gets
    its arguments out of their boxes, and what it returns is not put into one again.
    """
    return x


def magic_box(x):
    """□(x) = exp(x − ⊥x): (…) → (…), all ones. Foerster et al. (2018), §4.

    Its value is 1, and its derivative ∇□(x) = □(x) ∇x again has a box. So where x is a sum of
    log-probabilities, □(x) behaves like p / ⊥p, p = exp x being their product: it brings back that
    the data were drawn with probability p.
    """
    x = require_floats("x", x, single=True)
    return np.exp(x - stop(x))


# ---- from tables (N, S, A) to steps (T, N, K) and back


def _visited(states, actions, *shapes):
    """Recorded states and actions as arrays (T, N, K) of integers."""
    states = require_array("states", states, *shapes, kinds="iu")
    require(states.ndim == 3, "states", f"expected shape (T, N, K), got {states.shape}")
    return states, require_array("actions", actions, states.shape, kinds="iu")


@primitive
def gather(table, states, actions):
    """table(s_t, a_t): table (N, S, A), states and actions (T, N, K) → (T, N, K)."""
    states, actions = _visited(states, actions)
    n_tasks = states.shape[1]
    table = require_floats("table", table, (n_tasks,) + np.shape(table)[-2:], single=True)
    return table[np.arange(n_tasks)[:, None], states, actions]


@primitive
def scatter(steps, states, actions, n_states, n_actions):
    """Σ_{t,k} steps_t [s_t = s, a_t = a]: (T, N, K) → (N, S, A). The transpose of `gather`."""
    steps = require_floats("steps", steps, single=True)
    states, actions = _visited(states, actions, steps.shape)
    n_states, n_actions = validate(n_states=n_states, n_actions=n_actions)
    for name, x, size in (("states", states, n_states), ("actions", actions, n_actions)):
        inside = x.min(initial=0) >= 0 and x.max(initial=0) < size  # else another entry got it
        require(inside, name, f"outside 0..{size - 1}")
    shape = (states.shape[1], n_states, n_actions)
    task = np.arange(shape[0])[:, None]
    entry = states * n_actions + actions + task * (n_states * n_actions)
    return np.bincount(entry.ravel(), steps.ravel(), prod(shape)).reshape(shape)


def _gather_vjp(_, table, states, actions):
    """Each entry of the table gets the sum of the gradients of the steps that read it."""
    return lambda steps_bar: scatter(steps_bar, states, actions, *table.shape[1:])


def _scatter_vjp(_, steps, states, actions, n_states, n_actions):
    """Each step gets the gradient of the entry to which it was added."""
    return lambda table_bar: gather(table_bar, states, actions)


defvjp(gather, _gather_vjp, argnums=[0])
defvjp(scatter, _scatter_vjp, argnums=[0])


def gather_log_probs(log_pi, states, actions):
    """log π(a_t|s_t) from a table that all tasks share, (S, A), or theirs, (N, S, A): (T, N, K)."""
    log_pi = require_floats("log_pi", log_pi, single=True)
    if log_pi.ndim == 2:
        log_pi = for_each_task(log_pi, np.shape(states)[1])
    return gather(log_pi, states, actions)


def fold(weights, states, actions, n_states, n_actions):
    """W(s, a) = mean_k Σ_t w_t [s_t = s, a_t = a]: (T, N, K) → (N, S, A).

    It is all that REINFORCE needs to know of the episodes: Σ_t mean_k w_t log π(a_t|s_t) is
    Σ_{s,a} W(s, a) log π(a|s), since equal states and actions have equal log-probabilities.
    """
    weights = require_floats("weights", weights, single=True)
    return scatter(weights, states, actions, n_states, n_actions) / np.shape(states)[2]


# ---- REINFORCE


def reinforce_weights(episodes, discount, *, baseline=no_baseline, drop_discount=False):
    """γᵗ (G_t − b_t), 0 on masked steps, of Episodes: (T, N, K).

    discount: γ. baseline: a function of returns and Episodes, see `returns`. drop_discount leaves
    γᵗ out, as most public code does: what comes of it is then the gradient of nothing in particular
    (Nota & Thomas 2020).
    """
    returns = reward_to_go(unmasked(episodes.rewards, episodes.mask), discount)
    b = require_floats("baseline", baseline(returns, episodes), returns.shape, ())
    weights = returns - b
    # in place: half the time of a large batch is fresh memory
    weights = unmasked(weights, episodes.mask, out=weights)
    if not drop_discount:
        weights *= discounts(discount, len(returns), returns)
    return weights


def reinforce(log_probs, weights):
    """Σ_t mean_k w_t log π(a_t|s_t): (T, N, K), (T, N, K) → (N,).

    With w_t = γᵗ (G_t − b_t) its gradient is the REINFORCE estimate of
    ∇J = E Σ_t γᵗ ∇log π(a_t|s_t) Q_t(s_t, a_t). Williams (1992); Sutton & Barto (2018), §13.3.
    """
    weights = require_floats("weights", weights)
    log_probs = require_floats("log_probs", log_probs, weights.shape, single=True)
    return np.sum(np.mean(log_probs * weights, -1), 0)


def reinforce_folded(log_pi, table):
    """Σ_{s,a} W(s, a) log π(a|s): log π (S, A) or (N, S, A), W (N, S, A) → (N,).

    Equal to `reinforce` on what was folded into W.
    """
    table = require_floats("table", table)
    log_pi = require_floats("log_pi", log_pi, table.shape, table.shape[-2:])
    return np.sum(log_pi * table, (-2, -1))


def log_likelihood(log_pi, episodes):
    """Σ_k Σ_t log π(a_t|s_t) of all episodes of a task: log π (N, S, A), Episodes → (N,).

    That is log p(D) up to what does not depend on θ. Its gradient is the score of the data.
    """
    log_pi = require_floats("log_pi", log_pi)
    visits = scatter(episodes.mask * 1.0, episodes.states, episodes.actions, *log_pi.shape[1:])
    return reinforce_folded(log_pi, visits)


# ---- the four surrogates
#
# log_probs (log π_t), rewards (r_t), baseline (b_t) and mask are (T, N, K), a baseline may also be
# a number; discount is γ. What is masked does not matter; `dones` in the mask's place are refused.
# They return (N,).


def _taken(log_probs, mask):
    """log π_t, 0 on masked steps, and the mask as booleans: (T, N, K) each."""
    log_probs = require_floats("log_probs", log_probs, np.shape(mask), single=True)
    mask = require_mask(mask, np.shape(mask))
    return unmasked(log_probs, mask), mask


def _paid(rewards, baseline, mask):
    """Rewards and baseline as arrays of floats, (T, N, K) each or a number."""
    rewards = require_floats("rewards", rewards, mask.shape, (), single=True)
    return rewards, require_floats("baseline", baseline, mask.shape, (), single=True)


def _weights(rewards, baseline, mask, discount):
    """γᵗ (G_t − b_t) on unmasked steps: (T, N, K)."""
    rewards, baseline = _paid(rewards, baseline, mask)
    returns = reward_to_go(unmasked(rewards, mask), discount)
    return unmasked(returns - baseline, mask) * discounts(discount, len(mask), mask)


def naive(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ log π_t (G_t − b_t): the surrogate of most public code."""
    log_probs, mask = _taken(log_probs, mask)
    return reinforce(log_probs, _weights(rewards, baseline, mask, discount))


def lvc(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(log π_t) (G_t − b_t): low-variance curvature. Rothfuss et al. (2019), eq. 9."""
    log_probs, mask = _taken(log_probs, mask)
    return reinforce(magic_box(log_probs), _weights(rewards, baseline, mask, discount))


def dice(log_probs, rewards, baseline, mask, discount):
    """Σ_t γᵗ □(Σ_{t'≤t} log π_t') r_t + Σ_t γᵗ (1 − □(log π_t)) b_t. Foerster et al. (2018), §4.

    The baseline stands outside the first sum: inside, as r_t − b_t, it would bias the first
    derivative already. (Mao et al. (2019) add a baseline for the second, which is not here.)
    """
    log_probs, mask = _taken(log_probs, mask)
    rewards, baseline = _paid(rewards, baseline, mask)
    rewards = unmasked(rewards, mask)
    baseline = unmasked(baseline, mask)
    so_far = np.cumsum(log_probs, 0)
    steps = magic_box(so_far) * rewards + (1 - magic_box(log_probs)) * baseline
    steps = steps * discounts(discount, len(mask), mask)
    return np.sum(np.mean(steps, -1), 0)


def loaded_dice(log_probs, rewards, baseline, mask, discount, *, lam=1.0):
    """Σ_t γᵗ (G_t − b_t) [□(w_t) − □(w_t − log π_t)], w_t = λ w_{t−1} + log π_t.

    Farquhar et al. (2019), §4. At λ = 0 it has the derivatives of `lvc`.
    """
    require_plain(lam=lam)
    log_probs, mask = _taken(log_probs, mask)
    lam = validate(lam=lam)
    t = np.arange(len(mask))
    decay = np.tril(lam ** np.maximum(t[:, None] - t, 0))  # λ^(t−t') for t' ≤ t
    w = np.tensordot(decay, log_probs, 1)
    boxes = magic_box(w) - magic_box(w - log_probs)
    return reinforce(boxes, _weights(rewards, baseline, mask, discount))


SURROGATES = dict(naive=naive, lvc=lvc, dice=dice, loaded_dice=loaded_dice)
