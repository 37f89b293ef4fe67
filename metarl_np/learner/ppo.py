"""PPO as an inner update: ascent on the clipped surrogate, differentiable in θ."""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import Record, require, require_floats, unmasked, validate_fields
from metarl_np.learner import policies
from metarl_np.learner.advantages import advantages, at_states, mean_kl, visits
from metarl_np.learner.returns import discounts, leave_one_out_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import fold


@dataclass(frozen=True, eq=False)
class PPOData(Record):
    """What PPO keeps of the data of one inner update."""

    episodes: Episodes
    discount: float  # γ
    epochs: np.ndarray  # (N,) int: after how many each task stops


@dataclass(frozen=True)
class PPO:
    """Ascent on the clipped surrogate, `epochs` times through the episodes.

    Schulman et al. (2017), eq. 7 and 9, with γᵗ, the mean over episodes of

        Σ_t γᵗ min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε) Â_t) + c_H Σ_t γᵗ H(π(·|s_t))
            − c_V Σ_t γᵗ ½ (V(s_t) − V̂_t)²,   ρ_t = π/π_old.

    Steps are plain ascent, and minibatches are cut in order, episodes being exchangeable. So θ' is
    a plain function of θ: through π_old, and through an ActorCritic's advantages. A task stops
    when its KL̄(π_old‖π) after an epoch is above target_kl.
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

    def __post_init__(self):
        validate_fields(self)

    def prepare(self, policy, theta, episodes, discount):
        """PPOData of Episodes, at θ (N, F, A): it finds after how many epochs each task stops."""
        theta = require_floats("theta", theta)
        k = episodes.states.shape[2]
        uneven = f"{self.minibatches} do not divide {k} episodes"
        require(k % self.minibatches == 0, "minibatches", uneven)
        epochs = np.full(len(theta), self.epochs)
        if self.target_kl < np.inf:
            nu = visits(episodes, policy.n_states)
            advantage = self._advantages(policy, theta, episodes, discount)
            new = theta
            for epoch in range(self.epochs):
                active = epochs > epoch
                new = self._epoch(policy, new, theta, episodes, advantage, discount, active)
                too_far = mean_kl(policy, theta, new, nu) > self.target_kl
                epochs[too_far & active] = epoch + 1
        return PPOData(episodes, discount, epochs)

    def __call__(self, policy, theta, data):
        """θ' of PPOData, per task: θ (N, F, A) → (N, F, A)."""
        theta = require_floats("theta", theta)
        advantage = self._advantages(policy, theta, data.episodes, data.discount)
        new = theta
        for epoch in range(data.epochs.max()):
            active = data.epochs > epoch
            new = self._epoch(policy, new, theta, data.episodes, advantage, data.discount, active)
        return new

    def objective(self, policy, theta, old, episodes, advantage, discount):
        """The surrogate of some Episodes and their Â (T, N, K): θ, θ_old (N, F, A) → (N,)."""
        advantage = unmasked(advantage, episodes.mask)
        log_pi = policy.log_pi(theta)
        ratio = np.exp(log_pi - policy.log_pi(old))
        gamma_t = episodes.mask * discounts(discount, len(advantage), advantage)

        def folded(steps):
            sizes = (policy.n_states, policy.n_actions)
            return fold(steps * gamma_t, episodes.states, episodes.actions, *sizes)

        # the upper clip acts where Â > 0, the lower one where Â < 0
        up = np.minimum(ratio, 1 + self.clip) * folded(np.maximum(advantage, 0.0))
        down = np.maximum(ratio, 1 - self.clip) * folded(np.minimum(advantage, 0.0))
        surrogate = np.sum(up + down, (1, 2))
        if self.entropy:
            discounted_visits = np.sum(folded(1.0), -1)
            bonus = np.sum(discounted_visits * policies.entropy(log_pi), -1)
            surrogate = surrogate + self.entropy * bonus
        if hasattr(policy, "values"):
            v = at_states(policy.values(theta), episodes.states)
            target = advantage + at_states(policy.values(old), episodes.states)
            errors = v - target
            loss = 0.5 * np.sum(np.mean(gamma_t * errors**2, 2), 0)
            surrogate = surrogate - self.value * loss
        return surrogate

    def _advantages(self, policy, theta, episodes, discount):
        settings = dict(baseline=self.baseline, lam=self.lam)
        return advantages(policy, theta, episodes, discount, **settings)

    def _epoch(self, policy, theta, old, episodes, advantage, discount, active):
        """θ after one pass over the minibatches, in the tasks that are `active` (N,) bool."""
        size = episodes.states.shape[2] // self.minibatches
        for i in range(self.minibatches):
            some = slice(i * size, (i + 1) * size)
            part = episodes.part(some)

            def total(th):
                of_tasks = self.objective(policy, th, old, part, advantage[..., some], discount)
                return np.sum(of_tasks)

            step = active[:, None, None] * self.step_size
            theta = theta + step * grad(total)(theta)
        return theta
