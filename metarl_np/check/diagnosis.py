"""Is your meta-gradient right, and if not, which one is it?

`check_gradient` compares a gradient, from PyTorch, JAX or anything else, with what every estimator
must give on the same data (`estimators`) or with exact answers, and says which of them it is.
`surrogates` says what H₁, H₂ and H₁₂ are, the parts of the Hessian of J; `meta_gradients` tells (a)
from (b); and the score of the inner data is the gradient of their log-probability.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import require, require_array, validate

SINGLE_PRECISION = 1e-4  # relative: how far a right float32 gradient may be off
MEANING = {
    "first_order": "first-order MAML: it differentiates nothing of the inner step, and lacks H₁, "
    "H₂ and H₁₂",
    "naive": "what usual MAML code computes: it differentiates the inner step at fixed data, and "
    "lacks H₁ and H₁₂. To be unbiased for what is trained, (b), add the score of the inner data",
    "lvc": "its Hessian has H₁ and H₂, and lacks H₁₂",
    "dice": "its Hessian's expectation is the whole H",
    "loaded_dice": "its Hessian's expectation is the whole H at λ = 1, LVC's at λ = 0",
    "first_order+score": "first-order MAML with the score of the inner data: it lacks the "
    "derivative of the inner step at fixed data",
    "naive+score": "unbiased for what is trained, (b): the derivative of the inner step at fixed "
    "data, and the score of the inner data",
    "lvc+score": "it counts a part of the score twice: lvc already contains it",
    "dice+score": "it counts a part of the score twice: dice already contains it",
    "loaded_dice+score": "it counts a part of the score twice: loaded_dice already contains it",
    "policy gradient": "the exact ∇J(θ), with no inner step",
    "(a)": "the exact gradient of J(θ + α∇J(θ)), with exact inner gradients",
    "(b)": "the exact gradient of what is trained, E_D[J(U(θ, D))]",
}


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which candidates a gradient is; `str` says it in words."""

    names: tuple  # the candidates that it agrees with
    errors: dict  # name → largest difference over the candidate's largest component; or |z|
    text: str

    def __str__(self):
        return self.text


def check_gradient(gradient, candidates, *, tolerance=1e-6, standard_error=None, confidence=0.99):
    """Verdict on which of the candidates {name: gradient}, all of one shape, this gradient is.

    It names all from which the gradient differs by at most tolerance times their largest component
    (1e-4 at least if it is float32: sums over some hundred steps are off by about 6e-5 then). If
    there is none, it says whether the gradient is a multiple of one: the gradient of a loss is −1
    times it, and a sum over n where a mean belongs is n times it.

    For a gradient that is a mean of samples give its standard_error, of the same shape: the verdict
    is then a statement at `confidence`, by the largest |z| against Bonferroni's limit, which is
    valid however the components are correlated. Raises ValueError on other shapes and on what is
    not finite.
    """
    validate(tolerance=tolerance, confidence=confidence)
    some = isinstance(candidates, dict) and candidates
    require(some, "candidates", f"expected a dictionary, not empty, got {candidates!r:.99}")
    gradient = require_array("gradient", gradient)
    if gradient.dtype in (np.float16, np.float32):
        tolerance = max(tolerance, SINGLE_PRECISION)
    gradient = gradient.astype(float)
    require(np.isfinite(gradient).all(), "gradient", "not finite")
    known = {}
    for name, x in candidates.items():
        known[name] = x = require_array(f"candidates, {name}", x) * 1.0
        other = f"shape {gradient.shape}, where {name} has {x.shape}"
        require(x.shape == gradient.shape, "gradient", other)
        require(np.isfinite(x).all(), "candidates", f"{name} is not finite")

    limit = tolerance
    unit = {name: max(abs(x).max(), 1e-300) for name, x in known.items()}
    if standard_error is not None:
        error = require_array("standard_error", standard_error, (), gradient.shape)
        good = (error >= 0) & np.isfinite(error)
        require(good.all(), "standard_error", "negative or not finite")
        limit = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * gradient.size))
        # A standard error is not taken to be below rounding.
        unit = {name: np.maximum(error, tolerance * size) for name, size in unit.items()}
    errors = {name: float((abs(gradient - x) / unit[name]).max()) for name, x in known.items()}
    names = tuple(name for name in known if errors[name] <= limit)
    if standard_error is None:
        text = _text(names, errors) if names else _text_of_none(gradient, known, errors, tolerance)
    else:
        about = f"largest |z| of {gradient.size} components up to {limit:.2f}"
        text = _text_of_mean(names, errors, f"At {confidence:.0%} confidence ({about}) this mean")
    return Verdict(names, errors, text)


def _named(name, how=""):
    """The name, how well it fits, and what it means, if it is one of ours."""
    return name + how + (f": {MEANING[name]}" if name in MEANING else "")


def _text(names, errors):
    """The verdict on a gradient that is equal to candidates."""
    off = " (off by {:.1e} of its largest component)"
    found = [_named(name, off.format(errors[name])) for name in names]
    if len(found) == 1:
        return f"This is {found[0]}."
    return "\n  ".join(["These coincide here, and it is each of them:", *found])


def _text_of_none(gradient, candidates, errors, tolerance):
    """The verdict on a gradient that is equal to no candidate: is it a multiple of one?"""
    multiples = []
    for name, x in candidates.items():
        times = (gradient * x).sum() / max((x * x).sum(), 1e-300)
        if times and abs(gradient - times * x).max() <= tolerance * abs(gradient).max():
            multiples.append(f"{_times(times, tolerance, name)}\n  {_named(name)}.")
    if multiples:
        return "\n".join(multiples)
    nearest = min(errors, key=errors.get)
    return (
        f"This is none of the candidates. The nearest is {nearest}, off by {errors[nearest]:.1%} "
        "of its largest component.\n  They keep γᵗ and have the step size and the baseline that "
        "they were made with, by default leave-one-out: is one of these different in your code?"
    )


def _times(times, tolerance, name):
    """What a gradient that is a multiple of a candidate is, in one sentence."""
    why = ["the gradient of a loss, which is minimised"] if times < 0 else []
    if abs(abs(times) - 1) > tolerance:
        why.append("a sum where a mean belongs" if abs(times) > 1 else "a mean where a sum belongs")
    number = f"{times:.6g}".replace("-", "−")
    return f"This is {number} × {name}: {', and '.join(why)}."


def _text_of_mean(names, errors, this_mean):
    """The verdict on a mean of samples."""
    lines = [f"  may be {_named(name, f' (|z| = {errors[name]:.2f})')}" for name in names]
    lines = lines or ["  is none of the candidates."]
    others = [f"{name} (|z| = {z:.3g})" for name, z in errors.items() if name not in names]
    if others:
        lines.append("  is not " + ", ".join(others))
    return "\n".join([this_mean, *lines])
