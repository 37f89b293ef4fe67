"""One learner: a step of a standard algorithm on recorded episodes, as a function θ' = U(θ, D) that autograd differentiates."""

from dataclasses import dataclass
from functools import partial
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.losses import (ESTIMATORS, FOLDED, fold, gather_log_probs, loaded_dice, magic_box, reinforce_weights, stop)
from metarl_np.returns import leave_one_out_baseline, reward_to_go


def reinforce_table(mdps, episodes, *, baseline=leave_one_out_baseline):
    """The folded REINFORCE weights W(s, a) = mean_k Σ_t γᵗ (G_t − b_t) [s_t = s, a_t = a] of recorded Episodes: (N, S, A)."""
    weights = reinforce_weights(episodes, mdps.discount, baseline=baseline)
    return fold(weights, episodes.states, episodes.actions, *mdps.shape[1:])


@dataclass(frozen=True)
class Reinforce:
    """θ' = θ + α ∇L(θ; D), L a REINFORCE surrogate: plain gradient ascent, or MAML's inner step.

    `estimator` names the surrogate (losses.ESTIMATORS). All give the same θ'; what differs is ∂θ'/∂θ = I + α Ĥ. Raises ValueError
    on a step size that is not finite, an unknown estimator, or λ outside [0, 1].
    """

    step_size: float  # α
    baseline: Callable = leave_one_out_baseline  # (returns, episodes) → (T, N, K)
    estimator: str = "naive"
    lam: float = 1.0  # λ of loaded_dice

    def __post_init__(self):
        if not np.isfinite(self.step_size):
            raise ValueError(f"step_size: {self.step_size} is not finite")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator: {self.estimator!r} is not one of {', '.join(ESTIMATORS)}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam: {self.lam} is outside [0, 1]")

    def prepare(self, mdps, episodes):
        """What of recorded Episodes the step needs, and does not depend on θ: W (N, S, A) where the estimator folds, else the steps."""
        if self.estimator in FOLDED:
            return reinforce_table(mdps, episodes, baseline=self.baseline)
        rewards = episodes.rewards * episodes.mask
        baseline = self.baseline(reward_to_go(rewards, mdps.discount), episodes)
        return episodes.states, episodes.actions, (rewards, baseline, episodes.mask, mdps.discount)

    def gradient(self, policy, theta, data):
        """∇L(θ; D) for prepared D, per task: θ (N, F, A) → (N, F, A)."""
        if self.estimator in FOLDED:
            weights = data * magic_box(policy.log_pi(theta)) if self.estimator == "lvc" else data
            score = policy.weighted_score(theta, weights)
            return stop(score) if self.estimator == "first_order" else score
        states, actions, recorded = data
        surrogate = ESTIMATORS[self.estimator]
        if surrogate is loaded_dice:
            surrogate = partial(loaded_dice, lam=self.lam)
        return grad(lambda th: np.sum(surrogate(gather_log_probs(policy.log_pi(th), states, actions), *recorded)))(theta)

    def __call__(self, policy, theta, data):
        """θ' from prepared D, per task: θ (N, F, A) → (N, F, A)."""
        return theta + self.step_size * self.gradient(policy, theta, data)
