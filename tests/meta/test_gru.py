"""The GRU against the same equations in plain loops and in plain autograd operations; its
derivatives three ways.
"""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.test_util import check_grads

from metarl_np import gru

NET = gru.GRU(inputs=3, units=4, outputs=2)


@pytest.fixture
def case(rng):
    """θ in float64, larger than at the start so that the gates matter, x (T, D, N), and a weight
    for each output.
    """
    theta = NET.init(rng, np.float64) + 0.5 * rng.normal(size=NET.size)
    return theta, rng.normal(size=(5, 3, 6)), rng.normal(size=(5, 2, 6))


def plain(theta, x):
    """The docstring's equations in autograd operations, with their own reading of θ."""
    parts = []
    place = 0
    for shape in ((4, 3),) * 3 + ((4, 4),) * 3 + ((4, 1),) * 3 + ((2, 4), (2, 1)):
        parts.append(anp.reshape(theta[place : place + shape[0] * shape[1]], shape))
        place += shape[0] * shape[1]
    Wz, Wr, Wc, Uz, Ur, Uc, bz, br, bc, V, v = parts
    h = anp.zeros((4, x.shape[2]))
    y = []
    for x_t in x:
        z = 1 / (1 + anp.exp(-(anp.dot(Wz, x_t) + bz + anp.dot(Uz, h))))
        r = 1 / (1 + anp.exp(-(anp.dot(Wr, x_t) + br + anp.dot(Ur, h))))
        c = anp.tanh(anp.dot(Wc, x_t) + bc + r * anp.dot(Uc, h))
        h = z * h + (1 - z) * c
        y.append(anp.dot(V, h) + v)
    return anp.array(y)


def test_one_unit_by_hand():
    """z = r = ½ where only b_c and U_c are not 0: h_2 = ½ h_1 + ½ tanh(b_c + ½ U_c h_1)."""
    net = gru.GRU(1, 1, 1)
    U_c = 0.7
    b_c = 0.3
    theta = np.array([0, 0, 0, 0, 0, U_c, 0, 0, b_c, 2.0, 0.1])
    h1 = 0.5 * np.tanh(b_c)
    h2 = 0.5 * h1 + 0.5 * np.tanh(b_c + 0.5 * U_c * h1)
    np.testing.assert_allclose(
        gru.unroll(net, theta, np.ones((2, 1, 1))).ravel(), [2 * h1 + 0.1, 2 * h2 + 0.1], rtol=1e-14
    )


def test_forward_is_the_plain_cell(case):
    theta, x, _ = case
    np.testing.assert_allclose(gru.unroll(NET, theta, x), plain(theta, x), atol=1e-13)


def test_the_fast_step_is_the_cell_as_its_equations_say_it(case, rng):
    theta, x, _ = case
    h = rng.normal(size=(4, 6))
    W, _, b, V, v = weights = NET.split(theta)
    fast, _ = gru.step(weights, h, W @ x[0] + b)
    plain_h, plain_y = gru.cell(NET, theta, x[0], h)
    np.testing.assert_allclose(fast, plain_h, atol=1e-14)
    np.testing.assert_allclose(V @ fast + v, plain_y, atol=1e-14)


def test_lanes_do_not_meet(case):
    theta, x, _ = case
    y = gru.unroll(NET, theta, x)
    for lane in range(x.shape[2]):
        np.testing.assert_allclose(
            gru.unroll(NET, theta, x[..., lane : lane + 1])[..., 0], y[..., lane], atol=1e-14
        )


def test_gradient_is_that_of_the_plain_cell(case):
    theta, x, g = case
    ours = grad(lambda th: anp.sum(gru.unroll(NET, th, x) * g))(theta)
    np.testing.assert_allclose(ours, grad(lambda th: anp.sum(plain(th, x) * g))(theta), atol=1e-12)


def test_gradient_by_finite_differences(case):
    theta, x, g = case
    y, trace = gru.forward(NET, theta, x)
    ours = gru.backward(NET, theta, x, trace, g)
    step = 1e-6
    for i, e in enumerate(np.eye(NET.size)):
        slope = (
            (gru.forward(NET, theta + step * e, x)[0] - gru.forward(NET, theta - step * e, x)[0])
            * g
        ).sum() / (2 * step)
        assert abs(ours[i] - slope) < 1e-7 * max(1, abs(slope)), i


def test_check_grads(case):
    theta, x, g = case
    check_grads(lambda th: gru.unroll(NET, th, x) * g, modes=["rev"], order=1)(theta)


def test_backpropagation_goes_through_all_of_time(case):
    """Mistake 16: the gradient of the last output alone reaches W by the first input, and cutting
    it there changes it.
    """
    theta, x, g = case
    g = np.where(np.arange(5)[:, None, None] == 4, g, 0)
    trace = gru.forward(NET, theta, x)[1]
    whole = gru.backward(NET, theta, x, trace, g)
    h = trace[0]
    # h_{T−1} taken as a constant
    one_step = grad(lambda th: anp.sum(last_step(th, x[-1], h[-2]) * g[-1]))(theta)
    assert abs(whole - one_step).max() > 0.1 * abs(whole).max()


def last_step(theta, x, h):
    W, U, b, V, v = (theta[a:b] for a, b in zip((0, 36, 84, 96, 104), (36, 84, 96, 104, 106)))
    a = anp.dot(W.reshape(12, 3), x) + b.reshape(12, 1)
    u = anp.dot(U.reshape(12, 4), h)
    z = 1 / (1 + anp.exp(-a[:4] - u[:4]))
    r = 1 / (1 + anp.exp(-a[4:8] - u[4:8]))
    h = z * h + (1 - z) * anp.tanh(a[8:] + r * u[8:])
    return anp.dot(V.reshape(2, 4), h) + v.reshape(2, 1)


def test_float32_stays_float32_and_is_close(case):
    theta, x, g = case
    low = theta.astype(np.float32)
    high = theta.astype(np.float32).astype(float)
    y, trace = gru.forward(NET, low, x.astype(np.float32))
    d = gru.backward(NET, low, x.astype(np.float32), trace, g.astype(np.float32))
    assert y.dtype == d.dtype == np.float32
    np.testing.assert_allclose(y, gru.unroll(NET, high, x), atol=1e-5)
    np.testing.assert_allclose(
        d, gru.backward(NET, high, x, gru.forward(NET, high, x)[1], g), atol=1e-4
    )


def test_gates_do_not_overflow():
    theta = np.full(NET.size, 1e4, np.float32)
    for sign in (1, -1):
        y, trace = gru.forward(NET, sign * theta, np.ones((3, 3, 2), np.float32))
        assert np.isfinite(y).all()
        assert np.isfinite(
            gru.backward(
                NET,
                sign * theta,
                np.ones((3, 3, 2), np.float32),
                trace,
                np.ones((3, 2, 2), np.float32),
            )
        ).all()


def test_the_start(rng):
    net = gru.GRU(50, 8, 3)
    W, U, b, V, v = net.split(net.init(rng, np.float64))
    for u in U.reshape(3, 8, 8):
        np.testing.assert_allclose(u @ u.T, np.eye(8), atol=1e-12)
    assert abs(W.std() * np.sqrt(50) - 1) < 0.1 and 0.005 < V.std() < 0.02 and not v.any()
    assert not b.any()
    b = net.split(net.init(rng, np.float64, memory=50.0))[2].ravel()
    assert 0 <= b[:8].min() and 2 < b[:8].max() <= np.log(50) and not b[8:].any()


def test_bad_input(rng):
    for bad in (dict(inputs=0), dict(units=-1), dict(outputs=0), dict(units=2.5)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            gru.GRU(**dict(inputs=3, units=4, outputs=2) | bad)
    theta = NET.init(rng)
    for wrong in (theta[:-1], np.where(np.arange(NET.size) == 7, np.nan, theta), theta[None]):
        with pytest.raises(ValueError, match="theta"):
            gru.unroll(NET, wrong, np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="x: expected shape"):
        gru.unroll(NET, theta, np.zeros((2, 4, 1)))
