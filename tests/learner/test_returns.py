"""Returns, GAE and baselines: by hand, against loops over single episodes, by identities, and their
derivatives by finite differences.
"""

import numpy as np
import pytest
from autograd import jacobian
from autograd.test_util import check_grads

from metarl_np.check import finite_differences
from metarl_np.learner.returns import (
    discounted_return,
    discounts,
    gae,
    leave_one_out_baseline,
    linear_baseline,
    no_baseline,
    reward_to_go,
    time_mean_baseline,
)
from metarl_np.learner.rollouts import Episodes

T = 6
N = 2
K = 5
S = 4
A = 3


@pytest.fixture
def data(rng):
    """Episodes of every length from 1 to T, rewards 0 once they have ended; and their lengths
    (N, K).
    """
    lengths = rng.permuted(np.tile([1, 3, T, T, 2], (N, 1)), axis=1)
    mask = np.arange(T)[:, None, None] < lengths
    episodes = Episodes(
        states=rng.integers(S, size=(T, N, K)),
        actions=rng.integers(A, size=(T, N, K)),
        rewards=rng.normal(size=(T, N, K)) * mask,
        mask=mask,
        log_pi=np.log(rng.dirichlet(np.ones(A), (N, S))),
        last_states=rng.integers(S, size=(N, K)),
        truncated=np.zeros((N, K), bool),
    )
    return episodes, lengths


def singles(*arrays):
    """(n, k) and each (T, N, K) array's column there as a list of numbers."""
    for n, k in np.ndindex(N, K):
        yield (n, k), *(a[:, n, k].tolist() for a in arrays)


# ---- returns


@pytest.mark.parametrize(
    "discount, whole, to_go",
    [
        (0.5, [1 + 1 + 0.75, -2 + 2], [[2.75, 0], [3.5, 0], [3, 8]]),
        (0, [1, 0], [[1, 0], [2, -4], [3, 8]]),
        (1, [6, 4], [[6, 4], [5, 4], [3, 8]]),
    ],
)
def test_returns_by_hand(discount, whole, to_go):
    rewards = np.array([[1.0, 0], [2, -4], [3, 8]])  # two episodes
    assert discounted_return(rewards, discount).tolist() == whole
    assert reward_to_go(rewards, discount).tolist() == to_go


def test_returns_of_integers_are_not_rounded():
    assert reward_to_go(np.array([1, 1]), 0.5).tolist() == [1.5, 1]


@pytest.mark.parametrize(
    "discount, like, expected",
    [
        (0.5, np.zeros((3, 2, 2)), [[[1.0]], [[0.5]], [[0.25]]]),
        (0, np.zeros(2), [1, 0]),
        (1, np.zeros((2, 5)), [[1], [1]]),
    ],
)
def test_discounts_align_with_time(discount, like, expected):
    gamma_t = discounts(discount, len(like), like)
    assert gamma_t.tolist() == expected
    assert (gamma_t * like).shape == like.shape


def test_returns_by_loops(data):
    rewards = data[0].rewards
    total = discounted_return(rewards, 0.9)
    to_go = reward_to_go(rewards, 0.9)
    assert total.shape == (N, K)
    for (n, k), r in singles(rewards):
        for t in range(T):
            later = sum(0.9 ** (u - t) * r[u] for u in range(t, T))
            assert to_go[t, n, k] == pytest.approx(later)
        assert total[n, k] == pytest.approx(to_go[0, n, k])


def test_reward_to_go_leaves_its_argument_alone(data):
    before = data[0].rewards.copy()
    reward_to_go(data[0].rewards, 0.9)
    np.testing.assert_array_equal(data[0].rewards, before)


def test_reward_to_go_differentiated(rng):
    """∂G_t/∂r_u = γ^(u − t) from t on, nothing before."""
    rewards = rng.normal(size=(4, 2))
    check_grads(lambda r: reward_to_go(r**2, 0.9), modes=["rev"], order=2)(rewards)
    slope = jacobian(lambda r: reward_to_go(r, 0.9))(rewards)
    for t, i, u, j in np.ndindex(slope.shape):
        want = 0.9 ** (u - t) if u >= t and i == j else 0
        assert slope[t, i, u, j] == pytest.approx(want, abs=1e-15)


# ---- GAE


@pytest.mark.parametrize(
    "bootstrap, want",
    [(4.0, [1.65625, 2.625, 3.5]), (0.0, [1.53125, 2.125, 1.5])],
    ids=["truncated", "terminated"],
)
def test_gae_by_hand(bootstrap, want):
    """δ = (1 + .5·1 − .5, 2 + .5·1.5 − 1, 3 + .5·bootstrap − 1.5), and γλ = .25."""
    rewards = np.array([1.0, 2, 3])
    values = np.array([0.5, 1, 1.5])
    mask = np.ones(3, bool)
    got = gae(rewards, values, mask, np.array(bootstrap), discount=0.5, lam=0.5)
    assert got.tolist() == want


def test_gae_stops_at_a_terminal_state():
    """δ = (1 + .5·1 − .5, 2 − 1): the masked step leaves no trace."""
    rewards = np.array([1.0, 2, 100])
    values = np.array([0.5, 1, 100])
    mask = np.array([True, True, False])
    got = gae(rewards, values, mask, np.array(100.0), discount=0.5, lam=0.5)
    assert got.tolist() == [1.25, 1, 0]


def n_step_advantages(rewards, values, discount):
    """Σ_{i<m} γⁱ r_i + γᵐ V(s_m) − V(s_0) for m = 1, 2, …, as many as there are rewards."""
    earned = 0.0
    found = []
    for m, r in enumerate(rewards, start=1):
        earned += discount ** (m - 1) * r
        found.append(earned + discount**m * values[m] - values[0])
    return found


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_averages_the_n_step_advantages(rng, data, lam):
    """(1 − λ) Σ_m λᵐ⁻¹ (m-step advantage), all that is left of the weight being the longest one's:
    Schulman et al. (2016), eq. 16's first line.
    """
    episodes, lengths = data
    values = rng.normal(size=(T, N, K))
    bootstrap = rng.normal(size=(N, K))
    got = gae(episodes.rewards, values, episodes.mask, bootstrap, discount=0.9, lam=lam)
    for (n, k), r, v in singles(episodes.rewards, values):
        end = lengths[n, k]
        after_the_end = bootstrap[n, k] if end == T else 0.0
        v = v[:end] + [after_the_end]
        for t in range(end):
            of_length = n_step_advantages(r[t:end], v[t:], 0.9)
            longest = of_length.pop()
            want = lam ** len(of_length) * longest
            want += sum((1 - lam) * lam**i * x for i, x in enumerate(of_length))
            assert got[t, n, k] == pytest.approx(want)
        assert not got[end:, n, k].any()


def test_gae_at_lambda_one_is_return_minus_value(rng, data):
    episodes, lengths = data
    values = rng.normal(size=(T, N, K))
    bootstrap = rng.normal(size=(N, K))
    got = gae(episodes.rewards, values, episodes.mask, bootstrap, discount=0.9, lam=1)
    steps_left = (T - np.arange(T))[:, None, None]
    beyond = 0.9**steps_left * bootstrap * (lengths == T)  # what truncated ones still expect
    want = (reward_to_go(episodes.rewards, 0.9) + beyond - values) * episodes.mask
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("lam", [0, 0.3, 1])
def test_gae_of_true_values_has_no_surprise(lam):
    """Rewards and values of a deterministic chain: every δ is 0, whatever λ."""
    rewards = np.array([[1.0, 2], [0, 1], [5, 0]])
    steps_left = np.array([[3], [2], [1]])
    values = reward_to_go(rewards, 0.9) + 0.9**steps_left * 7.0
    mask = np.ones(rewards.shape, bool)
    got = gae(rewards, values, mask, np.full(2, 7.0), discount=0.9, lam=lam)
    np.testing.assert_allclose(got, 0, atol=1e-14)


@pytest.fixture
def traced(rng, data):
    """gae as a function of rewards, values and bootstrap, and such arguments."""
    episodes, _ = data
    mask = episodes.mask[:, 0]

    def f(rewards, values, bootstrap):
        return gae(rewards, values**2, mask, bootstrap**2, discount=0.9, lam=0.6)

    return f, [episodes.rewards[:, 0], rng.normal(size=(T, K)), rng.normal(size=K)]


def test_gae_differentiated_to_second_order(traced):
    f, arguments = traced
    check_grads(f, (0, 1, 2), modes=["rev"], order=2)(*arguments)


@pytest.mark.parametrize("i", range(3), ids=["rewards", "values", "bootstrap"])
def test_gae_differentiated_by_finite_differences(traced, i):
    f, arguments = traced

    def of_one(x):
        return f(*arguments[:i], x, *arguments[i + 1 :])

    expected = finite_differences(of_one, arguments[i])
    np.testing.assert_allclose(jacobian(of_one)(arguments[i]), expected, atol=1e-9)


# ---- baselines


@pytest.mark.parametrize(
    "baseline, want",
    [
        (time_mean_baseline, [[[3, 3, 3]], [[1, 1, 1]]]),
        (leave_one_out_baseline, [[[4, 3.5, 1.5]], [[1.5, 0, 1.5]]]),
        (no_baseline, [[[0, 0, 0]], [[0, 0, 0]]]),
    ],
)
def test_averaging_baselines_by_hand(baseline, want):
    returns = np.array([[[1.0, 2, 6]], [[0, 3, 0]]])  # 2 steps, 1 task, 3 episodes
    assert baseline(returns).tolist() == want


def test_averaging_baselines_by_loops(data):
    episodes, _ = data
    returns = reward_to_go(episodes.rewards, 0.9)
    mean = time_mean_baseline(returns, episodes)
    others = leave_one_out_baseline(returns, episodes)
    for t, n, k in np.ndindex(T, N, K):
        row = returns[t, n].tolist()
        assert mean[t, n, k] == pytest.approx(sum(row) / K)
        del row[k]
        assert others[t, n, k] == pytest.approx(sum(row) / (K - 1))


def test_leave_one_out_ignores_its_own_episode(data):
    episodes, _ = data
    returns = reward_to_go(episodes.rewards, 0.9)
    changed = returns + 100 * (np.arange(K) == 2)
    before = leave_one_out_baseline(returns)
    after = leave_one_out_baseline(changed)
    np.testing.assert_allclose(after[..., 2], before[..., 2], atol=1e-12)
    np.testing.assert_allclose(after[..., 0], before[..., 0] + 25)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7e5])
def test_leave_one_out_of_equal_returns_is_exactly_them(value):
    returns = np.full((3, 1, 7), value)
    np.testing.assert_array_equal(leave_one_out_baseline(returns), returns)


def test_leave_one_out_needs_another_episode():
    with pytest.raises(ValueError, match="episodes: .*at least 2"):
        leave_one_out_baseline(np.ones((3, 2, 1)))


# ---- the linear baseline


PHI = np.random.default_rng(5).normal(size=(S, 2))


@pytest.fixture
def many(rng):
    """Episodes enough to fit a line through, of random lengths."""
    shape = (T, N, 40)
    nothing = np.zeros(shape, int)
    return Episodes(
        states=rng.integers(S, size=shape),
        actions=nothing,
        rewards=nothing,
        mask=np.arange(T)[:, None, None] < rng.integers(1, T + 1, shape[1:]),
        log_pi=np.zeros((N, S, A)),
        last_states=nothing[0],
        truncated=np.zeros(shape[1:], bool),
    )


def design(episodes, n):
    """(φ(s_t), 1, τ, τ², τ³), a row for each valid step of task n, in the order of the mask."""
    rows = []
    for t, k in zip(*np.nonzero(episodes.mask[:, n])):
        tau = t / T
        rows.append([*PHI[episodes.states[t, n, k]], 1, tau, tau**2, tau**3])
    return np.array(rows)


def test_linear_baseline_recovers_a_linear_function(rng, many):
    tau = np.arange(T)[:, None, None] / T
    slope = rng.normal(size=(N, 2))
    time = rng.normal(size=(4, N, 1))
    by_state = np.einsum("tnkf,nf->tnk", PHI[many.states], slope)
    returns = by_state + sum(c * tau**i for i, c in enumerate(time))
    fitted = linear_baseline(PHI)(returns * many.mask, many)
    np.testing.assert_allclose(fitted[many.mask], returns[many.mask], atol=1e-4)


def test_linear_baseline_is_least_squares_on_the_valid_steps(rng, many):
    """Masked returns are not 0 here: they must not matter."""
    returns = rng.normal(size=many.mask.shape) + np.array([[0.0], [5.0]])
    fitted = linear_baseline(PHI, ridge=1e-10)(returns, many)
    assert fitted.shape == returns.shape
    for n in range(N):
        x = design(many, n)
        valid = many.mask[:, n]
        w = np.linalg.lstsq(x, returns[:, n][valid], rcond=None)[0]
        np.testing.assert_allclose(fitted[:, n][valid], x @ w, atol=1e-6)


def test_the_ridge_is_a_row_more_for_each_weight_that_asks_it_to_be_zero(rng, many):
    returns = rng.normal(size=many.mask.shape) * many.mask
    fitted = linear_baseline(PHI, ridge=2.0)(returns, many)
    for n in range(N):
        x = design(many, n)
        valid = many.mask[:, n]
        rows = np.concatenate([x, np.sqrt(2.0) * np.eye(6)])
        targets = np.concatenate([returns[:, n][valid], np.zeros(6)])
        w = np.linalg.lstsq(rows, targets, rcond=None)[0]
        np.testing.assert_allclose(fitted[:, n][valid], x @ w, atol=1e-10)


def test_linear_baseline_of_features_that_depend_on_each_other(rng, many):
    """The columns of a table add up to the constant's."""
    returns = rng.normal(size=many.mask.shape) * many.mask
    assert np.isfinite(linear_baseline(np.eye(S))(returns, many)).all()


@pytest.mark.parametrize("sort", ["singular", "NaN"])
def test_linear_baseline_says_when_it_cannot_be_fitted(rng, many, sort):
    returns = rng.normal(size=many.mask.shape)
    features = {"singular": np.zeros((S, 2)), "NaN": PHI}[sort]
    if sort == "NaN":
        returns[0, 0, 0] = np.nan
    why = "returns: .*not finite" if sort == "NaN" else "ridge: .*depend on each other"
    with pytest.raises(ValueError, match=why):
        linear_baseline(features, ridge=0.0)(returns, many)


def test_linear_baseline_of_a_nearly_singular_table_is_still_least_squares(rng, many):
    """The columns add up to a tenth of the constant: weights are free, but the fit is not."""
    returns = rng.normal(size=many.mask.shape) * many.mask
    try:
        fitted = linear_baseline(0.1 * np.eye(S), ridge=0.0)(returns, many)
    except ValueError as error:
        assert "ridge" in str(error)
        return
    for n in range(N):
        valid = many.mask[:, n]
        states = np.eye(S)[many.states[:, n][valid]]
        tau = np.nonzero(valid)[0][:, None] / T
        x = np.concatenate([states, tau ** np.arange(4)], 1)
        w = np.linalg.lstsq(x, returns[:, n][valid], rcond=None)[0]
        np.testing.assert_allclose(fitted[:, n][valid], x @ w, atol=1e-4)
