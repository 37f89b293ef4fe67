"""TRPO as an inner update: a natural-gradient step inside a KL radius, differentiable in θ."""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    Record,
    defvjp,
    primitive,
    require_floats,
    validate,
    validate_fields,
)
from metarl_np.learner.advantages import advantages, mean_kl, visits
from metarl_np.learner.optim import conjugate_gradient
from metarl_np.learner.returns import discounts, leave_one_out_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import fold, stop

ROUNDING = 1e-13  # relative: what is smaller is no direction to go in


def fisher_vector_product(policy, theta, nu, v):
    """F v in closed form, F the Hessian of KL̄ at θ: θ, v (N, F, A), ν (N, S) → (N, F, A).

    F = Σ_s ν(s) Σ_a π ∇log π ∇log πᵀ.
    """
    theta = require_floats("theta", theta)
    nu = require_floats("nu", nu, (len(theta), policy.n_states))
    scores = policy.scores(theta)
    return scores.outer_products(nu[..., None] * scores.pi, v)


@primitive
def natural_direction(policy, theta, g, nu, damping):
    """x = (F(θ) + λI)⁻¹ g by conjugate gradient, per task: θ, g (N, F, A), ν (N, S) → (N, F, A).

    Raises ValueError if λ is too small to solve with.
    """
    g = require_floats("g", g)
    damping = validate(damping=damping)
    scores = policy.scores(theta)
    weights = require_floats("nu", nu)[..., None] * scores.pi

    def matvec(v):
        return scores.outer_products(weights, v) + damping * v

    return conjugate_gradient(matvec, g)


def _direction_theta_vjp(x, policy, theta, g, nu, damping):
    """From (F + λI) x = g: dx = −(F + λI)⁻¹ dF x.

    With y = (F + λI)⁻¹ x̄ this is θ̄ = −∇_θ yᵀF(θ) x, x and y constant.
    """

    def vjp(x_bar):
        y = natural_direction(policy, theta, x_bar, nu, damping)
        return grad(lambda th: -np.sum(y * fisher_vector_product(policy, th, nu, x)))(theta)

    return vjp


def _direction_g_vjp(x, policy, theta, g, nu, damping):
    """(F + λI)⁻¹ is symmetric: ḡ = (F + λI)⁻¹ x̄."""
    return lambda x_bar: natural_direction(policy, theta, x_bar, nu, damping)


defvjp(natural_direction, _direction_theta_vjp, _direction_g_vjp, argnums=[1, 2])


@dataclass(frozen=True, eq=False)
class TRPOData(Record):
    """What TRPO keeps of the data of one inner update."""

    episodes: Episodes
    discount: float  # γ
    nu: np.ndarray  # (N, S) ν(s), the share of steps in each state
    exponent: np.ndarray  # (N,) int: j of the line search, −1 where no step will do


@dataclass(frozen=True)
class TRPO:
    """A natural-gradient step inside a KL radius. Schulman et al. (2015), §6 and appendix C.

    θ' = θ + c^j √(2δ / xᵀFx) x, x = (F + λI)⁻¹ g. The line search takes the first exponent j at
    which the *ratio* surrogate Σ_t γᵗ (π/π_old) Â_t improves and KL̄(π_old‖π) ≤ δ; where no
    j ≤ max_backtracks will do the parameters stay. The derivative is that at frozen j.

    λ > 0, since a softmax's Fisher matrix is singular. A critic's column is not moved: an outer
    gradient through the advantages can learn it, a first-order one cannot.
    """

    radius: float = 0.01  # δ, nats
    damping: float = 1e-3  # λ
    lam: float = 0.95  # λ of GAE; used with an ActorCritic only
    shrink: float = 0.5  # c
    max_backtracks: int = 10
    baseline: Callable = leave_one_out_baseline  # for policies without values

    def __post_init__(self):
        validate_fields(self)

    def prepare(self, policy, theta, episodes, discount):
        """TRPOData of Episodes, at θ (N, F, A): it does the line search."""
        nu = visits(episodes, policy.n_states)
        table = self._table(policy, theta, episodes, discount)
        return TRPOData(episodes, discount, nu, self.search(policy, theta, table, nu))

    def __call__(self, policy, theta, data):
        """θ' of TRPOData, per task: θ (N, F, A) → (N, F, A)."""
        table = self._table(policy, theta, data.episodes, data.discount)
        return self.step(policy, theta, table, data.nu, data.exponent)

    def full_step(self, policy, theta, table, nu):
        """√(2δ / xᵀFx) x from folded weights W of γᵗÂ_t, exact or sampled.

        θ (N, F, A), W (N, S, A), ν (N, S) → (N, F, A); 0 where W leaves nothing to gain.
        """
        g = policy.weighted_score(theta, table)
        x = natural_direction(policy, theta, g, nu, self.damping)
        fisher_x = fisher_vector_product(policy, theta, nu, x)
        curvature = np.sum(x * fisher_x, (1, 2))[:, None, None]
        # the step has a fixed length: it must not be taken along a rounding error
        error = ROUNDING * abs(stop(table)).max((1, 2), keepdims=True)
        no_slope = abs(stop(g)).max((1, 2), keepdims=True) <= error
        still = (stop(curvature) <= 0) | no_slope
        length = np.sqrt(2 * self.radius / np.where(still, 1.0, curvature))
        return x * np.where(still, 0.0, length)

    def search(self, policy, theta, table, nu):
        """The exponent j of each task's line search, −1 where no step will do: (N,) int.

        θ (N, F, A), W (N, S, A), ν (N, S).
        """
        exponent = np.full(len(theta), -1)
        old = policy.log_pi(theta)
        full = self.full_step(policy, theta, table, nu)
        for j in range(self.max_backtracks + 1):
            new = theta + self.shrink**j * full
            gain = np.sum(np.expm1(policy.log_pi(new) - old) * table, (1, 2))
            near = mean_kl(policy, theta, new, nu) <= self.radius
            exponent = np.where((exponent < 0) & (gain > 0) & near, j, exponent)
        return exponent

    def step(self, policy, theta, table, nu, exponent):
        """θ' at given exponents: θ (N, F, A), W (N, S, A), ν (N, S), j (N,) → (N, F, A)."""
        length = np.where(exponent < 0, 0.0, self.shrink ** np.maximum(exponent, 0.0))
        return theta + length[:, None, None] * self.full_step(policy, theta, table, nu)

    def _table(self, policy, theta, episodes, discount):
        """The folded weights W(s, a) of γᵗÂ_t: (N, S, A). What has cancelled is 0, not 1e-17."""
        settings = dict(baseline=self.baseline, lam=self.lam)
        advantage = advantages(policy, theta, episodes, discount, **settings)
        weights = advantage * discounts(discount, len(advantage), advantage)
        taken = (episodes.states, episodes.actions, policy.n_states, policy.n_actions)
        table = fold(weights, *taken)
        size = fold(abs(stop(weights)), *taken).sum((1, 2), keepdims=True)
        return np.where(abs(stop(table)) > ROUNDING * size, table, 0.0)
