"""Tables from which one random number draws an action and a successor together.

(A reader may go on with `rollouts` and come back.) In state s of a task the outcomes of a step are
the A·Z pairs of an action and a successor slot, with probabilities π(a|s) P(z|s, a). An alias table
(Walker 1977; Vose 1991) lays them out in W columns of equal probability, one for each outcome. A
threshold splits each column: below it lies the column's own outcome, above it another one, its
alias. To draw, take a random number: it falls into some column, and above or below the threshold
there. However many outcomes there are, that is one look-up.
"""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import Record, read_only
from metarl_np.tasks.mdp import require_log_pi


@dataclass(frozen=True, eq=False)
class SamplingTables(Record):
    """What a step looks up, by the number of the cell that it falls into.

    The *row* of state s in task i is S·i + s. It has W columns, W a power of two, and a column has
    two *cells*, one above and one below its threshold. In column c of a row they are numbered

        cell = 2·(W·row + c) + (1 if the random number is below the threshold, else 0).

    A row has 2W cells, so the first cell of a row is 2W·row, and the row of a cell is cell // 2W.
    As 2W is a power of two, these are shifts to the left and to the right by log2 W + 1 bits. The
    arrays are read-only.
    """

    log_pi: np.ndarray  # (N, S, A)
    width_bits: int  # log2 W
    thresholds: np.ndarray  # (N·S·W·2,) uint32: 2³²·(c + share of the own outcome) / W
    next_cell: np.ndarray  # (N·S·W·2,) int64: the first cell of the next state's row
    rewards: np.ndarray  # (N·S·W·2,) float32
    actions: np.ndarray  # (N·S·W·2,) int32
    alive: np.ndarray  # (N·S,) bool: not terminal; None where no state is terminal


def sampling_tables(mdps, log_pi):
    """SamplingTables of `mdps` under log π (S, A) or (N, S, A).

    A probability is kept to within W·2⁻³³, W < 2AZ; what has probability zero never happens.
    Raises ValueError on what are no log-probabilities for these tasks.
    """
    require_log_pi(log_pi, mdps)
    n_tasks, n_states, n_actions, n_slots = mdps.successors.shape
    n_outcomes = n_actions * n_slots
    width_bits = max(1, (n_outcomes - 1).bit_length())
    width = 1 << width_bits
    joint = np.exp(log_pi)[..., None]
    if n_slots > 1:  # else tasks that share π share the columns too
        joint = joint * mdps.probabilities
    p = np.zeros((width, joint.size // n_outcomes))
    p[:n_outcomes] = joint.reshape(-1, n_outcomes).T

    rows = (n_tasks * n_states, width)
    # np.resize: columns that tasks share are repeated for each of them
    thresholds, alias = (np.resize(x.T, rows) for x in _alias_tables(p))
    own = np.broadcast_to(np.arange(width, dtype=np.int32), rows)
    outcome = np.stack([alias, own], -1)  # (N·S, W, 2), of every cell
    outcome = np.minimum(outcome, n_outcomes - 1)  # a padding column's own outcome is never drawn
    first_entry = n_outcomes * np.arange(len(outcome))[:, None, None]
    entry = (first_entry + outcome).ravel()  # where the outcome is in the MDP's arrays
    return SamplingTables(
        log_pi=np.broadcast_to(np.array(log_pi), mdps.shape),
        width_bits=width_bits,
        thresholds=read_only(np.repeat(thresholds, 2)),
        next_cell=read_only(mdps.next_rows.ravel()[entry] << (width_bits + 1)),
        rewards=read_only(mdps.rewards.ravel()[entry].astype(np.float32)),
        actions=read_only((outcome // n_slots).ravel()),
        alive=read_only(~mdps.terminal.ravel()) if mdps.terminal.any() else None,
    )


def _alias_tables(p):
    """Thresholds (W, R) uint32 and aliases (W, R) of R distributions p (W, R), W a power of two.

    Every column is 1 wide, and outcome i is w_i = W·p_i wide. A light outcome (w ≤ 1) leaves 1 − w
    of its own column free. A heavy one (w > 1) has w − 1 too much, and puts that into the columns
    of light ones. The columns are filled in order, by the heavy outcomes in order: let D_i be what
    is free in the columns of the light outcomes up to i, and E_i what the heavy ones up to i have
    too much.

    - The column of a light i is filled by the first heavy j that has something left when it is its
      turn: the first with E_j > D_{i−1}.
    - A heavy i gives until the first D ≥ E_i. By then it has given D − E_i more than it had too
      much: it keeps 1 − (D − E_i) of its own column, and the next heavy one, the first with
      E_j > E_i, fills that.

    For example, p = (1, 8, 2, 5) / 16:

        outcome      0     1     2     3
        w          .25     2    .5  1.25
        D          .75   .75  1.25  1.25      free in the columns of 0 and 2
        E            0     1     1  1.25      too much in 1 and 3
        keeps      .25   .75    .5     1      1 gave D_2 − E_1 = .25 more than it had too much
        alias        1     3     1     –      0: E_1 > 0;  1: E_3 > E_1;  2: E_1 > D_1

    Outcome 1 has .75 of its own column, .75 of column 0 and .5 of column 2: 2 in all, as it should.
    Outcome 3 has its own column and .25 of column 1. The thresholds are (.25, 1.75, 2.5, 4)·2³⁰,
    the last one less 1 so that it fits into 32 bits.
    """
    width, rows = p.shape
    w = p * (width / p.sum(0))
    heavy = w > 1
    own = np.arange(width, dtype=np.int32)[:, None]
    e = np.maximum(w - 1, 0)
    d = np.zeros((width + 2, rows))  # D_i stands in row i + 1; the last is for one not found
    np.maximum(1 - w, 0, out=d[1:-1])
    for i in range(1, width):
        e[i] += e[i - 1]
        d[i + 1] += d[i]

    # E and D only grow: the first E_j > x comes after those with E_j ≤ x, so these are counted
    filled = np.where(heavy, e, d[:width])
    alias = np.zeros((width, rows), np.int32)
    closing = np.ones((width, rows), np.int32)
    for e_j, d_j in zip(e, d[1:]):
        alias += e_j <= filled
        closing += d_j < e
    place = closing * np.int64(rows) + np.arange(rows)  # in d, laid out flat
    keep = np.where(heavy, 1 + e - d.take(place), w)
    alias = np.where(alias == width, own, alias)  # nothing but rounding is left to give
    keep[alias == own] = 1

    column = 2**32 // width
    threshold = np.rint(np.minimum(keep, 1) * column) + own * float(column)
    return np.minimum(threshold, 2**32 - 1).astype(np.uint32), alias
