"""Ascent and Adam against loops over single numbers and on a hill; conjugate gradient against dense
solves.
"""

import math

import numpy as np
import pytest

from metarl_np.learner.optim import adam, ascent, conjugate_gradient


def test_ascent_by_hand():
    theta, state = ascent(np.array([[1.0, 2.0]]), np.array([[-3.0, 0.5]]), step_size=0.1)
    np.testing.assert_allclose(theta, [[0.7, 2.05]])
    assert state is None


def test_adam_is_the_papers_algorithm(rng):
    """Kingma & Ba (2015), Algorithm 1 in scalars, on minus the gradient."""
    gradients = rng.normal(size=(12, 2, 3)) * 10.0 ** rng.integers(-4, 3, (2, 3))
    theta = rng.normal(size=(2, 3))
    state = None
    start = theta.copy()
    path = []
    for g in gradients:
        theta, state = adam(theta, g, state, step_size=0.03, decay=(0.8, 0.95), eps=1e-3)
        path.append(theta)
    for i in np.ndindex(2, 3):
        x = start[i]
        m = 0.0
        v = 0.0
        for t in range(1, 13):
            g = -gradients[t - 1][i]
            m = 0.8 * m + 0.2 * g
            v = 0.95 * v + 0.05 * g * g
            x -= 0.03 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-3)
            assert path[t - 1][i] == pytest.approx(x, rel=1e-12)


def test_adam_defaults_are_the_papers():
    theta = np.array(0.0)
    gradients = [1.0, -0.5, 2.0]
    default = (theta, None)
    given = (theta, None)
    for g in gradients:
        default = adam(default[0], g, default[1], step_size=0.1)
        given = adam(given[0], g, given[1], step_size=0.1, decay=(0.9, 0.999), eps=1e-8)
    assert default[0] == given[0] != 0


def test_adams_first_step_is_the_step_size_uphill():
    theta, (_, _, t) = adam(np.zeros(4), np.array([1e-3, -2.0, 1e4, 0.0]), step_size=0.1)
    np.testing.assert_allclose(theta, [0.1, -0.1, 0.1, 0], rtol=1e-4)
    assert t == 1


@pytest.mark.parametrize("optimizer, step_size", [(ascent, 0.02), (adam, 0.05)])
def test_climbs_to_the_top(optimizer, step_size):
    """f(θ) = −(θ₀ − 1)² − 10 (θ₁ + 2)²."""
    theta = np.array([3.0, 1.0])
    state = None
    for _ in range(600):
        theta, state = optimizer(
            theta, np.array([-2.0, -20.0]) * (theta - [1, -2]), state, step_size=step_size
        )
    np.testing.assert_allclose(theta, [1, -2], atol=1e-3)


@pytest.mark.parametrize("optimizer", [ascent, adam])
def test_pure(optimizer):
    theta = np.ones(2)
    g = np.array([1.0, -1.0])
    first, state = optimizer(theta, g, step_size=0.1)
    second = [optimizer(first, g, state, step_size=0.1)[0] for _ in range(2)]
    np.testing.assert_array_equal(*second)  # nothing that was passed in has changed
    assert theta.tolist() == [1, 1] and g.tolist() == [1, -1] and (second[0] != first).all()


# Conjugate gradient


def systems(rng, conditions, size=(3, 2)):
    """A (N, P, P) with the given condition numbers, A's product and b (N, …)."""
    p = size[0] * size[1]
    q = np.linalg.qr(rng.normal(size=(len(conditions), p, p)))[0]
    A = np.einsum("nij,nj,nkj->nik", q, np.geomspace(1, conditions, p, axis=1), q)
    return (
        A,
        lambda v: np.einsum("nij,nj->ni", A, v.reshape(len(v), p)).reshape(v.shape),
        rng.normal(size=(len(A),) + size),
    )


def residuals(A, x, b):
    """|b − Ax| / |b|, (N,)."""
    rest = b.reshape(len(b), -1) - np.einsum("nij,nj->ni", A, x.reshape(len(x), -1))
    return np.linalg.norm(rest, axis=1) / np.linalg.norm(b.reshape(len(b), -1), axis=1)


def test_conjugate_gradient_by_hand():
    """Nocedal & Wright's Algorithm 5.2 on A = diag(2, 1), b = (2, 2): steps 2/3 and 3/4."""

    def run(n):
        return conjugate_gradient(lambda v: v * [2, 1], np.array([[2.0, 2]]), max_iterations=n)

    assert run(0).tolist() == [[0, 0]]
    np.testing.assert_allclose(run(1), [[4 / 3, 4 / 3]], rtol=1e-14)
    np.testing.assert_allclose(run(2), [[1, 2]], rtol=1e-14)


def test_conjugate_gradient_is_the_dense_solve_whatever_the_condition_and_scale(rng):
    conditions = np.array([1.0, 10, 1e3, 1e5])
    A, matvec, b = systems(rng, conditions)
    b *= np.array([1, 1e-12, 1e12, 1])[:, None, None]
    x = conjugate_gradient(matvec, b)
    before = b.copy()
    for i in range(4):
        dense = np.linalg.solve(A[i], b[i].ravel()).reshape(b[i].shape)
        np.testing.assert_allclose(x[i], dense, atol=1e-10 * conditions[i] * abs(dense).max())
    assert (residuals(A, x, b) < 1.1e-10).all()
    np.testing.assert_array_equal(b, before)


def test_conjugate_gradient_leaves_a_solved_problem_alone_while_others_go_on(rng):
    """Each problem of a batch gets the bits that it would get alone; a zero right-hand side the
    answer zero.
    """
    A, _, b = systems(rng, np.array([1.0, 50, 1e4, 10]))
    b[3] = 0

    def product(A):
        return lambda v: (A * v.reshape(len(v), 1, -1)).sum(-1).reshape(v.shape)

    together = conjugate_gradient(product(A), b)
    alone = [conjugate_gradient(product(A[[i]]), b[[i]])[0] for i in range(4)]
    np.testing.assert_array_equal(together, alone)
    assert (together[3] == 0).all()


def test_conjugate_gradient_stops_at_its_tolerance(rng):
    A, matvec, b = systems(rng, np.geomspace(1, 100, 5), (10, 4))
    exact = [
        residuals(A, conjugate_gradient(matvec, b, tolerance=tolerance), b).max()
        for tolerance in (1e-1, 1e-4, 1e-12)
    ]
    assert exact[0] > 1e-4 > exact[1] > 1e-10 and exact[2] < 2e-12


def test_conjugate_gradient_says_when_it_cannot(rng):
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    for worst, solvable in ((1e-6, True), (1e-17, False)):
        a = q * np.geomspace(1, worst, 30) @ q.T
        b = a @ rng.normal(size=30) if solvable else rng.normal(size=30)
        if solvable:
            x = conjugate_gradient(lambda v: v @ a, b[None])
            assert np.linalg.norm(x @ a - b) < 1e-4 * np.linalg.norm(b)
        else:
            with pytest.raises(ValueError, match="ill-conditioned.*damping"):
                conjugate_gradient(lambda v: v @ a, b[None])


THREE = np.array([[2.0, 1, 0], [1, 3, 1], [0, 1, 4]])


def of_rows(A):
    return lambda v: v @ A


@pytest.mark.parametrize("options", [{}, dict(max_iterations=10)], ids=["to the end", "at most 10"])
@pytest.mark.parametrize(
    "b",
    [
        pytest.param([1, 2, 3], id="one system"),
        pytest.param([[1, 2, 3]], id="a list of one"),
        pytest.param([[1, 2, 3], [0, 0, 0], [-1, 0, 5]], id="three systems"),
        pytest.param(np.array([1, 2, 3], np.uint8), id="unsigned"),
        pytest.param([1e200, 0, 2e199], id="huge"),
        pytest.param([[1e-200, 0, 0], [1e200, 1, 0]], id="tiny and huge"),
        pytest.param([0, 0, 0], id="zero"),
    ],
)
def test_conjugate_gradient_of_one_system_and_of_many(b, options):
    b = np.asarray(b)
    x = conjugate_gradient(of_rows(THREE), b, **options)
    right = np.linalg.solve(THREE, b.T.astype(float)).T
    assert x.shape == b.shape
    size = abs(right).max(-1, keepdims=True)
    assert (abs(x - right) <= 1e-9 * size).all()


@pytest.mark.parametrize("options", [{}, dict(max_iterations=3)], ids=["to the end", "at most 3"])
@pytest.mark.parametrize(
    "A, b, why",
    [
        pytest.param(THREE, [np.nan, 1, 1], "b: .*not finite", id="NaN in b"),
        pytest.param(THREE, [[np.inf, 1, 1]], "b: .*not finite", id="infinity in b"),
        pytest.param(np.nan * THREE, [1, 1, 1], "matvec: .*not finite", id="NaN in A"),
        pytest.param(
            np.where(np.eye(3), np.inf, 1), [1, 1, 1], "matvec: .*not finite", id="infinity in A"
        ),
        pytest.param(np.diag([1.0, -1, 1]), [1, 1, 0], "positive definite", id="indefinite"),
        pytest.param(-THREE, [[1, 1, 1]], "positive definite", id="negative"),
        pytest.param(0 * THREE, [1, 1, 1], "positive definite", id="zero"),
        pytest.param(1e-200 * THREE, [1e200, 1, 1], "not finite", id="x is out of range"),
        pytest.param(THREE, 1.0, "b: ", id="a number"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_conjugate_gradient_says_why_it_cannot(A, b, why, options):
    with pytest.raises(ValueError, match=why):
        conjugate_gradient(of_rows(A), b, **options)


@pytest.mark.parametrize("optimizer", [ascent, adam])
def test_optimizers_take_lists(optimizer):
    of_lists, _ = optimizer([0.0, 1], [1, -1], step_size=2)
    of_arrays, _ = optimizer(np.array([0.0, 1]), np.array([1, -1]), step_size=2)
    np.testing.assert_array_equal(of_lists, of_arrays)


def test_conjugate_gradient_without_a_tolerance_does_not_go_on_into_underflow():
    d = np.repeat([1e-30, 2e-30], 50)
    x = conjugate_gradient(lambda v: d * v, np.ones(100), tolerance=0)
    np.testing.assert_allclose(d * x, 1, rtol=1e-14)


@pytest.mark.parametrize(
    "matvec", [None, np.eye(2), lambda v: None, lambda v: 3.0, lambda v: v * 1j]
)
def test_conjugate_gradient_names_a_matvec_that_is_none(matvec):
    with pytest.raises(ValueError, match="^matvec: "):
        conjugate_gradient(matvec, np.ones(2))


@pytest.mark.parametrize(
    "name, bad", [("decay", 0.9), ("decay", (0.9,)), ("decay", (0.9, 1)), ("eps", -1), ("eps", "x")]
)
def test_adam_names_its_bad_options(name, bad):
    with pytest.raises(ValueError, match=f"^{name}: "):
        adam(np.ones(2), np.ones(2), step_size=0.1, **{name: bad})


@pytest.mark.parametrize("kind", [list, np.int64, np.float16, np.float64, np.longdouble])
@pytest.mark.parametrize("optimiser", [ascent, adam])
def test_neither_gradient_nor_state_changes_the_type_of_float32_parameters(optimiser, kind):
    theta = np.ones(2, np.float32)
    gradient = [1.0, 2.0] if kind is list else np.array([1.0, 2.0], kind)
    state = (gradient, gradient, 1) if optimiser is adam else None
    expected, _ = optimiser(theta, np.array([1, 2], np.float32), state, step_size=0.5)
    after, state = optimiser(theta, gradient, state, step_size=0.5)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, expected)
    if state:
        assert state[0].dtype == state[1].dtype == np.float32
