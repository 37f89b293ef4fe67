"""Exact meta-gradients of small MDPs, (a) and (b), and the parts of the Hessian.

(a) is that of J(θ + α∇J(θ)), with exact inner gradients: `adapted_return`. (b) is that of what is
really trained, E_D[J(U(θ, D))], D being a finite sampled data set: `expected_adapted_return`, by
enumeration of every D. Rothfuss et al. (2019) tell the two apart.
"""

from dataclasses import replace

import autograd.numpy as np
from autograd import grad, jacobian

from metarl_np.arguments import require_array, require_finite, require_memory, validate
from metarl_np.check.enumeration import enumerate_adaptations
from metarl_np.learner.reinforce import FirstOrder, Reinforce
from metarl_np.meta.maml import meta_gradient, per_task
from metarl_np.tasks import exact


def _slope(mdps, policy, theta):
    """∇J(θ), exact: θ (N, F, A) → (N, F, A)."""
    return policy.weighted_score(theta, exact.policy_gradient_table(mdps, policy.log_pi(theta)))


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
def adapted_return(mdps, policy, theta, *, step_size, steps=1):
    """(a) J(θ_k), θ_{j+1} = θ_j + α∇J(θ_j): θ (F, A) or (N, F, A) → (N,), differentiable."""
    validate(mdps=mdps, policy=policy)
    step_size, steps = validate(step_size=step_size, steps=steps)
    theta = per_task(theta, len(mdps))
    for j in range(steps):
        theta = theta + step_size * _slope(mdps, policy, theta)
        why = f" after inner step {j + 1}; is the step_size {step_size} too large?"
        require_finite(theta, "adapted parameters", why)
    return exact.expected_return(mdps, policy.log_pi(theta))


def adapted_return_gradient(mdps, policy, theta, *, step_size, steps=1):
    """∇ of (a), = (I + αH)ᵀ∇J(θ') for one step, per task: (N, F, A)."""
    validate(mdps=mdps)

    def total(th):
        return np.sum(adapted_return(mdps, policy, th, step_size=step_size, steps=steps))

    return grad(total)(per_task(theta, len(mdps)))


def hessians(mdps, policy, theta):
    """{"H": ∇²J, "H1", "H2", "H12"} with H = H₁ + H₂ + H₁₂ + H₁₂ᵀ, each (N, P, P), P = F·A.

    See `surrogates` for what they are. From ∇J = Σ W ∇log π(a|s), W = d π Q, d(s) at time t being
    γᵗ Pr(s_t = s): H₂ is what ∇²log π contributes at fixed W; H₁ is what the change of π in W does,
    W ∇log π, as ∇π = π ∇log π; H₁₂ is what the change of Q does; and its transpose is what the
    change of d does. theta: (F, A) or (N, F, A).
    """
    validate(mdps=mdps, policy=policy)
    theta = per_task(theta, len(mdps))
    size = (len(mdps), theta[0].size, theta[0].size)
    require_memory(8, *size)  # for each of the four
    log_pi = policy.log_pi(theta)
    w = exact.policy_gradient_table(mdps, log_pi)
    d_pi = exact.occupancy(mdps, log_pi)[..., None] * np.exp(log_pi)

    def all_of_it(th):
        return _slope(mdps, policy, th)

    def pi_changes(th):
        return policy.weighted_score(theta, w * policy.log_pi(th))

    def score_changes(th):
        return policy.weighted_score(th, w)

    def q_changes(th):
        after = exact.values(mdps, policy.log_pi(th))[1:]
        table = sum(m * exact.action_values(mdps, v) for m, v in zip(d_pi, after))
        return policy.weighted_score(theta, table)

    def derivative(slope):
        """One Jacobian of the sum over tasks, (F, A, N, F, A), holds each task's own.

        That is so since a task's slope depends on its own parameters only.
        """
        of_sum = jacobian(lambda th: np.sum(slope(th), 0))(theta)
        return np.moveaxis(of_sum, 2, 0).reshape(size)

    return dict(
        H=derivative(all_of_it),
        H1=derivative(pi_changes),
        H2=derivative(score_changes),
        H12=derivative(q_changes),
    )


def expected_adapted_return(
    mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000
):
    """(b) E_D[J(U(θ, D))] for one small MDP, every D enumerated: θ (F, A) → a number.

    Differentiable. Its gradient contains the score of the inner data, since the probabilities
    depend on θ, whatever inner.estimator is. Arguments and errors as `enumerate_adaptations`.
    """
    inner = inner.inner if isinstance(inner, FirstOrder) else inner
    if isinstance(inner, Reinforce):
        # every estimator leads to the same θ', but only naive's derivative is that of U at fixed D
        inner = replace(inner, estimator="naive")
    sizes = dict(episodes=episodes, steps=steps, max_datasets=max_datasets)
    path, probability = enumerate_adaptations(mdps, policy, theta, inner, **sizes)
    return np.sum(probability * _returns(mdps, policy, path.thetas[-1]))


def expected_adapted_return_gradient(
    mdps, policy, theta, inner, *, episodes, steps=1, max_datasets=1_000_000
):
    """∇ of (b): θ (F, A) → (F, A). Arguments and errors as `enumerate_adaptations`."""
    sizes = dict(episodes=episodes, steps=steps, max_datasets=max_datasets)

    def total(th):
        return expected_adapted_return(mdps, policy, th, inner, **sizes)

    return grad(total)(require_array("theta", theta, traced=True) * 1.0)


def expected_meta_gradient(
    mdps, policy, theta, inner, *, episodes, steps=1, with_score=False, max_datasets=1_000_000
):
    """E_D of `maml.meta_gradient`, with the score or without, its query exact: (F, A).

    Arguments and errors as `enumerate_adaptations`.
    """

    def outer(adapted):
        return _returns(mdps, policy, adapted)

    sizes = dict(episodes=episodes, steps=steps, max_datasets=max_datasets)
    path, probability = enumerate_adaptations(mdps, policy, theta, inner, **sizes)
    score_factor = outer(path.thetas[-1]) if with_score else None
    g = meta_gradient(policy, path, inner, outer=outer, score_factor=score_factor)
    return np.sum(probability[:, None, None] * g, 0)


def _returns(mdps, policy, thetas):
    """J of the one task under each of R parameters: (R, F, A) → (R,)."""
    copies = mdps[np.zeros(len(thetas), int)]
    return exact.expected_return(copies, policy.log_pi(thetas))
