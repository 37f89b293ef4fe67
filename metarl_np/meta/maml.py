"""MAML for reinforcement learning: learn the θ from which k inner updates go furthest.

Finn, Abbeel & Levine (2017). An inner update θ_i = U(θ, D_i) turns θ into the own parameters of
task i, from data D_i that θ itself has sampled there, the *support*. New data D'_i, sampled with
θ_i, the *query*, say how good θ_i is. The outer update ascends the mean of J_i(θ_i) over the tasks
as a function of θ, through the inner updates. With `reinforce.FirstOrder` its gradient stops at
θ_i.

θ is (F, m), and (N, F, m) with a row for each task; F and m are `policy.shape`.
"""

from copy import deepcopy
from dataclasses import dataclass

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    NotFinite,
    Record,
    require,
    require_finite,
    require_floats,
    require_plain,
    unmasked,
    validate,
)
from metarl_np.learner.optim import adam
from metarl_np.learner.policies import LinearPolicy
from metarl_np.learner.reinforce import FOLDED, Reinforce, reinforce_table
from metarl_np.learner.returns import discounted_return, leave_one_out_baseline
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.learner.surrogates import gather, log_likelihood, reinforce_folded, stop
from metarl_np.tasks.mdp import for_each_task


@dataclass(frozen=True, eq=False)
class Adaptation(Record):
    """What k inner updates in N tasks went through, before the first update and after each."""

    thetas: list  # k + 1 arrays (N, F, m): θ_i after 0..k updates
    episodes: list  # k + 1 Episodes, sampled with the θ of the same place; the last is the query
    data: list  # k: what the inner update prepared from the first k Episodes, the support
    returns: np.ndarray  # (k + 1, N): mean discounted return of those Episodes
    query: np.ndarray  # (N, S, A): folded REINFORCE weights of the query; None if there is none


def adapt(rng, mdps, policy, theta, inner, *, steps, episodes):
    """k = `steps` inner updates θ_i ← U(θ_i, D_i) in all N tasks at once: Adaptation.

    Each is made on `episodes` = K new episodes in every task, and the query is K more. theta:
    (F, m), shared by the tasks, or (N, F, m). inner: Reinforce, PPO, TRPO, or another with their
    two methods. Finn et al. (2017), Algorithm 3, lines 5–8. Raises ValueError on bad arguments,
    NotFinite where an update diverges.
    """
    validate(mdps=mdps, policy=policy, inner=inner)
    steps, episodes = validate(steps=steps, episodes=episodes)
    require_plain(theta=theta)

    def sample(j, adapted):
        shared = theta if j == 0 else adapted  # tables for shared parameters cost less
        return rollout(rng, mdps, policy.log_pi(shared), episodes)

    return _adapt(policy, per_task(theta, len(mdps)), inner, steps, mdps.discount, sample)


def replay(policy, theta, inner, recorded, discount, *, names=None):
    """The same on recorded Episodes, a list of k + 1, the last being the query: Adaptation.

    theta: (F, m) or (N, F, m). discount: γ. names: what to call each of the Episodes in an error.
    Raises ValueError if they do not fit the policy or each other, or if their log-probabilities
    are not those of the parameters that they should have been sampled with.
    """
    validate(policy=policy, inner=inner)
    discount = validate(discount=discount)
    good = isinstance(recorded, (list, tuple)) and all(isinstance(e, Episodes) for e in recorded)
    require(good and len(recorded), "recorded", "expected a list of Episodes, the query last")
    names = names or [f"recorded[{j}]" for j in range(len(recorded))]
    n_tasks = recorded[0].states.shape[1]
    for name, e in zip(names, recorded):
        tasks = e.states.shape[1]
        require(tasks == n_tasks, name, f"{tasks} tasks, where there should be {n_tasks}")
        _require_inside(name, "states", e.states, policy.n_states)
        _require_inside(name, "actions", e.actions, policy.n_actions)
    theta = per_task(theta, n_tasks)
    path = _adapt(policy, theta, inner, len(recorded) - 1, discount, lambda j, _: recorded[j])
    for name, e, adapted in zip(names, recorded, path.thetas):
        if e.log_probs is not None:
            log_probs = gather(policy.log_pi(adapted), e.states, e.actions)
            gap = abs(stop(log_probs) - e.log_probs)[e.mask].max(initial=0.0)
            why = (
                "log-probabilities do not belong to the parameters of its inner step: off by up "
                f"to {gap:.2g}. Usual causes: other rewards, another step size, baseline or γᵗ in "
                "the inner step before it, or axes in another order"
            )
            require(gap < 1e-4, name, why)
    return path


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
def _adapt(policy, theta, inner, steps, discount, data_set):
    """Adaptation from θ (N, F, m); data_set(j, θ_j) → the Episodes before inner update j."""
    thetas = [theta]
    episodes = []
    data = []
    for j in range(steps + 1):
        episodes.append(data_set(j, thetas[j]))
        if j < steps:
            data.append(inner.prepare(policy, thetas[j], episodes[j], discount))
            thetas.append(inner(policy, thetas[j], data[j]))
            require_finite(thetas[-1], "adapted parameters", _after_step(inner, j + 1))
    returns = [_mean_return(e, discount) for e in episodes]
    sizes = (policy.n_states, policy.n_actions)
    baseline = getattr(inner, "baseline", leave_one_out_baseline)  # an inner update may have none
    query = reinforce_table(episodes[-1], discount, *sizes, baseline=baseline)
    return Adaptation(thetas, episodes, data, np.array(returns), query)


def _mean_return(episodes, discount):
    """The mean over Episodes of Σ_t γᵗ r_t: (N,)."""
    rewards = unmasked(episodes.rewards, episodes.mask)
    return discounted_return(rewards, discount).mean(-1)


def _after_step(inner, j):
    """Where parameters were not finite, and what may be the cause."""
    if hasattr(inner, "step_size"):
        return f" after inner step {j}; is the inner step_size {inner.step_size} too large?"
    return f" after inner step {j} of {inner!r:.50}"


def _require_inside(name, what, x, size):
    require(x.min() >= 0 and x.max() < size, name, f"{what} outside 0..{size - 1}")


def per_task(theta, n_tasks):
    """A copy of θ for each of N tasks: (F, m) or (N, F, m) → (N, F, m).

    With it one backward pass over the sum of the tasks gives each task its own gradient.
    """
    n_tasks = validate(n_tasks=n_tasks)
    theta = require_floats("theta", theta)
    fits = np.ndim(theta) > 1 and theta.shape[:-2] in ((), (n_tasks,))
    require(fits, "theta", f"shape {theta.shape}, where there are {n_tasks} tasks")
    return for_each_task(theta, n_tasks)


def meta_objective(policy, theta, path, inner, outer, score_factor=None):
    """L_i(U(…U(θ_i, D_i1)…, D_ik)) per task, at the fixed data of an Adaptation: (N,).

    theta: (N, F, m). outer: adapted θ (N, F, m) → (N,), the query's surrogate or the exact J.
    score_factor: J_i − c_i (N,) adds the term (J_i − c_i) Σ_j log p(D_ij; θ_ij); None leaves it
    out. Its gradient, the score, says that with another θ other inner data would have been sampled:
    D_i1 by θ itself, and each later D_ij by the θ_ij that was adapted up to there. Finn et al.
    (2017), eq. 1 and 4; the score is E-MAML's (Stadie et al. 2018; Al-Shedivat et al. 2018).
    """
    theta = require_floats("theta", theta)
    if score_factor is not None:
        score_factor = require_floats("score_factor", score_factor, (len(theta),), ())
    log_p = 0.0
    for data, episodes in zip(path.data, path.episodes):
        if score_factor is not None:
            log_p = log_p + log_likelihood(policy.log_pi(theta), episodes)
        theta = inner(policy, theta, data)
    return outer(theta) if score_factor is None else outer(theta) + score_factor * log_p


def meta_gradient(policy, path, inner, *, outer=None, score_factor=None):
    """The gradient of `meta_objective` at path.thetas[0], per task: (N, F, m).

    MAML's is its mean over tasks. By default, with the naive estimator and no score, this is what
    usual MAML code computes. It leaves out the score, so it is biased for ∇_θ E_D[J(U(θ, D))], the
    gradient of what is trained; with `score_factor` it is unbiased. outer: the query's surrogate by
    default. score_factor: see `meta_objective`.
    """
    if outer is None and score_factor is None and closed_form(policy, inner):
        v = policy.weighted_score(path.thetas[-1], path.query)
        for theta, data in zip(path.thetas[-2::-1], path.data[::-1]):
            v = inner.pullback(policy, theta, data, v)
        return v

    def query_surrogate(theta):
        return reinforce_folded(policy.log_pi(theta), path.query)

    def total(theta):
        objective = query_surrogate if outer is None else outer
        return np.sum(meta_objective(policy, theta, path, inner, objective, score_factor))

    return grad(total)(path.thetas[0])


def closed_form(policy, inner):
    """Can `meta_gradient` do without autograd? Where REINFORCE folds and log π is linear in θ."""
    folds = type(inner) is Reinforce and inner.estimator in FOLDED
    return folds and isinstance(policy, LinearPolicy)


def centred_returns(returns):
    """J_i − c_i, c_i being the mean over the *other* tasks, or 0 if there are none: (N,) → (N,).

    So c_i does not depend on the data of task i.
    """
    returns = require_floats("returns", returns)
    others = len(returns) - 1
    return returns - (returns.sum() - returns) / others if others else returns


@dataclass(frozen=True, eq=False)
class Iteration(Record):
    """One meta-iteration, as `train` yields it."""

    iteration: int
    theta: np.ndarray  # (F, m), after the update
    returns: np.ndarray  # (k + 1,): the sampled return after 0..k inner updates, mean over tasks
    gradient_norm: float
    state: object  # the optimiser's, after the update


def train(
    rng,
    sample_tasks,
    policy,
    theta,
    inner,
    *,
    iterations,
    steps,
    episodes,
    step_size,
    optimiser=adam,
    with_score=False,
    state=None,
    first=0,
):
    """Meta-train θ (F, m) by `iterations` outer steps of size β: a generator of Iteration.

    Finn et al. (2017), Algorithm 3. sample_tasks: rng → MDP, the tasks of a batch. inner, steps,
    episodes: see `adapt`. step_size: β. with_score: add the score of the inner data. state, first:
    the optimiser's state and the iteration to go on from (`checkpoint.resumable`). A NaN or an
    infinity that comes up raises NotFinite, a FloatingPointError that names the iteration.
    """
    validate(rng=rng, sample_tasks=sample_tasks, policy=policy, inner=inner, optimiser=optimiser)
    steps, episodes, step_size = validate(steps=steps, episodes=episodes, step_size=step_size)
    iterations, first = validate(iterations=iterations, first=first)
    theta = require_floats("theta", theta)
    shared = f"expected (F, m), shared by all tasks, got shape {theta.shape}"
    require(theta.ndim == 2, "theta", shared)
    require(first <= iterations, "first", f"{first} is outside 0..{iterations}")
    for iteration in range(first, iterations):
        mdps = sample_tasks(rng)
        try:
            with np.errstate(all="ignore"):  # what is not finite raises
                path = adapt(rng, mdps, policy, theta, inner, steps=steps, episodes=episodes)
                require_finite(path.returns, "returns")
                score_factor = centred_returns(path.returns[-1]) if with_score else None
                g = meta_gradient(policy, path, inner, score_factor=score_factor).mean(0)
                require_finite(g, "gradient")
                # copies: an optimiser that works in place must not change earlier records
                before = deepcopy((theta, state))
                theta, state = optimiser(before[0], g, before[1], step_size=step_size)
                require_finite(theta, "parameters", f" after a step of size {step_size}")
        except NotFinite as error:
            raise NotFinite(f"iteration {iteration}: {error}") from error
        yield Iteration(iteration, theta, path.returns.mean(1), np.linalg.norm(g), state)


def train_multi_task(rng, sample_tasks, policy, theta, **settings):
    """Multi-task learning, θ ← θ + β (1/N) Σ_i ∇J_i(θ): a generator of Iteration.

    What MAML is to be measured against: the same tasks, and no inner step. settings: those of
    `train`; for as much data as MAML with k inner steps sees, give (k + 1)·K `episodes`. With one
    task it is plain REINFORCE.
    """
    only_its_baseline = Reinforce(0.0)  # with no steps it never updates
    return train(rng, sample_tasks, policy, theta, only_its_baseline, steps=0, **settings)
