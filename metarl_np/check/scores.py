"""The three operations on a policy's scores that all meta-gradients are made of.

For arrays from PyTorch, JAX or anything else: `LinearScores` does them for the policies of this
package, `OwnScores` by two functions of the user's. On the steps of data set j, at parameters θ_j,
one for each task, with f_t = ∇log π(a_t|s_t), weights w_t and a direction v they are

    gradient    Σ w_t f_t                      along    f_t · v
    hvp         Σ w_t ∇²log π(a_t|s_t) v       (Hessian-vector product)
"""

from math import prod

import numpy as np

from metarl_np.arguments import (
    require,
    require_array,
    require_finite,
    require_floats,
    require_shapes,
)
from metarl_np.check.records import RecordedEpisodes
from metarl_np.learner.policies import LinearPolicy, SoftmaxPolicy

# ---- policies: θ (N, …), and steps (T, N, K) of data set j


class LinearScores:
    """The operations for a LinearPolicy π ∝ exp(φ(s)ᵀ θ b(a)), θ (N, F, m).

    φ are the features of a state and b the bits of an action. They go through tables (N, S, A); see
    `LinearPolicy` and `Reinforce.pullback` for the formulas, which are plain NumPy here, as a
    search asks for them ten thousand times.
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


class OwnScores:
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


# ---- arguments of the functions that users call


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


def scores_of(policy, theta, named):
    """LinearScores or OwnScores, and θ of each task (N, …).

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
        scores = OwnScores(policy, records)
        shape = theta.shape[-1:]
    else:
        table = theta.ndim in (2, 3) and theta.size
        require(table, "theta", f"expected shape (F, A), got {theta.shape}")
        policy = SoftmaxPolicy(*theta.shape[-2:]) if policy is None else policy
        linear = isinstance(policy, LinearPolicy)
        require(linear, "policy", f"{policy!r:.99} has no methods scores and hvp")
        for name, r in named.items():
            indices = "this policy needs states and actions, and as indices from 0 on"
            require(r.discrete, name, indices)
            for what, size in (("states", policy.n_states), ("actions", policy.n_actions)):
                x = getattr(r, what)
                inside = x.min() >= 0 and x.max() < size
                require(inside, name, f"{what} outside 0..{size - 1}")
        scores = LinearScores(policy, records)
        shape = policy.shape
    require_shapes(shape, (n_tasks, *shape), theta=theta)
    require(np.isfinite(theta), "theta", "not finite", ())
    return scores, theta + np.zeros((n_tasks, *shape))
