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

ρ_t are the weights of the rewards, β_t those of the baseline, w_t = Σ_{u≥t} ρ_u − β_t. All are sums
Σ x_t f_t with numbers x_t, hence a `gradient`: no array is larger than the data.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from metarl_np.arguments import require, require_array, require_finite, validate
from metarl_np.check import meta_gradients
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import discounts, gae, leave_one_out_baseline, reward_to_go
from metarl_np.meta.maml import centred_returns, meta_gradient, replay
from metarl_np.tasks import exact

# ---- policies: θ (N, P), flat, and steps (T, N, K) of data set j


class LinearSteps:
    """The operations for a LinearPolicy π ∝ exp(φ(s)ᵀ θ f(a)), through tables (N, S, A).

    See `LinearPolicy` and `Reinforce.pullback` for the formulas. A search asks for the same θ many
    times; so π is kept here.
    """

    def __init__(self, policy, records):
        self.policy = policy
        features = policy.features
        self.phi = np.eye(policy.n_states) if features is None else features
        self.bits = np.eye(policy.n_actions) if policy.bits is None else policy.bits
        self.ones = np.ones((policy.n_actions, 1))
        self.entries = [self._entries(r) for r in records]  # of a table (N, S, A), (T, N, K)
        self.kept = {}  # j → (θ, π)

    def gradient(self, j, thetas, w):
        """Σ w f: (N, P)."""
        return self._score(self._folded(j, w), self._pi(j, thetas))

    def along(self, j, thetas, v):
        """f·v: (T, N, K)."""
        return self._tangent(self._pi(j, thetas), v).ravel()[self.entries[j]]

    def hvp(self, j, thetas, w, v):
        """Σ w ∇²log π v: (N, P)."""
        pi = self._pi(j, thetas)
        in_state = self._folded(j, w) @ self.ones
        return self._score(-in_state * pi * self._tangent(pi, v), pi)

    def log_probs(self, j, thetas):
        """log π(a_t|s_t): (T, N, K)."""
        return np.log(self._pi(j, thetas)).ravel()[self.entries[j]]

    def _pi(self, j, thetas):
        known, pi = self.kept.get(j, (None, None))
        if known is not thetas:
            log_pi = self.policy.log_pi(thetas.reshape(-1, *self.policy.shape))
            pi = np.exp(log_pi)
            self.kept[j] = thetas, pi
        return pi

    def _entries(self, r):
        n_states, n_actions = self.policy.n_states, self.policy.n_actions
        row = np.arange(r.mask.shape[1])[:, None] * n_states + r.states
        return row * n_actions + r.actions

    def _folded(self, j, w):
        """Σ w [s_t = s, a_t = a]: (N, S, A)."""
        shape = w.shape[1], self.policy.n_states, self.policy.n_actions
        table = np.bincount(self.entries[j].ravel(), w.ravel(), prod(shape))
        return table.reshape(shape)

    def _score(self, table, pi):
        x = table - pi * (table @ self.ones)
        return (self.phi.T @ x @ self.bits).reshape(len(x), -1)

    def _tangent(self, pi, v):
        x = self.phi @ v.reshape(-1, *self.policy.shape) @ self.bits.T
        return x - (pi * x) @ self.ones


class OwnSteps:
    """The operations through two functions of the user's, `scores` and `hvp`."""

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
    task, "lengths" the mean over episodes of means over time, "sum" the sum over all.
    """
    mask = record.mask
    episodes = np.maximum(record.count, 1.0)[:, None]
    if average == "lengths":
        return 1 / (np.maximum(mask.sum(0), 1.0) * episodes)
    total = {
        "episodes": lambda: episodes,
        "steps": lambda: np.maximum(mask.sum((0, 2)), 1.0)[:, None],
        "sum": lambda: 1.0,
        "padding": lambda: len(mask) * episodes,
    }
    return np.ones(mask.shape[1:]) / total[average]()


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


# what the score of the inner data, ∇log p, is multiplied with: the mean return J of the query less
# that of the other tasks, or J; and is it that of step 0 only? Or it has any factor for each task,
# of the log-likelihood or of the mean over all steps
SCORES = ("+score", "+raw", "+first", "+fitted", "+fitted means")


@dataclass(frozen=True)
class Explanation:
    """What a code may do: one point of the space that `diagnosis` searches."""

    estimator: str = "naive"
    advantages: int = 0  # which of the alternatives, in the support sets
    query_advantages: int = 0
    average: str = "episodes"  # of the query
    inner_average: str = "episodes"
    discounted: bool = True  # is γᵗ kept in the query
    inner_discounted: bool = True
    acts: tuple = ()  # for each inner step: has it an effect?
    differentiated: tuple = ()  # is it differentiated through?
    data: tuple = ()  # which data set each inner step takes, and last the query
    score: str = ""  # one of SCORES, or none
    scale: float = 1.0  # of the step size; negative where the inner steps descend
    momentum: float = 0.0
    weight_decay: float = 0.0
    lam: float = 1.0  # λ of loaded_dice, and of the product
    bootstrapped: bool = False  # dice: its baseline is G less the advantages; is V(s_T) in that G?
    inside: bool = False  # dice: do the advantages stand inside the product?
    wraps: bool = False  # is index −1 taken for the one before 0?


class Data:
    """The recorded data sets with what can be computed from them once.

    steps: LinearSteps or OwnSteps. records: J support sets and the query. alternatives: what
    advantages may be, each with a function of a record, `of_record`, that gives (T, N, K).
    """

    def __init__(self, steps, theta, records, alternatives, step_size, discount):
        self.steps = steps
        self.theta = theta  # (N, P)
        self.records = records
        self.alternatives = alternatives
        self.step_size = step_size
        self.discount = discount
        self.returns = [reward_to_go(r.rewards, discount) for r in records]
        self.weights = lru_cache(4)(self._weights)
        self.factors = lru_cache(4)(self._factors)
        self._path = lru_cache(4)(self._compute_path)
        self.slope = lru_cache(4)(self._compute_slope)

    def _weights(self, j, advantages, average, discounted):
        """w_t = Â_t × γᵗ, if that is kept, × the average's: (T, N, K)."""
        of_record = self.alternatives[advantages].of_record
        return self.factors(j, average, discounted) * of_record(self.records[j])

    def _factors(self, j, average, discounted):
        """γᵗ, if that is kept, × the average's weights, 0 where masked: (T, N, K)."""
        mask = self.records[j].mask
        factors = mask * average_weights(self.records[j], average)
        return factors * discounts(self.discount, len(mask), mask) if discounted else factors

    def first(self, j, thetas, w, e):
        """The first derivative of the surrogate: (N, P)."""
        return self.steps.gradient(j, thetas, self._summed(j, w, e) if e.inside else w)

    def _product(self, j, x, e):
        """c_t·v of f_t·v, the sums in DiCE's product; the first may wrap around to the last."""
        if e.wraps:
            x = x.copy()
            x[0, :, 0] += e.lam * x[self._last(j)]
        return decayed_sum(x, e.lam)

    def _summed(self, j, w, e):
        """The transpose of `_product`: Σ_t w_t c_t = Σ_t x_t f_t, w → x."""
        x = decayed_sum(w[::-1], e.lam)[::-1]
        if e.wraps:
            x[self._last(j)] += e.lam * x[0, :, 0]
        return x

    def _last(self, j):
        """Where the last step of each task's last episode stands."""
        mask = self.records[j].mask
        times = mask[:, :, -1].sum(0) - 1
        return times, np.arange(mask.shape[1]), -1

    def curvature(self, j, thetas, w, v, e):
        """Ĥ v of the estimator: (N, P)."""
        steps = self.steps
        if e.estimator == "first_order":
            return 0 * v
        if e.estimator == "naive":
            return steps.hvp(j, thetas, w, v)
        along = steps.along(j, thetas, v) * self.records[j].mask
        if e.estimator == "lvc":
            return steps.hvp(j, thetas, w, v) + steps.gradient(j, thetas, w * along)
        if e.estimator == "loaded_dice":
            so_far = decayed_sum(along, e.lam)
            after = decayed_sum((w * along)[::-1], e.lam)[::-1]
            x = w * (so_far - along) + after
            return steps.hvp(j, thetas, w, v) + steps.gradient(j, thetas, x)
        beta = 0.0 if e.inside else self._baseline_weights(j, w, e)
        rho = w
        if not e.inside:
            rho = w + beta
            rho[:-1] -= rho[1:].copy()
        x = self._summed(j, rho * self._product(j, along, e), e) - beta * along
        w = self._summed(j, w, e) if e.inside else w
        return steps.hvp(j, thetas, w, v) + steps.gradient(j, thetas, x)

    def _baseline_weights(self, j, w, e):
        """β, the weights of DiCE's baseline: (T, N, K)."""
        factors = self.factors(j, e.inner_average, e.inner_discounted)
        returns = self.returns[j]
        if e.bootstrapped:
            returns = bootstrapped_returns(self.records[j], self.discount)
        return factors * returns - w

    def path(self, e):
        """The θ_j (N, P) before each inner step and after the last."""
        query = dict(query_advantages=0, average="episodes", discounted=True)
        return self._path(replace(forward(e), **query, data=e.data[:-1]))

    def _compute_path(self, e):
        thetas = [self.theta]
        moved = 0.0
        for i, acts in enumerate(e.acts):
            if acts:
                w = self.inner_weights(i, e)
                step = self.first(e.data[i], thetas[i], w, e)
                moved = e.momentum * moved + step - e.weight_decay * thetas[i]
            thetas.append(thetas[i] + acts * e.scale * self.step_size * moved)
        return thetas

    def inner_weights(self, i, e):
        """w_t of inner step i: (T, N, K)."""
        return self.weights(e.data[i], e.advantages, e.inner_average, e.inner_discounted)

    def _compute_slope(self, e):
        """The query's gradient at θ_J: (N, P)."""
        w = self.weights(e.data[-1], e.query_advantages, e.average, e.discounted)
        return self.first(e.data[-1], self.path(e)[-1], w, e)

    def back(self, e, v, scores=None):
        """v at θ_J brought back to θ: (N, P). With zeros for scores, that of the inner data, too.

        With m the momentum's memory, θ_{j+1} = θ_j + α m_{j+1}, m_{j+1} = μ m_j + g_j(θ_j) − ω θ_j.
        """
        thetas = self.path(e)
        memory = 0.0 * v
        for i in reversed(range(len(e.acts))):
            if e.acts[i]:
                if scores is not None:
                    scores, _ = self._back_one(i, thetas[i], scores, 0.0 * v, e)
                v, memory = self._back_one(i, thetas[i], v, memory, e)
            if scores is not None and (i == 0 or e.score != "+first"):
                w = self.factors(i, "steps" if "means" in e.score else "sum", False)
                scores = scores + self.steps.gradient(i, thetas[i], w)
        return v, scores

    def _back_one(self, i, thetas, v, memory, e):
        memory = memory + e.scale * self.step_size * v
        through = v - e.weight_decay * memory
        if e.differentiated[i]:
            w = self.inner_weights(i, e)
            through = through + self.curvature(e.data[i], thetas, w, memory, e)
        return through, e.momentum * memory

    def columns(self, e):
        """The meta-gradient of an Explanation, mean over tasks, and each task's score: (P,) each.

        The scores are apart only where their factors are to be fitted.
        """
        slope = self.slope(forward(e))
        v, scores = self.back(e, slope, 0.0 * slope if e.score else None)
        if not e.score:
            return [v.mean(0)]
        if e.score.startswith("+fitted"):
            return [v.mean(0), *scores / len(scores)]
        factor = self.query_returns() if e.score == "+raw" else self.query_returns(centred_returns)
        return [(v + factor[:, None] * scores).mean(0)]

    def query_returns(self, centred=lambda x: x):
        """J (N,): mean discounted return of the query's episodes."""
        query = self.records[-1]
        return centred(self.returns[-1][0].sum(-1) / query.count)


def forward(e):
    """The Explanation without what matters only on the way back from θ_J to θ."""
    lam = e.lam if e.inside else 1.0
    return replace(e, estimator="naive", differentiated=(), score="", bootstrapped=False, lam=lam)


# ---- candidates of `check_gradient`


def require_records(support, query):
    """{name: record} of the data sets, which are `record`s; raises ValueError otherwise."""
    good = isinstance(support, (list, tuple))
    good = good and all(isinstance(e, RecordedEpisodes) for e in (*support, query))
    expected = "expected a list of `record`s, one for each inner step, and one `record`"
    require(good, "support, query", expected)
    return {f"support[{j}]": r for j, r in enumerate(support)} | {"query": query}


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
    """{name: the meta-gradient (F, A) that each estimator must give on these data}.

    Means over tasks. A name is first_order, a surrogate's, or one of them with "+score". theta:
    (F, A). support: a list of `record`s, one for each inner step; query: one more. step_size: α.
    discount: γ. The weights γᵗ (G_t − b_t) keep γᵗ, in the inner steps and in the query, where most
    public code drops it. baseline: b of (returns, episodes), by default leave-one-out, the mean of
    the task's other episodes; a recorded baseline goes before it. lam: λ of loaded_dice. policy: a
    SoftmaxPolicy by default. The score's J is the query's mean return less that of the other tasks.
    With no inner step all of them are one array, which has "policy gradient" as its first name.
    Raises ValueError if recorded log-probabilities are not those of θ adapted so far.
    """
    theta = require_array("theta", theta).astype(float)
    require(theta.ndim == 2 and theta.size, "theta", f"expected shape (F, A), got {theta.shape}")
    records = require_records(support, query)
    policy = SoftmaxPolicy(*theta.shape) if policy is None else policy
    validate(policy=policy, baseline=baseline)

    def recorded_or_given(returns, episodes):
        return baseline(returns, episodes) if episodes.baseline is None else episodes.baseline

    plain = {}
    scored = {}
    for estimator in ESTIMATORS:
        inner = Reinforce(step_size, recorded_or_given, estimator, lam)
        path = replay(policy, theta, inner, [*records.values()], discount, names=[*records])
        factor = centred_returns(path.returns[-1])
        with_score = meta_gradient(policy, path, inner, score_factor=factor)
        plain[estimator] = meta_gradient(policy, path, inner).mean(0)
        scored[f"{estimator}+score"] = with_score.mean(0)
    if not support:
        return dict.fromkeys(["policy gradient", *plain, *scored], plain["naive"])
    return plain | scored


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
