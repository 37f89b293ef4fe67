"""Tasks from Gymnasium's toy-text environments, whose tables say `done` of a transition."""

from collections import Counter, defaultdict

import numpy as np

from metarl_np.arguments import require
from metarl_np.tasks.mdp import MDP, per_state


def mdp_from_gymnasium(tables, start, *, discount, horizon, reward_noise=0.0):
    """MDP of the tasks in Gymnasium's toy-text table(s), `env.unwrapped.P`.

    tables: {s: {a: [(p, s', r, done), …]}}, one, or a sequence of N such. start: a state, or
    `env.unwrapped.initial_state_distrib`, (S,) or (N, S). discount, horizon and reward_noise
    are those of an MDP. Duplicates are merged, rows of probability zero dropped. `done` leads to
    an absorbing state: s', or a new one where s' is a start or is also reached without done.
    Raises ValueError, naming task and state, if the tables are none.
    """
    tables = [tables] if isinstance(tables, dict) else list(tables)
    n_states, n_actions = _check_tables(tables)
    start = per_state("start", start, len(tables), n_states)
    tasks = [_outcomes(table, starts=set(np.flatnonzero(p))) for table, p in zip(tables, start)]

    total = 1 + max(max(ends, default=0) for _, ends in tasks)  # states, with the copies that end
    total = max(total, n_states)
    width = max((len(reached) for outcomes, _ in tasks for reached in outcomes.values()), default=1)
    shape = (len(tables), total, n_actions, width)
    successors = np.broadcast_to(
        np.arange(total)[:, None, None], shape
    ).copy()  # unless told otherwise, s stays s
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
    start = np.pad(start, ((0, 0), (0, total - n_states)))
    return MDP(successors, probabilities, rewards, start, terminal, discount, horizon, reward_noise)


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
    outcomes = defaultdict(Counter)
    for s, a, p, z, r, done in rows:
        if s not in terminal:  # what a table says about a state that is an end is not looked at
            outcomes[s, a][copy.get(z, z) if done else z, r] += p
    return outcomes, terminal


def _check_tables(tables):
    """(S, A); ValueError unless all tables have the same states and actions, and proper entries."""
    require(
        len(tables) and all(isinstance(t, dict) for t in tables),
        "tables",
        "expected {s: {a: [(p, s', r, done), …]}}",
    )
    states = range(len(tables[0]))
    actions = range(len(tables[0][0])) if 0 in tables[0] else ()
    for n, table in enumerate(tables):
        require(
            sorted(table) == list(states), "tables", f"task {n}: expected the states 0..S-1 as keys"
        )
        for s in states:
            where = f"task {n}, state {s}: "
            require(
                sorted(table[s]) == list(actions),
                "tables",
                where + "expected the actions 0..A-1 as keys",
            )
            for p, z, r, done in (row for a in actions for row in table[s][a]):
                require(p >= 0, "tables", where + "a probability that is negative or NaN")
                require(
                    p == 0 or z in states,
                    "tables",
                    where + f"a successor outside 0..{len(states) - 1}",
                )
    return len(states), len(actions)
