"""A step of REINFORCE on recorded episodes: plain gradient ascent, and MAML's inner step.

An inner update θ' = U(θ, D) has two methods. `prepare(policy, theta, episodes, discount)` keeps
what the step needs of the data D, and freezes what has no derivative. The call, (policy, theta,
prepared data) → θ', is then smooth in θ, and autograd differentiates it. Reinforce, FirstOrder, PPO
and TRPO are inner updates.

θ is (N, F, m) here, with a row for each task; F and m are `policy.shape`: (F, A) for a
SoftmaxPolicy, (F, A + 1) for an actor-critic on top of it.
"""

from dataclasses import dataclass
from typing import Callable

import autograd.numpy as np
from autograd import grad

from metarl_np.arguments import (
    Record,
    require,
    require_floats,
    unmasked,
    validate,
    validate_fields,
)
from metarl_np.learner.policies import sum_last
from metarl_np.learner.returns import leave_one_out_baseline, reward_to_go
from metarl_np.learner.rollouts import Episodes
from metarl_np.learner.surrogates import (
    SURROGATES,
    fold,
    gather_log_probs,
    magic_box,
    reinforce_weights,
    stop,
)

ESTIMATORS = ("first_order", "naive", "lvc", "dice", "loaded_dice")
FOLDED = ("first_order", "naive", "lvc")  # those that need of the episodes W(s, a) alone


def reinforce_table(episodes, discount, n_states, n_actions, *, baseline=leave_one_out_baseline):
    """The folded REINFORCE weights of Episodes: (N, S, A).

    W(s, a) = mean_k Σ_t γᵗ (G_t − b_t) [s_t = s, a_t = a].
    """
    weights = reinforce_weights(episodes, discount, baseline=baseline)
    return fold(weights, episodes.states, episodes.actions, n_states, n_actions)


@dataclass(frozen=True, eq=False)
class RecordedSteps(Record):
    """The data of an inner step whose estimator needs every step."""

    episodes: Episodes
    baseline: np.ndarray  # (T, N, K), or a number
    discount: float  # γ

    def surrogate(self, name, log_pi, **options):
        """The surrogate of that name at log π (N, S, A): (N,)."""
        e = self.episodes
        log_probs = gather_log_probs(log_pi, e.states, e.actions)
        arrays = (log_probs, e.rewards, self.baseline, e.mask)
        return SURROGATES[name](*arrays, self.discount, **options)


@dataclass(frozen=True)
class Reinforce:
    """θ' = θ + α ∇L(θ; D), L a REINFORCE surrogate of the data.

    The estimator names the surrogate (see `surrogates`). All lead to the same θ'; they differ in
    ∂θ'/∂θ = I + α Ĥ. "first_order" takes ∇L as a constant.
    """

    step_size: float  # α
    baseline: Callable = leave_one_out_baseline  # (returns, episodes) → (T, N, K)
    estimator: str = "naive"
    lam: float = 1.0  # λ of loaded_dice

    def __post_init__(self):
        validate_fields(self, "step_size", "baseline", "lam")
        unknown = f"{self.estimator!r:.99} is not one of {', '.join(ESTIMATORS)}"
        require(self.estimator in ESTIMATORS, "estimator", unknown)

    def prepare(self, policy, theta, episodes, discount):
        """Of Episodes W (N, S, A) where the estimator folds, else their RecordedSteps."""
        if self.estimator in FOLDED:
            sizes = (policy.n_states, policy.n_actions)
            return reinforce_table(episodes, discount, *sizes, baseline=self.baseline)
        returns = reward_to_go(unmasked(episodes.rewards, episodes.mask), discount)
        b = require_floats("baseline", self.baseline(returns, episodes), returns.shape, ())
        return RecordedSteps(episodes, b, discount)

    def __call__(self, policy, theta, data):
        """θ' of prepared data, per task: θ (N, F, m) → (N, F, m)."""
        theta = require_floats("theta", theta)
        return theta + self.step_size * self.gradient(policy, theta, data)

    def gradient(self, policy, theta, data):
        """∇L(θ; D) for prepared data, per task: θ (N, F, m) → (N, F, m)."""
        theta = require_floats("theta", theta)
        if self.estimator == "first_order":
            return stop(policy.weighted_score(theta, data))
        if self.estimator == "naive":
            return policy.weighted_score(theta, data)
        if self.estimator == "lvc":
            return policy.weighted_score(theta, data * magic_box(policy.log_pi(theta)))
        options = dict(lam=self.lam) if self.estimator == "loaded_dice" else {}

        def total(th):
            return np.sum(data.surrogate(self.estimator, policy.log_pi(th), **options))

        return grad(total)(theta)

    def pullback(self, policy, theta, data, v):
        """vᵀ ∂θ'/∂θ = v + α vᵀĤ in closed form: θ, v (N, F, m), W (N, S, A) → (N, F, m).

        For an estimator that folds and a LinearPolicy. There ∇²log π(a|s) is the same for every
        action, minus the Fisher matrix E_π ∇log π ∇log πᵀ of the state. With w̄(s) = Σ_a W(s, a)

            naive:  Ĥ = Σ W ∇²log π = −Σ_s w̄(s) Σ_a π(a|s) ∇log π(a|s) ∇log π(a|s)ᵀ
            lvc:    Ĥ = naive's + Σ_{s,a} W(s, a) ∇log π(a|s) ∇log π(a|s)ᵀ

        Both are weighted sums of outer products of scores.
        """
        if self.estimator == "first_order":
            return v
        scores = policy.scores(theta)
        weights = -sum_last(data) * scores.pi
        if self.estimator == "lvc":
            weights = data + weights
        return v + self.step_size * scores.outer_products(weights, v)


@dataclass(frozen=True)
class FirstOrder:
    """The same inner update with ∂θ'/∂θ = I. Finn et al. (2017), §5.2.

    For any inner update, PPO and TRPO too. FirstOrder(Reinforce(α)) gives what
    Reinforce(α, estimator="first_order") gives. What acts on the return only through the update, as
    a critic's column of θ does, gets no gradient.
    """

    inner: Callable

    def __post_init__(self):
        validate(inner=self.inner)

    @property
    def baseline(self):
        """The inner update's; the query uses it too."""
        return getattr(self.inner, "baseline", leave_one_out_baseline)

    @property
    def prepare(self):
        """The inner update's."""
        return self.inner.prepare

    @property
    def step_size(self):
        """The inner update's, None where it has none."""
        return getattr(self.inner, "step_size", None)

    def __call__(self, policy, theta, data):
        """θ + ⊥(U(θ) − θ): θ (N, F, m) → (N, F, m)."""
        start = stop(theta)
        return theta + (self.inner(policy, start, data) - start)
