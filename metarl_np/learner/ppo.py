"""One learner: a step of REINFORCE, PPO or TRPO on recorded episodes, θ' = U(θ, D), that autograd differentiates. An inner update has two
methods: `prepare(mdps, policy, theta, episodes)` keeps what the step needs, and freezes what has no derivative (epochs, line search); the
call, (policy, theta, data) → θ', is then smooth in θ (N, F, A), one row per task. (An attribute `baseline` scores the query too.)
"""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import require, validate
from metarl_np.learner.advantages import advantages, at_states, mean_kl, visits
from metarl_np.learner.policies import entropy
from metarl_np.learner.returns import discounts, leave_one_out_baseline
from metarl_np.learner.surrogates import fold


@dataclass(frozen=True)
class PPO:
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

    def __post_init__(self):
        validate(
            step_size=self.step_size,
            clip=self.clip,
            epochs=self.epochs,
            minibatches=self.minibatches,
            lam=self.lam,
            entropy=self.entropy,
            value=self.value,
            target_kl=self.target_kl,
            baseline=self.baseline,
        )

    def prepare(self, policy, theta, episodes, discount):
        """(Episodes, γ, number of epochs until each task stops (N,))."""
        k = episodes.states.shape[2]
        require(
            k % self.minibatches == 0,
            "minibatches",
            f"{self.minibatches} do not divide {k} episodes",
        )
        nu = visits(episodes, policy.n_states)
        data = (episodes, discount, np.full(len(theta), self.epochs))
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
