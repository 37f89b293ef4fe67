"""A gated recurrent unit with a linear read-out, and its back-propagation through time, derived by hand.

    z_t = σ(W_z x_t + b_z + U_z h_{t−1})             how much of the old state is kept
    r_t = σ(W_r x_t + b_r + U_r h_{t−1})
    c_t = tanh(W_c x_t + b_c + r_t ∘ U_c h_{t−1})    the reset gate acts *after* the matrix product
    h_t = z_t ∘ h_{t−1} + (1 − z_t) ∘ c_t,   h_0 = 0
    y_t = V h_t + v
Cho et al. (2014), eq. 5–8, in the convention of cuDNN (theirs has U_c (r ∘ h)). Backwards, with ā for ∂L/∂a and h̄_t complete,
    c̄ = (1 − z) ∘ h̄ ∘ (1 − c²)    z̄ = h̄ ∘ (h_{t−1} − c) ∘ z (1 − z)    r̄ = c̄ ∘ U_c h_{t−1} ∘ r (1 − r)     (before the nonlinearity)
    h̄_{t−1} = V ᵀȳ_{t−1} + z ∘ h̄_t + Uᵀ[z̄; r̄; r ∘ c̄],    W̄ = Σ [z̄; r̄; c̄] xᵀ,    Ū = Σ [z̄; r̄; r ∘ c̄] h_{t−1}ᵀ.
Here lanes come *last*, x (T, D, N), so that each gate of all lanes is one block of memory and every operation runs along it.
"""

from dataclasses import dataclass

import numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import (
    require,
    require_array,
    require_finite,
    require_memory,
    require_shapes,
    validate,
)


@dataclass(frozen=True)
class GRU:
    """D inputs, H units, O outputs. All parameters are one flat array θ (P,), in float32 to train, in float64 to check."""

    inputs: int  # D
    units: int  # H
    outputs: int  # O
    size = property(
        lambda self: sum(rows * columns for rows, columns in self.shapes)
    )  # P, the number of parameters

    def __post_init__(self):
        validate(inputs=self.inputs, units=self.units, outputs=self.outputs)
        require_memory(8, self.size)

    @property
    def shapes(self):
        """The shapes of W, U, b, V, v, in the order in which θ holds them; rows of W, U and b are z, r, c."""
        d = self.inputs
        h = self.units
        o = self.outputs
        return (3 * h, d), (3 * h, h), (3 * h, 1), (o, h), (o, 1)

    def split(self, theta):
        """θ (P,) → views W (3H, D), U (3H, H), b (3H, 1), V (O, H), v (O, 1). Raises ValueError unless θ is (P,) and finite."""
        theta = require_array("theta", theta, (self.size,))
        require_finite(theta, "theta: parameters")
        ends = np.cumsum([rows * columns for rows, columns in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(theta, ends), self.shapes)]

    def init(self, rng, dtype=np.float32, memory=1.0):
        """θ (P,): orthogonal U, W ~ N(0, 1/D), small V, b_z = log U[1, memory] to remember for `memory` steps (Tallec & Ollivier 2018)."""
        validate(rng=rng, memory=memory)
        require(
            dtype in (float, np.float32, np.float64),
            "dtype",
            f"{dtype!r:.99} is neither float32 nor float64",
        )
        h = self.units
        W, U, b, V, v = (rng.standard_normal(shape) for shape in self.shapes)
        U = np.concatenate([np.linalg.qr(u)[0] for u in U.reshape(3, h, h)])
        b = np.concatenate([np.log(rng.uniform(1, memory, h)), np.zeros(2 * h)])
        return np.concatenate(
            [x.ravel() for x in (W / np.sqrt(self.inputs), U, b, 0.01 * V, 0.0 * v)]
        ).astype(dtype)


def step(weights, h, gates):
    """h_t from h_{t−1} (H, N) and gates = W x_t + b (3H, N), which become z, r, c in place: (h_t, U_c h_{t−1}), (H, N) each."""
    n = len(h)
    u = weights[1] @ h
    zr = gates[: 2 * n]
    c = gates[2 * n :]
    u_c = u[2 * n :]
    zr += u[: 2 * n]
    zr *= 0.5  # σ(x) = ½ + ½ tanh(x/2) does not overflow
    np.tanh(zr, out=zr)
    zr *= 0.5
    zr += 0.5
    c += zr[n:] * u_c
    np.tanh(c, out=c)
    h = h - c
    h *= zr[:n]
    h += c
    return h, u_c


def forward(net, theta, x):
    """x (T, D, N) → y (T, O, N) and what `backward` needs: h (T + 1, H, N), gates (T, 3H, N) and U_c h_{t−1} (T, H, N)."""
    require(
        np.ndim(x) == 3 and x.shape[1] == net.inputs,
        "x",
        f"expected shape (T, {net.inputs}, N), got {np.shape(x)}",
    )
    W, U, b, V, v = weights = net.split(theta)
    steps, _, lanes = x.shape
    gates = W @ x
    gates += b
    h = np.zeros((steps + 1, net.units, lanes), gates.dtype)
    u_c = np.empty((steps, net.units, lanes), gates.dtype)
    for t in range(steps):
        h[t + 1], u_c[t] = step(weights, h[t], gates[t])
    return V @ h[1:] + v, (h, gates, u_c)


def backward(net, theta, x, trace, g):
    """∂L/∂θ (P,) from g = ∂L/∂y (T, O, N), by back-propagation through time over the whole of x."""
    W, U, b, V, v = net.split(theta)
    require_shapes((len(x), net.outputs, x.shape[2]), g=g)
    h, gates, u_c = trace
    n = net.units
    d = (
        np.zeros((4 * n, net.inputs), U.dtype),
        np.zeros_like(U),
        np.zeros(4 * n, U.dtype),
        np.zeros_like(V),
    )
    g_h = np.matmul(V.T, g)
    last = np.zeros_like(h[0])
    ones = np.ones(x.shape[2], U.dtype)
    a = np.empty((4 * n, x.shape[2]), U.dtype)
    a_z, a_r, a_u, a_c = a.reshape(4, n, -1)  # z̄, r̄, r ∘ c̄, c̄
    for t in reversed(range(len(x))):
        z, r, c = gates[t].reshape(3, n, -1)
        last += g_h[t]
        keep = last * z
        last -= keep  # (1 − z) ∘ h̄
        np.multiply(h[t + 1] - c, last, out=a_z)  # h_t − c = z ∘ (h_{t−1} − c)
        np.multiply(1 - c * c, last, out=a_c)
        np.multiply(a_c, r, out=a_u)
        np.multiply(a_u * u_c[t], 1 - r, out=a_r)
        last = U.T @ a[: 3 * n]
        last += keep
        for total, part in zip(d, (a @ x[t].T, a[: 3 * n] @ h[t].T, a @ ones, g[t] @ h[t + 1].T)):
            total += part
    rows = np.r_[: 2 * n, 3 * n : 4 * n]
    return np.concatenate(
        [part.ravel() for part in (d[0][rows], d[1], d[2][rows], d[3], g.sum((0, 2)))]
    )


@primitive
def unroll(net, theta, x):
    """y (T, O, N) of inputs x (T, D, N) from h_0 = 0: the whole recurrence as one function of θ (P,) for autograd."""
    return forward(net, theta, x)[0]


defvjp(
    unroll,
    lambda y, net, theta, x: lambda g: backward(net, theta, x, forward(net, theta, x)[1], g),
    argnums=[1],
)
