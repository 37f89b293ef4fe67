"""The tabular Markov decision process: a batch of N tasks (S, A, P, R, γ) in one read-only object."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from autograd.extend import notrace_primitive

from metarl_np.arguments import require, require_array, require_memory, require_shapes, validate

LARGEST = 1e37  # of a reward: the sampler's are float32


@notrace_primitive
def require_log_pi(log_pi, mdps):
    """Raise ValueError, naming task and state, unless log_pi (S, A) or (N, S, A) are log-probabilities for these tasks."""
    validate(mdps=mdps)
    shape, log_pi = mdps.shape, require_array("log_pi", log_pi, mdps.shape[1:], mdps.shape)
    total = np.exp(np.minimum(log_pi, 1.0)) @ np.ones(
        shape[2]
    )  # a product: a sum over a short last axis takes ten times as long
    require(
        np.broadcast_to(abs(total - 1) < 1e-6, shape[:2]),
        "log_pi",
        "not log-probabilities; are the parameters finite?",
    )


def for_each_task(x, n_tasks):
    """What all tasks share, once for each of them: (·, ·) or (N, ·, ·) → (N, ·, ·).

    Zeros of the wanted shape are added, since autograd has no derivative of a `broadcast_to`
    with a new leading axis.
    """
    return x + np.zeros((n_tasks, 1, 1))


@dataclass(frozen=True, eq=False)
class MDP:
    """N finite MDPs of one size, as successor lists: from (s, a) the z-th of Z successors follows with its probability.
    A terminal state is absorbing and pays nothing; reaching the horizon T ends an episode too. Entries of one next state may differ in
    reward: a Bernoulli reward is two successors. Raises ValueError (argument, task, state) if it is no MDP. Sutton & Barto (2018), §3.1.
    """

    successors: np.ndarray  # (N, S, A, Z) next state s'
    probabilities: np.ndarray  # (N, S, A, Z) P(z | s, a)
    rewards: np.ndarray  # (N, S, A, Z) r(s, a, z)
    start: np.ndarray  # (N, S) distribution of s_0; never a terminal state
    terminal: np.ndarray  # (N, S) bool
    discount: float  # γ in [0, 1]
    horizon: int  # T, time steps in an episode
    reward_noise: np.ndarray = (
        0.0  # (N,) or a scalar: standard deviation of Gaussian noise that the sampler adds to a reward
    )
    shape = property(lambda self: self.successors.shape[:3])  # (N, S, A): tasks, states, actions

    def __post_init__(self):
        z = require_array("successors", self.successors, kinds="iu")
        require(
            z.ndim == 4 and z.size,
            "successors",
            f"expected shape (N, S, A, Z) with no empty axis, got {z.shape}",
        )
        n, s = z.shape[:2]
        require((z >= 0) & (z < s), "successors", f"a successor outside 0..{s - 1}")
        shapes = dict(
            probabilities=[z.shape],
            rewards=[z.shape],
            start=[(n, s)],
            terminal=[(n, s)],
            reward_noise=[(n,), ()],
        )
        arrays = {
            name: require_array(name, getattr(self, name), *allowed)
            for name, allowed in shapes.items()
        }
        require(np.isin(arrays["terminal"], (0, 1)), "terminal", "neither true nor false")
        arrays = {
            k: np.array(np.broadcast_to(x, shapes[k][0]), bool if k == "terminal" else float)
            for k, x in arrays.items()
        }
        p, r, start, end, noise = arrays.values()
        for name, x in (("probabilities", p), ("start", start)):
            require(x >= 0, name, "negative or NaN")
            require(abs(x.sum(-1) - 1) < 1e-6, name, "does not sum to one")
            arrays[name] = x / x.sum(
                -1, keepdims=True
            )  # float32 arrays are welcome: what is left of 1 is shared out
        require(abs(r) <= LARGEST, "rewards", f"not finite or above {LARGEST}")
        require(
            (start == 0) | ~end,
            "start",
            "probability on a terminal state: such an episode has no step",
        )
        stays = (p == 0) | ((z == np.arange(s)[:, None, None]) & (r == 0))
        require(
            stays | ~end[..., None, None],
            "terminal",
            "a terminal state must be absorbing and pay 0",
        )
        require(
            (noise >= 0) & (noise <= LARGEST),
            "reward_noise",
            f"negative or not finite, or above {LARGEST}",
        )
        validate(discount=self.discount, horizon=self.horizon)
        arrays = {
            name: _read_only(x) for name, x in dict(arrays, successors=z.astype(np.int32)).items()
        }
        vars(self).update(arrays, horizon=int(self.horizon))

    @classmethod
    def from_dense(cls, P, R, start, *, discount, horizon, terminal=False, reward_noise=0.0):
        """One task from P (S, A, S), R (S, A) or (S, A, S), or N from P (N, S, A, S), R (N, S, A) or (N, S, A, S).
        start: a state, or a distribution (S,) or (N, S). terminal: bool, (S,) or (N, S)."""
        P = require_array("P", P)
        R = require_array("R", R)
        require(
            P.ndim in (3, 4) and P.shape[-1] == P.shape[-3] and P.size,
            "P",
            f"of shape {P.shape}, not (S, A, S) or (N, S, A, S)",
        )
        require_shapes(P.shape[:-1], P.shape, R=R)
        R = np.broadcast_to(R if R.ndim == P.ndim else R[..., None], P.shape)
        P, R = (P[None], R[None]) if P.ndim == 3 else (P, R)
        require(P >= 0, "P", "negative or NaN")
        require(abs(P.sum(-1) - 1) < 1e-6, "P", "does not sum to one")
        require(np.isfinite(R), "R", "not finite")
        n, s = P.shape[:2]
        order = np.argsort(P == 0, axis=-1, kind="stable")[
            ..., : (P != 0).sum(-1).max()
        ]  # what can happen, first
        p = np.take_along_axis(P, order, -1)
        r = np.take_along_axis(R, order, -1)
        start = per_state("start", start, n, s)
        terminal = per_state("terminal", terminal, n, s)
        return cls(order, p, r * (p != 0), start, terminal, discount, horizon, reward_noise)

    def __len__(self):
        return len(self.successors)

    def __getitem__(self, tasks):
        """The sub-batch of the tasks that an integer, slice or index array names (always a batch, of one task at least)."""
        tasks = np.atleast_1d(
            np.arange(len(self))[
                tasks if isinstance(tasks, slice) else require_array("tasks", tasks, kinds="biu")
            ]
        )
        require(
            tasks.size and tasks.ndim == 1,
            "tasks",
            f"expected an integer, a slice or a list of at least one, got {tasks.shape}",
        )
        new = object.__new__(
            MDP
        )  # checked when it was made: a part of it need not be checked again
        old = {f.name: getattr(self, f.name) for f in fields(self)}
        vars(new).update(
            {
                name: _read_only(x[tasks]) if isinstance(x, np.ndarray) else x
                for name, x in old.items()
            }
        )
        return new

    expected_rewards = cached_property(
        lambda self: _read_only(np.einsum("nsaz,nsaz->nsa", self.probabilities, self.rewards))
    )  # (N, S, A)
    # task · S + s', the place of each successor in arrays (N, S) laid out flat: (N, S, A, Z) int64
    next_rows = cached_property(
        lambda self: _read_only(
            self.successors + self.shape[1] * np.arange(len(self))[:, None, None, None]
        )
    )

    @cached_property
    def start_support(self):
        """The start states and their probabilities, (N, B) each, B being the largest number that a task has (filled up with 0)."""
        states = np.argsort(self.start == 0, axis=1, kind="stable")[
            :, : (self.start > 0).sum(1).max()
        ]
        return states, np.take_along_axis(self.start, states, 1)

    def with_time(self):
        """The same MDPs with time in the state, t·S + s for t = 0 … T, the states at T being terminal: S' = (T + 1)·S.
        A policy on it may depend on time, as the optimal one for a finite horizon does. The original state is s' mod S.
        """
        s = self.shape[1]
        copies = self.horizon + 1
        require_memory(40, copies, self.successors.size)
        z, p, r, end = (
            np.concatenate([x] * copies, 1)
            for x in (self.successors, self.probabilities, self.rewards, self.terminal)
        )
        end[:, -s:] = True
        own = np.arange(copies * s)[:, None, None]
        stay = end[..., None, None]  # what goes on, goes on in the next copy
        return replace(
            self,
            successors=np.where(stay, own, z + (own // s + 1) * s),
            probabilities=p,
            rewards=np.where(stay, 0.0, r),
            start=np.pad(self.start, ((0, 0), (0, self.horizon * s))),
            terminal=end,
        )

    def auto_reset(self):
        """The continuing MDPs: what leads into a terminal state leads to the start distribution instead, its reward kept; none is terminal.
        Z grows by the largest number of start states that a task has, as a factor, so that a step of the sampler costs the same.
        """
        starts, chances = (x[:, None, None, None] for x in self.start_support)  # (N, 1, 1, 1, B)
        ends = self.terminal.ravel()[self.next_rows] & ~self.terminal[..., None, None]
        first = (
            np.arange(starts.shape[-1]) == 0
        )  # what does not end uses the first of its B entries
        z = np.where(ends[..., None], starts, self.successors[..., None]).reshape(
            self.shape + (-1,)
        )
        p = (self.probabilities[..., None] * np.where(ends[..., None], chances, first)).reshape(
            z.shape
        )
        return replace(
            self,
            successors=z,
            probabilities=p,
            rewards=np.repeat(self.rewards, len(first), -1),
            terminal=self.terminal & False,
        )


def _read_only(array):
    array.flags.writeable = False
    return array


def per_state(name, array, n, s):
    """As (N, S) what is (S,), (N, S) or a scalar; a scalar start is a state."""
    array = require_array(name, array, (), (s,), (n, s))
    if name == "start" and array.ndim == 0:
        require(array in range(s), name, f"state {array} outside 0..{s - 1}")
        array = np.arange(s) == array
    return np.broadcast_to(array, (n, s))
