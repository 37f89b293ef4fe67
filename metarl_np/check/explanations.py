"""What a code may do, as tables; and the search for what gives a gradient.

An `Explanation` is one point of a large space, and most codes are near its usual corner. The search
begins there and goes on, a stage after the other, until something fits: all that is consistent; the
score; up to two oddities; and one more unknown, of ONE_MORE, on top of what came nearest. A
gradient fits if it is a multiple of the estimate that the explanation leads to.

To try something new add a row: to RETURNS, BASELINES or AFTERWARDS for other advantages, or to
ONE_MORE; and the sentence about it to `diagnosis.FINDINGS`.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from metarl_np.arguments import NotFinite
from metarl_np.check.advantages import SCALES, standardise
from metarl_np.check.estimators import (
    AVERAGES,
    SCORES,
    Explanation,
    average_weights,
    bootstrapped_returns,
)
from metarl_np.learner.reinforce import ESTIMATORS
from metarl_np.learner.returns import (
    gae,
    leave_one_out_baseline,
    reward_to_go,
    time_mean_baseline,
)

# ---- what advantages may be: a return less a baseline, and what is done afterwards


@dataclass(frozen=True)
class Alternative:
    """Advantages that a code may have used."""

    sentence: str
    of_record: object  # a function: record → (T, N, K)
    usual: bool = True  # is it tried first?


def _to_go(record, discount):
    return reward_to_go(record.rewards, discount)


def _whole_return(record, discount):
    return _to_go(record, discount)[:1] + np.zeros(record.mask.shape)


def _one_later(record, discount):
    """G of rewards r_(t+1) in the place of r_t."""
    rewards = record.rewards[1:] * record.mask[:-1]
    return reward_to_go(np.concatenate([rewards, 0 * record.rewards[:1]]), discount)


def _one_earlier(record, discount):
    """G of rewards r_(t-1) in the place of r_t."""
    rewards = record.rewards[:-1] * record.mask[1:]
    return reward_to_go(np.concatenate([0 * record.rewards[:1], rewards]), discount)


def _gae(lam, bootstrapped):
    """GAE as a function of a record and a discount."""

    def advantages(record, discount):
        r = record
        last = r.last_values if bootstrapped else np.zeros(r.mask.shape[1:])
        return gae(r.rewards, r.values, r.mask, last, discount=discount, lam=lam)

    return advantages


# sentence: (what a record must have, function of record and discount)
SHIFTED = "G of rewards that are shifted by one, r_(t{}1) in the place of r_t (a mistake)"
RETURNS = {
    "G": ("", _to_go),
    "G with V(s_T) bootstrapped": ("last_values", bootstrapped_returns),
    "the whole return G_0 at each step, which is right but noisy, as what was paid before an "
    "action does not depend on it": ("", _whole_return),
    SHIFTED.format("+"): ("", _one_later),
    SHIFTED.format("-"): ("", _one_earlier),
}
# sentence: (what a record must have, function of record and returns)
BASELINES = {
    " less the recorded baseline": ("baseline", lambda r, g: r.baseline),
    " less the given values": ("values", lambda r, g: r.values),
    " less the mean of the other episodes": ("others", lambda r, g: leave_one_out_baseline(g)),
    ", with no baseline": ("", lambda r, g: 0.0),
    " less the mean over all episodes, which contains the episode itself (harmless but for a "
    "factor 1 - 1/K)": ("others", lambda r, g: time_mean_baseline(g)),
}
DIVIDED = {
    "centred": "less the mean",
    "std": "centred and divided by the standard deviation",
    "variance": "centred and divided by the variance, a mistake for the standard deviation,",
}
LAMBDAS = (0.9, 0.95, 0.97, 0.99)


def _last_steps(mask):
    """True at the last step of each episode."""
    return mask & ~np.concatenate([mask[1:], np.zeros_like(mask[:1])])


def _has(record, what):
    """Has a record what advantages are made from?"""
    if what == "others":
        return record.mask.shape[2] > 1
    return not what or getattr(record, what) is not None


def _rows(records):
    """(sentence, advantages of a record and a discount, are they usual?) that records allow."""

    def all_have(*needs):
        return all(_has(r, what) for r in records for what in needs)

    def less(returns, baseline):
        def advantages(record, discount):
            g = returns(record, discount)
            return g - baseline(record, g)

        return advantages

    for (kind, (needs, returns)), (minus, (also, of_returns)) in product(
        RETURNS.items(), BASELINES.items()
    ):
        if all_have(needs, also):
            usual = returns is _to_go or (needs, also) == ("last_values", "values")
            yield kind + minus, less(returns, of_returns), usual
    for lam, bootstrapped in product(LAMBDAS, (False, True)):
        if all_have("values", "last_values" * bootstrapped):
            ends = ", with V(s_T) bootstrapped" * bootstrapped
            sentence = f"GAE of the given values, lambda {lam:g}{ends}"
            yield sentence, _gae(lam, bootstrapped), False


def alternatives(records, discount):
    """The Alternatives that a code may have used: the given first, then the usual."""
    found = []
    if all(r.advantages is not None for r in records):
        found.append(Alternative("as given", lambda r: r.advantages))
    rows = sorted(_rows(records), key=lambda row: not row[2])

    def alternative(row, gamma=discount, said="", after=lambda x, mask: x * mask, usual=True):
        sentence, advantages, is_usual = row
        return Alternative(
            sentence + said,
            lambda r: after(advantages(r, gamma), r.mask),
            usual and is_usual,
        )

    found += [alternative(row) for row in rows]
    if discount != 1:
        said = f", with gamma = 1 in the place of {discount:g} (a mistake, if not meant)"
        found += [alternative(row, 1.0, said, usual=False) for row in rows]
    for row, (said, after, usual) in product(rows, _afterwards()):
        if row[2]:
            found.append(alternative(row, said=said, after=after, usual=usual))
    return found


def _afterwards():
    """(sentence, function of advantages and mask, is it usual?): what may be done at the end."""
    for scale in SCALES:
        divisor, over, ddof, scope = scale
        if divisor in DIVIDED and over == "steps" and (divisor == "std" or scope == "task"):

            def standardised(x, mask, scale=scale):
                return standardise(x, mask, *scale)

            said = f", {DIVIDED[divisor]} of each {scope}, with ddof {ddof}"
            yield said, standardised, divisor == "std"
    said = ", at the last step of each episode only: a mistake, dones stand where a mask belongs"
    yield said, lambda x, mask: x * _last_steps(mask), False


# ---- what is tried: explanations from the usual to the odd


def distinct_averages(records, up_to_scale=False):
    """{the first of AVERAGES of its kind: those whose weights are the same in these data}."""
    groups = {}
    kinds = {}
    for name in AVERAGES:
        weights = np.concatenate([average_weights(r, name)[r.mask.any(0)] for r in records])
        weights = weights / weights.max() if up_to_scale else weights
        same = [x for x in kinds if np.allclose(kinds[x], weights, rtol=1e-12, atol=0)]
        first = same[0] if same else name
        kinds.setdefault(first, weights)
        groups.setdefault(first, []).append(name)
    return {first: tuple(names) for first, names in groups.items()}


class Space:
    """The explanations that given data sets leave room for."""

    def __init__(self, data):
        self.data = data
        self.n_steps = len(data.records) - 1
        self.all_steps = (True,) * self.n_steps
        self.inner = distinct_averages(data.records[:-1] or data.records)
        self.outer = distinct_averages(data.records[-1:], up_to_scale=True)
        self.kept = (True, False) if data.discount != 1 else (True,)
        self.bootstraps = all(r.last_values is not None for r in data.records)

    def through(self, estimator, acts):
        """The steps that may be differentiated through, given those that act: all first."""
        if estimator == "first_order":
            return [(False,) * self.n_steps]
        choices = product(*[(True, False) if act else (False,) for act in acts])
        return [choice for choice in choices if any(choice)]

    def within(self, advantages, odd):
        """Explanations with these advantages and at most so many `oddities`."""
        scales = (1.0, -1.0) if odd else (1.0,)
        acting = product((True, False), repeat=self.n_steps) if odd else [self.all_steps]
        inside = product(scales, acting, self.inner, self.kept)
        outside = product(self.outer, self.kept, ESTIMATORS)
        for (scale, acts, *inner), (*outer, estimator) in product(inside, outside):
            for through in self.through(estimator, acts):
                e = Explanation(
                    estimator=estimator,
                    advantages=advantages,
                    query_advantages=advantages,
                    average=outer[0],
                    inner_average=inner[0],
                    discounted=outer[1],
                    inner_discounted=inner[1],
                    acts=acts,
                    differentiated=through,
                    scale=scale,
                    data=tuple(range(self.n_steps + 1)),
                )
                if oddities(e, self.outer[e.average]) <= odd:
                    yield e
                    if estimator == "dice" and self.bootstraps and not odd:
                        yield replace(e, bootstrapped=True)


def oddities(e, names):
    """How many of the usual choices an explanation does not make; names: the outer average's."""
    odd = (
        e.scale < 0,
        not all(e.acts),
        any(e.differentiated) and e.differentiated != e.acts,
        e.inner_discounted != e.discounted,
        e.inner_average not in names,
    )
    return sum(odd)


def _other_query(space, e):
    for j in range(space.n_steps):
        yield replace(e, data=e.data[:-1] + (j,))


def _other_data(space, e):
    for data in product(range(space.n_steps), repeat=space.n_steps):
        yield replace(e, data=data + e.data[-1:])


def _other_in_one(space, e):
    for i, alternative in enumerate(space.data.alternatives):
        if alternative.usual:
            yield replace(e, query_advantages=i)
            yield replace(e, advantages=i)


def _inside_product(space, e):
    k = space.data.records[0].mask.shape[2]
    for lam, wraps in product((1.0, 1 / k), (False, True)):
        if e.estimator == "dice":
            inside = replace(e, inside=True, lam=lam, wraps=wraps, bootstrapped=False)
            yield inside
            yield replace(inside, inner_average="padding")


def _fitted_score(space, e):
    """Any coefficient for each task's score, or for the mean of its log-likelihoods."""
    n_tasks, size = space.data.theta.shape
    if n_tasks + 4 <= size:
        yield replace(e, score="+fitted")
        yield replace(e, score="+fitted means")


def _lambda(space, e):
    if e.estimator in ("loaded_dice", "dice"):
        for x in (0.0, 0.5, 1.0):
            yield replace(e, lam=x, inside=e.estimator == "dice")


def _other_advantages(space, e):
    for i in range(len(space.data.alternatives)):
        yield replace(e, advantages=i, query_advantages=i)


ONE_MORE = {  # one more unknown: explanations near another one
    "query": _other_query,
    "data": _other_data,
    "advantages in one": _other_in_one,
    "padding": lambda space, e: [replace(e, inner_average="padding")],
    "inside": _inside_product,
    "score": _fitted_score,
    "scale": lambda space, e: [replace(e, scale=x) for x in (0.1, 1.0, 4.0)],
    "momentum": lambda space, e: [replace(e, momentum=x) for x in (0.0, 0.5, 0.9)],
    "weight_decay": lambda space, e: [replace(e, weight_decay=x) for x in (0.0, 0.01)],
    "lam": _lambda,
    "advantages": _other_advantages,
}
NUMBERS = ("scale", "momentum", "weight_decay", "lam")  # those are fitted, from the nearest on


# ---- how they are compared with the gradient


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


@dataclass(frozen=True)
class Trial:
    """An explanation and how well it fits."""

    explanation: Explanation
    error: float
    factor: float
    coefficients: tuple = ()  # of the score, where they are fitted


class Search:
    """Explanations, tried one after the other up to a limit."""

    def __init__(self, gradient, data, tolerance, limit):
        self.gradient = gradient
        self.data = data
        self.tolerance = tolerance
        self.limit = limit
        self.tried = 0
        self.trials = {}  # explanation → Trial

    @property
    def full(self):
        """Is the limit reached?"""
        return self.tried >= self.limit

    def fits(self):
        """The trials that agree with the gradient."""
        return [trial for trial in self.trials.values() if trial.error <= self.tolerance]

    def nearest(self, explanations=None):
        """Trials, of these explanations perhaps, the best first."""
        some = self.trials if explanations is None else explanations
        found = [self.trials[e] for e in some if e in self.trials]
        return sorted(found, key=lambda trial: trial.error)

    def run(self):
        """Try a stage after the other until something fits."""
        for stage in self.stages():
            for e in stage:
                if self.full:
                    return
                if e not in self.trials:
                    self.trials[e] = self.trial(e)
            if self.fits():
                return

    def stages(self):
        """Explanations from what is usual to what is not, as lists or generators."""
        space = Space(self.data)
        usual = [i for i, a in enumerate(self.data.alternatives) if a.usual]
        given = self.data.records[-1].advantages is not None
        for i in usual[:1] if given else usual:
            yield space.within(i, odd=0)
        nearest = [trial.explanation.advantages for trial in self.nearest()]
        first = [*usual[: 1 if given else 2], *list(dict.fromkeys(nearest))[:2]]
        first = list(dict.fromkeys(first))
        plausible = [e for i in first for e in space.within(i, odd=0)]
        for score in SCORES[:3]:
            yield [replace(e, score=score) for e in plausible]
        yield space.within(first[0], odd=2)
        yield from self.one_more(space, plausible)
        for i in first[1:]:
            yield space.within(i, odd=2)
        yield from self.one_more(space, [trial.explanation for trial in self.nearest()[:10]])

    def one_more(self, space, bases):
        """Stages with one more unknown on top of each base."""
        for name, near in ONE_MORE.items():
            if name in NUMBERS:
                variants = [x for e in bases for x in near(space, e)]
                yield variants
                for trial in self.nearest(variants)[:12]:
                    self.refine(trial, name)
                yield []
            else:
                yield (x for e in bases for x in near(space, e))

    def columns(self, e):
        """What the gradient is a sum of by an explanation; infinite where θ runs away."""
        try:
            with np.errstate(all="ignore"):
                return self.data.columns(e)
        except NotFinite:
            return [np.full(self.gradient.shape, np.inf)]

    def trial(self, e):
        """The trial of an explanation."""
        self.tried += 1
        c, error = fit(self.gradient, *self.columns(e))
        factor = float(c[0])
        return Trial(e, error, factor, tuple(c[1:] / (factor or 1.0)))

    def refine(self, trial, field):
        """Fit one number of a trial by Gauss and Newton's method, and keep the best."""
        for _ in range(8):
            if self.full or not self.tolerance / 100 < trial.error < np.inf:
                break
            e = trial.explanation
            x = getattr(e, field)
            width = 1e-4 * (1 + abs(x))
            low = self.columns(replace(e, **{field: x - width}))[0]
            high = self.columns(replace(e, **{field: x + width}))[0]
            with np.errstate(invalid="ignore"):
                slope = (high - low) / (2 * width)
            c, _ = fit(self.gradient, *self.columns(e), slope)
            if c[0] == 0 or c[-1] == 0:
                break
            x = float(x + c[-1] / c[0])
            new = self.trial(replace(e, **{field: x}))
            if new.error > max(0.7 * trial.error, self.tolerance):
                break
            trial = min(trial, new, key=lambda trial: trial.error)
        self.trials[trial.explanation] = trial
