"""What a code may do with recorded data, and the meta-gradient that it then finds.

An `Explanation` says what a code does. `Recorded.columns` replays that on recorded data, forward
through the inner steps and back again, and gives the meta-gradient: one array, or that and the
score of each task, apart, where these are still to be multiplied with numbers that are fitted.

On the way back each inner step asks for the Hessian Ĥ of its surrogate. With the scores f_t and the
operations of `scores`, and c_t = λ c_{t−1} + f_t, the sum of the scores up to t, where those n
steps back count λⁿ, these are

    naive          hvp of w
    lvc            naive's + Σ w_t f_t (f_t·v)
    loaded_dice    naive's + Σ w_t [c_t (c_t·v) − (c_t − f_t)((c_t − f_t)·v)]
    dice           Σ ρ_t [c_t (c_t·v) + ∇c_t v] − Σ β_t [f_t (f_t·v) + ∇f_t v]

ρ_t are the weights of the rewards, β_t those of the baseline, w_t = Σ_{u≥t} ρ_u − β_t. What each
adds to naive's is a sum Σ x_t f_t with numbers x_t, hence a `gradient`: no array is larger than the
data. Dice's row is naive's and such a sum, too: as c_t = Σ_{u≤t} f_u (λ = 1), ∇f_u v = ∇²log π v of
step u has the factor Σ_{t≥u} ρ_t − β_u, which is w_u.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from metarl_np.arguments import require_finite
from metarl_np.learner.returns import discounts, gae, reward_to_go
from metarl_np.meta.maml import centred_returns

# ---- the weights of the steps

# "padding" is one more, which is a mistake: it is tried in the inner steps only
AVERAGES = ("episodes", "steps", "lengths", "sum", "lanes")


def average_weights(record, average):
    """What the sum over a task's steps is multiplied with: (N, K).

    "episodes" is the mean over episodes of sums over time, "steps" the mean over all steps of a
    task, "lengths" the mean over episodes of means over time, "sum" the sum over all, "lanes" the
    mean over lanes of sums over time, NaN where no lanes were cut; "padding" is the mean over all
    places, masked ones as well.
    """
    lengths = np.maximum(record.mask.sum(0), 1.0)
    steps = np.maximum(record.mask.sum((0, 2)), 1.0)[:, None]
    episodes = np.maximum(record.count, 1.0)[:, None]
    lanes = np.nan if record.lanes is None else record.lanes.max(1, keepdims=True) + 1.0
    divisors = {
        "episodes": episodes,
        "steps": steps,
        "lengths": lengths * episodes,
        "sum": 1.0,
        "lanes": lanes,
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
RIGHT_SCORES = (
    "+score",
    "+raw",
)  # those that make the estimate unbiased for (b); others are mistakes


@dataclass(frozen=True)
class Explanation:
    """What a code may do: one point of the space that `diagnosis` searches.

    The variants of dice: its baseline is G less the advantages, or G with V(s_T) less them
    ("bootstrapped"); or the advantages stand in the product instead ("inside"), whose sum perhaps
    takes the last step for the one before the first ("wraps"). The last is what learn2learn's
    maml_dice does: the steps of all episodes of a task stand there in one flat list, and each adds
    the one at index i − 1, from i = 0 on, so that the first step of the first episode gets the last
    step of the last episode. λ is 1/K there, K being the number of episodes: its weights, which
    should be 1 within an episode, are divided by K.

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
    does: tuple = ()  # ACTS, DETACHED or IDLE, for each inner step
    sets: tuple = ()  # which data set each inner step takes
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
    def wrong_score(self):
        """Is there a score, and none that belongs there?"""
        return self.score not in ("", *RIGHT_SCORES)

    @property
    def name(self):
        """The estimator, "+score" if a right one is added."""
        return self.estimator + "+score" * (self.score in RIGHT_SCORES)

    @cached_property
    def on_the_way(self):
        """The Explanation with what matters only on the way back, from θ_J to θ, left out."""
        if self.inside:
            return replace(self, score="")
        return replace(self, estimator="naive", variant="", score="", lam=1.0)


@dataclass(frozen=True)
class Alternative:
    """Advantages that a code may have used."""

    sentence: str
    of_record: object  # a function: record → (T, N, K)
    usual: bool = True  # is it tried first?


class Recorded:
    """The recorded data sets, and what follows from them by an Explanation.

    scores: LinearScores or OwnScores. theta: (N, …), as these take it. named: {name: record} of
    J support sets and the query. alternatives: what advantages may be. What steps are multiplied
    with has these names:

        factors        γᵗ, if it is kept, × the average's weight
        weights        w_t = Â_t × factor_t
        score_factor   of each task's score ∇log p: J, or J less that of the others
        Trial.factor   the gradient is factor × the estimate: a sign, or a sum for a mean

    Of what was computed last a little is kept, as a search asks for it again.
    """

    def __init__(self, scores, theta, named, alternatives, step_size, discount):
        self.scores = scores
        self.theta = theta
        self.names = list(named)
        self.records = list(named.values())
        self.alternatives = alternatives
        self.step_size = step_size
        self.discount = discount
        self.returns = [returns_to_go(r, discount) for r in self.records]
        self.weights = lru_cache(2 * len(named))(self._weights)
        self.path = lru_cache(1)(self._path)
        self.in_proportion = lru_cache(None)(self._in_proportion)

    def directions(self, enough):
        """How many gradients of these data are linearly independent, or `enough` if that is less.

        A table's rows sum to zero, and states that were not visited have none: so it is less than
        the number of parameters. It is the rank of the gradients of steps with random weights.
        """
        rng = np.random.default_rng(0)
        gradients = []
        for _ in range(enough):
            w = rng.normal(size=self.records[0].mask.shape) * self.records[0].mask
            gradients.append(self.scores.gradient(0, self.theta, w).sum(0).ravel())
        return np.linalg.matrix_rank(np.array(gradients))

    def factors(self, j, average, discounted):
        """γᵗ, if that is kept, × the average's weights, 0 where masked: (T, N, K)."""
        mask = self.records[j].mask
        factors = mask * average_weights(self.records[j], average)
        return factors * discounts(self.discount, len(mask), mask) if discounted else factors

    def _weights(self, j, advantages, average, discounted):
        """w_t = Â_t × `factors`: (T, N, K)."""
        of_record = self.alternatives[advantages].of_record
        return of_record(self.records[j]) * self.factors(j, average, discounted)

    def _in_proportion(self, j, i):
        """{k: ratio} of alternatives k that are ratio × alternative i in data set j, i among them.

        As those less a mean over time are 1 − 1/K times those less the mean of the others.
        """
        every = [x.of_record(self.records[j]) for x in self.alternatives]
        a = every[i]
        found = {i: 1.0}
        for k, other in enumerate(every):
            ratio = (a * other).sum() / ((a * a).sum() or 1.0)
            if ratio and np.allclose(other, ratio * a, atol=1e-9 * abs(a).max()):
                found.setdefault(k, ratio)
        return found

    def inner_weights(self, i, e):
        """w_t of inner step i: (T, N, K)."""
        return self.weights(e.sets[i], e.advantages, e.inner_average, e.inner_discounted)

    def first(self, j, thetas, w, e):
        """The first derivative of the surrogate: (N, …)."""
        return self.scores.gradient(j, thetas, self._first_weights(j, w, e))

    def _first_weights(self, j, w, e):
        """x of Σ x_t f_t, the surrogate's first derivative."""
        return self._after(j, w, e) if e.inside else w

    def _so_far(self, j, x, e):
        """c_t·v of f_t·v; the first step may get the last one's: index −1 wraps around."""
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
        of_log_pi = self.scores.hvp(j, thetas, self._first_weights(j, w, e), v)
        if e.estimator == "naive":
            return of_log_pi
        along = self.scores.along(j, thetas, v) * self.records[j].mask
        return of_log_pi + self.scores.gradient(j, thetas, self._products(j, w, along, e))

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

    def _path(self, e):
        """θ before each inner step and after the last, (N, …) each, and the query's gradient."""
        thetas = [self.theta]
        moved = 0.0
        for i, does in enumerate(e.does):
            theta = thetas[i]
            if does != IDLE:
                slope = self.first(e.sets[i], theta, self.inner_weights(i, e), e)
                moved = e.momentum * moved + slope - e.weight_decay * theta
                theta = theta + e.scale * self.step_size * moved
                why = f" after inner step {i + 1}; is the step_size {self.step_size} too large?"
                require_finite(theta, "adapted parameters", why)
            thetas.append(theta)
        w = self.weights(e.query, e.query_advantages, e.average, e.discounted)
        return thetas, self.first(e.query, thetas[-1], w, e)

    def back(self, e, v, score_factor):
        """v at θ_J brought back to θ, and with it score_factor (N,) × the score of the inner data.

        With m the momentum's memory, θ_{j+1} = θ_j + α m_{j+1}, m_{j+1} = μ m_j + g_j(θ_j) − ω θ_j.
        """
        thetas, _ = self.path(e.on_the_way)
        memory = 0.0
        for i in reversed(range(len(e.does))):
            if e.does[i] != IDLE:
                memory = memory + e.scale * self.step_size * v
                v = v - e.weight_decay * memory
                if e.does[i] == ACTS:
                    w = self.inner_weights(i, e)
                    v = v + self.curvature(e.sets[i], thetas[i], w, memory, e)
                memory = e.momentum * memory
            if e.score and (i == 0 or e.score != "+first"):
                w = self.factors(i, "steps" if "means" in e.score else "sum", False)
                v = v + self.scores.gradient(i, thetas[i], w * score_factor[:, None])
        return v

    def columns(self, e):
        """The meta-gradient of an Explanation, mean over tasks, and each task's score: (…) each.

        The scores are apart only where their factors are to be fitted.
        """
        _, slope = self.path(e.on_the_way)
        returns = self.query_returns()
        if e.score.startswith("+fitted"):
            plain = self.back(replace(e, score=""), slope, None)
            scores = self.back(e, 0.0 * slope, np.ones(len(returns)))
            return [plain.mean(0), *scores / len(scores)]
        score_factor = returns if e.score == "+raw" else centred_returns(returns)
        return [self.back(e, slope, score_factor).mean(0)]

    def query_returns(self):
        """J (N,): mean discounted return of the query's episodes."""
        query = self.records[-1]
        return self.returns[-1][0].sum(-1) / query.count

    def gaps(self, e):
        """{name: how far recorded log-probabilities are from those of the path}."""
        thetas, _ = self.path(e.on_the_way)
        gaps = {}
        for j, record in enumerate(self.records):
            if record.log_probs is not None and self.scores.log_probs is not None:
                off = abs(self.scores.log_probs(j, thetas[j]) - record.log_probs)
                gaps[self.names[j]] = off[record.mask].max(initial=0.0)
        return gaps
