"""What each estimator must give on recorded data, and what it converges to.

`estimator_gradients`, `exact_gradients` and `expected_gradients` return {name: gradient}, the
candidates that `verdict.check_gradient` compares a gradient with. The first of them replays an
`Explanation` for each estimator (`replays`, where their four Hessians are).
"""

from dataclasses import replace
from itertools import product

import numpy as np

from metarl_np.arguments import require, require_array, require_floats, validate
from metarl_np.check import meta_gradients
from metarl_np.check.replays import ACTS, Alternative, Explanation, Recorded, returns_to_go
from metarl_np.check.scores import is_own, require_records, scores_of
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import leave_one_out_baseline
from metarl_np.tasks import exact


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
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
    """{name: the meta-gradient, shaped as theta, that each estimator must give on these data}.

    Means over tasks. A name is first_order, a surrogate's, or one of them with "+score". theta:
    (F, A), or (P,) where the policy is one of your own. support: a list of `record`s, one for each
    inner step; query: one more. step_size: α. discount: γ. The weights γᵗ (G_t − b_t) keep γᵗ, in
    the inner steps and in the query, where most public code drops it. baseline: b of (returns,
    episodes), by default leave-one-out, the mean of the task's other episodes; a recorded baseline
    goes before it. lam: λ of loaded_dice. policy: a SoftmaxPolicy by default, or one of your own,
    as in `diagnose`. The score's J is the query's mean return less that of the other tasks. With no
    inner step all of them are one array, which has "policy gradient" as its first name. Raises
    ValueError if recorded log-probabilities are not those of θ adapted so far.
    """
    step_size, discount, lam = validate(step_size=step_size, discount=discount, lam=lam)
    validate(baseline=baseline)
    named = require_records(support, query)
    scores, thetas = scores_of(policy, theta, named)
    axes, shape = (1, "(P,)") if is_own(policy) else (2, "(F, A)")
    require(np.ndim(theta) == axes, "theta", f"expected shape {shape}, got {np.shape(theta)}")

    def advantages(record):
        returns = returns_to_go(record, discount)
        b = record.baseline
        b = baseline(returns, record) if b is None else b
        return returns - require_floats("baseline", b, returns.shape, ())

    usual = [Alternative("G less the baseline", advantages)]
    recorded = Recorded(scores, thetas, named, usual, step_size, discount)
    order = tuple(range(len(support)))
    e = Explanation(does=(ACTS,) * len(support), sets=order)
    for name, gap in recorded.gaps(e).items():
        why = (
            "log-probabilities do not belong to the parameters of its inner step: off by up "
            f"to {gap:.2g}. Usual causes: other rewards, another step size, baseline or γᵗ in "
            "the inner step before it, or axes in another order"
        )
        require(gap < 1e-4, name, why)
    found = {}
    for score, estimator in product(("", "+score"), ESTIMATORS):
        decay = lam if estimator == "loaded_dice" else 1.0
        this = replace(e, estimator=estimator, score=score, lam=decay)
        (found[estimator + score],) = recorded.columns(this)
    return found if support else dict.fromkeys(["policy gradient", *found], found["naive"])


def exact_gradients(mdps, theta, *, step_size, steps=1, policy=None):
    """{"policy gradient": ∇J(θ), "(a)": ∇J(θ_k)}, exact, mean over tasks: (F, A) each.

    See `meta_gradients`; there are the Hessian and its parts, too.
    """
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    sizes = dict(step_size=step_size, steps=steps)
    adapted = meta_gradients.adapted_return_gradient(mdps, policy, theta, **sizes)
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
    """{name: the expectation (F, A) of each estimator over all data sets of one tiny MDP}, and (b).

    With `exact_gradients` these are the candidates for a gradient that is the mean of many sampled
    ones. theta: (F, A). step_size: α of the one inner update, or of each of so many `steps`, on
    data sets of so many `episodes`. baseline, lam, policy: as in `estimator_gradients`. Raises
    ValueError if there are too many data sets.
    """
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    theta = require_array("theta", theta) * 1.0
    sizes = dict(episodes=episodes, steps=steps)
    naive = Reinforce(step_size, baseline, lam=lam)
    b = meta_gradients.expected_adapted_return_gradient(mdps, policy, theta, naive, **sizes)
    expected = {"(b)": b}
    for name, score in product(ESTIMATORS, ("", "+score")):
        inner = replace(naive, estimator=name)
        expected[name + score] = meta_gradients.expected_meta_gradient(
            mdps, policy, theta, inner, with_score=bool(score), **sizes
        )
    return expected
