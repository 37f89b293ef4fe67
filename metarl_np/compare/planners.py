"""Planners for unknown MDPs: PSRL, OPSRL, UCRL2, BEB, greedy. They keep a belief, and plan in it.

There are two ways to act on a belief. `act` plans in one MDP, a sample of the posterior or its
mean, by exact dynamic programming, for any belief. `play_mdps` takes action values
Q_t(s, a), (T, N, S, A), from plan(rng, belief, value), for a DirichletBelief, `value` being the
plan's one hyperparameter: the columns of Duan et al. (2016), Table 2.
"""

from dataclasses import replace
from typing import Callable, NamedTuple

import numpy as np

from metarl_np.arguments import require, trusted, validate
from metarl_np.compare.beliefs import Prior
from metarl_np.compare.strategies import BANDITS
from metarl_np.learner.rollouts import Episodes, rollout, step, successor_table
from metarl_np.tasks import exact


class Planner(NamedTuple):
    """A plan, the values of its hyperparameter to choose from, and the prior it starts from."""

    plan: Callable
    grid: tuple
    prior: Prior


def sample_plan(rng, belief):
    """log π, optimal in a model drawn from the posterior: (N, (T + 1)·S, A).

    Posterior sampling: Strens (2000); Osband et al. (2013).
    """
    return exact.optimal_log_pi(belief.sample(rng))


def mean_plan(rng, belief):
    """log π, optimal in the posterior mean: (N, (T + 1)·S, A). It draws nothing."""
    return exact.optimal_log_pi(belief.mean())


def act(rng, mdps, belief, *, episodes, plan=sample_plan):
    """Act in the unknown `mdps` for so many episodes, planning anew before each: a generator.

    plan(rng, belief) → log π on `mdps.with_time()`. Yields the plan's exact expected return (N,),
    log π, and the belief that it was made from. Osband et al. (2013), Algorithm 1.
    """
    validate(mdps=mdps, plan=plan)
    timed = mdps.with_time()
    n_states = mdps.shape[1]
    for _ in range(episodes):
        log_pi = plan(rng, belief)
        yield exact.expected_return(timed, log_pi), log_pi, belief
        e = rollout(rng, timed, log_pi, 1)
        states = e.states % n_states  # without the time
        last_states = e.last_states % n_states
        seen = replace(e, states=states, last_states=last_states, log_pi=None)
        belief = belief.update(seen)


def play_mdps(rng, mdps, belief, episodes, plan, value):
    """Σ_t γᵗ R̄(s_t, a_t) of each of n = `episodes` episodes, planning anew before each: (n, N).

    belief: a DirichletBelief about tasks of this size. Ties of less than 1e-9 are broken at random.
    """
    validate(mdps=mdps, episodes=episodes, plan=plan)
    sizes = f"about tasks (N, S, A) = {belief.like.shape}, where mdps are {mdps.shape}"
    require(belief.like.shape == mdps.shape, "belief", sizes)
    table = successor_table(mdps)
    earned = np.zeros((episodes, len(mdps)))
    for i in range(episodes):
        q = plan(rng, belief, value)
        earned[i], seen = _episode(rng, mdps, table, q)
        belief = belief.update(seen)
    return earned


def _episode(rng, mdps, table, q):
    """(Σ_t γᵗ R̄ (N,), Episodes) of one episode in each task, by Q_t(s, a) (T, N, S, A)."""
    task = np.arange(len(mdps))
    starts, chances = mdps.start_support
    passed = np.cumsum(chances[:, :-1], 1) <= rng.random((len(mdps), 1))
    state = starts[task, passed.sum(1)]
    earned = np.zeros(len(mdps))
    states = []
    actions = []
    rewards = []
    for t, q_t in enumerate(q + 1e-9 * rng.random(q.shape)):
        action = q_t[task, state].argmax(1)
        earned += mdps.discount**t * mdps.expected_rewards[task, state, action]
        reward, after = step(rng, mdps, table, state, action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        state = after
    states, actions, rewards = (np.array(x)[..., None] for x in (states, actions, rewards))
    seen = trusted(
        Episodes,
        states=states,
        actions=actions,
        rewards=rewards,
        mask=~mdps.terminal[task[:, None], states],
        log_pi=None,
        last_states=state[:, None],
        truncated=np.zeros((len(mdps), 1), bool),
    )
    return earned, seen


def planned_values(mdps, R, P, slack=None):
    """Q_t(s, a) = R(s, a) + γ Σ_z P(z|s, a) max_a' Q_{t+1}(z, a'): (T, N, S, A).

    R (N, S, A), P (N, S, A, S). slack (N, S, A): plan with the `optimistic` P within it.
    """
    q = [np.zeros(R.shape)]
    for _ in range(mdps.horizon):
        v = q[-1].max(-1)
        expected = np.einsum("nsaz,nz->nsa", P, v) if slack is None else optimistic(P, slack, v)
        q.append((R + mdps.discount * expected) * ~mdps.terminal[..., None])
    return np.array(q[:0:-1])


def optimistic(P, slack, v):
    """max_p Σ_z p_z v_z over ‖p − P(·|s, a)‖₁ ≤ slack: (N, S, A). Jaksch et al. (2010), Fig. 2.

    By moving slack/2 of the probability from the worst states to the best: v (N, S).
    """
    order = np.argsort(-v, 1)  # the best first
    sorted_p = np.take_along_axis(P, order[:, None, None], -1)
    # on the best 1, 2, … states
    mass = np.minimum(np.cumsum(sorted_p, -1) + slack[..., None] / 2, 1)
    drops = -np.diff(np.take_along_axis(v, order, 1), append=0)
    return np.einsum("nsaz,nz->nsa", mass, drops)


def greedy_plan(rng, belief, epsilon, beta=0.0):
    """Q, optimal in the posterior mean, but at a step with probability ε random: (T, N, S, A).

    ε = 0 is greedy, ε = 1 random. β adds β/(1 + Σ_z α_z(s, a)) to the rewards.
    """
    validate(epsilon=epsilon, beta=beta)
    alpha, mean, _ = belief.posterior()
    total = alpha.sum(-1)
    q = planned_values(belief.like, mean + beta / (1 + total), alpha / total[..., None])
    explores = rng.random(q.shape[:-1] + (1,)) < epsilon
    return np.where(explores, rng.random(q.shape), q)


def beb(rng, belief, beta):
    """Q of the Bayesian exploration bonus: (T, N, S, A). Kolter & Ng (2009), §4."""
    return greedy_plan(rng, belief, epsilon=0, beta=beta)


def opsrl(rng, belief, samples):
    """Q, optimal in a posterior sample: PSRL; of several the highest Q: (T, N, S, A).

    Strens (2000); Osband et al. (2013). The maximum is taken after solving each sample, as in
    Osband's own code (TabulaRL), and not in every step of the recursion.
    """
    validate(samples=samples)
    alpha, mean, variance = belief.posterior()
    q = -np.inf
    for _ in range(samples):
        P = rng.standard_gamma(alpha) + 1e-300  # a row that underflows is flat
        P = P / P.sum(-1, keepdims=True)
        R = rng.normal(mean, np.sqrt(variance))
        q = np.maximum(q, planned_values(belief.like, R, P))
    return q


def ucrl2(rng, belief, scale, delta=0.05):
    """Q, optimal in the best model within `scale` times the confidence sets: (T, N, S, A).

    Jaksch et al. (2010), eqs. 3 and 4: |r − R̄| ≤ √(7 log(2SAt/δ) / 2n) and
    ‖p − P̄‖₁ ≤ √(14 S log(2At/δ) / n), n = max(1, visits of (s, a)), t = steps so far + 1. There
    they are around what was seen (the prior FLAT), for rewards in [0, 1] and no horizon; here
    around the posterior mean.
    """
    validate(scale=scale)
    _, n_states, n_actions = belief.like.shape
    alpha, mean, _ = belief.posterior()
    total = alpha.sum(-1)
    visits = total - n_states * belief.prior.concentration
    t = visits.sum((1, 2), keepdims=True) + 1
    n = np.maximum(visits, 1)
    bonus = scale * np.sqrt(3.5 * np.log(2 * n_states * n_actions * t / delta) / n)
    slack = scale * np.sqrt(14 * n_states * np.log(2 * n_actions * t / delta) / n)
    return planned_values(belief.like, mean + bonus, alpha / total[..., None], slack)


# Table 2 of Duan et al. (2016) is what BLIND (mean reward 0) and FLAT (almost no prior) give. With
# TRUE, which random_mdps draws from, BEB and greedy gain much, and PSRL loses a little.
TRUE = Prior(concentration=1.0, mean=1.0, std=1.0, noise=1.0)
BLIND = Prior(concentration=1.0, mean=0.0, std=1.0, noise=1.0)
FLAT = Prior(concentration=1e-4, mean=0.0, std=100.0, noise=1.0)
MDPS = {
    "random": Planner(greedy_plan, (1,), BLIND),
    "psrl": Planner(opsrl, (1,), BLIND),
    "opsrl": Planner(opsrl, (2, 3, 5, 10), BLIND),
    "ucrl2": Planner(ucrl2, (0.02, 0.05, 0.1, 0.2, 0.3, 0.5), FLAT),
    "beb": Planner(beb, (0.3, 1, 3, 10, 20, 30, 40, 50), BLIND),
    "egreedy": Planner(greedy_plan, BANDITS["egreedy"].grid, FLAT),
    "greedy": Planner(greedy_plan, (0,), FLAT),
}
