"""Policies as data and pure functions of their parameters θ: log π(a|s; θ) and its gradient.

A table of log-probabilities is (…, S, A). Parameters that all tasks share have no leading axis N,
adapted ones do. Finite parameters give finite log-probabilities.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import (
    NotFinite,
    require,
    require_array,
    require_memory,
    set_fields,
    validate,
)


def sum_last(x):
    """Σ over the last axis, which is kept: (…, A) → (…, 1).

    A product with ones is ten times as fast as a sum over a short last axis.
    """
    return np.matmul(x, np.ones((x.shape[-1], 1)))


@primitive
def log_softmax(x):
    """log softmax(x)_a = x_a − log Σ_b exp x_b over the last axis: (…, A) → (…, A).

    The largest x is taken off first, so that nothing overflows. Actions come first while it is
    computed, since reductions over a short last axis are slow.
    """
    columns = np.multiply(x.reshape(-1, x.shape[-1]).T, 1.0, order="C")  # (A, …)
    columns -= columns.max(0)
    columns -= np.log(np.exp(columns).sum(0))
    return columns.T.reshape(x.shape)


def _log_softmax_vjp(f, x):
    """∂f_a/∂x_b = [a = b] − softmax(x)_b, hence x̄ = f̄ − softmax(x) Σ_a f̄_a."""
    return lambda g: g - np.exp(f) * sum_last(g)


defvjp(log_softmax, _log_softmax_vjp)


class LinearPolicy:
    """What the policies share: π(a|s) ∝ exp(φ(s)ᵀ θ f(a)), θ (F, m).

    φ (S, F) are the `features` of the states, or the identity where they are None (a table). f
    (A, m) are the `bits` of the actions, or one-hot where they are None. Hence
    ∇log π(a|s) = φ(s) (f(a) − E_π f)ᵀ.
    """

    bits = None

    def __post_init__(self):
        require_memory(8, self.n_states, self.n_actions)  # of log π
        if self.features is not None:
            phi = require_array("features", self.features).astype(float)
            fits = phi.ndim == 2 and phi.size and len(phi) == self.n_states
            expected = f"expected finite numbers of shape ({self.n_states}, F)"
            good = fits and np.isfinite(phi).all()
            require(good, "features", f"{expected}, got shape {phi.shape}")
            set_fields(self, features=phi)

    @property
    def shape(self):
        """(F, m), the shape of θ."""
        n_features = self.n_states if self.features is None else self.features.shape[1]
        return n_features, self.columns

    def init(self):
        """θ = 0 (F, m): the uniform policy."""
        return np.zeros(self.shape)

    def log_pi(self, theta):
        """log π(a|s; θ) for all states: θ (…, F, m) → (…, S, A)."""
        return log_softmax(self._logits(theta))

    def weighted_score(self, theta, weights):
        """Σ_{s,a} w(s, a) ∇log π(a|s; θ): θ (…, F, m), w (…, S, A) → (…, F, m).

        It is Σ_s φ(s) Σ_a w(s, a) (f(a) − E_π f)ᵀ.
        """
        table = (self.n_states, self.n_actions)
        require(np.shape(weights)[-2:] == table, "weights", "expected shape (…, S, A)")
        x = weights - np.exp(self.log_pi(theta)) * sum_last(weights)
        x = x if self.bits is None else np.matmul(x, self.bits)
        return x if self.features is None else np.matmul(self.features.T, x)

    def tangent(self, theta, v):
        """vᵀ∇log π(a|s; θ) = φ(s)ᵀ v (f(a) − E_π f) for all states: θ, v (…, F, m) → (…, S, A)."""
        require(np.shape(v)[-2:] == self.shape, "v", "expected the shape of theta")
        pi = np.exp(self.log_pi(theta))
        x = self._logits(v)
        return x - sum_last(pi * x)

    def _logits(self, theta):
        """φ(s)ᵀ θ f(a): θ (…, F, m) → (…, S, A)."""
        x = self._outputs(theta)
        return x if self.bits is None else np.matmul(x, self.bits.T)

    def _outputs(self, theta):
        """φ(s)ᵀ θ: (…, F, m) → (…, S, m). ValueError unless θ is of that shape and finite."""
        theta = require_array("theta", theta)
        n_features, columns = self.shape
        expected = f"expected shape (…, {n_features}, {columns}), got {np.shape(theta)}"
        require(np.shape(theta)[-2:] == self.shape, "theta", expected)
        if not np.isfinite(theta).all():
            place = np.argwhere(~np.isfinite(theta))[0]
            axes = ("task", "state or feature", "column")[-len(place) :]
            where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place))
            raise NotFinite(f"theta: parameters that are not finite (at {where})")
        return theta if self.features is None else np.matmul(self.features, theta)


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy(LinearPolicy):
    """π(a|s) ∝ exp(θ_aᵀφ(s)), θ (F, A). Sutton & Barto (2018), eq. 13.2–13.3.

    ∇_b log π(a|s) = ([a = b] − π(b|s)) φ(s). Without features it is a table, which holds any
    distribution over the actions in each state.
    """

    n_states: int  # S
    n_actions: int  # A
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S

    def __post_init__(self):
        validate(n_states=self.n_states, n_actions=self.n_actions)
        super().__post_init__()

    @property
    def columns(self):
        """A, of θ."""
        return self.n_actions


@dataclass(frozen=True, eq=False)
class LogisticPolicy(LinearPolicy):
    """Independent binary units: π(1|s) = σ(θᵀφ(s)); with m units, θ (F, m), A = 2^m actions.

    Unit u is bit u of the action: log π(a|s) = Σ_u log σ(±θ_uᵀφ(s)), a *sum* over the units,
    = Σ_u a_u θ_uᵀφ(s) − log(1 + exp θ_uᵀφ(s)). ∇_u log π(a|s) = (a_u − E_π a_u) φ(s), with
    E_π a_u = σ(θ_uᵀφ(s)). Any deterministic policy can be represented, but of the stochastic ones
    only products of the units': of four moves (up, down, left, right) unit 0 is the direction
    along an axis and unit 1 the axis.
    """

    n_states: int  # S
    units: int = 1  # m
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S

    def __post_init__(self):
        validate(n_states=self.n_states, units=self.units)
        super().__post_init__()

    @property
    def columns(self):
        """m, of θ."""
        return self.units

    @property
    def n_actions(self):
        """A = 2^m."""
        most = min(self.units, 99)  # so many are refused, without computing a number of 10^18 bits
        return 2**most

    @property
    def bits(self):
        """Bit u of action a: (A, m)."""
        action = np.arange(self.n_actions)[:, None]
        return 1.0 * (action >> np.arange(self.units) & 1)


@dataclass(frozen=True, eq=False)
class ActorCritic(LinearPolicy):
    """A policy and a state value in one θ, (F, A + 1) or (F, m + 1).

    The last column, where f(a) = 0, is w in V(s) = wᵀφ(s).
    """

    actor: SoftmaxPolicy | LogisticPolicy

    def __post_init__(self):
        known = isinstance(self.actor, (SoftmaxPolicy, LogisticPolicy))
        require(known, "actor", f"{self.actor!r:.99} is no policy to add a value to")
        one_hot = np.eye(self.n_actions) if self.actor.bits is None else self.actor.bits
        set_fields(self, bits=np.pad(one_hot, ((0, 0), (0, 1))))

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

    @property
    def columns(self):
        """A + 1 or m + 1, of θ."""
        return self.actor.columns + 1

    def values(self, theta):
        """V(s) = wᵀφ(s) for all states: θ (…, F, A + 1) → (…, S)."""
        return self._outputs(theta)[..., -1]


def entropy(log_p):
    """H(p) = −Σ_a p log p in nats, of log-probabilities (…, A) → (…); 0 log 0 is 0."""
    return -np.sum(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0), -1)


def kl(log_p, log_q):
    """KL(p‖q) = Σ_a p (log p − log q) in nats: (…, A), (…, A) → (…).

    The expectation is under the *first* argument.
    """
    one_size = np.shape(log_p)[-1:] == np.shape(log_q)[-1:]
    require(one_size, "log_p, log_q", "not of one number of actions")
    possible = np.isfinite(log_p)
    log_ratio = np.where(possible, log_p, 0.0) - np.where(possible, log_q, 0.0)
    return np.sum(np.exp(log_p) * log_ratio, -1)
