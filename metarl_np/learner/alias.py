"""Tables from which one random number draws an action and a successor together.

(A reader may go on with `rollouts` and come back.) In state s of a task the outcomes of a step are
the A·Z pairs of an action and a successor slot, with probabilities π(a|s) P(z|s, a). An alias table
(Walker 1977; Vose 1991) lays them out in W columns of equal probability, one for each outcome. A
threshold splits each column: below it lies the column's own outcome, above it another one, its
alias. To draw, take a random number: it falls into some column, and above or below the threshold
there. However many outcomes there are, that is one look-up.

Where there are many, a step makes two such draws, of the action and then of the successor:
`_jointly` decides.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from metarl_np.arguments import Record, read_only, require, require_plain
from metarl_np.tasks.mdp import require_log_pi

NUMBERS = 2**32  # a random number is one of 0 … NUMBERS − 1
JOINT = 64  # outcomes of a step, see `_jointly`
COLUMNS = 2**30  # with more, a border would not fit into an int64


@dataclass(frozen=True, eq=False)
class AliasTables(Record):
    """What a draw looks up: an alias table for each of R distributions, its *rows*.

    A row has W columns, W a power of two, and a column has two *cells*, one above and one below its
    threshold. Columns and cells are numbered from the first row to the last:

        column = W·row + c, where c is made of the highest log2 W bits of the random number u
        cell = 2·column + (1 if u is below the column's threshold, else 0).

    Instead of the threshold its border is kept, NUMBERS·(2·column + 1) + threshold − 1. Then
    (border − u) / NUMBERS is at least 2·column + 1 if u ≤ threshold − 1, else at least 2·column:
    its whole part, a shift by 32 bits, is the cell. The arrays are read-only.
    """

    width_bits: int  # log2 W
    borders: np.ndarray  # (R·W,) int64; a threshold is one of 0 … NUMBERS
    leads_to: np.ndarray  # (R·W·2,) int64: the first column of the row of the next draw

    def draw(self, u, column, row):
        """A draw in each lane; u, column, row are (lanes,) int64, and the last two are written.

        u: the random numbers. column: c of each, which becomes the cell. row: the first column of
        the row to draw from, which becomes that of the next draw.
        """
        np.add(column, row, out=column)
        # written over what is not needed any more; for mode="raise" NumPy would make a copy first
        border = self.borders.take(column, out=row, mode="wrap")
        np.subtract(border, u, out=border)
        cell = np.right_shift(border, 32, out=column)
        self.leads_to.take(cell, out=row, mode="wrap")


@dataclass(frozen=True, eq=False)
class SamplingTables(Record):
    """What a step draws, and what is written down for the cells drawn. The arrays are read-only.

    There is one draw, of action and successor together, from row S·task + s. Or there are two, of
    the action from that row, and of the successor from row A·(S·task + s) + a.
    """

    log_pi: np.ndarray  # (N, S, A)
    draws: tuple  # of AliasTables
    action_bits: int  # enough for the numbers of the actions
    # by cell of the first draw
    pairs: np.ndarray  # (cells,) int32: s and a in one look-up, s·2**action_bits + a
    alive: np.ndarray  # (cells,) bool: the state is not terminal; None where no state is terminal
    # by cell of the last draw
    rewards: np.ndarray  # (cells,) float32


def _jointly(mdps):
    """Does one random number draw action and successor together?

    A second draw takes some 5 ns a step. But a joint table has A·Z outcomes in each state and is
    made anew for each policy, at some 40 ns an outcome. Of two draws only the action's, with A
    outcomes, knows the policy; the successor's, Z for each action, are made once for these tasks.
    With 64 outcomes a joint table has paid for itself after some 500 steps in each state.
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
    action = np.arange(n_actions, dtype=np.int32)
    if _jointly(mdps):
        action = np.repeat(action, n_slots)  # of each outcome
        # where Z = 1 tasks that share π share the tables too
        joint = pi[..., None] * mdps.probabilities if n_slots > 1 else pi
        p = joint.reshape(-1, len(action))
        draw, entries = _tables(p, mdps.next_rows.ravel(), _width_bits(len(action)))
        draws = (draw,)
        rewards = _rewards(mdps, entries)
    else:
        successor, rewards = _successor_draw(mdps)
        its_row = np.arange(n_rows * n_actions)  # of each state and action
        draw, entries = _tables(pi.reshape(-1, n_actions), its_row, successor.width_bits)
        draws = (draw, successor)

    cells = len(entries) // n_rows  # of a state
    action_bits = (n_actions - 1).bit_length()
    state = np.repeat(np.arange(n_states, dtype=np.int32) << action_bits, cells)
    pairs = np.tile(state, n_tasks) + np.tile(action, n_rows).take(entries)
    return SamplingTables(
        log_pi=np.broadcast_to(np.array(log_pi), mdps.shape),
        draws=draws,
        action_bits=action_bits,
        pairs=read_only(pairs),
        alive=read_only(np.repeat(~mdps.terminal, cells)) if mdps.terminal.any() else None,
        rewards=rewards,
    )


_successor_draws = WeakKeyDictionary()  # by MDP; what is kept for one goes when the MDP goes


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
    """Of each cell, (cells,) float32; its entry is a place among the (N, S, A, Z) outcomes."""
    return read_only(mdps.rewards.astype(np.float32).ravel().take(entries))


def _width_bits(n_outcomes):
    """log2 W, W being the smallest power of two above 1 that is not below the outcomes."""
    return max(1, (n_outcomes - 1).bit_length())


def _tables(p, next_row, next_bits):
    """AliasTables of n outcomes in each of R rows, and the entry of each cell (R·W·2,).

    Outcome i of row r has entry n·r + i, as where the outcomes (R, n) are laid out flat. p (R, n):
    their probabilities; or those of the first rows, which repeat. next_row (R·n,): the row from
    which the next draw is made after each entry, in tables of 2**next_bits columns.
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
    own = np.minimum(place, n_outcomes - 1)  # a padding column's own outcome is never drawn
    entries = np.empty((n_rows * width, 2), np.int64)
    entries[:, 0] = first_entry + alias
    entries[:, 1] = first_entry + own
    entries = entries.ravel()
    leads_to = (next_row << next_bits).take(entries)
    return AliasTables(bits, read_only(borders), read_only(leads_to)), entries


def _alias_tables(p):
    """keeps and alias, both (R·W,) int64, of R distributions p (R, n); W is that of `_width_bits`.

    Of the NUMBERS random numbers outcome i is to have m_i, the nearest to NUMBERS·p_i or one next
    to that, so that they add up: they are what lies between the rounded Σ_{j≤i} p_j. A column has
    C = NUMBERS / W. Its own outcome keeps some of them, and the alias has the rest.

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
    column = NUMBERS // width
    cumulative = np.cumsum(p, 1)
    ends = np.full((n_rows, width), NUMBERS)
    ends[:, :n_outcomes] = np.rint(cumulative * (NUMBERS / cumulative[:, -1:]))
    ends += NUMBERS * np.arange(n_rows)[:, None]  # one long row
    keeps = np.diff(ends.ravel(), prepend=0)  # m, so far

    heavy = np.flatnonzero(keeps > column)
    light = np.flatnonzero(keeps < column)
    e = np.cumsum(keeps[heavy] - column)
    d = np.cumsum(column - keeps[light])
    last = np.searchsorted(d, e)  # the light that each heavy gives to last
    over = d[last] - e
    keeps[heavy] = column - over
    alias = np.arange(keeps.size)
    alias[light] = np.repeat(heavy, np.diff(last, prepend=-1))
    alias[heavy[:-1]] = np.where(over[:-1] > 0, heavy[1:], heavy[:-1])
    return keeps, alias & (width - 1)
