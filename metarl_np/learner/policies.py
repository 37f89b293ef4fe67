"""Policies as data and pure functions of their parameters θ: log π(a|s; θ), its weighted score, entropy and KL.
A table of log-probabilities is (…, S, A); parameters that all tasks share have no leading N. Finite ones give finite log-probabilities.
"""

from dataclasses import dataclass

import autograd.numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import NotFinite, require, require_array, require_memory, validate


def sum_last(x):
    """Σ over the last axis, which is kept: (…, A) → (…, 1). A product with ones is ten times as fast as a sum over a short last axis."""
    return np.matmul(x, np.ones((x.shape[-1], 1)))


@primitive
def log_softmax(x):
    """log softmax over the last axis of x (…, A), finite for every finite x. ∂_x (g·f) = g − softmax(x) Σ g."""
    columns = np.multiply(
        x.reshape(-1, x.shape[-1]).T, 1.0, order="C"
    )  # (A, …): reductions over a short last axis are slow
    columns -= columns.max(0)
    columns -= np.log(np.exp(columns).sum(0))
    return columns.T.reshape(x.shape)


defvjp(log_softmax, lambda f, x: lambda g: g - np.exp(f) * sum_last(g))


class LinearPolicy:
    """π(a|s) ∝ exp(φ(s)ᵀ θ f(a)): what the two policies share. φ (S, F) is the identity if `features` is None; f (A, m) are the `bits` of
    an action, or one-hot if that is None. Hence ∇log π(a|s) = φ(s) (f(a) − E_π f)ᵀ."""

    bits = None

    def __post_init__(self):
        require_memory(8, self.n_states, self.n_actions)  # of log π
        if self.features is not None:
            phi = require_array("features", self.features).astype(float)
            fits = (
                phi.ndim == 2 and phi.size and len(phi) == self.n_states and np.isfinite(phi).all()
            )
            require(
                fits,
                "features",
                f"expected finite numbers of shape ({self.n_states}, F), got shape {phi.shape}",
            )
            object.__setattr__(self, "features", phi)

    shape = property(
        lambda self: (
            self.n_states if self.features is None else self.features.shape[1],
            self.columns,
        )
    )  # (F, m) of θ

    def init(self):
        """θ = 0: the uniform policy."""
        return np.zeros(self.shape)

    def _outputs(self, theta):
        """φ(s)ᵀθ for all states: (…, F, m) → (…, S, m). Raises ValueError unless θ is of that shape and finite."""
        theta = require_array("theta", theta)
        require(
            np.shape(theta)[-2:] == self.shape,
            "theta",
            f"expected shape (…, {str(self.shape)[1:]}, got {np.shape(theta)}",
        )
        if not np.isfinite(theta).all():
            place = np.argwhere(~np.isfinite(theta))[0]
            where = ", ".join(
                f"{axis} {i}"
                for axis, i in zip(("task", "state or feature", "column")[-len(place) :], place)
            )
            raise NotFinite(f"theta: parameters that are not finite (at {where})")
        return theta if self.features is None else np.matmul(self.features, theta)

    def _logits(self, theta):
        x = self._outputs(theta)
        return x if self.bits is None else np.matmul(x, self.bits.T)

    def log_pi(self, theta):
        """log π(a|s; θ) for all states: θ (…, F, m) → (…, S, A)."""
        return log_softmax(self._logits(theta))

    def tangent(self, theta, v):
        """vᵀ∇_θ log π(a|s; θ) = φ(s)ᵀ v (f(a) − E_π f) for all states: θ, v (…, F, m) → (…, S, A)."""
        require(np.shape(v)[-2:] == self.shape, "v", "expected the shape of theta")
        pi = np.exp(self.log_pi(theta))
        x = self._logits(v)
        return x - sum_last(pi * x)

    def weighted_score(self, theta, weights):
        """Σ_{s,a} w(s,a) ∇_θ log π(a|s; θ) = Σ_s φ(s) Σ_a w(s,a) (f(a) − E_π f)ᵀ: θ (…, F, m), w (…, S, A) → (…, F, m)."""
        require(
            np.shape(weights)[-2:] == (self.n_states, self.n_actions),
            "weights",
            "expected shape (…, S, A)",
        )
        x = weights - np.exp(self.log_pi(theta)) * sum_last(weights)
        x = x if self.bits is None else np.matmul(x, self.bits)
        return x if self.features is None else np.matmul(self.features.T, x)


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy(LinearPolicy):
    """π(a|s) ∝ exp(θ_aᵀφ(s)), θ (F, A); ∇_b log π(a|s) = ([a = b] − π(b|s)) φ(s). Sutton & Barto (2018), eq. 13.2–13.3."""

    n_states: int  # S
    n_actions: int  # A
    features: np.ndarray = (
        None  # (S, F) φ(s); None: tabular, F = S, any distribution over the actions in each state
    )
    columns = property(lambda self: self.n_actions)

    def __post_init__(self):
        validate(n_states=self.n_states, n_actions=self.n_actions)
        super().__post_init__()


@dataclass(frozen=True, eq=False)
class LogisticPolicy(LinearPolicy):
    """Independent binary units: π(1|s) = σ(θᵀφ(s)), and with m units, θ (F, m), A = 2^m actions, unit u being bit u of the action.
    log π(a|s) = Σ_u log σ(±θ_uᵀφ(s)) = Σ_u a_u θ_uᵀφ(s) − log(1 + exp θ_uᵀφ(s)), a *sum*; ∇_u log π(a|s) = (a_u − E_π a_u) φ(s), with
    E_π a_u = σ(θ_uᵀφ(s)). Any deterministic policy can be represented, but of the stochastic ones only products of the units': of four
    moves (up, down, left, right) unit 0 is the direction along an axis and unit 1 the axis."""

    n_states: int  # S
    units: int = 1  # m
    features: np.ndarray = None  # (S, F) φ(s); None: tabular, F = S
    columns = property(lambda self: self.units)

    def __post_init__(self):
        validate(n_states=self.n_states, units=self.units)
        super().__post_init__()

    n_actions = property(lambda self: 2 ** min(self.units, 99))  # A; so many are refused
    bits = property(
        lambda self: 1.0 * (np.arange(self.n_actions)[:, None] >> np.arange(self.units) & 1)
    )  # (A, m): bit u of action a


@dataclass(frozen=True, eq=False)
class ActorCritic(LinearPolicy):
    """A policy and a state value in one θ (F, A + 1) or (F, m + 1): its last column, where f(a) = 0, is w in V(s) = wᵀφ(s)."""

    actor: SoftmaxPolicy | LogisticPolicy
    n_states = property(lambda self: self.actor.n_states)
    n_actions = property(lambda self: self.actor.n_actions)
    features = property(lambda self: self.actor.features)
    columns = property(lambda self: self.actor.columns + 1)

    def __post_init__(self):
        require(
            isinstance(self.actor, (SoftmaxPolicy, LogisticPolicy)),
            "actor",
            f"{self.actor!r:.99} is no policy to add a value to",
        )
        one_hot = np.eye(self.n_actions) if self.actor.bits is None else self.actor.bits
        object.__setattr__(self, "bits", np.pad(one_hot, ((0, 0), (0, 1))))

    def values(self, theta):
        """V(s) for all states: θ (…, F, A + 1) → (…, S)."""
        return self._outputs(theta)[..., -1]


def entropy(log_p):
    """H(p) = −Σ_a p log p in nats over the last axis of log-probabilities (…, A); 0·log 0 is 0."""
    return -np.sum(np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0), -1)


def kl(log_p, log_q):
    """KL(p‖q) = Σ_a p (log p − log q) in nats over the last axis of (…, A): the expectation is under the *first* argument."""
    require(
        np.shape(log_p)[-1:] == np.shape(log_q)[-1:], "log_p, log_q", "not of one number of actions"
    )
    possible = np.isfinite(log_p)
    return np.sum(
        np.exp(log_p) * (np.where(possible, log_p, 0.0) - np.where(possible, log_q, 0.0)), -1
    )
