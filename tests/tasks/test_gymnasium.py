"""Gymnasium's tables against tables unrolled by hand and values by recursion over the table."""

import numpy as np
import pytest
from helpers import dense, pattern

from metarl_np.tasks.gymnasium import mdp_from_gymnasium

NAN = np.nan


INF = np.inf


TABLE = {
    0: {
        0: [
            (0.5, 1, 0.0, False),
            (0.25, 2, 1.0, True),
            (0.25, 1, 0.0, False),
        ],  # a duplicate; done into 2, which 1 enters too
        1: [(0.0, 1, 9.0, True), (1.0, 0, -1.0, False), (0.0, 3, 0.0, False)],
    },  # what has probability zero counts for nothing
    1: {
        0: [(1.0, 2, 5.0, False)],
        1: [(0.5, 0, 2.0, True), (0.5, 3, 0.0, True)],
    },  # done into the start
    2: {0: [(1.0, 2, 0.0, False)], 1: [(0.4, 3, 1.0, True), (0.6, 3, 2.0, True)]},
    3: {
        0: [(1.0, 3, 7.0, False)],
        1: [(1.0, 3, 0.0, True)],
    },  # entered with done only: terminal, whatever it says here
}


NO_DONE = {s: {a: [(1.0, (s + a) % 4, 1.0, False)] for a in range(2)} for s in range(4)}


# only 2 is done, into 1
ONE_MORE = {s: {a: [(1.0, 1, float(a), s == 2)] for a in range(2)} for s in range(4)}


def test_from_gymnasium_by_hand():
    mdps = mdp_from_gymnasium(TABLE, 0, discount=0.9, horizon=5, reward_noise=0.25)
    P, PR = np.zeros((2, 6, 2, 6))  # 4 stands for 0 when done, 5 for 2 when done
    P[0, 0, 1], P[0, 0, 5], P[0, 1, 0] = 0.75, 0.25, 1
    P[1, 0, 2], P[1, 1, 4], P[1, 1, 3] = 1, 0.5, 0.5
    P[2, 0, 2], P[2, 1, 3] = 1, 1
    P[[3, 4, 5], :, [3, 4, 5]] = 1
    PR[0, 0, 5], PR[0, 1, 0], PR[1, 0, 2], PR[1, 1, 4], PR[2, 1, 3] = (
        0.25,
        -1,
        5,
        1,
        0.4 * 1 + 0.6 * 2,
    )
    np.testing.assert_allclose(dense(mdps)[0][0], P)
    np.testing.assert_allclose(dense(mdps)[1][0], PR)
    assert mdps.terminal.tolist() == [[False] * 3 + [True] * 3] and mdps.start.tolist() == [
        [1, 0, 0, 0, 0, 0]
    ]
    # duplicates merged, rewards 1 and 2 on the way to 3 kept apart
    assert mdps.successors.shape == (1, 6, 2, 2)
    assert (mdps.discount, mdps.horizon, mdps.reward_noise.tolist()) == (0.9, 5, [0.25])


def test_from_gymnasium_several_tables():
    starts = np.array([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 1, 0]])
    mdps = mdp_from_gymnasium([TABLE, NO_DONE, ONE_MORE], starts, discount=1, horizon=5)
    assert mdps.shape == (3, 6, 2)
    for i, (table, states) in enumerate([(TABLE, 6), (NO_DONE, 4), (ONE_MORE, 5)]):
        alone = mdp_from_gymnasium(table, starts[i], discount=1, horizon=5)
        assert alone.shape == (1, states, 2)
        for got, want in zip(dense(mdps), dense(alone)):
            np.testing.assert_allclose(got[i, :states, :, :states], want[0])
        assert (mdps.terminal[i, :states] == alone.terminal[0]).all() and (
            mdps.start[i, :states] == alone.start[0]
        ).all()
        # what fills up is terminal, so that every state that matters can still be found to end at γ
        # = 1
        assert mdps.terminal[i, states:].all() and not mdps.start[i, states:].any()
        assert not dense(mdps)[0][i, :states, :, states:].any()


@pytest.mark.parametrize("seed", range(20))
def test_from_gymnasium_keeps_every_return(seed):
    """Backward induction on the dictionary, where done ends, and on the arrays, where terminal
    states do.
    """
    rng = np.random.default_rng(seed)
    tables = []
    horizon = 4
    for _ in range(3):
        table = {
            s: {
                a: [
                    (p, int(rng.integers(4)), float(rng.integers(3)), bool(rng.random() < 0.3))
                    for p in rng.dirichlet(np.ones(3))
                ]
                for a in range(2)
            }
            for s in range(4)
        }
        tables.append(table)
    starts = np.array([0, 2, 3])
    mdps = mdp_from_gymnasium(tables, np.eye(4)[starts], discount=0.8, horizon=horizon)

    def value(table, s, steps):
        return (
            0.0
            if not steps
            else sum(
                p * (r + 0.8 * (0 if done else value(table, z, steps - 1)))
                for a in range(2)
                for p, z, r, done in table[s][a]
            )
            / 2
        )

    P, PR = dense(mdps)
    for i, table in enumerate(tables):
        v = np.zeros(mdps.shape[1])
        for _ in range(horizon):
            v = (PR[i].sum(-1) + 0.8 * P[i] @ v).mean(-1)
        assert v[starts[i]] == pytest.approx(value(table, starts[i], horizon), abs=1e-12)


def two_states(entry):
    """A table whose state 1 answers action 0 with `entry`."""
    return {0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: entry}}


@pytest.mark.parametrize(
    "bad, why",
    [
        (
            two_states([(1.0, 2, 0.0, False)]),
            "tables: outside 0..1 (at task 1, state 1, action 0, entry 0)",
        ),
        (
            two_states([(1.0, -1, 0.0, True)]),
            "tables: outside 0..1 (at task 1, state 1, action 0, entry 0)",
        ),
        # merged with its duplicate, the negative probability would be gone
        (
            two_states([(1.5, 0, 0.0, False), (-0.5, 0, 0.0, False)]),
            "tables: negative (at task 1, state 1, action 0, entry 1)",
        ),
        (two_states([(NAN, 0, 0.0, False)]), "tables: NaN (at task 1, state 1, action 0, entry 0)"),
        (
            two_states([(0.9, 0, 0.0, False)]),
            "tables: sum to one (at task 1, state 1, action 0)",
        ),
        (two_states([]), "tables: sum to one (at task 1, state 1, action 0)"),
        (
            two_states([(1.0, 0, NAN, False)]),
            "tables: not finite (at task 1, state 1, action 0, entry 0)",
        ),
        (
            two_states([(1.0, 0, INF, False)]),
            "tables: not finite (at task 1, state 1, action 0, entry 0)",
        ),
        ({0: {0: [(1.0, 0, 0.0, False)]}}, "tables: states"),
        ({0: {0: [(1.0, 0, 0.0, False)]}, 2: {0: [(1.0, 0, 0.0, False)]}}, "tables: states"),
        (
            {0: {0: [(1.0, 0, 0.0, False)]}, 1: {1: [(1.0, 0, 0.0, False)]}},
            "tables: actions 0..0 (at task 1, state 1)",
        ),
    ],
)
def test_from_gymnasium_refuses(bad, why):
    good = two_states([(1.0, 0, 1.0, False)])
    assert len(mdp_from_gymnasium([good, good], 0, discount=1, horizon=2)) == 2
    with pytest.raises(ValueError, match=pattern(why)):
        mdp_from_gymnasium([good, bad], 0, discount=1, horizon=2)


@pytest.mark.parametrize(
    "tables, start, why",
    [
        ([], 0, "tables"),
        ({}, 0, "tables"),
        ({0: {}}, 0, "tables: actions (at task 0, state 0)"),
        ({0: {0: []}}, 0, "tables: sum to one"),
        (TABLE, 4, "start: outside 0..3"),
        (TABLE, [0.5, 0.5], "start: shape"),
        (TABLE, [0.5, 0.5, -0.5, 0.5], "start: negative (at task 0, state 2)"),
    ],
)
def test_from_gymnasium_refuses_no_table_or_start(tables, start, why):
    with pytest.raises(ValueError, match=pattern(why)):
        mdp_from_gymnasium(tables, start, discount=1, horizon=2)


@pytest.mark.parametrize(
    "bad, place",
    [
        (two_states([(1.0, 1, "x", False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, np.array([2.0]), False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, 1j, False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, 10**400, False)]), "state 1, action 0, entry 0"),
        (two_states([(10**400, 1, 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(np.timedelta64(1), 1, 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, np.ma.masked, False)]), "state 1, action 0, entry 0"),
        (two_states([("1", 1, 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(None, 1, 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(INF, 1, 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, "1", 1.0, False)]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, 1.0, "False")]), "state 1, action 0, entry 0"),
        (two_states([(1.0, 1, 1.0, None)]), "state 1, action 0, entry 0"),
        (two_states([(0.0, 1, 1.0, False), 3]), "state 1, action 0, entry 1"),
        (two_states((1.0, 1, 1.0, False)), "state 1, action 0, entry 0"),
        (two_states(None), "state 1, action 0"),
        ({0: {0: [], "1": []}, 1: {0: []}}, "state 0"),
        ({0: {0: []}, "1": {0: []}}, "task 0"),
        ({0: None, 1: {0: []}}, "state 0"),
        ({0: [[(1.0, 0, 1.0, False)]]}, "state 0"),
    ],
)
def test_what_is_no_entry_is_named_with_its_place(bad, place):
    with pytest.raises(ValueError, match=rf"^tables: .*\(at (task 0, )?{place}\)$"):
        mdp_from_gymnasium(bad, 0, discount=1, horizon=2)


def test_keys_that_are_equal_to_integers_are_integers():
    table = {0.0: {False: [(1, 1, 2.0, True)]}, True: {0.0: [(1, 1, 0.0, True)]}}
    mdps = mdp_from_gymnasium(table, 0, discount=1, horizon=2)
    assert mdps.expected_rewards[0, :, 0].tolist() == [2, 0]
