"""Episodes, and the loop over time that records them: the hot core.

Python runs once for each time step; tasks and episodes are array axes, whose pairs (task, episode)
are called lanes. In words, a step of one lane is

    take a random number of 32 bits; its high bits name a column of the state's alias table
    if the number is below the column's threshold the outcome is the column's own, else its alias
    write down the outcome's action and reward; its successor is the next state

The lanes are run a chunk at a time, so that what a chunk needs stays in the cache.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from metarl_np.arguments import require, require_memory, require_shapes, validate
from metarl_np.learner.alias import SamplingTables, sampling_tables

CHUNK = 65_536  # lanes; with fewer, threads would wait for Python's lock more than they work


@dataclass(frozen=True, eq=False)
class Episodes:
    """K episodes of T steps in each of N tasks.

    Steps after a terminal state are masked, and their reward is 0.
    """

    states: np.ndarray  # (T, N, K) s_t
    actions: np.ndarray  # (T, N, K) a_t
    rewards: np.ndarray  # (T, N, K) r_t, paid for leaving s_t by a_t
    mask: np.ndarray  # (T, N, K) bool: s_t is not terminal, the step was really taken
    log_pi: np.ndarray  # (N, S, A) log π of the policy that acted; None where that is not known
    last_states: np.ndarray  # (N, K) s_T
    truncated: np.ndarray  # (N, K) bool: cut before the horizon and before a terminal state

    def __post_init__(self):
        shape = np.shape(self.states)
        require(len(shape) == 3, "states", f"expected shape (T, N, K), got {shape}")
        require_shapes(shape, actions=self.actions, rewards=self.rewards, mask=self.mask)

    def part(self, episodes=slice(None), tasks=slice(None)):
        """Only these of the K episodes and of the N tasks, slices or index arrays: Episodes."""
        cut = {}
        for field in fields(self):
            if field.name != "log_pi":
                cut[field.name] = getattr(self, field.name)[..., tasks, :][..., episodes]
        log_pi = None if self.log_pi is None else self.log_pi[tasks]
        return Episodes(log_pi=log_pi, **cut)

    @cached_property
    def log_probs(self):
        """log π(a_t|s_t) when it was sampled, (T, N, K) float32; None if that is not known."""
        if self.log_pi is None:
            return None
        task = np.arange(self.states.shape[1])[:, None]
        return self.log_pi.astype(np.float32)[task, self.states, self.actions]


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a rollout writes, for all lanes or for a chunk of them."""

    states: np.ndarray  # (T, lanes) int32
    actions: np.ndarray  # (T, lanes) int32
    rewards: np.ndarray  # (T, lanes) float32
    mask: np.ndarray  # (T, lanes) bool
    last_states: np.ndarray  # (lanes,) int32

    @classmethod
    def empty(cls, steps, n_lanes, *, all_taken):
        """Rows to write into; where all steps are taken the mask is written already."""
        shape = (steps, n_lanes)
        return cls(
            states=np.empty(shape, np.int32),
            actions=np.empty(shape, np.int32),
            rewards=np.empty(shape, np.float32),
            mask=np.broadcast_to(True, shape) if all_taken else np.empty(shape, bool),
            last_states=np.empty(n_lanes, np.int32),
        )

    def part(self, lanes):
        """Views of these lanes, a slice."""
        return _Rows(*(x[..., lanes] for x in vars(self).values()))


def rollout(rng, mdps, log_pi, episodes, *, steps=None, threads=1):
    """Episodes, K = `episodes` in each task, sampled under log π (S, A) or (N, S, A).

    log_pi may also be the SamplingTables made from it. steps: the number of time steps T,
    mdps.horizon by default; fewer truncate. threads: chunks of lanes run side by side, with the
    same numbers. The resolution of a probability is that of `sampling_tables`, of a start state
    N·2⁻⁵², of a reward float32's. Raises ValueError on bad arguments and on more than MAX_BYTES,
    at 13 bytes a step.
    """
    validate(rng=rng, mdps=mdps, episodes=episodes, threads=threads)
    steps = mdps.horizon if steps is None else steps
    validate(steps=steps)
    horizon = f"{steps} is outside 1..horizon = {mdps.horizon}"
    require(1 <= steps <= mdps.horizon, "steps", horizon)
    n_tasks, n_states, _ = mdps.shape
    require_memory(13, steps, n_tasks, episodes)
    tables = log_pi if isinstance(log_pi, SamplingTables) else sampling_tables(mdps, log_pi)
    made = tables.log_pi.shape
    others = f"tables made for (N, S, A) = {made}, the tasks are {mdps.shape}"
    require(made == mdps.shape, "log_pi", others)

    n_lanes = n_tasks * episodes
    rows = _Rows.empty(steps, n_lanes, all_taken=tables.alive is None)
    first_states = _start(rng, tables, episodes)
    chunks = range(0, n_lanes, CHUNK)

    def run(low, child):
        lanes = slice(low, min(low + CHUNK, n_lanes))
        task = np.arange(lanes.start, lanes.stop) // episodes
        _run(
            child,
            tables,
            first_states=first_states[lanes],
            first_row=task * n_states,
            noise=mdps.reward_noise[task],
            rows=rows.part(lanes),
        )

    children = rng.spawn(len(chunks))  # a chunk's numbers do not depend on who runs it, or when
    if min(threads, len(chunks)) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, chunks, children))
    else:
        list(map(run, chunks, children))

    by_episode = (steps, n_tasks, episodes)
    last_states = rows.last_states.reshape(n_tasks, episodes)
    ended = mdps.terminal[np.arange(n_tasks)[:, None], last_states]
    return Episodes(
        states=rows.states.reshape(by_episode),
        actions=rows.actions.reshape(by_episode),
        rewards=rows.rewards.reshape(by_episode),
        mask=rows.mask.reshape(by_episode),
        log_pi=tables.log_pi,
        last_states=last_states,
        truncated=(steps < mdps.horizon) & ~ended,
    )


def _start(rng, tables, episodes):
    """The first state of every lane: (N·K,) int32.

    Where a task has several they are drawn by inversion of its cumulative distribution: task i's
    lies in (i, i + 1], so that one search in one sorted array serves all tasks.
    """
    states = tables.start_states
    if states.shape[1] == 1:
        return np.repeat(states.astype(np.int32), episodes)
    task = np.arange(len(states))[:, None]
    u = rng.random((len(states), episodes)) + task
    u = np.minimum(u, np.nextafter(task + 1, 0))  # rounding must not lead into the next task
    place = np.searchsorted(tables.start_cumulative, u.ravel(), side="right")
    return states.ravel()[place].astype(np.int32)


def _run(rng, tables, *, first_states, first_row, noise, rows):
    """All steps of one chunk of lanes, written into its _Rows.

    first_states, first_row, noise: (lanes,); first_row is S·task. The loop over steps does only
    what the next step needs: which cell is met. Actions, rewards and states are looked up for a
    block of steps at a time, so that in small batches several steps share these calls.
    """
    steps, n_lanes = rows.states.shape
    shift = tables.row_shift
    row_cell = (first_states + first_row) << shift  # the first cell of the state's row
    noise = noise.astype(np.float32) if noise.any() else None
    block = min(steps, max(1, CHUNK // 2 // n_lanes))
    cells = np.empty((block, n_lanes), np.int64)
    threshold = np.empty(n_lanes, np.uint32)
    below = np.empty(n_lanes, bool)
    for t in range(0, steps, block):
        now = slice(t, min(t + block, steps))
        u = _random_bits(rng, now.stop - t, n_lanes)
        cells = cells[: len(u)]
        np.right_shift(u, 32 - tables.width_bits, out=cells)  # the column
        np.add(cells, cells, out=cells)  # its first cell
        for u_t, cell in zip(u, cells):
            np.add(cell, row_cell, out=cell)
            # mode="wrap", since with "raise" and out NumPy makes a copy
            tables.thresholds.take(cell, out=threshold, mode="wrap")
            np.less(u_t, threshold, out=below)
            np.add(cell, below, out=cell)
            tables.next_cell.take(cell, out=row_cell, mode="wrap")
        tables.actions.take(cells, out=rows.actions[now], mode="wrap")
        tables.rewards.take(cells, out=rows.rewards[now], mode="wrap")
        np.right_shift(cells, shift, out=cells)  # the row, S·task + state
        np.subtract(cells, first_row, out=rows.states[now], casting="unsafe")
        if tables.alive is not None:
            tables.alive.take(cells, out=rows.mask[now], mode="wrap")
        if noise is not None:
            z = rng.standard_normal(cells.shape, np.float32)
            rows.rewards[now] += noise * z * rows.mask[now]
    np.subtract(row_cell >> shift, first_row, out=rows.last_states, casting="unsafe")


def _random_bits(rng, steps, n_lanes):
    """A random number of 32 bits for each lane and step: two are read from one of 64 bits."""
    size = steps * n_lanes
    pairs = rng.integers(2**64, size=(size + 1) // 2, dtype=np.uint64)
    return pairs.view(np.uint32)[:size].reshape(steps, n_lanes)


def successor_table(mdps):
    """Σ_{z'≤z} P(z'|s, a), a row for each task, state and action: (N·S·A, Z), for `step`."""
    cumulative = np.cumsum(mdps.probabilities, -1)
    return (cumulative / cumulative[..., -1:]).reshape(-1, cumulative.shape[-1])


def step(rng, mdps, table, states, actions):
    """One step in each of N tasks: s, a (N,) → (r (N,), s' (N,)).

    For policies with a memory, which draw the action themselves. s' is drawn by inversion of
    `table`, the `successor_table(mdps)`. In a terminal state the reward is 0, without noise.
    """
    n_tasks, n_states, n_actions, n_slots = mdps.successors.shape
    state_row = np.arange(n_tasks) * n_states + states
    row = state_row * n_actions + actions
    slot = (table[row] <= rng.random((n_tasks, 1))).sum(1)
    entry = row * n_slots + slot
    rewards = mdps.rewards.ravel()[entry]
    if mdps.reward_noise.any():
        alive = ~mdps.terminal.ravel()[state_row]
        rewards = rewards + mdps.reward_noise * rng.standard_normal(n_tasks) * alive
    return rewards, mdps.successors.ravel()[entry]
