"""A user's own MAML, right or with a mistake: the oracle of `check.diagnose`.

A loss written in autograd on plain arrays, with nothing of the package, differentiated through the
inner steps.
"""

from dataclasses import dataclass

import autograd.numpy as anp
import numpy as np
from autograd import grad
from autograd.extend import notrace_primitive

S = 5
A = 3
T = 7
N = 3
K = 4
ALPHA = 0.4
BETA = 0.05
GAMMA = 0.8


@notrace_primitive
def constant(x):
    """A number without a derivative."""
    return x


@dataclass(frozen=True)
class Batch:
    """What a sampler recorded."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    mask: np.ndarray


def batch(rng, states=None):
    lengths = rng.integers(3, T + 1, size=(N, K))
    return Batch(
        states=rng.integers(S, size=(T, N, K)),
        actions=rng.integers(A, size=(T, N, K)),
        rewards=rng.normal(1.0, 2.0, size=(T, N, K)),
        mask=np.arange(T)[:, None, None] < lengths,
    )


def to_go(rewards, discount):
    """G_t by the sum that defines it."""
    steps = range(len(rewards))
    return np.array([sum(discount ** (u - t) * rewards[u] for u in steps[t:]) for t in steps])


def others(g):
    """The mean of the other episodes."""
    return (g.sum(-1, keepdims=True) - g) / (K - 1)


@dataclass(frozen=True)
class Code:
    """How somebody wrote his MAML; by default right, but for the score term."""

    estimator: str = "naive"
    inner_mean: str = "episodes"
    outer_mean: str = "episodes"
    inner_gamma: bool = True  # is γᵗ kept?
    outer_gamma: bool = True
    discount: float = GAMMA
    inner_kind: str = "others"
    outer_kind: str = "others"
    step_size: float = ALPHA
    sign: float = 1.0
    order: tuple = (0, 1, 2)  # which data the steps take, and the query
    skip: tuple = ()
    detach: tuple = ()
    factor: float = 1.0
    momentum: float = 0.0
    decay: float = 0.0
    lam: float = 1.0
    score: str = ""  # "all" data, the "first" step's, or "means"
    centred: bool = True  # is the score's J less the other tasks' mean?


def advantages(code, b, kind):
    rewards = b.rewards * b.mask
    if kind == "shifted":
        rewards = np.concatenate([rewards[1:], 0 * rewards[:1]])
    if kind == "shifted back":
        rewards = np.concatenate([0 * rewards[:1], rewards[:-1]])
    g = to_go(rewards, code.discount)
    if kind == "dones":
        last = b.mask & ~np.concatenate([b.mask[1:], 0 * b.mask[:1]]).astype(bool)
        return g * last
    if kind == "none" or kind.startswith("shifted"):
        return g * b.mask
    if kind == "G_0":
        return g[:1] * b.mask
    if kind == "own mean":
        return (g - g.mean(-1, keepdims=True)) * b.mask
    a = (g - others(g)) * b.mask
    if kind == "others":
        return a
    n = b.mask.sum((0, 2), keepdims=True)
    centred = (a - a.sum((0, 2), keepdims=True) / n) * b.mask
    variance = (centred**2).sum((0, 2), keepdims=True) / n
    return centred / variance if kind == "variance" else centred / np.sqrt(variance)


def mean(code, terms, b, how):
    """Of (T, N, K) over a task: (N,)."""
    if how == "sum":
        return anp.sum(terms, (0, 2))
    if how == "episodes":
        return anp.sum(terms, (0, 2)) / K
    if how == "steps":
        return anp.sum(terms, (0, 2)) / b.mask.sum((0, 2))
    return anp.mean(anp.sum(terms, 0) / b.mask.sum(0), -1)


def log_probs(theta, b):
    logits = theta - anp.log(anp.sum(anp.exp(theta), -1, keepdims=True))
    tasks = np.arange(N)[:, None]
    return logits[tasks, b.states, b.actions] * b.mask


def objective(code, theta, b, how, keeps_gamma, kind):
    """Σ over tasks of what an inner or the outer step ascends."""
    gamma = (code.discount ** np.arange(T))[:, None, None] if keeps_gamma else 1.0
    weights = gamma * advantages(code, b, kind)
    lp = log_probs(theta, b)
    if code.estimator == "naive":
        return anp.sum(mean(code, lp * weights, b, how))
    if code.estimator == "lvc":
        return anp.sum(mean(code, anp.exp(lp - constant(lp)) * weights, b, how))
    sums = []
    so_far = 0.0
    for t in range(T):
        so_far = code.lam * so_far + lp[t]
        sums.append(so_far)
    sums = anp.stack(sums)
    box = anp.exp(sums - constant(sums))
    before = sums - lp
    if code.estimator == "loaded_dice":
        return anp.sum(mean(code, (box - anp.exp(before - constant(before))) * weights, b, how))
    if code.estimator == "wraps":
        return anp.sum(mean(code, wrapped(code, lp, b) * weights, b, how))
    if code.estimator == "inside":
        return anp.sum(mean(code, box * weights, b, how))
    rewards = b.rewards * b.mask * gamma
    baseline = others(to_go(b.rewards * b.mask, code.discount)) * b.mask * gamma
    plain = anp.exp(lp - constant(lp))
    return anp.sum(mean(code, box * rewards + (1 - plain) * baseline, b, how))


def wrapped(code, lp, b):
    """DiCE's product over steps in a row, one by one, as index −1 in place makes of it."""
    rows = []
    for n in range(N):
        row = [[None] * K for _ in range(T)]
        last = lp[b.mask[:, n, -1].sum() - 1, n, -1]
        for k in range(K):
            for t in range(T):
                before = row[t - 1][k] if t else (last if k == 0 else 0.0)
                row[t][k] = lp[t, n, k] + code.lam * before
        rows.append(anp.stack([anp.stack(r) for r in row]))
    sums = anp.stack(rows, 1)
    return anp.exp(sums - constant(sums))


def meta_gradient(code, theta, batches):
    """Of a user's MAML, mean over the tasks."""

    query = batches[-1]
    score_factor = to_go(query.rewards * query.mask, code.discount)[0].mean(-1)
    if code.centred:
        score_factor = score_factor - (score_factor.sum() - score_factor) / (N - 1)

    def adapted_return(th):
        th = th + np.zeros((N, 1, 1))
        moved = 0.0
        log_p = 0.0
        for i in range(len(batches) - 1):
            if i in code.skip:
                continue
            inner = code.inner_mean, code.inner_gamma, code.inner_kind
            lp = log_probs(th, batches[i])
            if code.score == "means":
                log_p = log_p + mean(code, lp, batches[i], "steps")
            elif code.score == "all" or code.score == "first" and i == 0:
                log_p = log_p + anp.sum(lp, (0, 2))
            at = constant(th) if i in code.detach else th
            g = grad(lambda x: objective(code, x, batches[code.order[i]], *inner))(at)
            moved = code.momentum * moved + code.sign * g - code.decay * th
            th = th + code.step_size * moved
        outer = code.outer_mean, code.outer_gamma, code.outer_kind
        value = objective(code, th, batches[code.order[-1]], *outer)
        return (value + anp.sum(score_factor * log_p)) / N

    return code.factor * grad(adapted_return)(theta)
