"""What each estimator must give on recorded data, and what it converges to.

For arrays from PyTorch, JAX or anything else. The functions here return {name: gradient}, the
candidates that `diagnosis.check_gradient` compares a gradient with.
"""

from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class RecordedEpisodes(Episodes):
    """Episodes of a user's, who may have kept log-probabilities and baselines, (T, N, K)."""

    log_probs: np.ndarray = None  # log π(a_t|s_t) when it was sampled
    baseline: np.ndarray = None  # b_t


def record(states, actions, rewards, mask=None, log_probs=None, baseline=None):
    """One data set for `estimator_gradients`, of arrays (T, K) for one task or (T, N, K) for N.

    mask: bool, the steps that were really taken; all by default. What stands in another place does
    not matter, and becomes 0. log_probs: log π(a_t|s_t) of your policy when it acted, to be
    checked. baseline: b_t. Returns RecordedEpisodes. Raises ValueError on other shapes and on what
    is not finite in unmasked places.
    """
    states = require_array("states", states)
    shape = states.shape
    fits = len(shape) in (2, 3) and states.size
    require(fits, "states", f"expected shape (T, K) or (T, N, K), not empty, got {shape}")
    mask = _like(states, "mask", np.ones(shape, bool) if mask is None else mask)
    require(np.isin(mask, (0, 1)).all(), "mask", f"not booleans: {mask.dtype}")
    mask = mask.astype(bool)

    def steps(name, x, kinds="biuf"):
        """(T, N, K), checked, and 0 where masked."""
        x = _like(states, name, x, kinds)
        x = np.where(mask, x, x.dtype.type(0))
        require(np.isfinite(x).all(), name, "not finite")
        return x.reshape(len(x), -1, shape[-1])

    return RecordedEpisodes(
        states=steps("states", states, "iu"),
        actions=steps("actions", actions, "iu"),
        rewards=steps("rewards", rewards),
        mask=steps("mask", mask),
        log_pi=None,
        last_states=None,
        truncated=None,
        log_probs=None if log_probs is None else steps("log_probs", log_probs),
        baseline=None if baseline is None else steps("baseline", baseline),
    )


def _like(states, name, x, kinds="biuf"):
    x = require_array(name, x, kinds=kinds)
    require(x.shape == states.shape, name, f"{x.shape} is not the shape of states, {states.shape}")
    return x


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
