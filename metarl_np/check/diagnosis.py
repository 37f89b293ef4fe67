"""Is your meta-gradient right, and if not, which one is it?

`diagnose` says what a gradient from any framework is: `explanations` tries what a code may do, and
FINDINGS holds a clause for each thing that is unusual. `explain_step` does the same for one inner
step. `check_gradient` compares a gradient with given candidates: with what every estimator must
give on the same data (`estimators`), or with exact answers.

`surrogates` says what H₁, H₂ and H₁₂ are, the parts of the Hessian of J; `meta_gradients` tells (a)
from (b); and the score of the inner data is the gradient of their log-probability.
"""

from dataclasses import dataclass, replace
from itertools import product
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.advantages import explain_advantages
from metarl_np.check.estimators import (
    Data,
    LinearSteps,
    OwnSteps,
    average_weights,
    forward,
    require_records,
)
from metarl_np.check.explanations import (
    Search,
    alternatives,
    distinct_averages,
    fit,
    oddities,
)
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import LinearPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS
from metarl_np.meta.maml import centred_returns

# Verdicts are printed on any console: their texts keep to the characters of code page 1252, which
# has no Greek letters, no subscripts and no minus sign of its own.
STORED = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 1e-4}  # how far a right one may be off
SINGLE = float(np.finfo(np.float32).eps)
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
    gradient, known, rounding = _comparable(gradient, candidates)
    tolerance = max(tolerance, rounding)
    first_names = {id(x): name for name, x in reversed(candidates.items())}
    distinct = [name for name in known if first_names[id(candidates[name])] == name]

    size = {name: abs(x).max() for name, x in known.items()}
    floor = NEGLIGIBLE * max(size.values())
    unit = {name: max(x, floor) for name, x in size.items()}
    limit = tolerance
    if standard_error is not None:
        error = _standard_error(standard_error, gradient.shape)
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
        text = _text(names, errors)
    else:
        told = {name: known[name] for name in distinct}
        text = _text_of_none(gradient, told, errors, tolerance)
    return Verdict(names, errors, text)


def _comparable(gradient, candidates):
    """The gradient and the candidates as float64, and how far rounding may put them apart."""
    some = isinstance(candidates, dict) and candidates
    require(some, "candidates", f"expected a dictionary, not empty, got {candidates!r:.99}")
    for name in candidates:
        require(isinstance(name, str), "candidates", f"{name!r:.99} is no name: expected strings")
    given = {name: require_array(f"candidates, {name}", x) for name, x in candidates.items()}
    gradient = require_array("gradient", gradient)
    require(gradient.size, "gradient", f"it has no components: shape {gradient.shape}")
    rounding = max(_rounding(gradient), *map(_rounding_of_type, given.values()))
    gradient = gradient.astype(float)
    known = {name: x.astype(float) for name, x in given.items()}
    require(np.isfinite(gradient).all(), "gradient", "not finite")
    for name, x in known.items():
        other = f"shape {gradient.shape}, where {name} has {x.shape}"
        require(x.shape == gradient.shape, "gradient", other)
        require(np.isfinite(x).all(), "candidates", f"{name} is not finite")
    return gradient, known, rounding


def _standard_error(error, shape):
    """A standard error as an array, of that shape or one number."""
    error = require_array("standard_error", error, (), shape)
    good = (error >= 0) & np.isfinite(error)
    require(good.all(), "standard_error", "negative or not finite")
    return error


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
    if not gradient.any():
        return "This gradient is zero everywhere, and no candidate is: does the loss reach theta?"
    fits = {name: fit(gradient, x) for name, x in candidates.items()}
    factors = {name: c[0] for name, (c, error) in fits.items() if error <= tolerance}
    multiples = [_times(c, name) for name, c in factors.items() if c and abs(c - 1) > 1e-3]
    if multiples:
        return "\n".join(multiples)
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


# ---- what a code does, found by trying explanations

# what a factor may be, beside 1: powers of N tasks, K episodes of a task, T steps of an episode
TERMS = {
    "": (0, 0, 0),
    "N: summed over tasks": (1, 0, 0),
    "1/N: divided by the tasks twice": (-1, 0, 0),
    "T, the steps of an episode": (0, 0, 1),
    "1/T, T being the steps of an episode": (0, 0, -1),
    "K, the episodes of a task": (0, 1, 0),
    "1/K, K being the episodes of a task": (0, -1, 0),
    "K T, the steps of a task": (0, 1, 1),
    "1/(K T), K T being the steps of a task": (0, -1, -1),
    "N K T, all steps": (1, 1, 1),
    "N K, all episodes": (1, 1, 0),
    "N T": (1, 0, 1),
    "N/T": (1, 0, -1),
    "N/(K T)": (1, -1, -1),
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

    factor: float
    error: float  # largest difference over the gradient's largest component
    runner_up: float  # the error of the next explanation
    tried: int  # the number of explanations tried
    text: str
    estimators: tuple = ()  # names, as many as coincide; none where nothing fits
    average: object = None  # of the query: one of AVERAGES, or a tuple where they coincide
    inner_average: object = None  # of the inner steps
    discounted: bool = None  # is gamma^t kept in the query?
    inner_discounted: bool = None
    steps: tuple = ()  # the inner steps that act
    differentiated: tuple = ()  # those that are differentiated through
    advantages: str = "unknown"  # a sentence
    findings: tuple = ()  # clauses: what is unusual, whether it is a mistake, what is right

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
    tolerance = None if tolerance is None else validate(tolerance=tolerance)
    gradient = _flat("gradient", gradient)
    flat = _flat("theta", theta)
    same = f"{gradient.size} numbers, where theta has {flat.size}"
    require(gradient.size == flat.size, "gradient", same)
    require(gradient.any(), "gradient", "zero everywhere: does the loss reach theta?")
    named = require_records(support, query)
    records = list(named.values())
    n_tasks = query.mask.shape[1]
    for name, r in named.items():
        tasks = r.mask.shape[1]
        require(tasks == n_tasks, name, f"{tasks} tasks, where query has {n_tasks}")
    steps = _steps_of(policy, theta, named)
    thetas = np.repeat(flat[None].astype(float), n_tasks, 0)
    for j, r in enumerate(records):
        steps.gradient(j, thetas, r.mask * 1.0)  # raises where the user's functions do not fit
    if tolerance is None:
        terms = sum(r.mask.sum() for r in records)
        is_single = _rounding(gradient) > 0
        tolerance = SINGLE * (40 + 4 * terms**0.5) if is_single else 1e-6
    data = Data(steps, thetas, records, alternatives(records, discount), step_size, discount)
    search = Search(gradient.astype(float), data, tolerance, max_explanations)
    search.run()
    return _diagnosis(search) if search.fits() else _none(search)


# ---- what is said of an explanation that fits


@dataclass(frozen=True)
class _Reading:
    """A trial that fits, read in the way that makes its factor plainest."""

    data: Data
    trial: object
    names: tuple  # the averages that the query's may be called
    inner_names: tuple
    factor: float  # with this average
    term: str  # one of TERMS; None if it is none of them

    @property
    def e(self):
        """The explanation."""
        return self.trial.explanation


def _reading(data, trial):
    """The _Reading of a trial: of the outer averages the one that has a plain factor."""
    e = trial.explanation
    query = data.records[e.data[-1]]
    real = query.mask.any(0)
    reference = average_weights(query, e.average)[real]
    found = []
    for first, names in distinct_averages([query]).items():
        ratio = reference / average_weights(query, first)[real]
        if np.allclose(ratio, ratio[0], rtol=1e-10):
            factor = trial.factor * ratio[0]
            rank, term = _term(query, factor, trial.error)
            order = (rank > 1, e.inner_average not in names, rank)
            found.append((order, names, factor, term))
    _, names, factor, term = min(found, key=lambda row: row[0])
    inner = distinct_averages([data.records[j] for j in e.data[:-1]] or [query])
    same = [group for group in inner.values() if e.inner_average in group]
    inner_names = same[0] if same else (e.inner_average,)
    return _Reading(data, trial, names, inner_names, factor, term)


def _term(query, factor, error):
    """(rank, name) of a factor among TERMS."""
    n, k = query.mask.shape[1:]
    t = query.mask.sum(0).mean()
    tolerance = min(max(3 * error, 1e-6), 0.01)
    for rank, (name, (in_n, in_k, in_t)) in enumerate(TERMS.items()):
        term = float(n) ** in_n * float(k) ** in_k * t**in_t
        if np.isclose(abs(factor), term, rtol=tolerance):
            return rank, name
    return len(TERMS), None


def _oddity(x):
    """How much is unusual: of what fits the least unusual is believed."""
    e = x.e
    numbers = (e.scale not in (1, -1), e.momentum, e.weight_decay, e.lam != 1)
    others = (e.inside, e.inner_average == "padding", "+fitted" in e.score, _moved(x))
    odd = (
        oddities(e, x.names)
        + 2 * any((*numbers, *others, e.data[-1] != len(e.acts)))
        + (x.term is None)
        + 0.5 * bool(x.term)
        + 0.5 * bool(e.score)
        + 0.25 * (e.advantages > 0)
        + 0.25 * (e.query_advantages != e.advantages)
    )
    return odd, e.advantages, ESTIMATORS.index(e.estimator), not e.discounted


def _listed(numbers, form="{}"):
    return ", ".join(form.format(x) for x in numbers)


def _idle(x):
    """The inner steps that have no effect, if others have."""
    idle = _listed(i for i, acts in enumerate(x.e.acts) if not acts)
    return any(x.e.acts) and idle


def _cut(x):
    """The inner steps that are not differentiated through, if others are."""
    pairs = enumerate(zip(x.e.acts, x.e.differentiated))
    cut = _listed(i for i, (acts, through) in pairs if acts and not through)
    return any(x.e.differentiated) and cut


def _dropped(x):
    """Where γᵗ is dropped."""
    where = {
        (True, False): "in the inner steps only",
        (False, True): "in the query only",
        (False, False): "inside and outside",
    }
    return where.get((x.e.discounted, x.e.inner_discounted))


def _averages(x):
    """Both averages, where they differ."""
    differ = any(x.e.acts) and not set(x.inner_names) & set(x.names)
    both = AVERAGE_SAYS[x.inner_names[0]], AVERAGE_SAYS[x.names[0]]
    return differ and "the inner loss is {}, the outer one {}".format(*both)


def _moved(x):
    """Which steps take another's data."""
    taken = enumerate(x.e.data[:-1])
    return ", ".join(f"step {i} takes the data set {j}" for i, j in taken if i != j)


def _two_advantages(x):
    """The advantages inside and outside, where they differ."""
    inside = x.data.alternatives[x.e.advantages].sentence
    outside = x.data.alternatives[x.e.query_advantages].sentence
    return inside != outside and f"inside are {inside}, those of the query {outside}"


def _what_is_inside(x):
    """What stands in DiCE's product: "rewards", but for what is bootstrapped, or "advantages"."""
    record = x.data.records[-1]
    a = x.data.alternatives[x.e.query_advantages].of_record(record)
    followed = record.mask[1:]
    same = np.allclose(a[:-1][followed], record.rewards[:-1][followed])
    return x.e.inside and ("rewards" if same else "advantages")


def _coefficients(x):
    """The fitted factors of the score, and those that it should have."""
    scale = x.trial.factor / x.factor
    numbers = _listed((scale * c for c in x.trial.coefficients), "{:.3g}")
    of = "the mean of the log-likelihoods" if "means" in x.e.score else "the log-likelihood"
    centred = _listed(x.data.query_returns(centred_returns), "{:.3g}")
    right = f"{numbers} per task of {of}, where J - c, {centred}, belongs"
    return x.trial.coefficients and right


def _other_log_probs(x):
    """The data sets whose log-probabilities are not those of the path, and how far they are off."""
    thetas = x.data.path(x.e)
    found = []
    for j, record in enumerate(x.data.records):
        if record.log_probs is not None and x.data.steps.log_probs is not None:
            off = abs(x.data.steps.log_probs(j, thetas[j]) - record.log_probs)
            most = off[record.mask].max(initial=0.0)
            name = f"support[{j}]" if j < len(x.e.acts) else "query"
            if most > 1e-4:
                found.append(f"{name} are not those of the path, but off by up to {most:.2g}")
    return ", and of ".join(found)


# (what is found, or nothing; the clause that says it)
FINDINGS = [
    (lambda x: x.factor < 0, "the sign is that of a loss, which is minimised: a convention"),
    (lambda x: x.term, "the factor is {}: harmless but for the size of the outer step"),
    (
        lambda x: x.term is None and f"{x.factor:.4g}",
        "the factor {} has no name: is a number multiplied with the loss?",
    ),
    (
        _dropped,
        "gamma^t is dropped {}: as most public code does; what comes of it is the gradient of "
        "nothing in particular",
    ),
    (
        _averages,
        "{}: harmless, but the inner step size then means another thing than it seems to",
    ),
    (
        lambda x: x.e.acts and not any(x.e.acts),
        "no inner step has an effect: a mistake, this is the policy gradient",
    ),
    (_idle, "inner step {} has no effect: a mistake"),
    (
        _cut,
        "inner step {} is not differentiated through: a mistake, unless first-order MAML was meant "
        "for all steps",
    ),
    (lambda x: x.e.scale < 0, "the inner steps descend: a mistake, their sign is wrong"),
    (_two_advantages, "the advantages {}: are both meant?"),
    (
        lambda x: x.e.data[-1] != len(x.e.acts) and f"{x.e.data[-1]}",
        "the query is the support set of step {}: a mistake, as adapted parameters are to be "
        "judged by new data that they sampled",
    ),
    (
        _moved,
        "{}: a mistake, as each step needs new data, of the parameters adapted up to there",
    ),
    (
        lambda x: x.e.inner_average == "padding",
        "the inner mean is over the padding as well: a mistake unless all episodes are as long, as "
        "the step size then depends on the padding",
    ),
    (
        lambda x: _what_is_inside(x) == "rewards",
        "the rewards stand inside DiCE's product, without a baseline: right, but noisy",
    ),
    (
        lambda x: _what_is_inside(x) == "advantages",
        "the advantages stand inside DiCE's product, where a baseline biases even the first "
        "derivative: a mistake; the rewards belong there, and the baseline b outside, as "
        "(1 - box) b",
    ),
    (
        lambda x: x.e.wraps,
        "index -1 wraps around to the last step: a mistake, the sum begins at 0",
    ),
    (
        lambda x: x.e.lam != 1 and f"{x.e.lam:.4g}",
        "lambda is {0}, the product decays with {0}: a convention, between bias and variance",
    ),
    (
        lambda x: abs(x.e.scale) != 1
        and f"{x.e.scale * x.data.step_size:.6g}, not {x.data.step_size:.6g}",
        "the inner step size is {}: is it the outer one?",
    ),
    (
        lambda x: x.e.momentum and f"{x.e.momentum:.4g}",
        "the inner steps have a momentum of {}, which is differentiated through: a convention, but "
        "MAML's step is plain gradient ascent",
    ),
    (
        lambda x: x.e.weight_decay and f"{x.e.weight_decay:.4g}",
        "the inner steps have a weight decay of {}: a convention, but MAML's step is plain "
        "gradient ascent",
    ),
    (
        lambda x: x.e.score == "+raw",
        "the score's factor is J, without the other tasks' mean: right, but noisier",
    ),
    (
        lambda x: x.e.score == "+first",
        "the score is that of the first inner step only: a mistake, as the data of later steps "
        "depend on theta as well",
    ),
    (
        _coefficients,
        "it has a score term with the coefficients {}: a mistake; the score is a sum over all "
        "episodes and steps, and its factor is the task's mean return less that of the others",
    ),
    (
        _other_log_probs,
        "the log_probs of {}, the path being the parameters that these inner steps lead to: the "
        "data come from other parameters than the loss differentiates; explain_step says which",
    ),
]


def _diagnosis(search):
    """The Diagnosis of the least odd of all that fits."""
    readings = [_reading(search.data, trial) for trial in search.fits()]
    best = min(readings, key=_oddity)
    e = best.e
    errors = [trial.error for trial in search.trials.values()]
    facts = [(clause, what(best)) for what, clause in FINDINGS]
    diagnosis = Diagnosis(
        estimators=_coinciding(readings, e),
        factor=best.factor,
        average=_one_or_all(best.names),
        inner_average=_one_or_all(best.inner_names),
        discounted=e.discounted,
        inner_discounted=e.inner_discounted,
        steps=tuple(i for i, acts in enumerate(e.acts) if acts),
        differentiated=tuple(i for i, through in enumerate(e.differentiated) if through),
        advantages=_of_advantages(search.data, e),
        findings=tuple(clause.format(fact) for clause, fact in facts if fact),
        error=best.trial.error,
        runner_up=min((x for x in errors if x > search.tolerance), default=np.inf),
        tried=search.tried,
        text="",
    )
    return replace(diagnosis, text=_paragraph(diagnosis))


def _coinciding(readings, e):
    """The names of the estimators that fit and are otherwise alike."""
    if not any(e.acts):
        return ("policy gradient",)
    same = [x.e for x in readings if forward(x.e) == forward(e)]
    found = {other.estimator + "+score" * bool(other.score) for other in same}
    order = [name + score for score in ("", "+score") for name in ESTIMATORS]
    return tuple(name for name in order if name in found)


def _one_or_all(names):
    return names[0] if len(names) == 1 else tuple(names)


def _kept(discounted):
    return "kept" if discounted else "dropped"


def _of_advantages(data, e):
    """A sentence on the query's advantages, and on what they are where they were given."""
    query = data.records[-1]
    sentence = data.alternatives[e.query_advantages].sentence
    if e.query_advantages or query.advantages is None:
        return sentence
    return f"{sentence}: {explain_advantages(query, discount=data.discount)}"


def _paragraph(d):
    """A Diagnosis in words."""
    said = "; ".join(f"{name}, {MEANING[name]}" for name in d.estimators)
    if len(d.estimators) > 1:
        said = "these, which coincide in the given data: " + said
    averages = [d.average] if isinstance(d.average, str) else d.average
    mean = AVERAGE_SAYS[averages[0]]
    if len(averages) > 1:
        mean += f" ({' and '.join(averages)} coincide in these data)"
    lines = [
        f"This is {said}.",
        f"Steps that act: {_listed(d.steps) or 'none'}. It is {mean}, with gamma^t "
        f"{_kept(d.discounted)}. Advantages: {d.advantages.rstrip('.')}.",
        *(f"- {finding}." for finding in d.findings),
        f"It agrees to {d.error:.1e}; the next is {d.runner_up:.1%} off ({d.tried} explanations "
        "tried).",
    ]
    return "\n".join(lines)


def _none(search):
    """The Diagnosis where nothing fits: what comes nearest."""
    nearest = search.nearest()[0]
    best = _reading(search.data, nearest)
    e = best.e
    text = (
        f"None of the {search.tried} explanations tried fits. The nearest by direction is "
        f"{best.factor:.4g} x {e.estimator}{e.score}, {nearest.error:.1%} off, with the "
        f"{'/'.join(best.names)} average, gamma^t {_kept(e.discounted)} and "
        f"advantages: {search.data.alternatives[e.query_advantages].sentence}. Tried were all "
        "estimators, averages, gamma^t, steps and signs, and one more unknown."
    )
    if search.full:
        text += " The search stopped at max_explanations."
    return Diagnosis(
        factor=best.factor,
        error=nearest.error,
        runner_up=nearest.error,
        tried=search.tried,
        text=text,
    )


# ---- one inner step


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
    step_size = None if step_size is None else validate(step_size=step_size)
    require(isinstance(record, RecordedEpisodes), "record", f"no `record`: {record!r:.99}")
    by_log_probs = isinstance(adapted, RecordedEpisodes)
    named = {"record": record} | ({"adapted": adapted} if by_log_probs else {})
    one = _of_one_task(theta, policy)
    steps = _steps_of(policy, one, named)
    start = _per_task("theta", theta, record.mask.shape[1], one.size)
    if by_log_probs:
        known = adapted.log_probs is not None and steps.log_probs is not None
        require(known, "adapted", "a record without log_probs, or a policy that gives none")
        move = adapted.log_probs - steps.log_probs(1, start) * adapted.mask
        rounding = 0.0
    else:
        move = _per_task("adapted", adapted, len(start), one.size) - start
        rounding = 1e-7 * abs(start).max()
    if abs(move).max() <= rounding + 1e-12:
        return Step(0.0, None, None, "unknown", 0.0, 0.0, 1, NO_EFFECT)
    data = Data(steps, start, [record], alternatives([record], discount), 1.0, discount)

    def fits(g):
        """(coefficients, error) of the move along g, and of that with a weight decay."""
        if by_log_probs:
            return [_step_to_log_probs(steps, start, g, move, adapted)]
        return [fit(move, g), fit(move, g, start)]

    found = list(_steps_along(data, fits))
    best = min(found, key=lambda step: _oddity_of_step(step, step_size))
    return _said_of_step(replace(best, tried=len(found)), step_size)


def _steps_along(data, fits):
    """A Step for each way to take advantages, to average and to discount, the usual ones first."""
    averages = distinct_averages(data.records)
    kept = (True, False) if data.discount != 1 else (True,)
    options = enumerate(data.alternatives)
    for (i, alternative), average, discounted in product(options, averages, kept):
        g = data.steps.gradient(0, data.theta, data.weights(0, i, average, discounted))
        for (size, *rest), error in fits(g):
            yield Step(
                step_size=float(size),
                average=averages[average],
                discounted=discounted,
                advantages=alternative.sentence,
                weight_decay=float(-rest[0] / size) if rest and size else 0.0,
                error=error,
                tried=0,
                text="",
            )


def _is_another(step, meant):
    """Is it another step size than the one that was meant, if that is given?"""
    return meant is not None and not np.isclose(abs(step.step_size), meant, rtol=1e-3)


def _oddity_of_step(step, meant):
    """What the best Step has least of; of those that are equal the first is believed."""
    if step.error > MISFIT:
        return True, step.error
    return False, step.weight_decay != 0, _is_another(step, meant), step.step_size < 0


def _of_one_task(theta, policy):
    """θ of one task in the shape that its policy has, where tasks may have one each."""
    flat = _flat("theta", theta)
    axes = 2 if _is_own(policy) else 3
    if not isinstance(theta, (list, tuple)) and np.ndim(theta) == axes:
        return np.asarray(theta)[0]
    return flat if _is_own(policy) else require_array("theta", theta)


def _per_task(name, x, n_tasks, size):
    """Parameters (N, P) of those that tasks share, or of each task's."""
    flat = _flat(name, x).astype(float)
    fits = flat.size in (size, n_tasks * size)
    require(fits, name, f"{flat.size} numbers, where {n_tasks} tasks have {size} parameters each")
    return np.repeat(flat[None], n_tasks, 0) if flat.size == size else flat.reshape(n_tasks, size)


def _step_to_log_probs(steps, start, g, move, adapted):
    """((size,), error): the step along g that leads to the recorded log-probabilities."""
    size = 0.0
    with np.errstate(all="ignore"):
        for _ in range(30):
            here = start + size * g
            off = (adapted.log_probs - steps.log_probs(1, here)) * adapted.mask
            slope = steps.along(1, here, g) * adapted.mask
            change = (off * slope).sum() / max((slope * slope).sum(), 1e-300)
            if not np.isfinite(change) or abs(change) <= 1e-12 * abs(size):
                break
            size += change
        error = abs(off).max() / abs(move).max()
    return (size,), float(np.nan_to_num(error, nan=np.inf))


MISFIT = 1e-4  # a step that is so much off, relative to the largest move, is another one
NO_EFFECT = "The step has no effect: a mistake. Does the optimiser step a copy, or is .grad None?"


def _said_of_step(step, meant):
    """The Step with its text; meant: the step size that it should have, or None."""
    size = step.step_size
    along = AVERAGE_SAYS[step.average[0]]
    if step.error > MISFIT:
        text = (
            f"None of the {step.tried} explanations tried leads there; the nearest, {size:.4g} "
            f"times {along}, is {step.error:.1%} off. Is it another optimiser, or other data?"
        )
        blank = dict(average=None, discounted=None, advantages="unknown", weight_decay=0.0)
        return replace(step, text=text, **blank)
    sentences = {
        f"It is a step of {size:.6g} along {along}, gamma^t {_kept(step.discounted)}.": True,
        f"Advantages: {step.advantages}.": True,
        "It descends: a mistake, its sign is wrong.": size < 0,
        f"The step size is not {meant}: is it the outer one, or another mean?": _is_another(
            step, meant
        ),
        f"It has a weight decay of {step.weight_decay:.4g}.": step.weight_decay,
        f"It agrees to {step.error:.1e} ({step.tried} explanations tried).": True,
    }
    text = " ".join(sentence for sentence, is_so in sentences.items() if is_so)
    return replace(step, average=_one_or_all(step.average), text=text)


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


def _steps_of(policy, theta, named):
    """LinearSteps or OwnSteps; raises ValueError where the policy and {name: record} do not fit."""
    records = list(named.values())
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
    for name, r in named.items():
        require(r.discrete, name, "states and actions are missing, which this policy needs")
        for what, size in (("states", policy.n_states), ("actions", policy.n_actions)):
            x = getattr(r, what)
            inside = x.min() >= 0 and x.max() < size
            require(inside, name, f"{what} outside 0..{size - 1}")
    return LinearSteps(policy, records)
