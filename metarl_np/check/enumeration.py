"""The oracles: what can be computed exactly in a tabular MDP, by dynamic programming and by enumeration.
log π is (S, A) or (N, S, A); ValueError if it is not one. autograd differentiates the finite-horizon functions through it, to any order.
"""

from dataclasses import replace
from itertools import product

import autograd.numpy as np

from metarl_np.arguments import require, require_finite, require_shapes, validate
from metarl_np.learner.returns import discounted_return
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import log_likelihood, stop
from metarl_np.meta import rl2
from metarl_np.meta.maml import Adaptation, per_task
from metarl_np.tasks.mdp import for_each_task


def enumerate_episodes(mdps, *, max_episodes=1_000_000):
    """Every episode of N small MDPs that is possible under some policy, of probability dynamics · Π_t π(a_t|s_t) over its unmasked steps:
    (Episodes, dynamics (N, M)), filled up with fully masked ones of probability 0. Raises ValueError if there are too many.
    """

    def by_task(x):  # (…, all episodes) → (…, N, M); they are sorted by task
        filled = np.zeros(x.shape[:-1] + (n, np.bincount(task).max()))
        filled[..., task, np.arange(len(task)) - np.searchsorted(task, task)] = x
        return filled

    validate(mdps=mdps, max_episodes=max_episodes)
    n, s, a, z = mdps.successors.shape
    count = np.ones(mdps.shape[:2])
    for _ in range(mdps.horizon):
        count = np.where(
            mdps.terminal,
            1.0,
            ((mdps.probabilities > 0) * count.ravel()[mdps.next_rows]).sum((-2, -1)),
        )
    total = ((mdps.start > 0) * count).sum(-1).max()
    require(
        total <= max_episodes,
        "max_episodes",
        f"{total:.0f} episodes, above {max_episodes}; lower horizon, states, actions or Z",
    )
    outcomes, rewards, after = (
        x.reshape(n, s, a * z) for x in (mdps.probabilities, mdps.rewards, mdps.successors)
    )
    task, state = np.nonzero(mdps.start)
    probability = mdps.start[task, state]
    steps = np.zeros((4, 0, len(task)))  # steps: s, a, r, mask of each episode so far
    for _ in range(mdps.horizon):
        ended = mdps.terminal[task, state][:, None]
        branch = np.where(
            ended, np.arange(a * z) == 0, outcomes[task, state]
        )  # an ended episode goes on as one
        i, j = np.nonzero(branch)
        task = task[i]
        state = state[i]
        end = ended[i, 0]
        steps = np.concatenate(
            [
                steps[:, :, i],
                np.stack([state, j // z, rewards[task, state, j] * ~end, ~end])[:, None],
            ],
            1,
        )
        probability = probability[i] * branch[i, j]
        state = np.where(end, state, after[task, state, j])
    (states, actions), rewards, mask, last = (
        by_task(steps[:2]).astype(int),
        *by_task(steps[2:]),
        by_task(state).astype(int),
    )
    return Episodes(
        states, actions, rewards, mask > 0, None, last, np.zeros(last.shape, bool)
    ), by_task(probability)


def enumerated_return(log_pi, episodes, dynamics, discount):
    """J = Σ_τ Pr(τ) Σ_t γᵗ r_t over enumerated episodes, differentiable through log π: (N,)."""
    require_shapes(episodes.last_states.shape, dynamics=dynamics)
    table = for_each_task(log_pi, len(dynamics))
    task = np.arange(len(dynamics))[:, None]
    log_p = np.sum(np.where(episodes.mask, table[task, episodes.states, episodes.actions], 0.0), 0)
    return np.sum(dynamics * np.exp(log_p) * discounted_return(episodes.rewards, discount), -1)


@np.errstate(over="ignore", invalid="ignore")
def enumerate_adaptations(mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000):
    """Every history of k = `steps` inner updates, each on K = `episodes` episodes, in one small MDP: (Adaptation, probability (R,)).
    The R histories are the task axis of the Adaptation, the query is empty. Each D is drawn with parameters that those before it led to,
    so the probability depends on θ (F, A) through all. Raises ValueError on more D than max_datasets, and on Gaussian reward noise.
    """
    validate(
        mdps=mdps,
        policy=policy,
        inner=inner,
        episodes=episodes,
        steps=steps,
        max_datasets=max_datasets,
    )
    require(len(mdps) == 1, "mdps", f"the data sets of one task are enumerated, not of {len(mdps)}")
    require(
        not mdps.reward_noise.any(),
        "mdps",
        "reward_noise is not 0: Gaussian rewards cannot be enumerated (Bernoulli ones can)",
    )
    require(steps > 0, "steps", "0 is not at least 1")
    every, dynamics = enumerate_episodes(mdps)
    m = dynamics.shape[1]
    power = episodes * steps
    require(
        m**power <= max_datasets,
        "max_datasets",
        f"{m} episodes make {m}^{power} = {m**power} data sets, above {max_datasets}; "
        "lower episodes, steps, or the MDP's horizon, states, actions or Z",
    )
    sets = np.array(
        list(product(range(m), repeat=episodes))
    )  # (D, K): which episodes a data set is made of
    thetas = [per_task(theta, len(mdps))]
    probability = np.ones(1)
    data = []
    seen = []
    for _ in range(steps):  # R histories become R·D
        chosen = np.tile(sets, (len(probability), 1))
        parent = np.repeat(np.arange(len(probability)), len(sets))
        thetas = [np.repeat(th, len(sets), 0) for th in thetas]
        seen = [e.part(tasks=parent) for e in seen]
        log_pi = policy.log_pi(thetas[-1])
        seen.append(replace(every.part(chosen, 0), log_pi=stop(log_pi)))
        probability = (
            np.repeat(probability, len(sets))
            * np.exp(log_likelihood(log_pi, seen[-1]))
            * dynamics[0][chosen].prod(-1)
        )
        data = [inner.prepare(policy, stop(th), e, mdps.discount) for th, e in zip(thetas, seen)]
        thetas.append(inner(policy, thetas[-1], data[-1]))
        require_finite(
            thetas[-1], "adapted parameters", f" after inner step {len(data)} of {inner!r:.50}"
        )
    return (
        Adaptation(
            thetas,
            seen,
            data,
            np.array([discounted_return(e.rewards, mdps.discount).mean(-1) for e in seen]),
            None,
        ),
        probability,
    )


def enumerate_bandit_trials(policy, pulls, dtype=float):
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


def enumerated_trial_return(policy, theta, trials, probability):
    """J = Σ_τ Pr(τ) Σ_t r_t over all histories (γ = 1), the exact expected return of a recurrent policy, differentiable in θ: a number."""
    taken = trials.actions[..., None] == np.arange(policy.n_actions)
    log_p = np.sum(rl2.log_probs(rl2.outputs(policy, theta, trials)) * taken, (0, 2))
    return np.sum(probability * np.exp(log_p) * trials.rewards.sum(0))
