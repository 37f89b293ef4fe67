"""Gradient ascent and Adam, and conjugate gradient for linear systems.

An optimiser is a pure function (θ, gradient, state) → (θ, state), the state starting as None.
"""

import math

import numpy as np

from metarl_np.arguments import require, require_finite, require_floats, validate

CANNOT = (
    "conjugate gradient: A is not positive definite, or too ill-conditioned; "
    "more damping, or features of one scale, would help"
)


def ascent(theta, gradient, state=None, *, step_size):
    """θ + β g: any shape (…) → (…); it needs no state. θ is float32 or float64, and stays so."""
    theta, gradient = _as_floats(theta, gradient)
    step_size = validate(step_size=step_size)
    return theta + step_size * gradient, state


def adam(theta, gradient, state=None, *, step_size, decay=(0.9, 0.999), eps=1e-8):
    """Adam, uphill: θ + β m̂ / (√v̂ + ε), with bias-corrected moments, any shape (…) → (…).

    Kingma & Ba (2015), Algorithm 1. state: (m, v, t). θ is float32 or float64, and stays so.
    """
    theta, gradient = _as_floats(theta, gradient)
    step_size = validate(step_size=step_size)
    eps = validate(eps=eps)
    decay = require_floats("decay", decay, (2,), traced=False)
    require((decay >= 0) & (decay < 1), "decay", "expected numbers in [0, 1)", ("moment",))
    decay = decay.tolist()  # numbers of Python's, which leave float32 as it is
    if state is None:
        state = np.zeros_like(theta), np.zeros_like(theta), 0
    m, v, t = state
    m, v = (np.asarray(x, theta.dtype) for x in (m, v))
    m = decay[0] * m + (1 - decay[0]) * gradient
    v = decay[1] * v + (1 - decay[1]) * gradient**2
    t = t + 1
    m_hat = m / (1 - decay[0] ** t)
    v_hat = v / (1 - decay[1] ** t)
    return theta + step_size * m_hat / (np.sqrt(v_hat) + eps), (m, v, t)


def _as_floats(theta, gradient):
    """Both as arrays of θ's type, float32 or float64."""
    theta = require_floats("theta", theta, single=True)
    gradient = require_floats("gradient", gradient, np.shape(theta), single=True)
    return theta, gradient if gradient.dtype == theta.dtype else gradient.astype(theta.dtype)


def conjugate_gradient(matvec, b, *, tolerance=1e-10, max_iterations=None):
    """x with A x = b, A symmetric positive definite: b, x (n,), or (N, …) for N problems at once.

    matvec: v → A v, of the shape of b. Hestenes & Stiefel (1952); Nocedal & Wright (2006),
    Algorithm 5.2. It ends when all residuals are below tolerance · |b|, or after max_iterations: by
    default 4 per unknown, starting afresh after 2. Then a residual above 1e-4 · |b| raises
    ValueError. So do, always, a b or A v that is not finite, and a vᵀA v that is not positive. A
    tolerance below 1e-16 means 1e-16: what is smaller is rounding.
    """
    validate(matvec=matvec)
    tolerance = max(validate(tolerance=tolerance), 1e-16)
    if max_iterations is not None:
        max_iterations = validate(max_iterations=max_iterations)
    b = require_floats("b", b, traced=False)
    require(b.ndim > 0, "b", "expected (n,) or (N, …), got a number")
    require_finite(b, "b: numbers")
    if b.ndim == 1:

        def of_one(v):
            return require_floats("matvec: A v", matvec(v[0]), b.shape, traced=False)[None]

        options = dict(tolerance=tolerance, max_iterations=max_iterations)
        return conjugate_gradient(of_one, b[None], **options)[0]

    # squares of numbers so large or small would leave the range of floats
    largest = abs(b).max(axis=tuple(range(1, b.ndim)), keepdims=True, initial=0)
    extreme = (largest > 1e100) | ((largest < 1e-100) & (largest > 0))
    unit = np.where(extreme, largest, 1.0)
    b = b / unit

    def dot(u, v):
        return np.sum(u * v, axis=tuple(range(1, b.ndim)), keepdims=True)

    def times_a(v):
        return require_floats("matvec: A v", matvec(v), b.shape, traced=False)

    unknowns = math.prod(b.shape[1:])
    x = np.zeros(b.shape)
    residual = np.array(b, float)
    direction = residual.copy()  # of its own: the two part at the first step
    squared = dot(residual, residual)
    size = dot(residual, residual)
    for i in range(4 * unknowns if max_iterations is None else max_iterations):
        if i and i % (2 * unknowns) == 0:
            residual = direction = b - times_a(x)
            squared = dot(residual, residual)
        active = squared > tolerance**2 * size
        if not active.any():
            break
        a_direction = times_a(direction)
        curvature = np.where(active, dot(direction, a_direction), 1.0)
        if not (0 < curvature.min(initial=1) <= curvature.max(initial=1) < np.inf):
            require_finite(a_direction, "matvec: products A v")
            raise ValueError(CANNOT)
        step = np.where(active, squared / curvature, 0.0)
        x = x + step * direction
        residual = residual - step * a_direction
        before = np.where(active, squared, 1.0)
        squared = np.where(active, dot(residual, residual), squared)
        direction = residual + np.where(active, squared / before, 0.0) * direction
    residual = b - times_a(x)
    solved = dot(residual, residual) <= max(1e-8, 4 * tolerance**2) * size
    if max_iterations is None and not solved.all():
        raise ValueError(CANNOT)
    with np.errstate(over="ignore"):  # refused in the next line
        x = x * unit
    require_finite(x, "conjugate gradient: solutions")
    return x
