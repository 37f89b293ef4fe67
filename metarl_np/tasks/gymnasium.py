"""Tasks from Gymnasium's toy-text environments, whose tables say `done` of a transition."""

from collections import defaultdict
from numbers import Real
from typing import NamedTuple

import numpy as np

from metarl_np.arguments import LARGEST_FLOAT, misplaced, plain_number, require
from metarl_np.tasks.mdp import LARGEST, MDP, ROUNDING, per_state


def mdp_from_gymnasium(tables, start, *, discount, horizon, reward_noise=0.0):
    """MDP of the tasks in Gymnasium's toy-text table(s), `env.unwrapped.P`.

    tables: {s: {a: [(p, s', r, done), …]}}, one, or a list of N such. start: a state, or
    `env.unwrapped.initial_state_distrib`, (S,) or (N, S). discount, horizon and reward_noise
    are those of an MDP. Duplicates are merged, and rows of probability zero dropped. `done` leads
    to an absorbing state: to s', or to a new one where s' is a start or is also reached without
    done. Raises ValueError, naming task, state, action and entry, if these are no such tables.
    """
    tables = [tables] if isinstance(tables, dict) else tables
    n_states, n_actions = _sizes(tables)
    start = per_state("start", start, len(tables), n_states)
    tasks = []
    for n, table in enumerate(tables):
        rows = _rows(n, table)
        tasks.append(_outcomes(n, table, rows, starts=set(np.flatnonzero(start[n]))))

    # the largest number of states, with the copies that end an episode, and of successors
    total = max(n_states, *(1 + max(ends, default=0) for _, ends in tasks))
    width = max([1, *(len(reached) for outcomes, _ in tasks for reached in outcomes.values())])
    shape = (len(tables), total, n_actions, width)
    own = np.arange(total)[:, None, None]
    successors = np.broadcast_to(own, shape).copy()  # unless told otherwise, s stays s
    probabilities = np.zeros(shape)
    rewards = np.zeros(shape)
    terminal = np.zeros(shape[:2], bool)
    terminal[:, n_states:] = True  # copies, and what fills up a task that has fewer of them
    for n, (outcomes, ends) in enumerate(tasks):
        terminal[n, list(ends)] = True
        for (s, a), reached in outcomes.items():
            for slot, (z, r) in enumerate(sorted(reached)):
                successors[n, s, a, slot] = z
                rewards[n, s, a, slot] = r
                probabilities[n, s, a, slot] = reached[z, r]
    probabilities[..., 0] += terminal[..., None]
    return MDP(
        successors=successors,
        probabilities=probabilities,
        rewards=rewards,
        start=np.pad(start, ((0, 0), (0, total - n_states))),
        terminal=terminal,
        discount=discount,
        horizon=horizon,
        reward_noise=reward_noise,
    )


class _Row(NamedTuple):
    """An entry of a table, of a probability above 0."""

    state: int
    action: int
    entry: int  # its number among those of the state and action
    p: float
    after: int  # the next state
    reward: float
    done: bool


def _outcomes(n, table, rows, starts):
    """{(s, a): {(s', r): p}} of task n's table, and its terminal states.

    Gymnasium says `done` of a transition, an MDP says terminal of a state. A state that `done`
    leads to is terminal, unless an episode may also start or go on in it: then `done` leads to a
    copy of it.
    """
    ends = {row.after for row in rows if row.done}
    goes_on = {row.after for row in rows if not row.done and row.after != row.state}
    goes_on |= starts
    copy = {z: len(table) + i for i, z in enumerate(sorted(ends & goes_on))}
    terminal = (ends - goes_on) | set(copy.values())
    actions = range(len(table[0]))
    outcomes = {(s, a): defaultdict(float) for s in range(len(table)) for a in actions}
    for row in rows:
        if row.state in terminal:  # what a table says about a state that is an end does not matter
            continue
        if not abs(row.reward) <= LARGEST:
            why = f"a reward that is not finite or above {LARGEST}"
            raise _error(why, task=n, state=row.state, action=row.action, entry=row.entry)
        after = copy.get(row.after, row.after) if row.done else row.after
        outcomes[row.state, row.action][after, row.reward] += row.p
    for (s, a), reached in outcomes.items():
        if s not in terminal and not abs(sum(reached.values()) - 1) < ROUNDING:
            raise _error("the probabilities do not sum to one", task=n, state=s, action=a)
    return outcomes, terminal


def _error(why, **place):
    """ValueError that names the tables and the place: task, state, action, entry."""
    where = ", ".join(f"{axis} {i}" for axis, i in place.items())
    return ValueError(f"tables: {why} (at {where})")


def _sizes(tables):
    """(S, A); raises ValueError unless all tables have the same states and actions."""
    expected = "expected a dictionary {s: {a: [(p, s', r, done), …]}} or a list of them"
    some = isinstance(tables, (list, tuple)) and len(tables)
    require(some, "tables", misplaced(tables) or expected)
    require([isinstance(table, dict) for table in tables], "tables", expected, ("task",))
    states = range(len(tables[0]))
    for n, table in enumerate(tables):
        # sets, since keys of several types cannot be sorted
        if not states or set(table) != set(states):
            raise _error("expected the states 0..S-1 as keys, the same of each", task=n)
        for s in states:
            if not isinstance(table[s], dict):
                why = f"expected a dictionary of actions, got {table[s]!r:.99}"
                raise _error(why, task=n, state=s)
    actions = range(len(tables[0][0]))
    for n, table in enumerate(tables):
        for s in states:
            if not actions or set(table[s]) != set(actions):
                last = max(len(actions) - 1, 0)
                raise _error(f"expected the actions 0..{last} as keys", task=n, state=s)
    return len(states), len(actions)


def _rows(n, table):
    """The rows of task n's table whose probability is above 0; raises ValueError on bad entries."""
    rows = []
    for s in range(len(table)):
        for a in range(len(table[s])):
            entries = table[s][a]
            if not isinstance(entries, (list, tuple, np.ndarray)):
                why = f"expected a list of entries (p, s', r, done), got {entries!r:.99}"
                raise _error(why, task=n, state=s, action=a)
            for i, entry in enumerate(entries):
                why = _what_is_wrong(entry, len(table))
                if why:
                    raise _error(why, task=n, state=s, action=a, entry=i)
                p, z, r, done = entry
                if p > 0:
                    # an integer beyond floats is refused later, unless its state is an end
                    reward = float(r) if abs(r) <= LARGEST_FLOAT else np.inf
                    rows.append(_Row(s, a, i, float(p), int(z), reward, bool(done)))
    return rows


def _what_is_wrong(entry, n_states):
    """Why an entry is no (p, s', r, done) with p ≥ 0 and s' a state, "" if it is one."""
    is_row = isinstance(entry, (list, tuple, np.ndarray)) and len(entry) == 4
    if not is_row:
        return f"expected an entry (p, s', r, done), got {entry!r:.99}"
    p, z, r, done = entry
    for what, x in (("probability", p), ("successor", z), ("reward", r), ("flag `done`", done)):
        if not _is_number(x):
            return misplaced(x) or f"expected a number as {what}, got {x!r:.99}"
        if p == 0:  # what never happens need not be a number
            return ""
    if not 0 <= p <= LARGEST_FLOAT:
        return "a probability that is negative, infinite or NaN"
    if z not in range(n_states):
        return f"a successor outside 0..{n_states - 1}"
    if done not in (0, 1):
        return f"expected a flag `done`, true or false, got {done!r:.99}"
    return ""


def _is_number(x):
    """Is it a number of Python's or NumPy's? NumPy calls a span of time an integer, too."""
    is_numpy = hasattr(x, "__array__")
    return plain_number(x) is not None if is_numpy else isinstance(x, Real)
