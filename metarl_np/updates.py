"""One learner: a step of REINFORCE, PPO or TRPO on recorded episodes, θ' = U(θ, D), that autograd differentiates. An inner update has two
methods: `prepare(mdps, policy, theta, episodes)` keeps what the step needs, and freezes what has no derivative (epochs, line search); the
call, (policy, theta, data) → θ', is then smooth in θ (N, F, A), one row per task. (An attribute `baseline` scores the query too.)
"""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad
from autograd.extend import defvjp, primitive

from metarl_np.arguments import check, require, require_shapes
from metarl_np.losses import (
    ESTIMATORS,
    FOLDED,
    advantages,
    at_states,
    fold,
    gather_log_probs,
    magic_box,
    mean_kl,
    reinforce_weights,
    stop,
    visits,
)
from metarl_np.optim import conjugate_gradient
from metarl_np.policies import entropy, total
from metarl_np.returns import discounts, leave_one_out_baseline, reward_to_go


def reinforce_table(mdps, episodes, *, baseline=leave_one_out_baseline):
    """The folded REINFORCE weights W(s, a) = mean_k Σ_t γᵗ (G_t − b_t) [s_t = s, a_t = a] of recorded Episodes: (N, S, A)."""
    return fold(
        reinforce_weights(episodes, mdps.discount, baseline=baseline),
        episodes.states,
        episodes.actions,
        *mdps.shape[1:],
    )


class _Settings:
    def __post_init__(self):
        check(**vars(self))


@dataclass(frozen=True)
class Reinforce(_Settings):
    """θ' = θ + α ∇L(θ; D), L a REINFORCE surrogate: plain gradient ascent, or MAML's inner step. `estimator` names the surrogate
    (losses.ESTIMATORS): all give the same θ'; what differs is ∂θ'/∂θ = I + α Ĥ."""

    step_size: float  # α
    baseline: Callable = leave_one_out_baseline  # (returns, episodes) → (T, N, K)
    estimator: str = "naive"
    lam: float = 1.0  # λ of loaded_dice

    def __post_init__(self):
        super().__post_init__()
        require(
            self.estimator in tuple(ESTIMATORS),
            "estimator",
            f"{self.estimator!r:.99} is not one of {', '.join(ESTIMATORS)}",
        )

    def prepare(self, mdps, policy, theta, episodes):
        """W (N, S, A) of recorded Episodes where the estimator folds, else their steps."""
        if self.estimator in FOLDED:
            return reinforce_table(mdps, episodes, baseline=self.baseline)
        rewards = episodes.rewards * episodes.mask
        b = self.baseline(reward_to_go(rewards, mdps.discount), episodes)
        return episodes.states, episodes.actions, (rewards, b, episodes.mask, mdps.discount)

    def gradient(self, policy, theta, data):
        """∇L(θ; D) for prepared D, per task: θ (N, F, A) → (N, F, A)."""
        if self.estimator in FOLDED:
            score = policy.weighted_score(
                theta, data * magic_box(policy.log_pi(theta)) if self.estimator == "lvc" else data
            )
            return stop(score) if self.estimator == "first_order" else score
        states, actions, recorded = data
        surrogate = ESTIMATORS[self.estimator]
        options = dict(lam=self.lam) if self.estimator == "loaded_dice" else {}
        return grad(
            lambda th: np.sum(
                surrogate(
                    gather_log_probs(policy.log_pi(th), states, actions), *recorded, **options
                )
            )
        )(theta)

    def __call__(self, policy, theta, data):
        return theta + self.step_size * self.gradient(policy, theta, data)

    def pullback(self, policy, theta, data, v):
        """vᵀ ∂θ'/∂θ = v + α vᵀĤ of an estimator that folds, in closed form: θ, v (N, F, A), W (N, S, A) → (N, F, A). ∇²log π(a|s) of a
        LinearPolicy is −F(s), its Fisher matrix, for every a: Σ W ∇²log π = −Σ_s F(s) Σ_a W(s, a), and lvc adds Σ W ∇log π ∇log πᵀ. In
        both, one ∇log π is taken along v, `tangent`, and the other is a weighted score."""
        if self.estimator == "first_order":
            return v
        h = (data if self.estimator == "lvc" else 0.0) - total(data) * np.exp(policy.log_pi(theta))
        return v + self.step_size * policy.weighted_score(theta, h * policy.tangent(theta, v))


@dataclass(frozen=True)
class FirstOrder(_Settings):
    """The same update with ∂θ'/∂θ = I: what acts only through U (a critic's column) gets no gradient. Finn et al. (2017), §5.2."""

    inner: Callable
    baseline = property(
        lambda self: getattr(self.inner, "baseline", leave_one_out_baseline)
    )  # scores the query
    prepare = property(lambda self: self.inner.prepare)
    step_size = property(lambda self: getattr(self.inner, "step_size", None))

    def __call__(self, policy, theta, data):  # θ + ⊥(U(θ) − θ)
        return theta + (self.inner(policy, stop(theta), data) - stop(theta))


@dataclass(frozen=True)
class PPO(_Settings):
    """Ascent on the clipped surrogate, `epochs` times through the episodes. Schulman et al. (2017), eq. 7 and 9, with γᵗ:
    Σ_t γᵗ min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε) Â_t) + c_H Σ_t γᵗ H(π(·|s_t)) − c_V Σ_t γᵗ ½ (V(s_t) − V̂_t)²,   ρ_t = π/π_old,
    mean over episodes. Steps are plain ascent and minibatches are cut in order, episodes being exchangeable, so that θ' is a plain function
    of θ: through π_old, and through an ActorCritic's advantages. A task stops when its KL̄(π_old‖π) after an epoch is above target_kl.
    """

    step_size: float  # α
    clip: float = 0.2  # ε
    epochs: int = 4
    minibatches: int = 1  # equal cuts of the K episodes
    lam: float = 0.95  # λ of GAE; used with an ActorCritic only
    entropy: float = 0.0  # c_H
    value: float = 0.5  # c_V; used with an ActorCritic only
    target_kl: float = np.inf  # nats
    baseline: Callable = leave_one_out_baseline  # for policies without values

    def prepare(self, mdps, policy, theta, episodes):
        """(Episodes, γ, number of epochs until each task stops (N,))."""
        k = episodes.states.shape[2]
        require(
            k % self.minibatches == 0,
            "minibatches",
            f"{self.minibatches} do not divide {k} episodes",
        )
        nu = visits(episodes, policy.n_states)
        data = (episodes, mdps.discount, np.full(len(theta), self.epochs))
        for epoch, new in (
            enumerate(self._epochs(policy, theta, data)) if self.target_kl < np.inf else ()
        ):
            beyond = mean_kl(policy, theta, new, nu) > self.target_kl
            np.minimum(
                data[2], epoch + 1, out=data[2], where=beyond
            )  # in place: the epochs that follow leave these tasks alone
        return data

    def objective(self, policy, theta, old, episodes, advantage, discount):
        """The surrogate of some episodes and their Â (T, N, K), per task: θ, θ_old (N, F, A) → (N,)."""
        states = episodes.states
        log_pi = policy.log_pi(theta)
        gamma_t = episodes.mask * discounts(discount, len(states), states)
        ratio = np.exp(log_pi - policy.log_pi(old))
        taken = states, episodes.actions, policy.n_states, policy.n_actions
        up, down = (
            fold(part(advantage, 0.0) * gamma_t, *taken) for part in (np.maximum, np.minimum)
        )  # Â < 0: the lower clip acts
        total = np.sum(
            np.minimum(ratio, 1 + self.clip) * up + np.maximum(ratio, 1 - self.clip) * down, (1, 2)
        )
        if self.entropy:
            total = total + self.entropy * np.sum(
                np.sum(fold(gamma_t, *taken), -1) * entropy(log_pi), -1
            )
        if hasattr(policy, "values"):
            errors = at_states(policy.values(theta), states) - (
                advantage + at_states(policy.values(old), states)
            )
            total = total - 0.5 * self.value * np.sum(np.mean(gamma_t * errors**2, 2), 0)
        return total

    def _epochs(self, policy, old, data):
        """θ after each pass over the minibatches, in the tasks that have not stopped: a generator."""
        episodes, discount, done = data
        theta = old
        size = episodes.states.shape[2] // self.minibatches
        advantage = advantages(
            policy, old, episodes, discount, baseline=self.baseline, lam=self.lam
        )
        for epoch in range(done.max()):
            for part in (slice(i * size, (i + 1) * size) for i in range(self.minibatches)):
                g = grad(
                    lambda th: np.sum(
                        self.objective(
                            policy, th, old, episodes.part(part), advantage[..., part], discount
                        )
                    )
                )(theta)
                theta = theta + (done > epoch)[:, None, None] * self.step_size * g
            yield theta

    def __call__(self, policy, theta, data):
        return list(self._epochs(policy, theta, data))[-1]


def fisher_vector_product(policy, theta, nu, v):
    """F v, F = Σ_s ν(s) Σ_a π ∇log π ∇log πᵀ the Hessian of KL̄ at θ, in closed form: θ, v (N, F, A), ν (N, S) → (N, F, A)."""
    require_shapes((len(theta), policy.n_states), nu=nu)
    return policy.weighted_score(
        theta, nu[..., None] * np.exp(policy.log_pi(theta)) * policy.tangent(theta, v)
    )


@primitive
def natural_direction(policy, theta, g, nu, damping):
    """x = (F(θ) + λI)⁻¹ g by conjugate gradient, per task: θ, g (N, F, A), ν (N, S) → (N, F, A)."""
    return conjugate_gradient(
        lambda v: fisher_vector_product(policy, theta, nu, v) + damping * v, g
    )


# (F + λI) x = g, so dx = (F + λI)⁻¹ (dg − dF x): one more solve y of the same system, then ∇_θ yᵀ(g − F(θ) x) with x, y constant
defvjp(
    natural_direction,
    lambda x, policy, theta, g, nu, damping: lambda x_bar: grad(
        lambda th: -np.sum(
            natural_direction(policy, theta, x_bar, nu, damping)
            * fisher_vector_product(policy, th, nu, x)
        )
    )(theta),
    lambda x, policy, theta, g, nu, damping: lambda x_bar: natural_direction(
        policy, theta, x_bar, nu, damping
    ),
    argnums=[1, 2],
)


@dataclass(frozen=True)
class TRPO(_Settings):
    """A natural-gradient step inside a KL radius, differentiable in θ. Schulman et al. (2015), §6 and appendix C.
    θ' = θ + c^j √(2δ / xᵀFx) x, x = (F + λI)⁻¹ g, j the first exponent at which the *ratio* surrogate Σ_t γᵗ (π/π_old) Â_t improves and
    KL̄(π_old‖π) ≤ δ; where no j ≤ max_backtracks will do the parameters stay, and the exponent is −1 in the prepared data. The derivative
    is that at frozen j. λ > 0, since a softmax's Fisher matrix is singular. A critic's column is not moved: an outer gradient through the
    advantages can learn it, a first-order one cannot. Raises ValueError on a λ too small to solve with.
    """

    radius: float = 0.01  # δ, nats
    damping: float = 1e-3  # λ
    lam: float = 0.95  # λ of GAE; used with an ActorCritic only
    shrink: float = 0.5  # c
    max_backtracks: int = 10
    baseline: Callable = leave_one_out_baseline  # for policies without values

    def prepare(self, mdps, policy, theta, episodes):
        """(Episodes, γ, ν (N, S), exponents (N,))."""
        nu = visits(episodes, policy.n_states)
        table = self._table(policy, theta, episodes, mdps.discount)
        return episodes, mdps.discount, nu, self.search(policy, theta, table, nu)

    def full_step(self, policy, theta, table, nu):
        """√(2δ / xᵀFx) x from folded weights W(s, a) of γᵗÂ_t, exact or sampled: θ, W, ν → (N, F, A); 0 where W leaves nothing to gain."""
        g = policy.weighted_score(theta, table)
        x = natural_direction(policy, theta, g, nu, self.damping)
        curvature = np.sum(x * fisher_vector_product(policy, theta, nu, x), (1, 2))[:, None, None]
        rounding = 1e-13 * abs(stop(table)).max(
            (1, 2), keepdims=True
        )  # the step has a fixed length: never take it along an error
        still = (stop(curvature) <= 0) | (abs(stop(g)).max((1, 2), keepdims=True) <= rounding)
        return x * np.where(still, 0.0, np.sqrt(2 * self.radius / np.where(still, 1.0, curvature)))

    def search(self, policy, theta, table, nu):
        """The exponent j of each task's line search, −1 where no step will do: θ (N, F, A), W (N, S, A), ν (N, S) → (N,) int."""
        exponent = np.full(len(theta), -1)
        old = policy.log_pi(theta)
        full = self.full_step(policy, theta, table, nu)
        for j in range(self.max_backtracks + 1):
            new = theta + self.shrink**j * full
            good = (np.sum(np.expm1(policy.log_pi(new) - old) * table, (1, 2)) > 0) & (
                mean_kl(policy, theta, new, nu) <= self.radius
            )
            exponent = np.where((exponent < 0) & good, j, exponent)
        return exponent

    def step(self, policy, theta, table, nu, exponent):
        """θ' at given exponents: θ (N, F, A), W (N, S, A), ν (N, S), exponents (N,) → (N, F, A)."""
        length = np.where(exponent < 0, 0.0, self.shrink ** np.maximum(exponent, 0.0))
        return theta + length[:, None, None] * self.full_step(policy, theta, table, nu)

    def _table(self, policy, theta, episodes, discount):
        advantage = advantages(
            policy, theta, episodes, discount, baseline=self.baseline, lam=self.lam
        )
        weights = advantage * discounts(discount, len(advantage), advantage)
        table, size = (
            fold(w, episodes.states, episodes.actions, policy.n_states, policy.n_actions)
            for w in (weights, abs(stop(weights)))
        )
        return np.where(
            abs(stop(table)) > 1e-13 * size.sum((1, 2), keepdims=True), table, 0.0
        )  # what has cancelled is 0, not 1e-17

    def __call__(self, policy, theta, data):
        episodes, discount, nu, exponent = data
        return self.step(
            policy, theta, self._table(policy, theta, episodes, discount), nu, exponent
        )
