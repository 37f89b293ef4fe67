"""What `record` makes of a user's arrays, and what it says to those that are none."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

from metarl_np import check

T = 4
N = 2
K = 3
SHAPE = (T, N, K)


def plain(rng, shape=SHAPE):
    return dict(
        states=rng.integers(5, size=shape),
        actions=rng.integers(2, size=shape),
        rewards=rng.normal(size=shape),
    )


def test_one_task_may_leave_its_axis_out(rng):
    r = check.record(**plain(rng, (T, K)), last_values=np.ones(K))
    assert r.rewards.shape == (T, 1, K) and r.last_values.shape == (1, K)
    np.testing.assert_array_equal(r.count, [K])


@pytest.mark.parametrize("name", ["log_probs", "baseline", "advantages", "values"])
def test_what_is_masked_becomes_zero(rng, name):
    mask = np.arange(T)[:, None, None] < rng.integers(1, T, (N, K))
    x = np.where(mask, 1.5, np.nan)
    r = check.record(**plain(rng), mask=mask * 1.0, **{name: x})
    np.testing.assert_array_equal(getattr(r, name), 1.5 * mask)


@pytest.mark.parametrize("name, shape", [("values", SHAPE), ("last_values", (N, K))])
def test_values_with_a_nan_count_as_not_given(rng, name, shape):
    x = np.ones(shape)
    x[0, 0] = np.nan
    assert getattr(check.record(**plain(rng), **{name: x}), name) is None


@pytest.mark.parametrize("states", [None, np.zeros(SHAPE + (7,))], ids=["none", "vectors"])
def test_a_policy_of_ones_own_needs_no_states(rng, states):
    r = check.record(states, None, np.ones(SHAPE))
    assert not r.discrete and r.states.shape == SHAPE


def test_lanes_are_cut_into_episodes_behind_their_dones(rng):
    """Two tasks with one and two lanes; what is masked at the end of a lane is no episode."""
    arrays = plain(rng, (5, 2, 2))
    dones = np.zeros((5, 2, 2), bool)
    dones[[1, 3], 0, 0] = True  # lengths 2, 2, 1
    dones[4, 0, 1] = True  # 5
    mask = np.ones((5, 2, 2), bool)
    dones[2, 1, 0] = True
    mask[3:, 1, 0] = False  # 3, and nothing after it
    r = check.record(**arrays, mask=mask, dones=dones, last_values=np.arange(4.0).reshape(2, 2))
    np.testing.assert_array_equal(r.mask.sum(0), [[2, 2, 1, 5], [3, 5, 0, 0]])
    np.testing.assert_array_equal(r.count, [4, 2])
    np.testing.assert_array_equal(r.lanes, [[0, 0, 0, 1], [0, 1, -1, -1]])
    np.testing.assert_array_equal(r.terminated, [[1, 1, 0, 1], [1, 0, 0, 0]])
    np.testing.assert_array_equal(r.last_values[:, :3], [[0, 0, 0], [0, 3, 0]])
    for name in ("states", "actions", "rewards"):
        x = arrays[name]
        episodes = getattr(r, name)
        np.testing.assert_array_equal(episodes[:2, 0, 0], x[:2, 0, 0])
        np.testing.assert_array_equal(episodes[:2, 0, 1], x[2:4, 0, 0])
        np.testing.assert_array_equal(episodes[0, 0, 2], x[4, 0, 0])
        np.testing.assert_array_equal(episodes[:, 1, 1], x[:, 1, 1])
        assert (episodes[~r.mask] == 0).all()


class Tensor:
    """As a tensor of PyTorch that requires grad answers NumPy."""

    def __array__(self, *arguments, **keywords):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(advantages=Tensor()), r"^advantages: .*x\.detach\(\)\.cpu\(\)\.numpy\(\)"),
        (dict(rewards=[[0.0, 1.0], [0.0]]), "^rewards: "),
        (dict(rewards=[Tensor(), Tensor()]), "^rewards: "),
        (dict(mask=np.arange(T)[:, None, None] == np.full((N, K), T - 1)), "^mask: .*dones"),
        (dict(mask=np.zeros(SHAPE)), "^mask: false everywhere"),
        (dict(mask=np.full(SHAPE, 0.5)), "^mask: expected true and false"),
        (dict(dones=np.full(SHAPE, 2)), "^dones: expected true and false"),
        (dict(states=np.zeros(SHAPE)), "^states: expected integers"),
        (dict(actions=np.zeros((N, T, K), int)), "^actions: .*shape of rewards"),
        (dict(last_values=np.ones((K, N))), "^last_values: expected shape"),
        (dict(values=np.full(SHAPE, np.inf)), "^values: not finite"),
    ],
)
def test_what_is_no_record_is_named(rng, change, message):
    with pytest.raises(ValueError, match=message):
        check.record(**plain(rng) | change)


def test_what_autograd_traces_is_refused(rng):
    arrays = plain(rng)

    def loss(x):
        check.record(**arrays, advantages=x)
        return anp.sum(x)

    with pytest.raises(ValueError, match="^advantages: autograd cannot"):
        grad(loss)(np.ones(SHAPE))
