"""Policies as data and pure functions of their parameters θ: log π(a|s; θ) and its gradient.

A table of log-probabilities is (…, S, A). Parameters that all tasks share have no leading axis N,
adapted ones do. Finite parameters give finite log-probabilities, as long as no logit φ(s)ᵀ θ f(a)
is above 8e307 in size: of two the difference is taken, which must be a float.
"""

from dataclasses import dataclass
from functools import cached_property

import autograd.numpy as np

from metarl_np.arguments import (
    NotFinite,
    Record,
    defvjp,
    primitive,
    read_only,
    require,
    require_finite,
    require_floats,
    require_memory,
    require_plain,
    set_fields,
    validate,
    validate_fields,
)


def sum_last(x):
    """Σ over the last axis, which is kept: (…, A) → (…, 1).

    Written as a product with ones, since NumPy takes ten times as long for a sum over a short last
    axis.
    """
    return np.matmul(x, np.ones((np.shape(x)[-1], 1)))


@primitive
def log_softmax(x):
    """log softmax(x)_a = x_a − log Σ_b exp x_b over the last axis: (…, A) → (…, A).

    The largest x is taken off first, so that nothing overflows. Actions come first while it is
    computed, since reductions over a short last axis are slow.
    """
    x = require_floats("x", x, single=True)
    require(x.ndim > 0, "x", "a number, where (…, A) is expected")
    columns = np.multiply(x.reshape(-1, x.shape[-1]).T, 1.0, order="C")  # (A, …)
    columns -= columns.max(0)
    columns -= np.log(np.exp(columns).sum(0))
    return columns.T.reshape(x.shape)


def _log_softmax_vjp(f, x):
    """∂f_a/∂x_b = [a = b] − softmax(x)_b, hence x̄ = f̄ − softmax(x) Σ_a f̄_a."""
    return lambda f_bar: f_bar - np.exp(f) * sum_last(f_bar)


defvjp(log_softmax, _log_softmax_vjp)


class LinearPolicy(Record):
    """What the policies share: π(a|s) ∝ exp(φ(s)ᵀ θ f(a)), with parameters θ (F, m).

    φ (S, F) are the `features` of the states; where they are None φ(s) is one-hot, and θ a table
    with a row for each state. f (A, m) are the `bits` of the actions, one-hot where they are None.
    Hence the score is ∇log π(a|s) = φ(s) (f(a) − E_π f)ᵀ. The arrays are read-only copies.
    """

    bits = None

    def __post_init__(self):
        validate(n_states=self.n_states, n_actions=self.n_actions)
        validate_fields(self, *(vars(self).keys() - {"features"}))
        require_memory(8, self.n_states, self.n_actions)  # of log π
        if self.features is not None:
            phi = require_floats("features", self.features).copy()
            fits = phi.ndim == 2 and phi.size and len(phi) == self.n_states
            expected = f"expected finite numbers of shape ({self.n_states}, F), got {phi.shape}"
            require(fits and np.isfinite(phi).all(), "features", expected)
            set_fields(self, features=read_only(phi))

    @property
    def shape(self):
        """(F, m), the shape of θ."""
        n_features = self.n_states if self.features is None else self.features.shape[1]
        return n_features, self.n_actions if self.bits is None else self.bits.shape[1]

    def init(self):
        """θ = 0 (F, m): the uniform policy."""
        return np.zeros(self.shape)

    def log_pi(self, theta):
        """log π(a|s; θ) for all states: θ (…, F, m) → (…, S, A)."""
        return log_softmax(self.logits(theta))

    def scores(self, theta):
        """The Scores at θ (…, F, m): for several of the sums below at one θ."""
        return Scores(self, np.exp(self.log_pi(theta)))

    def weighted_score(self, theta, weights):
        """Σ_{s,a} w(s, a) ∇log π(a|s; θ): θ (…, F, m), w (…, S, A) → (…, F, m)."""
        return self.scores(theta).weighted(weights)

    def tangent(self, theta, v):
        """vᵀ∇log π(a|s; θ), the change of log π along v: θ, v (…, F, m) → (…, S, A)."""
        return self.scores(theta).along(v)

    def logits(self, theta):
        """φ(s)ᵀ θ f(a): θ (…, F, m) → (…, S, A)."""
        x = self._outputs(theta)
        return x if self.bits is None else np.matmul(x, self.bits.T)

    def _outputs(self, theta):
        """φ(s)ᵀ θ: (…, F, m) → (…, S, m).

        Raises ValueError on another shape, NotFinite (which is one too) on what is not finite.
        """
        theta = require_floats("theta", theta)
        n_features, m = self.shape
        expected = f"expected shape (…, {n_features}, {m}), got {theta.shape}"
        require(theta.shape[-2:] == self.shape, "theta", expected)
        axes = ("task", "state or feature", "column")[-theta.ndim :]
        try:
            require(np.isfinite(theta), "theta", "parameters that are not finite", axes)
        except ValueError as error:
            raise NotFinite(error) from None
        return theta if self.features is None else np.matmul(self.features, theta)


@dataclass(frozen=True, eq=False)
class Scores(Record):
    """∇log π(a|s) = φ(s) (f(a) − E_π f)ᵀ of all states and actions, at one θ.

    Written out they would be (…, S, A, F, m). Only sums of them are needed, which are not so large.
    """

    policy: LinearPolicy
    pi: np.ndarray  # (…, S, A) π(a|s)

    def weighted(self, weights):
        """Σ_{s,a} w(s, a) ∇log π(a|s): w (…, S, A) → (…, F, m).

        That is Σ_s φ(s) Σ_a w(s, a) (f(a) − E_π f)ᵀ = Σ_s φ(s) Σ_a x(s, a) f(a)ᵀ with
        x(s, a) = w(s, a) − π(a|s) Σ_b w(s, b).
        """
        policy = self.policy
        weights = self._weights(weights)
        x = weights - self.pi * sum_last(weights)
        x = x if policy.bits is None else np.matmul(x, policy.bits)
        return x if policy.features is None else np.matmul(policy.features.T, x)

    def along(self, v):
        """vᵀ∇log π(a|s): v (…, F, m) → (…, S, A).

        That is φ(s)ᵀ v (f(a) − E_π f) = x(s, a) − E_π x(s, ·) with x(s, a) = φ(s)ᵀ v f(a).
        """
        v = require_floats("v", v)
        expected = f"expected shape (…, F, m), F, m = {self.policy.shape}, got {v.shape}"
        require(v.shape[-2:] == self.policy.shape, "v", expected)
        require_finite(v, "v: numbers")
        x = self.policy.logits(v)
        return x - sum_last(self.pi * x)

    def outer_products(self, weights, v):
        """[Σ_{s,a} w(s, a) ∇log π ∇log πᵀ] v: w (…, S, A), v (…, F, m) → (…, F, m)."""
        return self.weighted(self._weights(weights) * self.along(v))

    def _weights(self, weights):
        """w as floats; raises ValueError unless its shape is (…, S, A)."""
        weights = require_floats("weights", weights)
        table = (self.policy.n_states, self.policy.n_actions)
        expected = f"expected shape (…, S, A), S, A = {table}, got {weights.shape}"
        require(weights.shape[-2:] == table, "weights", expected)
        return weights


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy(LinearPolicy):
    """π(a|s) ∝ exp(θ_aᵀφ(s)), θ (F, A). Sutton & Barto (2018), eq. 13.2–13.3.

    ∇_b log π(a|s) = ([a = b] − π(b|s)) φ(s). Without features it is a table, which can hold any
    distribution over the actions in each state.
    """

    n_states: int  # S
    n_actions: int  # A
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S


@dataclass(frozen=True, eq=False)
class LogisticPolicy(LinearPolicy):
    """Independent binary units: π(1|s) = σ(θᵀφ(s)); with m units, θ (F, m), A = 2^m actions.

    Unit u decides bit u of the action: log π(a|s) = Σ_u log σ(±θ_uᵀφ(s)), a *sum* over the units,
    = Σ_u a_u θ_uᵀφ(s) − log(1 + exp θ_uᵀφ(s)). ∇_u log π(a|s) = (a_u − E_π a_u) φ(s), with
    E_π a_u = σ(θ_uᵀφ(s)).

    Such a policy comes as close to any deterministic one as one likes, but of the stochastic ones
    it can only be products of the units'. With four moves (up, down, left, right), for example,
    unit 0 is the direction along an axis and unit 1 the axis.
    """

    n_states: int  # S
    units: int = 1  # m
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S

    def __post_init__(self):
        validate_fields(self, "units")
        # 2^63 is refused by now: 2^m must not be computed for an m typed wrong, such as 10^18
        require_memory(8, 2 ** min(int(self.units), 63))
        super().__post_init__()

    @property
    def n_actions(self):
        """A = 2^m."""
        return 2**self.units

    @cached_property
    def bits(self):
        """Bit u of action a: (A, m)."""
        action = np.arange(self.n_actions)[:, None]
        return read_only(1.0 * (action >> np.arange(self.units) & 1))


@dataclass(frozen=True, eq=False)
class ActorCritic(LinearPolicy):
    """A policy and a state value in one θ, (F, A + 1) or (F, m + 1).

    The last column of θ, where f(a) = 0 for every action, is w in V(s) = wᵀφ(s).
    """

    actor: SoftmaxPolicy | LogisticPolicy

    def __post_init__(self):
        require_plain(actor=self.actor)
        known = isinstance(self.actor, (SoftmaxPolicy, LogisticPolicy))
        require(known, "actor", f"{self.actor!r:.99} is no policy to add a value to")

    @property
    def n_states(self):
        """S."""
        return self.actor.n_states

    @property
    def n_actions(self):
        """A."""
        return self.actor.n_actions

    @property
    def features(self):
        """φ (S, F), or None."""
        return self.actor.features

    @cached_property
    def bits(self):
        """f (A, A + 1) or (A, m + 1): the actor's, and a column of zeros."""
        f = np.eye(self.n_actions) if self.actor.bits is None else self.actor.bits
        return read_only(np.pad(f, ((0, 0), (0, 1))))

    def values(self, theta):
        """V(s) = wᵀφ(s) for all states: θ (…, F, A + 1) → (…, S)."""
        return self._outputs(theta)[..., -1]


def entropy(log_p):
    """H(p) = −Σ_a p log p in nats, of log-probabilities (…, A) → (…); 0 log 0 is 0."""
    log_p = require_floats("log_p", log_p, single=True)
    return -np.sum(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0), -1)


def kl(log_p, log_q):
    """KL(p‖q) = Σ_a p (log p − log q) in nats: (…, A), (…, A) → (…).

    The expectation is under the *first* argument.
    """
    log_p = require_floats("log_p", log_p, single=True)
    log_q = require_floats("log_q", log_q, single=True)
    one_size = np.shape(log_p)[-1:] == np.shape(log_q)[-1:]
    require(one_size, "log_p, log_q", "not of one number of actions")
    possible = np.isfinite(log_p)
    log_ratio = np.where(possible, log_p, 0.0) - np.where(possible, log_q, 0.0)
    return np.sum(np.exp(log_p) * log_ratio, -1)
