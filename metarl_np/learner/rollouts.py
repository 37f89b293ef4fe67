"""Episodes, and the loop over time that records them: the hot core.

Python runs once for each time step; tasks and episodes are array axes, whose pairs (task, episode)
are called lanes. In words, a step of one lane in state s is

    take a random number of 32 bits; its high bits name a column of s's alias table
    if the number is below the column's threshold the outcome is the column's own, else its alias
    write down s, and the outcome's action and reward
    go on in the outcome's successor

Where a step has many outcomes the action is drawn first, and the successor then, each in this way
(see `alias`).
The lanes are run a chunk at a time, so that what a chunk needs stays in the cache.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, partial
from math import prod

import numpy as np

from metarl_np.arguments import (
    Record,
    harmless,
    require,
    require_array,
    require_floats,
    require_flags,
    require_index,
    require_mask,
    require_memory,
    require_shapes,
    set_fields,
    trusted,
    validate,
)
from metarl_np.learner.alias import SamplingTables, sampling_tables

CHUNK = 65_536  # lanes; with fewer, threads would wait for Python's lock more than they work
# lanes · steps that are looked up together. Of a whole chunk it is one step: where it is a part of
# the lanes its rows in the record do not lie side by side, and NumPy would write them twice
BLOCK = 130_000


@dataclass(frozen=True, eq=False)
class Episodes(Record):
    """K episodes of T steps in each of N tasks.

    Steps after a terminal state are masked. What stands there does not matter: NaN, −1 or a state
    that does not exist becomes 0. Raises ValueError on arrays that do not fit each other, on what
    is no mask, and on states or actions that do not exist.
    """

    states: np.ndarray  # (T, N, K) s_t
    actions: np.ndarray  # (T, N, K) a_t
    rewards: np.ndarray  # (T, N, K) r_t, paid for leaving s_t by a_t
    # (T, N, K) bool: s_t is not terminal, the step was really taken; numbers 0 and 1 will do
    mask: np.ndarray
    log_pi: np.ndarray  # (N, S, A) log π of the policy that acted; None where that is not known
    last_states: np.ndarray  # (N, K) s_T, which is the terminal state if there was one
    truncated: np.ndarray  # (N, K) bool: cut before the horizon and before a terminal state

    def __post_init__(self):
        states = require_array("states", self.states, kinds="iu")
        shape = states.shape
        require(len(shape) == 3, "states", f"expected shape (T, N, K), got {shape}")
        mask = require_mask(self.mask, shape)
        actions = require_array("actions", self.actions, shape, kinds="iu")
        rewards = require_floats("rewards", self.rewards, shape, single=True)
        by_episode = shape[1:]
        n_states = n_actions = np.inf  # only log π tells
        if self.log_pi is not None:
            log_pi = require_floats("log_pi", self.log_pi)
            fits = log_pi.ndim == 3 and len(log_pi) == shape[1]
            expected = f"expected shape (N, S, A) with N = {shape[1]}, got {log_pi.shape}"
            require(fits, "log_pi", expected)
            n_states, n_actions = log_pi.shape[1:]
            set_fields(self, log_pi=log_pi)
        _require_inside("states", states, n_states, mask)
        _require_inside("actions", actions, n_actions, mask)
        if self.last_states is not None:
            last = require_array("last_states", self.last_states, by_episode, kinds="iu")
            set_fields(self, last_states=last)
        if self.truncated is not None:
            axes = ("task", "episode")
            truncated = require_flags("truncated", self.truncated, by_episode, axes=axes)
            set_fields(self, truncated=truncated)
            if self.last_states is not None:
                _require_inside("last_states", self.last_states, n_states, truncated)
        # a rollout records the terminal state, which stays where it is known to be a state
        terminal = False
        if self.log_pi is not None:
            terminal = (states == self.last_states) & (states >= 0) & (states < n_states)
        set_fields(
            self,
            states=harmless(states, mask | terminal),
            actions=harmless(actions, mask),
            rewards=harmless(rewards, mask),
            mask=mask,
        )

    def part(self, episodes=slice(None), tasks=slice(None)):
        """Only these of the K episodes and of the N tasks, slices or index arrays: Episodes."""
        _, n_tasks, n_episodes = self.states.shape
        tasks = require_index("tasks", tasks, n_tasks)
        episodes = require_index("episodes", episodes, n_episodes)
        cut = {}
        for field in fields(self):
            x = getattr(self, field.name)
            if x is not None:
                x = x[tasks] if field.name == "log_pi" else x[..., tasks, :][..., episodes]
            cut[field.name] = x
        return trusted(type(self), **cut)

    @cached_property
    def log_probs(self):
        """log π(a_t|s_t) when it was sampled, (T, N, K) float32; None if that is not known."""
        if self.log_pi is None:
            return None
        task = np.arange(self.states.shape[1])[:, None]
        return self.log_pi.astype(np.float32)[task, self.states, self.actions]


def _require_inside(name, x, size, mask):
    """Raise ValueError unless x, (T, N, K) or (N, K), is one of 0 … size − 1 where unmasked."""
    inside = (x >= 0) & (x < size) | ~mask
    require(inside, name, f"outside 0..{size - 1}", ("time", "task", "episode")[-x.ndim :])


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a rollout reads and writes, for all lanes or for a chunk of them."""

    state: np.ndarray  # (lanes,) int32: s_0, and s_T when the rollout is over
    first_row: np.ndarray  # (lanes,) S·task: state s has row first_row + s in the tables
    noise: np.ndarray  # (lanes,) float32: standard deviation of the reward's noise
    states: np.ndarray  # (T, lanes) int32
    actions: np.ndarray  # (T, lanes) int32
    rewards: np.ndarray  # (T, lanes) float32
    mask: np.ndarray  # (T, lanes) bool

    def part(self, lanes):
        """Views of these lanes, a slice."""
        return _Lanes(*(x[..., lanes] for x in vars(self).values()))


def rollout(rng, mdps, log_pi, episodes, *, steps=None, threads=1):
    """Episodes, K = `episodes` in each task, sampled under log π (S, A) or (N, S, A).

    log_pi may also be the SamplingTables made from it. steps: the number of time steps T,
    mdps.horizon by default; fewer truncate. threads: how many chunks of lanes run side by side; the
    numbers, which follow from the state of rng, are the same. The resolution of a probability is
    that of `sampling_tables`, of a start state N·2⁻⁵², of a reward float32's. Raises ValueError on
    bad arguments and on more than MAX_BYTES, at 13 bytes a step.
    """
    validate(rng=rng, mdps=mdps)
    episodes, threads = validate(episodes=episodes, threads=threads)
    steps = mdps.horizon if steps is None else validate(steps=steps)
    outside = f"{steps} is outside 1..horizon = {mdps.horizon}"
    require(1 <= steps <= mdps.horizon, "steps", outside)
    require_memory(13, steps, len(mdps), episodes)
    tables = log_pi if isinstance(log_pi, SamplingTables) else sampling_tables(mdps, log_pi)
    made = tables.mdps.shape
    others = f"tables made for other tasks, (N, S, A) = {made}, where these are {mdps.shape}"
    require(tables.fit(mdps), "log_pi", others)

    n_lanes = len(mdps) * episodes
    lanes = _lanes_at_start(rng, mdps, tables, shape=(steps, n_lanes))
    chunks = [lanes.part(slice(i, i + CHUNK)) for i in range(0, n_lanes, CHUNK)]
    generators = _generators(rng, len(chunks))
    run = partial(_run, tables)
    if min(threads, len(chunks)) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, generators, chunks))  # a list: it raises what a thread has raised
    else:
        for generator, chunk in zip(generators, chunks):
            run(generator, chunk)

    by_episode = (steps, len(mdps), episodes)
    last_states = lanes.state.reshape(by_episode[1:])
    ended = mdps.terminal[np.arange(len(mdps))[:, None], last_states]
    return trusted(
        Episodes,
        states=lanes.states.reshape(by_episode),
        actions=lanes.actions.reshape(by_episode),
        rewards=lanes.rewards.reshape(by_episode),
        mask=lanes.mask.reshape(by_episode),
        log_pi=tables.log_pi,
        last_states=last_states,
        truncated=(steps < mdps.horizon) & ~ended,
    )


def _generators(rng, n_chunks):
    """A generator for each chunk, so that its numbers do not depend on who runs it, or when.

    A single chunk takes rng itself: to make another one costs as much as a small rollout. Else the
    seeds, of 128 bits, are drawn from rng. (`rng.spawn` would make them from the seed of rng alone,
    however far rng has moved on.)
    """
    if n_chunks == 1:
        return [rng]
    seeds = rng.integers(2**64, size=(n_chunks, 2), dtype=np.uint64)
    return [np.random.default_rng(seed) for seed in seeds]


def _lanes_at_start(rng, mdps, tables, *, shape):
    """_Lanes in their first states, and the rows to be written; shape: (T, lanes)."""
    n_tasks, n_states, _ = mdps.shape
    episodes = shape[1] // n_tasks
    task = np.repeat(np.arange(n_tasks), episodes)  # of each lane
    return _Lanes(
        state=_first_states(rng, mdps, episodes),
        first_row=n_states * task,
        noise=mdps.reward_noise.astype(np.float32)[task],
        states=np.empty(shape, np.int32),
        actions=np.empty(shape, np.int32),
        rewards=np.empty(shape, np.float32),
        mask=(np.broadcast_to(True, shape) if tables.alive is None else np.empty(shape, bool)),
    )


def _first_states(rng, mdps, episodes):
    """s_0 of every lane, drawn by inversion: (N·K,) int32.

    The cumulative probabilities of task i's start states, with i added, lie in (i, i + 1]. So those
    of all tasks are one sorted array, and one search in it serves all lanes.
    """
    states, chances = mdps.start_support
    if states.shape[1] == 1:  # each task has only one
        return np.repeat(states.astype(np.int32), episodes)
    task = np.arange(len(mdps))[:, None]
    cumulative = np.cumsum(chances, 1)
    cumulative = cumulative / cumulative[:, -1:] + task
    u = rng.random((len(mdps), episodes)) + task
    u = np.minimum(u, np.nextafter(task + 1, 0))  # rounding must not lead into the next task
    place = np.searchsorted(cumulative.ravel(), u.ravel(), side="right")
    return states.ravel()[place].astype(np.int32)


def _run(tables, rng, lanes):
    """All steps of a chunk of lanes, which are written into it.

    The inner loop, over time steps, does only what the next step needs: the draws. States, actions
    and rewards are looked up afterwards, for a block of steps at a time: where there are few lanes
    a NumPy call costs more than its work, and so the steps of a block share these calls.
    """
    draws = tables.draws
    row_bits = draws[0].width_bits
    row_start = (lanes.first_row + lanes.state) << row_bits  # see AliasTables
    steps, n_lanes = lanes.states.shape
    block = min(steps, max(1, BLOCK // n_lanes))
    u = np.empty((block, len(draws), n_lanes), np.int64)
    cells = np.empty_like(u)
    noisy = lanes.noise.any()
    for t in range(0, steps, block):
        now = slice(t, t + block)
        u = u[: steps - t]  # shorter at the end
        cells = cells[: steps - t]
        u[:] = _random_bits(rng, u.shape)
        for i, draw in enumerate(draws):
            # places first, of which the draws make cells
            np.right_shift(u[:, i], 32 - draw.width_bits, out=cells[:, i])
        for u_t, cells_t in zip(u, cells):
            for draw, u_of_draw, cells_of_draw in zip(draws, u_t, cells_t):
                draw.draw(u_of_draw, cells_of_draw, row_start)
        first = cells[:, 0]  # of each step's first draw, and of its last
        last = cells[:, -1]
        # written where the states belong, which are a part of it
        pair = tables.pairs.take(first, out=lanes.states[now], mode="wrap")
        np.bitwise_and(pair, (1 << tables.action_bits) - 1, out=lanes.actions[now])
        np.right_shift(pair, tables.action_bits, out=pair)
        tables.rewards.take(last, out=lanes.rewards[now], mode="wrap")
        if tables.alive is not None:
            tables.alive.take(first, out=lanes.mask[now], mode="wrap")
        if noisy:
            z = rng.standard_normal(last.shape, np.float32)
            lanes.rewards[now] += lanes.noise * z * lanes.mask[now]
    lanes.state[:] = (row_start >> row_bits) - lanes.first_row


def _random_bits(rng, shape):
    """Random numbers of 32 bits: (…) uint32.

    A generator makes 64 bits at a time, and each half is one number.
    """
    size = prod(shape)
    pairs = rng.integers(2**64, size=(size + 1) // 2, dtype=np.uint64)
    return pairs.view(np.uint32)[:size].reshape(shape)


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
    require_shapes((n_tasks,), states=states, actions=actions)
    state_row = np.arange(n_tasks) * n_states + np.asarray(states, int)
    row = state_row * n_actions + np.asarray(actions, int)
    slot = (table[row] <= rng.random((n_tasks, 1))).sum(1)
    entry = row * n_slots + slot
    rewards = mdps.rewards.ravel()[entry]
    if mdps.reward_noise.any():
        alive = ~mdps.terminal.ravel()[state_row]
        rewards = rewards + mdps.reward_noise * rng.standard_normal(n_tasks) * alive
    return rewards, mdps.successors.ravel()[entry]
