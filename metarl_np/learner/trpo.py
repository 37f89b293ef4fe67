"""One learner: a step of REINFORCE, PPO or TRPO on recorded episodes, θ' = U(θ, D), that autograd differentiates. An inner update has two
methods: `prepare(mdps, policy, theta, episodes)` keeps what the step needs, and freezes what has no derivative (epochs, line search); the
call, (policy, theta, data) → θ', is then smooth in θ (N, F, A), one row per task. (An attribute `baseline` scores the query too.)
"""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad
from autograd.extend import defvjp, primitive

from metarl_np.arguments import require_shapes, validate
from metarl_np.learner.advantages import advantages, mean_kl, visits
from metarl_np.learner.optim import conjugate_gradient
from metarl_np.learner.returns import discounts, leave_one_out_baseline
from metarl_np.learner.surrogates import fold, stop


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
class TRPO:
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

    def __post_init__(self):
        validate(
            radius=self.radius,
            damping=self.damping,
            lam=self.lam,
            shrink=self.shrink,
            max_backtracks=self.max_backtracks,
            baseline=self.baseline,
        )

    def prepare(self, policy, theta, episodes, discount):
        """(Episodes, γ, ν (N, S), exponents (N,))."""
        nu = visits(episodes, policy.n_states)
        table = self._table(policy, theta, episodes, discount)
        return episodes, discount, nu, self.search(policy, theta, table, nu)

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
