"""A gated recurrent unit with a linear read-out, and its back-propagation through time, by hand.

    z_t = σ(W_z x_t + b_z + U_z h_{t−1})    how much of the old state is kept
    r_t = σ(W_r x_t + b_r + U_r h_{t−1})    how much of it the candidate sees
    u_t = U_c h_{t−1} + b_hn
    c_t = tanh(W_c x_t + b_c + r_t ∘ u_t)   the candidate
    h_t = z_t ∘ h_{t−1} + (1 − z_t) ∘ c_t,   h_0 = 0
    y_t = V h_t + v

Cho et al. (2014), eq. 5–8, in the convention of cuDNN, PyTorch, Keras and flax: the reset gate acts
*after* the matrix product and its bias b_hn (the paper has U_c (r ∘ h)). Backwards, with ā for
∂L/∂a, h̄_t complete, and z̄, r̄, c̄ taken before the nonlinearity,

    c̄ = (1 − z) ∘ h̄ ∘ (1 − c²)
    z̄ = h̄ ∘ (h_{t−1} − c) ∘ z (1 − z)
    r̄ = c̄ ∘ u ∘ r (1 − r)
    ū = r ∘ c̄
    h̄_{t−1} = V ᵀȳ_{t−1} + z ∘ h̄_t + Uᵀ[z̄; r̄; ū]
    W̄ = Σ [z̄; r̄; c̄] xᵀ,    Ū = Σ [z̄; r̄; ū] h_{t−1}ᵀ,    b̄ = Σ [z̄; r̄; c̄],    b̄_hn = Σ ū.

Lanes, the N sequences that run side by side, come *last*: x (T, D, N). So each gate of all lanes
is one block of memory, and every operation runs along it.
"""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import (
    defvjp,
    primitive,
    require,
    require_array,
    require_finite,
    require_memory,
    validate,
    validate_fields,
)


@dataclass(frozen=True)
class GRU:
    """The sizes of a GRU. Its parameters are one flat array θ (P,): W, U, b, b_hn, V, v, raveled.

    θ is float32 to train and float64 to check. The rows of W, U and b are those of z, r and c in
    turn. So with the weight V (O, H) and the bias v (O,) of a linear layer, a trained GRU of
    another library becomes

        theta = np.concatenate([part.ravel() for part in (W, U, b, b_hn, V, v)])

    after this for `torch.nn.GRU` (one layer), whose rows are r, z, n, where n is our c,

        W_r, W_z, W_n = np.split(weight_ih_l0, 3)
        U_r, U_z, U_n = np.split(weight_hh_l0, 3)
        b_r, b_z, b_n = np.split(bias_ih_l0, 3)
        b_hr, b_hz, b_hn = np.split(bias_hh_l0, 3)
        W = np.concatenate([W_z, W_r, W_n])
        U = np.concatenate([U_z, U_r, U_n])
        b = np.concatenate([b_z + b_hz, b_r + b_hr, b_n])

    or this for the parameters of flax's `GRUCell`,

        W = np.concatenate([params[gate]["kernel"].T for gate in ("iz", "ir", "in")])
        U = np.concatenate([params[gate]["kernel"].T for gate in ("hz", "hr", "hn")])
        b = np.concatenate([params[gate]["bias"] for gate in ("iz", "ir", "in")])
        b_hn = params["hn"]["bias"]

    or this for a GRU of Keras with reset_after=True.

        W = kernel.T
        U = recurrent_kernel.T
        b_z, b_r, b_hn = np.split(bias[1], 3)
        b = bias[0] + np.concatenate([b_z, b_r, 0 * b_hn])
    """

    inputs: int  # D
    units: int  # H
    outputs: int  # O

    def __post_init__(self):
        validate_fields(self)
        require_memory(8, self.size)

    @property
    def shapes(self):
        """The shapes of W, U, b, b_hn, V, v, in the order of θ; the rows of W, U, b are z, r, c."""
        d, h, o = self.inputs, self.units, self.outputs
        return (3 * h, d), (3 * h, h), (3 * h, 1), (h, 1), (o, h), (o, 1)

    @property
    def size(self):
        """P, the number of parameters."""
        return sum(rows * columns for rows, columns in self.shapes)

    def split(self, theta):
        """W (3H, D), U (3H, H), b (3H, 1), b_hn (H, 1), V (O, H), v (O, 1), views of θ (P,).

        What is neither float32 nor float64, as integers, is converted to float64 first. Raises
        ValueError unless θ is of that size and finite.
        """
        theta = require_array("theta", theta, (self.size,))
        if theta.dtype not in (np.float32, np.float64):
            theta = theta.astype(float)
        require_finite(theta, "theta: parameters")
        ends = np.cumsum([rows * columns for rows, columns in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(theta, ends), self.shapes)]

    def init(self, rng, dtype=np.float32, memory=1.0):
        """θ (P,) to start from: orthogonal U, W ~ N(0, 1/D), small V, and b_hn = 0.

        memory: for how many steps the units remember, at least 1. b_z is log U[1, memory], so
        that some units forget at once and some remember for that long (Tallec & Ollivier 2018).
        """
        rng, memory = validate(rng=rng, memory=memory)
        known = not isinstance(dtype, np.ndarray) and dtype in (float, np.float32, np.float64)
        require(known, "dtype", f"{dtype!r:.99} is neither float32 nor float64")
        h = self.units
        drawn = self.shapes[:3] + self.shapes[4:]  # all but b_hn
        W, U, b, V, v = (rng.standard_normal(shape) for shape in drawn)
        U = np.concatenate([np.linalg.qr(u)[0] for u in U.reshape(3, h, h)])
        b_z = np.log(rng.uniform(1, memory, h))
        b = np.concatenate([b_z, np.zeros(2 * h)])
        b_hn = np.zeros(h)
        parts = (W / np.sqrt(self.inputs), U, b, b_hn, 0.01 * V, 0.0 * v)
        return np.concatenate([x.ravel() for x in parts]).astype(dtype)


def cell(net, theta, x, h):
    """One step as the equations say it: x (D, N), h_{t−1} (H, N) → h_t (H, N), y_t (O, N).

    To read, and to check `step` against; nothing else calls it.
    """
    W, U, b, b_hn, V, v = net.split(theta)
    (W_z, W_r, W_c), (U_z, U_r, U_c), (b_z, b_r, b_c) = (np.split(a, 3) for a in (W, U, b))
    z = sigmoid(W_z @ x + b_z + U_z @ h)
    r = sigmoid(W_r @ x + b_r + U_r @ h)
    c = np.tanh(W_c @ x + b_c + r * (U_c @ h + b_hn))
    h = z * h + (1 - z) * c
    y = V @ h + v
    return h, y


def sigmoid(x):
    """σ(x) = ½ + ½ tanh(x/2), which does not overflow: (…) → (…)."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def step(weights, h, gates):
    """`cell` without the read-out, in place: (h_t, u_t), (H, N) each, from h_{t−1} (H, N).

    weights: what `GRU.split` gives. gates: W x_t + b (3H, N), which become z, r, c.
    z ∘ h + (1 − z) ∘ c is z ∘ (h − c) + c.
    """
    _, U, _, b_hn, _, _ = weights
    n = len(h)
    u = U @ h
    zr = gates[: 2 * n]
    c = gates[2 * n :]
    u_c = u[2 * n :]
    u_c += b_hn
    zr += u[: 2 * n]
    zr *= 0.5
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
    """y (T, O, N) of inputs x (T, D, N), and a trace, what `backward` needs.

    The trace is h_0 … h_T (T + 1, H, N), the gates (T, 3H, N), and u_t (T, H, N).
    """
    weights = net.split(theta)
    W, _, b, _, V, v = weights
    x = _as_inputs(net, x, W.dtype)
    steps, _, lanes = x.shape
    gates = W @ x
    gates += b
    h = np.zeros((steps + 1, net.units, lanes), gates.dtype)
    u_c = np.empty((steps, net.units, lanes), gates.dtype)
    for t in range(steps):
        h[t + 1], u_c[t] = step(weights, h[t], gates[t])
    return V @ h[1:] + v, (h, gates, u_c)


def _as_inputs(net, x, dtype):
    """x (T, D, N) as an array of θ's type; ValueError if it is none."""
    x = require_array("x", x)
    good = x.ndim == 3 and x.shape[1] == net.inputs
    require(good, "x", f"expected shape (T, {net.inputs}, N), got {x.shape}")
    return x.astype(dtype, copy=False)


def backward(net, theta, x, trace, g):
    """∂L/∂θ (P,) from g = ∂L/∂y (T, O, N): back-propagation through time over the whole of x."""
    _, U, _, _, V, _ = net.split(theta)
    x = _as_inputs(net, x, U.dtype)
    steps, _, lanes = x.shape
    g = require_array("g", g, (steps, net.outputs, lanes)).astype(U.dtype, copy=False)
    h, gates, u_c = trace
    n = net.units
    dW = np.zeros((4 * n, net.inputs), U.dtype)
    dU = np.zeros_like(U)
    db = np.zeros(4 * n, U.dtype)
    dV = np.zeros_like(V)
    from_outputs = np.matmul(V.T, g)
    dh = np.zeros_like(h[0])  # h̄_t, once y_t's part is added
    ones = np.ones(lanes, U.dtype)
    a = np.empty((4 * n, lanes), U.dtype)
    a_z, a_r, a_u, a_c = a.reshape(4, n, lanes)  # views of it: z̄, r̄, ū, c̄
    for t in reversed(range(steps)):
        z, r, c = gates[t].reshape(3, n, lanes)
        dh += from_outputs[t]
        kept = dh * z
        dh -= kept  # (1 − z) ∘ h̄
        np.multiply(h[t + 1] - c, dh, out=a_z)  # h_t − c = z ∘ (h_{t−1} − c)
        np.multiply(1 - c * c, dh, out=a_c)
        np.multiply(a_c, r, out=a_u)
        np.multiply(a_u * u_c[t], 1 - r, out=a_r)
        dh = U.T @ a[: 3 * n]
        dh += kept
        dW += a @ x[t].T
        dU += a[: 3 * n] @ h[t].T
        db += a @ ones
        dV += g[t] @ h[t + 1].T
    zrc = np.r_[: 2 * n, 3 * n : 4 * n]  # W and b see c̄, U and b_hn see ū
    db_hn = db[2 * n : 3 * n]
    parts = (dW[zrc], dU, db[zrc], db_hn, dV, g.sum((0, 2)))
    return np.concatenate([part.ravel() for part in parts])


@primitive
def unroll(net, theta, x):
    """y (T, O, N) of inputs x (T, D, N) from h_0 = 0, as one function of θ (P,) for autograd."""
    y, _ = forward(net, theta, x)
    return y


def _unroll_theta_vjp(y, net, theta, x):
    """autograd keeps y but not the trace, so that is computed once more."""

    def vjp(g):
        _, trace = forward(net, theta, x)
        return backward(net, theta, x, trace, g)

    return vjp


defvjp(unroll, _unroll_theta_vjp, argnums=[1])
