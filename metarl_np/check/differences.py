"""The oldest check of a derivative: move one number a little and look at what changes."""

import numpy as np


def finite_differences(f, x, eps=1e-5):
    """∂f/∂x by central differences: f: array → array or number, x (…) → f(x).shape + x.shape.

    (f(x + h) − f(x − h)) / 2ε for h = ε along one component of x after the other. The error is
    of the order of ε², plus rounding of the order of 1e-16 |f| / ε.
    """
    x = np.asarray(x, float)
    columns = []
    for place in np.ndindex(x.shape):
        h = np.zeros(x.shape)
        h[place] = eps
        columns.append((f(x + h) - f(x - h)) / (2 * eps))
    by_component = np.moveaxis(np.array(columns), 0, -1)
    return by_component.reshape(np.shape(columns[0]) + x.shape)
