"""What an array of advantages is, from any framework: which kind, constants, baseline and ends.

GAE obeys A_t = r_t − V_t + γ V_{t+1} + γλ A_{t+1} (Schulman et al. 2016, eq. 16). What a loss holds
is Â = (A − m)/s, for which inside an episode

    Â_t = (1/s) (r_t − V_t) + (γ/s) V_{t+1} + γλ Â_{t+1} − (1 − γλ) m/s

is *linear* in 1/s, γ/s, γλ and the last term. One fit by least squares, over the steps that another
one of the same episode follows, gives all four for any γ and λ, and what is left over says whether
V is the baseline; λ = 1 is G_t − V_t. The last steps of the episodes are looked at after that: what
they add to r_t − V_t may be 0, γ V(s_T), or what should not be there. Last, of all ways to
standardise, the one is looked for that makes Â of A.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from metarl_np.arguments import require, require_array, validate

FITS = 1e-5  # relative: float32 advantages are off by up to 1e-6
SIMILAR = 1e-3  # relative: an ε that is added to the divisor changes less
SPARE_STEPS = 3  # a fit counts if it explains so many more steps than it has unknowns

# what is taken for V behind an episode's last step, and whether the next episode's Â is added
ENDINGS = {
    "stopped": ("nothing", False),
    "bootstrapped": ("V(s_T)", False),
    "runs on": ("next", True),
    "next value": ("next", False),
    "next advantage": ("nothing", True),
    "last value twice": ("last", False),
    "wraps around": ("first", False),
}
DIVISORS = {"no": 0.0, "centred": 0.0, "std": 0.5, "variance": 1.0}  # powers of the variance
SCOPES = {"batch": (0, 1, 2), "task": (0, 2)}  # axes of a mean, of (T, N, K)
OVER = ("steps", "padding", "lengths")  # what counts in a mean
# (divisor, over, ddof, scope) of standardise; where nothing is divided, ddof does not matter
SCALES = [("no", "steps", 0, "batch"), *product(["centred"], OVER, [0], SCOPES)]
SCALES += product(["std", "variance"], OVER, [0, 1], SCOPES)

SAYS = {
    "nothing": "What these advantages are cannot be told: they are no returns and no GAE, with any "
    "discount and lambda, less what may be their baseline; or there are too few steps.",
    "none": "They have no baseline",
    "values": "Their baseline is the given values",
    "leave_one_out": "Their baseline is the mean of the other episodes",
    "time_mean": "Their baseline is the mean of all episodes at that time: as it contains the "
    "episode itself, the gradient is 1 - 1/K times the right one, which is harmless",
    "linear": "Their baseline was not given and is a function of the state and a cubic in time, as "
    "linear ones are: a convention, but fitted on the very episodes that it scores it is biased",
    "stopped": "nothing is added, which is right at a terminal state or the horizon",
    "bootstrapped": "V(s_T) is bootstrapped, which is right where a time limit cut an episode, and "
    "a mistake where it terminated",
    "runs on": "they run on into the next episode, which is right within a trial of RL2, as that is"
    " one long episode; across trials or tasks, or without RL2, it is a mistake: multiply what "
    "comes from the next step by 1 - done",
    "next value": "the value of the next episode's first state is bootstrapped, a mistake: multiply"
    " it by 1 - done",
    "next advantage": "the next value is masked and the next advantage is not, a mistake: multiply "
    "both by 1 - done",
    "last value twice": "the value of the state before is bootstrapped, a mistake: take V(s_T)",
    "wraps around": "an index wraps around to the first value, a mistake: append V(s_T)",
    "unknown": "what is added cannot be told; if a time limit cut the episode, it may be a value "
    "that was not given",
    None: "They are divided by a number of unknown origin",
    "no": "They are not standardised",
    "centred": "They are centred, a convention",
    "std": "They are centred and divided by their standard deviation, a convention",
    "variance": "They are centred and divided by their variance, a mistake: divide by the standard "
    "deviation, or the size of a step depends on the unit of the rewards",
    "steps": "All steps in the mask count alike, a convention",
    "padding": "The zeros of the padding are counted, a mistake: count the steps in the mask only",
    "lengths": "Steps count 1/length, so that all episodes count alike, a convention",
}
TARGETS = {
    True: "The value targets are V plus standardised advantages, which is a mistake: add V to the "
    "advantages before they are standardised.",
    False: "The value targets are not built from standardised advantages.",
}


@dataclass(frozen=True)
class AdvantagesExplanation:
    """What advantages are; `str` says it in whole sentences."""

    kind: str  # "G", "GAE", "G_0", the whole return at each step, or "unknown"
    findings: tuple  # sentences: what it is, whether that is a mistake, and what is right
    discount: float = None  # γ, rounded to where the data tell it; None where they do not
    lam: float = None  # λ
    baseline: str = None  # "none", "values", "leave_one_out", "time_mean" or "linear"
    at_dones: str = None  # one of ENDINGS, where an episode terminated
    at_cuts: str = None  # one of ENDINGS, where the arrays or a lane end
    standardised: str = None  # one of DIVISORS
    over: str = None  # one of OVER
    ddof: int = None
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


def standardise(advantages, mask, divisor, over, ddof, scope):
    """Â = (A − mean)/divisor of A (T, N, K), by one of SCALES; 0 where masked."""
    lengths = np.maximum(mask.sum(0), 1)
    counted = {"steps": mask * 1.0, "padding": np.ones(mask.shape), "lengths": mask / lengths}
    weights = counted[over]
    total = weights.sum(SCOPES[scope], keepdims=True)

    def mean(x, total):
        return (weights * x).sum(SCOPES[scope], keepdims=True) / np.maximum(total, 1)

    centred = advantages - mean(advantages, total) * (divisor != "no")
    variance = mean(centred**2, total - ddof)
    return centred / np.maximum(variance, 1e-300) ** DIVISORS[divisor] * mask


def explain_advantages(advantages, record=None, *, discount=None, targets=None):
    """What advantages are: G or GAE, with which γ and λ, baseline, ends and standardisation.

    advantages: a `record` that holds them, or an array as a loss has them; then the second argument
    is the record, with its values and last_values if there are any. The next episode, into which
    they may run on, is the one behind it in (N, K), where `record` puts lanes that it cuts at
    dones; so where there are dones give the advantages to `record`, which cuts them along.
    discount: γ, where it is known. targets: what the values are fitted to, to see whether that was
    built from standardised advantages. Returns an AdvantagesExplanation, of kind "unknown" where
    nothing fits. Raises ValueError on other shapes and on what is not finite.
    """
    if record is None:
        record = advantages
        advantages = getattr(record, "advantages", None)
    require(hasattr(record, "rewards"), "record", f"expected a `record`, got {record!r:.99}")
    require(advantages is not None, "advantages", "the record has none")
    if discount is not None:
        validate(discount=discount)
    advantages = _steps("advantages", advantages, record.mask)
    found = []
    for baseline in BASELINES:
        possible = {"values": record.values is not None, "linear": not found}
        if possible.get(baseline, True):
            fit = _fit(record, advantages, baseline)
            if fit.error <= FITS:
                found.append(_explained(record, advantages, fit, discount))
    named = [explanation for explanation in found if explanation.standardised]
    best, *others = named or found or [AdvantagesExplanation("unknown", (SAYS["nothing"],))]
    if others:
        same = " or ".join(other.baseline for other in others)
        as_well = f"On these data that is equal to the baseline {same}."
        best = replace(best, findings=(*best.findings, as_well))
    if targets is None:
        return best
    require(record.values is not None, "values", "the record has none, which targets need")
    added = _steps("targets", targets, record.mask) - record.values * record.mask
    wrong = abs(added - advantages).max() <= FITS * abs(advantages).max()
    wrong = bool(wrong and best.standardised != "no")
    return replace(best, findings=(*best.findings, TARGETS[wrong]))


def _steps(name, x, mask):
    """An argument as floats (T, N, K), 0 where masked."""
    x = require_array(name, x, mask.shape, mask.shape[::2]).reshape(mask.shape)
    x = np.where(mask, x, 0.0)
    require(np.isfinite(x), name, "not finite", axes=("step", "task", "episode"))
    return x


def _next(x):
    """x_{t+1}, and 0 behind the last: (T, …) → (T, …)."""
    return np.concatenate([x[1:], np.zeros_like(x[:1])])


def _above_mean(rewards):
    return rewards - rewards.mean(-1, keepdims=True)


def _features(states):
    """What a linear baseline is made of: is it this state?, and τ, τ², τ³ with τ = t/T."""
    tau = np.arange(len(states))[:, None] / len(states) + np.zeros(states.shape)
    return [states == state for state in np.unique(states)] + [tau, tau**2, tau**3]


# r, V and s (T, K) of a task → the columns that Â_t is a sum of, besides Â_{t+1} and 1: the first
# has the factor 1/s, and V_{t+1} has γ/s. The mean over episodes goes through the recursion, so
# that G less a mean is the G of rewards less their mean
BASELINES = {
    "none": lambda r, v, s: [r],
    "values": lambda r, v, s: [r - v, _next(v)],
    "leave_one_out": lambda r, v, s: [_above_mean(r) / (1 - 1 / max(r.shape[-1], 2))],
    "time_mean": lambda r, v, s: [_above_mean(r)],
    "linear": lambda r, v, s: [r, *_features(s), *map(_next, _features(s))],
}


@dataclass(frozen=True)
class _Fit:
    """Â = (A − m)/s inside episodes, with one of BASELINES."""

    baseline: str
    error: float
    discount: float = None  # γ; NaN where the columns do not tell it
    decay: float = None  # γλ
    scale: np.ndarray = None  # (N, 1) s
    constant: np.ndarray = None  # (N, 1) (γλ − 1) m


def _fit(record, advantages, baseline):
    """The least squares of each task; V is 0 where it was not given."""
    nothing = np.zeros(advantages.shape)
    values = nothing if record.values is None else record.values
    constants = []
    errors = []
    for n in range(advantages.shape[1]):
        r, v, s, target, mask = (
            x[:, n] for x in (record.rewards, values, record.states, advantages, record.mask)
        )
        columns = [*BASELINES[baseline](r, v, s), _next(target), np.ones(r.shape)]
        followed = mask & _next(mask)
        used = followed if followed.any() else mask
        x = np.stack(columns, -1)[used]
        y = target[used]
        w, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-7)
        size = abs(y).max(initial=1e-300)
        errors.append(abs(x @ w - y).max(initial=0) / size)
        if len(y) < rank + SPARE_STEPS or abs(w[0]) <= 1e-9 * abs(w).max():
            constants.append(np.full(4, np.nan))  # of a task without rewards, say
            continue
        gamma = np.nan
        if baseline == "values" and rank == 4:
            gamma = w[1] / w[0]
        if baseline == "linear":
            gamma = _discount_of_linear(x, w)
        constants.append(np.array([1 / w[0], w[-1] / w[0], w[-2], gamma]))
    told = [row for row in constants if not np.isnan(row[0])]
    if not told:
        return _Fit(baseline, error=np.inf)
    usual = np.median(told, 0)
    constants = np.array([usual if np.isnan(row[0]) else row for row in constants])
    return _Fit(
        baseline,
        discount=usual[3],
        decay=usual[2],
        scale=constants[:, :1],
        constant=constants[:, 1:2],
        error=max(errors),
    )


def _discount_of_linear(x, w):
    """γ, as the factors of [s_{t+1} = s] are −γ times those of [s_t = s], up to a constant."""
    now, after = w[1:-2].reshape(2, -1)[:, :-3]
    seen = x.any(0)[1:-2].reshape(2, -1)[:, :-3].all(0)
    if seen.sum() < 3 or np.ptp(now[seen]) < 1e-6 * abs(w).max():
        return np.nan
    return -np.polyfit(now[seen], after[seen], 1)[0]


def _explained(record, advantages, fit, discount):
    """The explanation that a fit leads to: the ends are looked at, then how it was standardised."""
    tolerance = 1e-9 + 100 * fit.error + 1e-4 * (fit.baseline == "linear")
    decay = _rounded(fit.decay, tolerance)
    gamma = _rounded(fit.discount, tolerance)
    if np.isnan(gamma):  # nothing tells it from γλ
        gamma = decay or None
    lam = _rounded(decay / gamma, 2 * tolerance) if gamma else 1.0
    kind = "G" if lam == 1 else "GAE"

    offset, at_dones, at_cuts = _ends(record, advantages, fit, gamma or 0.0)
    raw = (fit.scale * advantages - offset) * record.mask
    errors = [abs(standardise(raw, record.mask, *row) - advantages).max() for row in SCALES]
    limit = min(1.5 * min(errors) + 1e-9, SIMILAR * abs(advantages).max())
    fitting = [row for row, error in zip(SCALES, errors) if error <= limit]
    divisor, over, ddof, _ = fitting[0] if fitting else (None,) * 4
    scope = " or ".join(row[-1] for row in fitting if row[:-1] == fitting[0][:-1])

    of_discount = "that these data do not tell" if gamma is None else f"{gamma:.6g}"
    findings = [
        f"These are {kind} with a discount of {of_discount}" + f", lambda {lam:.6g}" * (lam != 1),
        SAYS[fit.baseline],
        SAYS[divisor],
    ]
    if divisor not in ("no", None):
        findings += [SAYS[over], f"That is over each {scope}, with ddof {ddof}"]
    for where, end in {
        "Where an episode terminated": at_dones,
        "Where the arrays or a lane end": at_cuts,
    }.items():
        if end:
            findings.append(f"{where}, {SAYS[end]}")
    if None not in (discount, gamma) and abs(gamma - discount) > tolerance:
        findings.append(f"Their discount is not the {discount:.6g} that you gave: a mistake")
    return AdvantagesExplanation(
        kind=kind,
        findings=tuple(f"{sentence}." for sentence in findings),
        discount=gamma,
        lam=lam,
        baseline=fit.baseline,
        at_dones=at_dones,
        at_cuts=at_cuts,
        standardised=divisor,
        over=over,
        ddof=ddof,
        scope=scope,
        error=fit.error,
    )


def _of_next(x, real):
    """What the episode behind has, NaN where there is none: (N, K) → (N, K)."""
    result = np.full(real.shape, np.nan)
    result[real] = np.append(x[real][1:], np.nan)
    return result


def _ends(record, advantages, fit, gamma):
    """−m (N, 1), and ENDINGS at dones and at the ends of lanes, None where there are none."""
    if fit.baseline not in ("none", "values"):
        return 0.0, None, None
    real = record.mask[0]
    values = np.zeros(advantages.shape) if fit.baseline == "none" else record.values
    last = np.maximum(record.mask.sum(0) - 1, 0)[None]
    last_reward, last_value, last_advantage = (
        np.take_along_axis(x, last, 0)[0] for x in (record.rewards, values, advantages)
    )
    behind = {
        "nothing": np.zeros(real.shape),
        "V(s_T)": np.full(real.shape, np.nan) if record.last_values is None else record.last_values,
        "next": _of_next(values[0], real),
        "last": last_value,
        "first": values[0],
    }
    added = fit.scale * last_advantage - (last_reward - last_value)
    following = fit.scale * _of_next(advantages[0], real)
    unit = abs(fit.scale * advantages).max()

    def ending(which, offset):
        """The first of ENDINGS that is nearly as good as the best, at these episodes (N, K)."""
        errors = {}
        for name, (value, runs_on) in ENDINGS.items():
            error = added - offset - gamma * behind[value]
            if runs_on:
                error = error - fit.decay * (following - offset)
            error = abs(error[which & ~np.isnan(error)])
            errors[name] = error.max() / unit if error.size else np.inf
        errors["unknown"] = SIMILAR
        limit = 2 * min(errors.values()) + FITS
        names = [name for name, error in errors.items() if error <= limit]
        return names[0] if which.any() else None

    dones, lane_ends = _where_they_end(record)
    if fit.decay < 1 - 1e-6:
        offsets = [fit.constant / (1 - fit.decay)]
    else:  # the fit does not tell m; try that nothing is added at either
        plain = abs(fit.scale - 1) <= FITS
        offsets = [np.where(plain, 0, _mean(added, which)) for which in (dones, lane_ends)]
    found = []
    for offset in offsets:
        names = (ending(dones, offset), ending(lane_ends, offset))
        found.append((np.nan_to_num(offset), *names))
    return min(found, key=lambda row: row[1:].count("unknown"))


def _where_they_end(record):
    """Where an episode terminated and its lane went on, and where the lane ends: (N, K) twice."""
    real = record.mask[0]
    if record.lanes is None:
        return ~record.mask[-1], record.mask[-1]
    goes_on = _of_next(record.lanes, real) == record.lanes
    lane_ends = real & ~goes_on
    cut = lane_ends & ~record.terminated
    return goes_on & real, cut if cut.any() else lane_ends


def _mean(x, which):
    """The mean of each task's x (N, K) in places `which`, NaN of fewer than two: (N, 1)."""
    count = which.sum(1, keepdims=True)
    return (x * which).sum(1, keepdims=True) / np.where(count > 1, count, np.nan)


def _rounded(x, tolerance):
    """x, with no more digits than the data tell."""
    rounded = [round(float(x), digits) + 0.0 for digits in range(12)]  # no -0
    return next((y for y in rounded if abs(y - x) <= tolerance), float(x))
