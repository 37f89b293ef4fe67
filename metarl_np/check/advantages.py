"""What an array of advantages is, from any framework: which kind, constants, baseline and ends.

GAE obeys A_t = r_t − V_t + γ V_{t+1} + γλ A_{t+1} (Schulman et al. 2016, eq. 16). What a loss holds
is Â = (A − m)/d, m being a mean and d the divisor, for which inside an episode

    Â_t = (1/d) (r_t − V_t) + (γ/d) V_{t+1} + γλ Â_{t+1} − (1 − γλ) m/d

is *linear* in 1/d, γ/d, γλ and the last term. One fit by least squares, over the steps that another
one of the same episode follows, gives all four for any γ and λ, and what is left over says whether
V is the baseline; λ = 1 is G_t − V_t. Then two tables are gone through with these constants. At the
last steps of the episodes the equation has to hold with one of ENDINGS in the place of V_{t+1} and
Â_{t+1}. And of all ways to standardise, SCALES, one makes Â of A = d Â + m, times a number perhaps.
All this is tried of Â as they are, and then of what they are after one of CHANGES is undone.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.records import GIVEN
from metarl_np.learner.returns import reward_to_go

FITS = 1e-5  # relative: float32 advantages are off by up to 1e-6
SIMILAR = 1e-3  # relative: an ε that is added to the divisor changes less
SPARE_STEPS = 3  # a fit counts if it explains so many more steps than it has unknowns


# ---- the tables, which say what each of their rows is


def _next(x):
    """x_{t+1}, and 0 behind the last: (T, …) → (T, …)."""
    return np.concatenate([x[1:], np.zeros_like(x[:1])])


def _above_mean(rewards):
    return rewards - rewards.mean(-1, keepdims=True)


def _linear(rewards, states):
    """The columns of a baseline that is linear in the state, one-hot, and τ, τ², τ³ with τ = t/T.

    (Those of τ at the next step are sums of these.)
    """
    tau = np.arange(len(states))[:, None] / len(states) + np.zeros(states.shape)
    one_hot = [states == state for state in np.unique(states)]
    return [rewards, *one_hot, *map(_next, one_hot), tau, tau**2, tau**3]


# r, V and the states s (T, K) of a task → the columns that Â_t is a sum of, besides Â_{t+1} and 1:
# the first has the factor 1/d, d being the divisor, and V_{t+1} has γ/d. The mean over episodes
# goes through the recursion, so that G less a mean is the G of rewards less their mean
BASELINES = {
    "none": (lambda r, v, s: [r], "They have no baseline."),
    "values": (lambda r, v, s: [r - v, _next(v)], "Their baseline is the given values."),
    "leave_one_out": (
        lambda r, v, s: [_above_mean(r) / (1 - 1 / max(r.shape[-1], 2))],
        "Their baseline is the mean of the other episodes.",
    ),
    "time_mean": (
        lambda r, v, s: [_above_mean(r)],
        "Their baseline is the mean of all episodes at that time: as it contains the episode "
        "itself, the gradient is 1 - 1/K times the right one, which is harmless.",
    ),
    "linear": (
        lambda r, v, s: _linear(r, s),
        "Their baseline was not given and is a function of the state and a cubic in time, as "
        "linear ones are: a convention, but fitted on the very episodes that it scores it is "
        "biased.",
    ),
}

# What stands behind an episode's last step for V_{t+1} and for Â_{t+1}; and what that is
ENDINGS = {
    "stopped": (
        "nothing",
        "nothing",
        "nothing is added, which is right at a terminal state or the horizon.",
    ),
    "bootstrapped": (
        "V(s_T)",
        "nothing",
        "V(s_T) is bootstrapped, which is right where a time limit cut an episode, and a mistake "
        "where it terminated.",
    ),
    "runs on": (
        "next",
        "next",
        "they run on into the next episode, which is right within a trial of RL2, as that is one "
        "long episode; across trials or tasks, or without RL2, it is a mistake: multiply what "
        "comes from the next step by 1 - done.",
    ),
    "next value": (
        "next",
        "nothing",
        "the value of the next episode's first state is bootstrapped, a mistake: multiply it by "
        "1 - done.",
    ),
    "next advantage": (
        "nothing",
        "next",
        "the next value is masked and the next advantage is not, a mistake: multiply both by "
        "1 - done.",
    ),
    "last value twice": (
        "last",
        "nothing",
        "the value of the state before is bootstrapped, a mistake: take V(s_T).",
    ),
    "wraps around": (
        "first",
        "nothing",
        "an index wraps around to the first value, a mistake: append V(s_T).",
    ),
    "unknown": (
        "unknown",
        "nothing",
        "what is added cannot be told; if a time limit cut the episode, it may be a value that was "
        "not given.",
    ),
}


def _without_gamma(record, advantages, discount):
    return record, advantages / (discount ** np.arange(len(advantages)))[:, None, None]


def _without_past(record, advantages, discount):
    """G_t of G_0, by what was paid before t."""
    g = reward_to_go(record.rewards * record.mask, discount)
    return record, (advantages - g[:1] + g) * record.mask


def _moved(now, other, record, advantages, discount):
    """The steps `now` with the advantages of the steps `other`, where both are steps."""
    steps = {name: getattr(record, name) for name in ("states", "actions", *GIVEN)}
    steps = {name: x[now] for name, x in steps.items() if x is not None}
    return replace(record, **steps, mask=record.mask[1:]), advantages[other]


LATER = slice(1, None)
EARLIER = slice(None, -1)
# What was done to them: how to undo it, record, Â and γ → record and Â; and what that is
CHANGES = {
    None: (lambda record, advantages, discount: (record, advantages), ""),
    "gamma^t": (
        _without_gamma,
        "gamma^t stands in them already: right, if the loss does not multiply with it again.",
    ),
    "G_0": (
        _without_past,
        "They are the whole return G_0 at each step: right but noisy, as what was paid before an "
        "action does not depend on it.",
    ),
    "early": (
        partial(_moved, LATER, EARLIER),
        "They are shifted by one, A_(t+1) in the place of A_t: a mistake.",
    ),
    "late": (
        partial(_moved, EARLIER, LATER),
        "They are shifted by one, A_(t-1) in the place of A_t: a mistake.",
    ),
}
TIMES = {
    1: "",
    -1: "They are negated: a mistake, unless the loss lacks its minus sign.",
    None: "They are multiplied with {:.6g}: harmless but for the size of the step.",
}
# are they centred?; the power of the variance that they are divided by; and what that is
DIVISORS = {
    "no": (False, 0.0, "They are not standardised."),
    "centred": (True, 0.0, "They are centred, a convention."),
    "std": (True, 0.5, "They are centred and divided by their standard deviation, a convention."),
    "variance": (
        True,
        1.0,
        "They are centred and divided by their variance, a mistake: divide by the standard "
        "deviation, or the size of a step depends on the unit of the rewards.",
    ),
    None: (None, None, "They are divided by a number of unknown origin."),
}
# what counts in a mean
OVER = {
    "steps": "All steps in the mask count alike, a convention.",
    "padding": "The zeros of the padding are counted, a mistake: count the steps in the mask only.",
    "lengths": "Steps count 1/length, so that all episodes count alike, a convention.",
}
SCOPES = {"batch": (0, 1, 2), "task": (0, 2)}  # axes of a mean, of (T, N, K)
# (divisor, over, ddof, scope) of standardise; where nothing is divided, ddof does not matter
SCALES = [("no", "steps", 0, "batch"), *product(["centred"], OVER, [0], SCOPES)]
SCALES += product(["std", "variance"], OVER, [0, 1], SCOPES)

TARGETS = {
    True: "The value targets are V plus standardised advantages, which is a mistake: add V to the "
    "advantages before they are standardised.",
    False: "The value targets are not built from standardised advantages.",
}
NOTHING = (
    "What these advantages are cannot be told: they are no returns and no GAE, with any discount "
    "and lambda, less what may be their baseline; or there are too few steps."
)
NO_DISCOUNT = "If gamma^t may stand in them, or they are G_0, give the discount."
NO_VALUES = "Values were not given, or had a NaN: if the baseline is a critic's, give them."


def standardise(advantages, mask, divisor, over, ddof, scope):
    """Â = (A − mean)/divisor of A (T, N, K), by one of SCALES; 0 where masked."""
    lengths = np.maximum(mask.sum(0), 1)
    counted = {"steps": mask * 1.0, "padding": np.ones(mask.shape), "lengths": mask / lengths}
    weights = counted[over]
    total = weights.sum(SCOPES[scope], keepdims=True)

    def mean(x, total):
        return (weights * x).sum(SCOPES[scope], keepdims=True) / np.maximum(total, 1)

    is_centred, power, _ = DIVISORS[divisor]
    centred = advantages - mean(advantages, total) if is_centred else advantages
    variance = mean(centred**2, total - ddof)
    return centred / np.maximum(variance, 1e-300) ** power * mask


# ---- the search


@dataclass(frozen=True)
class AdvantagesExplanation:
    """What advantages are; `str` says it in whole sentences."""

    kind: str  # "G", "GAE", "G_0", the whole return at each step, or "unknown"
    findings: tuple  # sentences: what it is, whether that is a mistake, and what is right
    discount: float = None  # γ, rounded to where the data tell it; None where they do not
    lam: float = None  # λ
    baseline: str = None  # one of BASELINES
    at_dones: str = None  # one of ENDINGS, where an episode terminated, or ends before the arrays
    at_cuts: str = None  # one of ENDINGS, where the arrays or a lane end
    standardised: str = None  # one of DIVISORS
    over: str = None  # one of OVER
    ddof: int = None
    times: float = None  # what they are multiplied with
    changed: str = None  # one of CHANGES
    scope: str = None  # "batch", "task", or "batch or task" where these are equal
    error: float = None  # the largest difference, over the largest advantage

    def __str__(self):
        return " ".join(self.findings)

    @property
    def bootstrapped(self):
        """Is V(s_T) added where an episode was cut?"""
        return self.at_cuts == "bootstrapped"

    @property
    def across_dones(self):
        """Does an episode's advantage contain the next one's?"""
        return self.at_dones == "runs on"


def explain_advantages(advantages, record=None, *, discount=None, targets=None):
    """What advantages are: G or GAE, with which γ and λ, baseline, ends and standardisation.

    The usual form is explain_advantages(record), of a `record` that holds them. Where it does not:
    explain_advantages(advantages, record), of an array as a loss has them and the record, with its
    values and last_values if there are any. The next episode, into which they may run on, is the
    one behind it in (N, K), where `record` puts lanes that it cuts at dones; so where there are
    dones give the advantages to `record`, which cuts them along. Without dones it is not known why
    an episode ends before the arrays do, and at_dones speaks of these. discount: γ, where it is
    known; γᵗ in them, and G_0 of a γ below 1, are told only then. targets: what the values are
    fitted to, to see whether that was built from standardised advantages. Returns an
    AdvantagesExplanation, of kind "unknown" where nothing fits. Raises ValueError on other shapes
    and on what is not finite.
    """
    if record is None:
        record = advantages
        advantages = getattr(record, "advantages", None)
    require(hasattr(record, "rewards"), "record", f"expected a `record`, got {record!r:.99}")
    require(advantages is not None, "advantages", "the record has none")
    if discount is not None:
        validate(discount=discount)
    advantages = _as_steps("advantages", advantages, record.mask)
    found = []
    for change, (undo, said) in CHANGES.items():
        if not found and (change is None or len(advantages) > 1):
            undone = undo(record, advantages, discount or 1.0)
            for x in _of_any_baseline(*undone, discount):
                kind = "G_0" if change == "G_0" else x.kind
                found.append(replace(x, kind=kind, changed=change, findings=(*x.findings, said)))
    nothing = {NOTHING: True, NO_VALUES: record.values is None, NO_DISCOUNT: discount is None}
    nothing = tuple(sentence for sentence, is_so in nothing.items() if is_so)
    best, *others = found or [AdvantagesExplanation("unknown", nothing)]
    findings = [finding for finding in best.findings if finding]
    if others:
        same = " or ".join(other.baseline for other in others)
        findings.append(f"On these data that is equal to the baseline {same}.")
    if targets is not None:
        require(record.values is not None, "values", "the record has none, which targets need")
        added = _as_steps("targets", targets, record.mask) - record.values * record.mask
        the_same = abs(added - advantages).max() <= FITS * abs(advantages).max()
        findings.append(TARGETS[bool(the_same and best.standardised != "no")])
    return replace(best, findings=tuple(findings))


def _of_any_baseline(record, advantages, discount):
    """The explanations that fit as well as any, with a baseline each."""
    found = []
    for baseline in BASELINES:
        possible = {"values": record.values is not None, "linear": not found}
        if possible.get(baseline, True):
            found += _explained(record, advantages, baseline, discount)
    oddity = [(not x.standardised, x.times not in TIMES) for x in found]
    return [x for x, odd in zip(found, oddity) if odd == min(oddity)]


def _as_steps(name, x, mask):
    """An argument as floats (T, N, K), 0 where masked. One task needs no axis."""
    shapes = [mask.shape, mask.shape[::2]] if mask.shape[1] == 1 else [mask.shape]
    x = require_array(name, x, *shapes).reshape(mask.shape)
    x = np.where(mask, x, 0.0)
    require(np.isfinite(x), name, "not finite", axes=("step", "task", "episode"))
    return x


def _explained(record, advantages, baseline, discount):
    """The explanation with this baseline, in a list; an empty list if it does not fit."""
    values = record.values if baseline == "values" else np.zeros(record.mask.shape)
    constants, error = _constants(record, values, advantages, baseline)
    if error > FITS:
        return []
    tolerance = 1e-9 + 100 * error + 1e-4 * (baseline == "linear")
    gamma, decay = (_rounded(x, tolerance) for x in np.median(constants[:, :2], 0))
    if np.isnan(gamma):  # nothing tells it from γλ
        gamma = decay or None
    lam = _rounded(decay / gamma, 2 * tolerance) if gamma else 1.0
    kind = "G" if lam == 1 else "GAE"
    raw = constants[:, 2:3] * advantages
    at_dones = at_cuts = None
    if baseline in ("none", "values"):  # of the others V(s_T) is not known, nor is m
        mean, at_dones, at_cuts = _ends(
            record, values, raw, constants[:, 3:], discount=gamma or 0.0, decay=decay
        )
        raw = (raw + mean) * record.mask
    scale = _scale(raw, advantages, record.mask)

    of_discount = "that these data do not tell" if gamma is None else f"{gamma:.6g}"
    of_lam = "" if kind == "G" else f", lambda {lam:.6g}"
    findings = [
        f"These are {kind} with a discount of {of_discount}{of_lam}.",
        BASELINES[baseline][-1],
        DIVISORS[scale["standardised"]][-1],
        TIMES[scale["times"] if scale["times"] in TIMES else None].format(scale["times"]),
    ]
    if scale["standardised"] not in ("no", None):
        of_mean = "That is over each {scope}, with ddof {ddof}.".format(**scale)
        findings += [OVER[scale["over"]], of_mean]
    if at_dones:
        cut_at_dones = record.lanes is not None
        where = "an episode terminated" if cut_at_dones else "an episode ends before the arrays do"
        findings.append(f"Where {where}, {ENDINGS[at_dones][-1]}")
    if at_cuts:
        findings.append(f"Where the arrays or a lane end, {ENDINGS[at_cuts][-1]}")
    if None not in (discount, gamma) and abs(gamma - discount) > tolerance:
        findings.append(f"Their discount is not the {discount:.6g} that you gave: a mistake.")
    explanation = AdvantagesExplanation(
        kind=kind,
        findings=tuple(findings),
        discount=gamma,
        lam=lam,
        baseline=baseline,
        at_dones=at_dones,
        at_cuts=at_cuts,
        error=error,
        **scale,
    )
    return [explanation]


def _scale(raw, advantages, mask):
    """The first of SCALES that makes Â of A, both (T, N, K), as fields of the explanation."""
    for times in TIMES:
        errors = {}
        factors = {}
        for row in SCALES:
            x = standardise(raw, mask, *row)
            factors[row] = times or float((x * advantages).sum() / max((x * x).sum(), 1e-300))
            difference = factors[row] * x - advantages
            errors[row] = abs(difference).max() / abs(advantages).max()
        rows = _nearest(errors, alike=1e-9)
        if rows:
            break
    times = factors[rows[0]] if rows else 1
    divisor, over, ddof, _ = rows[0] if rows else (None,) * 4
    scope = " or ".join(row[-1] for row in rows if row[:-1] == (divisor, over, ddof))
    return dict(standardised=divisor, over=over, ddof=ddof, scope=scope, times=times)


def _nearest(errors, alike):
    """The rows that are about as near as the nearest, none if that is not near.

    errors: {row: relative error, NaN where the row cannot be tried}. alike: errors that differ by
    so little are the same.
    """
    limit = 1.5 * np.nanmin([*errors.values(), SIMILAR]) + alike
    return [row for row, error in errors.items() if error <= min(limit, SIMILAR)]


def _constants(record, values, advantages, baseline):
    """γ, γλ, d and (1 − γλ) m of each task, (N, 4), by least squares, and the relative error.

    d is the divisor and m the mean of Â = (A − m)/d. γ is NaN where nothing tells it from γλ. A
    task that tells nothing, as one without rewards, is given the usual constants.
    """
    columns, _ = BASELINES[baseline]
    followed = record.mask & _next(record.mask)
    used = followed if followed.any() else record.mask
    constants = {}
    errors = []
    n_tasks = used.shape[1]
    for n in range(n_tasks):
        r, v, s, a = (x[:, n] for x in (record.rewards, values, record.states, advantages))
        terms = [*columns(r, v, s), _next(a), np.ones(a.shape)]
        x = np.stack(terms, -1)[used[:, n]]
        y = a[used[:, n]]
        w, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-7)
        errors.append(abs(x @ w - y).max(initial=0) / abs(y).max(initial=1e-300))
        if len(y) >= rank + SPARE_STEPS and abs(w[0]) > 1e-9 * abs(w).max():
            gamma = _discount(x, w, rank, baseline)
            constants[n] = [gamma, w[-2], 1 / w[0], -w[-1] / w[0]]
    if not constants:
        return None, np.inf
    usual = np.median(list(constants.values()), 0)
    return np.array([constants.get(n, usual) for n in range(n_tasks)]), max(errors)


def _discount(x, w, rank, baseline):
    """γ, as V_{t+1} has −γ times the weight of V_t; NaN where that is not told."""
    if baseline == "values" and rank == len(w):
        return w[1] / w[0]
    if baseline == "linear":
        of_states = slice(1, -5)
        now, after = w[of_states].reshape(2, -1)
        seen = x[:, of_states].any(0).reshape(2, -1).all(0)
        if seen.sum() > 2 and np.ptp(now[seen]) > 1e-6 * abs(w).max():
            return -np.polyfit(now[seen], after[seen], 1)[0]  # V is told up to a constant
    return np.nan


def _rounded(x, tolerance):
    """x, with no more digits than the data tell."""
    rounded = [round(float(x), digits) + 0.0 for digits in range(12)]  # no -0
    return next((y for y in rounded if abs(y - x) <= tolerance), float(x))


# ---- the ends, of the E episodes of all tasks that are no padding


def _ends(record, values, scaled, constant, *, discount, decay):
    """m (N, 1), and the names of ENDINGS where episodes terminated and where lanes end.

    m is the mean that was taken off. scaled: d Â (T, N, K), d being the divisor. constant:
    (1 − γλ) m (N, 1).
    """
    exists = record.mask[0]
    task, _ = np.nonzero(exists)
    last = record.mask.sum(0)[exists] - 1, np.arange(len(task))
    # from here on the tasks' episodes stand in one row: (T, N, K) → (T, E), (N, K) → (E,)
    rewards, values, scaled = (x[:, exists] for x in (record.rewards, values, scaled))
    rest = (scaled - rewards + values)[last]  # what is added to r − V, less m
    value_behind = {
        "nothing": 0.0,
        "V(s_T)": np.nan if record.last_values is None else record.last_values[exists],
        "next": np.append(values[0, 1:], np.nan),
        "last": values[last],
        "first": values[0],
        "unknown": np.nan,
    }
    places = _where_they_end(record, task)
    found = []
    for mean in _means(rest, constant, decay, places=places, task=task):
        m = mean[task, 0]
        advantage_behind = {"nothing": 0.0, "next": np.append(scaled[0, 1:], np.nan) + m}
        errors = {}
        for name, (value, advantage, _) in ENDINGS.items():
            added = discount * value_behind[value] + decay * advantage_behind[advantage]
            errors[name] = abs(rest + m - added) / abs(scaled).max()
        names = [_ending(errors, which) for which in places]
        found.append((np.nan_to_num(mean), *names))
    return min(found, key=lambda row: row[1:].count("unknown"))


def _means(rest, constant, decay, *, places, task):
    """What m (N, 1) of each task may be, a list.

    It follows from (1 − γλ) m unless γλ = 1, where m drops out of the equation. It is guessed then:
    to be 0, or what it is if nothing is added at either place.
    """
    if decay < 1:
        return [constant / (1 - decay)]
    n_tasks = len(constant)
    guessed = [-_mean_of_task(rest, which, task, n_tasks) for which in places]
    return [np.zeros(constant.shape), *guessed]


def _ending(errors, which):
    """The first of ENDINGS that fits best in these places, None if there are none."""
    if not which.any():
        return None
    # fmax leaves out what is NaN, as is what follows the very last episode
    largest = {name: np.fmax.reduce(error[which]) for name, error in errors.items()}
    return [*_nearest(largest, alike=FITS), "unknown"][0]


def _where_they_end(record, task):
    """Where an episode terminated and its lane went on, and where the lane ends: (E,) twice."""
    exists = record.mask[0]
    if record.lanes is None:
        whole = record.mask[-1][exists]
        return ~whole, whole
    lane = record.lanes[exists] + exists.shape[1] * task
    goes_on = np.diff(lane, append=-1) == 0
    cut = ~goes_on & ~record.terminated[exists]
    return goes_on, cut if cut.any() else ~goes_on


def _mean_of_task(x, which, task, n_tasks):
    """The mean of each task's x in places `which`, (E,) all, NaN of fewer than two: (N, 1)."""
    count = np.bincount(task, which, n_tasks)
    total = np.bincount(task, which * x, n_tasks)
    return (total / np.where(count > 1, count, np.nan))[:, None]
