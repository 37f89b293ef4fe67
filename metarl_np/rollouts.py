"""Batched sampling of episodes: the hot core. Python runs once per time step; tasks and episodes are array axes.
One 32-bit random number per step decides the action and the successor together. For each (task, state) the A·Z joint outcomes, of
probability π(a|s) P(z|s,a), are laid out as an alias table (Walker 1977; Vose 1991): W columns (a power of two) of equal probability, each
split by one threshold between two outcomes. The number's high bits name the column, and it is compared with the threshold; the reward,
the action and the next state are then a look-up each, in rows that fit in the cache: lanes (task, episode) are run a chunk at a time.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import check, require, require_memory
from metarl_np.mdp import require_log_pi
from metarl_np.returns import Episodes

CHUNK = 65_536  # lanes; with fewer, threads would wait for Python's lock more than they work


@dataclass(frozen=True, eq=False)
class SamplingTables:
    """What a step looks up, by cell c = 2·(W·row + column) + (number below the threshold), row = S·task + state."""

    log_pi: np.ndarray  # (N, S, A)
    width_bits: int  # log2 W
    thresholds: np.ndarray  # (N·S·W·2) uint32, each twice
    next_cell: np.ndarray  # (N·S·W·2) int64: 2W · (row of the next state)
    rewards: np.ndarray  # (N·S·W·2) float32
    actions: np.ndarray  # (N·S·W·2) int32
    start: tuple  # start states (N, B) and their cumulative probabilities + task (N·B)
    alive: np.ndarray  # (N·S) bool: not terminal; None where nothing is


def sampling_tables(mdps, log_pi):
    """Alias tables of the joint (action, successor) outcomes of `mdps` under log π (S, A) or (N, S, A).
    A probability is kept to within W·2⁻³³, W < 2AZ; what has probability zero never happens."""
    require_log_pi(log_pi, mdps)
    n, s, a, z = mdps.successors.shape
    log_pi = np.asarray(log_pi)
    bits = max(1, (a * z - 1).bit_length())
    joint = np.exp(log_pi)[..., None] * (
        mdps.probabilities if z > 1 else 1.0
    )  # where z = 1 tasks that share π share the columns too
    p = np.zeros((1 << bits, joint.size // (a * z)))
    p[: a * z] = joint.reshape(-1, a * z).T
    thresholds, alias = (np.ascontiguousarray(x.T) for x in _alias_tables(p))
    outcome = np.stack([alias, np.broadcast_to(np.arange(1 << bits), alias.shape)], -1).reshape(
        -1, s, 2 << bits
    )
    outcome = np.minimum(outcome, a * z - 1)  # a padding column's own outcome is never drawn
    flat = (outcome + np.arange(n * s).reshape(n, s, 1) * (a * z)).ravel()

    def for_all(x):  # (S·…) or (N·S·…) → (N·S·…)
        return np.broadcast_to(x.reshape(-1, s, 2 << bits), (n, s, 2 << bits)).ravel()

    states = mdps.start_support[0]
    cumulative = np.cumsum(mdps.start_support[1], 1)
    cumulative = cumulative / cumulative[:, -1:] + np.arange(n)[:, None]
    return SamplingTables(
        np.broadcast_to(np.array(log_pi), (n, s, a)),
        bits,
        for_all(np.repeat(thresholds, 2)),
        mdps.next_rows.ravel()[flat] << (bits + 1),
        mdps.rewards.ravel()[flat].astype(np.float32),
        for_all((outcome // z).astype(np.int32)),
        (states, cumulative.ravel()),
        ~mdps.terminal.ravel() if mdps.terminal.any() else None,
    )


def _alias_tables(p):
    """p (W, R), columns of probabilities, W a power of two → thresholds (W, R) uint32, aliases (W, R).
    With w = W·p, the light outcomes (w ≤ 1) are filled up in order by the heavy ones in order: let D_i be what the light ones up to i
    lack in all, E_i what the heavy ones have too much. A light i is filled by the heavy j that is open then, the first with E_j > D_{i−1}.
    A heavy i is open until D ≥ E_i; what it gave beyond its excess, D − E_i, it gets from the next heavy one, the first with E_j > E_i.
    """
    width, rows = p.shape
    w = p * (len(p) / p.sum(0))
    heavy = w > 1
    own = np.arange(width, dtype=np.int32)[:, None]
    column = 2**32 // width
    excess = np.maximum(w - 1, 0)
    lack = np.zeros(
        (width + 2, rows)
    )  # lack[i] = D_{i−1}; the last row is for an i that is not found
    np.maximum(1 - w, 0, out=lack[1:-1])
    for i in range(1, width):
        excess[i] += excess[i - 1]
        lack[i + 1] += lack[i]
    filled = excess * heavy + lack[:width] * ~heavy
    alias, closed = np.zeros((2, width, rows), np.int32)
    for e, d in zip(excess, lack[1:]):
        alias += e <= filled
        closed += d < excess
    closed = (closed + 1) * np.int64(rows) + np.arange(rows)  # where in lack the first D ≥ E_i is
    keep = np.where(heavy, 1 + excess - lack.ravel().take(closed), w)
    last = alias == width  # nothing but rounding is left to give
    keep[last] = 1
    alias = np.where(last, own, alias)
    threshold = np.rint(np.minimum(keep, 1) * column) + own * float(column)
    return np.minimum(threshold, 2**32 - 1).astype(np.uint32), alias


def rollout(rng, mdps, log_pi, episodes, *, steps=None, threads=1, max_bytes=None):
    """Sample `episodes` = K episodes per task under log π (S, A) or (N, S, A): Episodes with axes (T, N, K), T = mdps.horizon.
    `steps` below the horizon truncates. 13 bytes per step: states and actions int32, rewards float32, mask bool. The resolution of a
    probability is that of `sampling_tables`, of a start state N·2⁻⁵², of a reward float32's. `log_pi` may also be the SamplingTables made
    from it. With several threads chunks of lanes run side by side; the numbers are the same. More than max_bytes (8 GiB) are refused.
    """
    check(rng=rng, mdps=mdps)
    steps = mdps.horizon if steps is None else steps
    check(episodes=episodes, threads=threads, steps=steps)
    require(1 <= steps <= mdps.horizon, "steps", f"{steps} is outside 1..horizon = {mdps.horizon}")
    require_memory(13, steps, len(mdps), episodes, max_bytes=max_bytes)
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
