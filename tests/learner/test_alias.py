"""Alias tables: what they hold is added up, column by column, and compared with what they were made
of.
"""

import numpy as np
import pytest
from helpers import coded, random_log_pi, random_tasks

from metarl_np.learner.alias import _alias_tables, sampling_tables
from metarl_np.learner.rollouts import rollout
from metarl_np.tasks.gridworld import GridWorld


def added_up(threshold, alias):
    """How many of the 2³² numbers draw each outcome of one table, as a list of W integers.

    Column c owns the numbers from c·2³²/W on; those below its threshold draw c, the rest its alias.
    """
    width = len(alias)
    column = 2**32 // width
    count = [0] * width
    for c in range(width):
        below = int(threshold[c]) - c * column
        assert 0 <= below <= column
        count[c] += below
        count[alias[c]] += column - below
    return count


def test_the_example_of_the_docstring():
    """w = .25, 2, .5, 1.25: what each outcome keeps of its column, and who fills the rest."""
    p = np.array([1, 8, 2, 5]) / 16
    threshold, alias = _alias_tables(p[:, None])
    last = 2**32 - 1
    assert threshold[:, 0].tolist() == [2**28, 7 * 2**28, 10 * 2**28, last]
    assert alias[:3, 0].tolist() == [1, 3, 1]
    kept = threshold[:, 0] / 2**30 - np.arange(4)
    np.testing.assert_allclose(kept, [0.25, 0.75, 0.5, 1], atol=1e-9)


def distributions(rng, kind, width):
    """Some p (R, W), rows summing to one."""
    if kind == "any":
        return rng.dirichlet(np.full(width, 0.5), 20)
    if kind == "with zeros":
        p = rng.dirichlet(np.full(width, 0.5), 20) * (rng.random((20, width)) < 0.5)
        p[:, 0] += 0.1
    elif kind == "sure":
        p = np.eye(width)[rng.integers(width, size=10)]
    elif kind == "uniform":
        p = np.ones((1, width))
    elif kind == "padded":
        p = rng.dirichlet(np.full(width, 0.5), 10)
        p[:, width // 2 :] = 0
    elif kind == "nearly sure":
        p = np.full((1, width), 1e-12)
        p[0, -1] = 1
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("kind", ["any", "with zeros", "sure", "uniform", "padded", "nearly sure"])
def test_alias_tables_hold_the_probabilities_to_rounding(rng, kind, width):
    p = distributions(rng, kind, width)
    threshold, alias = _alias_tables(np.ascontiguousarray(p.T))
    for r, row in enumerate(p):
        count = np.array(added_up(threshold[:, r], alias[:, r]))
        assert count.sum() == 2**32
        assert (count[row == 0] == 0).all()
        tolerance = (width / 2 + 1) * 2.0**-32
        np.testing.assert_allclose(count / 2**32, row, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "parts",
    [
        [3, 1, 3, 1],
        [1, 3, 1, 3],
        [0, 2, 2, 0, 0, 1, 2, 1],
        [4, 4, 0, 0],
        [1, 0, 3, 0],
        [5, 1, 1, 1, 5, 1, 1, 1],
    ],
    ids=str,
)
def test_alias_tables_where_a_heavy_outcome_gives_exactly_what_it_has(parts):
    """Eighths and sixteenths are exact, so is their table."""
    p = np.array(parts) / sum(parts)
    threshold, alias = _alias_tables(p[:, None])
    exact = threshold[:, 0].astype(np.int64)
    exact[exact == 2**32 - 1] = 2**32  # which does not fit into 32 bits
    assert np.array_equal(np.array(added_up(exact, alias[:, 0])) / 2**32, p)


def test_alias_tables_of_rows_that_sum_to_one_only_nearly(rng):
    p = rng.dirichlet(np.ones(16), 50).T
    nearly = p * (1 + rng.uniform(-1e-6, 1e-6, 50))
    threshold, alias = _alias_tables(p)
    other_threshold, other_alias = _alias_tables(nearly)
    assert (abs(threshold.astype(np.int64) - other_threshold) <= 8).all()
    assert (alias == other_alias).all()


def test_sampling_tables_reconstruct_the_joint_distribution_of_action_and_successor(rng):
    """Each cell's share of the numbers is added to the outcome that it stands for."""
    mdps = coded(random_tasks(rng, 3, 5, 3, 3, horizon=4))  # 9 outcomes in 16 columns
    log_pi = random_log_pi(rng, 3, 5, 3)
    tables = sampling_tables(mdps, log_pi)
    width = 2**tables.width_bits
    assert width == 16
    column = 2**32 // width
    joint = np.zeros(mdps.rewards.shape)
    for cell, threshold in enumerate(tables.thresholds.tolist()):
        row, in_row = divmod(cell, 2 * width)
        c, below = divmod(in_row, 2)
        task, state = divmod(row, 5)
        share = threshold - c * column if below else (c + 1) * column - threshold
        next_row, rest = divmod(tables.next_cell[cell], 2 * width)
        next_state = next_row - 5 * task
        assert rest == 0
        if share and mdps.terminal[task, state]:
            assert next_state == state and tables.rewards[cell] == 0
        elif share:
            outcome = np.unravel_index(int(tables.rewards[cell]) - 1, joint.shape)
            assert outcome[:3] == (task, state, tables.actions[cell])
            assert mdps.successors[outcome] == next_state
            joint[outcome] += share / 2**32
    expected = np.exp(log_pi)[..., None] * mdps.probabilities
    expected[mdps.terminal] = 0
    np.testing.assert_allclose(joint, expected, atol=9 * 2.0**-32, rtol=0)


def several_successors(rng):
    return random_tasks(rng, 3, 5, 4, 3, horizon=4)


def one_successor(rng):
    return GridWorld.open(2, 3, discount=0.9, horizon=4).mdps([3, 4, 5])


@pytest.mark.parametrize("tasks", [several_successors, one_successor])
def test_a_shared_policy_gives_the_tables_of_one_that_each_task_has(rng, tasks):
    mdps = tasks(rng)
    n_tasks, n_states, n_actions = mdps.shape
    log_pi = random_log_pi(rng, 1, n_states, n_actions)[0]
    shared = vars(sampling_tables(mdps, log_pi))
    own = vars(sampling_tables(mdps, np.array([log_pi] * n_tasks)))
    for name in shared:
        np.testing.assert_array_equal(shared[name], own[name], err_msg=name)


def test_tables_of_other_tasks_are_refused(rng):
    two = random_tasks(rng, 2, 3, 2, 2, horizon=2)
    three = random_tasks(rng, 3, 3, 2, 2, horizon=2)
    tables = sampling_tables(two, np.full((3, 2), -np.log(2)))
    with pytest.raises(ValueError, match=r"log_pi: tables made for .*\(2, 3, 2\).*\(3, 3, 2\)"):
        rollout(rng, three, tables, 4)
