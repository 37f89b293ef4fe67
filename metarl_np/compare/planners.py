"""Model-based meta-learning: keep the exact posterior of a new task, from what training tasks have in common (demos/priors.py), and plan.
A belief is about N tasks at once and has three methods: `update(episodes)` → the belief after recorded Episodes, `sample(rng)` → one MDP a
task drawn from the posterior, `mean()` → the posterior mean. `act` plans in one of them, an episode at a time.
"""

from dataclasses import replace

import numpy as np

from metarl_np.arguments import require
from metarl_np.compare.beliefs import Prior
from metarl_np.compare.strategies import BANDITS, _within
from metarl_np.learner.rollouts import Episodes, rollout, step, successor_table
from metarl_np.tasks import exact


def sample_plan(rng, belief):
    """log π, optimal for the horizon in a model drawn from the posterior: (N, (T + 1)·S, A). Strens (2000); Osband et al. (2013)."""
    return exact.optimal_log_pi(belief.sample(rng))


def mean_plan(rng, belief):
    """log π, optimal for the horizon in the posterior mean: (N, (T + 1)·S, A). Draws nothing."""
    return exact.optimal_log_pi(belief.mean())


def act(rng, mdps, belief, *, episodes, plan=sample_plan):
    """Act in the unknown `mdps` by a plan(rng, belief) → log π on `mdps.with_time()`, made anew before each episode: a generator of (its
    exact expected return (N,), log π, the belief before it). Osband et al. (2013), Algorithm 1."""
    timed = mdps.with_time()
    s = mdps.shape[1]
    for _ in range(episodes):
        log_pi = plan(rng, belief)
        yield exact.expected_return(timed, log_pi), log_pi, belief
        e = rollout(rng, timed, log_pi, 1)
        belief = belief.update(
            replace(e, states=e.states % s, last_states=e.last_states % s, log_pi=None)
        )


# ---- tabular MDPs: a plan's scores of the actions are Q_t(s, a), (T, N, S, A), from a DirichletBelief
def play_mdps(rng, mdps, belief, episodes, plan, value):
    """Plan, act for one episode, learn from it, n = `episodes` times: Σ_t γᵗ R̄(s_t, a_t) of the steps that were taken, (n, N).
    Ties (of less than 1e-9) are broken at random. The known-model optimum is `exact.optimal_return(mdps)` an episode.
    """
    _within(1, episodes=episodes)
    require(
        belief.like.shape == mdps.shape,
        "belief",
        f"about tasks (N, S, A) = {belief.like.shape}, where mdps are {mdps.shape}",
    )
    task = np.arange(len(mdps))
    table = successor_table(mdps)
    scores = np.zeros((episodes, len(mdps)))
    starts, chances = mdps.start_support
    for score in scores:
        q = plan(rng, belief, value)
        steps = []
        state = starts[task, (np.cumsum(chances[:, :-1], 1) <= rng.random((len(mdps), 1))).sum(1)]
        for q_t in q + 1e-9 * rng.random(q.shape):
            action = q_t[task, state].argmax(1)
            score += mdps.discount ** len(steps) * mdps.expected_rewards[task, state, action]
            steps.append((state, action, *step(rng, mdps, table, state, action)))
            state = steps[-1][-1]
        s, a, r, after = (np.array(x)[..., None] for x in zip(*steps))
        belief = belief.update(
            Episodes(
                s,
                a,
                r,
                ~mdps.terminal[task[:, None], s],
                None,
                after[-1],
                np.zeros(after[-1].shape, bool),
            )
        )
    return scores


def planned_values(mdps, R, P, slack=None):
    """Q_t(s, a) = R(s, a) + γ Σ_z P(z|s, a) max_a' Q_{t+1}(z, a'): R (N, S, A), P (N, S, A, S) → (T, N, S, A); `optimistic` with slack."""
    q = [np.zeros(R.shape)]
    for _ in range(mdps.horizon):
        v = q[-1].max(-1)
        expected = np.einsum("nsaz,nz->nsa", P, v) if slack is None else optimistic(P, slack, v)
        q.append((R + mdps.discount * expected) * ~mdps.terminal[..., None])
    return np.array(q[:0:-1])


def optimistic(P, slack, v):
    """max_p Σ_z p_z v_z over ‖p − P(·|s, a)‖₁ ≤ slack, by moving slack/2 from the worst to the best state. Jaksch et al. (2010), Fig. 2."""
    order = np.argsort(-v, 1)
    at_least = (
        np.cumsum(np.take_along_axis(P, order[:, None, None], -1), -1) + slack[..., None] / 2
    )  # mass on the best 1, 2, … states
    return np.einsum(
        "nsaz,nz->nsa", np.minimum(at_least, 1), -np.diff(np.take_along_axis(v, order, 1), append=0)
    )


def greedy_plan(rng, belief, epsilon, beta=0.0):
    """Optimal in the posterior mean, but at each step with probability ε a random action; ε = 0 is greedy, ε = 1 random. β adds
    β/(1 + Σ_z α_z(s, a)) to the rewards: BEB, Kolter & Ng (2009), §4."""
    _within(0, 1, epsilon=epsilon)
    _within(0, beta=beta)
    alpha, mean, _ = belief.posterior()
    q = planned_values(
        belief.like, mean + beta / (1 + alpha.sum(-1)), alpha / alpha.sum(-1, keepdims=True)
    )
    return np.where(rng.random(q.shape[:-1] + (1,)) < epsilon, rng.random(q.shape), q)


def opsrl(rng, belief, samples):
    """PSRL, optimal in a posterior sample (Strens 2000; Osband et al. 2013); of several samples the highest optimal Q_t(s, a).
    The maximum is taken after solving each sample, as in Osband's own code (TabulaRL), and not in every step of the recursion.
    """
    _within(1, samples=samples)
    alpha, mean, variance = belief.posterior()
    q = -np.inf
    for _ in range(samples):
        P = rng.standard_gamma(alpha) + 1e-300  # a row that underflows is flat
        q = np.maximum(
            q,
            planned_values(
                belief.like, rng.normal(mean, np.sqrt(variance)), P / P.sum(-1, keepdims=True)
            ),
        )
    return q


def ucrl2(rng, belief, scale, delta=0.05):
    """Optimal in the best model within `scale` times the confidence sets around the posterior mean. Jaksch et al. (2010), eqs. 3 and 4:
    |r − R̄| ≤ √(7 log(2SAt/δ) / 2n), ‖p − P̄‖₁ ≤ √(14 S log(2At/δ) / n), n = max(1, visits of (s, a)), t = steps so far + 1; there they
    are around what was seen (the prior FLAT), for rewards in [0, 1] and no horizon."""
    _within(0, scale=scale)
    (_, s, a), (alpha, mean, _) = belief.like.shape, belief.posterior()
    visits = alpha.sum(-1) - s * belief.prior.concentration
    t = visits.sum((1, 2), keepdims=True) + 1
    n = np.maximum(visits, 1)
    bonus, slack = (
        scale * np.sqrt(x / n)
        for x in (3.5 * np.log(2 * s * a * t / delta), 14 * s * np.log(2 * a * t / delta))
    )
    return planned_values(belief.like, mean + bonus, alpha / alpha.sum(-1, keepdims=True), slack)


TRUE = Prior(1.0, 1.0, 1.0, 1.0)


BLIND = Prior(1.0, 0.0, 1.0, 1.0)


FLAT = Prior(1e-4, 0.0, 100.0, 1.0)


# Table 2 of Duan et al. (2016) is what BLIND (mean reward 0) and FLAT (almost no prior) give. With TRUE, which random_mdps draws from, BEB
# and greedy gain much and PSRL loses a little.
MDPS = {
    "random": (greedy_plan, (1,), BLIND),
    "psrl": (opsrl, (1,), BLIND),
    "opsrl": (opsrl, (2, 3, 5, 10), BLIND),
    "ucrl2": (ucrl2, (0.02, 0.05, 0.1, 0.2, 0.3, 0.5), FLAT),
    "beb": (
        lambda rng, belief, beta: greedy_plan(rng, belief, 0, beta),
        (0.3, 1, 3, 10, 20, 30, 40, 50),
        BLIND,
    ),
    "egreedy": (greedy_plan, BANDITS["egreedy"][1], FLAT),
    "greedy": (greedy_plan, (0,), FLAT),
}  # {name: (plan, grid, prior)}
