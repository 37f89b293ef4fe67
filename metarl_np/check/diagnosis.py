"""Is your meta-gradient right, and if not, which one is it?

`diagnose` says what a gradient from any framework is: `explanations` tries what a code may do, and
its VARIATIONS hold a clause for each thing that is unusual. `explain_step` says which averages, γᵗ
and advantages lead through one inner step; it tries none of the variations. `verdict` says what the
names of the estimators mean.
"""

from dataclasses import dataclass, replace

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.advantages import explain_advantages
from metarl_np.check.explanations import (
    AS_GIVEN,
    AVERAGE_SAYS,
    Search,
    alternatives,
    listed,
)
from metarl_np.check.records import RecordedEpisodes
from metarl_np.check.replays import ACTS, AVERAGES, IDLE, Recorded, average_ratio
from metarl_np.check.scores import is_own, require_records, scores_of
from metarl_np.check.verdict import MEANING, NO_STEP, relative, rounding

SINGLE = float(np.finfo(np.float32).eps)

# ---- what a code does, found by trying explanations


@dataclass(frozen=True)
class Diagnosis:
    """What a gradient is: gradient = factor × the estimate. `str` says it in a paragraph."""

    factor: float
    error: float  # largest difference over the gradient's largest component
    runner_up: float  # the smallest error among the explanations that do not fit
    tried: int  # the number of explanations tried
    text: str
    estimators: tuple = ()  # names, as many as coincide; none where nothing fits
    average: object = None  # of the query: one of AVERAGES, or a tuple where they coincide
    inner_average: object = None  # of the inner steps: the same, or "padding"
    discounted: bool = None  # is gamma^t kept in the query?
    inner_discounted: bool = None
    steps: tuple = ()  # the inner steps that act
    differentiated: tuple = ()  # those that are differentiated through
    advantages: str = "unknown"  # a sentence
    findings: tuple = ()  # clauses: what is unusual, whether it is a mistake, what is right

    def __str__(self):
        return self.text

    @property
    def mistakes(self):
        """Those of the findings that are mistakes; require(mistakes=()) allows none."""
        return tuple(finding for finding in self.findings if "a mistake" in finding)

    def require(self, *estimators, **fields):
        """Raise AssertionError, with the diagnosis, unless something fits that is as expected.

        That is one of the estimators, if any are given; and each field has the value that is given,
        or one that coincides with it. fields: those of Diagnosis, and `mistakes`. Raises ValueError
        on names that there are not.
        """
        _require_known("estimators", estimators, [x for x in MEANING if x not in ("(a)", "(b)")])
        _require_known("fields", fields, [*vars(self), "mistakes"])
        for name in {"average", "inner_average"} & {*fields}:
            _require_known(name, np.atleast_1d(fields[name]), AVERAGE_SAYS)
        good = bool(self.estimators)
        if estimators:
            good = bool(set(estimators) & set(self.estimators))
        for name, expected in fields.items():
            got = getattr(self, name)
            if isinstance(got, float):
                good &= bool(np.isclose(got, expected, rtol=1e-3))
            elif isinstance(got, tuple) and not isinstance(expected, tuple):
                good &= expected in got
            else:
                good &= got == expected
        if not good:
            wanted = [*estimators, *(f"{name}={x!r}" for name, x in fields.items())]
            raise AssertionError(f"expected {', '.join(map(str, wanted))}.\n{self.text}")


def _require_known(name, words, allowed):
    """Raise ValueError, with what is allowed, on other words; what is no string is no word."""
    other = listed(x for x in words if isinstance(x, str) and x not in allowed)
    require(not other, name, f"{other}; there are {listed(allowed)}")


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
    max_explanations=None,
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
    the gradient's numbers and the size of the sums. max_explanations: where the search stops; by
    default at 20,000, or at fewer where data are so large that these would take minutes.
    Raises ValueError on what does not fit, by name.
    """
    step_size, discount = validate(step_size=step_size, discount=discount)
    if max_explanations is not None:
        max_explanations = validate(max_explanations=max_explanations)
    tolerance = None if tolerance is None else validate(tolerance=tolerance)
    given = gradient
    gradient = _flat("gradient", gradient)
    flat = _flat("theta", theta)
    shapes = [_shape(given), _shape(theta)]
    same = f"{gradient.size} numbers, where theta has {flat.size}"
    require(gradient.size == flat.size, "gradient", same)
    different = shapes[0] != shapes[1] and flat.shape not in shapes
    require(not different, "gradient", "shape {}, where theta has {}".format(*shapes))
    require(gradient.any(), "gradient", "zero everywhere: does the loss reach theta?")
    named = require_records(support, query)
    scores, thetas = scores_of(policy, flat if is_own(policy) else theta, named)
    shared = thetas.size == flat.size * len(thetas)
    require(shared, "theta", "it has a task axis: give theta that all tasks start from, without it")
    for j, r in enumerate(named.values()):
        scores.gradient(j, thetas, r.mask * 1.0)  # raises where the user's functions do not fit
    if tolerance is None:
        terms = sum(r.mask.sum() for r in named.values())
        is_single = rounding(gradient) > 0
        tolerance = SINGLE * (40 + 4 * terms**0.5) if is_single else 1e-6
    usual = alternatives([*named.values()], discount)
    recorded = Recorded(scores, thetas, named, usual, step_size, discount)
    search = Search(gradient.astype(float), recorded, recorded.columns, tolerance, max_explanations)
    search.run()
    return _diagnosis(search) if search.fits() else _none(search)


# ---- what is said of an explanation that fits


def _diagnosis(search):
    """The Diagnosis of the trial of the least cost of all that fits."""
    fits = [x for trial in search.fits() for x in trial.renamed()]
    best = min(fits, key=lambda x: x.cost)
    e = best.e
    alike = [x.e for x in fits if x.e.on_the_way == e.on_the_way]
    # a wrong score may coincide with the right one, as that of the first of one step does
    alike = [x for x in alike if x.wrong_score == e.wrong_score]
    names = [x.name for x in alike]
    averages = [x.e for x in fits if _coincide(x, best)]
    acting = tuple(i for i, does in enumerate(e.does) if does != IDLE)
    differentiated = tuple(i for i, does in enumerate(e.does) if does == ACTS)
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
        advantages=_of_advantages(search.recorded, e),
        findings=tuple(row.clause.format(fact) for row, fact in best.found if row.clause),
        error=best.error,
        runner_up=min((x for x in errors if x > search.tolerance), default=np.inf),
        tried=search.tried,
        text="",
    )
    return replace(diagnosis, text=_paragraph(diagnosis))


def _coincide(x, best):
    """Is a trial as good as the best, and only its averages have other names?"""
    named = replace(x.e, average=best.e.average, inner_average=best.e.inner_average)
    same = named == best.e and np.isclose(x.factor, best.factor)
    return same and x.cost[0] == best.cost[0]


def _one_or_all(names):
    """A name, or those that coincide."""
    names = tuple(dict.fromkeys(names))
    return names[0] if len(names) == 1 else names


def _kept(discounted):
    return "kept" if discounted else "dropped"


def _sentence(words):
    return words if words[-1] in ".?" else words + "."


def _of_advantages(recorded, e):
    """A sentence on the query's advantages, and on what they are where they were given."""
    query = recorded.records[-1]
    sentence = recorded.alternatives[e.query_advantages].sentence
    if sentence != AS_GIVEN:
        return sentence
    return f"{sentence}: {explain_advantages(query, discount=recorded.discount)}"


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
        f"Inner steps that act (counted from 0): {listed(d.steps) or 'none'}. It is {mean}, with "
        f"gamma^t {_kept(d.discounted)}. Advantages: {_sentence(d.advantages)}",
        *(f"- {_sentence(finding)}" for finding in d.findings),
        f"It agrees to {d.error:.1e}; the nearest that does not fit is {relative(d.runner_up)} off "
        f"({d.tried} explanations tried).",
    ]
    return "\n".join(lines)


def _none(search):
    """The Diagnosis where nothing fits: what comes nearest."""
    nearest = next(trial for trial in search.nearest() if len(trial.c) == 1)
    best = min(nearest.renamed(), key=lambda x: x.cost)
    e = best.e
    text = (
        f"None of the {search.tried} explanations tried fits. The nearest by direction is "
        f"{best.factor:.4g} x {e.name}, {relative(nearest.error)} off, with the "
        f"{e.average} average, gamma^t {_kept(e.discounted)} and "
        f"advantages: {search.recorded.alternatives[e.query_advantages].sentence}. Tried were all "
        "estimators, averages, gamma^t, steps and signs, and one more unknown."
    )
    for row, fact in best.found:
        if row.clause and not row.cost:
            text += "\n- " + _sentence(row.clause.format(fact))
    if search.full:
        text += f"\nThe search stopped at its limit, max_explanations={search.limit}."
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
    with a task axis in front, where it is adapted already. adapted: θ', of theta's shape with the
    task axis in front (of each array, where theta is a list of arrays), or (N, P); or, where it was
    not kept, the `record` of the data that it sampled, with their log_probs. record: the data of
    the step. step_size: α as you meant it. Raises ValueError, by name.
    """
    discount = validate(discount=discount)
    step_size = None if step_size is None else validate(step_size=step_size)
    require(isinstance(record, RecordedEpisodes), "record", f"no `record`: {record!r:.99}")
    by_log_probs = isinstance(adapted, RecordedEpisodes)
    named = {"record": record} | ({"adapted": adapted} if by_log_probs else {})
    n_tasks = record.mask.shape[1]
    flat = _flat("theta", theta)
    theta = theta if is_own(policy) else require_array("theta", theta)
    if not by_log_probs:
        adapted = _of_tasks("adapted", adapted, n_tasks, theta)
    if is_own(policy):
        # θ has no shape of its own: it is adapted already if it has as many numbers as θ'
        is_adapted = not by_log_probs and flat.size == adapted.size
        theta = _of_tasks("theta", theta, n_tasks, theta) if is_adapted else flat
    scores, start = scores_of(policy, theta, named)
    measured = _by_log_probs if by_log_probs else _by_parameters
    move, columns_of = measured(scores, start, adapted)
    if abs(move).max() <= 1e-7 * abs(start).max() + 1e-12:
        return Step(0.0, None, None, "unknown", 0.0, 0.0, 1, NO_EFFECT)
    # the gradient of a query is Σ w ∇log π, which is what a step adds: so the step's data stand as
    # the query of no inner step
    recorded = Recorded(
        scores, start, {"record": record}, alternatives([record], discount), 1.0, discount
    )

    def columns(e):
        _, slope = recorded.path(e)
        return columns_of(slope)

    search = Search(move, recorded, columns, MISFIT)
    for i in range(len(recorded.alternatives)):
        search.try_all(replace(e.on_the_way, query=0) for e in search.plain(i))

    def oddity(step):
        return step.weight_decay != 0, _is_another(step, step_size), step.step_size < 0

    found = [_step(search, trial) for trial in search.fits() or search.nearest()[:1]]
    best = min(found, key=oddity)
    as_good = dict(advantages=best.advantages, discounted=best.discounted)
    same = [x for x in found if x.average != best.average and vars(x) == vars(x) | as_good]
    return _said_of_step(best, same, step_size)


def _by_parameters(scores, start, adapted):
    """θ' − θ, and a function: the step's gradient → what that is a sum of; θ is, if it decays."""
    fits = adapted.size == start.size
    require(fits, "adapted", f"{adapted.size} numbers, where the tasks have {start.size}")
    return adapted.reshape(start.shape) - start, lambda g: [g, start]


def _by_log_probs(scores, start, adapted):
    """How log-probabilities moved, and a function: the gradient → how they move per step size."""
    known = adapted.log_probs is not None and scores.log_probs is not None
    require(known, "adapted", "a record without log_probs, or a policy that gives none")
    mask = adapted.mask
    before = scores.log_probs(1, start)
    move = (adapted.log_probs - before) * mask

    def columns_of(g):
        """At the step size that fits best, found by Gauss and Newton's method."""
        size = 0.0
        for _ in range(30):
            here = start + size * g
            moved = (scores.log_probs(1, here) - before) * mask
            slope = scores.along(1, here, g) * mask
            change = ((move - moved) * slope).sum() / max((slope * slope).sum(), 1e-300)
            size += change
            if not abs(change) > 1e-12 * abs(size):
                break
        return [moved / size]

    return move, columns_of


def _step(search, trial):
    """The Step of a trial, without its text."""
    recorded = search.recorded
    size, decay = (*trial.c, 0.0)[:2]
    decays = abs(decay * recorded.theta).max() > MISFIT * abs(search.target).max()
    averages = [x for x in AVERAGES if average_ratio(recorded.records, x, trial.e.average) == 1]
    return Step(
        step_size=float(size),
        average=_one_or_all(averages),
        discounted=trial.e.discounted,
        advantages=recorded.alternatives[trial.e.query_advantages].sentence,
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


def _says(average):
    """What an average is, or the first of some that coincide."""
    return AVERAGE_SAYS[np.atleast_1d(average)[0]]


def _said_of_step(step, same, meant):
    """The Step with its text; same: those that coincide with it; meant: its step size, or None."""
    size = step.step_size
    ways = [f"{x.step_size:.6g} along {_says(x.average)}" for x in (step, *same)]
    along = _says(step.average)
    if step.error > MISFIT:
        text = (
            f"None of the {step.tried} explanations tried leads there; the nearest, {size:.4g} "
            f"times {along}, is {relative(step.error)} off. Is it another optimiser, or other data?"
        )
        blank = dict(average=None, discounted=None, advantages="unknown", weight_decay=0.0)
        return replace(step, text=text, **blank)
    sentences = {
        f"It is a step of {ways[0]}, gamma^t {_kept(step.discounted)}.": True,
        f"Here that is the same as one of {' or of '.join(ways[1:])}.": same,
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


def _shape(x):
    """The shape of an array, or those of a list of arrays that are no array together."""
    try:
        return np.shape(x)
    except ValueError:
        return tuple(part.shape for part in x)


def _of_tasks(name, x, n_tasks, theta):
    """Parameters of each task, (N, P): from one array, or from parts that all begin with N.

    Their shapes are theta's, with N in front or not, or (N, P); of a flat theta any that have N in
    front.
    """
    flat = _flat(name, x)
    shapes = [_shape(part) for part in (theta if _are_parts(theta) else [theta])]
    in_parts = _are_parts(x) and (_are_parts(theta) or isinstance(_shape(x)[0], tuple))
    parts = [np.asarray(part) for part in (x if in_parts else [x])]
    given = [part.shape for part in parts]
    with_tasks = [(n_tasks, *shape) for shape in shapes]
    p = flat.size // n_tasks
    in_a_row = [(n_tasks, p)]
    theta_is_flat = shapes in ([(p,)], in_a_row)
    by_task = all(shape[:1] == (n_tasks,) for shape in given)
    if by_task:
        fits = theta_is_flat or given in (with_tasks, shapes, in_a_row)
    else:
        # one task needs no axis, and in one array task may follow after task
        whole = flat.size % n_tasks == 0
        fits = given == shapes and whole and 1 in (n_tasks, len(parts))
    expected = f"expected those of theta with N in front, {listed(with_tasks)}, or (N, P)"
    require(fits, name, f"shapes {listed(given)}: {expected}")
    if by_task:
        return np.concatenate([part.reshape(n_tasks, -1) for part in parts], 1)
    return flat.reshape(n_tasks, -1)
