"""Every episode, data set and history of a tiny task, with its probability.

A sum over all of them is an exact expectation, and shares no formula with dynamic programming.
"""

from dataclasses import replace

import autograd.numpy as np

from metarl_np.arguments import (
    digits,
    require,
    require_finite,
    require_memory,
    require_shapes,
    unmasked,
    validate,
)
from metarl_np.learner.returns import discounted_return
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import gather_log_probs, log_likelihood, stop
from metarl_np.meta import rl2
from metarl_np.meta.maml import Adaptation, per_task

STEP_BYTES = 25  # state, action, reward and mask of a step


def enumerate_episodes(mdps, *, max_episodes=1_000_000):
    """Every episode that some policy can meet in N small MDPs: (Episodes, dynamics (N, M)).

    An episode has the probability dynamics · Π_t π(a_t|s_t) over its unmasked steps. Tasks with
    fewer are filled up with fully masked ones of probability 0. Raises ValueError if a task has
    more than max_episodes.
    """
    validate(mdps=mdps)
    max_episodes = validate(max_episodes=max_episodes)
    n_tasks, n_states, n_actions, n_slots = mdps.successors.shape
    most = _number_of_episodes(mdps, max_episodes)
    lower = "lower horizon, states, actions or Z"
    too_many = f"at least {digits(most)} episodes, above {max_episodes}; {lower}"
    require(most <= max_episodes, "max_episodes", too_many)
    require_memory(STEP_BYTES, mdps.horizon, n_tasks, most)
    by_outcome = (n_tasks, n_states, n_actions * n_slots)  # an action and a successor slot
    only_first = np.arange(n_actions * n_slots) == 0
    same_state = np.arange(n_states)[:, None]
    # an episode that has ended has one way to go on: it stays, and pays 0
    ended = mdps.terminal[..., None]
    chance = np.where(ended, only_first, mdps.probabilities.reshape(by_outcome))
    pays = np.where(ended, 0.0, mdps.rewards.reshape(by_outcome))
    leads_to = np.where(ended, same_state, mdps.successors.reshape(by_outcome))

    # A row for each episode so far. At every step a row is replaced by one for each outcome.
    task, state = np.nonzero(mdps.start)
    probability = mdps.start[task, state]
    steps = np.zeros((4, mdps.horizon, len(task)))  # states, actions, rewards, mask
    for t in range(mdps.horizon):
        parent, outcome = np.nonzero(chance[task, state])
        task = task[parent]
        state = state[parent]
        now = task, state, outcome
        probability = probability[parent] * chance[now]
        steps = steps[..., parent]
        steps[:, t] = state, outcome // n_slots, pays[now], ~mdps.terminal[task, state]
        state = leads_to[now]

    states, actions, rewards, taken = _by_task(task, steps)
    last_states = _by_task(task, state)
    episodes = Episodes(
        states=states.astype(int),
        actions=actions.astype(int),
        rewards=rewards,
        mask=taken > 0,
        log_pi=None,
        last_states=last_states,
        truncated=np.zeros(last_states.shape, bool),
    )
    return episodes, _by_task(task, probability)


def _by_task(task, rows):
    """The rows of each task, filled up with 0: task (R,), sorted, rows (…, R) → (…, N, M)."""
    place = np.arange(len(task)) - np.searchsorted(task, task)  # among the rows of its task
    filled = np.zeros(rows.shape[:-1] + (task[-1] + 1, place.max() + 1), rows.dtype)
    filled[..., task, place] = rows
    return filled


def _number_of_episodes(mdps, enough):
    """The largest number that a task has, or the first one above `enough`.

    By backward induction over possible outcomes, in Python's integers, which do not overflow. The
    number never falls as the horizon grows.
    """
    count = np.ones(mdps.shape[:2], object)
    possible = mdps.probabilities > 0
    starts = mdps.start > 0
    most = starts.sum(-1).max()
    for _ in range(mdps.horizon):
        if most > enough:
            break
        following = (possible * count.ravel()[mdps.next_rows]).sum((-2, -1))
        count = np.where(mdps.terminal, 1, following)
        most = (starts * count).sum(-1).max()
    return int(most)


def enumerated_return(log_pi, episodes, dynamics, discount):
    """J = Σ_τ Pr(τ) Σ_t γᵗ r_t over enumerated Episodes, differentiable through log π: (N,)."""
    require_shapes(episodes.last_states.shape, dynamics=dynamics)
    log_probs = gather_log_probs(log_pi, episodes.states, episodes.actions)
    log_p = np.sum(np.where(episodes.mask, log_probs, 0.0), 0)
    returns = discounted_return(unmasked(episodes.rewards, episodes.mask), discount)
    return np.sum(dynamics * np.exp(log_p) * returns, -1)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
def enumerate_adaptations(mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000):
    """Every history of k = `steps` inner updates in one small MDP: (Adaptation, probability (R,)).

    Each update is made on K = `episodes` episodes. The R histories are the task axis of the
    Adaptation, which has no query. A data set is drawn with the parameters that those before it
    led to, so the probability depends on θ (F, A) through all of them. Raises ValueError on more
    than max_datasets histories, and on Gaussian reward noise.
    """
    validate(mdps=mdps, policy=policy, inner=inner)
    episodes, steps = validate(episodes=episodes, steps=steps)
    max_datasets = validate(max_datasets=max_datasets)
    require(len(mdps) == 1, "mdps", f"the data sets of one task are enumerated, not of {len(mdps)}")
    noise = "reward_noise is not 0: Gaussian rewards cannot be enumerated (Bernoulli ones can)"
    require(not mdps.reward_noise.any(), "mdps", noise)
    require(steps > 0, "steps", "0 is not at least 1")
    every, dynamics = enumerate_episodes(mdps)
    drawn = _draws(every, steps, episodes, max_datasets)
    probability = dynamics[0][drawn].prod((0, 1))
    # each history stands in the place of a task: R copies of θ, (R, F, A)
    thetas = [np.repeat(per_task(theta, 1), len(probability), 0)]
    seen = []
    data = []
    for j in range(steps):
        log_pi = policy.log_pi(thetas[j])
        # the episodes (T, 1, M) are indexed by (R, K): (T, R, K), each history in place of a task
        seen.append(replace(every.part(drawn[j].T, 0), log_pi=stop(log_pi)))
        probability = probability * np.exp(log_likelihood(log_pi, seen[j]))
        data.append(inner.prepare(policy, stop(thetas[j]), seen[j], mdps.discount))
        thetas.append(inner(policy, thetas[j], data[j]))
        where = f" after inner step {j + 1} of {inner!r:.50}"
        require_finite(thetas[-1], "adapted parameters", where)
    returns = [discounted_return(e.rewards, mdps.discount).mean(-1) for e in seen]
    return Adaptation(thetas, seen, data, np.array(returns), query=None), probability


def _draws(every, steps, episodes, max_datasets):
    """Which of M possible episodes k data sets of K are made of, in all R = M^(kK) ways: (k, K, R).

    What changes fastest is the last data set.
    """
    horizon, _, m = every.states.shape
    n_drawn = int(steps) * int(episodes)
    bits = n_drawn * (m - 1).bit_length()
    n_ways = m**n_drawn if bits < 400 else np.inf  # a number too long to work with
    number = f"{m}^{n_drawn}" + f" = {n_ways}" * (bits < 400)
    lower = "lower episodes, steps, or the MDP's horizon, states, actions or Z"
    too_many = f"{m} episodes make {number} data sets, above {max_datasets}; {lower}"
    require(n_ways <= max_datasets, "max_datasets", too_many)
    require_memory(STEP_BYTES, horizon, n_drawn, n_ways)
    return _sequences(m, n_drawn).reshape(steps, episodes, -1)


def _sequences(n_choices, length):
    """Every sequence of so many choices, one a column, as one counts: (length, n_choices^length).

    The columns are the digits, to the base n_choices, of 0, 1, 2, ….
    """
    worth = n_choices ** np.arange(length)[::-1, None]  # of a digit in each place
    return np.arange(n_choices**length) // worth % n_choices


def enumerate_bandit_trials(policy, pulls, dtype=float):
    """Every history of n = `pulls` pulls of k Bernoulli arms: (Trials, probability ((2k)ⁿ,)).

    The arms' means are from U[0, 1]. The probability is that of the rewards,
    Π_a s_a! f_a! / (s_a + f_a + 1)!, s and f counting successes and failures: all but the policy's
    Π π(a_t|…). dtype: of the inputs. Raises ValueError unless n ≥ 1 and (2k)ⁿ is at most a million.
    """
    arms = policy.n_actions
    pulls = validate(pulls=pulls)
    few = pulls < 20 and (2 * arms) ** pulls <= 1_000_000
    require(few, "pulls", f"{pulls} of {arms} arms: no history, or above a million")
    actions, rewards = np.divmod(_sequences(2 * arms, pulls), 2)
    inputs = np.zeros((pulls, policy.net.inputs, actions.shape[1]), dtype)
    previous = 0  # no action yet
    reward = 0
    for t in range(pulls):
        policy.observe(inputs[t], 0, previous, reward, ended=t > 0)
        previous = actions[t] + 1
        reward = rewards[t]

    factorial = np.cumprod(np.maximum(np.arange(pulls + 2.0), 1))
    probability = 1.0
    for a in range(arms):
        pulled = actions == a
        tries = pulled.sum(0)
        wins = (pulled * rewards).sum(0)
        of_arm = factorial[wins] * factorial[tries - wins] / factorial[tries + 1]
        probability = probability * of_arm
    zeros = np.zeros(actions.shape, int)
    trials = rl2.Trials(
        inputs=inputs,
        outputs=None,
        states=zeros,
        actions=actions,
        rewards=rewards.astype(float),
        episode=np.arange(pulls)[:, None] + zeros,
        time=zeros,
        mask=zeros == 0,
    )
    return trials, probability


def enumerated_trial_return(policy, theta, trials, probability):
    """J = Σ_τ Pr(τ) Σ_t r_t over all histories (γ = 1), differentiable in θ (P,): a number.

    It is the exact expected return of a recurrent policy.
    """
    is_taken = trials.actions[..., None] == np.arange(policy.n_actions)
    taken = is_taken & trials.mask[..., None]
    log_pi = rl2.log_probs(rl2.outputs(policy, theta, trials))
    log_p = np.sum(log_pi * taken, (0, 2))
    returns = unmasked(trials.rewards, trials.mask).sum(0)
    return np.sum(probability * np.exp(log_p) * returns)
