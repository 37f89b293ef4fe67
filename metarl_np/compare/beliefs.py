"""Model-based meta-learning: keep the exact posterior of a new task, from what training tasks have in common (demos/priors.py), and plan.
A belief is about N tasks at once and has three methods: `update(episodes)` → the belief after recorded Episodes, `sample(rng)` → one MDP a
task drawn from the posterior, `mean()` → the posterior mean. `act` plans in one of them, an episode at a time.
"""

from dataclasses import dataclass, replace

import numpy as np

from metarl_np.arguments import require
from metarl_np.tasks.mdp import MDP


def transitions(episodes):
    """(task, s, a, r, s') of every unmasked step: five flat arrays."""
    after = np.concatenate([episodes.states[1:], episodes.last_states[None]])
    task = np.broadcast_to(np.arange(episodes.states.shape[1])[:, None], episodes.states.shape)
    return tuple(
        x[episodes.mask] for x in (task, episodes.states, episodes.actions, episodes.rewards, after)
    )


@dataclass(frozen=True, eq=False)
class FiniteBelief:
    """The exact posterior over C candidate MDPs, for each of N tasks."""

    candidates: MDP  # C tasks, without reward noise
    weights: np.ndarray  # (N, C), rows summing to one

    def __post_init__(self):
        w = np.asarray(self.weights)
        c = len(self.candidates)
        require(
            w.ndim == 2 and w.shape[1] == c, "weights", f"expected shape (N, {c}), got {w.shape}"
        )
        require(
            (w >= 0).all(1) & (abs(w.sum(1) - 1) < 1e-6), "weights", "rows must be probabilities"
        )
        require(
            not self.candidates.reward_noise.any(),
            "candidates",
            "rewards with Gaussian noise, where exact ones are compared",
        )

    def update(self, episodes):
        """Bayes' rule: w_c ∝ w_c Π P_c(s', r | s, a) over the recorded steps, after which an episode went on or ended; where it starts is
        not evidence. Raises ValueError if no candidate can have made the steps."""
        task, s, a, r, after = transitions(episodes)
        c = self.candidates
        mask = episodes.mask
        went_on = np.concatenate([mask[1:], episodes.truncated[None]])[mask]
        last = np.nonzero(mask)[0] == c.horizon - 1  # at the horizon an episode ends in any state
        fits = ~c.terminal[:, s] & (last | (c.terminal[:, after] != went_on))
        seen = (c.successors[:, s, a] == after[:, None]) & (
            c.rewards.astype(np.float32)[:, s, a] == r.astype(np.float32)[:, None]
        )
        with np.errstate(divide="ignore"):
            log_w = np.log(self.weights)
            step = np.log((c.probabilities[:, s, a] * seen).sum(-1) * fits)  # (N, C), (C, steps)
        np.add.at(log_w, task, step.T)
        require(np.isfinite(log_w).any(1), "episodes", "no candidate can have made them")
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        return replace(self, weights=w / w.sum(1, keepdims=True))

    def sample(self, rng):
        """One candidate for each task, drawn with its weight: MDP."""
        below = np.cumsum(self.weights, 1) < rng.random((len(self.weights), 1))
        return self.candidates[np.minimum(below.sum(1), len(self.candidates) - 1)]

    def mean(self):
        """P̄ = Σ_c w_c P_c and R̄ likewise, for each task: MDP."""
        c = self.candidates
        P = np.zeros(self.candidates.shape + self.candidates.shape[1:2])
        np.add.at(P, (*np.indices(c.successors.shape)[:3], c.successors), c.probabilities)
        P, R, start, goes_on = (
            np.tensordot(self.weights, x, 1) for x in (P, c.expected_rewards, c.start, ~c.terminal)
        )
        return MDP.from_dense(
            P, R, start, discount=c.discount, horizon=c.horizon, terminal=goes_on == 0
        )


@dataclass(frozen=True)
class Prior:
    """P(·|s,a) ~ Dirichlet(α, …, α), mean reward m(s,a) ~ N(mean, std²), rewards N(m, noise²). Raises ValueError if it is no prior."""

    concentration: float  # α
    mean: float
    std: float
    noise: float

    def __post_init__(self):
        fits = min(self.concentration, self.std, self.noise) > 0 and np.isfinite(self.mean)
        require(
            fits,
            "concentration, std, noise, mean",
            f"{self}: the first three must be positive, the mean finite",
        )


def counts(mdps_shape, episodes):
    """(C (N, S, A, S) next-state counts, n, Σ r, Σ r² (N, S, A)) of recorded Episodes: what a posterior needs of them."""
    n, s, a = mdps_shape
    task, state, action, reward, after = transitions(episodes)
    pair = (task * s + state) * a + action
    moments = [
        np.bincount(pair, reward.astype(float) ** power, n * s * a).reshape(n, s, a)
        for power in (0, 1, 2)
    ]
    return np.bincount(pair * s + after, minlength=n * s * a * s).reshape(n, s, a, s), *moments


@dataclass(frozen=True, eq=False)
class DirichletBelief:
    """The exact posterior under a Prior, for each of N tasks: Dirichlet(α + counts), and a normal mean reward for each (s, a)."""

    prior: Prior
    like: MDP  # N tasks of the right size, for the start, the terminal states, the discount and the horizon
    seen: tuple = None  # `counts` so far

    def __post_init__(self):
        n, s, a = self.like.shape
        nothing = np.zeros(self.like.shape)
        object.__setattr__(
            self, "seen", self.seen or (np.zeros((n, s, a, s)), nothing, nothing, nothing)
        )

    def update(self, episodes):
        """The belief after recorded Episodes."""
        return replace(
            self, seen=tuple(x + y for x, y in zip(self.seen, counts(self.like.shape, episodes)))
        )

    def posterior(self):
        """(Dirichlet parameters (N, S, A, S), mean and variance (N, S, A) of the mean reward)."""
        p = self.prior
        next_counts, n, total, _ = self.seen
        variance = 1 / (n / p.noise**2 + 1 / p.std**2)
        return (
            p.concentration + next_counts,
            variance * (total / p.noise**2 + p.mean / p.std**2),
            variance,
        )

    def sample(self, rng):
        """One MDP for each task, drawn from the posterior."""
        alpha, mean, variance = self.posterior()
        log_p = (
            np.log(rng.standard_gamma(alpha + 1)) - rng.standard_exponential(alpha.shape) / alpha
        )  # a small α underflows no row
        P = np.exp(log_p - log_p.max(-1, keepdims=True))
        return self._mdp(P / P.sum(-1, keepdims=True), rng.normal(mean, np.sqrt(variance)))

    def mean(self):
        """The MDP of the posterior mean of P and R."""
        alpha, mean, _ = self.posterior()
        return self._mdp(alpha / alpha.sum(-1, keepdims=True), mean)

    def _mdp(self, P, R):
        like, end = (
            self.like,
            self.like.terminal[..., None],
        )  # the end is known, as the start is: absorbing and worth nothing
        P = np.where(end[..., None], np.eye(P.shape[-1])[:, None], P)
        R = np.where(end, 0.0, R)
        return MDP.from_dense(
            P, R, like.start, discount=like.discount, horizon=like.horizon, terminal=like.terminal
        )
