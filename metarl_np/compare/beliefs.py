"""Exact posteriors of a new task, from a prior that says what tasks of the family have in common.

A belief is about N tasks at once. It has three methods: `update(episodes)` → the belief after
recorded Episodes, `sample(rng)` → one MDP a task drawn from the posterior, `mean()` → the MDP of
the posterior mean. `priors` fits the prior to training tasks, `planners` act on a belief.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from metarl_np.arguments import (
    Record,
    read_only,
    require,
    require_floats,
    require_memory,
    set_fields,
    validate,
    validate_fields,
)
from metarl_np.tasks.mdp import MDP, rounding


class Transitions(NamedTuple):
    """Every unmasked step of some episodes, as flat arrays."""

    task: np.ndarray
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    after: np.ndarray  # the next state


def transitions(episodes):
    """The M steps of Episodes (T, N, K), in the order of time: Transitions of arrays (M,)."""
    # where an episode ends its terminal state stands in a masked place: it is s_T, too
    goes_on = episodes.mask[1:]
    followed = np.where(goes_on, episodes.states[1:], episodes.last_states)
    after = np.concatenate([followed, episodes.last_states[None]])
    task = np.broadcast_to(np.arange(episodes.states.shape[1])[:, None], episodes.states.shape)
    every = (task, episodes.states, episodes.actions, episodes.rewards, after)
    return Transitions(*(x[episodes.mask] for x in every))


@dataclass(frozen=True, eq=False)
class FiniteBelief(Record):
    """The exact posterior over C candidate MDPs, for each of N tasks."""

    candidates: MDP  # C tasks, without reward noise
    weights: np.ndarray  # (N, C), rows summing to one; a read-only copy

    def __post_init__(self):
        validate(candidates=self.candidates)
        w = require_floats("weights", self.weights, traced=False).copy()
        c = len(self.candidates)
        require(
            w.ndim == 2 and w.shape[1] == c, "weights", f"expected shape (N, {c}), got {w.shape}"
        )
        distributions = (w >= 0).all(1) & (abs(w.sum(1) - 1) < rounding(self.weights))
        require(distributions, "weights", "rows must be probabilities")
        noisy = "rewards with Gaussian noise, where exact ones are compared"
        require(not self.candidates.reward_noise.any(), "candidates", noisy)
        set_fields(self, weights=read_only(w))

    def update(self, episodes):
        """FiniteBelief after recorded Episodes, by Bayes' rule: w_c ∝ w_c Π P_c(s', r | s, a).

        That an episode went on after a step, or ended, is evidence too; where it starts is not.
        Raises ValueError if no candidate can have made the steps.
        """
        c = self.candidates
        task, s, a, r, after = transitions(episodes)
        same_state = c.successors[:, s, a] == after[:, None]
        same_reward = c.rewards.astype(np.float32)[:, s, a] == r.astype(np.float32)[:, None]
        seen = same_state & same_reward  # (C, steps, Z)
        likelihood = (c.probabilities[:, s, a] * seen).sum(-1) * self._goes_on(episodes, s, after)
        with np.errstate(divide="ignore"):  # log 0: impossible
            log_w = np.log(self.weights)  # (N, C)
            log_likelihood = np.log(likelihood)  # (C, steps)
        np.add.at(log_w, task, log_likelihood.T)
        require(np.isfinite(log_w).any(1), "episodes", "no candidate can have made them")
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        return replace(self, weights=w / w.sum(1, keepdims=True))

    def _goes_on(self, episodes, s, after):
        """Is what came after each step possible: that the episode went on, or ended? (C, steps)."""
        c = self.candidates
        mask = episodes.mask
        went_on = np.concatenate([mask[1:], episodes.truncated[None]])[mask]
        at_horizon = np.nonzero(mask)[0] == c.horizon - 1  # there an episode ends in any state
        as_terminal_says = c.terminal[:, after] != went_on
        return ~c.terminal[:, s] & (at_horizon | as_terminal_says)

    def sample(self, rng):
        """MDP of one candidate for each task, drawn with its weight."""
        below = np.cumsum(self.weights, 1) < rng.random((len(self.weights), 1))
        return self.candidates[np.minimum(below.sum(1), len(self.candidates) - 1)]

    def mean(self):
        """MDP of P̄ = Σ_c w_c P_c and R̄ likewise, for each task."""
        c = self.candidates
        P = np.zeros(c.shape + c.shape[1:2])
        n, s, a, _ = np.indices(c.successors.shape)
        np.add.at(P, (n, s, a, c.successors), c.probabilities)

        def average(x):
            return np.tensordot(self.weights, x, 1)

        return MDP.from_dense(
            average(P),
            average(c.expected_rewards),
            average(c.start),
            discount=c.discount,
            horizon=c.horizon,
            terminal=average(~c.terminal) == 0,
        )


@dataclass(frozen=True)
class Prior:
    """P(·|s, a) ~ Dirichlet(α, …, α), mean rewards m(s, a) ~ N(mean, std²), rewards N(m, noise²).

    Raises ValueError if it is no prior.
    """

    concentration: float  # α
    mean: float
    std: float
    noise: float

    def __post_init__(self):
        validate_fields(self)


class Counts(NamedTuple):
    """What a posterior needs to know of recorded episodes."""

    next_states: np.ndarray  # (N, S, A, S) how often s' followed
    visits: np.ndarray  # (N, S, A)
    total: np.ndarray  # (N, S, A) Σ r
    squares: np.ndarray  # (N, S, A) Σ r²


def counts(shape, episodes):
    """Counts of recorded Episodes in tasks of `shape` (N, S, A)."""
    n_tasks, n_states, n_actions = shape
    size = n_tasks * n_states * n_actions
    task, s, a, r, after = transitions(episodes)
    pair = (task * n_states + s) * n_actions + a
    next_states = np.bincount(pair * n_states + after, minlength=size * n_states)
    moments = []
    for power in (0, 1, 2):
        moments.append(np.bincount(pair, r.astype(float) ** power, size).reshape(shape))
    return Counts(next_states.reshape(*shape, n_states), *moments)


@dataclass(frozen=True, eq=False)
class DirichletBelief(Record):
    """The exact posterior under a Prior, for each of N tasks.

    It is Dirichlet(α + counts), and a normal distribution of the mean reward of each (s, a).
    """

    prior: Prior
    like: MDP  # N tasks of that size, start, terminal states, discount and horizon
    seen: Counts = None  # so far

    def __post_init__(self):
        validate(prior=self.prior, like=self.like)
        require_memory(8, *self.like.shape, self.like.shape[1])
        if self.seen is None:
            nothing = np.zeros(self.like.shape)
            no_state = np.zeros(self.like.shape + self.like.shape[1:2])
            set_fields(self, seen=Counts(no_state, nothing, nothing, nothing))

    def update(self, episodes):
        """DirichletBelief after recorded Episodes."""
        new = counts(self.like.shape, episodes)
        return replace(self, seen=Counts(*(x + y for x, y in zip(self.seen, new))))

    def posterior(self):
        """(Dirichlet parameters (N, S, A, S), mean and variance of the mean reward (N, S, A))."""
        prior = self.prior
        seen = self.seen
        variance = 1 / (seen.visits / prior.noise**2 + 1 / prior.std**2)
        mean = variance * (seen.total / prior.noise**2 + prior.mean / prior.std**2)
        return prior.concentration + seen.next_states, mean, variance

    def sample(self, rng):
        """MDP drawn from the posterior, one for each task."""
        alpha, mean, variance = self.posterior()
        # Gamma(α) = Gamma(α + 1) U^{1/α}, as logarithms: so a small α underflows no row
        log_gamma = np.log(rng.standard_gamma(alpha + 1))
        log_p = log_gamma - rng.standard_exponential(alpha.shape) / alpha
        P = np.exp(log_p - log_p.max(-1, keepdims=True))
        return self._mdp(P / P.sum(-1, keepdims=True), rng.normal(mean, np.sqrt(variance)))

    def mean(self):
        """MDP of the posterior mean of P and R, for each task."""
        alpha, mean, _ = self.posterior()
        return self._mdp(alpha / alpha.sum(-1, keepdims=True), mean)

    def _mdp(self, P, R):
        """MDP from P (N, S, A, S) and R (N, S, A), with the known ends: they absorb and pay 0."""
        like = self.like
        end = like.terminal[..., None]
        stay = np.eye(P.shape[-1])[:, None]
        return MDP.from_dense(
            np.where(end[..., None], stay, P),
            np.where(end, 0.0, R),
            like.start,
            discount=like.discount,
            horizon=like.horizon,
            terminal=like.terminal,
        )
