"""TRPO for a recurrent policy: a second `update` for `rl2_training.train_recurrent`."""

from dataclasses import dataclass

import autograd.numpy as np

from metarl_np.arguments import require, unmasked, validate
from metarl_np.learner.optim import conjugate_gradient
from metarl_np.learner.policies import kl
from metarl_np.meta.rl2 import log_probs
from metarl_np.meta.rl2_training import (
    taken_log_probs,
    trial_advantages,
    trial_gradient,
    trial_surrogate_gradient,
)


def trial_kl(outputs, trials):
    """KL(π_old‖π), mean over the steps of the trials, in nats; outputs (T, A + 1, N) are new."""
    outputs = unmasked(outputs, trials.mask[:, None])
    of_steps = kl(log_probs(trials.outputs), log_probs(outputs))
    return np.sum(unmasked(of_steps, trials.mask)) / trials.mask.sum()


def trial_fisher_vector_product(policy, theta, trials, v):
    """F v, F = E Jᵀ(diag p − ppᵀ)J the Hessian of KL(π_old‖π_θ) at θ: (P,) → (P,).

    By the central difference of the gradient of KL along v. With respect to the logits that is
    π − π_old; π_old stays in, since what pulls it back, J, differs between the two ends.
    """

    def kl_gradient(outputs, part, numbers):
        weight = (part.mask / trials.mask.sum())[:, None]
        g = np.exp(log_probs(outputs)) - np.exp(log_probs(part.outputs))
        g = np.swapaxes(g, 1, 2) * weight
        no_value = np.zeros_like(g[:, :1])
        return np.concatenate([g, no_value], 1).astype(outputs.dtype)

    everyone = np.arange(trials.mask.shape[1])
    length = max(np.linalg.norm(v), 1e-30)
    # a step of .03: in float32 rounding and the third derivative then cost about 1e-5 each
    small = (0.03 / length * v).astype(theta.dtype)
    ahead = trial_gradient(policy, theta + small, trials, everyone, kl_gradient)
    behind = trial_gradient(policy, theta - small, trials, everyone, kl_gradient)
    return (ahead - behind) * (length / 0.06)


@dataclass(frozen=True)
class RecurrentTRPO:
    """The longest step c^j √(2δ / xᵀFx) x, x = (F + λI)⁻¹ g, inside KL(π_old‖π) ≤ δ.

    The ratio surrogate must improve too; there is no step if j grows above max_backtracks. The
    critic's read-out is then fitted to V̂ by ridge regression on the hidden states, to be used on
    the *next* batch. Schulman et al. (2015), appendix C.
    """

    radius: float = 0.01  # δ, nats per step
    damping: float = 1e-3  # λ
    iterations: int = 10  # of conjugate gradient
    every: int = 4  # F is the mean over every fourth trial
    shrink: float = 0.5  # c
    max_backtracks: int = 10
    discount: float = 0.995  # γ and λ of GAE, as in RecurrentPPO
    lam: float = 0.95

    def __post_init__(self):
        validate(**vars(self))
        for name in ("iterations", "max_backtracks"):
            x = getattr(self, name)
            require(x >= 1, name, f"{x} is less than 1")

    def __call__(self, rng, policy, theta, trials, payoffs, state, left):
        """(θ', None) after one batch of Trials with payoffs (T, N)."""
        advantage, target = trial_advantages(trials, payoffs, discount=self.discount, lam=self.lam)
        old = taken_log_probs(trials.outputs, trials)
        steps = trials.mask.sum()

        def gain(outputs):
            log_ratio = unmasked(taken_log_probs(outputs, trials) - old, trials.mask)
            return np.sum(np.exp(log_ratio) * advantage * trials.mask) / steps

        def slope(outputs, part, lanes):
            arrays = (x[:, lanes] for x in (old, advantage, target))
            return trial_surrogate_gradient(outputs, part, *arrays, steps, clip=np.inf, value=0.0)

        everyone = np.arange(trials.mask.shape[1])
        g = trial_gradient(policy, theta, trials, everyone, slope)
        full = self._full_step(policy, theta, trials.part(everyone[:: self.every]), g)
        for j in range(self.max_backtracks + 1):
            new = theta + theta.dtype.type(self.shrink**j) * full
            outputs, _, hidden = policy.unroll(new, trials)
            better = gain(outputs) > gain(trials.outputs)
            if better and trial_kl(outputs, trials) <= self.radius:
                break
        else:
            new = theta.copy()
            _, _, hidden = policy.unroll(theta, trials)
        self._fit_values(policy, new, np.swapaxes(hidden, 1, 2), target, trials)
        return new, None

    def _full_step(self, policy, theta, trials, g):
        """√(2δ / xᵀFx) x, x = (F + λI)⁻¹ g, F being the mean over these trials: g (P,) → (P,)."""

        def damped(v):
            return trial_fisher_vector_product(policy, theta, trials, v) + self.damping * v

        x = conjugate_gradient(damped, g, max_iterations=self.iterations)
        curvature = x @ (damped(x) - self.damping * x)
        return (x * np.sqrt(2 * self.radius / max(curvature, 1e-30))).astype(theta.dtype)

    def _fit_values(self, policy, theta, hidden, target, trials):
        """Fit V̂ (T, N) to h (T, N, H) at each state, and write it into the read-out of V in θ."""
        by_state = (policy.n_states, policy.n_actions + 1, -1)
        *_, V, v = policy.net.split(theta)  # views of θ
        V = V.reshape(by_state)[:, -1]
        v = v.reshape(by_state)[:, -1]
        for s in range(policy.n_states):
            here = trials.mask & (trials.states == s)
            x = np.concatenate([hidden[here], np.ones((here.sum(), 1))], 1)
            ridge = (len(x) * 1e-4 + 1e-6) * np.eye(policy.units + 1)
            w = np.linalg.solve(x.T @ x + ridge, x.T @ target[here])
            V[s] = w[:-1]
            v[s] = w[-1]
