"""Is your meta-gradient right, and if not, which one is it? For arrays from PyTorch, JAX or anything else.
`check_gradient` compares it with what every estimator must give on the same episodes and with exact answers, and says which it is.
"""

from itertools import product

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check import meta_gradients
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import leave_one_out_baseline
from metarl_np.learner.rollouts import Episodes
from metarl_np.meta.maml import centred_returns, meta_gradient, replay
from metarl_np.tasks import exact

MEANING = {
    "first_order": "it differentiates nothing of the inner step: it lacks H₁, H₂ and H₁₂",
    "naive": "its Hessian is that of Σ log π (G − b): it lacks H₁ and H₁₂; right for what is trained, (b), only with the score",
    "lvc": "its Hessian has H₁ and H₂: it lacks H₁₂",
    "dice": "its Hessian's expectation is the whole H",
    "loaded_dice": "its Hessian's expectation is the whole H at λ = 1, LVC's at λ = 0",
    "first_order+score": "the first-order estimator with the score of the inner data: it lacks the pathwise derivative of the inner step",
    "naive+score": "unbiased for what is trained, (b): the pathwise derivative at fixed data and the score of the inner data",
    **{
        f"{name}+score": f"it counts a part of the score twice: {name} already contains it"
        for name in ("lvc", "dice", "loaded_dice")
    },
    "policy gradient": "the exact ∇J(θ), with no inner step",
    "(a)": "the exact gradient of J(θ + α∇J(θ)), with exact inner gradients",
    "(b)": "the exact gradient of what is trained, E_D[J(U(θ, D))]",
}


def record(states, actions, rewards, mask=None, log_probs=None, baseline=None):
    """Arrays (T, K) of one task or (T, N, K) of N, for `estimator_gradients`. log_probs: your policy's when it acted; baseline: b_t."""
    shape = require_array("states", states).shape
    mask = np.ones(shape, bool) if mask is None else require_array("mask", mask)
    require(
        mask.shape == shape and np.isin(mask, (0, 1)).all(),
        "mask",
        f"no booleans of states' {shape}: {mask.dtype} {mask.shape}",
    )
    arrays = dict(
        states=states,
        actions=actions,
        rewards=rewards,
        mask=mask.astype(bool),
        log_probs=log_probs,
        baseline=baseline,
    )
    arrays = {
        k: require_array(k, x, kinds="iu" if k in ("states", "actions") else "biuf")
        for k, x in arrays.items()
        if x is not None
    }
    for name, x in arrays.items():
        fits = x.shape == shape and len(shape) in (2, 3) and x.size
        require(
            fits,
            name,
            f"expected shape (T, K) or (T, N, K) like the states', not empty, got {x.shape}",
        )
        require(np.isfinite(np.where(mask, x, 0)).all(), name, "not finite")
    return {
        name: np.where(mask, x, x.dtype.type(0)).reshape(len(x), -1, shape[-1])
        for name, x in arrays.items()
    }


def estimator_gradients(
    theta,
    support,
    query,
    *,
    step_size,
    discount,
    baseline=leave_one_out_baseline,
    lam=1.0,
    policy=None,
):
    """{name: the meta-gradient (F, A) that each estimator must give on these episodes}, with `+score` and without; mean over tasks.
    theta (F, A). support: a list of `record`s, one per inner step, query: one more; a recorded baseline goes before `baseline`. policy: a
    SoftmaxPolicy by default. The score's J is the query's mean return less the other tasks'. Recorded log-probabilities must fit theta.
    """
    theta = require_array("theta", theta) * 1.0
    require(theta.ndim == 2 and theta.size, "theta", f"expected shape (F, A), got {theta.shape}")
    fits = isinstance(support, (list, tuple)) and all(
        isinstance(r, dict) and {"states", "mask"} <= set(r) for r in (*support, query)
    )
    require(
        fits,
        "support, query",
        "expected a list of `record`s, one for each inner step, and one `record`",
    )
    records = [*support, query]
    policy = SoftmaxPolicy(*theta.shape) if policy is None else policy
    validate(policy=policy, baseline=baseline)
    episodes = [
        Episodes(*(r[name] for name in ("states", "actions", "rewards", "mask")), None, None, None)
        for r in records
    ]
    for e, r in zip(episodes, records):  # the users' own, in place of those of a table
        e.__dict__.update(log_probs=r.get("log_probs"), baseline=r.get("baseline"))
    gradients = {}
    names = [f"support[{j}]" for j in range(len(support))] + ["query"]
    for estimator in ESTIMATORS:
        inner = Reinforce(
            step_size,
            lambda returns, e: baseline(returns, e) if e.baseline is None else e.baseline,
            estimator,
            lam,
        )
        path = replay(policy, theta, inner, episodes, discount, names=names)
        for name, score in (("", None), ("+score", centred_returns(path.returns[-1]))):
            gradients[estimator + name] = meta_gradient(
                policy, path, inner, score_factor=score
            ).mean(0)
    return {name: gradients[name] for name in MEANING if name in gradients}


def exact_gradients(mdps, theta, *, step_size, steps=1, policy=None):
    """{"policy gradient": ∇J(θ), "(a)": ∇J(θ_k)}, exact, mean over tasks: (F, A) each. (∇²J and its parts: `exact_meta.hessians`.)"""
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    adapted = meta_gradients.adapted_return_gradient(
        mdps, policy, theta, step_size=step_size, steps=steps
    )
    slope = policy.weighted_score(theta, exact.policy_gradient_table(mdps, policy.log_pi(theta)))
    return {"policy gradient": slope.mean(0), "(a)": adapted.mean(0)}


def expected_gradients(
    mdps,
    theta,
    *,
    step_size,
    episodes,
    steps=1,
    baseline=leave_one_out_baseline,
    lam=1.0,
    policy=None,
):
    """{name: the expectation (F, A) of each estimator over all data sets of one tiny MDP}, and (b): with `exact_gradients`,
    the candidates for a gradient that is the mean of many sampled ones. Raises ValueError on too many data sets.
    """
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    theta = require_array("theta", theta) * 1.0
    size = dict(episodes=episodes, steps=steps)
    result = {
        "(b)": meta_gradients.expected_adapted_return_gradient(
            mdps, policy, theta, Reinforce(step_size, baseline), **size
        )
    }
    return result | {
        name
        + score: meta_gradients.expected_meta_gradient(
            mdps,
            policy,
            theta,
            Reinforce(step_size, baseline, name, lam),
            with_score=bool(score),
            **size,
        )
        for name, score in product(ESTIMATORS, ("", "+score"))
    }
