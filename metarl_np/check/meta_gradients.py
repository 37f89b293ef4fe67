"""Exact meta-gradients of small MDPs: (a) of J(θ + α∇J(θ)), with exact inner gradients and the exact Hessian: `adapted_return`; (b) of what
is really trained, E_D[J(U(θ, D))], D a finite sampled data set: `expected_adapted_return`, by enumeration of every D.
"""

from dataclasses import replace

import autograd.numpy as np
from autograd import grad, jacobian

from metarl_np.arguments import require_finite, require_memory, validate
from metarl_np.check.enumeration import enumerate_adaptations
from metarl_np.learner.reinforce import FirstOrder, Reinforce
from metarl_np.learner.surrogates import stop
from metarl_np.meta.maml import meta_gradient, per_task
from metarl_np.tasks import exact


@np.errstate(over="ignore", invalid="ignore")  # it raises instead
def adapted_return(mdps, policy, theta, *, step_size, steps=1):
    """(a) J(θ_k), θ_{j+1} = θ_j + α∇J(θ_j) with exact gradients: θ (F, A) or (N, F, A) → (N,), differentiable."""
    validate(mdps=mdps, policy=policy, step_size=step_size, steps=steps)
    theta = per_task(theta, len(mdps))
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
    )(per_task(theta, len(mdps)))


def hessians(mdps, policy, theta):
    """{"H": ∇²J, "H1", "H2", "H12"} with H = H₁ + H₂ + H₁₂ + H₁₂ᵀ, each (N, P, P), P = F·A. See `losses` for what they are.
    From ∇J = Σ W ∇log π(a|s), W = d π Q: H₂ is what ∇²log π contributes at fixed W, H₁ what the change of π in W does (W ∇log π, as ∇π =
    π ∇log π), H₁₂ what the change of Q does, and its transpose what d does."""

    def occupied_values(th):  # W(s, a) with π(a|s) and the occupancy held at θ: only Q_t changes
        log_pi = policy.log_pi(th)
        mass = exact.occupancy(mdps, stop(log_pi))[..., None] * np.exp(stop(log_pi))
        return sum(
            m * exact.action_values(mdps, v) for m, v in zip(mass, exact.values(mdps, log_pi)[1:])
        )

    validate(mdps=mdps, policy=policy)
    theta = per_task(theta, len(mdps))
    score = policy.weighted_score
    size = (len(mdps), theta[0].size, theta[0].size)
    require_memory(8, *size)  # for each
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
    mdps, policy, theta, inner, *, episodes, steps=1, with_score=False, max_datasets=1_000_000
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
            policy,
            path,
            inner,
            outer=outer,
            score_factor=outer(path.thetas[-1]) if with_score else None,
        ),
        0,
    )
