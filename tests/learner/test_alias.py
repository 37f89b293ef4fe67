"""Alias tables: what they hold is added up, and compared with what they were made of."""

import numpy as np
import pytest
from helpers import coded, random_log_pi, random_tasks

from metarl_np.learner.alias import _alias_tables, sampling_tables
from metarl_np.learner.rollouts import rollout


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32, 64])
def test_alias_tables_hold_the_probabilities_to_rounding(rng, width):
    p = rng.dirichlet(np.full(width, 0.5), 60)
    p[:20] *= rng.random((20, width)) < 0.5  # rows with zeros, not summing to one
    p[:20, 0] += 0.1
    p[20:30] = np.eye(width)[rng.integers(width, size=10)]
    p[30:40] = 1 / width
    p[40:50, width // 2 :] = 0
    p[50:52] = [[1e-12] * (width - 1) + [1.0]]
    p /= p.sum(1, keepdims=True)
    threshold, alias = (x.T for x in _alias_tables(p.T))
    column = 2**32 // width
    bottom = np.arange(width) * (2**32 // width)
    below = threshold.astype(np.int64) - bottom
    assert (below >= 0).all() and (below <= column).all()
    kept = np.zeros(p.shape)
    for r in range(len(p)):
        for c in range(width):
            kept[r, c] += below[r, c]
            kept[r, alias[r, c]] += column - below[r, c]
    np.testing.assert_allclose(kept / 2**32, p, atol=(width / 2 + 1) * 2.0**-32, rtol=0)
    assert (kept[p == 0] == 0).all()
    assert (kept.sum(1) == 2**32).all()


@pytest.mark.parametrize(
    "p",
    [
        [3, 1, 3, 1],
        [1, 3, 1, 3],
        [0, 2, 2, 0, 0, 1, 2, 1],
        [4, 4, 0, 0],
        [1, 0, 3, 0],
        [5, 1, 1, 1, 5, 1, 1, 1],
    ],
)
def test_alias_tables_where_a_heavy_outcome_gives_exactly_what_it_has(p):
    """Eighths and sixteenths are exact, so is their table."""
    width = len(p)
    p = np.array(p) / sum(p)
    threshold, alias = (x[:, 0] for x in _alias_tables(p[:, None]))
    kept = np.zeros(width)
    column = 2**32 // width
    for c in range(width):
        # the last threshold is 2³² − 1, a 2³² that fits
        below = -(-int(threshold[c]) // 2**8) * 2**8 - c * column
        kept[c] += below
        kept[alias[c]] += column - below
    assert (kept / 2**32).tolist() == p.tolist()


def test_alias_tables_of_rows_that_sum_to_one_only_nearly(rng):
    p = rng.dirichlet(np.ones(16), 50).T
    for right, left in zip(_alias_tables(p), _alias_tables(p * (1 + rng.uniform(-1e-6, 1e-6, 50)))):
        same = abs(right.astype(np.int64) - left) <= 8
        assert same.all()


def test_sampling_tables_reconstruct_the_joint_distribution_of_action_and_successor(rng):
    mdps = coded(random_tasks(rng, 3, 5, 3, 3, horizon=4))  # 9 outcomes in 16 columns
    log_pi = random_log_pi(rng, 3, 5, 3)
    tables = sampling_tables(mdps, log_pi)
    width = 2**tables.width_bits
    assert width == 16
    joint = np.zeros(mdps.rewards.shape)
    for b, threshold in enumerate(tables.thresholds[::2].tolist()):
        row, c = divmod(b, width)
        i, s = divmod(row, 5)
        for below, share in ((1, threshold - c * 2**28), (0, (c + 1) * 2**28 - threshold)):
            cell = 2 * b + below
            action = tables.actions[cell]
            next_state = tables.next_cell[cell] // (2 * width) - 5 * i
            assert (
                tables.next_cell[cell] % (2 * width) == 0 and tables.thresholds[cell] == threshold
            )
            if share and mdps.terminal[i, s]:
                assert next_state == s and tables.rewards[cell] == 0
            elif share:
                outcome = np.unravel_index(int(tables.rewards[cell]) - 1, joint.shape)
                assert outcome[:3] == (i, s, action) and mdps.successors[outcome] == next_state
                joint[outcome] += share / 2**32
    for i, s, a, z in np.ndindex(joint.shape):
        expected = (
            0 if mdps.terminal[i, s] else np.exp(log_pi[i, s, a]) * mdps.probabilities[i, s, a, z]
        )
        assert abs(joint[i, s, a, z] - expected) <= 9 * 2.0**-32, (i, s, a, z)


def test_tables_of_other_tasks_are_refused(rng):
    two, three = (random_tasks(rng, n, 3, 2, 2, horizon=2) for n in (2, 3))
    with pytest.raises(ValueError, match=r"log_pi: tables made for .*\(2, 3, 2\).*\(3, 3, 2\)"):
        rollout(rng, three, sampling_tables(two, np.full((3, 2), -np.log(2))), 4)


def test_the_example_of_the_docstring():
    """w = .4, 1.3, .5, 1.8: what each outcome keeps of its column, and who fills the rest."""
    p = np.array([0.1, 0.325, 0.125, 0.45])
    threshold, alias = _alias_tables(p[:, None])
    kept = threshold[:, 0] / 2**30 - np.arange(4)
    np.testing.assert_allclose(kept, [0.4, 0.7, 0.5, 1.0], atol=1e-9)
    assert alias[:3, 0].tolist() == [1, 3, 3]
