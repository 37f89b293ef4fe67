"""Exact meta-gradients of small MDPs: (a) of J(θ + α∇J(θ)), with exact inner gradients and the exact Hessian: `adapted_return`; (b) of what
is really trained, E_D[J(U(θ, D))], D a finite sampled data set: `expected_adapted_return`, by enumeration of every D.
"""

from dataclasses import replace
from itertools import product

import autograd.numpy as np
from autograd import grad, jacobian

from metarl_np import exact
from metarl_np.arguments import check, require, require_finite, require_memory
from metarl_np.losses import log_likelihood, stop
from metarl_np.maml import Adaptation, meta_gradient, per_task
from metarl_np.returns import discounted_return
from metarl_np.updates import FirstOrder, Reinforce


@np.errstate(over="ignore", invalid="ignore")  # it raises instead
def adapted_return(mdps, policy, theta, *, step_size, steps=1):
    """(a) J(θ_k), θ_{j+1} = θ_j + α∇J(θ_j) with exact gradients: θ (F, A) or (N, F, A) → (N,), differentiable."""
    check(**locals())
    theta = per_task(mdps, theta)
    for j in range(steps):
        theta = theta + step_size * policy.weighted_score(
            theta, exact.policy_gradient_table(mdps, policy.log_pi(theta))
        )
        require_finite(
            theta,
            "adapted parameters",
            f" after inner step {j + 1}; is the step_size {step_size} too large?",
        )
    return exact.expected_return(mdps, policy.log_pi(theta))


def adapted_return_gradient(mdps, policy, theta, *, step_size, steps=1):
    """∇ of (a), = (I + αH)ᵀ∇J(θ') for one step, per task: (N, F, A)."""
    return grad(
        lambda th: np.sum(adapted_return(mdps, policy, th, step_size=step_size, steps=steps))
    )(per_task(mdps, theta))


def hessians(mdps, policy, theta, *, max_bytes=None):
    """{"H": ∇²J, "H1", "H2", "H12"} with H = H₁ + H₂ + H₁₂ + H₁₂ᵀ, each (N, P, P), P = F·A. See `losses` for what they are.
    From ∇J = Σ W ∇log π(a|s), W = d π Q: H₂ is what ∇²log π contributes at fixed W, H₁ what the change of π in W does (W ∇log π, as ∇π =
    π ∇log π), H₁₂ what the change of Q does, and its transpose what d does."""

    def occupied_values(th):  # W(s, a) with π(a|s) and the occupancy held at θ: only Q_t changes
        log_pi = policy.log_pi(th)
        mass = exact.occupancy(mdps, stop(log_pi))[..., None] * np.exp(stop(log_pi))
        return sum(
            m * exact.action_values(mdps, v) for m, v in zip(mass, exact.values(mdps, log_pi)[1:])
        )

    check(mdps=mdps, policy=policy)
    theta = per_task(mdps, theta)
    score = policy.weighted_score
    size = (len(mdps), theta[0].size, theta[0].size)
    require_memory(8, *size, max_bytes=max_bytes)  # for each
    w = exact.policy_gradient_table(mdps, policy.log_pi(theta))
    parts = dict(
        H=lambda t: score(t, exact.policy_gradient_table(mdps, policy.log_pi(t))),
        H1=lambda t: score(theta, w * policy.log_pi(t)),
        H2=lambda t: score(t, w),
        H12=lambda t: score(theta, occupied_values(t)),
    )
    slopes = {
        name: jacobian(lambda th: np.sum(part(th), 0))(theta) for name, part in parts.items()
    }  # (F, A, N, F, A)
    return {name: np.moveaxis(slope, 2, 0).reshape(size) for name, slope in slopes.items()}


@np.errstate(over="ignore", invalid="ignore")
def enumerate_adaptations(mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000):
    """Every history of k = `steps` inner updates, each on K = `episodes` episodes, in one small MDP: (Adaptation, probability (R,)).
    The R histories are the task axis of the Adaptation, the query is empty. Each D is drawn with parameters that those before it led to,
    so the probability depends on θ (F, A) through all. Raises ValueError on more D than max_datasets, and on Gaussian reward noise.
    """
    check(**locals())
    require(len(mdps) == 1, "mdps", f"the data sets of one task are enumerated, not of {len(mdps)}")
    require(
        not mdps.reward_noise.any(),
        "mdps",
        "reward_noise is not 0: Gaussian rewards cannot be enumerated (Bernoulli ones can)",
    )
    require(steps > 0, "steps", "0 is not at least 1")
    every, dynamics = exact.enumerate_episodes(mdps)
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
    thetas = [per_task(mdps, theta)]
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
        data = [inner.prepare(mdps, policy, stop(th), e) for th, e in zip(thetas, seen)]
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


def expected_adapted_return(
    mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000
):
    """(b) E_D[J(U(θ, D))] for one small MDP, every D enumerated: θ (F, A) → scalar, differentiable. Its gradient contains the score of the
    inner data, since the probabilities depend on θ, whatever inner.estimator is. Arguments and errors as `enumerate_adaptations`.
    """
    inner = inner.inner if isinstance(inner, FirstOrder) else inner
    if isinstance(
        inner, Reinforce
    ):  # every estimator leads to the same θ', but only naive's derivative is that of U at fixed D
        inner = replace(inner, estimator="naive")
    path, probability = enumerate_adaptations(
        mdps, policy, theta, inner, episodes=episodes, steps=steps, max_datasets=max_datasets
    )
    return np.sum(
        probability
        * exact.expected_return(
            mdps[np.zeros(len(probability), int)], policy.log_pi(path.thetas[-1])
        )
    )


expected_adapted_return_gradient = grad(expected_adapted_return, 2)


def expected_meta_gradient(
    mdps, policy, theta, inner, *, episodes, steps=1, score=False, max_datasets=1_000_000
):
    """E_D of `maml.meta_gradient`, with the score or without, its query exact: (F, A). Arguments and errors as `enumerate_adaptations`."""

    def outer(adapted):
        return exact.expected_return(mdps[np.zeros(len(adapted), int)], policy.log_pi(adapted))

    path, p = enumerate_adaptations(
        mdps, policy, theta, inner, episodes=episodes, steps=steps, max_datasets=max_datasets
    )
    return np.sum(
        p[:, None, None]
        * meta_gradient(
            policy, path, inner, outer=outer, score=outer(path.thetas[-1]) if score else None
        ),
        0,
    )
