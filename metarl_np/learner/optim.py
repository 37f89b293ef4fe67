"""Gradient ascent and Adam, as pure functions (θ, gradient, state) → (θ, state), the state starting as None; conjugate gradient."""

import numpy as np

from metarl_np.arguments import require_shapes


def ascent(theta, gradient, state=None, *, step_size):
    """θ + β g: any shape (…) → (…); needs no state."""
    require_shapes(np.shape(theta), gradient=gradient)
    return theta + step_size * gradient, state


def adam(theta, gradient, state=None, *, step_size, decay=(0.9, 0.999), eps=1e-8):
    """Adam, uphill: θ + β m̂ / (√v̂ + ε) with bias-corrected moments. Kingma & Ba (2015), Algorithm 1. state: (m, v, t)."""
    require_shapes(np.shape(theta), gradient=gradient)
    m, v, t = (np.zeros_like(theta), np.zeros_like(theta), 0) if state is None else state
    m = decay[0] * m + (1 - decay[0]) * gradient
    v = decay[1] * v + (1 - decay[1]) * gradient**2
    t = t + 1
    return theta + step_size * (m / (1 - decay[0] ** t)) / (
        np.sqrt(v / (1 - decay[1] ** t)) + eps
    ), (m, v, t)


def conjugate_gradient(matvec, b, *, tolerance=1e-10, max_iterations=None):
    """x with A x = b in N problems at once, A symmetric positive definite: b (N, …), matvec: (N, …) → (N, …), x (N, …).
    Hestenes & Stiefel (1952); Nocedal & Wright (2006), Algorithm 5.2. Until all residuals are below tolerance · |b|, or max_iterations
    (by default 4 per unknown, restarted after 2: ValueError if one is then above 1e-4 · |b|)."""

    def dot(p, q):
        return np.sum(p * q, axis=tuple(range(1, b.ndim)), keepdims=True)

    x = np.zeros(b.shape)
    r = np.array(b, float)
    p = r.copy()
    rr = dot(r, r)
    size = dot(r, r)  # the residual and the direction are two arrays: they part at the first step
    for i in range(4 * b[0].size if max_iterations is None else max_iterations):
        if i and i % (2 * b[0].size) == 0:
            r = p = b - matvec(x)
            rr = dot(r, r)
        active = rr > tolerance**2 * size
        if not active.any():
            break
        ap = matvec(p)
        step = np.where(active, rr / np.where(active, dot(p, ap), 1.0), 0.0)
        x = x + step * p
        r = r - step * ap
        new = dot(r, r)
        p = r + np.where(active, new / np.where(active, rr, 1.0), 0.0) * p
        rr = np.where(active, new, rr)
    r = b - matvec(x)
    if max_iterations is None and not (dot(r, r) <= max(1e-8, 4 * tolerance**2) * size).all():
        raise ValueError(
            "conjugate gradient: the system is too ill-conditioned; more damping, or features of one scale, would help"
        )
    return x
