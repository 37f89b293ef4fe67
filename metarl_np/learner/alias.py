"""Tables from which one random number draws an action and a successor together.

In state s of a task the outcomes of a step are the A·Z pairs of an action and a successor slot,
with probabilities π(a|s) P(z|s, a). An alias table (Walker 1977; Vose 1991) lays them out in W
columns of equal probability, W a power of two, each split by one threshold between two outcomes:
its own below, and an alias above. To draw, take a column at random and compare what is left of
the random number with the threshold. (A reader may go on with `rollouts` and come back.)
"""

from dataclasses import dataclass

import numpy as np

from metarl_np.tasks.mdp import require_log_pi


@dataclass(frozen=True, eq=False)
class SamplingTables:
    """What a step looks up. The two halves of every column are *cells*, numbered for all tasks.

    Row S·task + state has W columns, and its column c the cells 2·(W·row + c), above the
    threshold, and the next number, below it. So the row of a cell is its number shifted right by
    `row_shift` bits, and the first cell of a row is the row shifted left.
    """

    log_pi: np.ndarray  # (N, S, A)
    width_bits: int  # log2 W
    thresholds: np.ndarray  # (N·S·W·2,) uint32, the column's, with its number in the high bits
    next_cell: np.ndarray  # (N·S·W·2,) int64: the first cell of the next state's row
    rewards: np.ndarray  # (N·S·W·2,) float32
    actions: np.ndarray  # (N·S·W·2,) int32
    start_states: np.ndarray  # (N, B)
    start_cumulative: np.ndarray  # (N·B,) their cumulative probabilities + the task's number
    alive: np.ndarray  # (N·S,) bool: not terminal; None where no state is

    @property
    def row_shift(self):
        """log2 of the number of cells in a row."""
        return self.width_bits + 1


def sampling_tables(mdps, log_pi):
    """SamplingTables of `mdps` under log π (S, A) or (N, S, A).

    A probability is kept to within W·2⁻³³, W < 2AZ; what has probability zero never happens.
    """
    require_log_pi(log_pi, mdps)
    n_tasks, n_states, n_actions, n_slots = mdps.successors.shape
    n_outcomes = n_actions * n_slots
    bits = max(1, (n_outcomes - 1).bit_length())
    width = 1 << bits
    log_pi = np.asarray(log_pi)
    joint = np.exp(log_pi)[..., None]
    if n_slots > 1:  # else tasks that share π share the columns too
        joint = joint * mdps.probabilities
    p = np.zeros((width, joint.size // n_outcomes))
    p[:n_outcomes] = joint.reshape(-1, n_outcomes).T
    thresholds, alias = (np.ascontiguousarray(x.T) for x in _alias_tables(p))

    own = np.broadcast_to(np.arange(width), alias.shape)
    by_state = (-1, n_states, 2 * width)
    outcome = np.stack([alias, own], -1).reshape(by_state)
    outcome = np.minimum(outcome, n_outcomes - 1)  # a padding column's own outcome is never drawn
    row = np.arange(n_tasks * n_states).reshape(n_tasks, n_states, 1)
    entry = (outcome + row * n_outcomes).ravel()  # in the MDP's arrays, laid out flat

    def for_all_tasks(x):
        every = (n_tasks, n_states, 2 * width)
        return np.broadcast_to(x.reshape(by_state), every).ravel()

    start_states, start_chances = mdps.start_support
    cumulative = np.cumsum(start_chances, 1)
    cumulative = cumulative / cumulative[:, -1:] + np.arange(n_tasks)[:, None]
    return SamplingTables(
        log_pi=np.broadcast_to(np.array(log_pi), mdps.shape),
        width_bits=bits,
        thresholds=for_all_tasks(np.repeat(thresholds, 2)),
        next_cell=mdps.next_rows.ravel()[entry] << (bits + 1),
        rewards=mdps.rewards.ravel()[entry].astype(np.float32),
        actions=for_all_tasks((outcome // n_slots).astype(np.int32)),
        start_states=start_states,
        start_cumulative=cumulative.ravel(),
        alive=~mdps.terminal.ravel() if mdps.terminal.any() else None,
    )


def _alias_tables(p):
    """Thresholds (W, R) uint32 and aliases (W, R) of R distributions p (W, R), W a power of two.

    With w = W·p a column holds 1. A light outcome (w ≤ 1) leaves 1 − w of its column to a heavy
    one (w > 1), the light ones in order being filled up by the heavy ones in order. Let D_i be
    what the light ones up to i lack in all, and E_i what the heavy ones up to i have too much.

    d_before = np.zeros((width + 2, rows))  # row i: D_{i−1}; the last: for one not found
    - Heavy i is open until the first D ≥ E_i. With that light outcome it gave D − E_i more than
      it had to spare, so it keeps 1 − (D − E_i), and gets the rest from the next heavy one: the
      first with E_j > E_i.

    For example, p = (.1, .325, .125, .45):

        outcome      0     1     2     3
        w           .4   1.3    .5   1.8
        D           .6    .6   1.1   1.1      what 0 and 2 lack
        E            0    .3    .3   1.1      what 1 and 3 have too much
        keeps       .4    .7    .5     1      1: D_0 − E_1 = .3 too much was given
        alias        1     3     3     –      0: E_1 > 0;  2: E_3 > D_1;  1: E_3 > E_1

    Outcome 1 has .7 of its own column and .6 of column 0: 1.3, as it should.
    """
    width, rows = p.shape
    w = p * (width / p.sum(0))
    heavy = w > 1
    own = np.arange(width, dtype=np.int32)[:, None]
    e = np.maximum(w - 1, 0)
    # D_{i−1} stands in row i; the last row is for one that is not found
    d_before = np.zeros((width + 2, rows))
    np.maximum(1 - w, 0, out=d_before[1:-1])
    for i in range(1, width):
        e[i] += e[i - 1]
        d_before[i + 1] += d_before[i]
    d = d_before[1:]

    filled_so_far = e * heavy + d_before[:width] * ~heavy
    alias = np.zeros((width, rows), np.int32)  # counts the E_j that are too small
    closed_by = np.zeros((width, rows), np.int32)  # counts the D that are too small
    for e_j, d_j in zip(e, d):
        alias += e_j <= filled_so_far
        closed_by += d_j < e
    closing = (closed_by + 1) * np.int64(rows) + np.arange(rows)  # in d_before, laid out flat
    keep = np.where(heavy, 1 + e - d_before.ravel().take(closing), w)
    none_left = alias == width  # nothing but rounding is left to give
    keep[none_left] = 1
    alias = np.where(none_left, own, alias)

    column = 2**32 // width
    threshold = np.rint(np.minimum(keep, 1) * column) + own * float(column)
    return np.minimum(threshold, 2**32 - 1).astype(np.uint32), alias
