"""Is your meta-gradient right, and if not, which one is it? For arrays from PyTorch, JAX or anything else.
`check_gradient` compares it with what every estimator must give on the same episodes and with exact answers, and says which it is.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.estimators import MEANING


@dataclass(frozen=True, eq=False)
class Verdict:
    """Which candidates a gradient is; `str` says it in words."""

    names: tuple  # the candidates that it agrees with
    errors: dict  # name → largest difference over the candidate's largest component; with a standard error: largest |z|
    text: str

    def __str__(self):
        return self.text


def check_gradient(gradient, candidates, *, tolerance=1e-6, standard_error=None, confidence=0.99):
    """Which of the candidates {name: gradient}, of any one shape, is this one? A Verdict that names all that differ from it by at most
    tolerance · their largest component. For a mean of samples standard_error (same shape) gives a statement at `confidence` instead: the
    largest |z| against Bonferroni's limit, valid however the components are correlated."""
    validate(tolerance=tolerance, confidence=confidence)
    require(
        isinstance(candidates, dict) and candidates,
        "candidates",
        f"expected a dictionary, not empty, got {candidates!r:.99}",
    )
    gradient = require_array("gradient", gradient) * 1.0
    candidates = {
        name: require_array(f"candidates, {name}", x) * 1.0 for name, x in candidates.items()
    }
    require(np.isfinite(gradient).all(), "gradient", "not finite")
    for name, x in candidates.items():
        require(
            x.shape == gradient.shape,
            "gradient",
            f"shape {gradient.shape}, where {name} has {x.shape}",
        )
        require(np.isfinite(x).all(), "candidates", f"{name} is not finite")
    limit = tolerance
    scale = {name: max(abs(x).max(), 1e-300) for name, x in candidates.items()}
    if standard_error is not None:
        error = np.broadcast_to(
            require_array("standard_error", standard_error, (), gradient.shape), gradient.shape
        )
        require(
            ((error >= 0) & np.isfinite(error)).all(), "standard_error", "negative or not finite"
        )
        limit = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * gradient.size))
        scale = {name: np.maximum(error, tolerance * size) for name, size in scale.items()}
    errors = {
        name: float((abs(gradient - x) / scale[name]).max()) for name, x in candidates.items()
    }
    names = tuple(name for name in errors if errors[name] <= limit)
    off = "off by {:.1e} of its largest component" if standard_error is None else "|z| = {:.2f}"
    found = [f"{name} ({off.format(errors[name])}): {MEANING.get(name, '')}" for name in names]
    if standard_error is not None:
        lines = [
            f"At {confidence:.0%} confidence (largest |z| of {gradient.size} components up to {limit:.2f}) this mean"
        ]
        lines += [f"  may be {text}" for text in found] or ["  is none of the candidates."]
        lines += [
            "  is not "
            + ", ".join(
                f"{name} (|z| = {z:.3g})" for name, z in errors.items() if name not in names
            )
        ]
    elif names:
        lines = (
            [f"This is {found[0]}."]
            if len(names) == 1
            else ["\n  ".join(["These coincide here, and it is each of them:", *found])]
        )
    else:
        nearest = min(errors, key=errors.get)
        lines = [
            f"This is none of the candidates. The nearest is {nearest}, off by {errors[nearest]:.1%} of its largest component."
        ]
        for name, x in candidates.items():
            times = (gradient * x).sum() / max((x * x).sum(), 1e-300)
            if times and abs(gradient - times * x).max() <= tolerance * abs(gradient).max():
                why = ["the opposite sign, as of a loss"] if times < 0 else []
                why += (
                    ["a sum where a mean belongs, or the other way round"]
                    if abs(abs(times) - 1) > tolerance
                    else []
                )
                lines.append(f"  It is {times:.6g} times {name}: {' and '.join(why)}?")
    return Verdict(names, errors, "\n".join(lines))
