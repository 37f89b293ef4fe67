"""Policies as data and pure functions of their parameters θ: log π(a|s; θ), its weighted score, entropy and KL.

A table of log-probabilities has shape (…, S, A); parameters without a leading N are shared by all tasks, adapted ones have it.
Parameters of any finite size give finite log-probabilities.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd.extend import defvjp, primitive


class NotFinite(ValueError, FloatingPointError):
    """Parameters that are NaN or infinite: bad input where a user gave them, an accident of arithmetic where training made them."""


@primitive
def log_softmax(x):
    """log softmax over the last axis of x (…, A), finite for every finite x. ∂_x (g·f) = g − softmax(x) Σ g."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


defvjp(log_softmax, lambda f, x: lambda g: g - np.exp(f) * np.sum(g, -1, keepdims=True))


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy:
    """π(a|s) ∝ exp(θ_aᵀφ(s)): any distribution over the actions in each state when tabular. Sutton & Barto (2018), eq. 13.2–13.3."""

    n_states: int  # S
    n_actions: int  # A
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S

    def __post_init__(self):
        _check_features(self)

    def init(self):
        """θ = 0 (F, A): the uniform policy."""
        return np.zeros((_rows(self), self.n_actions))

    def log_pi(self, theta):
        """log π(a|s; θ) for all states: θ (…, F, A) → (…, S, A)."""
        return log_softmax(_linear(self, theta))

    def tangent(self, theta, v):
        """vᵀ∇_θ log π(a|s; θ) = v_aᵀφ(s) − Σ_a' π(a'|s) v_a'ᵀφ(s) for all states: θ, v (…, F, A) → (…, S, A)."""
        x = _linear(self, v)
        return x - np.sum(np.exp(self.log_pi(theta)) * x, -1, keepdims=True)

    def weighted_score(self, theta, weights):
        """Σ_{s,a} w(s,a) ∇_θ log π(a|s; θ) = Σ_s φ(s) (w(s,·) − π(·|s) Σ_a w(s,a)): θ (…, F, A), w (…, S, A) → (…, F, A)."""
        residual = weights - np.exp(self.log_pi(theta)) * np.sum(weights, -1, keepdims=True)
        return _linear_transpose(self, residual)


@dataclass(frozen=True, eq=False)
class LogisticPolicy:
    """Independent binary units: π(1|s) = σ(θᵀφ(s)), and with m units A = 2^m actions, unit u being bit u of the action.

    log π(a|s) is the *sum* over units. Any deterministic policy can be represented, but of the stochastic ones only products of
    the units' distributions: of four moves (up, down, left, right) unit 0 is the direction along an axis and unit 1 the axis.
    """

    n_states: int  # S
    units: int = 1  # m
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S

    def __post_init__(self):
        if self.units < 1:
            raise ValueError(f"units: {self.units} is less than 1")
        _check_features(self)

    @property
    def n_actions(self):
        """A = 2^m."""
        return 2**self.units

    @property
    def bits(self):
        """(A, m): bit u of action a, as 0.0 or 1.0."""
        return (np.arange(self.n_actions)[:, None] >> np.arange(self.units) & 1).astype(float)

    def init(self):
        """θ = 0 (F, m): the uniform policy."""
        return np.zeros((_rows(self), self.units))

    def log_pi(self, theta):
        """log π(a|s; θ) = Σ_u log σ(±θ_uᵀφ(s)) for all states: θ (…, F, m) → (…, S, A)."""
        x = _linear(self, theta)
        return np.dot(-np.logaddexp(0, -x), self.bits.T) + np.dot(-np.logaddexp(0, x), 1 - self.bits.T)

    def tangent(self, theta, v):
        """vᵀ∇_θ log π(a|s; θ) = Σ_u (a_u − σ(θ_uᵀφ(s))) v_uᵀφ(s) for all states: θ, v (…, F, m) → (…, S, A)."""
        x, sigma = _linear(self, v), np.exp(-np.logaddexp(0, -_linear(self, theta)))
        return np.dot(x, self.bits.T) - np.sum(sigma * x, -1, keepdims=True)

    def weighted_score(self, theta, weights):
        """Σ_{s,a} w(s,a) ∇_θ log π(a|s; θ) = Σ_s φ(s) Σ_a w(s,a) (a_u − σ(θ_uᵀφ(s))): θ (…, F, m), w (…, S, A) → (…, F, m)."""
        sigma = np.exp(-np.logaddexp(0, -_linear(self, theta)))
        residual = np.dot(weights, self.bits) - sigma * np.sum(weights, -1, keepdims=True)
        return _linear_transpose(self, residual)


@dataclass(frozen=True, eq=False)
class ActorCritic:
    """A policy and a state value in one array: θ (F, A + 1), or (F, m + 1), whose last column are the weights w of V(s) = wᵀφ(s)."""

    actor: SoftmaxPolicy | LogisticPolicy

    @property
    def n_states(self):
        return self.actor.n_states

    @property
    def n_actions(self):
        return self.actor.n_actions

    def init(self):
        """θ = 0: the uniform policy and V = 0."""
        theta = self.actor.init()
        return np.zeros((len(theta), theta.shape[1] + 1))

    def _checked(self, theta):
        return _checked(theta, *self.init().shape)

    def values(self, theta):
        """V(s) for all states: θ (…, F, A + 1) → (…, S)."""
        w = self._checked(theta)[..., -1:]
        return (w if self.actor.features is None else np.matmul(self.actor.features, w))[..., 0]

    def log_pi(self, theta):
        """log π of the actor: θ (…, F, A + 1) → (…, S, A)."""
        return self.actor.log_pi(self._checked(theta)[..., :-1])

    def tangent(self, theta, v):
        """The actor's; the value's column changes nothing: θ, v (…, F, A + 1) → (…, S, A)."""
        return self.actor.tangent(theta[..., :-1], v[..., :-1])

    def weighted_score(self, theta, weights):
        """The actor's, and 0 for the value's column: θ (…, F, A + 1), w (…, S, A) → (…, F, A + 1)."""
        score = self.actor.weighted_score(theta[..., :-1], weights)
        return np.concatenate([score, np.zeros(np.shape(score)[:-1] + (1,))], -1)


def _rows(policy):
    return policy.n_states if policy.features is None else policy.features.shape[1]


def _check_features(policy):
    if policy.n_states < 1 or policy.n_actions < 1:
        raise ValueError(f"n_states, n_actions: {policy.n_states} and {policy.n_actions} must be at least 1")
    if policy.features is not None:
        shape = np.shape(policy.features)
        if len(shape) != 2 or shape[0] != policy.n_states or not np.isfinite(policy.features).all():
            raise ValueError(f"features: expected finite numbers of shape ({policy.n_states}, F), got shape {shape}")
        object.__setattr__(policy, "features", np.asarray(policy.features, float))


def _checked(theta, rows, columns):
    """θ as an array; ValueError unless it is (…, rows, columns) and finite."""
    theta = np.array(theta, float) if isinstance(theta, (list, tuple)) else theta
    if np.shape(theta)[-2:] != (rows, columns):
        raise ValueError(f"theta: expected shape (…, {rows}, {columns}), got {np.shape(theta)}")
    if not np.isfinite(theta).all():
        place = np.argwhere(~np.isfinite(theta))[0]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(("task", "state or feature", "column")[-len(place):], place))
        raise NotFinite(f"theta: parameters that are not finite (at {where})")
    return theta


def _linear(policy, theta):
    """θᵀφ(s) for every state, (…, F, A) → (…, S, A)."""
    theta = _checked(theta, _rows(policy), getattr(policy, "units", policy.n_actions))
    return theta if policy.features is None else np.matmul(policy.features, theta)


def _linear_transpose(policy, x):
    """Σ_s φ(s) x(s), (…, S, A) → (…, F, A)."""
    return x if policy.features is None else np.matmul(policy.features.T, x)


def entropy(log_p):
    """H(p) = −Σ_a p log p in nats over the last axis of log-probabilities (…, A); 0·log 0 is 0."""
    return -np.sum(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0), -1)


def kl(log_p, log_q):
    """KL(p‖q) = Σ_a p (log p − log q) in nats over the last axis of (…, A): the expectation is under the *first* argument."""
    possible = np.isfinite(log_p)
    return np.sum(np.exp(log_p) * (np.where(possible, log_p, 0.0) - np.where(possible, log_q, 0.0)), -1)
