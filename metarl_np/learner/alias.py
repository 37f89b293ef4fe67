"""Batched sampling of episodes: the hot core. Python runs once per time step; tasks and episodes are array axes.
One 32-bit random number per step decides the action and the successor together. For each (task, state) the A·Z joint outcomes, of
probability π(a|s) P(z|s,a), are laid out as an alias table (Walker 1977; Vose 1991): W columns (a power of two) of equal probability, each
split by one threshold between two outcomes. The number's high bits name the column, and it is compared with the threshold; the reward,
the action and the next state are then a look-up each, in rows that fit in the cache: lanes (task, episode) are run a chunk at a time.
"""

from dataclasses import dataclass

import numpy as np

from metarl_np.tasks.mdp import require_log_pi


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
