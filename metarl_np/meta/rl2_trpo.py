"""TRPO for a recurrent policy: a second `update` for `rl2_training.train`, which needs of one no more than to be called like PPO."""

from dataclasses import dataclass

import autograd.numpy as np

from metarl_np.arguments import require, validate
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
    """KL(π_old‖π), mean over the steps of the trials, in nats; outputs (T, A + 1, N) are the new ones."""
    return (
        np.sum(kl(log_probs(trials.outputs), log_probs(outputs)) * trials.mask) / trials.mask.sum()
    )


@dataclass(frozen=True)
class RecurrentTRPO:
    """The longest step c^j √(2δ / xᵀFx) x, x = (F + λI)⁻¹ g, at which the ratio surrogate improves and KL(π_old‖π) ≤ δ; none if j grows
    above max_backtracks. The critic's read-out is then fitted to V̂ by ridge regression on the hidden states, to score the *next* batch.
    Schulman et al. (2015), appendix C."""

    radius: float = 0.01  # δ, nats per step
    damping: float = 1e-3  # λ
    iterations: int = 10  # of conjugate gradient
    every: int = 4  # F is the mean over every fourth trial
    shrink: float = 0.5  # c
    max_backtracks: int = 10
    discount: float = 0.995  # as in PPO
    lam: float = 0.95

    def __post_init__(self):
        validate(
            radius=self.radius,
            damping=self.damping,
            iterations=self.iterations,
            every=self.every,
            shrink=self.shrink,
            max_backtracks=self.max_backtracks,
            discount=self.discount,
            lam=self.lam,
        )
        for name in ("iterations", "max_backtracks"):
            require(getattr(self, name) >= 1, name, f"{getattr(self, name)} is less than 1")

    def __call__(self, rng, policy, theta, trials, payoffs, state, left):
        """(θ', None) after one batch of Trials with payoffs (T, N)."""
        advantage, target = trial_advantages(trials, payoffs, discount=self.discount, lam=self.lam)
        old = taken_log_probs(trials.outputs, trials)
        everyone = np.arange(len(payoffs[0]))
        few = trials.part(everyone[:: self.every])

        def gain(y):
            return (
                np.sum(np.exp(taken_log_probs(y, trials) - old) * advantage * trials.mask)
                / trials.mask.sum()
            )

        def curved(v):
            return trial_fisher_vector_product(policy, theta, few, v) + self.damping * v

        g = trial_gradient(
            policy,
            theta,
            trials,
            everyone,
            lambda y, part, lanes: trial_surrogate_gradient(
                y,
                part,
                *(x[:, lanes] for x in (old, advantage, target)),
                trials.mask.sum(),
                clip=np.inf,
                value=0.0,
            ),
        )
        x = conjugate_gradient(
            lambda v: curved(v[0])[None], g[None], max_iterations=self.iterations
        )[0]
        curvature = x @ (curved(x) - self.damping * x)
        full = (x * np.sqrt(2 * self.radius / max(curvature, 1e-30))).astype(theta.dtype)
        for j in range(self.max_backtracks + 1):
            new = theta + theta.dtype.type(self.shrink**j) * full
            y, _, h = policy.unroll(new, trials)
            if gain(y) > gain(trials.outputs) and trial_kl(y, trials) <= self.radius:
                break
        else:
            new = theta.copy()
            h = policy.unroll(theta, trials)[2]
        self._fit_values(policy, new, np.swapaxes(h, 1, 2), target, trials)
        return new, None

    def _fit_values(self, policy, theta, h, target, trials):
        """Ridge regression of V̂ (T, N) on h (T, N, H) at each state, written into the last row of its read-out."""
        V, v = (
            x.reshape(policy.n_states, policy.n_actions + 1, -1)[:, -1]
            for x in policy.net.split(theta)[3:]
        )  # views of θ
        for s in range(policy.n_states):
            here = trials.mask & (trials.states == s)
            x = np.concatenate([h[here], np.ones((here.sum(), 1))], 1)
            w = np.linalg.solve(
                x.T @ x + (len(x) * 1e-4 + 1e-6) * np.eye(policy.units + 1), x.T @ target[here]
            )
            V[s] = w[:-1]
            v[s] = w[-1]


def trial_fisher_vector_product(policy, theta, trials, v):
    """F v, F = E Jᵀ(diag p − ppᵀ)J the Hessian of KL(π_old‖π_θ) at θ, by the central difference of its gradient along v: (P,) → (P,).
    The gradient of KL with respect to the logits is π − π_old. π_old stays in: what pulls it back, J, differs between the two ends.
    """

    def of_outputs(y, part, numbers):
        g = np.exp(log_probs(y)) - np.exp(log_probs(part.outputs))
        g = np.swapaxes(g, 1, 2) * (part.mask / trials.mask.sum())[:, None]
        return np.concatenate([g, np.zeros_like(g[:, :1])], 1).astype(y.dtype)

    everyone = np.arange(trials.mask.shape[1])
    length = max(np.linalg.norm(v), 1e-30)
    small = (0.03 / length * v).astype(
        theta.dtype
    )  # in float32 rounding and the third derivative then cost about 1e-5 each
    ahead, behind = (
        trial_gradient(policy, th, trials, everyone, of_outputs)
        for th in (theta + small, theta - small)
    )
    return (ahead - behind) * (length / 0.06)
