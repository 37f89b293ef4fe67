"""Is your meta-gradient right, and if not, which one is it?

`check_gradient` compares a gradient, from PyTorch, JAX or anything else, with what every estimator
must give on the same data (`estimators`) or with exact answers, and says which of them it is.
`surrogates` says what H₁, H₂ and H₁₂ are, the parts of the Hessian of J; `meta_gradients` tells (a)
from (b); and the score of the inner data is the gradient of their log-probability.
"""

from dataclasses import dataclass, replace
from itertools import product
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import NotFinite, require, require_array, validate
from metarl_np.check.advantages import explain_advantages
from metarl_np.check.estimators import (
    AVERAGES,
    Data,
    Explanation,
    LinearSteps,
    OwnSteps,
    _inner,
    _of_query,
    average_weights,
    bootstrapped_returns,
)
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import LinearPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS
from metarl_np.learner.returns import (
    gae,
    leave_one_out_baseline,
    reward_to_go,
    time_mean_baseline,
)
from metarl_np.meta.maml import centred_returns

# Verdicts are printed on any console: their texts keep to the characters of code page 1252, which
# has no Greek letters, no subscripts and no minus sign of its own.
STORED = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 1e-4}  # how far a right one may be off
NEGLIGIBLE = 1e-9  # a candidate so much smaller than the largest is zero but for rounding
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
    "policy gradient": "the gradient of J, with no inner step",
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
    some = isinstance(candidates, dict) and candidates
    require(some, "candidates", f"expected a dictionary, not empty, got {candidates!r:.99}")
    for name in candidates:
        require(isinstance(name, str), "candidates", f"{name!r:.99} is no name: expected strings")
    gradient = require_array("gradient", gradient)
    require(gradient.size, "gradient", f"it has no components: shape {gradient.shape}")
    first_names = {id(x): name for name, x in reversed(candidates.items())}
    given = {name: require_array(f"candidates, {name}", candidates[name]) for name in candidates}
    tolerance = max(tolerance, _rounding(gradient), *map(_rounding_of_type, given.values()))
    gradient = gradient.astype(float)
    require(np.isfinite(gradient).all(), "gradient", "not finite")
    known = {}
    for name, x in given.items():
        known[name] = x = x.astype(float)
        other = f"shape {gradient.shape}, where {name} has {x.shape}"
        require(x.shape == gradient.shape, "gradient", other)
        require(np.isfinite(x).all(), "candidates", f"{name} is not finite")

    limit = tolerance
    size = {name: abs(x).max() for name, x in known.items()}
    largest = max(size.values())
    unit = {name: max(x, NEGLIGIBLE * largest) for name, x in size.items()}
    if standard_error is not None:
        error = require_array("standard_error", standard_error, (), gradient.shape)
        good = (error >= 0) & np.isfinite(error)
        require(good.all(), "standard_error", "negative or not finite")
        limit = -NormalDist().inv_cdf((1 - confidence) / (2 * gradient.size))
        # A standard error is not taken to be below rounding.
        unit = {name: np.maximum(error, tolerance * x) for name, x in unit.items()}
    errors = {name: _largest_ratio(gradient - x, unit[name]) for name, x in known.items()}
    distinct = [name for name in known if first_names[id(candidates[name])] == name]
    names = tuple(name for name in distinct if errors[name] <= limit)
    told = {name: known[name] for name in distinct}
    if standard_error is not None:
        percent = f"{100 * confidence:.16g}%"
        about = f"largest |z| of {gradient.size} components up to {limit:.2f}"
        text = _text_of_mean(
            names, distinct, errors, f"At {percent} confidence ({about}) this mean"
        )
    else:
        text = _text(names, errors) if names else _text_of_none(gradient, told, errors, tolerance)
    return Verdict(names, errors, text)


def _rounding(gradient):
    """How far, relative to its largest component, a right gradient of these numbers may be off.

    That follows from the type in which it was computed. An array of float64 whose numbers all are
    float32 numbers holds the gradient of a float32 computation.
    """
    with np.errstate(over="ignore"):
        single = gradient.astype(np.float32)
    hidden = gradient.dtype != single.dtype and (single == gradient).all()
    return max(_rounding_of_type(gradient), STORED[single.dtype] if hidden else 0.0)


def _rounding_of_type(x):
    return STORED.get(x.dtype, 0.0)


def _largest_ratio(difference, unit):
    """max |difference| / unit, where 0 / 0 is 0, and anything else over 0 is infinite."""
    difference = abs(difference)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.where(difference == 0, 0.0, difference / unit).max())


def _named(name, how=""):
    """The name, how well it fits, and what it means, if it is one of ours."""
    return name + how + (f": {MEANING[name]}" if name in MEANING else "")


def _off(error):
    """A relative error in a form to read."""
    size = f"{error:.1e}" if error < 1e-3 else f"{error:.1%}" if error < 100 else f"{error:.2g} x"
    return f"{size} of its largest component"


def _text(names, errors):
    """The verdict on a gradient that is equal to candidates."""
    found = [_named(name, f" (off by {_off(errors[name])})") for name in names]
    if len(found) == 1:
        return f"This is {found[0]}."
    return "\n  ".join(["These coincide here, and it is each of them:", *found])


def _text_of_none(gradient, candidates, errors, tolerance):
    """The verdict on a gradient that is equal to no candidate: is it a multiple of one?"""
    multiples = []
    for name, x in candidates.items():
        times = _multiple(gradient, x, tolerance)
        if times and abs(times - 1) > 1e-3:
            multiples.append(f"{_times(times, name)}\n  {_named(name)}.")
    if multiples:
        return "\n".join(multiples)
    if not gradient.any():
        return "This gradient is zero everywhere, and no candidate is: does the loss reach theta?"
    nearest = min(candidates, key=errors.get)
    if errors[nearest] == np.inf:
        return f"This is none of the candidates: {nearest} is zero everywhere, the gradient is not."
    lines = [
        f"This is none of the candidates. The nearest is {nearest}, off by {_off(errors[nearest])}."
    ]
    if errors[nearest] < 1e-3:
        lines.append(f"That is more than the tolerance, {tolerance:.1g}: is it rounding?")
    lines.append(
        "They keep gamma^t and have the step size and the baseline that they were made with, by "
        "default leave-one-out: is one of these different in your code?"
    )
    return "\n  ".join(lines)


def _multiple(gradient, x, tolerance):
    """The number that x, a candidate, is to be multiplied with to give the gradient; or None."""
    if not (gradient.any() and x.any()):
        return None
    g = gradient / abs(gradient).max()
    unit = x / abs(x).max()
    times = (g * unit).sum() / (unit * unit).sum()
    if abs(g - times * unit).max() > tolerance:
        return None
    with np.errstate(over="ignore"):
        return times * abs(gradient).max() / abs(x).max()


def _times(times, name):
    """What a gradient that is a multiple of a candidate is, in one sentence."""
    why = ["the gradient of a loss, which is minimised"] if times < 0 else []
    if abs(times) > 1.5:
        why.append("a sum where a mean belongs")
    elif abs(times) < 1 / 1.5:
        why.append("a mean where a sum belongs")
    elif abs(abs(times) - 1) > 1e-3:
        why.append("another scale")
    return f"This is {times:.6g} × {name}: {', and '.join(why)}."


def _text_of_mean(names, distinct, errors, this_mean):
    """The verdict on a mean of samples."""
    lines = [f"  may be {_named(name, f' (|z| = {errors[name]:.2f})')}" for name in names]
    lines = lines or ["  is none of the candidates."]
    others = [f"{name} (|z| = {errors[name]:.3g})" for name in distinct if name not in names]
    if others:
        lines.append("  is not " + ", ".join(others))
    return "\n".join([this_mean, *lines])


# ---- what a code does, found by trying explanations

TERMS = {  # what factors may be, beside 1: of a number of tasks, episodes and steps
    "": lambda n, k, t: 1.0,
    "N: summed over tasks": lambda n, k, t: n,
    "1/N: divided by the tasks twice": lambda n, k, t: 1 / n,
    "T, the steps of an episode": lambda n, k, t: t,
    "1/T, T being the steps of an episode": lambda n, k, t: 1 / t,
    "K, the episodes of a task": lambda n, k, t: k,
    "1/K, K being the episodes of a task": lambda n, k, t: 1 / k,
    "K T, the steps of a task": lambda n, k, t: k * t,
    "1/(K T), K T being the steps of a task": lambda n, k, t: 1 / (k * t),
    "N K T, all steps": lambda n, k, t: n * k * t,
    "N K, all episodes": lambda n, k, t: n * k,
    "N T": lambda n, k, t: n * t,
    "N/T": lambda n, k, t: n / t,
    "N/(K T)": lambda n, k, t: n / (k * t),
}
AVERAGE_SAYS = {
    "episodes": "the mean over episodes of sums over time",
    "steps": "the mean over all steps of a task",
    "lengths": "the mean over episodes, each divided by its length",
    "sum": "the sum over all steps",
    "padding": "the mean over all steps and the padding as well",
}


@dataclass(frozen=True)
class Diagnosis:
    """What a gradient is: gradient = factor × the estimate. `str` says it in a paragraph."""

    estimators: tuple  # names, as many as coincide; none where nothing fits
    factor: float
    average: object  # of the query: one of AVERAGES, or a tuple where they coincide
    inner_average: object  # of the inner steps
    discounted: bool  # is gamma^t kept in the query?
    inner_discounted: bool
    steps: tuple  # the inner steps that act
    differentiated: tuple  # those that are differentiated through
    advantages: str  # a sentence
    findings: tuple  # clauses: what is unusual, whether it is a mistake, what is right
    error: float  # largest difference over the gradient's largest component
    runner_up: float  # the error of the next explanation
    tried: int  # the number of explanations tried
    text: str

    def __str__(self):
        return self.text

    def require(self, *estimators, **fields):
        """Raise AssertionError, with the diagnosis, unless it is one of the estimators.

        And unless each field has the value that is given, or one that coincides with it.
        """
        good = not estimators or bool(set(estimators) & set(self.estimators))
        for name, expected in fields.items():
            got = getattr(self, name)
            if isinstance(expected, float | int) and not isinstance(expected, bool):
                good &= bool(np.isclose(got, expected, rtol=1e-3))
            elif isinstance(got, tuple) and not isinstance(expected, tuple):
                good &= expected in got
            else:
                good &= got == expected
        if not good:
            wanted = [*estimators, *(f"{name}={x!r}" for name, x in fields.items())]
            raise AssertionError(f"expected {', '.join(map(str, wanted))}.\n{self.text}")


@dataclass(frozen=True)
class Alternative:
    """Advantages that a code may have used."""

    sentence: str
    of_record: object  # a function: record → (T, N, K)
    usual: bool = True  # is it tried in the first table?


@dataclass(frozen=True)
class _Trial:
    """An explanation and how well it fits."""

    explanation: Explanation
    error: float
    factor: float
    row: object = None  # of the second table
    coefficients: tuple = ()  # of the score, where they are fitted


class _Search:
    """Explanations, tried one after the other up to a limit."""

    def __init__(self, gradient, data, tolerance, limit):
        self.gradient = gradient
        self.size = abs(gradient).max()
        self.data = data
        self.tolerance = tolerance
        self.limit = limit
        self.trials = []
        self.seen = set()

    def full(self):
        return len(self.seen) >= self.limit

    def try_all(self, explanations, row=None):
        """Try each, unless it was tried; stops at the limit."""
        for e in explanations:
            if self.full():
                return
            if e not in self.seen:
                self.seen.add(e)
                self.trials.append(self.compared(e, self.estimate(e), row))

    def estimate(self, e):
        """The estimate of an explanation, infinite where its parameters run away."""
        try:
            with np.errstate(all="ignore"):
                return self.data.estimate(e)
        except NotFinite:
            return np.full(self.gradient.shape, np.inf)

    def compared(self, e, *columns_and_row):
        """The trial in which the gradient is a multiple of an estimate."""
        *columns, row = columns_and_row
        x = np.stack(columns, 1)
        with np.errstate(all="ignore"):
            good = np.isfinite(x).all() and x[:, 0].any()
            if not good:
                return _Trial(e, np.inf, 0.0, row)
            unit = abs(x).max(0)
            unit[unit == 0] = 1.0
            c = np.linalg.lstsq(x / unit, self.gradient, rcond=None)[0] / unit
            error = abs(self.gradient - x @ c).max() / self.size
        return _Trial(e, float(error), float(c[0]), row, tuple(c[1:] / c[0] if c[0] else c[1:]))

    def fits(self):
        """The trials that agree with the gradient."""
        return [t for t in self.trials if t.error <= self.tolerance]

    def refine(self, best, field):
        """Fit one number of a trial by Gauss and Newton's method, and keep the result."""
        row = field
        for _ in range(8):
            if self.full() or best.error <= self.tolerance / 100 or not np.isfinite(best.error):
                break
            e = best.explanation
            x = getattr(best.explanation, field)
            width = 1e-4 * (1 + abs(x))
            ends = [self.estimate(replace(e, **{field: x + d})) for d in (-width, width)]
            with np.errstate(invalid="ignore"):
                slope = (ends[1] - ends[0]) / (2 * width)
            middle = self.estimate(best.explanation)
            if not (np.isfinite(slope).all() and slope.any()):
                break
            columns = np.stack([middle, slope], 1)
            c = np.linalg.lstsq(columns, self.gradient, rcond=None)[0]
            if c[0] == 0:
                break
            new = self.at(e, field, float(x + c[1] / c[0]), row)
            if new.error > 0.7 * best.error and new.error > self.tolerance:
                break
            best = min(best, new, key=lambda trial: trial.error)
        self.trials.append(best)

    def at(self, e, field, x, row):
        """The trial with another number in one field."""
        e = replace(e, **{field: x})
        self.seen.add(e)
        return self.compared(e, self.estimate(e), row)


def _distinct(records, up_to_scale):
    """{the first of AVERAGES of its kind: those whose weights are the same in these data}."""
    groups = {}
    kinds = {}
    for name in AVERAGES:
        weights = np.concatenate([average_weights(r, name)[r.mask.any(0)] for r in records])
        weights = weights / weights.max() if up_to_scale else weights
        for known in kinds:
            if np.allclose(kinds[known], weights, rtol=1e-12, atol=0):
                groups[known].append(name)
                break
        else:
            kinds[name] = weights
            groups[name] = [name]
    return groups


def _patterns(acts):
    """(estimator, differentiated) for the steps that act: all of them first."""
    none = tuple(False for _ in acts)
    yield "first_order", none
    if not any(acts):
        return
    some = [tuple(p) for p in product((True, False), repeat=len(acts))]
    some = [p for p in some if any(p) and all(a or not d for a, d in zip(acts, p))]
    for name, pattern in product(ESTIMATORS[1:], some):
        yield name, pattern


class _Tables:
    """The rows of both tables for given data sets."""

    def __init__(self, data, alternatives):
        self.data = data
        self.alternatives = alternatives
        records = data.records
        self.n_steps = len(records) - 1
        self.inner = list(_distinct(records[:-1], False)) if self.n_steps else ["episodes"]
        self.outer = _distinct(records[-1:], True)
        self.kept = (True, False) if data.discount != 1 else (True,)
        self.order = tuple(range(len(records)))

    def base(self, **fields):
        all_steps = (True,) * self.n_steps
        start = dict(acts=all_steps, differentiated=all_steps, data=self.order)
        return Explanation(**start | fields)

    def consistent(self, advantages, query_advantages=None):
        """The same average inside and outside, all steps act and are differentiated, or none."""
        everything = (True,) * self.n_steps
        other = advantages if query_advantages is None else query_advantages
        for average, kept, name in product(self.inner, self.kept, ESTIMATORS):
            outer = next(o for o, names in self.outer.items() if average in names)
            through = everything if name != "first_order" else (False,) * self.n_steps
            e = self.base(
                estimator=name,
                differentiated=through,
                average=outer,
                inner_average=average,
                discounted=kept,
                inner_discounted=kept,
                advantages=advantages,
                query_advantages=other,
            )
            if name == "first_order" or self.n_steps:
                yield e
            if name == "dice" and all(r.last_values is not None for r in self.data.records):
                yield replace(e, baseline="bootstrapped")

    def everything(self, advantages):
        """Up to two things that differ from `consistent`."""
        all_acts = list(product((True, False), repeat=self.n_steps))
        inside = product(self.inner, self.kept, (1, -1), all_acts)
        for inner_average, inner_kept, sign, acts in inside:
            same = dict(inner_average=inner_average, inner_discounted=inner_kept, sign=sign)
            same |= dict(advantages=advantages, query_advantages=advantages, acts=acts)
            for (outer, names), kept in product(self.outer.items(), self.kept):
                odd = (sign < 0) + (not all(acts)) + (kept != inner_kept)
                odd += inner_average not in names
                for name, through in _patterns(acts):
                    partial = any(through) and through != acts
                    if odd + partial <= 2:
                        chosen = dict(estimator=name, differentiated=through)
                        yield self.base(average=outer, discounted=kept, **same, **chosen)


# (what it does to an explanation, the sentence): one more unknown
def _other_query(tables, e):
    for j in range(tables.n_steps):
        yield replace(e, data=e.data[:-1] + (j,))


def _other_data(tables, e):
    for data in product(range(tables.n_steps), repeat=tables.n_steps):
        yield replace(e, data=data + e.data[-1:])


def _other_in_one(tables, e):
    for i, alternative in enumerate(tables.alternatives):
        if alternative.usual:
            yield replace(e, query_advantages=i)
            yield replace(e, advantages=i)


def _other_advantages(tables, e):
    for i in range(len(tables.alternatives)):
        yield replace(e, advantages=i, query_advantages=i)


def _with_padding(tables, e):
    yield replace(e, inner_average="padding")


def _inside_product(tables, e):
    if e.estimator != "dice":
        return
    k = tables.data.records[0].mask.shape[2]
    for lam, wraps in product((1.0, 1 / k), (False, True)):
        inside = replace(e, inside=True, lam=lam, wraps=wraps, baseline="stopped")
        yield inside
        yield replace(inside, inner_average="padding")


def _descends(tables, e):
    yield replace(e, sign=-1)
    if e.score:
        yield replace(e, score="")


ROWS = {
    "query": (
        _other_query,
        "the query is the support set of step {query}: a mistake, as adapted "
        "parameters are to be judged by new data that they sampled",
    ),
    "data": (
        _other_data,
        "{taken}: a mistake, as each step needs new data, of the parameters adapted up to there",
    ),
    "advantages in one": (_other_in_one, ""),
    "advantages": (_other_advantages, ""),
    "padding": (
        _with_padding,
        "the inner mean is over the padding as well: a mistake unless all "
        "episodes are as long, as the step size then depends on the padding",
    ),
    "inside": (
        _inside_product,
        "the advantages stand inside DiCE's product, where a baseline "
        "biases even the first derivative: a mistake; the rewards belong there, and the "
        "baseline b outside, as (1 - box) b",
    ),
}
NUMBERS = {
    "scale": (
        (0.1, 1.0, 4.0),
        "the inner step size is {step_size:.6g}, not {given:.6g}: is it " "the outer one?",
    ),
    "momentum": (
        (0.0, 0.5, 0.9),
        "the inner steps have a momentum of {momentum:.4g}, which is "
        "differentiated through: a convention, but MAML's step is plain gradient ascent",
    ),
    "weight_decay": (
        (0.0, 0.01),
        "the inner steps have a weight decay of {weight_decay:.4g}: a "
        "convention, but MAML's step is plain gradient ascent",
    ),
    "lam": (
        (0.0, 0.5, 1.0),
        "lambda is {lam:.4g} in the product: a convention, between bias and " "variance",
    ),
}


def _changed_numbers(search, tables, bases):
    """Fit each number on top of those bases that come nearest at its first values."""
    for field, (starts, _) in NUMBERS.items():
        if field == "momentum" and tables.n_steps < 2:
            continue
        variants = bases
        if field == "lam":
            products = [e for e in bases if e.estimator in ("loaded_dice", "dice")]
            variants = [replace(e, inside=e.estimator == "dice") for e in products]
        first = product(variants, starts)
        tried = [search.at(e, field, x, field) for e, x in first if not search.full()]
        for trial in sorted(tried, key=lambda trial: trial.error)[:12]:
            search.refine(trial, field)


# how the score of the inner data stands in a gradient, beside (J - c) times all of it
SCORES = {
    "+score": None,
    "+raw": "the score's factor is J, without the other tasks' mean: right, but noisier",
    "+first": "the score is that of the first inner step only: a mistake, as the data of later "
    "steps depend on theta as well",
}


def _scores(search, tables, e):
    """Any coefficient for each task's score, or for the mean of its log-likelihoods."""
    data = search.data
    n = len(data.theta)
    if n + 4 > len(search.gradient):
        return
    for score in ("+fitted", "+fitted means"):
        scored = replace(e, score=score)
        if search.full() or scored in search.seen:
            return
        search.seen.add(scored)
        try:
            with np.errstate(all="ignore"):
                slope = data.slope(replace(_inner(e), **_of_query(e)))
                v, scores = data.back(scored, slope, with_scores=True)
        except NotFinite:
            return
        search.trials.append(search.compared(scored, v.mean(0), *scores / n, "score"))


def diagnose(
    gradient,
    theta,
    support,
    query,
    *,
    step_size,
    discount,
    policy=None,
    tolerance=None,
    max_explanations=20_000,
):
    """Diagnosis of a meta-gradient from any framework: what it is, in words.

    gradient, theta: arrays (F, A) of a policy of this package, or of any shape, or lists of arrays
    of any shapes, where the policy is one of your own. support: a list of `record`s, one for each
    inner step; query: one more. step_size: α. discount: γ. policy: a table of theta's shape by
    default; a SoftmaxPolicy or LogisticPolicy, with features perhaps; or an object with two
    methods, where θ (N, P) are the flat parameters of each task:

        scores(j, thetas)            ∇log π of the actions recorded in data set j, (T, N, K, P)
        hvp(j, thetas, weights, v)   Σ w_t ∇²log π v: weights (T, N, K), v (N, P) → (N, P)

    Advantages are those of the records; where these have none they are derived, and the usual ones
    are tried. tolerance: relative to the largest component; by default it follows from the type of
    the gradient's numbers and the size of the sums. max_explanations: where the search stops.
    Raises ValueError on what does not fit, by name.
    """
    step_size, discount = validate(step_size=step_size, discount=discount)
    max_explanations = validate(max_explanations=max_explanations)
    if tolerance is not None:
        tolerance = validate(tolerance=tolerance)
    gradient = _flat("gradient", gradient)
    single = _rounding(gradient) > 0
    flat = _flat("theta", theta)
    same = f"{gradient.size} numbers, where theta has {flat.size}"
    require(gradient.size == flat.size, "gradient", same)
    require(gradient.any(), "gradient", "zero everywhere: does the loss reach theta?")
    good = isinstance(support, (list, tuple))
    good = good and all(isinstance(e, RecordedEpisodes) for e in (*support, query))
    expected = "expected a list of `record`s, one for each inner step, and one `record`"
    require(good, "support, query", expected)
    records = [*support, query]
    n_tasks = query.mask.shape[1]
    for j, r in enumerate(support):
        tasks = r.mask.shape[1]
        require(tasks == n_tasks, f"support[{j}]", f"{tasks} tasks, where query has {n_tasks}")
    steps = _steps_of(policy, theta, records)
    alternatives = _alternatives(records, discount)
    thetas = np.repeat(flat[None].astype(float), n_tasks, 0)
    data = Data(steps, thetas, records, alternatives, step_size, discount)
    if tolerance is None:
        terms = sum(r.mask.sum() for r in records)
        tolerance = SINGLE * (40 + 4 * terms**0.5) if single else 1e-6
    for j, r in enumerate(records):
        steps.gradient(j, thetas, r.mask * 1.0)  # raises where the user's functions do not fit
    search = _Search(gradient.astype(float), data, tolerance, max_explanations)
    tables = _Tables(data, alternatives)
    _look_for_it(search, tables)
    return _diagnosis(search, tables)


@dataclass(frozen=True)
class Step:
    """What leads from θ to θ': `str` says it in a paragraph."""

    step_size: float  # of ascent; negative where it descends, 0 where it has no effect
    average: object  # one of AVERAGES, or a tuple where they coincide; None where nothing fits
    discounted: bool  # is gamma^t kept?
    advantages: str  # a sentence
    weight_decay: float
    error: float  # the largest difference over the largest move
    tried: int
    text: str

    def __str__(self):
        return self.text


def explain_step(theta, adapted, record, *, discount, step_size=None, policy=None):
    """Which step size, average, γᵗ and advantages lead from θ to the adapted θ': a Step.

    θ' = θ + α Σ w_t ∇log π(a_t|s_t), with weights w_t as `diagnose` tries them. theta: as there, or
    with a task axis in front, where it is adapted already. adapted: θ' with the task axis in front;
    or, where it was not kept, the `record` of the data that it sampled, with their log_probs.
    record: the data of the step. step_size: α as you meant it. Raises ValueError, by name.
    """
    discount = validate(discount=discount)
    if step_size is not None:
        step_size = validate(step_size=step_size)
    require(isinstance(record, RecordedEpisodes), "record", f"no `record`: {record!r:.99}")
    by_log_probs = isinstance(adapted, RecordedEpisodes)
    records = [record, adapted] if by_log_probs else [record]
    n_tasks = record.mask.shape[1]
    one = np.asarray(_flat("theta", theta))  # of one task, in the shape that its policy has
    if not isinstance(theta, (list, tuple)) and np.ndim(theta) == (2 if _is_own(policy) else 3):
        one = np.asarray(theta)[0]
    elif not _is_own(policy):
        one = require_array("theta", theta)
    steps = _steps_of(policy, one, records)
    start = _per_task("theta", theta, n_tasks, one.size)
    if by_log_probs:
        known = adapted.log_probs is not None and steps.log_probs is not None
        require(known, "adapted", "a record without log_probs, or a policy that gives none")
        move = adapted.log_probs - steps.log_probs(1, start) * adapted.mask
    else:
        move = _per_task("adapted", adapted, n_tasks, one.size) - start
    if abs(move).max() <= 1e-7 * (0.0 if by_log_probs else abs(start).max()) + 1e-12:
        text = (
            "The step has no effect: a mistake. Does the optimiser step a copy, or is .grad None?"
        )
        return Step(0.0, None, None, "unknown", 0.0, 0.0, 1, text)
    alternatives = _alternatives([record], discount)
    data = Data(steps, start, records, alternatives, 1.0, discount)
    averages = _distinct([record], False)
    kept = (True, False) if discount != 1 else (True,)
    found = []
    for i, average, discounted in product(range(len(alternatives)), averages, kept):
        g = steps.gradient(0, start, data.weights(0, i, average, discounted))
        for decays in (False,) if by_log_probs else (False, True):
            fit = (
                _length(steps, start, g, move, adapted)
                if by_log_probs
                else _multiples(move, g, start, decays)
            )
            size, decay, error = fit
            meant = step_size is None or np.isclose(abs(size), step_size, rtol=1e-3)
            usual = (decays, not meant, size < 0, i, average != "episodes", not discounted)
            found.append((error > 1e-4, usual, error, size, decay, average, discounted, i))
    return _step(min(found), averages, alternatives, step_size, len(found))


def _per_task(name, x, n_tasks, size):
    """Parameters (N, P) of those that tasks share, or of each task's."""
    flat = _flat(name, x).astype(float)
    fits = flat.size in (size, n_tasks * size)
    require(fits, name, f"{flat.size} numbers, where {n_tasks} tasks have {size} parameters each")
    return np.repeat(flat[None], n_tasks, 0) if flat.size == size else flat.reshape(n_tasks, size)


def _multiples(move, g, start, decays):
    """(size, decay, error) of move = size (g - decay θ)."""
    columns = [g.ravel(), start.ravel()] if decays else [g.ravel()]
    x = np.stack(columns, 1)
    c = np.linalg.lstsq(x, move.ravel(), rcond=None)[0]
    error = abs(x @ c - move.ravel()).max() / abs(move).max()
    decay = -c[1] / c[0] if decays and c[0] else 0.0
    return float(c[0]), float(decay), float(error)


def _length(steps, start, g, move, adapted):
    """(size, 0, error): the step along g that leads to the recorded log-probabilities."""
    size = 0.0
    mask = adapted.mask
    with np.errstate(all="ignore"):
        for _ in range(30):
            here = start + size * g
            off = (adapted.log_probs - steps.log_probs(1, here)) * mask
            slope = steps.along(1, here, g) * mask
            change = (off * slope).sum() / max((slope * slope).sum(), 1e-300)
            if not np.isfinite(change) or abs(change) <= 1e-12 * abs(size):
                break
            size += change
    return float(size), 0.0, float(np.nan_to_num(abs(off).max() / abs(move).max(), nan=np.inf))


def _step(best, averages, alternatives, step_size, tried):
    """The Step of the best of all that were tried."""
    nothing, _, error, size, decay, average, discounted, i = best
    if nothing:
        text = (
            f"None of the {tried} explanations tried leads there; the nearest, {size:.4g} times "
            f"{AVERAGE_SAYS[average]}, is {error:.1%} off. Is it another optimiser, or other data?"
        )
        return Step(size, None, None, "unknown", 0.0, error, tried, text)
    names = averages[average]
    kept = "kept" if discounted else "dropped"
    lines = [
        f"It is a step of {size:.6g} along {AVERAGE_SAYS[average]}, gamma^t {kept}. Advantages: "
        f"{alternatives[i].sentence}."
    ]
    if size < 0:
        lines.append("It descends: a mistake, its sign is wrong.")
    if step_size is not None and not np.isclose(abs(size), step_size, rtol=1e-3):
        lines.append(f"The step size is not {step_size:g}: is it the outer one, or another mean?")
    if decay:
        lines.append(f"It has a weight decay of {decay:.4g}.")
    lines.append(f"It agrees to {error:.1e} ({tried} explanations tried).")
    average = names[0] if len(names) == 1 else tuple(names)
    advantages = alternatives[i].sentence
    return Step(size, average, discounted, advantages, decay, error, tried, " ".join(lines))


SINGLE = float(np.finfo(np.float32).eps)


def _flat(name, x):
    """An array, or a list of arrays of any shapes, as one flat array."""
    are_parts = isinstance(x, (list, tuple)) and x and all(hasattr(p, "shape") for p in x)
    parts = x if are_parts else [x]
    parts = [require_array(name, part).ravel() for part in parts]
    flat = np.concatenate(parts)
    require(flat.size, name, "it has no components")
    require(np.isfinite(flat).all(), name, "not finite")
    return flat


def _is_own(policy):
    return all(callable(getattr(policy, name, None)) for name in ("scores", "hvp"))


def _steps_of(policy, theta, records):
    """LinearSteps or OwnSteps; raises ValueError where policy and records do not fit."""
    if _is_own(policy):
        return OwnSteps(policy, records)
    if policy is None:
        shape = np.shape(theta)
        require(len(shape) == 2, "theta", f"expected shape (S, A), got {shape}")
        policy = SoftmaxPolicy(*shape)
    linear = isinstance(policy, LinearPolicy)
    require(linear, "policy", f"{policy!r:.99} has no methods scores and hvp")
    shape = np.shape(theta)
    require(shape == policy.shape, "theta", f"expected shape {policy.shape}, got {shape}")
    names = [f"support[{j}]" for j in range(len(records) - 1)] + ["query"]
    for name, r in zip(names, records):
        require(r.discrete, name, "states and actions are missing, which this policy needs")
        for what, x, size in (
            ("states", r.states, policy.n_states),
            ("actions", r.actions, policy.n_actions),
        ):
            inside = x.min() >= 0 and x.max() < size
            require(inside, name, f"{what} outside 0..{size - 1}")
    return LinearSteps(policy, records)


def _look_for_it(search, tables):
    """From what is usual to what is not, until something fits."""
    usual = [i for i, a in enumerate(tables.alternatives) if a.usual]
    given = tables.data.records[-1].advantages is not None
    for i in [0] if given else usual:
        search.try_all(tables.consistent(i))
        if search.fits():
            return
    ranked = sorted(search.trials, key=lambda trial: trial.error)
    nearest = dict.fromkeys(trial.explanation.advantages for trial in ranked)
    first = list(dict.fromkeys([*([0] if given else usual[:2]), *list(nearest)[:2]]))
    plausible = [e for i in first for e in tables.consistent(i)]

    def one_more(bases):
        """The second table: one more unknown on top of each base."""
        for name in ROWS:
            if name != "advantages":
                yield lambda: [search.try_all(ROWS[name][0](tables, e), name) for e in bases]
        yield lambda: [_scores(search, tables, e) for e in bases]
        yield lambda: _changed_numbers(search, tables, bases)
        yield lambda: [search.try_all(_other_advantages(tables, e), "advantages") for e in bases]

    def stages():
        for score in SCORES:
            yield lambda: search.try_all([replace(e, score=score) for e in plausible])
        yield lambda: search.try_all(tables.everything(first[0]))
        yield from one_more(plausible)
        for i in first[1:]:
            yield lambda: search.try_all(tables.everything(i))
        near = sorted(search.trials, key=lambda trial: trial.error)[:10]
        yield from one_more([trial.explanation for trial in near])

    for stage in stages():
        if not search.full():
            stage()
        if search.fits():
            return


def _whole_return(r, discount):
    return reward_to_go(r.rewards, discount)[:1] * r.mask


def _last_steps(mask):
    """True at the last step of each episode."""
    return mask & ~np.concatenate([mask[1:], np.zeros_like(mask[:1])])


def _shifted(r, discount, by):
    """G of rewards that stand at another step: by 1 at the step before, by -1 at the one after."""
    rewards = np.roll(r.rewards, -by, 0)
    rewards[-1 if by > 0 else 0] = 0
    return reward_to_go(rewards * r.mask, discount) * r.mask


# (sentence, what a record must have, advantages of record and discount, is it usual?)
ADVANTAGES = [
    ("as given", "advantages", lambda r, discount: r.advantages, True),
    (
        "G less the recorded baseline",
        "baseline",
        lambda r, discount: reward_to_go(r.rewards, discount) - r.baseline,
        True,
    ),
    (
        "G less the given values",
        "values",
        lambda r, discount: reward_to_go(r.rewards, discount) - r.values,
        True,
    ),
    (
        "G less the given values, with V(s_T) bootstrapped",
        "V and V(s_T)",
        lambda r, discount: gae(
            r.rewards, r.values, r.mask, r.last_values, discount=discount, lam=1.0
        ),
        True,
    ),
    (
        "G less the mean of the other episodes",
        "others",
        lambda r, discount: _less(leave_one_out_baseline, r, discount),
        True,
    ),
    ("G, with no baseline", "", lambda r, discount: reward_to_go(r.rewards, discount), True),
    *(
        (
            f"GAE of the given values, lambda {lam:g}" + ", with V(s_T) bootstrapped" * bool(ends),
            "V and V(s_T)" if ends else "values",
            lambda r, discount, lam=lam, ends=ends: gae(
                r.rewards,
                r.values,
                r.mask,
                r.last_values if ends else np.zeros(r.mask.shape[1:]),
                discount=discount,
                lam=lam,
            ),
            False,
        )
        for lam, ends in product((0.9, 0.95, 0.97, 0.99), (False, True))
    ),
    ("G with V(s_T) bootstrapped, and no baseline", "last_values", bootstrapped_returns, False),
    (
        "G less the mean over all episodes, which contains the episode itself (harmless but for a "
        "factor 1 - 1/K)",
        "others",
        lambda r, discount: _less(time_mean_baseline, r, discount),
        True,
    ),
    (
        "the whole return G_0 at each step, which is right but noisy: what was paid before an "
        "action does not depend on it",
        "",
        _whole_return,
        False,
    ),
    (
        "the whole return G_0 less the mean of the other episodes at each step, which is noisy: "
        "what was paid before an action does not depend on it",
        "others",
        lambda r, discount: _less(leave_one_out_baseline, r, discount)[:1] * np.ones(r.mask.shape),
        False,
    ),
    (
        "those of the last step of each episode only: a mistake, dones stand where a mask belongs; "
        "there G less the mean of the other episodes",
        "others",
        lambda r, discount: _less(leave_one_out_baseline, r, discount) * _last_steps(r.mask),
        False,
    ),
    (
        "those of the last step of each episode only: a mistake, dones stand where a mask belongs; "
        "there G, with no baseline",
        "",
        lambda r, discount: reward_to_go(r.rewards, discount) * _last_steps(r.mask),
        False,
    ),
    *(
        (
            f"G of rewards that are shifted by one, r_(t{by:+d}) in the place of r_t (a mistake)"
            + ", less the mean of the other episodes" * others,
            "others" if others else "",
            lambda r, discount, by=by, others=others: _shifted(r, discount, by)
            - (leave_one_out_baseline(_shifted(r, discount, by)) if others else 0),
            False,
        )
        for by, others in product((1, -1), (False, True))
    ),
]
STANDARDISED = {  # how: (power of the variance, ddof, the axes of the mean)
    "centred": (0, 0, (0, 2)),
    "centred and divided by the standard deviation of the task": (0.5, 0, (0, 2)),
    "centred and divided by the standard deviation (ddof = 1) of the task": (0.5, 1, (0, 2)),
    "centred and divided by the standard deviation of the batch": (0.5, 0, (0, 1, 2)),
    "centred and divided by the standard deviation (ddof = 1) of the batch": (0.5, 1, (0, 1, 2)),
    "centred and divided by the variance of the task, a mistake for the standard deviation": (
        1,
        0,
        (0, 2),
    ),
    "centred and divided by the variance (ddof = 1) of the task, a mistake for the standard "
    "deviation": (1, 1, (0, 2)),
}


def _less(baseline, r, discount):
    g = reward_to_go(r.rewards, discount)
    return g - baseline(g)


def _standardised(x, mask, power, ddof, axes):
    n = mask.sum(axes, keepdims=True)
    centred = (x - (x * mask).sum(axes, keepdims=True) / n) * mask
    variance = (centred**2).sum(axes, keepdims=True) / np.maximum(n - ddof, 1)
    return centred / np.maximum(variance, 1e-300) ** power


def _has(r, what):
    """Has a record what advantages are made from?"""
    if what == "others":
        return r.mask.shape[2] > 1
    if what == "V and V(s_T)":
        return r.values is not None and r.last_values is not None
    return not what or getattr(r, what) is not None


def _alternatives(records, discount):
    """The advantages that a code may have used, the given or the most usual first."""
    rows = [row for row in ADVANTAGES if all(_has(r, row[1]) for r in records)]

    def alternative(row, gamma, how=None):
        sentence, _, of_record, usual = row
        if gamma != discount:
            sentence += f", with gamma = 1 in the place of {discount:g} (a mistake, if not meant)"
        if how is None:
            return Alternative(sentence, lambda r: of_record(r, gamma) * r.mask, usual)
        numbers = STANDARDISED[how]
        usual = usual and numbers[0] == 0.5 and gamma == discount
        return Alternative(
            f"{sentence}, {how}",
            lambda r: _standardised(of_record(r, gamma), r.mask, *numbers),
            usual,
        )

    found = [alternative(row, discount) for row in rows]
    if discount != 1:
        found += [alternative(row, 1.0) for row in rows if row[1] != "advantages"]
    for row in rows:
        # standardised, what is less the mean over all episodes is what is less that of the others
        if row[3] and row[1] != "advantages" and "itself" not in row[0]:
            found += [alternative(row, discount, how) for how in STANDARDISED]
    return found


def _factors(tables, trial):
    """(average's names, factor, what it is or None) for each outer average, the best first."""
    e = trial.explanation
    query = tables.data.records[e.data[-1]]
    n, k = query.mask.shape[1:]
    t = query.mask.sum(0).mean()
    groups = _distinct([query], False)
    rows = []
    reference = average_weights(query, e.average)[query.mask.any(0)]
    for names in groups.values():
        weights = average_weights(query, names[0])[query.mask.any(0)]
        ratio = reference / weights
        if np.allclose(ratio, ratio[0], rtol=1e-10):
            factor = trial.factor * ratio[0]
            terms = [
                (i, what)
                for i, (what, term) in enumerate(TERMS.items())
                if np.isclose(
                    abs(factor), term(n, k, t), rtol=min(max(3 * trial.error, 1e-6), 0.01)
                )
            ]
            rank, what = terms[0] if terms else (len(TERMS), None)
            same = e.inner_average in names
            rows.append(((rank > 1, not same, rank), tuple(names), factor, what))
    return min(rows)[1:]


def _diagnosis(search, tables):
    fits = search.fits()
    tried = len(search.seen)
    if not fits:
        return _none(search, tables, tried)
    ranked = sorted(fits, key=lambda trial: _oddity(tables, trial))
    best = ranked[0]
    e = best.explanation
    names, factor, what = _factors(tables, best)

    def alike(other):
        free = dict(estimator="", differentiated=(), lam=1.0, baseline="", score="")
        return replace(other, **free) == replace(e, **free)

    same = [t.explanation for t in ranked if alike(t.explanation)]
    order = [name + score for score in ("", "+score") for name in ESTIMATORS]
    found = {x.estimator + "+score" * bool(x.score) for x in same}
    estimators = tuple(name for name in order if name in found)
    if not any(e.acts):
        estimators = ("policy gradient",)
    others = [t.error for t in search.trials if t.error > search.tolerance]
    runner_up = min(others, default=np.inf)
    inner = _distinct([tables.data.records[j] for j in e.data[:-1]], False) if e.data[1:] else {}
    inner_names = next((tuple(g) for g in inner.values() if e.inner_average in g), None)
    inner_names = inner_names or (e.inner_average,)
    findings = tuple(_findings(tables, best, names, inner_names, factor, what, estimators))
    advantages = _of_advantages(tables, e)
    average = names[0] if len(names) == 1 else names
    text = _paragraph(estimators, average, e, advantages, findings, best.error, runner_up, tried)
    return Diagnosis(
        estimators=estimators,
        factor=factor,
        average=average,
        inner_average=inner_names[0] if len(inner_names) == 1 else inner_names,
        discounted=e.discounted,
        inner_discounted=e.inner_discounted,
        steps=tuple(i for i, acts in enumerate(e.acts) if acts),
        differentiated=tuple(i for i, d in enumerate(e.differentiated) if d),
        advantages=advantages,
        findings=findings,
        error=best.error,
        runner_up=runner_up,
        tried=tried,
        text=text,
    )


def _of_advantages(tables, e):
    """A sentence on the query's advantages, and on what they are where they were given."""
    query = tables.data.records[-1]
    sentence = tables.alternatives[e.query_advantages].sentence
    if e.query_advantages or query.advantages is None:
        return sentence
    return f"{sentence}: {explain_advantages(query, discount=tables.data.discount)}"


def _oddity(tables, trial):
    """How much is unusual: of what fits the least unusual is believed."""
    e = trial.explanation
    names, factor, what = _factors(tables, trial)
    partial = any(e.differentiated) and e.differentiated != e.acts
    odd = (
        2 * (trial.row is not None)
        + (not all(e.acts))
        + partial
        + (e.sign < 0)
        + (e.inner_average not in names)
        + (e.inner_discounted != e.discounted)
        + (what is None)
        + 0.5 * bool(what)
        + 0.5 * bool(e.score)
        + 0.25 * (e.advantages > 0)
        + 0.25 * (e.query_advantages != e.advantages)
    )
    return odd, e.advantages, ESTIMATORS.index(e.estimator), not e.discounted


def _findings(tables, trial, names, inner_names, factor, what, estimators):
    """The clauses of a diagnosis."""
    e = trial.explanation
    data = tables.data
    if factor < 0:
        yield "the sign is that of a loss, which is minimised: a convention"
    if what:
        yield f"the factor is {what}: harmless but for the size of the outer step"
    elif what is None:
        yield f"the factor {factor:.4g} has no name: is a number multiplied with the loss?"
    if not e.discounted or not e.inner_discounted:
        where = (
            "inside and outside"
            if e.discounted == e.inner_discounted
            else ("in the inner steps only" if e.discounted else "in the query only")
        )
        yield (
            f"gamma^t is dropped {where}: as most public code does; what comes of it is the "
            "gradient of nothing in particular"
        )
    if any(e.acts) and not set(inner_names) & set(names):
        yield (
            f"the inner loss is {AVERAGE_SAYS[inner_names[0]]}, the outer one "
            f"{AVERAGE_SAYS[names[0]]}: harmless, but the inner step size then means another "
            "thing than it seems to"
        )
    if tables.n_steps and not any(e.acts):
        yield "no inner step has an effect: a mistake, this is the policy gradient"
    elif not all(e.acts):
        missing = [str(i) for i, acts in enumerate(e.acts) if not acts]
        yield f"inner step {', '.join(missing)} has no effect: a mistake"
    if any(e.differentiated) and e.differentiated != e.acts:
        cut = [str(i) for i, (a, d) in enumerate(zip(e.acts, e.differentiated)) if a and not d]
        yield (
            f"inner step {', '.join(cut)} is not differentiated through: a mistake, unless "
            "first-order MAML was meant for all steps"
        )
    if e.sign < 0:
        yield "the inner steps descend: a mistake, their sign is wrong"
    if e.query_advantages != e.advantages:
        yield (
            f"the advantages inside are {tables.alternatives[e.advantages].sentence}, those of "
            f"the query {tables.alternatives[e.query_advantages].sentence}: are both meant?"
        )
    if trial.row == "inside" and _are_rewards(tables, e):
        yield "the rewards stand inside DiCE's product, without a baseline: right, but noisy"
    elif trial.row in ROWS and ROWS[trial.row][1]:
        moved = [f"step {i} takes the data set {j}" for i, j in enumerate(e.data[:-1]) if i != j]
        yield ROWS[trial.row][1].format(query=e.data[-1], taken=", ".join(moved))
    if trial.row in NUMBERS:
        yield NUMBERS[trial.row][1].format(
            step_size=e.scale * data.step_size,
            given=data.step_size,
            momentum=e.momentum,
            weight_decay=e.weight_decay,
            lam=e.lam,
        )
    if SCORES.get(e.score):
        yield SCORES[e.score]
    yield from _of_log_probs(data, e)
    if e.wraps:
        yield "index -1 wraps around to the last step: a mistake, the sum begins at 0"
    if e.inside and e.lam != 1 and trial.row != "lam":
        yield f"the product decays with {e.lam:.4g}"
    if trial.row == "score":
        scale = trial.factor / factor
        numbers = ", ".join(f"{scale * c:.3g}" for c in trial.coefficients)
        of = "the mean of the log-likelihoods" if "means" in e.score else "the log-likelihood"
        centred = ", ".join(f"{c:.3g}" for c in data.query_returns(centred_returns))
        yield (
            f"it has a score term with the coefficients {numbers} per task of {of}, where J - c, "
            f"{centred}, belongs: a mistake; the score is a sum over all episodes and steps, "
            "and its factor is the task's mean return less that of the others"
        )


def _of_log_probs(data, e):
    """Clauses on recorded log-probabilities that are not those of the path."""
    if data.steps.log_probs is None:
        return
    thetas = data.path(_inner(e))
    for j, r in enumerate(data.records):
        if r.log_probs is not None:
            off = abs(data.steps.log_probs(j, thetas[j]) - r.log_probs)[r.mask].max(initial=0.0)
            if off > 1e-4:
                name = "query" if j == len(thetas) - 1 else f"support[{j}]"
                yield (
                    f"the log_probs of {name} are not those of the parameters that these inner "
                    f"steps lead to, but off by up to {off:.2g}: the data come from other "
                    "parameters than the loss differentiates; explain_step says which"
                )


def _are_rewards(tables, e):
    """Are the advantages the rewards, but for what is bootstrapped at the last step?"""
    r = tables.data.records[-1]
    a = tables.alternatives[e.query_advantages].of_record(r)
    followed = r.mask[1:]
    return np.allclose(a[:-1][followed], r.rewards[:-1][followed])


def _paragraph(estimators, average, e, advantages, findings, error, runner_up, tried):
    said = "; ".join(f"{name}, {MEANING[name]}" for name in estimators)
    if len(estimators) > 1:
        said = "these, which coincide in the given data: " + said
    steps = [str(i) for i, acts in enumerate(e.acts) if acts]
    about = f"Steps that act: {', '.join(steps) or 'none'}. "
    one = average if isinstance(average, str) else average[0]
    mean = f"It is {AVERAGE_SAYS[one]}"
    if not isinstance(average, str):
        mean += f" ({' and '.join(average)} coincide in these data)"
    kept = "kept" if e.discounted else "dropped"
    lines = [
        f"This is {said}.",
        f"{about}{mean}, with gamma^t {kept}. Advantages: {advantages.rstrip('.')}.",
        *(f"- {finding}." for finding in findings),
        f"It agrees to {error:.1e}; the next is {runner_up:.1%} off ({tried} explanations tried).",
    ]
    return "\n".join(lines)


def _none(search, tables, tried):
    nearest = min(search.trials, key=lambda trial: trial.error)
    e = nearest.explanation
    names, factor, what = _factors(tables, nearest)
    text = (
        f"None of the {tried} explanations tried fits. The nearest by direction is "
        f"{factor:.4g} x {e.estimator}{e.score}, {nearest.error:.1%} off, with the "
        f"{'/'.join(names)} average, gamma^t {'kept' if e.discounted else 'dropped'} and "
        f"advantages: {tables.alternatives[e.query_advantages].sentence}. Tried were all "
        "estimators, averages, gamma^t, steps and signs, and one more unknown."
    )
    if search.full():
        text += " The search stopped at max_explanations."
    return Diagnosis(
        estimators=(),
        factor=factor,
        average=None,
        inner_average=None,
        discounted=None,
        inner_discounted=None,
        steps=(),
        differentiated=(),
        advantages="unknown",
        findings=(),
        error=nearest.error,
        runner_up=nearest.error,
        tried=tried,
        text=text,
    )
