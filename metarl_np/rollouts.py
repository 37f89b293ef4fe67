"""Batched sampling of episodes: the hot core. Python runs once per time step; tasks and episodes are array axes.
One 32-bit random number per step decides the action and the successor together. For each (task, state) the A·Z joint outcomes, of
probability π(a|s) P(z|s,a), are laid out as an alias table (Walker 1977; Vose 1991): W columns (a power of two) of equal probability, each
split by one threshold between two outcomes. The number's high bits name the column, and it is compared with the threshold; the reward,
the action and the next state are then a look-up each, in rows that fit in the cache: lanes (task, episode) are run a chunk at a time."""

from dataclasses import dataclass

import numpy as np

from metarl_np.mdp import require, require_log_pi
from metarl_np.returns import Episodes

CHUNK = 8192  # lanes whose working rows fit in a core's cache


@dataclass(frozen=True, eq=False)
class SamplingTables:
    """What a step looks up: by column b = row·W + column, or by cell c = 2b + (number below the threshold)."""
    log_pi: np.ndarray  # (N, S, A)
    width_bits: int  # log2 W
    thresholds: np.ndarray  # (N·S·W) uint32
    next_row: np.ndarray  # (N·S·W·2) int64: W · (row of the next state)
    rewards: np.ndarray  # (N·S·W·2) float32
    actions: np.ndarray  # (N·S·W·2) int32
    start: tuple  # start states (N, B) and their cumulative probabilities + task (N·B)
    alive: np.ndarray  # (N·S) bool: not terminal; None where nothing is


def sampling_tables(mdps, log_pi):
    """Alias tables of the joint (action, successor) outcomes of `mdps` under log π (S, A) or (N, S, A). Raises ValueError if it is not one.
    A probability is kept to within W·2⁻³³, W < 2AZ; what has probability zero never happens."""
    n, s, a, z = mdps.successors.shape
    require_log_pi(log_pi, (n, s, a))
    bits = max(1, (a * z - 1).bit_length())
    joint = np.zeros((n, s, 1 << bits))
    np.multiply(np.exp(log_pi)[..., None], mdps.probabilities, out=joint[..., : a * z].reshape(n, s, a, z))
    thresholds, alias = _alias_tables(joint.reshape(n * s, -1))
    outcome = np.stack([alias, np.broadcast_to(np.arange(1 << bits), alias.shape)], -1).reshape(n * s, -1)
    outcome = np.minimum(outcome, a * z - 1)  # a padding column's own outcome is never drawn
    flat = outcome + (np.arange(n * s) * (a * z))[:, None]
    states, chances = mdps.start_support
    cumulative = np.cumsum(chances, 1)
    cumulative = cumulative / cumulative[:, -1:] + np.arange(n)[:, None]
    return SamplingTables(
        np.broadcast_to(log_pi, (n, s, a)), bits, thresholds.ravel(), mdps.next_rows.ravel()[flat].ravel() << bits,
        mdps.rewards.ravel()[flat].ravel().astype(np.float32), (outcome // z).ravel().astype(np.int32),
        (states, cumulative.ravel()), ~mdps.terminal.ravel() if mdps.terminal.any() else None)


def _alias_tables(p):
    """p (R, W) rows of probabilities, W a power of two → thresholds (R, W) uint32, aliases (R, W).
    Columns are sorted by weight w = W·p; the light ones (w < 1) are filled up, from the left, by the open heavy one, whose rest shrinks by
    1 − w each time; once that is below 1 it is filled up itself, by the next heavy one to its left."""
    rows, width = p.shape
    order = np.argsort(p, axis=1)
    w = np.take_along_axis(p, order, 1) * (width / p.sum(1, keepdims=True))
    r = np.arange(rows) * width
    light, heavy = r.copy(), r + width - 1
    keep, partner = np.ones(rows * width), np.arange(rows * width)
    w, rest = w.ravel(), w[:, -1].copy()
    for _ in range(width - 1):
        fill = rest >= 1
        other = np.where(fill, light, heavy - 1)
        closed = np.where(fill, light, heavy)
        keep[closed] = np.where(fill, w[other], rest)
        partner[closed] = np.where(fill, heavy, other)
        rest += w[other] - 1
        light += fill
        heavy -= ~fill
    threshold, alias = np.empty((rows, width)), np.empty((rows, width), np.int64)
    np.put_along_axis(threshold, order, keep.reshape(rows, width), 1)
    np.put_along_axis(alias, order, np.take_along_axis(order, partner.reshape(rows, width) - r[:, None], 1), 1)
    column = 2**32 // width
    threshold = np.arange(width) * column + np.rint(np.clip(threshold, 0, 1) * column)
    return np.minimum(threshold, 2**32 - 1).astype(np.uint32), alias


def rollout(rng, mdps, log_pi, episodes, *, steps=None):
    """Sample `episodes` = K episodes per task under log π (S, A) or (N, S, A): Episodes with axes (T, N, K), T = mdps.horizon.
    `steps` below the horizon truncates. 13 bytes per step: states and actions int32, rewards float32, mask bool. The resolution of a
    probability is that of `sampling_tables`, of a start state N·2⁻⁵², of a reward float32's. `log_pi` may also be the SamplingTables made
    from it. Raises ValueError on a policy that is not one, K < 1, or steps outside 1..horizon."""
    steps = mdps.horizon if steps is None else steps
    require(1 <= steps <= mdps.horizon, "steps", f"{steps} is outside 1..horizon = {mdps.horizon}")
    require(episodes >= 1, "episodes", f"{episodes} is less than 1")
    tables = log_pi if isinstance(log_pi, SamplingTables) else sampling_tables(mdps, log_pi)
    (n, s, _), lanes, made = mdps.shape, mdps.shape[0] * episodes, tables.log_pi.shape
    require(made == mdps.shape, "log_pi", f"tables made for (N, S, A) = {made}, the tasks are {mdps.shape}")
    states, actions = np.empty((steps, lanes), np.int32), np.empty((steps, lanes), np.int32)
    rewards, last = np.empty((steps, lanes), np.float32), np.empty(lanes, np.int32)
    mask = np.broadcast_to(True, (steps, lanes)) if tables.alive is None else np.empty((steps, lanes), bool)
    first, cumulative = tables.start
    if first.shape[1] == 1:
        first = np.repeat(first.astype(np.int32), episodes)
    else:  # by inversion of each task's cumulative distribution, in one sorted array
        task = np.arange(n)[:, None]
        u = np.minimum(rng.random((n, episodes)) + task, np.nextafter(task + 1, 0))
        first = first.ravel()[np.searchsorted(cumulative, u.ravel(), side="right")].astype(np.int32)
    chunks = range(0, lanes, CHUNK)
    for low, child in zip(chunks, rng.spawn(len(chunks))):  # a chunk's numbers do not depend on who runs it
        part = slice(low, low + CHUNK)
        task = np.arange(low, min(low + CHUNK, lanes)) // episodes
        rows = (x[..., part] for x in (states, actions, rewards, mask, last))
        _run(child, tables, first[part], task * s, mdps.reward_noise[task], *rows)
    last = last.reshape(n, episodes)
    truncated = (steps < mdps.horizon) & ~np.take_along_axis(mdps.terminal, last, 1)
    return Episodes(*(x.reshape(steps, n, episodes) for x in (states, actions, rewards, mask)), tables.log_pi, last, truncated)


def _run(rng, tables, first, offset, noise, states, actions, rewards, mask, last):
    """One chunk of lanes for all steps, written into the rows of the last five arguments; offset is a lane's task · S."""
    (steps, lanes), bits = states.shape, tables.width_bits
    row = (first + offset) << bits  # W · (task · S + state)
    column, threshold = np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
    cell, below = np.empty(lanes, np.int64), np.empty(lanes, bool)
    noise = noise.astype(np.float32) if noise.any() else None
    block = max(1, 2 * CHUNK // lanes)  # small batches draw the numbers of several steps in one call
    for t in range(steps):
        if t % block == 0:
            draws = min(block, steps - t)
            random = rng.integers(2**64, size=(draws * lanes + 1) // 2, dtype=np.uint64)
            random = random.view(np.uint32)[:draws * lanes].reshape(draws, lanes)
        u = random[t % block]
        np.right_shift(row, bits, out=cell)
        np.subtract(cell, offset, out=states[t], casting="unsafe")
        if tables.alive is not None:
            tables.alive.take(cell, out=mask[t], mode="wrap")  # "wrap": with "raise" and out, numpy copies
        np.right_shift(u, 32 - bits, out=column)
        np.add(row, column, out=cell)
        tables.thresholds.take(cell, out=threshold, mode="wrap")
        np.less(u, threshold, out=below)
        np.add(cell, cell, out=cell)
        np.add(cell, below, out=cell)
        tables.actions.take(cell, out=actions[t], mode="wrap")
        tables.rewards.take(cell, out=rewards[t], mode="wrap")
        tables.next_row.take(cell, out=row, mode="wrap")
        if noise is not None:
            rewards[t] += noise * rng.standard_normal(lanes, np.float32) * mask[t]
    np.right_shift(row, bits, out=cell)
    np.subtract(cell, offset, out=last, casting="unsafe")


def successor_table(mdps):
    """Σ_{z'≤z} P(z'|s, a), a row for each (task, state, action): (N·S·A, Z). What `step` looks up."""
    cumulative = np.cumsum(mdps.probabilities, -1)
    return (cumulative / cumulative[..., -1:]).reshape(-1, cumulative.shape[-1])


def step(rng, mdps, table, states, actions):
    """One step in each of N tasks, for policies with a memory: s, a (N,) → (r (N,), s' (N,)). table: `successor_table(mdps)`.

    The policy has drawn its action; the successor follows by inversion. The reward of a terminal state is 0, without noise.
    """
    n, s, a, z = mdps.successors.shape
    row = (np.arange(n) * s + states) * a + actions
    cell = row * z + (table[row] <= rng.random((n, 1))).sum(1)
    rewards = mdps.rewards.ravel()[cell]
    if mdps.reward_noise.any():
        rewards = rewards + mdps.reward_noise * rng.standard_normal(n) * ~mdps.terminal.ravel()[np.arange(n) * s + states]
    return rewards, mdps.successors.ravel()[cell]
