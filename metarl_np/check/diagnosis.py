"""Is your meta-gradient right, and if not, which one is it?

`diagnose` says what a gradient from any framework is: `explanations` tries what a code may do, and
its VARIATIONS hold a clause for each thing that is unusual. `explain_step` says which averages, γᵗ
and advantages lead through one inner step; it tries none of the variations. `check_gradient` compares a gradient with given candidates: with what every estimator must
give on the same data (`estimators`), or with exact answers.

`surrogates` says what H₁, H₂ and H₁₂ are, the parts of the Hessian of J; `meta_gradients` tells (a)
from (b); and the score of the inner data is the gradient of their log-probability.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.advantages import explain_advantages
from metarl_np.check.estimators import (
    ACTS,
    AVERAGES,
    IDLE,
    SCORES,
    Data,
    average_ratio,
    is_own,
    require_records,
    steps_of,
)
from metarl_np.check.explanations import (
    AS_GIVEN,
    AVERAGE_SAYS,
    Search,
    alternatives,
    fit,
    listed,
)
from metarl_np.check.records import RecordedEpisodes

# Verdicts are printed on any console: their texts keep to the characters of code page 1252, which
# has no Greek letters, no subscripts and no minus sign of its own.
STORED = {np.dtype(np.float16): 4e-3, np.dtype(np.float32): 1e-4}  # how far a right one may be off
SINGLE = float(np.finfo(np.float32).eps)
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
    tolerance = max(tolerance, _rounding(gradient), *of_types)
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


def _rounding(gradient):
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
    """A relative error in a form to read."""
    size = f"{error:.1e}" if error < 1e-3 else f"{error:.1%}" if error < 100 else f"{error:.2g} x"
    return f"{size} of its largest component"


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


# ---- what a code does, found by trying explanations


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
    steps, thetas = steps_of(policy, flat if is_own(policy) else theta, named)
    for j, r in enumerate(named.values()):
        steps.gradient(j, thetas, r.mask * 1.0)  # raises where the user's functions do not fit
    if tolerance is None:
        terms = sum(r.mask.sum() for r in named.values())
        is_single = _rounding(gradient) > 0
        tolerance = SINGLE * (40 + 4 * terms**0.5) if is_single else 1e-6
    usual = alternatives([*named.values()], discount)
    data = Data(steps, thetas, named, usual, step_size, discount)
    search = Search(gradient.astype(float), data, data.columns, tolerance, max_explanations)
    search.run()
    return _diagnosis(search) if search.fits() else _none(search)


# ---- what is said of an explanation that fits


def _diagnosis(search):
    """The Diagnosis of the reading of the least cost of all that fits."""
    fits = [x for trial in search.fits() for x in trial.renamed()]
    best = min(fits, key=lambda x: x.cost)
    e = best.e
    alike = [x.e for x in fits if x.e.forward == e.forward and x.e.right_score == e.right_score]
    names = [x.estimator + "+score" * (x.score in SCORES) for x in alike]
    averages = [x.e for x in fits if _coincide(x, best)]
    acting = tuple(i for i, does in enumerate(e.steps) if does != IDLE)
    differentiated = tuple(i for i, does in enumerate(e.steps) if does == ACTS)
    errors = [trial.error for trial in search.trials.values()]
    diagnosis = Diagnosis(
        estimators=tuple(name for name in MEANING if name in names) if acting else (NO_STEP,),
        factor=best.factor,
        average=_one_or_all(x.average for x in averages),
        inner_average=_one_or_all(x.inner_average for x in averages),
        discounted=e.discounted,
        inner_discounted=e.inner_discounted,
        steps=acting,
        differentiated=() if e.estimator == "first_order" else differentiated,
        advantages=_of_advantages(search.data, e),
        findings=tuple(row.clause.format(fact) for row, fact in best.found if row.clause),
        error=best.error,
        runner_up=min((x for x in errors if x > search.tolerance), default=np.inf),
        tried=search.tried,
        text="",
    )
    return replace(diagnosis, text=_paragraph(diagnosis))


def _coincide(x, best):
    """Is a reading as good as the best, and only its averages have other names?"""
    named = replace(x.e, average=best.e.average, inner_average=best.e.inner_average)
    same = named == best.e and np.isclose(x.factor, best.factor)
    return same and x.cost[0] == best.cost[0]


def _one_or_all(names):
    """A name, or those that coincide."""
    names = tuple(dict.fromkeys(names))
    return names[0] if len(names) == 1 else names


def _kept(discounted):
    return "kept" if discounted else "dropped"


def _of_advantages(data, e):
    """A sentence on the query's advantages, and on what they are where they were given."""
    query = data.records[-1]
    sentence = data.alternatives[e.query_advantages].sentence
    if sentence != AS_GIVEN:
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
        f"Steps that act: {listed(d.steps) or 'none'}. It is {mean}, with gamma^t "
        f"{_kept(d.discounted)}. Advantages: {d.advantages.rstrip('.')}.",
        *(f"- {finding}." for finding in d.findings),
        f"It agrees to {d.error:.1e}; the next is {d.runner_up:.1%} off ({d.tried} explanations "
        "tried).",
    ]
    return "\n".join(lines)


def _none(search):
    """The Diagnosis where nothing fits: what comes nearest."""
    nearest = search.nearest()[0]
    best = min(nearest.renamed(), key=lambda x: x.cost)
    e = best.e
    text = (
        f"None of the {search.tried} explanations tried fits. The nearest by direction is "
        f"{best.factor:.4g} x {e.estimator}{e.score}, {nearest.error:.1%} off, with the "
        f"{e.average} average, gamma^t {_kept(e.discounted)} and "
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
    with a task axis in front, where it is adapted already. adapted: θ' with the task axis in front
    (of each array, where theta is a list of arrays); or, where it was not kept, the `record` of the
    data that it sampled, with their log_probs. record: the data of the step. step_size: α as you
    meant it. Raises ValueError, by name.
    """
    discount = validate(discount=discount)
    step_size = None if step_size is None else validate(step_size=step_size)
    require(isinstance(record, RecordedEpisodes), "record", f"no `record`: {record!r:.99}")
    by_log_probs = isinstance(adapted, RecordedEpisodes)
    named = {"record": record} | ({"adapted": adapted} if by_log_probs else {})
    n_tasks = record.mask.shape[1]
    if not by_log_probs:
        adapted = _of_tasks("adapted", adapted, n_tasks, in_parts=_are_parts(theta))
    if is_own(policy):
        flat = _flat("theta", theta)
        # θ has no shape of its own: it is adapted already if it has as many numbers as θ'
        is_adapted = not by_log_probs and flat.size == adapted.size
        theta = _of_tasks("theta", theta, n_tasks, _are_parts(theta)) if is_adapted else flat
    steps, start = steps_of(policy, theta, named)
    measured = _by_log_probs if by_log_probs else _by_parameters
    move, columns_of = measured(steps, start, adapted)
    if abs(move).max() <= 1e-7 * abs(start).max() + 1e-12:
        return Step(0.0, None, None, "unknown", 0.0, 0.0, 1, NO_EFFECT)
    data = Data(steps, start, {"record": record}, alternatives([record], discount), 1.0, discount)

    def columns(e):
        _, slope = data.forward(e)
        return columns_of(slope)

    search = Search(move, data, columns, MISFIT)
    for i in range(len(data.alternatives)):
        search.try_all(replace(e.forward, query=0) for e in search.plain(i))

    def oddity(step):
        return step.weight_decay != 0, _is_another(step, step_size), step.step_size < 0

    found = [_step(search, trial) for trial in search.fits() or search.nearest()[:1]]
    return _said_of_step(min(found, key=oddity), step_size)


def _by_parameters(steps, start, adapted):
    """θ' − θ, and a function: the step's gradient → what that is a sum of; θ is, if it decays."""
    fits = adapted.size == start.size
    require(fits, "adapted", f"{adapted.size} numbers, where the tasks have {start.size}")
    return adapted.reshape(start.shape) - start, lambda g: [g, start]


def _by_log_probs(steps, start, adapted):
    """How log-probabilities moved, and a function: the gradient → how they move per step size."""
    known = adapted.log_probs is not None and steps.log_probs is not None
    require(known, "adapted", "a record without log_probs, or a policy that gives none")
    mask = adapted.mask
    before = steps.log_probs(1, start)
    move = (adapted.log_probs - before) * mask

    def columns_of(g):
        """At the step size that fits best, found by Gauss and Newton's method."""
        size = 0.0
        for _ in range(30):
            here = start + size * g
            moved = (steps.log_probs(1, here) - before) * mask
            slope = steps.along(1, here, g) * mask
            change = ((move - moved) * slope).sum() / max((slope * slope).sum(), 1e-300)
            size += change
            if not abs(change) > 1e-12 * abs(size):
                break
        return [moved / size]

    return move, columns_of


def _step(search, trial):
    """The Step of a trial, without its text."""
    data = search.data
    size, decay = (*trial.c, 0.0)[:2]
    decays = abs(decay * data.theta).max() > MISFIT * abs(search.target).max()
    averages = [x for x in AVERAGES if average_ratio(data.records, x, trial.e.average) == 1]
    return Step(
        step_size=float(size),
        average=_one_or_all(averages),
        discounted=trial.e.discounted,
        advantages=data.alternatives[trial.e.query_advantages].sentence,
        weight_decay=float(-decay / size) if decays else 0.0,
        error=trial.error,
        tried=search.tried,
        text="",
    )


def _is_another(step, meant):
    """Is it another step size than the one that was meant, if that is given?"""
    return meant is not None and not np.isclose(abs(step.step_size), meant, rtol=1e-3)


MISFIT = 1e-4  # a step that is so much off, relative to the largest move, is another one
NO_EFFECT = "The step has no effect: a mistake. Does the optimiser step a copy, or is .grad None?"


def _said_of_step(step, meant):
    """The Step with its text; meant: the step size that it should have, or None."""
    size = step.step_size
    along = AVERAGE_SAYS[np.atleast_1d(step.average)[0]]
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
    return replace(step, text=text)


def _flat(name, x):
    """An array, or a list of arrays of any shapes, as one flat array."""
    parts = x if _are_parts(x) else [x]
    parts = [require_array(name, part).ravel() for part in parts]
    flat = np.concatenate(parts)
    require(flat.size, name, "it has no components")
    require(np.isfinite(flat).all(), name, "not finite")
    return flat


def _are_parts(x):
    """Is it a list of arrays, as a network's parameters are?"""
    return isinstance(x, (list, tuple)) and bool(x) and all(hasattr(p, "shape") for p in x)


def _of_tasks(name, x, n_tasks, in_parts):
    """Parameters of each task, (N, P): from one array, or from parts that all begin with N."""
    flat = _flat(name, x)
    if in_parts and _are_parts(x) and all(part.shape[:1] == (n_tasks,) for part in x):
        return np.concatenate([require_array(name, part).reshape(n_tasks, -1) for part in x], 1)
    fits = flat.size % n_tasks == 0
    require(fits, name, f"{flat.size} numbers cannot be those of {n_tasks} tasks")
    return flat.reshape(n_tasks, -1)
