"""MAML for reinforcement learning (Finn, Abbeel & Levine 2017): learn the θ from which k inner updates go furthest. With inner PPO or TRPO
it is what many introductions call RL², a name of the recurrent form in Duan et al. (2016): an inner problem turns θ into a task's own θ_i*
by a standard algorithm, an outer one ascends Σ_i J_i(θ_i*(θ)), through the inner one or, with updates.FirstOrder, only up to θ_i*.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    check,
    NotFinite,
    require,
    require_array,
    require_finite,
    require_shapes,
)
from metarl_np.losses import FOLDED, gather, log_likelihood, reinforce_folded
from metarl_np.optim import adam
from metarl_np.policies import LinearPolicy
from metarl_np.returns import Episodes, discounted_return, leave_one_out_baseline
from metarl_np.rollouts import rollout
from metarl_np.updates import Reinforce, reinforce_table


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What k inner updates in N tasks went through: parameters and episodes before the first update and after each."""

    thetas: list  # k+1 arrays (N, F, A): θ_i after 0..k updates
    episodes: list  # k+1 Episodes, each sampled with the parameters of the same place; the last are the query
    data: list  # k: what the inner update prepared from the first k, the support
    returns: np.ndarray  # (k+1, N): mean discounted return of those episodes
    query: (
        np.ndarray
    )  # (N, S, A): folded REINFORCE weights of the query episodes; None where the query is exact


@np.errstate(over="ignore", invalid="ignore")  # it raises instead
def adapt(rng, mdps, policy, theta, inner, *, steps, episodes):
    """k = `steps` inner updates θ_i ← U(θ_i, D) in all tasks at once, each on `episodes` = K new episodes per task (or k + 1 recorded
    Episodes, a list), from θ (F, A) or (N, F, A). Finn et al. (2017), Algorithm 3, lines 5–8. ValueError on k < 0, and as `rollout`.
    """
    recorded = (
        isinstance(episodes, list)
        and all(isinstance(e, Episodes) for e in episodes)
        and len(episodes) - 1 == steps
    )
    check(mdps=mdps, policy=policy, inner=inner, steps=steps, episodes=1 if recorded else episodes)
    thetas = [per_task(mdps, theta)]
    path = []
    data = []
    for j in range(steps + 1):
        log_pi = policy.log_pi(thetas[j] if j else theta)  # tables for shared parameters cost less
        path.append(episodes[j] if recorded else rollout(rng, mdps, log_pi, episodes))
        if j < steps:
            data.append(inner.prepare(mdps, policy, thetas[j], path[j]))
            thetas.append(inner(policy, thetas[j], data[j]))
            too = (
                f"; is the inner step_size {inner.step_size} too large?"
                if hasattr(inner, "step_size")
                else f" of {inner!r:.50}"
            )
            require_finite(thetas[-1], "adapted parameters", f" after inner step {j + 1}{too}")
    returns = np.array(
        [discounted_return(e.rewards * e.mask, mdps.discount).mean(-1) for e in path]
    )
    query = reinforce_table(
        mdps, path[-1], baseline=getattr(inner, "baseline", leave_one_out_baseline)
    )
    return Adaptation(thetas, path, data, returns, query)


def replay(mdps, policy, theta, inner, episodes, names=None):
    """`adapt` on k + 1 recorded Episodes, the last being the query: θ (F, A) or (N, F, A) → Adaptation. ValueError, with the name of the
    Episodes, if they do not fit the tasks or their log-probabilities are not those of the parameters that sampled them.
    """
    check(mdps=mdps, policy=policy, inner=inner)
    good = (
        isinstance(episodes, (list, tuple))
        and len(episodes)
        and all(isinstance(e, Episodes) for e in episodes)
    )
    require(good, "episodes", "expected a list of Episodes, the last being the query")
    n, s, a = mdps.shape
    names = names or [f"episodes[{j}]" for j in range(len(episodes))]
    for name, e in zip(names, episodes):
        require(
            e.states.shape[1] == n, name, f"{e.states.shape[1]} tasks, where there should be {n}"
        )
        for what, x, size in (("states", e.states, s), ("actions", e.actions, a)):
            require(x.min() >= 0 and x.max() < size, name, f"{what} outside 0..{size - 1}")
    path = adapt(None, mdps, policy, theta, inner, steps=len(episodes) - 1, episodes=list(episodes))
    for name, e, adapted in zip(names, episodes, path.thetas):
        if e.log_probs is not None:
            gap = abs(gather(policy.log_pi(adapted), e.states, e.actions) - e.log_probs)[
                e.mask
            ].max(initial=0.0)
            require(
                gap < 1e-4,
                name,
                f"log-probabilities do not belong to the parameters of its inner step: off by up to {gap:.2g}",
            )
    return path


def per_task(mdps, theta):
    """A copy of θ for each task, so that one backward pass over the sum of the tasks gives each its own gradient: (N, F, A)."""
    check(mdps=mdps)
    theta = require_array("theta", theta)
    n = len(mdps)
    require(
        np.ndim(theta) > 1 and theta.shape[:-2] in ((), (n,)),
        "theta",
        f"shape {theta.shape}, where there are {n} tasks",
    )
    return np.zeros((n,) + theta.shape[-2:]) + theta


def meta_objective(policy, theta, path, inner, outer, score=None):
    """L_i(U(…U(θ_i, D_i1)…, D_ik)) per task, at the fixed data of `path`: θ (N, F, A) → (N,). Finn et al. (2017), eq. 1 and 4. outer:
    adapted θ (N, F, A) → (N,), the query's surrogate or the exact J. score: None, or J_i − c_i (N,): adds (J_i − c_i) Σ_j log p(D_ij),
    the change of the inner data's distribution, through every θ that drew it (E-MAML: Stadie et al. 2018; Al-Shedivat et al. 2018).
    """
    require_shapes((len(theta),), (), score=0.0 if score is None else score)
    log_p = 0.0
    for data, episodes in zip(path.data, path.episodes):
        log_p = 0.0 if score is None else log_p + log_likelihood(policy.log_pi(theta), episodes)
        theta = inner(policy, theta, data)
    return outer(theta) + (0.0 if score is None else score * log_p)


def meta_gradient(policy, path, inner, *, outer=None, score=None):
    """The gradient of `meta_objective` at path.thetas[0] in one backward pass, per task: (N, F, A). MAML's is its mean over tasks.
    What it estimates depends on inner.estimator and score: `naive` with score is unbiased for ∇E_D[J(U(θ, D))].
    """
    if (
        outer is None
        and score is None
        and closed_form(policy, inner)
        and np.isfinite(path.query).all()
    ):
        v = policy.weighted_score(path.thetas[-1], path.query)
        for theta, data in zip(path.thetas[-2::-1], path.data[::-1]):
            v = inner.pullback(policy, theta, data, v)
        return v
    outer = outer or (lambda theta: reinforce_folded(policy.log_pi(theta), path.query))
    return grad(lambda theta: np.sum(meta_objective(policy, theta, path, inner, outer, score)))(
        path.thetas[0]
    )


def closed_form(policy, inner):
    """Whether `meta_gradient` can do without autograd, being the folded query's: an inner step that folds, of a policy linear in θ."""
    return (
        isinstance(policy, LinearPolicy) and type(inner) is Reinforce and inner.estimator in FOLDED
    )


def score_factor(returns):
    """J_i − c_i with c_i the mean over the *other* tasks, so that it does not depend on task i's data (0 if N = 1): (N,) → (N,)."""
    return returns - ((returns.sum() - returns) / (len(returns) - 1) if len(returns) > 1 else 0.0)


@dataclass(frozen=True, eq=False)
class Iteration:
    """One meta-iteration, as `train` yields it."""

    iteration: int
    theta: np.ndarray  # the initial parameters after the update
    returns: np.ndarray  # (k+1,) mean over tasks of the sampled return after 0..k inner updates
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
    score=False,
    state=None,
    first=0,
):
    """Meta-train θ by `iterations` outer steps of size β = `step_size`: a generator of Iteration. Finn et al. (2017), Algorithm 3.
    sample_tasks(rng) → MDP draws the batch of tasks. score adds the score term. state, first: the optimiser's state and the iteration to go
    on from (`checkpoint.resumable`). A NaN or infinity that comes up raises FloatingPointError, naming the iteration and the quantity.
    """
    check(**locals())
    require(
        require_array("theta", theta).ndim == 2,
        "theta",
        f"expected (F, A), shared by all tasks, got shape {np.shape(theta)}",
    )
    require(first <= iterations, "first", f"{first} is outside 0..{iterations}")
    for iteration in range(first, iterations):
        mdps = sample_tasks(rng)
        try:
            with np.errstate(all="ignore"):  # what is not finite raises
                path = adapt(rng, mdps, policy, theta, inner, steps=steps, episodes=episodes)
                require_finite(path.returns, "returns")
                g = meta_gradient(
                    policy, path, inner, score=score_factor(path.returns[-1]) if score else None
                ).mean(0)
                require_finite(g, "gradient")
                theta, state = optimiser(theta, g, state, step_size=step_size)
                require_finite(theta, "parameters", f" after a step of size {step_size}")
        except NotFinite as error:
            raise NotFinite(f"iteration {iteration}: {error}") from error
        yield Iteration(iteration, theta, path.returns.mean(1), np.linalg.norm(g), state)


def train_multi_task(rng, sample_tasks, policy, theta, **settings):
    """Multi-task learning: one policy for all tasks, θ ← θ + β (1/N) Σ_i ∇J_i(θ), a generator of Iteration; settings as `train`'s. What
    MAML is to be measured against: the same tasks and data, no inner step. With one task it is plain REINFORCE.
    """
    return train(rng, sample_tasks, policy, theta, Reinforce(0.0), steps=0, **settings)
