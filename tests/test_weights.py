"""Files of trained weights: they come back as they were, and others are refused."""

import re

import numpy as np
import pytest
from _common import WEIGHTS, load_weights, save_weights
from helpers import random_tasks

from metarl_np import checkpoint
from metarl_np.compare.bayes import optimal_returns
from metarl_np.meta.rl2 import RecurrentPolicy, expected_rewards, sample_trials
from metarl_np.tasks.bandits import dependent, independent, informative
from metarl_np.tasks.exact import optimal_return
from metarl_np.tasks.gridworld import varibad


@pytest.fixture
def weights(rng, tmp_path):
    policy = RecurrentPolicy(1, 3, 4)
    theta = policy.init(rng)
    path = tmp_path / "some weights.npz"
    save_weights(path, policy, theta, seed=7, seconds=1.5, command="python make.py")
    return path, policy, theta


def test_weights_come_back(weights, rng):
    path, policy, theta = weights
    again, same, facts = load_weights(path, independent(rng, 2, 3))
    assert again == policy and same.dtype == np.float32 and same.tobytes() == theta.tobytes()
    assert (
        facts == dict(seed=7, seconds=1.5, command="python make.py") and type(facts["seed"]) is int
    )
    sample_trials(rng, independent(rng, 2, 3), again, same, 2)
    save_weights(path, policy, theta.astype(float) / 3, grid=[1, 2])
    _, double, facts = load_weights(path, independent(rng, 2, 3))
    assert facts == dict(grid=[1, 2]) and double.tobytes() == (theta.astype(float) / 3).tobytes()


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "damaged", "text", "empty", "pickled", "header", "foreign", "array", "training"],
)
def test_files_that_are_no_weights_are_refused(weights, rng, tmp_path, kind):
    path, policy, theta = weights
    sizes = (1, 3, 4)
    good = path.read_bytes()
    bad = tmp_path / f"{kind}.npz"
    if kind == "truncated":
        bad.write_bytes(good[: len(good) // 2])
    elif kind == "damaged":
        bad.write_bytes(good[:200] + bytes(255 - b for b in good[200:260]) + good[260:])
    elif kind in ("text", "empty"):
        bad.write_bytes(b"these are no weights\n" if kind == "text" else b"")
    elif kind == "pickled":
        members = dict(np.load(path)) | {"0": np.array([Evil()], object)}  # θ is the first array
        np.savez(bad, **members)
    elif kind == "header":
        np.savez(bad, metarl_np=np.array(Evil(), object), theta=theta)
    elif kind == "foreign":
        np.savez(bad, theta=theta, sizes=sizes)
    elif kind == "array":
        with open(bad, "wb") as file:
            np.save(file, theta)
    else:
        checkpoint.save(bad, kind, theta=theta, sizes=sizes, facts={})
    expected = f"{bad.name}: expected a file of metarl_np: weights, version 1; found: "
    with pytest.raises(ValueError, match=expected):
        load_weights(bad, independent(rng, 2, 3))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda theta: dict(sizes=(1, 3, 4, 5)), id="four sizes"),
        pytest.param(lambda theta: dict(sizes=(1, 3, -4)), id="negative"),
        pytest.param(lambda theta: dict(sizes=(1, 3, 5)), id="other size"),
        pytest.param(lambda theta: dict(theta=None), id="None"),
        pytest.param(lambda theta: dict(theta=theta[:-1]), id="short"),
        pytest.param(lambda theta: dict(theta=np.zeros(len(theta), int)), id="whole numbers"),
        pytest.param(lambda theta: dict(theta=np.append(theta[:-1], np.nan)), id="NaN"),
        pytest.param(lambda theta: dict(theta=theta.astype(complex)), id="complex"),
        pytest.param(lambda theta: dict(theta=np.array(["a"] * len(theta))), id="words"),
    ],
)
def test_entries_that_are_no_weights_are_refused(weights, rng, tmp_path, change):
    _, _, theta = weights
    entries = dict(theta=theta, sizes=(1, 3, 4), facts={})
    checkpoint.save(tmp_path / "bad", "weights", **entries | change(theta))
    with pytest.raises(ValueError, match="bad: not a file of trained weights"):
        load_weights(tmp_path / "bad", independent(rng, 2, 3))


@pytest.mark.parametrize("missing", ["theta", "sizes", "facts"])
def test_weights_without_an_entry_are_refused(weights, rng, tmp_path, missing):
    _, _, theta = weights
    entries = dict(theta=theta, sizes=(1, 3, 4), facts={})
    entries.pop(missing)
    checkpoint.save(tmp_path / "bad", "weights", **entries)
    with pytest.raises(ValueError, match="bad: not a file of trained weights"):
        load_weights(tmp_path / "bad", independent(rng, 2, 3))


def test_weights_for_other_tasks_are_refused(weights, rng):
    path, *_ = weights
    for mdps in (
        independent(rng, 2, 4),
        dependent(rng, 2),
        random_tasks(rng, 2, 3, 3, 2, horizon=2),
    ):
        with pytest.raises(
            ValueError,
            match=r"some weights.npz: weights for S, A = \(1, 3\), .*"
            + re.escape(str(mdps.shape[1:])),
        ):
            load_weights(path, mdps)
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_weights(path.parent / "nowhere.npz", independent(rng, 2, 3))


def return_of_weights(name, tasks, episodes, rng):
    """The mean return of a trial of RL² with the weights that come with the demos."""
    policy, theta, _ = load_weights(WEIGHTS / f"{name}.npz", tasks)
    trials = sample_trials(rng, tasks, policy, theta, episodes, greedy=True)
    return expected_rewards(tasks, trials).sum(0).mean()


def test_rl2_has_learned_to_pull_the_arm_that_tells(rng):
    best = optimal_returns(informative(), 5).sum()
    assert 0.98 * best < return_of_weights("informative", informative(), 5, rng) <= best + 1e-9


def test_rl2_gets_almost_all_of_varibad_s_grid(rng):
    """In the first episode nobody gets more than who plays for it alone, and in later ones than who
    knows the goal. The Bayes optimum reaches the sum of these bounds (demos/rl2_solved.py).
    """
    bound = optimal_returns(varibad(), 1)[0] + 3 * optimal_return(varibad()).mean()
    assert 0.99 * bound < return_of_weights("varibad", varibad(), 4, rng) <= bound + 1e-9
