"""Model-based meta-learning: learn what the training tasks have in common, keep the exact posterior of a new one, and plan in it.

A belief is about N tasks at once and has three methods: `update(episodes)` → the belief after recorded Episodes, `sample(rng)` → one MDP a
task drawn from the posterior, `mean()` → the posterior mean. `act` plans in either, an episode at a time.
"""

from dataclasses import dataclass, replace

import numpy as np

from metarl_np import exact
from metarl_np.mdp import MDP
from metarl_np.returns import Episodes
from metarl_np.rollouts import rollout


def act(rng, mdps, belief, *, episodes, plan="sample"):
    """Act in the unknown `mdps` for some episodes, planning in a posterior sample (PSRL) or the posterior mean: a generator.

    Yields (the exact expected return of each episode's policy (N,), its log π on `mdps.with_time()`, the belief before it). The plan
    is optimal for the horizon in the planned model, so the policy may depend on time. Strens (2000); Osband et al. (2013),
    Algorithm 1. Raises ValueError on a plan that is not "sample" or "mean".
    """
    if plan not in ("sample", "mean"):
        raise ValueError(f"plan: {plan!r} is not 'sample' or 'mean'")
    timed, s = mdps.with_time(), mdps.shape[1]
    for _ in range(episodes):
        log_pi = exact.optimal_log_pi(belief.sample(rng) if plan == "sample" else belief.mean())
        yield exact.expected_return(timed, log_pi), log_pi, belief
        e = rollout(rng, timed, log_pi, 1)
        belief = belief.update(Episodes(e.states % s, e.actions, e.rewards, e.mask, None, e.last_states % s, e.truncated))


def transitions(episodes):
    """(task, s, a, r, s') of every unmasked step: five flat arrays."""
    after = np.concatenate([episodes.states[1:], episodes.last_states[None]])
    task = np.broadcast_to(np.arange(episodes.states.shape[1])[:, None], episodes.states.shape)
    return tuple(x[episodes.mask] for x in (task, episodes.states, episodes.actions, episodes.rewards, after))


# ---- a family of which one task is one of finitely many, such as GridWorlds with an unknown goal


def fit_slip(grid, goals, episodes, *, iterations=200):
    """Maximum-likelihood slip probability of a GridWorld, from Episodes in tasks with known goals (N,), by EM: a number in [0, 1].

    E-step: the chance that a step slipped, given where it went; M-step: the mean of those chances. Moves that walls make
    indistinguishable count with their chance. Raises ValueError if there is no step, or one that no slip explains.
    """
    task, s, a, _, after = transitions(episodes)
    ways = replace(grid, slip=0.5).mdps(goals).successors[task, s, a] == after[:, None]  # straight, and the two turns
    if not len(ways) or not ways.any(1).all():
        raise ValueError("episodes: no step at all, or one that this grid with these goals cannot make")
    slip = 0.5
    for _ in range(iterations):
        straight, turned = (1 - slip) * ways[:, 0], slip / 2 * (ways[:, 1] + 0.0 + ways[:, 2])
        slip = (turned / (straight + turned)).mean()
    return float(slip)


def fit_goals(grid, goals, *, pseudo_count=1.0):
    """The distribution of goals over the F free cells, (count + pseudo_count) / total: the posterior mean under a flat prior, so that a
    goal that no training task had keeps a chance. (N,) → (F,)."""
    if not 0 <= pseudo_count < np.inf or not len(goals) + pseudo_count > 0:
        raise ValueError(f"pseudo_count: {pseudo_count} must not be negative, nor 0 without goals")
    counts = (np.asarray(goals)[:, None] == grid.free_cells).sum(0) + pseudo_count
    return counts / counts.sum()


@dataclass(frozen=True, eq=False)
class FiniteBelief:
    """The exact posterior over C candidate MDPs, for each of N tasks."""

    candidates: MDP  # C tasks, without reward noise
    weights: np.ndarray  # (N, C), rows summing to one

    def __post_init__(self):
        if np.shape(self.weights)[-1:] != (len(self.candidates),) or np.ndim(self.weights) != 2:
            raise ValueError(f"weights: expected shape (N, {len(self.candidates)}), got {np.shape(self.weights)}")
        if not (np.asarray(self.weights) >= 0).all() or not np.allclose(np.sum(self.weights, 1), 1):
            raise ValueError("weights: rows must be probabilities")
        if self.candidates.reward_noise.any():
            raise ValueError("candidates: rewards with Gaussian noise, where exact ones are compared")

    def update(self, episodes):
        """Bayes' rule: w_c ∝ w_c Π P_c(s', r | s, a) over the recorded steps, in which an episode went on or ended.

        Where an episode starts is not evidence. Raises ValueError if no candidate can have made the steps.
        """
        task, s, a, r, after = transitions(episodes)
        c, mask = self.candidates, episodes.mask
        went_on, told = np.concatenate([mask[1:], episodes.truncated[None]])[mask], np.ones(mask.shape, bool)
        told[-1] = len(mask) < c.horizon  # at the horizon an episode ends in any state
        fits = ~c.terminal[:, s] & ((c.terminal[:, after] != went_on) | ~told[mask])
        seen = (c.successors[:, s, a] == after[:, None]) & (c.rewards.astype(np.float32)[:, s, a] == r.astype(np.float32)[:, None])
        with np.errstate(divide="ignore"):
            step = np.log((c.probabilities[:, s, a] * seen).sum(-1) * fits)  # (C, steps)
            log_w = np.log(self.weights)
        possible = np.ones(log_w.shape, bool)
        np.logical_and.at(possible, task, np.isfinite(step).T)
        np.add.at(log_w, task, np.where(np.isfinite(step), step, 0.0).T)
        log_w = np.where(possible, log_w, -np.inf)
        if not np.isfinite(log_w).any(1).all():
            raise ValueError(f"episodes: no candidate can have made them (at task {np.isfinite(log_w).any(1).argmin()})")
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        return replace(self, weights=w / w.sum(1, keepdims=True))

    def sample(self, rng):
        """One candidate for each task, drawn with its weight: MDP."""
        u = rng.random((len(self.weights), 1))
        return self.candidates[np.minimum((np.cumsum(self.weights, 1) < u).sum(1), len(self.candidates) - 1)]

    def mean(self):
        """P̄ = Σ_c w_c P_c and R̄ likewise, for each task: MDP."""
        c = self.candidates
        P = np.zeros(c.shape + c.shape[1:2])
        np.add.at(P, (*np.indices(c.successors.shape)[:3], c.successors), c.probabilities)
        terminal = (self.weights @ ~c.terminal) == 0
        P, R = (np.tensordot(self.weights, x, 1) for x in (P, c.expected_rewards))
        return MDP.from_dense(P, R, self.weights @ c.start, discount=c.discount, horizon=c.horizon, terminal=terminal)


# ---- tabular MDPs with Dirichlet transitions and Gaussian rewards


@dataclass(frozen=True)
class Prior:
    """P(·|s,a) ~ Dirichlet(α, …, α), mean reward m(s,a) ~ N(mean, std²), rewards N(m, noise²)."""

    concentration: float  # α
    mean: float
    std: float
    noise: float

    def __post_init__(self):
        if not min(self.concentration, self.std, self.noise) > 0 or not np.isfinite(self.mean):
            raise ValueError(f"concentration, std, noise: {self.concentration}, {self.std}, {self.noise} must be positive, mean finite")


def counts(mdps_shape, episodes):
    """(C (N, S, A, S) next-state counts, n, Σ r, Σ r² (N, S, A)) of recorded Episodes: what a posterior needs of them."""
    n, s, a = mdps_shape
    task, state, action, reward, after = transitions(episodes)
    pair = (task * s + state) * a + action
    moments = [np.bincount(pair, reward.astype(float)**power, n * s * a).reshape(n, s, a) for power in (0, 1, 2)]
    return np.bincount(pair * s + after, minlength=n * s * a * s).reshape(n, s, a, s), *moments


def fit_prior(next_counts, n, total, squares, *, iterations=300):
    """The maximum-likelihood Prior of `counts` over training tasks (type II). Raises ValueError if no pair was visited twice.

    α: Σ log Γ(Sα)/Γ(Sα + n) + Σ log Γ(α + n_z)/Γ(α), with log Γ(α + n)/Γ(α) = Σ_{i<n} log(α + i); its derivative by bisection
    (Minka 2000), in [1e-3, 1e3]. Rewards: EM for a normal mean with normal noise, no standard deviation falling below 1e-6.
    """
    if not (n > 1).any():
        raise ValueError("n: no state and action was visited twice, so nothing tells noise from spread")
    s, most = next_counts.shape[-1], int(n.max())
    i = np.arange(most)
    above, all_above = ((np.ravel(x)[:, None] > i).sum(0) for x in (next_counts, n))  # how many counts exceed i
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        uphill = (above / (middle + i)).sum() > (s * all_above / (s * middle + i)).sum()
        low, high = (middle, high) if uphill else (low, middle)
    n, total, squares = (x[n > 0].astype(float) for x in (n, total, squares))
    mean, spread, noise = total.sum() / n.sum(), 1.0, 1.0  # spread and noise are variances
    for _ in range(iterations):
        variance = 1 / (n / noise + 1 / spread)
        m = variance * (total / noise + mean / spread)
        mean, spread = m.mean(), max((variance + (m - m.mean()) ** 2).mean(), 1e-12)
        noise = max((squares - 2 * m * total + n * (m**2 + variance)).sum() / n.sum(), 1e-12)
    return Prior(float(np.sqrt(low * high)), float(mean), float(np.sqrt(spread)), float(np.sqrt(noise)))


@dataclass(frozen=True, eq=False)
class DirichletBelief:
    """The exact posterior under a Prior, for each of N tasks: Dirichlet(α + counts), and a normal mean reward for each (s, a)."""

    prior: Prior
    like: MDP  # N tasks of the right size, for the start, the terminal states, the discount and the horizon
    seen: tuple = None  # `counts` so far

    def update(self, episodes):
        """The belief after recorded Episodes."""
        new = counts(self.like.shape, episodes)
        return replace(self, seen=new if self.seen is None else tuple(x + y for x, y in zip(self.seen, new)))

    def posterior(self):
        """(Dirichlet parameters (N, S, A, S), mean and variance (N, S, A) of the mean reward)."""
        p = self.prior
        seen = counts(self.like.shape, _nothing(len(self.like))) if self.seen is None else self.seen
        variance = 1 / (seen[1] / p.noise**2 + 1 / p.std**2)
        return p.concentration + seen[0], variance * (seen[2] / p.noise**2 + p.mean / p.std**2), variance

    def sample(self, rng):
        """One MDP for each task, drawn from the posterior."""
        alpha, mean, variance = self.posterior()
        log_p = np.log(rng.standard_gamma(alpha + 1)) - rng.standard_exponential(alpha.shape) / alpha  # a small α underflows no row
        P = np.exp(log_p - log_p.max(-1, keepdims=True))
        return self._mdp(P / P.sum(-1, keepdims=True), rng.normal(mean, np.sqrt(variance)))

    def mean(self):
        """The MDP of the posterior mean of P and R."""
        alpha, mean, _ = self.posterior()
        return self._mdp(alpha / alpha.sum(-1, keepdims=True), mean)

    def _mdp(self, P, R):
        end = self.like.terminal[..., None]  # known, as the start is: absorbing and worth nothing
        P = np.where(end[..., None], np.eye(P.shape[-1])[:, None], P)
        return MDP.from_dense(P, np.where(end, 0.0, R), self.like.start, discount=self.like.discount, horizon=self.like.horizon,
                              terminal=self.like.terminal)


def _nothing(n):
    empty = np.zeros((0, n, 1), int)
    return Episodes(empty, empty, empty, empty.astype(bool), None, np.zeros((n, 1), int), np.zeros((n, 1), bool))
