"""Tasks from Gymnasium's toy-text environments, whose tables say `done` of a transition."""

from collections import defaultdict

import numpy as np

from metarl_np.arguments import require
from metarl_np.tasks.mdp import MDP, per_state


def mdp_from_gymnasium(tables, start, *, discount, horizon, reward_noise=0.0):
    """MDP of the tasks in Gymnasium's toy-text table(s), `env.unwrapped.P`.

    tables: {s: {a: [(p, s', r, done), …]}}, one, or a list of N such. start: a state, or
    `env.unwrapped.initial_state_distrib`, (S,) or (N, S). discount, horizon and reward_noise
    are those of an MDP. Duplicates are merged, and rows of probability zero dropped. `done` leads
    to an absorbing state: to s', or to a new one where s' is a start or is also reached without
    done. Raises ValueError, naming task, state and action, if these are no such tables.
    """
    tables = [tables] if isinstance(tables, dict) else tables
    n_states, n_actions = _sizes(tables)
    _require_entries(tables, n_states)
    start = per_state("start", start, len(tables), n_states)
    tasks = [_outcomes(table, starts=set(np.flatnonzero(p))) for table, p in zip(tables, start)]

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


def _outcomes(table, starts):
    """{(s, a): {(s', r): p}} of one table, and its terminal states.

    Gymnasium says `done` of a transition, an MDP says terminal of a state. A state that `done`
    leads to is terminal, unless an episode may also start or go on in it: then `done` leads to a
    copy of it.
    """
    rows = [(s, a, *row) for s in table for a in table[s] for row in table[s][a] if row[0] > 0]
    ends = {z for s, a, p, z, r, done in rows if done}
    goes_on = starts | {z for s, a, p, z, r, done in rows if not done and z != s}
    copy = {z: len(table) + i for i, z in enumerate(sorted(ends & goes_on))}
    terminal = (ends - goes_on) | set(copy.values())
    outcomes = {(s, a): defaultdict(float) for s in table for a in table[s]}
    for s, a, p, z, r, done in rows:
        if s not in terminal:  # what a table says about a state that is an end is not looked at
            outcomes[s, a][copy.get(z, z) if done else z, r] += p
    return outcomes, terminal


def _sizes(tables):
    """(S, A); raises ValueError unless all tables have the same states and actions."""
    dictionaries = isinstance(tables, (list, tuple)) and all(isinstance(t, dict) for t in tables)
    expected = "expected a dictionary {s: {a: [(p, s', r, done), …]}} or a list of them"
    require(dictionaries and len(tables), "tables", expected)
    states = list(range(len(tables[0])))
    for table in tables:
        good = len(states) and sorted(table) == states
        require(good, "tables", "expected the states 0..S-1 as keys of each")
    actions = list(range(len(tables[0][0])))
    good = [[sorted(table[s]) == actions for s in states] for table in tables]
    require(good, "tables", f"expected the actions 0..{len(actions) - 1}")
    return len(states), len(actions)


def _require_entries(tables, n_states):
    """Raise ValueError unless every entry is (p, s', r, done) with p ≥ 0 and s' a state."""
    for n, table in enumerate(tables):
        for s in table:
            for a, entries in table[s].items():
                for entry in entries:
                    why = _what_is_wrong(entry, n_states)
                    if why:
                        where = f"(at task {n}, state {s}, action {a})"
                        raise ValueError(f"tables: {why} {where}")


def _what_is_wrong(entry, n_states):
    if len(entry) != 4:
        return "expected entries (p, s', r, done)"
    p, z, _, _ = entry
    if not p >= 0:
        return "a probability that is negative or NaN"
    if p > 0 and z not in range(n_states):
        return f"a successor outside 0..{n_states - 1}"
    return None
