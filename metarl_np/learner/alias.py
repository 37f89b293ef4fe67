"""Tables from which one random number draws an action and a successor together.

(A reader may go on with `rollouts` and come back.) In state s of a task the outcomes of a step are
the A·Z pairs of an action and a successor slot, with probabilities π(a|s) P(z|s, a). An alias table
(Walker 1977; Vose 1991) lays them out in W columns of equal probability, one for each outcome and
some to spare, since W is a power of two. A threshold splits each column: below it lies the column's
own outcome, above it another one, its alias. To draw, take a random number: it falls into some
column, and above or below the threshold there. However many outcomes there are, a draw takes two
look-ups, of the threshold and of what lies there.

Where there are many, a step makes two such draws, of the action and then of the successor:
`_jointly` decides.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from metarl_np.arguments import Record, read_only, require, require_plain
from metarl_np.tasks.mdp import MDP, require_log_pi

NUMBERS = 2**32  # a random number is one of 0 … NUMBERS − 1
JOINT = 64  # outcomes of a step, see `_jointly`
COLUMNS = 2**30  # with more, a border would not fit into an int64


@dataclass(frozen=True, eq=False)
class AliasTables(Record):
    """What a draw looks up: an alias table for each of R distributions, its *rows*.

    A row has W columns, and a column has two *cells*, one above and one below its threshold.
    Columns and cells are numbered from the first row to the last:

        column = W·row + place, where place is made of the highest log2 W bits of the random number
        cell = 2·column + (1 if the random number u is below the column's threshold, else 0).

    So the random numbers of a column are those from place·NUMBERS/W to (place + 1)·NUMBERS/W − 1,
    and its threshold is one of them or the next. Instead of the threshold the *border* is kept,
    NUMBERS·(2·column + 1) + threshold − 1, so that a subtraction and a shift find the cell:

        border − u = NUMBERS·(2·column + 1) + (threshold − 1 − u).

    The bracket lies in 0 … NUMBERS − 1 if u is below the threshold, and in −NUMBERS … −1 if not. So
    the cell is the whole part of (border − u) / NUMBERS, a shift by 32 bits. The arrays are
    read-only.
    """

    width_bits: int  # log2 W
    borders: np.ndarray  # (R·W,) int64
    leads_to: np.ndarray  # (R·W·2,) int64, by cell: the first column of the row of the next draw

    def draw(self, u, place, row_start):
        """A draw in each lane: place becomes the cell, and row_start that of the next draw.

        u: the random numbers. place: what their highest bits say. row_start: the first column of
        the row to draw from. Each is (lanes,) int64, and the last two are written.
        """
        column = np.add(place, row_start, out=place)
        # row_start is not needed any more; for mode="raise" NumPy would make a copy first
        border = self.borders.take(column, out=row_start, mode="wrap")
        np.subtract(border, u, out=border)
        cell = np.right_shift(border, 32, out=place)
        self.leads_to.take(cell, out=row_start, mode="wrap")


@dataclass(frozen=True, eq=False)
class SamplingTables(Record):
    """What a step draws, and what is written down for the cells drawn. The arrays are read-only.

    There is one draw, of action and successor together, from row S·task + s. Or there are two, of
    the action from that row, and of the successor from row A·(S·task + s) + a of other tables.
    """

    mdps: MDP  # the tasks for which they were made
    log_pi: np.ndarray  # (N, S, A)
    draws: tuple  # of AliasTables
    action_bits: int  # enough for the numbers of the actions
    # by cell of the first draw
    pairs: np.ndarray  # (cells,) int32: s and a in one look-up, s·2**action_bits + a
    alive: np.ndarray  # (cells,) bool: the state is not terminal; None where no state is terminal
    # by cell of the last draw
    rewards: np.ndarray  # (cells,) float32

    def fit(self, mdps):
        """Are `mdps` the tasks for which they were made, or others of the same steps?"""
        if mdps is self.mdps:
            return True
        steps = ("successors", "probabilities", "rewards", "terminal")
        return all(np.array_equal(getattr(mdps, x), getattr(self.mdps, x)) for x in steps)


def _jointly(mdps):
    """Does one random number draw action and successor together?

    Yes where the outcomes are few. A second draw takes some 5 ns a step. A joint table has A·Z
    outcomes in each state and is made anew for each policy, at some 40 ns an outcome: with 64 of
    them it has paid for itself after some 500 steps in each state. Of two draws only the action's,
    with A outcomes, depends on the policy; the successor's, with Z for each action, are made once
    for these tasks. And with a single action or successor there is nothing for a second draw to
    decide.
    """
    _, _, n_actions, n_slots = mdps.successors.shape
    return n_actions * n_slots <= JOINT or min(n_actions, n_slots) == 1


def sampling_tables(mdps, log_pi):
    """SamplingTables of `mdps` under log π (S, A) or (N, S, A).

    A probability is kept to within 2⁻³², or 2⁻³¹ where a step makes two draws; what has probability
    zero never happens. Raises ValueError on what are no log-probabilities for these tasks.
    """
    require_plain(log_pi=log_pi)
    log_pi = require_log_pi(log_pi, mdps)
    n_tasks, n_states, n_actions, n_slots = mdps.successors.shape
    n_rows = n_tasks * n_states
    pi = np.exp(log_pi)
    action = np.arange(n_actions, dtype=np.int32)  # of each outcome of the first draw
    if _jointly(mdps):
        action = np.repeat(action, n_slots)
        # where Z = 1, P is 1: tasks that share π share their probabilities too
        joint = pi[..., None] * mdps.probabilities if n_slots > 1 else pi
        p = joint.reshape(-1, len(action))
        draw, entries = _tables(p, mdps.next_rows.ravel(), _width_bits(len(action)))
        draws = (draw,)
        rewards = _rewards(mdps, entries)
    else:
        successor, rewards = _successor_draw(mdps)
        p = pi.reshape(-1, n_actions)
        its_row = np.arange(n_rows * n_actions)  # the successor's, of each state and action
        draw, entries = _tables(p, its_row, successor.width_bits)
        draws = (draw, successor)

    cells = len(entries) // n_rows  # of a state
    action_bits = _width_bits(n_actions)
    state = np.repeat(np.arange(n_states, dtype=np.int32) << action_bits, cells)
    pairs = np.tile(state, n_tasks) + np.tile(action, n_rows).take(entries)
    return SamplingTables(
        mdps=mdps,
        log_pi=np.broadcast_to(np.array(log_pi), mdps.shape),
        draws=draws,
        action_bits=action_bits,
        pairs=read_only(pairs),
        alive=read_only(np.repeat(~mdps.terminal, cells)) if mdps.terminal.any() else None,
        rewards=rewards,
    )


# by MDP, which cannot keep them itself, as its chapter knows nothing of this one; what is kept for
# an MDP goes when the MDP goes
_successor_draws = WeakKeyDictionary()


def _successor_draw(mdps):
    """AliasTables of the successor, a row for each (task, s, a), and the reward of each cell.

    They are made once for these tasks and kept, since they do not depend on a policy.
    """
    if mdps not in _successor_draws:
        _, _, n_actions, n_slots = mdps.successors.shape
        p = mdps.probabilities.reshape(-1, n_slots)
        draw, entries = _tables(p, mdps.next_rows.ravel(), _width_bits(n_actions))
        _successor_draws[mdps] = draw, _rewards(mdps, entries)
    return _successor_draws[mdps]


def _rewards(mdps, entries):
    """r(s, a, z) of each cell, (cells,) float32; entries: the cells' places in (N, S, A, Z)."""
    return read_only(mdps.rewards.astype(np.float32).ravel().take(entries))


def _width_bits(n_outcomes):
    """log2 W, W being the smallest power of two that is at least the number of outcomes."""
    return (n_outcomes - 1).bit_length()


def _tables(p, next_row, next_bits):
    """AliasTables of n outcomes in each of R rows, and the entry of each cell (R·W·2,).

    The entry of outcome i of row r is its place in an array (R, n), n·r + i. p (R, n): their
    probabilities, or (R', n) if they repeat after R' rows. next_row (R·n,), by entry: the row of
    the next draw, in tables of 2**next_bits columns.
    """
    n_outcomes = p.shape[1]
    n_rows = len(next_row) // n_outcomes
    bits = _width_bits(n_outcomes)
    width = 1 << bits
    too_many = f"{n_rows} tables of {width} columns, above {COLUMNS} in all"
    require(n_rows * width <= COLUMNS, "mdps", too_many)
    repeats = n_rows // len(p)
    keeps, alias = (np.tile(x, repeats) for x in _alias_tables(p))
    column = np.arange(n_rows * width)
    place = column & (width - 1)  # in its row
    threshold = place * (NUMBERS // width) + keeps
    borders = NUMBERS * (2 * column + 1) + threshold - 1

    first_entry = n_outcomes * (column >> bits)  # of the row
    own = np.minimum(place, n_outcomes - 1)  # a column to spare keeps nothing: any will do
    entries = np.empty((n_rows * width, 2), np.int64)
    entries[:, 0] = first_entry + alias
    entries[:, 1] = first_entry + own
    entries = entries.ravel()
    leads_to = (next_row << next_bits).take(entries)
    return AliasTables(bits, read_only(borders), read_only(leads_to)), entries


def _alias_tables(p):
    """keeps and alias, both (R·W,) int64, of R distributions p (R, n); W is that of `_width_bits`.

    Of the NUMBERS random numbers outcome i is to have m_i, those from NUMBERS·Σ_{j<i} p_j to
    NUMBERS·Σ_{j≤i} p_j, both rounded. So the m_i are whole, at most 1 off, and add up to NUMBERS.
    A column has C = NUMBERS / W. Its own outcome keeps some of them, and the alias has the rest.

    A light outcome (m < C) leaves C − m of its own column free. A heavy one (m > C) has m − C too
    much, and puts that into the columns of light ones. These are filled in order, by the heavy
    outcomes in order. Let D_k be what is free in the columns of the first k lights, and E_j what
    the first j heavies have too much.

    - Heavy j gives until the first k with D_k ≥ E_j. By then it has given D_k − E_j more than it
      had too much: so many numbers of its own column it does not keep, and the next heavy has them.
    - It is the alias in the columns of the lights up to this k, after the last one of the heavy
      before.

    For example, p = (1, 8, 2, 5) / 16, in units of C:

        outcome      0     1     2     3
        m          .25     2    .5  1.25
        D          .75         1.25           free in the column of 0, and in those of 0 and 2
        E                  1         1.25     too much in 1, and in 1 and 3
        keeps      .25   .75    .5     1      1 gave D_2 − E_1 = .25 more than it had too much
        alias        1     3     1     –

    Outcome 1 has .75 of its own column, .75 of column 0 and .5 of column 2: 2 in all, as it should.
    Outcome 3 has its own column and .25 of column 1.

    In every row the lights leave as much free as the heavies have too much, exactly, since these
    are whole numbers. So all rows can be filled as one long row: none gives to the next.
    """
    n_rows, n_outcomes = p.shape
    width = 1 << _width_bits(n_outcomes)
    capacity = NUMBERS // width  # C
    cumulative = np.cumsum(p, 1)
    ends = np.full((n_rows, width), NUMBERS)
    ends[:, :n_outcomes] = np.rint(cumulative * (NUMBERS / cumulative[:, -1:]))
    ends += NUMBERS * np.arange(n_rows)[:, None]  # one long row
    keeps = np.diff(ends.ravel(), prepend=0)  # m, so far

    heavy = np.flatnonzero(keeps > capacity)
    light = np.flatnonzero(keeps < capacity)
    e = np.cumsum(keeps[heavy] - capacity)
    d = np.cumsum(capacity - keeps[light])
    last = np.searchsorted(d, e)  # the light that each heavy gives to last
    over = d[last] - e  # what it has then given more than it had too much
    keeps[heavy] = capacity - over
    alias = np.arange(keeps.size)
    alias[light] = np.repeat(heavy, np.diff(last, prepend=-1))
    alias[heavy[:-1]] = np.where(over[:-1] > 0, heavy[1:], heavy[:-1])
    return keeps, alias & (width - 1)
