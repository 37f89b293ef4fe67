"""Gradient ascent and Adam, as pure functions (θ, gradient, state) → (θ, state); the state starts as None."""

import numpy as np


def ascent(theta, gradient, state=None, *, step_size):
    """θ + β g."""
    return theta + step_size * gradient, state


def adam(theta, gradient, state=None, *, step_size, decay=(0.9, 0.999), eps=1e-8):
    """Adam, uphill: θ + β m̂ / (√v̂ + ε) with bias-corrected moments. Kingma & Ba (2015), Algorithm 1. state: (m, v, t)."""
    m, v, t = (np.zeros_like(theta), np.zeros_like(theta), 0) if state is None else state
    m, v, t = decay[0] * m + (1 - decay[0]) * gradient, decay[1] * v + (1 - decay[1]) * gradient**2, t + 1
    return theta + step_size * (m / (1 - decay[0]**t)) / (np.sqrt(v / (1 - decay[1]**t)) + eps), (m, v, t)
