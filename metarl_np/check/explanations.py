"""What a code may do, as tables; and the search for what gives a gradient.

    alternative    advantages that a code may have used, and the sentence that says so
    explanation    all that a code may do: advantages, estimator, averages, steps, …
    trial          an explanation and how well it fits the gradient, with the factor that fits best
    variation      a row of VARIATIONS: a way to do something else than usual
    fact           what a variation finds in a trial, as a number, or nothing
    clause         the words that are said of a fact
    finding        a clause with its fact in it, as it stands in a Diagnosis

An `Explanation` is one point of a large space, and most codes are near its usual corner: any
estimator, one average, and γᵗ kept or dropped alike inside and outside, all inner steps acting and
each on its own data (`Search.plain`). VARIATIONS has a row for each way to leave that corner: what
it changes, what is then said, and its cost. A gradient fits if it is a multiple of the estimate
that the explanation leads to. The search goes through five stages until something fits:

    1. the corner, with one kind of usual advantages after the other
    2. one cheap variation, of cost at most 1, with the first kind
    3. two cheap ones at once
    4. one variation of any cost, with the four kinds that are likeliest or came nearest
    5. one more variation on top of each of the explanations that came nearest

Of several that fit the one of the least cost is believed. What fits is compared under all names
that it has: averages or advantages that are in proportion in the given data are one thing, whose
ratio goes into the factor or the step size, and a factor of ±1 costs nothing (`Trial.renamed`).

To try something new add a row: to RETURNS, LESS or AFTERWARDS for other advantages, or to
VARIATIONS.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice, product

import numpy as np

from metarl_np.arguments import NotFinite
from metarl_np.check.advantages import CHANGES, SCALES, explain_advantages, standardise
from metarl_np.check.replays import (
    ACTS,
    AVERAGES,
    DETACHED,
    IDLE,
    Alternative,
    Explanation,
    average_ratio,
    bootstrapped_returns,
    returns_to_go,
)
from metarl_np.check.verdict import fit
from metarl_np.learner.reinforce import ESTIMATORS
from metarl_np.learner.returns import (
    gae,
    leave_one_out_baseline,
    reward_to_go,
    time_mean_baseline,
)
from metarl_np.meta.maml import centred_returns

# ---- what advantages may be: a return less a baseline, and what is done afterwards


def _whole_return(record, discount):
    return returns_to_go(record, discount)[:1] + np.zeros(record.mask.shape)


def _shifted(steps, record, discount):
    """G of rewards r_(t+steps) in the place of r_t, where both are steps of the episode."""
    rewards = np.zeros(record.mask.shape)
    now, other = (slice(None, -1), slice(1, None))[::steps]
    rewards[now] = (record.rewards * record.mask)[other]
    return reward_to_go(rewards * record.mask, discount)


def _gae(lam, bootstrapped, record, discount):
    last = record.last_values if bootstrapped else 0.0
    return gae(record.rewards, record.values, record.mask, last, discount=discount, lam=lam)


# sentence: (what a record must have, function of record and discount)
SHIFTED = "G of rewards that are shifted by one, r_(t{}1) in the place of r_t (a mistake)"
RETURNS = {
    "G": ("", returns_to_go),
    "G with V(s_T) bootstrapped": ("last_values", bootstrapped_returns),
    "the whole return G_0 at each step, which is right but noisy, as what was paid before an "
    "action does not depend on it": ("", _whole_return),
    SHIFTED.format("+"): ("", partial(_shifted, 1)),
    SHIFTED.format("-"): ("", partial(_shifted, -1)),
}
# sentence: (what a record must have, function of record and returns)
LESS = {
    " less the recorded baseline": ("baseline", lambda r, g: r.baseline),
    " less the given values": ("values", lambda r, g: r.values),
    " less the mean of the other episodes": ("others", lambda r, g: leave_one_out_baseline(g)),
    ", with no baseline": ("", lambda r, g: 0.0),
    " less the mean over all episodes, which contains the episode itself (harmless but for a "
    "factor 1 - 1/K)": ("others", lambda r, g: time_mean_baseline(g)),
}
AS_GIVEN = "as given"
TWICE = "as given, with gamma^t in them that the loss multiplies with again, a mistake"
LAMBDAS = (0.9, 0.95, 0.97, 0.99)
DIVIDED = {
    "centred": "less the mean",
    "std": "centred and divided by the standard deviation",
    "variance": "centred and divided by the variance, a mistake for the standard deviation,",
}


def _last_steps(advantages, mask):
    """0 but at the last step of each episode."""
    goes_on = np.concatenate([mask[1:], np.zeros_like(mask[:1])])
    return advantages * (mask & ~goes_on)


# sentence: (function of advantages and mask, is it usual?)
AFTERWARDS = {
    f", {DIVIDED[divisor]} of each {scope}, with ddof {ddof}": (
        partial(standardise, divisor=divisor, over=over, ddof=ddof, scope=scope),
        divisor == "std",
    )
    for divisor, over, ddof, scope in SCALES
    if divisor in DIVIDED and over == "steps" and (divisor == "std" or scope == "task")
}
DONES = ", at the last step of each episode only: a mistake, dones stand where a mask belongs"
AFTERWARDS[DONES] = (_last_steps, False)


def _has(record, what):
    """Has a record what advantages are made from?"""
    if what == "others":
        return record.mask.shape[2] > 1
    return not what or getattr(record, what) is not None


def _less(returns, baseline, record, discount):
    g = returns(record, discount)
    return g - baseline(record, g)


def _not_standardised(records):
    """(sentence, advantages of a record and a discount, are they usual?), the usual ones first."""
    rows = []
    for kind, minus in product(RETURNS, LESS):
        needs, returns = RETURNS[kind]
        also, baseline = LESS[minus]
        usual = kind == "G" or (needs, also) == ("last_values", "values")
        rows.append(((needs, also), kind + minus, partial(_less, returns, baseline), usual))
    for lam, needs in product(LAMBDAS, ("", "last_values")):
        said = ", with V(s_T) bootstrapped" if needs else ""
        sentence = f"GAE of the given values, lambda {lam:g}{said}"
        rows.append((("values", needs), sentence, partial(_gae, lam, needs), False))
    possible = [
        row for needs, *row in rows if all(_has(r, what) for r in records for what in needs)
    ]
    return sorted(possible, key=lambda row: not row[-1])


def _without_gamma(record, discount):
    """The given advantages, divided by gamma^t if that stands in them."""
    changed = explain_advantages(record, discount=discount).changed
    undo, _ = CHANGES[changed if changed == "gamma^t" else None]
    return undo(record, record.advantages, discount)[1]


def alternatives(records, discount):
    """The Alternatives that a code may have used: the given first, then the usual."""
    found = []
    if all(r.advantages is not None for r in records):
        undone = {id(r): _without_gamma(r, discount) for r in records}
        found.append(Alternative(AS_GIVEN, lambda r: undone[id(r)]))
        if any(undone[id(r)] is not r.advantages for r in records):
            found.append(Alternative(TWICE, lambda r: r.advantages, usual=False))
    endings = [("", (_as_they_are, True), discount)]
    if discount != 1:
        said = f", with gamma = 1 in the place of {discount:g} (a mistake, if not meant)"
        endings.append((said, (_as_they_are, False), 1.0))
    endings += [(said, ending, discount) for said, ending in AFTERWARDS.items()]
    for ending, (sentence, advantages, usual) in product(endings, _not_standardised(records)):
        said, (after, also_usual), gamma = ending
        if usual or after is _as_they_are:
            of_record = partial(_ended, advantages, after, gamma)
            found.append(Alternative(sentence + said, of_record, usual and also_usual))
    return found


def _as_they_are(advantages, mask):
    return advantages


def _ended(advantages, after, discount, record):
    return after(advantages(record, discount), record.mask)


# ---- what is said of an explanation

# of AVERAGES, and of "padding", which is tried in the inner steps only
AVERAGE_SAYS = {
    "episodes": "the mean over episodes of sums over time",
    "steps": "the mean over all steps of a task",
    "lengths": "the mean over episodes, each divided by its length",
    "sum": "the sum over all steps",
    "lanes": "the mean over lanes of sums over time",
    "padding": "the mean over all steps and the padding as well",
}


def distinct_averages(records):
    """Those of AVERAGES whose weights are not those of one before in these recorded."""
    found = []
    for average in AVERAGES:
        has_one = average_ratio(records, average, average)  # lanes may not be known
        if has_one and not any(average_ratio(records, average, other) == 1 for other in found):
            found.append(average)
    return found


@dataclass(frozen=True)
class Trial:
    """An explanation, and how well it fits the recorded."""

    recorded: object  # the data sets
    e: Explanation
    c: tuple  # the gradient is Σ c x, x being the columns of the explanation
    error: float

    @property
    def factor(self):
        """The gradient is factor × the estimate."""
        return float(self.c[0])

    @property
    def term(self):
        """What the factor may be, beside 1: "" if it is 1, None if it has no name."""
        query = self.recorded.records[self.e.query]
        n, k = query.mask.shape[1:]
        t = query.mask.sum(0).mean()
        terms = {
            "": 1,
            "N: summed over tasks": n,
            "1/N: divided by the tasks twice": 1 / n,
            "T, the steps of an episode": t,
            "1/T, T being the steps of an episode": 1 / t,
            "K, the episodes of a task": k,
            "1/K, K being the episodes of a task": 1 / k,
            "K T, the steps of a task": k * t,
            "1/(K T), K T being the steps of a task": 1 / (k * t),
            "N K T, all steps": n * k * t,
            "N K, all episodes": n * k,
            "N T": n * t,
            "N/T": n / t,
            "N/(K T)": n / (k * t),
        }
        tolerance = min(max(3 * self.error, 1e-6), 0.01)
        near = [x for x in terms if np.isclose(abs(self.factor), terms[x], rtol=tolerance)]
        return near[0] if near else None

    @property
    def found(self):
        """[(Variation, what it finds)] of those that find something."""
        facts = [(row, row.fact(self)) for row in VARIATIONS]
        return [(row, fact) for row, fact in facts if fact]

    @property
    def cost(self):
        """Of what fits that is believed which has the least; then the first in the tables."""
        e = self.e
        order = e.advantages, ESTIMATORS.index(e.estimator), not e.discounted
        unusual = [row.cost for row in VARIATIONS if row.cost and row.fact(self)]
        return sum(unusual), *order

    def renamed(self):
        """The same with all names that averages and advantages may have in these recorded.

        Where two are in proportion their ratio goes into the factor or the step size.
        """
        e = self.e
        query = [self.recorded.records[e.query]]
        support = [self.recorded.records[j] for j in e.sets] or query
        for average, inner in product(AVERAGES, AVERAGE_SAYS):
            outside = average_ratio(query, e.average, average)
            inside = average_ratio(support, e.inner_average, inner)
            if outside and inside:
                named = replace(e, average=average, inner_average=inner)
                yield from replace(self, e=named)._rescaled(inside, outside)

    def _rescaled(self, inside, outside):
        """With advantages in proportion to these; inside and outside are ratios of the averages."""
        e = self.e
        alike = [self.recorded.in_proportion(j, e.advantages) for j in e.sets]
        if not alike or e.estimator == "dice" and not e.inside:  # its returns are not in proportion
            alike = [{e.advantages: 1.0}]
        of_query = self.recorded.in_proportion(e.query, e.query_advantages)
        for (i, times), (k, query_times) in product(alike[0].items(), of_query.items()):
            if all(np.isclose(other.get(i, np.inf), times) for other in alike):
                ratio = inside / times
                named = dict(scale=e.scale * ratio, weight_decay=e.weight_decay / ratio)
                named = replace(e, advantages=i, query_advantages=k, **named)
                yield replace(self, e=named, c=(self.c[0] * outside / query_times, *self.c[1:]))


def listed(numbers, form="{}"):
    """Numbers (M,) in a row, each as `form` writes it: a string."""
    return ", ".join(form.format(x) for x in numbers)


def _steps_that(do, e):
    return listed(i for i, what in enumerate(e.does) if what == do)


def _averages(x):
    """Both averages, where they differ."""
    e = x.e
    if {*e.does} <= {IDLE} or e.inner_average == e.average:
        return ""
    said = f"the inner loss is {AVERAGE_SAYS[e.inner_average]}, the outer one "
    said += AVERAGE_SAYS[e.average]
    records = [x.recorded.records[j] for j in e.sets]
    ratio = average_ratio(records, e.inner_average, e.average)
    same = " (or, which is the same here, both are the latter, and the step size is {:.4g})"
    return said + (same.format(ratio * e.scale * x.recorded.step_size) if ratio else "")


def _moved(x):
    """Which steps take another's data."""
    taken = enumerate(x.e.sets)
    return ", ".join(f"step {i} takes the data set {j}" for i, j in taken if i != j)


def _two_advantages(x):
    """The advantages inside and outside, where they differ."""
    inside = x.recorded.alternatives[x.e.advantages].sentence
    outside = x.recorded.alternatives[x.e.query_advantages].sentence
    used = {*x.e.does} - {IDLE}
    return used and inside != outside and f"inside are {inside}, those of the query {outside}"


def _unused(x):
    """The data sets whose advantages were given and not used, as others have none."""
    given = [r.advantages is not None for r in x.recorded.records]
    return not all(given) and listed(name for name, is_so in zip(x.recorded.names, given) if is_so)


def _are_rewards(x):
    """Are the advantages the rewards, but for what is bootstrapped?"""
    record = x.recorded.records[-1]
    a = x.recorded.alternatives[x.e.query_advantages].of_record(record)
    followed = record.mask[1:]
    return np.allclose(a[:-1][followed], record.rewards[:-1][followed])


def _coefficients(x):
    """The fitted factors of the score, and those that it should have."""
    coefficients = np.array(x.c[1:]) / x.factor
    if abs(coefficients).max(initial=0) <= 1e-6 * abs(x.recorded.query_returns()).max():
        return ""
    numbers = listed(coefficients, "{:.3g}")
    of = "the mean of the log-likelihoods" if "means" in x.e.score else "the log-likelihood"
    centred = listed(centred_returns(x.recorded.query_returns()), "{:.3g}")
    return f"{numbers} per task of {of}, where J - c, {centred}, belongs"


def _other_log_probs(x):
    """The data sets whose log-probabilities are not those of the path, and how far they are off."""
    off = "{} are not those of the path, but off by up to {:.2g}"
    gaps = x.recorded.gaps(x.e).items()
    return ", and of ".join(off.format(name, gap) for name, gap in gaps if gap > 1e-4)


# ---- the table


@dataclass(frozen=True)
class Variation:
    """A row: a way to leave the usual corner.

    It has up to three uses: `changed` proposes explanations, `fact` and `clause` say what is
    unusual in a trial, and `cost` makes it less likely to be believed. A row may have some of them
    only, and what one proposes may be said by rows below it.
    """

    fact: object  # a function: Trial → what is found, or nothing
    clause: str = ""  # what is said of that
    cost: float = 0.0
    changed: object = (
        lambda recorded, e: ()
    )  # Recorded and an Explanation → those with one more variation
    number: str = ""  # the field that is fitted, from the nearest on


def _with(**values):
    """A function that gives an explanation each of these values of one field."""
    ((field, some),) = values.items()
    return lambda recorded, e: [replace(e, **{field: x}) for x in some]


def _other_steps(recorded, e):
    for does in product((ACTS, DETACHED, IDLE), repeat=len(e.does)):
        if ACTS in does or DETACHED not in does:
            yield replace(e, does=does)


def _kept_in_one(recorded, e):
    return [replace(e, inner_discounted=not e.discounted)] if recorded.discount != 1 else []


def _other_query(recorded, e):
    return [replace(e, query=j) for j in e.sets]


def _other_data(recorded, e):
    return [replace(e, sets=x) for x in product(e.sets, repeat=len(e.sets))]


def _other_in_one(recorded, e):
    for i, alternative in enumerate(recorded.alternatives):
        if alternative.usual:
            yield replace(e, query_advantages=i)
            yield replace(e, advantages=i)


def _inside_product(recorded, e):
    k = recorded.records[0].mask.shape[2]
    averages = (e.inner_average, "padding")
    for lam, variant, average in product((1.0, 1 / k), ("inside", "wraps"), averages):
        if e.estimator == "dice":
            yield replace(e, variant=variant, lam=lam, inner_average=average)


def _fitted_score(recorded, e):
    """Any coefficient for each task's score, or for the mean of its log-likelihoods.

    Only where the data tell more numbers than are fitted: else these would explain any gradient.
    """
    enough = len(recorded.theta) + 4
    if recorded.directions(enough) == enough:
        yield replace(e, score="+fitted")
        yield replace(e, score="+fitted means")


def _lambda(recorded, e):
    if e.estimator in ("loaded_dice", "dice"):
        for lam in (0.0, 0.5, 1.0):
            variant = e.variant if e.inside else "inside" * (e.estimator == "dice")
            yield replace(e, lam=lam, variant=variant)


def _other_advantages(recorded, e):
    for i in range(len(recorded.alternatives)):
        yield replace(e, advantages=i, query_advantages=i)


DROPPED = "gamma^t is dropped {}: as most public code does; what comes of it is the gradient of "
DROPPED += "nothing in particular"
VARIATIONS = [
    Variation(
        lambda x: x.factor < 0, "the sign is that of a loss, which is minimised: a convention"
    ),
    Variation(
        lambda x: x.term, "the factor is {}: harmless but for the size of the outer step", 0.5
    ),
    Variation(
        lambda x: x.term is None and f"{x.factor:.4g}",
        "the factor {} has no name: is a number multiplied with the loss?",
        1.5,
    ),
    Variation(
        lambda x: x.e.score,
        cost=0.5,
        changed=_with(score=["+score", "+raw", "+first"]),
    ),
    Variation(
        lambda x: not x.e.discounted and not x.e.inner_discounted and "inside and outside", DROPPED
    ),
    Variation(
        lambda x: x.e.discounted != x.e.inner_discounted
        and ("in the inner steps only" if x.e.discounted else "in the query only"),
        DROPPED,
        1,
        changed=_kept_in_one,
    ),
    Variation(
        _averages,
        "{}: harmless, but the inner step size then means another thing than it seems to",
        0.4,
        changed=_with(inner_average=AVERAGES),
    ),
    Variation(
        lambda x: x.e.does and {*x.e.does} == {IDLE},
        "no inner step has an effect: a mistake, this is the policy gradient",
        1,
        changed=_other_steps,
    ),
    Variation(
        lambda x: {*x.e.does} != {IDLE} and _steps_that(IDLE, x.e),
        "inner step {} has no effect: a mistake",
        1,
    ),
    Variation(
        lambda x: ACTS in x.e.does and _steps_that(DETACHED, x.e),
        "inner step {} is not differentiated through: a mistake, unless first-order MAML was meant "
        "for all steps",
        1,
    ),
    Variation(
        lambda x: x.e.scale < 0,
        "the inner steps descend: a mistake, their sign is wrong",
        1,
        changed=_with(scale=[-1.0]),
    ),
    Variation(
        lambda x: x.e.query >= 0 and str(x.e.query),
        "the query is the support set of step {}: a mistake, as adapted parameters are to be "
        "judged by new data that they sampled",
        2,
        changed=_other_query,
    ),
    Variation(
        _moved,
        "{}: a mistake, as each step needs new data, of the parameters adapted up to there",
        2,
        changed=_other_data,
    ),
    Variation(
        lambda x: x.e.inner_average == "padding",
        "the inner mean is over the padding as well: a mistake unless all episodes are as long, as "
        "the step size then depends on the padding",
        2,
        changed=_with(inner_average=["padding"]),
    ),
    Variation(
        lambda x: x.e.inside and _are_rewards(x),
        "the rewards stand inside DiCE's product, without a baseline: right, but noisy",
        2,
        changed=_inside_product,
    ),
    Variation(
        lambda x: x.e.inside and not _are_rewards(x),
        "the advantages stand inside DiCE's product, where a baseline biases even the first "
        "derivative: a mistake; the rewards belong there, and the baseline b outside, as "
        "(1 - box) b",
        2,
    ),
    Variation(
        lambda x: x.e.variant == "wraps",
        "index -1 wraps around to the last step: a mistake, the sum begins at 0",
        1,
    ),
    Variation(
        lambda x: x.e.lam != 1 and f"{x.e.lam:.4g}",
        "lambda is {0}, the product decays with {0}: a convention, between bias and variance",
        2,
        changed=_lambda,
        number="lam",
    ),
    Variation(
        lambda x: abs(x.e.scale) != 1
        and f"{x.e.scale * x.recorded.step_size:.6g}, not {x.recorded.step_size:.6g}",
        "the inner step size is {}: is it the outer one?",
        2.5,
        changed=_with(scale=[0.01, 0.1, 1.0, 4.0, 10.0, 100.0]),
        number="scale",
    ),
    Variation(
        lambda x: x.e.momentum and f"{x.e.momentum:.4g}",
        "the inner steps have a momentum of {}, which is differentiated through: a convention, but "
        "MAML's step is plain gradient ascent",
        2,
        changed=_with(momentum=[0.0, 0.5, 0.9]),
        number="momentum",
    ),
    Variation(
        lambda x: x.e.weight_decay and f"{x.e.weight_decay:.4g}",
        "the inner steps have a weight decay of {}: a convention, but MAML's step is plain "
        "gradient ascent",
        2,
        changed=_with(weight_decay=[0.0, 0.01]),
        number="weight_decay",
    ),
    Variation(
        lambda x: x.e.score == "+raw",
        "the score's factor is J, without the other tasks' mean: right, but noisier",
    ),
    Variation(
        lambda x: x.e.score == "+first",
        "the score is that of the first inner step only: a mistake, as the data of later steps "
        "depend on theta as well",
    ),
    Variation(
        _coefficients,
        "it has a score term with the coefficients {}: a mistake; the score is a sum over all "
        "episodes and steps, and its factor is the task's mean return less that of the others",
        2,
        changed=_fitted_score,
    ),
    Variation(_two_advantages, "the advantages {}: are both meant?", 1.1, changed=_other_in_one),
    Variation(
        _other_log_probs,
        "the log_probs of {}, the path being the parameters that these inner steps lead to: the "
        "data come from other parameters than the loss differentiates; explain_step says which",
    ),
    Variation(
        _unused,
        "the advantages of {} were not used, as other data sets have none: give those of all",
    ),
    Variation(
        lambda x: 0 < x.e.advantages == x.e.query_advantages, cost=1.1, changed=_other_advantages
    ),
]


# ---- how explanations are compared with the gradient

LIMIT = 20_000  # explanations are tried, unless told otherwise
WORK = 2e9  # steps are gone through at most, all explanations together: a minute or so


class Search:
    """Explanations, tried one after the other up to a limit.

    columns: a function of an explanation: what the target is a sum of.
    """

    def __init__(self, target, recorded, columns, tolerance, limit=None):
        self.target = target
        self.recorded = recorded
        self.columns = columns
        self.tolerance = tolerance
        steps = sum(r.mask.size for r in recorded.records)
        self.limit = limit or min(LIMIT, 1000 + int(WORK / steps))
        self.tried = 0
        self.trials = {}  # Explanation → Trial

    @property
    def full(self):
        """Is the limit reached?"""
        return self.tried >= self.limit

    def fits(self):
        """The trials that agree with the gradient."""
        return [trial for trial in self.trials.values() if trial.error <= self.tolerance]

    def nearest(self, some=None):
        """Trials, of these explanations perhaps, the best first."""
        found = [self.trials[e] for e in some or self.trials if e in self.trials]
        return sorted(found, key=lambda trial: trial.error)

    def run(self):
        """Try a stage after the other until something fits."""
        for explanations, number in self.stages():
            self.try_all(explanations)
            if number:
                for trial in self.nearest(explanations)[:12]:
                    self.refine(trial, number)
            if self.full or self.fits():
                return

    def stages(self):
        """(explanations, the field that is fitted to the nearest of them), the usual ones first."""
        usual = [i for i, a in enumerate(self.recorded.alternatives) if a.usual]
        if self.recorded.alternatives[0].sentence == AS_GIVEN:
            usual = usual[:1]
        for i in usual:  # 1. the corner
            yield self.plain(i), ""
        nearest = dict.fromkeys(trial.e.advantages for trial in self.nearest())
        some = dict.fromkeys([*usual[:2], *list(nearest)[:2]])
        plausible = [e for i in some for e in self.plain(i)]
        corner = list(self.plain(usual[0]))
        cheap = [row for row in VARIATIONS if row.cost <= 1]
        for row in cheap:  # 2. one cheap variation
            yield self.varied(row, corner)
        spoken = [row for row in cheap if row.clause]
        for one, other in combinations(spoken, 2):  # 3. two at once
            yield self.varied(other, self.varied(one, corner)[0])
        for row in VARIATIONS:  # 4. one of any cost
            yield self.varied(row, plausible)
        near = self.nearest()
        simple = [trial for trial in near if len(trial.c) == 1]  # where nothing else is fitted
        for row in VARIATIONS:  # 5. one more on top
            yield self.varied(row, [trial.e for trial in (*simple[:10], *near[:10])])

    def plain(self, advantages):
        """Explanations that do the same inside and outside, in steps that all act."""
        records = self.recorded.records
        n_steps = len(records) - 1
        kept = (True, False) if self.recorded.discount != 1 else (True,)
        for average, discounted, estimator in product(distinct_averages(records), kept, ESTIMATORS):
            e = Explanation(
                estimator=estimator,
                advantages=advantages,
                query_advantages=advantages,
                average=average,
                inner_average=average,
                discounted=discounted,
                inner_discounted=discounted,
                does=(ACTS,) * n_steps,
                sets=tuple(range(n_steps)),
            )
            yield e
            if estimator == "dice" and all(r.last_values is not None for r in records):
                yield replace(e, variant="bootstrapped")

    def varied(self, row, bases):
        """A stage with one more variation on top of each of the bases."""
        return (
            list(dict.fromkeys(x for e in bases for x in row.changed(self.recorded, e))),
            row.number,
        )

    @np.errstate(all="ignore")
    def try_all(self, explanations):
        """Try those that are new, the ones with the same path after each other."""
        new = (e for e in explanations if e not in self.trials)
        groups = {}
        for e in islice(new, self.limit - self.tried):
            groups.setdefault(e.on_the_way, []).append(e)
        for group in groups.values():
            for e in group:
                self.trials[e] = self.trial(e)

    def trial(self, e):
        """The trial of an explanation."""
        self.tried += 1
        c, error = fit(self.target, *self._columns(e))
        return Trial(self.recorded, e, tuple(c), error)

    def _columns(self, e):
        """What the target is a sum of; infinite where θ runs away."""
        try:
            return self.columns(e)
        except NotFinite:
            return [np.full(self.target.shape, np.inf)]

    @np.errstate(all="ignore")
    def refine(self, trial, field):
        """Fit one number x of a trial by Gauss and Newton's method, and keep the best.

        Near x the target is about times (g + dx g'), g being the gradient at x and g' how it
        changes with x: fitted as times g + change g', it says that dx = change/times.
        """
        for _ in range(8):
            if self.full or not self.tolerance / 100 < trial.error < np.inf:
                break
            x = getattr(trial.e, field)
            width = 1e-6 * (1 + abs(x))
            (now, *_), (after, *_) = (
                self._columns(replace(trial.e, **{field: y})) for y in (x, x + width)
            )
            (times, change), _ = fit(self.target, now, (after - now) / width)
            if times == 0:
                break
            new = self.trial(replace(trial.e, **{field: float(x + change / times)}))
            if new.error > 0.7 * trial.error:
                break
            trial = new
        self.trials[trial.e] = trial
