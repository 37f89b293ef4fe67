"""Which of these candidates is a gradient: the verdict, and what a multiple of one is.

`check_gradient` compares a gradient with given candidates, {name: gradient}: with what every
estimator must give on the same data (`estimators`), or with exact answers. `surrogates` says what
H₁, H₂ and H₁₂ are, the parts of the Hessian of J; `meta_gradients` tells (a) from (b); and the
score of the inner data is the gradient of their log-probability.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import require, require_array, validate

# Verdicts are printed on any console: their texts keep to the characters of code page 1252, which
# has no Greek letters, no subscripts and no minus sign of its own.
STORED = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 1e-4}  # how far a right one may be off
NEGLIGIBLE = 1e-9  # a candidate so much smaller than the largest is zero but for rounding
NO_STEP = "policy gradient"
MEANING = {
    "first_order": "first-order MAML: it differentiates nothing of the inner step, and lacks H1, "
    "H2 and H12",
    "naive": "what usual MAML code computes: it differentiates the inner step at fixed data, and "
    "lacks H1 and H12. To be unbiased for what is trained, (b), add the score of the inner data",
    "lvc": "its Hessian has H1 and H2, and lacks H12",
    "dice": "its Hessian's expectation is the whole H",
    "loaded_dice": "its Hessian's expectation is the whole H at lambda = 1, LVC's at lambda = 0",
    "first_order+score": "first-order MAML with the score of the inner data: it lacks the "
    "derivative of the inner step at fixed data",
    "naive+score": "unbiased for what is trained, (b): the derivative of the inner step at fixed "
    "data, and the score of the inner data",
    "lvc+score": "it counts a part of the score twice: lvc already contains it",
    "dice+score": "it counts a part of the score twice: dice already contains it",
    "loaded_dice+score": "it counts a part of the score twice: loaded_dice already contains it",
    NO_STEP: "the gradient of J, with no inner step",
    "(a)": "the exact gradient after an inner step with the exact gradient of J",
    "(b)": "the exact gradient of what is trained, the expectation of J after an inner step on "
    "sampled data",
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
    (1e-4 at least if its numbers are float32, whatever array holds them: sums over some hundred
    steps are off by about 6e-5 then). Names that hold one and the same array are one candidate, and
    the first of them is its name. If there is none, it says whether the gradient is a multiple of
    one: the gradient of a loss is -1 times it, and a sum over n where a mean belongs is n times it.

    For a gradient that is a mean of samples give its standard_error, of the same shape: the verdict
    is then a statement at `confidence`, by the largest |z| against Bonferroni's limit, which is
    valid however the components are correlated. Raises ValueError on other shapes, on arrays
    without components and on what is not finite.
    """
    tolerance, confidence = validate(tolerance=tolerance, confidence=confidence)
    gradient = require_array("gradient", gradient)
    known = _candidates(candidates, gradient)
    of_types = [STORED.get(x.dtype, 0.0) for x in known.values()]
    tolerance = max(tolerance, rounding(gradient), *of_types)
    gradient = gradient.astype(float)
    known = {name: x.astype(float) for name, x in known.items()}
    first_names = {id(x): name for name, x in reversed(candidates.items())}
    distinct = [name for name in known if first_names[id(candidates[name])] == name]

    size = {name: abs(x).max() for name, x in known.items()}
    floor = NEGLIGIBLE * max(size.values())
    unit = {name: max(x, floor) for name, x in size.items()}
    limit = tolerance
    if standard_error is not None:
        error = require_array("standard_error", standard_error, (), gradient.shape)
        good = (error >= 0) & np.isfinite(error)
        require(good.all(), "standard_error", "negative or not finite")
        # A standard error is not taken to be below rounding.
        unit = {name: np.maximum(error, tolerance * x) for name, x in unit.items()}
        limit = -NormalDist().inv_cdf((1 - confidence) / (2 * gradient.size))
    errors = {name: _largest_ratio(gradient - x, unit[name]) for name, x in known.items()}
    names = tuple(name for name in distinct if errors[name] <= limit)

    if standard_error is not None:
        about = f"largest |z| of {gradient.size} components up to {limit:.2f}"
        first = f"At {100 * confidence:.16g}% confidence ({about}) this mean"
        text = _text_of_mean(first, names, distinct, errors)
    elif names:
        found = [_named(name, f" (off by {_off(errors[name])})") for name in names]
        coincide = "These coincide here, and it is each of them:"
        text = "\n  ".join([coincide, *found]) if found[1:] else f"This is {found[0]}."
    else:
        told = {name: known[name] for name in distinct}
        text = _text_of_none(gradient, told, errors, tolerance)
    return Verdict(names, errors, text)


def _candidates(candidates, gradient):
    """{name: array}; raises ValueError where these and the gradient cannot be compared."""
    some = isinstance(candidates, dict) and candidates
    require(some, "candidates", f"expected a dictionary, not empty, got {candidates!r:.99}")
    require(gradient.size, "gradient", f"it has no components: shape {gradient.shape}")
    require(np.isfinite(gradient).all(), "gradient", "not finite")
    known = {}
    for name, x in candidates.items():
        require(isinstance(name, str), "candidates", f"{name!r:.99} is no name: expected strings")
        x = require_array(f"candidates, {name}", x)
        other = f"shape {gradient.shape}, where {name} has {x.shape}"
        require(x.shape == gradient.shape, "gradient", other)
        require(np.isfinite(x).all(), "candidates", f"{name} is not finite")
        known[name] = x
    return known


def rounding(gradient):
    """How far, relative to its largest component, a right gradient of these numbers may be off.

    That follows from the type in which it was computed. An array of float64 whose numbers all are
    float32 numbers holds the gradient of a float32 computation.
    """
    with np.errstate(over="ignore"):
        single = gradient.astype(np.float32)
    hidden = gradient.dtype != single.dtype and (single == gradient).all()
    return STORED.get(single.dtype if hidden else gradient.dtype, 0.0)


def _largest_ratio(difference, unit):
    """max |difference| / unit, where 0 / 0 is 0, and anything else over 0 is infinite."""
    difference = abs(difference)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.where(difference == 0, 0.0, difference / unit).max())


def _named(name, how=""):
    """The name, how well it fits, and what it means, if it is one of ours."""
    return name + how + (f": {MEANING[name]}" if name in MEANING else "")


def _off(error):
    return f"{relative(error)} of its largest component"


def relative(error):
    """A relative error in a form to read."""
    return f"{error:.1e}" if error < 1e-3 else f"{error:.1%}" if error < 100 else f"{error:.2g} x"


def _text_of_none(gradient, candidates, errors, tolerance):
    """The verdict on a gradient that is equal to no candidate: is it a multiple of one?"""
    if not gradient.any():
        return "This gradient is zero everywhere, and no candidate is: does the loss reach theta?"
    multiples = []
    for name, x in candidates.items():
        (times,), error = fit(gradient, x)
        if error <= tolerance and times and abs(times - 1) > 1e-3:
            multiples.append(_times(times, name))
    if multiples:
        return "\n".join(multiples)
    nearest = min(candidates, key=errors.get)
    if errors[nearest] == np.inf:
        return f"This is none of the candidates: {nearest} is zero everywhere, the gradient is not."
    close = f"That is more than the tolerance, {tolerance:.1g}: is it rounding?\n  "
    return (
        f"This is none of the candidates. The nearest is {nearest}, off by {_off(errors[nearest])}."
        f"\n  {close if errors[nearest] < 1e-3 else ''}"
        "They keep gamma^t and have the step size and the baseline that they were made with, by "
        "default leave-one-out: is one of these different in your code?"
    )


def _times(times, name):
    """What a gradient that is a multiple of a candidate is, in two lines."""
    causes = {
        "the gradient of a loss, which is minimised": times < 0,
        "a sum where a mean belongs": abs(times) > 1.5,
        "a mean where a sum belongs": abs(times) < 1 / 1.5,
        "another scale": 1e-3 < abs(abs(times) - 1) and 1 / 1.5 <= abs(times) <= 1.5,
    }
    why = ", and ".join(cause for cause, is_it in causes.items() if is_it)
    return f"This is {times:.6g} × {name}: {why}.\n  {_named(name)}."


def _text_of_mean(first, names, distinct, errors):
    """The verdict on a mean of samples."""
    lines = [f"  may be {_named(name, f' (|z| = {errors[name]:.2f})')}" for name in names]
    lines = lines or ["  is none of the candidates."]
    others = [f"{name} (|z| = {errors[name]:.3g})" for name in distinct if name not in names]
    if others:
        lines.append("  is not " + ", ".join(others))
    return "\n".join([first, *lines])


def fit(target, *columns):
    """(c, error): target = Σ c x by least squares; the error is over the largest component.

    Zeros and an infinite error where a column is not finite or the first is zero.
    """
    x = np.stack([column.ravel() for column in columns], 1)
    if not (np.isfinite(x).all() and x[:, 0].any()):
        return np.zeros(len(columns)), np.inf
    size = abs(target).max()
    unit = abs(x).max(0)
    unit[unit == 0] = 1.0
    y = target.ravel() / size
    c = np.linalg.lstsq(x / unit, y, rcond=None)[0]
    error = abs(y - x / unit @ c).max()
    with np.errstate(over="ignore"):
        return c / unit * size, float(error)
