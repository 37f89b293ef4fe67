"""What RL² is compared with: classical strategies for bandits and for random MDPs, and the exact Bayes-optimal return of bandits.

A strategy or plan says how good each action looks, with one hyperparameter as its last argument, and the runner takes the best action, for
N tasks at once. The catalogues BANDITS and MDPS name the grid of the hyperparameter beside each method; `tune` searches it.
"""

from functools import lru_cache
from math import comb

import autograd.numpy as anp
import numpy as np

from metarl_np import rl2
from metarl_np.bandits import DEPENDENT
from metarl_np.arguments import require
from metarl_np.returns import Episodes
from metarl_np.rollouts import step, successor_table
from model_based import Prior


def tune(rng, play, grid):
    """The value in `grid` with the highest mean total, and all of them: (value, {value: mean total}).
    play(rng, value) → scores (n, N) on tuning tasks; each value is given the same random numbers.
    """
    require(len(grid) > 0, "grid", "no value to choose from")
    seed = rng.integers(2**63)
    means = {value: float(play(np.random.default_rng(seed), value).sum(0).mean()) for value in grid}
    return max(means, key=means.get), means


def _within(low, high=1e9, **arguments):
    for name, value in arguments.items():
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is outside [{low}, {high:g}]")


# ---- Bernoulli bandits: a strategy's scores of the arms are (N, k), from their posteriors Beta(a, b), (N, k) each, after t pulls


def play_bandits(rng, means, pulls, strategy, value, *, random_ties=False):
    """The pulled arms' means over n = `pulls` pulls in N bandits of k arms: means (N, k) → (n, N).
    Each arm starts from one success and one failure, a = b = 1: the prior U[0, 1]. The first of equal arms is pulled, or a random one,
    which explores more: greedy gets 77.7 or 79.1 at n = 100, k = 10, where Duan et al. (2016) print 77.1.
    """
    require((means >= 0) & (means <= 1), "means", "not a probability", ("task", "arm"))
    _within(1, pulls=pulls)
    counts = np.ones((2,) + means.shape)
    task = np.arange(len(means))
    earned = np.empty((pulls, len(means)))
    for t in range(pulls):
        index = strategy(rng, *counts, t, value)
        arm = (index + 1e-9 * random_ties * rng.random(index.shape)).argmax(1)
        earned[t] = means[task, arm]
        counts[(rng.random(len(means)) >= earned[t]).astype(int), task, arm] += 1
    return earned


def egreedy(rng, a, b, t, epsilon):
    """The highest mean a/(a + b), but with probability ε a random arm. ε = 0 is greedy, ε = 1 random."""
    _within(0, 1, epsilon=epsilon)
    return np.where(rng.random((len(a), 1)) < epsilon, rng.random(a.shape), a / (a + b))


def ucb1(rng, a, b, t, c):
    """a/(a + b) + c √(2 log t / (a + b)), t = 1, 2, …: the pseudo-counts count as pulls. Auer et al. (2002); Duan et al. (2016)."""
    _within(0, c=c)
    return a / (a + b) + c * np.sqrt(2 * np.log(t + 1) / (a + b))


def thompson(rng, a, b, t, samples):
    """A posterior sample (Thompson 1933); of several, each of all arms, the one of highest density Π_i Beta(x_i; a_i, b_i). That is what
    gives the OTS of Duan et al. (2016); to raise samples to the mean (May et al. 2012) gives .5 less at n = 10 and 2 or 3 at n = 100.
    """
    _within(1, samples=samples)
    x = rng.beta(a, b, (samples,) + a.shape).clip(1e-300, 1 - 1e-16)
    return x[((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)).sum(-1).argmax(0), np.arange(len(a))]


@lru_cache
def gittins_index(discount, pulls):
    """The λ of an arm after s successes and f failures, s + f < `pulls`: (pulls, pulls) by s and f, NaN elsewhere; right to about 1e-4.
    λ for ever is as good as going on: E[r + γV(s', f')] = λ/(1 − γ), V = max(E[r + γV'], λ/(1 − γ)), solved backwards for a grid of λ
    from 4/(1 − γ) pulls later, where the mean counts as known. Gittins (1979); Gittins, Glazebrook & Weber (2011), ch. 8.
    """
    _within(0, 0.999, discount=discount)
    last = pulls + int(np.ceil(4 / (1 - discount)))
    points = 500
    stop = np.linspace(0, 1, points + 1)[:, None] / (1 - discount)
    v = np.maximum(stop, np.arange(1, last + 2) / (last + 2) / (1 - discount))
    table = np.full((pulls, pulls), np.nan)  # v: (λ, s)
    for m in reversed(range(last)):  # after m pulls of this arm
        s = np.arange(m + 1)
        p = (s + 1) / (m + 2)
        gain = p * (1 + discount * v[:, 1:]) + (1 - p) * discount * v[:, :-1] - stop  # falls with λ
        if m < pulls:
            i = (gain > 0).sum(0)
            table[s, m - s] = (i - 1 + gain[i - 1, s] / (gain[i - 1, s] - gain[i, s])) / points
        v = np.maximum(gain, 0) + stop
    table.setflags(write=False)
    return table


BANDITS = {  # {name: (strategy, grid)}; Gittins' discount is a hyperparameter, since a trial has a horizon and no discount
    "random": (egreedy, (1,)),
    "ts": (thompson, (1,)),
    "ots": (thompson, (3, 10, 30)),
    "greedy": (egreedy, (0,)),
    "egreedy": (egreedy, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)),
    "ucb1": (ucb1, (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1)),
    "gittins": (
        lambda rng, a, b, t, g: gittins_index(g, max(128, 1 << t.bit_length()))[
            a.astype(int) - 1, b.astype(int) - 1
        ],
        (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    ),
}


def bayes_optimal(arms, pulls, *, max_states=1_000_000):
    """max E Σ r over `pulls` pulls of k = `arms` arms with means from U[0, 1], by dynamic programming over sorted lists of (s, f): a float.
    Raises ValueError, with their number and how far one gets, if that is above max_states: k = 2, 5, 10 go to n = 81, 23, 20.
    """
    _within(1, arms=arms, pulls=pulls)
    k = min(arms, pulls)
    codes = np.arange(pulls)  # more arms than pulls are all the same
    ways = np.pad(
        [[1.0]], ((0, k), (0, pulls - 1))
    )  # [j, t]: lists with t pulls in all, of j arms; then add r arms of m pulls each
    for m in range(1, pulls):
        ways = sum(
            comb(m + r, r) * np.pad(ways, ((r, 0), (r * m, 0)))[: k + 1, :pulls]
            for r in range(min(k, pulls // m) + 1)
        )
    total = ways.sum(0).cumsum()
    require(
        total[-1] <= max_states,
        "arms, pulls",
        f"{arms}, {pulls} need {total[-1]:.4g} states, above max_states = {max_states}; "
        f"{arms} arms can be solved for {(total <= max_states).sum()} pulls",
    )
    mean = (
        (codes[:, None] + 1) / (codes[:, None] + codes + 2)
    ).ravel()  # of an arm with the code s·n + f
    layer = np.zeros((1, k), int)
    stack = []
    for _ in range(pulls - 1):
        after = (
            layer[:, None, None] + np.array([pulls, 1])[:, None] * np.eye(k, dtype=int)[:, None]
        )  # (states, arm, outcome, k)
        stack.append([mean[layer]])
        layer, link = np.unique(np.sort(after).reshape(-1, k), axis=0, return_inverse=True)
        stack[-1].append(link.reshape(after.shape[:3]))
    v = mean[layer].max(1)
    for p, link in reversed(stack):
        v = (p * (1 + v[link[..., 0]]) + (1 - p) * v[link[..., 1]]).max(1)
    return float(v[0])


def dependent_optimal(difficulty, pulls):
    """The best expected reward of each pull of `bandits.dependent` arms, whose means are p and 1 − p: (n,). Both arms tell the same of p,
    so greedy is optimal: Σ_s max(E[p; s], E[1 − p; s]), s of t signs being for p. The integral over U[0, 1] by Gauss–Legendre is exact.
    """
    _within(1, pulls=pulls)
    require(
        difficulty in ("uniform", *DEPENDENT),
        "difficulty",
        f"{difficulty!r} is not one of uniform, {', '.join(DEPENDENT)}",
    )
    x, w = (
        np.polynomial.legendre.leggauss(pulls)
        if difficulty == "uniform"
        else (np.array([1, -1]) * (1 - 2 * DEPENDENT[difficulty]), 1)
    )
    p = (1 + x[:, None]) / 2
    chance = (w / 2 + 0 * x)[:, None]
    best = np.empty(pulls)  # chance of p and s: (points of p, t + 1)
    for t in range(pulls):
        best[t] = np.maximum((p * chance).sum(0), ((1 - p) * chance).sum(0)).sum()
        chance = np.pad(chance * (1 - p), ((0, 0), (0, 1))) + np.pad(chance * p, ((0, 0), (1, 0)))
    return best


def bandit_trials(policy, pulls, dtype=float):
    """Every history of n = `pulls` pulls of k Bernoulli arms with means from U[0, 1]: (Trials, probability (M,)), M = (2k)ⁿ.
    The probability is Π_a s_a! f_a! / (s_a + f_a + 1)!, s and f counting successes and failures: all but the policy's Π π(a_t|…). Raises
    ValueError unless pulls >= 1 and M is at most a million."""
    arms = policy.n_actions
    require(
        pulls in range(1, 20) and (2 * arms) ** pulls <= 1_000_000,
        "pulls",
        f"{pulls} of {arms} arms: no history, or above a million",
    )
    actions, rewards = np.divmod(np.indices((2 * arms,) * pulls).reshape(pulls, -1), 2)
    inputs = np.zeros((pulls, policy.net.inputs, actions.shape[1]), dtype)
    for t in range(pulls):
        policy.observe(
            inputs[t], 0, actions[t - 1] + 1 if t else 0, rewards[t - 1] if t else 0, t > 0
        )
    factorial = np.cumprod(np.maximum(np.arange(pulls + 2.0), 1))
    probability = 1.0
    for a in range(arms):
        wins, losses = (((actions == a) & (rewards == r)).sum(0) for r in (1, 0))
        probability = (
            probability * factorial[wins] * factorial[losses] / factorial[wins + losses + 1]
        )
    zeros = np.zeros(actions.shape, int)
    times = np.arange(pulls)[:, None] + zeros
    return (
        rl2.Trials(inputs, None, zeros, actions, rewards.astype(float), times, zeros, zeros == 0),
        probability,
    )


def enumerated_return(policy, theta, trials, probability):
    """J = Σ_τ Pr(τ) Σ_t r_t over all histories (γ = 1), the exact expected return of a recurrent policy, differentiable in θ: a number."""
    taken = trials.actions[..., None] == np.arange(policy.n_actions)
    log_p = anp.sum(rl2.log_probs(rl2.outputs(policy, theta, trials)) * taken, (0, 2))
    return anp.sum(probability * anp.exp(log_p) * trials.rewards.sum(0))


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


def action_values(mdps, R, P, slack=None):
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
    q = action_values(
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
            action_values(
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
    return action_values(belief.like, mean + bonus, alpha / alpha.sum(-1, keepdims=True), slack)


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
