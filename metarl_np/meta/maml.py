"""MAML for reinforcement learning (Finn, Abbeel & Levine 2017): learn the θ from which k inner updates go furthest. With inner PPO or TRPO
it is what many introductions call RL², a name of the recurrent form in Duan et al. (2016): an inner problem turns θ into a task's own θ_i*
by a standard algorithm, an outer one ascends Σ_i J_i(θ_i*(θ)), through the inner one or, with updates.FirstOrder, only up to θ_i*.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    NotFinite,
    require,
    require_array,
    require_finite,
    require_shapes,
    validate,
)
from metarl_np.learner.optim import adam
from metarl_np.learner.policies import LinearPolicy
from metarl_np.learner.reinforce import FOLDED, Reinforce, reinforce_table
from metarl_np.learner.returns import discounted_return, leave_one_out_baseline
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.learner.surrogates import gather, log_likelihood, reinforce_folded
from metarl_np.tasks.mdp import for_each_task


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


def adapt(rng, mdps, policy, theta, inner, *, steps, episodes):
    """k = `steps` inner updates θ_i ← U(θ_i, D_i) in all N tasks at once: Adaptation.

    Each is made on `episodes` = K new episodes in every task, and the query is K more. theta:
    (F, A), shared by the tasks, or (N, F, A). inner: Reinforce, PPO, TRPO, or another with their
    two methods. Finn et al. (2017), Algorithm 3, lines 5–8. Raises ValueError on bad arguments,
    NotFinite where an update diverges.
    """
    validate(mdps=mdps, policy=policy, inner=inner, steps=steps, episodes=episodes)

    def sample(j, adapted):
        shared = theta if j == 0 else adapted  # tables for shared parameters cost less
        return rollout(rng, mdps, policy.log_pi(shared), episodes)

    return _adapt(policy, per_task(theta, len(mdps)), inner, steps, mdps.discount, sample)


def replay(policy, theta, inner, recorded, discount, *, names=None):
    """The same on recorded Episodes, a list of k + 1, the last being the query: Adaptation.

    theta: (F, A) or (N, F, A). discount: γ. names: what to call each of the Episodes in an error.
    Raises ValueError if they do not fit the policy or each other, or if their log-probabilities
    are not those of the parameters that they should have been sampled with.
    """
    validate(policy=policy, inner=inner, discount=discount)
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
            gap = abs(log_probs - e.log_probs)[e.mask].max(initial=0.0)
            require(
                gap < 1e-4,
                name,
                "log-probabilities do not belong to the parameters of its inner step: "
                f"off by up to {gap:.2g}",
            )
    return path


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
def _adapt(policy, theta, inner, steps, discount, data_set):
    """Adaptation from θ (N, F, A); data_set(j, θ_j) → the Episodes before inner update j."""
    thetas = [theta]
    path = []
    data = []
    for j in range(steps + 1):
        path.append(data_set(j, thetas[j]))
        if j < steps:
            data.append(inner.prepare(policy, thetas[j], path[j], discount))
            thetas.append(inner(policy, thetas[j], data[j]))
            too = (
                f"; is the inner step_size {inner.step_size} too large?"
                if hasattr(inner, "step_size")
                else f" of {inner!r:.50}"
            )
            require_finite(thetas[-1], "adapted parameters", f" after inner step {j + 1}{too}")
    returns = np.array([discounted_return(e.rewards * e.mask, discount).mean(-1) for e in path])
    baseline = getattr(inner, "baseline", leave_one_out_baseline)
    query = reinforce_table(
        path[-1], discount, policy.n_states, policy.n_actions, baseline=baseline
    )
    return Adaptation(thetas, path, data, returns, query)


def _require_inside(name, what, x, size):
    require(x.min() >= 0 and x.max() < size, name, f"{what} outside 0..{size - 1}")


def per_task(theta, n_tasks):
    """A copy of θ for each of N tasks: (F, A) or (N, F, A) → (N, F, A).

    With it one backward pass over the sum of the tasks gives each task its own gradient.
    """
    theta = require_array("theta", theta)
    require(
        np.ndim(theta) > 1 and theta.shape[:-2] in ((), (n_tasks,)),
        "theta",
        f"shape {theta.shape}, where there are {n_tasks} tasks",
    )
    return for_each_task(theta, n_tasks)


def meta_objective(policy, theta, path, inner, outer, score_factor=None):
    """L_i(U(…U(θ_i, D_i1)…, D_ik)) per task, at the fixed data of `path`: θ (N, F, A) → (N,). Finn et al. (2017), eq. 1 and 4. outer:
    adapted θ (N, F, A) → (N,), the query's surrogate or the exact J. score_factor: None, or J_i − c_i (N,): adds (J_i − c_i) Σ_j log p(D_ij),
    the change of the inner data's distribution, through every θ that drew it (E-MAML: Stadie et al. 2018; Al-Shedivat et al. 2018).
    """
    require_shapes((len(theta),), (), score_factor=0.0 if score_factor is None else score_factor)
    log_p = 0.0
    for data, episodes in zip(path.data, path.episodes):
        log_p = (
            0.0 if score_factor is None else log_p + log_likelihood(policy.log_pi(theta), episodes)
        )
        theta = inner(policy, theta, data)
    return outer(theta) + (0.0 if score_factor is None else score_factor * log_p)


def meta_gradient(policy, path, inner, *, outer=None, score_factor=None):
    """The gradient of `meta_objective` at path.thetas[0] in one backward pass, per task: (N, F, A). MAML's is its mean over tasks.
    What it estimates depends on inner.estimator and score: `naive` with score is unbiased for ∇E_D[J(U(θ, D))].
    """
    if (
        outer is None
        and score_factor is None
        and closed_form(policy, inner)
        and np.isfinite(path.query).all()
    ):
        v = policy.weighted_score(path.thetas[-1], path.query)
        for theta, data in zip(path.thetas[-2::-1], path.data[::-1]):
            v = inner.pullback(policy, theta, data, v)
        return v
    outer = outer or (lambda theta: reinforce_folded(policy.log_pi(theta), path.query))
    return grad(
        lambda theta: np.sum(meta_objective(policy, theta, path, inner, outer, score_factor))
    )(path.thetas[0])


def closed_form(policy, inner):
    """Whether `meta_gradient` can do without autograd, being the folded query's: an inner step that folds, of a policy linear in θ."""
    return (
        isinstance(policy, LinearPolicy) and type(inner) is Reinforce and inner.estimator in FOLDED
    )


def centred_returns(returns):
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
    with_score=False,
    state=None,
    first=0,
):
    """Meta-train θ by `iterations` outer steps of size β = `step_size`: a generator of Iteration. Finn et al. (2017), Algorithm 3.
    sample_tasks(rng) → MDP draws the batch of tasks. with_score adds the score term. state, first: the optimiser's state and the iteration to go
    on from (`checkpoint.resumable`). A NaN or infinity that comes up raises FloatingPointError, naming the iteration and the quantity.
    """
    validate(
        rng=rng,
        sample_tasks=sample_tasks,
        policy=policy,
        inner=inner,
        iterations=iterations,
        steps=steps,
        episodes=episodes,
        step_size=step_size,
        optimiser=optimiser,
        first=first,
    )
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
                    policy,
                    path,
                    inner,
                    score_factor=centred_returns(path.returns[-1]) if with_score else None,
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
