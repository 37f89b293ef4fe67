"""Is your meta-gradient right, and if not, which one is it? For arrays from PyTorch, JAX or anything else.

`check_gradient` compares a gradient with what every estimator must give on the same recorded episodes and, if the MDP is known, with
the exact answers, and says in words which of them it is.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from metarl_np import exact, exact_meta
from metarl_np.losses import ESTIMATORS
from metarl_np.maml import meta_gradient, replay, require_own, score_factor
from metarl_np.policies import SoftmaxPolicy
from metarl_np.returns import Episodes, leave_one_out_baseline
from metarl_np.updates import Reinforce

MEANING = {
    "first_order": "it differentiates nothing of the inner step: it lacks H₁, H₂ and H₁₂",
    "naive": "its Hessian is that of Σ log π (G − b): it lacks H₁ and H₁₂; right for what is trained, (b), only with the score",
    "lvc": "its Hessian has H₁ and H₂: it lacks H₁₂",
    "dice": "its Hessian's expectation is the whole H",
    "loaded_dice": "its Hessian's expectation is the whole H at λ = 1, LVC's at λ = 0",
    "first_order+score": "the first-order estimator with the score of the inner data: it lacks the pathwise derivative of the inner step",
    "naive+score": "unbiased for what is trained, (b): the pathwise derivative at fixed data and the score of the inner data",
    "lvc+score": "it counts a part of the score twice: LVC already contains it",
    "dice+score": "it counts a part of the score twice: DiCE already contains it",
    "loaded_dice+score": "it counts a part of the score twice: Loaded DiCE already contains it",
    "policy gradient": "the exact ∇J(θ), with no inner step at all",
    "(a)": "the exact gradient of J(θ + α∇J(θ)), with exact inner gradients",
    "(b)": "the exact gradient of what is trained, E_D[J(U(θ, D))]",
}


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which candidates a gradient is; `str` says it in words."""

    names: tuple  # the candidates that it agrees with
    errors: dict  # name → largest difference over the candidate's largest component; with a standard error: largest |z|
    text: str

    def __str__(self):
        return self.text


def record(states, actions, rewards, mask=None, log_probs=None, baseline=None):
    """Plain arrays (T, K) of one task or (T, N, K) of N, as `estimator_gradients` wants them: a dictionary of arrays (T, N, K).

    log_probs: what your policy gave when it acted. baseline: your own b_t. What stands on masked steps does not matter. Raises
    ValueError on shapes that differ, states or actions that are no whole numbers, and numbers that are not finite.
    """
    optional = dict(mask=np.ones(np.shape(states), bool) if mask is None else mask, log_probs=log_probs, baseline=baseline)
    arrays = dict(states=states, actions=actions, rewards=rewards) | {name: x for name, x in optional.items() if x is not None}
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    shape = arrays["states"].shape
    for name, x in arrays.items():
        if x.shape != shape or len(shape) not in (2, 3) or not x.size:
            raise ValueError(f"{name}: expected shape (T, K) or (T, N, K) like the states', not empty, got {x.shape}")
    if not np.isin(arrays["mask"], (0, 1)).all():
        raise ValueError("mask: expected booleans")
    valid = arrays["mask"].astype(bool)
    for name, x in arrays.items():
        x = np.where(valid, x, 0)
        if name in ("states", "actions") and not np.issubdtype(x.dtype, np.integer):
            raise ValueError(f"{name}: expected integers, got {x.dtype}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: not finite")
        arrays[name] = x if len(shape) == 3 else x[:, None]
    return arrays | dict(mask=arrays["mask"].astype(bool))


def estimator_gradients(theta, support, query, *, step_size, discount, baseline=leave_one_out_baseline, lam=1.0, policy=None):
    """{name: the meta-gradient (F, A) that each estimator must give on these episodes}, with `+score` and without; mean over tasks.

    theta (F, A). support: a list of `record`s, one for each inner step, query: one more. policy: the tabular SoftmaxPolicy by default.
    A baseline that was recorded goes before the function `baseline`.
    The query's surrogate is REINFORCE with the same baseline; the score's J is the query's mean return less the other tasks'. Raises
    ValueError if recorded log-probabilities are not those of the parameters that each step leads to, or shapes do not fit.
    """
    theta = np.asarray(theta, float)
    if theta.ndim != 2:
        raise ValueError(f"theta: expected shape (F, A), got {theta.shape}")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: {discount} is outside [0, 1]")
    policy = SoftmaxPolicy(*theta.shape) if policy is None else policy
    if not isinstance(support, (list, tuple)) or not all(isinstance(r, dict) for r in (*support, query)):
        raise ValueError("support, query: expected a list of `record`s, one for each inner step, and one `record`")
    records = [*support, query]
    shape = (records[0]["states"].shape[1], policy.n_states, policy.n_actions)
    for j, r in enumerate(records):
        name = f"support[{j}]" if j < len(support) else "query"
        if r["states"].shape[1] != shape[0]:
            raise ValueError(f"{name}: {r['states'].shape[1]} tasks, where support[0] has {shape[0]}")
        for key, size in (("states", shape[1]), ("actions", shape[2])):
            if r[key].min() < 0 or r[key].max() >= size:
                raise ValueError(f"{name}: {key} outside 0..{size - 1}, the policy's")
    episodes = [Episodes(*(r[key] for key in ("states", "actions", "rewards", "mask")), None, None, None) for r in records]
    own = {id(e): r["baseline"] for e, r in zip(episodes, records) if "baseline" in r}
    mdps, gradients = _Sizes(shape, discount), {}

    def recorded(returns, e):
        return own[id(e)] if id(e) in own else baseline(returns, e)
    for estimator in ESTIMATORS:
        inner = Reinforce(step_size, recorded, estimator, lam)
        path = replay(mdps, policy, theta, inner, episodes)
        for name, score in (("", None), ("+score", score_factor(path.returns[-1]))):
            gradients[estimator + name] = meta_gradient(policy, path, inner, score=score).mean(0)
    for j, (e, r) in enumerate(zip(episodes, records)):
        if "log_probs" in r:
            e.__dict__["log_probs"] = r["log_probs"]  # the users' own, in place of those of a table
            require_own("log_probs of " + ("the query" if j == len(support) else f"support[{j}]"), policy.log_pi(path.thetas[j]), e)
    return {name: gradients[name] for name in MEANING if name in gradients}


@dataclass(frozen=True)
class _Sizes:
    """What `replay` needs to know of the tasks when only episodes are given."""

    shape: tuple
    discount: float

    def __len__(self):
        return self.shape[0]


def exact_gradients(mdps, theta, *, step_size, steps=1, policy=None):
    """{"policy gradient": ∇J(θ), "(a)": ∇J(θ_k)}, exact, mean over tasks: (F, A) each.

    The exact return is `exact.expected_return`, the Hessian and its parts `exact_meta.hessians`.
    """
    theta = np.asarray(theta, float)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    slope = policy.weighted_score(theta, exact.policy_gradient_table(mdps, policy.log_pi(theta)))
    adapted = exact_meta.adapted_return_gradient(mdps, policy, theta, step_size=step_size, steps=steps)
    return {"policy gradient": slope.mean(0), "(a)": adapted.mean(0)}


def expected_gradients(mdps, theta, *, step_size, episodes, steps=1, baseline=leave_one_out_baseline, lam=1.0, policy=None):
    """{name: the expectation (F, A) of each estimator over all data sets of one tiny MDP}, and (b). Raises ValueError if they are too many.

    These, with `exact_gradients`, are the candidates for a gradient that is the mean of many sampled ones.
    """
    theta = np.asarray(theta, float)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    size = dict(episodes=episodes, steps=steps)
    result = {estimator + name: exact_meta.expected_meta_gradient(mdps, policy, theta, Reinforce(step_size, baseline, estimator, lam),
                                                                  score=bool(name), **size)
              for estimator in ESTIMATORS for name in ("", "+score")}
    inner = Reinforce(step_size, baseline)
    return result | {"(b)": exact_meta.expected_adapted_return_gradient(mdps, policy, theta, inner, **size)}


def check_gradient(gradient, candidates, *, tolerance=1e-6, standard_error=None, confidence=0.99):
    """Which of the candidates {name: gradient} is this one? A Verdict that names all that it agrees with.

    gradient: any shape, like the candidates'. Agreement is a largest difference of at most tolerance · the candidate's
    largest component. If it is the mean of samples, standard_error (same shape) gives a statement at `confidence` instead: the
    largest |z| of the components against Bonferroni's limit, valid however they are correlated.
    """
    gradient = np.asarray(gradient, float)
    candidates = {name: np.asarray(x, float) for name, x in candidates.items()}
    for name, x in candidates.items():
        if x.shape != gradient.shape:
            raise ValueError(f"gradient: shape {gradient.shape}, where {name} has {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"candidates: {name} is not finite")
    if not np.isfinite(gradient).all():
        raise ValueError("gradient: not finite")
    if not candidates or not 0 < confidence < 1:
        raise ValueError(f"candidates, confidence: {len(candidates)} must be at least 1, {confidence} between 0 and 1")
    size = {name: max(abs(x).max(), 1e-300) for name, x in candidates.items()}
    if standard_error is None:
        errors = {name: float(abs(gradient - x).max() / size[name]) for name, x in candidates.items()}
        names = tuple(name for name, error in errors.items() if error <= tolerance)
        return Verdict(names, errors, _in_words(gradient, candidates, names, errors, tolerance))
    error = np.broadcast_to(np.asarray(standard_error, float), gradient.shape)
    if not ((error >= 0) & np.isfinite(error)).all():
        raise ValueError("standard_error: negative or not finite")
    limit = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * gradient.size))
    z = {name: float((abs(gradient - x) / np.maximum(error, tolerance * size[name])).max()) for name, x in candidates.items()}
    names = tuple(name for name in z if z[name] <= limit)
    lines = [f"At {confidence:.0%} confidence (largest |z| of {gradient.size} components up to {limit:.2f}) this mean"]
    lines += [f"  may be {name} (|z| = {z[name]:.2f}): {MEANING.get(name, '')}" for name in names] or ["  is none of the candidates."]
    lines += ["  is not " + ", ".join(f"{name} (|z| = {z[name]:.3g})" for name in z if name not in names)]
    return Verdict(names, z, "\n".join(lines))


def _in_words(gradient, candidates, names, errors, tolerance):
    if names:
        parts = [f"{name} (off by {errors[name]:.1e} of its largest component): {MEANING.get(name, '')}" for name in names]
        return f"This is {parts[0]}." if len(parts) == 1 else "These coincide here, and it is each of them:\n  " + "\n  ".join(parts)
    nearest = min(errors, key=errors.get)
    lines = [f"This is none of the candidates. The nearest is {nearest}, off by {errors[nearest]:.1%} of its largest component."]
    for name, x in candidates.items():
        scale = (gradient * x).sum() / max((x * x).sum(), 1e-300)
        if scale and abs(gradient - scale * x).max() <= tolerance * abs(gradient).max():
            sign = "the opposite sign, as of a loss" if scale < 0 else ""
            size = "" if abs(abs(scale) - 1) <= tolerance else "a sum where a mean belongs, or the other way round"
            lines.append(f"  It is {scale:.6g} times {name}: {' and '.join(filter(None, (sign, size)))}?")
    return "\n".join(lines)
