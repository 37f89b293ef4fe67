"""The tabular Markov decision process: N tasks (S, A, P, R, γ) in one read-only object."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from metarl_np.arguments import (
    Record,
    notrace_primitive,
    read_only,
    require,
    require_array,
    require_floats,
    require_index,
    require_memory,
    require_shapes,
    set_fields,
    trusted,
    validate,
    validate_fields,
)

LARGEST = 1e37  # of a reward: the sampler's are float32
# by which a distribution's sum may differ from one: float32 arrays are welcome, float16 ones too,
# for which `rounding` allows more
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class MDP(Record):
    """N finite MDPs of one size, as successor lists.

    P is sparse: for each (s, a) it has Z entries, a successor s', its probability and the reward.
    Two entries may have the same s' and different rewards: a Bernoulli reward is two successors. A
    terminal state is absorbing and pays nothing; reaching the horizon T ends an episode too. Sutton
    & Barto (2018), §3.1.

    The arrays are read-only copies. Raises ValueError, naming argument, task and state, if these
    are no MDPs.
    """

    successors: np.ndarray  # (N, S, A, Z) next state s'
    probabilities: np.ndarray  # (N, S, A, Z) P(z | s, a)
    rewards: np.ndarray  # (N, S, A, Z) r(s, a, z)
    start: np.ndarray  # (N, S) distribution of s_0; never a terminal state
    terminal: np.ndarray  # (N, S) bool
    discount: float  # γ in [0, 1]
    horizon: int  # T, time steps in an episode
    # (N,) or a scalar: standard deviation of the Gaussian noise that the sampler adds to a reward
    reward_noise: np.ndarray = 0.0

    def __post_init__(self):
        validate_fields(self, "discount", "horizon")
        z = require_array("successors", self.successors, kinds="iu")
        four_axes = f"expected shape (N, S, A, Z) with no empty axis, got {z.shape}"
        require(z.ndim == 4 and z.size, "successors", four_axes)
        n_tasks, n_states = z.shape[:2]
        by_state = (n_tasks, n_states)
        inside = (z >= 0) & (z < n_states)
        require(inside, "successors", f"a successor outside 0..{n_states - 1}")

        p = _distribution("probabilities", self.probabilities, z.shape)
        start = _distribution("start", self.start, by_state)
        r = require_floats("rewards", self.rewards, z.shape, traced=False)
        require(abs(r) <= LARGEST, "rewards", f"not finite or above {LARGEST}")
        end = require_array("terminal", self.terminal, by_state)
        require(np.isin(end, (0, 1)), "terminal", "expected a flag per state, true or false")
        noise = require_floats("reward_noise", self.reward_noise, (n_tasks,), (), traced=False)
        limits = f"negative or not finite, or above {LARGEST}"
        require((noise >= 0) & (noise <= LARGEST), "reward_noise", limits)

        starts_alive = (start == 0) | (end == 0)
        require(starts_alive, "start", "probability on a terminal state: that episode has no step")
        stays = (z == np.arange(n_states)[:, None, None]) & (r == 0)
        absorbing = (p == 0) | stays | (end == 0)[..., None, None]
        require(absorbing, "terminal", "a terminal state must be absorbing and pay 0")
        set_fields(
            self,
            successors=read_only(np.array(z, np.int32)),
            probabilities=read_only(p),
            rewards=read_only(np.array(r, float)),
            start=read_only(start),
            terminal=read_only(np.array(end, bool)),
            reward_noise=read_only(np.array(np.broadcast_to(noise, n_tasks), float)),
        )

    @classmethod
    def from_dense(cls, P, R, start, *, discount, horizon, terminal=False, reward_noise=0.0):
        """MDP of one task from P (S, A, S), or of N tasks from P (N, S, A, S).

        R: (S, A) or (S, A, S), or with N in front, like P. start: a state, or a distribution (S,)
        or (N, S). terminal: bool, (S,) or (N, S). discount, horizon and reward_noise are those of
        an MDP. Raises ValueError as an MDP does.
        """
        P = require_array("P", P)
        R = require_array("R", R)
        dense = P.ndim in (3, 4) and P.shape[-1] == P.shape[-3] and P.size
        require(dense, "P", f"of shape {P.shape}, not (S, A, S) or (N, S, A, S)")
        require_shapes(P.shape[:-1], P.shape, R=R)
        if R.ndim < P.ndim:
            R = R[..., None]
        R = np.broadcast_to(R, P.shape)
        if P.ndim == 3:
            P = P[None]
            R = R[None]
        _require_distribution("P", P, rounding(P))
        require(np.isfinite(R), "R", "not finite")
        n_tasks, n_states = P.shape[:2]
        possible = P != 0
        first = np.argsort(~possible, axis=-1, kind="stable")  # what can happen comes first
        successors = first[..., : possible.sum(-1).max()]
        return cls(
            successors=successors,
            probabilities=np.take_along_axis(P, successors, -1),
            rewards=np.take_along_axis(np.where(possible, R, 0.0), successors, -1),
            start=per_state("start", start, n_tasks, n_states),
            terminal=per_state("terminal", terminal, n_tasks, n_states),
            discount=discount,
            horizon=horizon,
            reward_noise=reward_noise,
        )

    @property
    def shape(self):
        """(N, S, A): the numbers of tasks, states and actions."""
        return self.successors.shape[:3]

    @cached_property
    def expected_rewards(self):
        """R̄(s, a) = Σ_z P(z|s, a) r(s, a, z): (N, S, A)."""
        return read_only(np.einsum("nsaz,nsaz->nsa", self.probabilities, self.rewards))

    @cached_property
    def next_rows(self):
        """S·task + s', the place of each successor in a flat array (N·S,): (N, S, A, Z)."""
        first_row = self.shape[1] * np.arange(len(self))
        return read_only(self.successors + first_row[:, None, None, None])

    @cached_property
    def start_support(self):
        """The start states of each task and their probabilities: (N, B) each.

        B is the largest number that a task has; the others are filled up with probability 0.
        """
        possible = self.start > 0
        first = np.argsort(~possible, axis=1, kind="stable")
        states = first[:, : possible.sum(1).max()]
        return read_only(states), read_only(np.take_along_axis(self.start, states, 1))

    def __len__(self):
        return len(self.successors)

    def __getitem__(self, tasks):
        """The MDP of some of the tasks: an integer, a slice, a list or a mask, of one at least."""
        tasks = np.atleast_1d(np.arange(len(self))[require_index("tasks", tasks, len(self))])
        some = tasks.size and tasks.ndim == 1
        require(some, "tasks", f"expected one axis and at least one task, got shape {tasks.shape}")
        part = {}
        for field in fields(self):
            x = getattr(self, field.name)
            part[field.name] = read_only(x[tasks]) if isinstance(x, np.ndarray) else x
        return trusted(MDP, **part)

    def with_time(self):
        """The same MDPs with the time in the state, t·S + s for t = 0 … T: S' = (T + 1)·S.

        The states at T are terminal. A policy on it may depend on time, as the optimal one for a
        finite horizon does. The original state is s' mod S.
        """
        n_states = self.shape[1]
        copies = self.horizon + 1
        require_memory(40, copies, self.successors.size)

        def at_all_times(x):
            return np.concatenate([x] * copies, 1)

        terminal = at_all_times(self.terminal)
        terminal[:, -n_states:] = True
        own = np.arange(copies * n_states)[:, None, None]
        following = at_all_times(self.successors) + (own // n_states + 1) * n_states
        end = terminal[..., None, None]
        return replace(
            self,
            successors=np.where(end, own, following),
            probabilities=at_all_times(self.probabilities),
            rewards=np.where(end, 0.0, at_all_times(self.rewards)),
            start=np.pad(self.start, ((0, 0), (0, self.horizon * n_states))),
            terminal=terminal,
        )

    def auto_reset(self):
        """The continuing MDPs: what leads to a terminal state leads to a start state instead.

        The reward is kept, and no state is terminal. Each successor becomes B entries, B being the
        largest number of start states that a task has: so a step of the sampler costs the same.
        """
        starts, chances = self.start_support
        n_starts = starts.shape[1]
        starts = starts[:, None, None, None]  # (N, 1, 1, 1, B)
        chances = chances[:, None, None, None]
        ends = self.terminal.ravel()[self.next_rows] & ~self.terminal[..., None, None]
        ends = ends[..., None]
        only_first = np.arange(n_starts) == 0  # what does not end uses one of its B entries
        successors = np.where(ends, starts, self.successors[..., None])
        probabilities = self.probabilities[..., None] * np.where(ends, chances, only_first)
        by_slot = self.shape + (-1,)
        return replace(
            self,
            successors=successors.reshape(by_slot),
            probabilities=probabilities.reshape(by_slot),
            rewards=np.repeat(self.rewards, n_starts, -1),
            terminal=np.zeros_like(self.terminal),
        )


def rounding(p):
    """How far from one the sums of probabilities p (…, S) may be, by the type that they come in."""
    dtype = getattr(p, "dtype", np.dtype(float))
    return max(ROUNDING, 8 * float(np.finfo(dtype).eps)) if dtype.kind == "f" else ROUNDING


def _require_distribution(name, p, error):
    require(p >= 0, name, "negative or NaN")
    # NumPy itself would add up float32 numbers in float32
    require(abs(p.sum(-1, dtype=float) - 1) < error, name, "does not sum to one")


def _distribution(name, p, shape):
    """The probabilities as float64, with what rounding left of one shared out."""
    given = require_array(name, p, shape)
    p = np.array(given, float)
    _require_distribution(name, p, rounding(given))
    return p / p.sum(-1, keepdims=True)


def per_state(name, x, n_tasks, n_states):
    """As (N, S) what is a scalar, (S,) or (N, S); a scalar `start` is a state."""
    x = require_array(name, x, (), (n_states,), (n_tasks, n_states))
    if name == "start" and x.ndim == 0:
        is_state = x.dtype.kind == "i" and x in range(n_states)
        require(is_state, name, f"state {x} outside 0..{n_states - 1}")
        x = np.arange(n_states) == x
    return np.broadcast_to(x, (n_tasks, n_states))


def require_log_pi(log_pi, mdps):
    """log_pi as float64; raises ValueError, naming task and state, if it is none for the tasks.

    log_pi: log-probabilities (S, A), shared by the tasks, or (N, S, A).
    """
    validate(mdps=mdps)
    floats = require_floats("log_pi", log_pi, mdps.shape[1:], mdps.shape)
    _require_log_distribution(floats, mdps.shape, rounding(log_pi))
    return floats


@notrace_primitive
def _require_log_distribution(log_pi, shape, error):
    pi = np.exp(np.minimum(log_pi, 1.0))  # a log-probability above 0 is wrong: no need to overflow
    total = pi @ np.ones(shape[-1])  # ten times as fast as a sum over a short last axis
    good = np.broadcast_to(abs(total - 1) < error, shape[:2])
    require(good, "log_pi", "not log-probabilities; are the parameters finite?")


def for_each_task(x, n_tasks):
    """What all tasks share, once for each of them: (·, ·) or (N, ·, ·) → (N, ·, ·).

    Zeros of the wanted shape are added, since autograd has no derivative of a `broadcast_to`
    with a new leading axis.
    """
    return x + np.zeros((n_tasks, 1, 1))
