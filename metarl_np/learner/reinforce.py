"""One learner: a step of REINFORCE, PPO or TRPO on recorded episodes, θ' = U(θ, D), that autograd differentiates. An inner update has two
methods: `prepare(mdps, policy, theta, episodes)` keeps what the step needs, and freezes what has no derivative (epochs, line search); the
call, (policy, theta, data) → θ', is then smooth in θ (N, F, A), one row per task. (An attribute `baseline` scores the query too.)
"""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import require, validate
from metarl_np.learner.policies import sum_last
from metarl_np.learner.returns import leave_one_out_baseline, reward_to_go
from metarl_np.learner.surrogates import (
    SURROGATES,
    fold,
    gather_log_probs,
    magic_box,
    reinforce_weights,
    stop,
)

ESTIMATORS = ("first_order", "naive", "lvc", "dice", "loaded_dice")  # see surrogates
FOLDED = ("first_order", "naive", "lvc")  # those that need of the episodes W(s, a) alone


def reinforce_table(episodes, discount, n_states, n_actions, *, baseline=leave_one_out_baseline):
    """The folded REINFORCE weights of recorded Episodes.

    W(s, a) = mean_k Σ_t γᵗ (G_t − b_t) [s_t = s, a_t = a]: (N, S, A).
    """
    weights = reinforce_weights(episodes, discount, baseline=baseline)
    return fold(weights, episodes.states, episodes.actions, n_states, n_actions)


@dataclass(frozen=True)
class Reinforce:
    """θ' = θ + α ∇L(θ; D), L a REINFORCE surrogate: plain gradient ascent, or MAML's inner step. `estimator` names the surrogate
    (losses.ESTIMATORS): all give the same θ'; what differs is ∂θ'/∂θ = I + α Ĥ."""

    step_size: float  # α
    baseline: Callable = leave_one_out_baseline  # (returns, episodes) → (T, N, K)
    estimator: str = "naive"
    lam: float = 1.0  # λ of loaded_dice

    def __post_init__(self):
        validate(step_size=self.step_size, baseline=self.baseline, lam=self.lam)
        require(
            self.estimator in ESTIMATORS,
            "estimator",
            f"{self.estimator!r:.99} is not one of {', '.join(ESTIMATORS)}",
        )

    def prepare(self, policy, theta, episodes, discount):
        """W (N, S, A) of recorded Episodes where the estimator folds, else their steps."""
        if self.estimator in FOLDED:
            return reinforce_table(
                episodes, discount, policy.n_states, policy.n_actions, baseline=self.baseline
            )
        rewards = episodes.rewards * episodes.mask
        b = self.baseline(reward_to_go(rewards, discount), episodes)
        return episodes.states, episodes.actions, (rewards, b, episodes.mask, discount)

    def gradient(self, policy, theta, data):
        """∇L(θ; D) for prepared D, per task: θ (N, F, A) → (N, F, A)."""
        if self.estimator in FOLDED:
            score = policy.weighted_score(
                theta, data * magic_box(policy.log_pi(theta)) if self.estimator == "lvc" else data
            )
            return stop(score) if self.estimator == "first_order" else score
        states, actions, recorded = data
        surrogate = SURROGATES[self.estimator]
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
        h = (data if self.estimator == "lvc" else 0.0) - sum_last(data) * np.exp(
            policy.log_pi(theta)
        )
        return v + self.step_size * policy.weighted_score(theta, h * policy.tangent(theta, v))


@dataclass(frozen=True)
class FirstOrder:
    """The same update with ∂θ'/∂θ = I: what acts only through U (a critic's column) gets no gradient. Finn et al. (2017), §5.2."""

    inner: Callable

    def __post_init__(self):
        validate(inner=self.inner)

    baseline = property(
        lambda self: getattr(self.inner, "baseline", leave_one_out_baseline)
    )  # scores the query
    prepare = property(lambda self: self.inner.prepare)
    step_size = property(lambda self: getattr(self.inner, "step_size", None))

    def __call__(self, policy, theta, data):  # θ + ⊥(U(θ) − θ)
        return theta + (self.inner(policy, stop(theta), data) - stop(theta))
