"""What each estimator must give on recorded data, and what it converges to.

For arrays from PyTorch, JAX or anything else. `estimator_gradients`, `exact_gradients` and
`expected_gradients` return {name: gradient}, the candidates that `diagnosis.check_gradient`
compares a gradient with. `Data.columns` gives that of an `Explanation`, of which
`diagnosis.diagnose` tries many.

Of the policy they need three operations on the steps of data set j at parameters θ_j, one for each
task. With f_t = ∇log π(a_t|s_t), weights w_t and a direction v these are

    gradient    Σ w_t f_t                      along    f_t · v
    hvp         Σ w_t ∇²log π(a_t|s_t) v       (Hessian-vector product)

and the Hessians Ĥ of the surrogates follow, c_t = λ c_{t−1} + f_t being the sum of the scores up to
t:

    naive          hvp of w
    lvc            naive's + Σ w_t f_t (f_t·v)
    loaded_dice    naive's + Σ w_t [c_t (c_t·v) − (c_t − f_t)((c_t − f_t)·v)]
    dice           Σ ρ_t [c_t (c_t·v) + ∇c_t v] − Σ β_t [f_t (f_t·v) + ∇f_t v]

ρ_t are the weights of the rewards, β_t those of the baseline, w_t = Σ_{u≥t} ρ_u − β_t.
What each adds to naive's is a sum Σ x_t f_t with numbers x_t, hence a `gradient`: no array is
larger than the data. Dice's row, too, is naive's and such a sum: ∇c_t v = Σ_{u≤t} λ^{t−u} ∇f_u v,
and where λ = 1 the sum over t leaves Σ_{u≥t} ρ_u − β_t = w_t before each ∇f_t v = ∇²log π v.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from metarl_np.arguments import (
    require,
    require_array,
    require_finite,
    require_floats,
    require_shapes,
    validate,
)
from metarl_np.check import meta_gradients
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import LinearPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import discounts, gae, leave_one_out_baseline, reward_to_go
from metarl_np.meta.maml import centred_returns
from metarl_np.tasks import exact

# ---- policies: θ (N, …), and steps (T, N, K) of data set j


class LinearSteps:
    """The operations for a LinearPolicy π ∝ exp(φ(s)ᵀ θ f(a)), θ (N, F, m).

    They go through tables (N, S, A); see `LinearPolicy` and `Reinforce.pullback` for the formulas,
    which are plain NumPy here, as a search asks for them ten thousand times.
    """

    def __init__(self, policy, records):
        self.phi = np.eye(policy.n_states) if policy.features is None else policy.features
        self.bits = np.eye(policy.n_actions) if policy.bits is None else policy.bits
        self.shape = (records[0].mask.shape[1], policy.n_states, policy.n_actions)
        task = np.arange(self.shape[0])[:, None]
        places = [(task, r.states, r.actions) for r in records]
        self.entries = [np.ravel_multi_index(place, self.shape) for place in places]

    def gradient(self, j, thetas, w):
        """Σ w f: (N, F, m)."""
        return self._score(self._folded(j, w), self._pi(thetas))

    def along(self, j, thetas, v):
        """f·v: (T, N, K)."""
        return self._tangent(self._pi(thetas), v).ravel()[self.entries[j]]

    def hvp(self, j, thetas, w, v):
        """Σ w ∇²log π v: (N, F, m)."""
        pi = self._pi(thetas)
        in_state = self._folded(j, w).sum(-1, keepdims=True)
        return self._score(-in_state * pi * self._tangent(pi, v), pi)

    def log_probs(self, j, thetas):
        """log π(a_t|s_t): (T, N, K)."""
        return np.log(self._pi(thetas)).ravel()[self.entries[j]]

    def _pi(self, thetas):
        logits = self.phi @ thetas @ self.bits.T
        pi = np.exp(logits - logits.max(-1, keepdims=True))
        return pi / pi.sum(-1, keepdims=True)

    def _folded(self, j, w):
        """Σ w [s_t = s, a_t = a]: (N, S, A)."""
        table = np.bincount(self.entries[j].ravel(), w.ravel(), prod(self.shape))
        return table.reshape(self.shape)

    def _score(self, table, pi):
        return self.phi.T @ (table - pi * table.sum(-1, keepdims=True)) @ self.bits

    def _tangent(self, pi, v):
        x = self.phi @ v @ self.bits.T
        return x - (pi * x).sum(-1, keepdims=True)


class OwnSteps:
    """The operations through two functions of the user's, `scores` and `hvp`, of θ (N, P)."""

    log_probs = None  # they do not say them

    def __init__(self, policy, records):
        self.policy = policy
        self.masks = [r.mask for r in records]
        self.last = {}  # j → (θ, scores): they are asked for at the same θ many times

    def gradient(self, j, thetas, w):
        """Σ w f: (N, P)."""
        return np.einsum("tnk,tnkp->np", w, self._scores(j, thetas))

    def along(self, j, thetas, v):
        """f·v: (T, N, K)."""
        return np.einsum("tnkp,np->tnk", self._scores(j, thetas), v)

    def hvp(self, j, thetas, w, v):
        """Σ w ∇²log π v: (N, P)."""
        result = require_array("policy.hvp", self.policy.hvp(j, thetas, w, v), thetas.shape)
        require_finite(result, "policy.hvp: Hessian-vector products")
        return result

    def _scores(self, j, thetas):
        known, scores = self.last.get(j, (None, None))
        if known is None or not np.array_equal(known, thetas):
            shape = self.masks[j].shape + thetas.shape[1:]
            scores = require_array("policy.scores", self.policy.scores(j, thetas), shape)
            scores = np.where(self.masks[j][..., None], scores, 0.0)
            require_finite(scores, "policy.scores: scores")
            self.last[j] = thetas, scores
        return scores


# ---- the weights of the steps

AVERAGES = ("episodes", "steps", "lengths", "sum")


def average_weights(record, average):
    """What the sum over a task's steps is multiplied with: (N, K).

    "episodes" is the mean over episodes of sums over time, "steps" the mean over all steps of a
    task, "lengths" the mean over episodes of means over time, "sum" the sum over all; "padding" is
    the mean over all places, masked ones as well.
    """
    lengths = np.maximum(record.mask.sum(0), 1.0)
    steps = np.maximum(record.mask.sum((0, 2)), 1.0)[:, None]
    episodes = np.maximum(record.count, 1.0)[:, None]
    divisors = {
        "episodes": episodes,
        "steps": steps,
        "lengths": lengths * episodes,
        "sum": 1.0,
        "padding": len(record.mask) * episodes,
    }
    return np.ones(lengths.shape) / divisors[average]


def average_ratio(records, average, other):
    """The number by which the weights of two averages differ in these data, None if by several."""
    ratios = []
    for r in records:
        ratio = average_weights(r, average) / average_weights(r, other)
        ratios.extend(ratio[r.mask.any(0)])
    same = np.allclose(ratios, ratios[0], rtol=1e-12, atol=0)
    return ratios[0] if same else None


def returns_to_go(record, discount):
    """G_t: (T, N, K)."""
    return reward_to_go(record.rewards * record.mask, discount)


def bootstrapped_returns(record, discount):
    """G_t with V(s_T) behind the last step: (T, N, K)."""
    nothing = 0.0 * record.rewards
    last = record.last_values
    return gae(record.rewards, nothing, record.mask, last, discount=discount, lam=1.0)


def decayed_sum(x, lam):
    """c_t = λ c_{t−1} + x_t: (T, …) → (T, …)."""
    c = np.array(x, float)
    for t in range(1, len(c)):
        c[t] += lam * c[t - 1]
    return c


# ---- what a code may do

ACTS = "acts"  # an inner step, and its effect is differentiated
DETACHED = "detached"  # it acts, as a constant
IDLE = "idle"  # it has no effect
SCORES = ("+score", "+raw")  # those that make the estimate unbiased for (b); others are mistakes


@dataclass(frozen=True)
class Explanation:
    """What a code may do: one point of the space that `diagnosis` searches.

    The variants of dice: its baseline is G less the advantages, or G with V(s_T) less them
    ("bootstrapped"); or the advantages stand in the product instead ("inside"), whose sum perhaps
    takes the last step for the one before the first ("wraps").

    The score of the inner data, ∇log p, is multiplied with the query's mean return J less that of
    the other tasks ("+score"), or J ("+raw"), or it is that of step 0 only ("+first"). Or it has
    any factor for each task ("+fitted"), be it the log-likelihood's or that of the mean over all
    steps ("+fitted means").
    """

    estimator: str = "naive"
    variant: str = ""
    advantages: int = 0  # which of the alternatives, in the support sets
    query_advantages: int = 0
    average: str = "episodes"  # of the query
    inner_average: str = "episodes"
    discounted: bool = True  # is γᵗ kept in the query
    inner_discounted: bool = True
    steps: tuple = ()  # ACTS, DETACHED or IDLE, for each inner step
    data: tuple = ()  # which data set each inner step takes
    query: int = -1  # which data set is the query
    score: str = ""  # is it added, and how
    scale: float = 1.0  # of the step size; negative where the inner steps descend
    momentum: float = 0.0
    weight_decay: float = 0.0
    lam: float = 1.0  # λ of loaded_dice, and of the product

    @property
    def inside(self):
        """Do the advantages stand inside DiCE's product?"""
        return self.variant in ("inside", "wraps")

    @property
    def right_score(self):
        """Is the score none, or one that belongs there?"""
        return self.score in ("", *SCORES)

    @property
    def forward(self):
        """The Explanation without what matters only on the way back from θ_J to θ."""
        if self.inside:
            return replace(self, score="")
        return replace(self, estimator="naive", variant="", score="", lam=1.0)


@dataclass(frozen=True)
class Alternative:
    """Advantages that a code may have used."""

    sentence: str
    of_record: object  # a function: record → (T, N, K)
    usual: bool = True  # is it tried first?


class Data:
    """The recorded data sets, and what follows from them by an Explanation.

    steps: LinearSteps or OwnSteps. theta: (N, …), as these take it. named: {name: record} of
    J support sets and the query. alternatives: what advantages may be. Of what was computed last a
    little is kept, as a search asks for it again.
    """

    def __init__(self, steps, theta, named, alternatives, step_size, discount):
        self.steps = steps
        self.theta = theta
        self.names = list(named)
        self.records = list(named.values())
        self.alternatives = alternatives
        self.step_size = step_size
        self.discount = discount
        self.returns = [returns_to_go(r, discount) for r in self.records]
        self.weights = lru_cache(2 * len(named))(self._weights)
        self.forward = lru_cache(1)(self._forward)

    def factors(self, j, average, discounted):
        """γᵗ, if that is kept, × the average's weights, 0 where masked: (T, N, K)."""
        mask = self.records[j].mask
        factors = mask * average_weights(self.records[j], average)
        return factors * discounts(self.discount, len(mask), mask) if discounted else factors

    def _weights(self, j, advantages, average, discounted):
        """w_t = Â_t × `factors`: (T, N, K)."""
        of_record = self.alternatives[advantages].of_record
        return of_record(self.records[j]) * self.factors(j, average, discounted)

    def inner_weights(self, i, e):
        """w_t of inner step i: (T, N, K)."""
        return self.weights(e.data[i], e.advantages, e.inner_average, e.inner_discounted)

    def first(self, j, thetas, w, e):
        """The first derivative of the surrogate: (N, …)."""
        return self.steps.gradient(j, thetas, self._first_weights(j, w, e))

    def _first_weights(self, j, w, e):
        """x of Σ x_t f_t, the surrogate's first derivative."""
        return self._after(j, w, e) if e.inside else w

    def _so_far(self, j, x, e):
        """c_t·v of f_t·v; the sum may wrap around from the first step to the last."""
        if e.variant == "wraps":
            x = x.copy()
            x[0, :, 0] += e.lam * x[self._last(j)]
        return decayed_sum(x, e.lam)

    def _after(self, j, w, e):
        """The transpose of `_so_far`: Σ_t w_t c_t = Σ_t x_t f_t, w → x."""
        x = decayed_sum(w[::-1], e.lam)[::-1]
        if e.variant == "wraps":
            x[self._last(j)] += e.lam * x[0, :, 0]
        return x

    def _last(self, j):
        """Where the last step of each task's last episode stands."""
        mask = self.records[j].mask
        return mask[:, :, -1].sum(0) - 1, np.arange(mask.shape[1]), -1

    def curvature(self, j, thetas, w, v, e):
        """Ĥ v of the estimator: (N, …)."""
        if e.estimator == "first_order":
            return 0.0 * v
        of_log_pi = self.steps.hvp(j, thetas, self._first_weights(j, w, e), v)
        if e.estimator == "naive":
            return of_log_pi
        along = self.steps.along(j, thetas, v) * self.records[j].mask
        return of_log_pi + self.steps.gradient(j, thetas, self._products(j, w, along, e))

    def _products(self, j, w, along, e):
        """x of Σ x_t f_t, what products of two scores add to Ĥ v: (T, N, K)."""
        if e.estimator == "lvc":
            return w * along
        so_far = self._so_far(j, along, e)
        if e.estimator == "loaded_dice":
            return w * (so_far - along) + self._after(j, w * along, e)
        if e.inside:
            return self._after(j, w * so_far, e)
        returns = self.returns[j]
        if e.variant == "bootstrapped":
            returns = bootstrapped_returns(self.records[j], self.discount)
        to_go = returns * self.factors(j, e.inner_average, e.inner_discounted)
        rho = to_go.copy()
        rho[:-1] -= to_go[1:]
        beta = to_go - w
        return self._after(j, rho * so_far, e) - beta * along

    def _forward(self, e):
        """θ before each inner step and after the last, (N, …) each, and the query's gradient."""
        thetas = [self.theta]
        moved = 0.0
        for i, does in enumerate(e.steps):
            theta = thetas[i]
            if does != IDLE:
                slope = self.first(e.data[i], theta, self.inner_weights(i, e), e)
                moved = e.momentum * moved + slope - e.weight_decay * theta
                theta = theta + e.scale * self.step_size * moved
                why = f" after inner step {i + 1}; is the step_size {self.step_size} too large?"
                require_finite(theta, "adapted parameters", why)
            thetas.append(theta)
        w = self.weights(e.query, e.query_advantages, e.average, e.discounted)
        return thetas, self.first(e.query, thetas[-1], w, e)

    def back(self, e, v, factor):
        """v at θ_J brought back to θ, and with it factor (N,) × the score of the inner data.

        With m the momentum's memory, θ_{j+1} = θ_j + α m_{j+1}, m_{j+1} = μ m_j + g_j(θ_j) − ω θ_j.
        """
        thetas, _ = self.forward(e.forward)
        memory = 0.0
        for i in reversed(range(len(e.steps))):
            if e.steps[i] != IDLE:
                memory = memory + e.scale * self.step_size * v
                v = v - e.weight_decay * memory
                if e.steps[i] == ACTS:
                    w = self.inner_weights(i, e)
                    v = v + self.curvature(e.data[i], thetas[i], w, memory, e)
                memory = e.momentum * memory
            if e.score and (i == 0 or e.score != "+first"):
                w = self.factors(i, "steps" if "means" in e.score else "sum", False)
                v = v + self.steps.gradient(i, thetas[i], w * factor[:, None])
        return v

    def columns(self, e):
        """The meta-gradient of an Explanation, mean over tasks, and each task's score: (…) each.

        The scores are apart only where their factors are to be fitted.
        """
        _, slope = self.forward(e.forward)
        returns = self.query_returns()
        if e.score.startswith("+fitted"):
            plain = self.back(replace(e, score=""), slope, None)
            scores = self.back(e, 0.0 * slope, np.ones(len(returns)))
            return [plain.mean(0), *scores / len(scores)]
        factor = returns if e.score == "+raw" else centred_returns(returns)
        return [self.back(e, slope, factor).mean(0)]

    def query_returns(self):
        """J (N,): mean discounted return of the query's episodes."""
        query = self.records[-1]
        return self.returns[-1][0].sum(-1) / query.count

    def gaps(self, e):
        """{name: how far recorded log-probabilities are from those of the path}."""
        thetas, _ = self.forward(e.forward)
        gaps = {}
        for j, record in enumerate(self.records):
            if record.log_probs is not None and self.steps.log_probs is not None:
                off = abs(self.steps.log_probs(j, thetas[j]) - record.log_probs)
                gaps[self.names[j]] = off[record.mask].max(initial=0.0)
        return gaps


# ---- doors


def require_records(support, query):
    """{name: record} of the data sets, which are `record`s; raises ValueError otherwise."""
    good = isinstance(support, (list, tuple))
    good = good and all(isinstance(e, RecordedEpisodes) for e in (*support, query))
    expected = "expected a list of `record`s, one for each inner step, and one `record`"
    require(good, "support, query", expected)
    return {f"support[{j}]": r for j, r in enumerate(support)} | {"query": query}


def is_own(policy):
    """Is it one of the user's, by its two functions?"""
    return all(callable(getattr(policy, name, None)) for name in ("scores", "hvp"))


def steps_of(policy, theta, named):
    """LinearSteps or OwnSteps, and θ of each task (N, …).

    theta: (F, m) or (N, F, m); of one's own policy (P,) or (N, P). Raises ValueError where these
    and {name: record} do not fit.
    """
    theta = require_floats("theta", theta, traced=False)
    records = list(named.values())
    n_tasks = records[0].mask.shape[1]
    for name, r in named.items():
        tasks = r.mask.shape[1]
        require(tasks == n_tasks, name, f"{tasks} tasks, where there should be {n_tasks}")
    if is_own(policy):
        steps = OwnSteps(policy, records)
        shape = theta.shape[-1:]
    else:
        table = theta.ndim in (2, 3) and theta.size
        require(table, "theta", f"expected shape (F, A), got {theta.shape}")
        policy = SoftmaxPolicy(*theta.shape[-2:]) if policy is None else policy
        linear = isinstance(policy, LinearPolicy)
        require(linear, "policy", f"{policy!r:.99} has no methods scores and hvp")
        for name, r in named.items():
            require(r.discrete, name, "states and actions are missing, which this policy needs")
            for what, size in (("states", policy.n_states), ("actions", policy.n_actions)):
                x = getattr(r, what)
                inside = x.min() >= 0 and x.max() < size
                require(inside, name, f"{what} outside 0..{size - 1}")
        steps = LinearSteps(policy, records)
        shape = policy.shape
    require_shapes(shape, (n_tasks, *shape), theta=theta)
    require(np.isfinite(theta), "theta", "not finite", ())
    return steps, theta + np.zeros((n_tasks, *shape))


# ---- candidates of `check_gradient`


@np.errstate(over="ignore", invalid="ignore")  # what is not finite raises
def estimator_gradients(
    theta,
    support,
    query,
    *,
    step_size,
    discount,
    baseline=leave_one_out_baseline,
    lam=1.0,
    policy=None,
):
    """{name: the meta-gradient, shaped as theta, that each estimator must give on these data}.

    Means over tasks. A name is first_order, a surrogate's, or one of them with "+score". theta:
    (F, A), or (P,) where the policy is one of your own. support: a list of `record`s, one for each inner step; query: one more. step_size: α.
    discount: γ. The weights γᵗ (G_t − b_t) keep γᵗ, in the inner steps and in the query, where most
    public code drops it. baseline: b of (returns, episodes), by default leave-one-out, the mean of
    the task's other episodes; a recorded baseline goes before it. lam: λ of loaded_dice. policy: a
    SoftmaxPolicy by default, or as in `diagnose`. The score's J is the query's mean return less that of the other tasks.
    With no inner step all of them are one array, which has "policy gradient" as its first name.
    Raises ValueError if recorded log-probabilities are not those of θ adapted so far.
    """
    step_size, discount, lam = validate(step_size=step_size, discount=discount, lam=lam)
    validate(baseline=baseline)
    named = require_records(support, query)
    steps, thetas = steps_of(policy, theta, named)
    axes, shape = (1, "(P,)") if is_own(policy) else (2, "(F, A)")
    require(np.ndim(theta) == axes, "theta", f"expected shape {shape}, got {np.shape(theta)}")

    def advantages(record):
        returns = returns_to_go(record, discount)
        b = record.baseline
        b = baseline(returns, record) if b is None else b
        return returns - require_floats("baseline", b, returns.shape, ())

    usual = [Alternative("G less the baseline", advantages)]
    data = Data(steps, thetas, named, usual, step_size, discount)
    order = tuple(range(len(support)))
    e = Explanation(steps=(ACTS,) * len(support), data=order)
    for name, gap in data.gaps(e).items():
        why = (
            "log-probabilities do not belong to the parameters of its inner step: off by up "
            f"to {gap:.2g}. Usual causes: other rewards, another step size, baseline or γᵗ in "
            "the inner step before it, or axes in another order"
        )
        require(gap < 1e-4, name, why)
    found = {}
    for score, estimator in product(("", "+score"), ESTIMATORS):
        decay = lam if estimator == "loaded_dice" else 1.0
        this = replace(e, estimator=estimator, score=score, lam=decay)
        (found[estimator + score],) = data.columns(this)
    return found if support else dict.fromkeys(["policy gradient", *found], found["naive"])


def exact_gradients(mdps, theta, *, step_size, steps=1, policy=None):
    """{"policy gradient": ∇J(θ), "(a)": ∇J(θ_k)}, exact, mean over tasks: (F, A) each.

    See `meta_gradients`; there are the Hessian and its parts, too.
    """
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    sizes = dict(step_size=step_size, steps=steps)
    adapted = meta_gradients.adapted_return_gradient(mdps, policy, theta, **sizes)
    slope = policy.weighted_score(theta, exact.policy_gradient_table(mdps, policy.log_pi(theta)))
    return {"policy gradient": slope.mean(0), "(a)": adapted.mean(0)}


def expected_gradients(
    mdps,
    theta,
    *,
    step_size,
    episodes,
    steps=1,
    baseline=leave_one_out_baseline,
    lam=1.0,
    policy=None,
):
    """{name: the expectation (F, A) of each estimator over all data sets of one tiny MDP}, and (b).

    With `exact_gradients` these are the candidates for a gradient that is the mean of many sampled
    ones. Raises ValueError if there are too many data sets.
    """
    validate(mdps=mdps)
    policy = SoftmaxPolicy(*mdps.shape[1:]) if policy is None else policy
    theta = require_array("theta", theta) * 1.0
    sizes = dict(episodes=episodes, steps=steps)
    naive = Reinforce(step_size, baseline, lam=lam)
    b = meta_gradients.expected_adapted_return_gradient(mdps, policy, theta, naive, **sizes)
    expected = {"(b)": b}
    for name, score in product(ESTIMATORS, ("", "+score")):
        inner = replace(naive, estimator=name)
        expected[name + score] = meta_gradients.expected_meta_gradient(
            mdps, policy, theta, inner, with_score=bool(score), **sizes
        )
    return expected
