"""What each estimator must give on recorded data, and what it converges to.

For arrays from PyTorch, JAX or anything else. The functions here return {name: gradient}, the
candidates that `diagnosis.check_gradient` compares a gradient with.
"""

from dataclasses import replace
from itertools import product

from metarl_np.arguments import require, require_array, validate
from metarl_np.check import meta_gradients
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import leave_one_out_baseline
from metarl_np.meta.maml import centred_returns, meta_gradient, replay
from metarl_np.tasks import exact


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
    """{name: the meta-gradient (F, A) that each estimator must give on these data}.

    Means over tasks. A name is first_order, a surrogate's, or one of them with "+score". theta:
    (F, A). support: a list of `record`s, one for each inner step; query: one more. step_size: α.
    discount: γ. The weights γᵗ (G_t − b_t) keep γᵗ, in the inner steps and in the query, where most
    public code drops it. baseline: b of (returns, episodes), by default leave-one-out, the mean of
    the task's other episodes; a recorded baseline goes before it. lam: λ of loaded_dice. policy: a
    SoftmaxPolicy by default. The score's J is the query's mean return less that of the other tasks.
    With no inner step all of them are one array, which has "policy gradient" as its first name.
    Raises ValueError if recorded log-probabilities are not those of θ adapted so far.
    """
    theta = require_array("theta", theta).astype(float)
    require(theta.ndim == 2 and theta.size, "theta", f"expected shape (F, A), got {theta.shape}")
    good = isinstance(support, (list, tuple))
    good = good and all(isinstance(e, RecordedEpisodes) for e in (*support, query))
    expected = "expected a list of `record`s, one for each inner step, and one `record`"
    require(good, "support, query", expected)
    policy = SoftmaxPolicy(*theta.shape) if policy is None else policy
    validate(policy=policy, baseline=baseline)

    def recorded_or_given(returns, episodes):
        return baseline(returns, episodes) if episodes.baseline is None else episodes.baseline

    names = [f"support[{j}]" for j in range(len(support))] + ["query"]
    plain = {}
    scored = {}
    for estimator in ESTIMATORS:
        inner = Reinforce(step_size, recorded_or_given, estimator, lam)
        path = replay(policy, theta, inner, [*support, query], discount, names=names)
        factor = centred_returns(path.returns[-1])
        with_score = meta_gradient(policy, path, inner, score_factor=factor)
        plain[estimator] = meta_gradient(policy, path, inner).mean(0)
        scored[f"{estimator}+score"] = with_score.mean(0)
    if not support:
        return dict.fromkeys(["policy gradient", *plain, *scored], plain["naive"])
    return plain | scored


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
    ones. Raises ValueError if there are too many data sets.
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
