"""Is your meta-gradient right, and if not, which one is it?

`check_gradient` compares a gradient, from PyTorch, JAX or anything else, with what every estimator
must give on the same data (`estimators`) or with exact answers, and says which of them it is.
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
    (1e-4 at least if it is float32: sums over some hundred steps are off by about 6e-5 then).
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

    if standard_error is None:
        errors = {name: _relative(gradient, x) for name, x in known.items()}
        names = tuple(name for name in known if errors[name] <= tolerance)
        text = _text(gradient, known, names, errors, tolerance)
        return Verdict(names, errors, text)
    error = require_array("standard_error", standard_error, (), gradient.shape)
    good = (error >= 0) & np.isfinite(error)
    require(good.all(), "standard_error", "negative or not finite")
    limit = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * gradient.size))
    errors = {name: _largest_z(gradient, x, error, tolerance) for name, x in known.items()}
    names = tuple(name for name in known if errors[name] <= limit)
    about = f"largest |z| of {gradient.size} components up to {limit:.2f}"
    text = _text_of_mean(names, errors, f"At {confidence:.0%} confidence ({about}) this mean")
    return Verdict(names, errors, text)


def _size(x):
    return max(abs(x).max(), 1e-300)


def _relative(gradient, candidate):
    """The largest difference, over the candidate's largest component."""
    return float((abs(gradient - candidate) / _size(candidate)).max())


def _largest_z(gradient, candidate, error, tolerance):
    """The largest difference in standard errors, which are no smaller than rounding."""
    error = np.maximum(error, tolerance * _size(candidate))
    return float((abs(gradient - candidate) / error).max())


def _text(gradient, candidates, names, errors, tolerance):
    """The verdict on a gradient that should be equal to a candidate."""
    off = "off by {:.1e} of its largest component"
    found = [f"{name} ({off.format(errors[name])}): {MEANING.get(name, '')}" for name in names]
    if len(found) == 1:
        return f"This is {found[0]}."
    if found:
        return "\n  ".join(["These coincide here, and it is each of them:", *found])
    multiples = []
    for name, x in candidates.items():
        times = (gradient * x).sum() / max((x * x).sum(), 1e-300)
        if times and abs(gradient - times * x).max() <= tolerance * abs(gradient).max():
            multiples.append(f"{times:.6g} times {name}: {_why(times, tolerance)}?")
    if multiples:
        return "\n  or ".join(["This is " + multiples[0], *multiples[1:]])
    nearest = min(errors, key=errors.get)
    return (
        f"This is none of the candidates. The nearest is {nearest}, off by {errors[nearest]:.1%} "
        "of its largest component. (The candidates keep γᵗ, and have the baseline that they were "
        "made with: is yours another convention?)"
    )


def _why(times, tolerance):
    why = ["the opposite sign, as of a loss"] if times < 0 else []
    if abs(abs(times) - 1) > tolerance:
        why.append("a sum where a mean belongs, or the other way round")
    return " and ".join(why)


def _text_of_mean(names, errors, this_mean):
    """The verdict on a mean of samples."""
    found = [f"{name} (|z| = {errors[name]:.2f}): {MEANING.get(name, '')}" for name in names]
    others = [f"{name} (|z| = {z:.3g})" for name, z in errors.items() if name not in names]
    lines = [f"  may be {text}" for text in found] or ["  is none of the candidates."]
    return "\n".join([this_mean, *lines, "  is not " + ", ".join(others)])
