"""The GRU against the same equations in plain loops and in plain autograd operations; its
derivatives three ways.
"""

import inspect

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
    for shape in ((4, 3),) * 3 + ((4, 4),) * 3 + ((4, 1),) * 4 + ((2, 4), (2, 1)):
        parts.append(anp.reshape(theta[place : place + shape[0] * shape[1]], shape))
        place += shape[0] * shape[1]
    Wz, Wr, Wc, Uz, Ur, Uc, bz, br, bc, b_hn, V, v = parts
    h = anp.zeros((4, x.shape[2]))
    y = []
    for x_t in x:
        z = 1 / (1 + anp.exp(-(anp.dot(Wz, x_t) + bz + anp.dot(Uz, h))))
        r = 1 / (1 + anp.exp(-(anp.dot(Wr, x_t) + br + anp.dot(Ur, h))))
        c = anp.tanh(anp.dot(Wc, x_t) + bc + r * (anp.dot(Uc, h) + b_hn))
        h = z * h + (1 - z) * c
        y.append(anp.dot(V, h) + v)
    return anp.array(y)


def test_one_unit_by_hand():
    """z = r = ½ where only b_c, U_c and b_hn are not 0, so that with h_0 = 0
    h_t = ½ h_{t−1} + ½ tanh(b_c + ½ (U_c h_{t−1} + b_hn)).
    """
    net = gru.GRU(1, 1, 1)
    U_c = 0.7
    b_c = 0.3
    b_hn = -0.4
    theta = np.array([0, 0, 0, 0, 0, U_c, 0, 0, b_c, b_hn, 2.0, 0.1])
    h1 = 0.5 * np.tanh(b_c + 0.5 * b_hn)
    h2 = 0.5 * h1 + 0.5 * np.tanh(b_c + 0.5 * (U_c * h1 + b_hn))
    np.testing.assert_allclose(
        gru.unroll(net, theta, np.ones((2, 1, 1))).ravel(), [2 * h1 + 0.1, 2 * h2 + 0.1], rtol=1e-14
    )


def test_forward_is_the_plain_cell(case):
    theta, x, _ = case
    np.testing.assert_allclose(gru.unroll(NET, theta, x), plain(theta, x), atol=1e-13)


def test_the_fast_step_is_the_cell_as_its_equations_say_it(case, rng):
    theta, x, _ = case
    h = rng.normal(size=(4, 6))
    weights = NET.split(theta)
    W, _, b, _, V, v = weights
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
    ends = (36, 84, 96, 100, 108, 110)
    W, U, b, b_hn, V, v = (theta[a:b] for a, b in zip((0,) + ends, ends))
    a = anp.dot(W.reshape(12, 3), x) + b.reshape(12, 1)
    u = anp.dot(U.reshape(12, 4), h)
    z = 1 / (1 + anp.exp(-a[:4] - u[:4]))
    r = 1 / (1 + anp.exp(-a[4:8] - u[4:8]))
    h = z * h + (1 - z) * anp.tanh(a[8:] + r * (u[8:] + b_hn.reshape(4, 1)))
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


# ---- weights from elsewhere, brought over by the code that the docstring of GRU shows


def brought_over(library, **given):
    """θ by the lines of the docstring for `library`, of what they start from."""
    paragraphs = inspect.getdoc(gru.GRU).split("\n\n")
    after = [i for i, text in enumerate(paragraphs) if library in text and text[0] != " "]
    to_theta = next(text for text in paragraphs if text.startswith("    theta = "))
    names = dict(np=np) | given
    exec(inspect.cleandoc(paragraphs[after[-1] + 1]), names)
    exec(inspect.cleandoc(to_theta), names)
    return names["theta"]


def logistic(x):
    return 1 / (1 + np.exp(-x))


def of_pytorch(rng):
    """The parameters of torch.nn.GRU(3, 4), and its hidden states by its documentation's equations:
    r, z, n, h' = (1 − z) n + z h, the rows of the weights being those of r, z, n.
    """
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    shapes = ((12, 3), (12, 4), (12,), (12,))
    given = {name: rng.normal(size=shape) for name, shape in zip(names, shapes)}
    W_ih, W_hh, b_ih, b_hh = given.values()

    def step(x, h):
        r = logistic(W_ih[:4] @ x + b_ih[:4] + W_hh[:4] @ h + b_hh[:4])
        z = logistic(W_ih[4:8] @ x + b_ih[4:8] + W_hh[4:8] @ h + b_hh[4:8])
        n = np.tanh(W_ih[8:] @ x + b_ih[8:] + r * (W_hh[8:] @ h + b_hh[8:]))
        return (1 - z) * n + z * h

    return given, step


def of_flax(rng):
    """The parameters of flax's GRUCell, Dense layers x @ kernel + bias, where hr and hz have none,
    and its step.
    """
    dense = dict(ir=3, iz=3, hr=4, hz=4, hn=4) | {"in": 3}
    params = {name: dict(kernel=rng.normal(size=(d, 4))) for name, d in dense.items()}
    for name in ("ir", "iz", "in", "hn"):
        params[name]["bias"] = rng.normal(size=4)

    def layer(name, x):
        return x @ params[name]["kernel"] + params[name].get("bias", 0)

    def step(x, h):
        r = logistic(layer("ir", x) + layer("hr", h))
        z = logistic(layer("iz", x) + layer("hz", h))
        n = np.tanh(layer("in", x) + r * layer("hn", h))
        return (1 - z) * n + z * h

    return dict(params=params), step


def of_keras(rng):
    """The weights of keras.layers.GRU(4, reset_after=True), its columns being z, r, h, and its
    step.
    """
    kernel = rng.normal(size=(3, 12))
    recurrent_kernel = rng.normal(size=(4, 12))
    bias = rng.normal(size=(2, 12))

    def step(x, h):
        x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3)
        h_z, h_r, h_h = np.split(h @ recurrent_kernel + bias[1], 3)
        z = logistic(x_z + h_z)
        r = logistic(x_r + h_r)
        return z * h + (1 - z) * np.tanh(x_h + r * h_h)

    return dict(kernel=kernel, recurrent_kernel=recurrent_kernel, bias=bias), step


@pytest.mark.parametrize(
    "library, theirs",
    [
        pytest.param("torch.nn.GRU", of_pytorch, id="PyTorch"),
        pytest.param("flax", of_flax, id="flax"),
        pytest.param("Keras", of_keras, id="Keras"),
    ],
)
def test_weights_of_other_libraries_play_the_same_here(rng, library, theirs):
    given, step = theirs(rng)
    V = rng.normal(size=(2, 4))
    v = rng.normal(size=2)
    x = rng.normal(size=(7, 3))
    h = np.zeros(4)
    answers = []
    for x_t in x:
        h = step(x_t, h)
        answers.append(V @ h + v)
    theta = brought_over(library, V=V, v=v, **given)
    np.testing.assert_allclose(gru.unroll(NET, theta, x[..., None])[..., 0], answers, atol=1e-13)


# ---- numbers of every sort


@pytest.mark.parametrize("sort", [int, bool, np.uint8, np.float16, np.longdouble, list])
def test_parameters_of_every_sort_count_as_floats(case, sort):
    _, x, g = case
    floats = np.arange(NET.size) % 2 * 1.0
    theta = floats.tolist() if sort is list else floats.astype(sort)
    y, trace = gru.forward(NET, theta, x)
    np.testing.assert_array_equal(y, gru.unroll(NET, floats, x))
    ours = gru.backward(NET, theta, x, trace, g)
    np.testing.assert_array_equal(ours, gru.backward(NET, floats, x, trace, g))


@pytest.mark.parametrize("sort", [int, bool, np.uint8])
def test_autograd_differentiates_at_whole_numbers(case, sort):
    _, x, g = case
    floats = np.arange(NET.size) % 2 * 1.0
    slope = grad(lambda th: anp.sum(gru.unroll(NET, th, x) * g))
    np.testing.assert_array_equal(slope(floats.astype(sort)), slope(floats))


@pytest.mark.parametrize("sort", [int, np.float32, float, list])
def test_inputs_of_every_sort_leave_float32_parameters_float32(rng, sort):
    theta = NET.init(rng)
    ones = np.ones((2, 3, 1), np.float32)
    x = ones.tolist() if sort is list else ones.astype(sort)
    g = np.ones((2, 2, 1)).tolist() if sort is list else np.ones((2, 2, 1), sort)
    y, trace = gru.forward(NET, theta, x)
    assert y.dtype == trace[0].dtype == np.float32
    np.testing.assert_array_equal(y, gru.unroll(NET, theta, ones))
    assert gru.backward(NET, theta, x, trace, g).dtype == np.float32


def test_the_start_draws_nothing_for_b_hn(rng):
    """So a seed gives the same other parameters as it did before there was b_hn."""
    seed = rng.bit_generator.state
    NET.init(rng)
    after = rng.random()
    rng.bit_generator.state = seed
    rng.standard_normal(36 + 48 + 12 + 8 + 2)
    rng.uniform(size=4)
    assert rng.random() == after


def test_the_start(rng):
    net = gru.GRU(50, 8, 3)
    W, U, b, b_hn, V, v = net.split(net.init(rng, np.float64))
    for u in U.reshape(3, 8, 8):
        np.testing.assert_allclose(u @ u.T, np.eye(8), atol=1e-12)
    assert abs(W.std() * np.sqrt(50) - 1) < 0.1 and 0.005 < V.std() < 0.02 and not v.any()
    assert not b.any() and not b_hn.any()
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
