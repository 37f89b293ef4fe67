"""Returns, GAE and baselines: by hand, against loops over single episodes, and by identities."""

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
    """Episodes of every length from 1 to T, rewards 0 once they have ended, and their lengths (N,
    K).
    """
    lengths = rng.permuted(np.tile([1, 3, T, T, 2], (N, 1)), axis=1)
    mask = np.arange(T)[:, None, None] < lengths
    episodes = Episodes(
        rng.integers(S, size=(T, N, K)),
        rng.integers(A, size=(T, N, K)),
        rng.normal(size=(T, N, K)) * mask,
        mask,
        np.log(rng.dirichlet(np.ones(A), (N, S))),
        rng.integers(S, size=(N, K)),
        np.zeros((N, K), bool),
    )
    return episodes, lengths


def singles(*arrays):
    """(n, k) and each (T, N, K) array's column there as a list of numbers."""
    for n, k in np.ndindex(N, K):
        yield (n, k), *(a[:, n, k].tolist() for a in arrays)


# Returns


def test_returns_by_hand():
    rewards = np.array([[1.0, 0], [2, -4], [3, 8]])  # two episodes
    assert discounted_return(rewards, 0.5).tolist() == [1 + 1 + 0.75, -2 + 2]
    assert reward_to_go(rewards, 0.5).tolist() == [[2.75, 0], [3.5, 0], [3, 8]]
    assert discounted_return(rewards, 1).tolist() == [6, 4] and discounted_return(
        rewards, 0
    ).tolist() == [1, 0]
    assert reward_to_go(rewards, 0).tolist() == rewards.tolist() and reward_to_go(rewards, 1)[
        0
    ].tolist() == [6, 4]
    assert reward_to_go(np.array([1, 1]), 0.5).tolist() == [1.5, 1]  # integers are not rounded


def test_discounts_align_with_time(data):
    rewards = data[0].rewards
    assert discounts(0.5, 3, np.zeros((3, 2, 2))).tolist() == [[[1.0]], [[0.5]], [[0.25]]]
    assert discounts(0, 2, [5, 5]).tolist() == [1, 0]
    assert (discounts(0.5, T, rewards) * rewards).shape == rewards.shape


def test_returns_by_loops(data):
    rewards = data[0].rewards
    total = discounted_return(rewards, 0.9)
    to_go = reward_to_go(rewards, 0.9)
    assert total.shape == (N, K)
    for (n, k), r in singles(rewards):
        for t in range(T):
            assert to_go[t, n, k] == pytest.approx(sum(0.9 ** (i - t) * r[i] for i in range(t, T)))
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
    for t, i, u, j in np.ndindex(4, 2, 4, 2):
        assert slope[t, i, u, j] == pytest.approx(
            0.9 ** (u - t) if u >= t and i == j else 0, abs=1e-15
        )


# GAE


@pytest.mark.parametrize(
    "bootstrap, want",
    [(4.0, [1.65625, 2.625, 3.5]), (0.0, [1.53125, 2.125, 1.5])],
    ids=["truncated", "terminated"],
)
def test_gae_by_hand(bootstrap, want):
    # δ = (1 + .5·1 − .5, 2 + .5·1.5 − 1, 3 + .5·bootstrap − 1.5), each passing .25 of what follows
    # on
    rewards = np.array([1.0, 2, 3])
    values = np.array([0.5, 1, 1.5])
    mask = np.ones(3, bool)
    assert gae(rewards, values, mask, np.array(bootstrap), discount=0.5, lam=0.5).tolist() == want


def test_gae_stops_at_a_terminal_state():
    mask = np.array([True, True, False])
    got = gae(
        np.array([1.0, 2, 100]),
        np.array([0.5, 1, 100]),
        mask,
        np.array(100.0),
        discount=0.5,
        lam=0.5,
    )
    assert got.tolist() == [1.25, 1, 0]  # δ = (1 + .5·1 − .5, 2 − 1): no trace of the masked step


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_averages_the_n_step_advantages(rng, data, lam):
    """(1 − λ) Σ_n λⁿ⁻¹ (n-step advantage), all the remaining weight on the longest: Schulman et al.
    (2016), eq. 16's first line.
    """
    episodes, lengths = data
    values = rng.normal(size=(T, N, K))
    bootstrap = rng.normal(size=(N, K))
    got = gae(episodes.rewards, values, episodes.mask, bootstrap, discount=0.9, lam=lam)
    for (n, k), r, v in singles(episodes.rewards, values):
        end = lengths[n, k]
        v = v[:end] + [bootstrap[n, k] if end == T else 0.0]
        for t in range(end):
            steps = [
                sum(0.9**i * r[t + i] for i in range(m)) + 0.9**m * v[t + m] - v[t]
                for m in range(1, end - t + 1)
            ]
            weights = [(1 - lam) * lam**i for i in range(len(steps) - 1)] + [
                lam ** (len(steps) - 1)
            ]
            assert got[t, n, k] == pytest.approx(np.dot(weights, steps))
        assert not got[end:, n, k].any()


def test_gae_at_lambda_one_is_return_minus_value(rng, data):
    episodes, lengths = data
    values = rng.normal(size=(T, N, K))
    bootstrap = rng.normal(size=(N, K))
    got = gae(episodes.rewards, values, episodes.mask, bootstrap, discount=0.9, lam=1)
    # what the truncated ones still expect
    cut = 0.9 ** (T - np.arange(T))[:, None, None] * bootstrap * (lengths == T)
    np.testing.assert_allclose(
        got, (reward_to_go(episodes.rewards, 0.9) + cut - values) * episodes.mask, atol=1e-12
    )


def test_gae_of_true_values_has_no_surprise():
    """Rewards and values of a deterministic chain: every δ is 0, whatever λ."""
    rewards = np.array([[1.0, 2], [0, 1], [5, 0]])[:, :, None]
    values = reward_to_go(rewards, 0.9) + 0.9 ** np.array([3, 2, 1])[:, None, None] * 7.0
    got = gae(
        rewards, values, np.ones((3, 2, 1), bool), np.full((2, 1), 7.0), discount=0.9, lam=0.3
    )
    np.testing.assert_allclose(got, 0, atol=1e-14)


def test_gae_differentiated_through_values_rewards_and_bootstrap(rng, data):
    episodes, _ = data
    arguments = episodes.rewards[:, 0], rng.normal(size=(T, K)), rng.normal(size=K)

    def f(rewards, values, bootstrap):
        return gae(rewards, values**2, episodes.mask[:, 0], bootstrap**2, discount=0.9, lam=0.6)

    check_grads(f, (0, 1, 2), modes=["rev"], order=2)(*arguments)
    for i in range(3):
        expected = finite_differences(
            lambda x: f(*arguments[:i], x, *arguments[i + 1 :]), arguments[i]
        )
        np.testing.assert_allclose(jacobian(f, i)(*arguments), expected, atol=1e-9)


# Baselines


def test_averaging_baselines_by_hand():
    returns = np.array([[[1.0, 2, 6]], [[0, 3, 0]]])  # 2 steps, 1 task, 3 episodes
    assert time_mean_baseline(returns).tolist() == [[[3, 3, 3]], [[1, 1, 1]]]
    assert leave_one_out_baseline(returns).tolist() == [[[4, 3.5, 1.5]], [[1.5, 0, 1.5]]]
    assert no_baseline(returns).tolist() == [[[0, 0, 0]], [[0, 0, 0]]]


def test_averaging_baselines_by_loops(data):
    returns = reward_to_go(data[0].rewards, 0.9)
    mean = time_mean_baseline(returns, data[0])
    others = leave_one_out_baseline(returns, data[0])
    for t, n, k in np.ndindex(T, N, K):
        assert mean[t, n, k] == pytest.approx(sum(returns[t, n]) / K)
        assert others[t, n, k] == pytest.approx(
            sum(returns[t, n, j] for j in range(K) if j != k) / (K - 1)
        )


def test_leave_one_out_ignores_its_own_episode(data):
    returns = reward_to_go(data[0].rewards, 0.9)
    changed = returns + 100 * (np.arange(K) == 2)
    before = leave_one_out_baseline(returns)
    after = leave_one_out_baseline(changed)
    np.testing.assert_allclose(after[..., 2], before[..., 2], atol=1e-12)
    np.testing.assert_allclose(after[..., 0], before[..., 0] + 25)


def test_leave_one_out_of_equal_returns_is_exactly_them():
    returns = np.broadcast_to(np.array([0.1, 1 / 3, -7e5])[:, None, None], (3, 1, 7))
    np.testing.assert_array_equal(leave_one_out_baseline(returns), returns)


def test_leave_one_out_needs_another_episode():
    with pytest.raises(ValueError, match="episodes: .*at least 2"):
        leave_one_out_baseline(np.ones((3, 2, 1)))


PHI = np.random.default_rng(5).normal(size=(S, 2))


def many(rng):
    """Episodes enough to fit a line through, of random lengths."""
    shape = (T, N, 40)
    mask = np.arange(T)[:, None, None] < rng.integers(1, T + 1, shape[1:])
    none = np.zeros(shape, int)
    return Episodes(
        rng.integers(S, size=shape), none, none, mask, np.zeros((N, S, A)), none[0], none[0] > 0
    )


def design(episodes, n):
    """(φ(s_t), 1, τ, τ², τ³), a row for each valid step of task n, in the order of the mask."""
    return np.array(
        [
            [*PHI[episodes.states[t, n, k]], 1, t / T, (t / T) ** 2, (t / T) ** 3]
            for t in range(T)
            for k in range(episodes.mask.shape[-1])
            if episodes.mask[t, n, k]
        ]
    )


def test_linear_baseline_recovers_a_linear_function(rng):
    episodes = many(rng)
    tau = np.arange(T)[:, None, None] / T
    slope = rng.normal(size=(N, 2))
    time = rng.normal(size=(N, 4, 1))
    returns = np.einsum("tnkf,nf->tnk", PHI[episodes.states], slope) + sum(
        time[:, i] * tau**i for i in range(4)
    )
    fitted = linear_baseline(PHI)(returns * episodes.mask, episodes)
    np.testing.assert_allclose(fitted[episodes.mask], returns[episodes.mask], atol=1e-4)


def test_linear_baseline_is_least_squares_on_the_valid_steps(rng):
    episodes = many(rng)
    returns = rng.normal(size=episodes.mask.shape) + np.array([[0.0], [5.0]])
    # not 0 where it is masked, which must not matter
    fitted = linear_baseline(PHI, ridge=1e-10)(returns, episodes)
    assert fitted.shape == returns.shape
    for n in range(N):
        x = design(episodes, n)
        valid = episodes.mask[:, n]
        want = x @ np.linalg.lstsq(x, returns[:, n][valid], rcond=None)[0]
        np.testing.assert_allclose(fitted[:, n][valid], want, atol=1e-6)


def test_linear_baseline_ridge_and_collinear_features(rng):
    episodes = many(rng)
    returns = rng.normal(size=episodes.mask.shape) * episodes.mask
    fitted = linear_baseline(PHI, ridge=2.0)(returns, episodes)
    for n in range(N):
        x = design(episodes, n)
        y = returns[:, n][episodes.mask[:, n]]
        penalised = np.linalg.lstsq(
            np.r_[x, np.sqrt(2.0) * np.eye(6)], np.r_[y, np.zeros(6)], rcond=None
        )[0]
        np.testing.assert_allclose(fitted[:, n][episodes.mask[:, n]], x @ penalised, atol=1e-10)
    # a table's columns add up to the constant's
    assert np.isfinite(linear_baseline(np.eye(S))(returns, episodes)).all()


# Episodes


def test_log_probs_by_loops(data):
    episodes, _ = data
    for t, n, k in np.ndindex(T, N, K):
        assert episodes.log_probs[t, n, k] == np.float32(
            episodes.log_pi[n, episodes.states[t, n, k], episodes.actions[t, n, k]]
        )
    assert episodes.log_probs is episodes.log_probs  # made once
