"""Recorded episodes, and what is computed from their rewards: returns, advantages and baselines. Axes (T, N, K)."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from metarl_np.arguments import require, require_memory, require_shapes, validate
from metarl_np.learner.alias import SamplingTables, sampling_tables


@dataclass(frozen=True, eq=False)
class Episodes:
    """K episodes of T steps in each of N tasks. Steps after a terminal state are masked; their reward is 0."""

    states: np.ndarray  # (T, N, K) s_t
    actions: np.ndarray  # (T, N, K) a_t
    rewards: np.ndarray  # (T, N, K) r_t, paid for leaving s_t by a_t
    mask: np.ndarray  # (T, N, K) bool: s_t is not terminal, the step was really taken
    log_pi: np.ndarray  # (N, S, A) log π of the policy that acted; None where that is not known
    last_states: np.ndarray  # (N, K) s_T
    truncated: np.ndarray  # (N, K) bool: cut before the horizon and before a terminal state

    def __post_init__(self):
        require(
            np.ndim(self.states) == 3,
            "states",
            f"expected shape (T, N, K), got {np.shape(self.states)}",
        )
        require_shapes(
            self.states.shape, actions=self.actions, rewards=self.rewards, mask=self.mask
        )

    def part(self, episodes=slice(None), tasks=slice(None)):
        """Only these of the K episodes and of the N tasks, slices or index arrays: Episodes."""
        cut = {
            f.name: getattr(self, f.name)[..., tasks, :][..., episodes]
            for f in fields(self)
            if f.name != "log_pi"
        }
        return Episodes(log_pi=None if self.log_pi is None else self.log_pi[tasks], **cut)

    @cached_property
    def log_probs(self):
        """log π(a_t|s_t) when it was sampled, (T, N, K) float32, made from the table at first use; None if that is not known."""
        table = self.log_pi
        task = np.arange(self.states.shape[1])[:, None]
        return None if table is None else table.astype(np.float32)[task, self.states, self.actions]


CHUNK = 65_536  # lanes; with fewer, threads would wait for Python's lock more than they work


def rollout(rng, mdps, log_pi, episodes, *, steps=None, threads=1):
    """Sample `episodes` = K episodes per task under log π (S, A) or (N, S, A): Episodes with axes (T, N, K), T = mdps.horizon.
    `steps` below the horizon truncates. 13 bytes per step: states and actions int32, rewards float32, mask bool. The resolution of a
    probability is that of `sampling_tables`, of a start state N·2⁻⁵², of a reward float32's. `log_pi` may also be the SamplingTables made
    from it. With several threads chunks of lanes run side by side; the numbers are the same. More than max_bytes (8 GiB) are refused.
    """
    validate(rng=rng, mdps=mdps)
    steps = mdps.horizon if steps is None else steps
    validate(episodes=episodes, threads=threads, steps=steps)
    require(1 <= steps <= mdps.horizon, "steps", f"{steps} is outside 1..horizon = {mdps.horizon}")
    require_memory(13, steps, len(mdps), episodes)
    tables = log_pi if isinstance(log_pi, SamplingTables) else sampling_tables(mdps, log_pi)
    n, s, _ = mdps.shape
    lanes = mdps.shape[0] * episodes
    made = tables.log_pi.shape
    require(
        made == mdps.shape,
        "log_pi",
        f"tables made for (N, S, A) = {made}, the tasks are {mdps.shape}",
    )
    states = np.empty((steps, lanes), np.int32)
    actions = np.empty((steps, lanes), np.int32)
    rewards = np.empty((steps, lanes), np.float32)
    last = np.empty(lanes, np.int32)
    mask = (
        np.broadcast_to(True, (steps, lanes))
        if tables.alive is None
        else np.empty((steps, lanes), bool)
    )
    first, cumulative = tables.start
    if first.shape[1] == 1:
        first = np.repeat(first.astype(np.int32), episodes)
    else:  # by inversion of each task's cumulative distribution, in one sorted array
        task = np.arange(n)[:, None]
        u = np.minimum(rng.random((n, episodes)) + task, np.nextafter(task + 1, 0))
        first = first.ravel()[np.searchsorted(cumulative, u.ravel(), side="right")].astype(np.int32)
    chunks = range(0, lanes, CHUNK)

    def run(low, child):
        part = slice(low, low + CHUNK)
        task = np.arange(low, min(low + CHUNK, lanes)) // episodes
        _run(
            child,
            tables,
            first[part],
            task * s,
            mdps.reward_noise[task],
            *(x[..., part] for x in (states, actions, rewards, mask, last)),
        )

    children = rng.spawn(len(chunks))  # a chunk's numbers do not depend on who runs it, or when
    if min(threads, len(chunks)) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, chunks, children))
    else:
        list(map(run, chunks, children))
    last = last.reshape(n, episodes)
    truncated = (steps < mdps.horizon) & ~mdps.terminal[np.arange(n)[:, None], last]
    return Episodes(
        *(x.reshape(steps, n, episodes) for x in (states, actions, rewards, mask)),
        tables.log_pi,
        last,
        truncated,
    )


def _run(rng, tables, first, offset, noise, states, actions, rewards, mask, last):
    """One chunk of lanes for all steps, written into the rows of the last five arguments; offset is a lane's task · S."""
    steps, lanes = states.shape
    bits = tables.width_bits
    start = (first + offset) << (bits + 1)
    noise = noise.astype(np.float32) if noise.any() else None
    block = min(
        steps, max(1, CHUNK // 2 // lanes)
    )  # of small batches, several steps share the calls that do not need the state
    cells = np.empty((block, lanes), np.int64)
    threshold = np.empty(lanes, np.uint32)
    below = np.empty(lanes, bool)
    for t in range(0, steps, block):
        rows = slice(t, min(t + block, steps))
        size = (rows.stop - t) * lanes
        u = (
            rng.integers(2**64, size=(size + 1) // 2, dtype=np.uint64)
            .view(np.uint32)[:size]
            .reshape(-1, lanes)
        )
        cells = cells[: len(u)]
        np.right_shift(u, 32 - bits, out=cells)  # the column
        np.add(cells, cells, out=cells)
        for u_t, cell in zip(u, cells):
            np.add(cell, start, out=cell)
            tables.thresholds.take(
                cell, out=threshold, mode="wrap"
            )  # "wrap": with "raise" and out, numpy copies
            np.less(u_t, threshold, out=below)
            np.add(cell, below, out=cell)
            tables.next_cell.take(cell, out=start, mode="wrap")
        tables.actions.take(cells, out=actions[rows], mode="wrap")
        tables.rewards.take(cells, out=rewards[rows], mode="wrap")
        np.right_shift(cells, bits + 1, out=cells)
        np.subtract(cells, offset, out=states[rows], casting="unsafe")
        if tables.alive is not None:
            tables.alive.take(cells, out=mask[rows], mode="wrap")
        if noise is not None:
            rewards[rows] += noise * rng.standard_normal(cells.shape, np.float32) * mask[rows]
    np.subtract(start >> (bits + 1), offset, out=last, casting="unsafe")


def successor_table(mdps):
    """Σ_{z'≤z} P(z'|s, a), a row for each (task, state, action): (N·S·A, Z). What `step` looks up."""
    cumulative = np.cumsum(mdps.probabilities, -1)
    return (cumulative / cumulative[..., -1:]).reshape(-1, cumulative.shape[-1])


def step(rng, mdps, table, states, actions):
    """One step in each of N tasks, for policies with a memory, which draw the action: s, a (N,) → (r (N,), s' (N,)), s' by inversion of the
    table, `successor_table(mdps)`. The reward of a terminal state is 0, without noise."""
    n, s, a, z = mdps.successors.shape
    row = (np.arange(n) * s + states) * a + actions
    cell = row * z + (table[row] <= rng.random((n, 1))).sum(1)
    rewards = mdps.rewards.ravel()[cell]
    if mdps.reward_noise.any():
        rewards = (
            rewards
            + mdps.reward_noise
            * rng.standard_normal(n)
            * ~mdps.terminal.ravel()[np.arange(n) * s + states]
        )
    return rewards, mdps.successors.ravel()[cell]
