"""The tabular Markov decision process: a batch of N tasks (S, A, P, R, γ) in one read-only object."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from autograd.extend import notrace_primitive


def require(good, argument, why, axes=("task", "state", "action", "successor")):
    """Raise ValueError naming `argument` and the first place where the boolean array `good` (N, S, …) is False."""
    good = np.asarray(good)
    if not good.all():
        place = np.argwhere(~good)[0]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place))
        raise ValueError(f"{argument}: {why}" + (f" (at {where})" if where else ""))


@notrace_primitive
def require_log_pi(log_pi, shape):
    """Raise ValueError, naming task and state, unless log_pi (S, A) or (N, S, A) are log-probabilities for `shape` = (N, S, A)."""
    if np.shape(log_pi) not in (shape[1:], shape):
        raise ValueError(f"log_pi: expected shape {shape[1:]} or {shape}, got {np.shape(log_pi)}")
    total = np.broadcast_to(np.exp(np.minimum(log_pi, 1.0)).sum(-1), shape[:2])
    require(abs(total - 1) < 1e-6, "log_pi", "not log-probabilities; are the parameters finite?")


@dataclass(frozen=True, eq=False)
class MDP:
    """N finite MDPs of one size, as successor lists: from (s, a) the z-th of Z successors follows with its probability.

    A terminal state is absorbing and pays nothing; reaching the horizon T ends an episode too. Rewards may differ between two
    entries with the same next state, so a Bernoulli reward is two successors. Raises ValueError (argument, task, state) on
    anything that is not an MDP. Sutton & Barto (2018), §3.1.
    """

    successors: np.ndarray  # (N, S, A, Z) next state s'
    probabilities: np.ndarray  # (N, S, A, Z) P(z | s, a)
    rewards: np.ndarray  # (N, S, A, Z) r(s, a, z)
    start: np.ndarray  # (N, S) distribution of s_0; never a terminal state
    terminal: np.ndarray  # (N, S) bool
    discount: float  # γ in [0, 1]
    horizon: int  # T, time steps in an episode
    reward_noise: np.ndarray = 0.0  # (N,) or a scalar: standard deviation of Gaussian noise that the sampler adds to a reward

    def __post_init__(self):
        z = np.asarray(self.successors)
        if z.ndim != 4 or not z.size:
            raise ValueError(f"successors: expected shape (N, S, A, Z) with no empty axis, got {z.shape}")
        if not np.issubdtype(z.dtype, np.integer):
            raise ValueError(f"successors: expected integers, got {z.dtype}")
        n, s = z.shape[:2]
        require((z >= 0) & (z < s), "successors", f"a successor outside 0..{s - 1}")
        shapes = dict(probabilities=z.shape, rewards=z.shape, start=(n, s), terminal=(n, s))
        if np.shape(self.reward_noise) not in ((), (n,)):
            raise ValueError(f"reward_noise: expected a number or shape ({n},), got {np.shape(self.reward_noise)}")
        arrays = dict(successors=z.astype(np.int32), reward_noise=np.array(np.broadcast_to(self.reward_noise, n), float))
        for name, shape in shapes.items():
            arrays[name] = np.array(getattr(self, name), bool if name == "terminal" else float)
            if arrays[name].shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {arrays[name].shape}")
        p, r, end = arrays["probabilities"], arrays["rewards"], arrays["terminal"]
        require(p >= 0, "probabilities", "negative or NaN")
        require(abs(p.sum(-1) - 1) < 1e-6, "probabilities", "do not sum to one")
        require(np.isfinite(r), "rewards", "not finite")
        require(arrays["start"] >= 0, "start", "negative or NaN")
        require(abs(arrays["start"].sum(-1) - 1) < 1e-6, "start", "does not sum to one")
        for name in ("probabilities", "start"):  # float32 arrays are welcome: what is left of 1 is shared out
            arrays[name] = arrays[name] / arrays[name].sum(-1, keepdims=True)
        require((arrays["start"] == 0) | ~end, "start", "probability on a terminal state: such an episode has no step")
        own = z == np.arange(s)[:, None, None]
        require(~end[..., None, None] | (p == 0) | (own & (r == 0)), "terminal", "a terminal state must be absorbing and pay 0")
        require((arrays["reward_noise"] >= 0) & np.isfinite(arrays["reward_noise"]), "reward_noise", "negative or not finite")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount: {self.discount} is outside [0, 1]")
        if not 1 <= self.horizon < np.inf or self.horizon != int(self.horizon):
            raise ValueError(f"horizon: {self.horizon} is not a whole number of at least 1")
        object.__setattr__(self, "horizon", int(self.horizon))
        self._set(arrays)

    def _set(self, arrays):
        for name, array in arrays.items():
            object.__setattr__(self, name, _read_only(array))
        return self

    @classmethod
    def from_dense(cls, P, R, start, *, discount, horizon, terminal=None, reward_noise=0.0):
        """One task from P (S, A, S), R (S, A) or (S, A, S), or N from P (N, S, A, S), R (N, S, A) or (N, S, A, S).

        start: a state, or a distribution (S,) or (N, S). terminal: (S,) or (N, S) bool. Raises ValueError as MDP does.
        """
        P, R = np.asarray(P, float), np.asarray(R, float)
        if P.ndim not in (3, 4) or P.shape[-1] != P.shape[-3] or not P.size:
            raise ValueError(f"P: expected shape (S, A, S) or (N, S, A, S), got {P.shape}")
        if R.shape not in (P.shape, P.shape[:-1]):
            raise ValueError(f"R: expected shape {P.shape[:-1]} or {P.shape}, got {R.shape}")
        one = P.ndim == 3
        R = np.broadcast_to(R if R.ndim == P.ndim else R[..., None], P.shape)
        P, R = (P[None], R[None]) if one else (P, R)
        require(P >= 0, "P", "negative or NaN")
        require(abs(P.sum(-1) - 1) < 1e-6, "P", "does not sum to one")
        require(np.isfinite(R), "R", "not finite")
        n, s = P.shape[:2]
        order = np.argsort(P == 0, axis=-1, kind="stable")[..., : max(1, (P != 0).sum(-1).max())]  # what can happen, first
        return cls(
            order, np.take_along_axis(P, order, -1), np.take_along_axis(R, order, -1) * (np.take_along_axis(P, order, -1) != 0),
            _per_task(start, n, s), _broadcast("terminal", False if terminal is None else terminal, n, s),
            discount, horizon, reward_noise)

    @classmethod
    def from_gymnasium(cls, tables, start, *, discount, horizon, reward_noise=0.0):
        """Tasks from Gymnasium's toy-text table(s) `env.unwrapped.P`, {s: {a: [(p, s', r, done), …]}}, one or a sequence.

        start: a state, or `env.unwrapped.initial_state_distrib` (S,) or (N, S). `done` sits on transitions: such a transition
        leads to an absorbing state, s' itself, or one that is appended where s' is a start or is reached without done as well.
        Duplicates are merged and rows of probability zero dropped.
        """
        tables = [tables] if isinstance(tables, dict) else list(tables)
        if not tables or any(sorted(t) != list(range(len(tables[0]))) for t in tables) or not tables[0]:
            raise ValueError("tables: every table needs the states 0..S-1 as keys, the same for all tasks")
        n, s, a = len(tables), len(tables[0]), len(tables[0][0])
        starts = _per_task(start, n, s)
        rows, terminal, appended = {}, np.zeros((n, 2 * s), bool), np.zeros(n, int)
        for i, table in enumerate(tables):
            for state in range(s):
                if sorted(table[state]) != list(range(a)):
                    raise ValueError(f"tables: expected the actions 0..{a - 1} (at task {i}, state {state})")
                if any(len(e) != 4 or e[1] != int(e[1]) for entries in table[state].values() for e in entries):
                    raise ValueError(f"tables: expected entries (p, s', r, done) (at task {i}, state {state})")
            entries = [(state, action, *e) for state in range(s) for action in range(a) for e in table[state][action] if e[0] != 0]
            for state, action, p, z, _, _ in entries:
                if not p > 0 or not 0 <= z < s:
                    why = f"successor {z} outside 0..{s - 1}" if p > 0 else f"probability {p} is negative or NaN"
                    raise ValueError(f"tables: {why} (at task {i}, state {state}, action {action})")
            done = {z for _, _, _, z, _, end in entries if end}
            shared = {z for state, _, _, z, _, end in entries if not end and z != state} | set(np.flatnonzero(starts[i]))
            alias = {z: s + j for j, z in enumerate(sorted(done & shared))} | {z: z for z in done - shared}
            appended[i] = len(done & shared)
            terminal[i, list(alias.values()) + list(range(s + appended[i], 2 * s))] = True  # what only fills up, too
            for state, action, p, z, r, end in entries:
                if not terminal[i, state]:
                    key = (alias[z] if end else z, float(r))
                    row = rows.setdefault((i, state, action), {})
                    row[key] = row.get(key, 0.0) + p
        total = s + appended.max()
        shape = (n, total, a, max((len(row) for row in rows.values()), default=1))
        successors = np.broadcast_to(np.arange(total)[:, None, None], shape).astype(np.int32)
        probabilities, rewards = np.zeros(shape), np.zeros(shape)
        probabilities[..., 0] = terminal[:, :total, None]
        for place, row in rows.items():
            for j, ((z, r), p) in enumerate(row.items()):
                successors[place + (j,)], rewards[place + (j,)], probabilities[place + (j,)] = z, r, p
        starts = np.concatenate([starts, np.zeros((n, total - s))], 1)
        return cls(successors, probabilities, rewards, starts, terminal[:, :total], discount, horizon, reward_noise)

    def __len__(self):
        return len(self.successors)

    def __getitem__(self, tasks):
        """The sub-batch of the tasks that an integer, slice or index array names (always a batch, of one task at least)."""
        tasks = np.atleast_1d(np.arange(len(self))[tasks])
        if not tasks.size or tasks.ndim > 1:
            raise ValueError(f"tasks: expected an integer, a slice or a list of at least one task, got shape {tasks.shape}")
        new = object.__new__(MDP)  # checked when it was made: a part of it need not be checked again
        for name in ("discount", "horizon"):
            object.__setattr__(new, name, getattr(self, name))
        return new._set({f.name: getattr(self, f.name)[tasks] for f in fields(self) if f.name not in ("discount", "horizon")})

    @property
    def shape(self):
        """(N, S, A): tasks, states, actions."""
        return self.successors.shape[:3]

    @cached_property
    def next_rows(self):
        """task · S + s', the place of each successor in arrays (N, S) laid out flat: (N, S, A, Z) int64."""
        n, s, _ = self.shape
        return _read_only(self.successors + s * np.arange(n)[:, None, None, None])

    @cached_property
    def expected_rewards(self):
        """R̄(s, a) = Σ_z P(z|s,a) r(s,a,z), shape (N, S, A)."""
        return _read_only(np.einsum("nsaz,nsaz->nsa", self.probabilities, self.rewards))

    @property
    def start_support(self):
        """The start states and their probabilities, (N, B) each, B being the largest number that a task has (filled up with 0)."""
        states = np.argsort(self.start == 0, axis=1, kind="stable")[:, : (self.start > 0).sum(1).max()]
        return states, np.take_along_axis(self.start, states, 1)

    def with_time(self):
        """The same MDPs with time in the state, t·S + s for t = 0 … T, the states at T being terminal: S' = (T + 1)·S.

        A policy on it may depend on time, as the optimal one for a finite horizon does. The original state is s' mod S.
        """
        n, s, a, z = self.successors.shape
        copies = self.horizon + 1
        end = np.repeat(self.terminal[:, None], copies, 1)
        end[:, -1] = True
        end = end.reshape(n, copies * s)
        own = np.arange(copies * s)[:, None, None]
        after = self.successors[:, None] + (np.arange(1, copies + 1) * s)[:, None, None, None]  # a copy's successors are in the next
        stay = end[:, :, None, None]

        def repeat(x):
            return np.repeat(x[:, None], copies, 1).reshape((n, copies * s) + x.shape[2:])
        start = np.concatenate([self.start, np.zeros((n, self.horizon * s))], 1)
        return MDP(np.where(stay, own, after.reshape(n, copies * s, a, z)), repeat(self.probabilities),
                   np.where(stay, 0.0, repeat(self.rewards)), start, end, self.discount, self.horizon, self.reward_noise)

    def auto_reset(self):
        """The continuing MDPs in which what leads into a terminal state leads to the start distribution instead.

        The reward of the last transition is kept, and nothing is terminal any more. The Z of the result is Z times the largest number of
        start states of a task, so that a step of the sampler costs the same as without.
        """
        n, s, a, z = self.successors.shape
        starts, chances = self.start_support
        b = starts.shape[1]
        ends = np.take_along_axis(self.terminal, self.successors.reshape(n, -1), 1).reshape(n, s, a, z, 1)
        ends = ends & ~self.terminal[:, :, None, None, None]
        stay = np.arange(b) == 0  # what does not end uses the first of its B entries
        successors = np.where(ends, starts[:, None, None, None], self.successors[..., None])
        probabilities = self.probabilities[..., None] * np.where(ends, chances[:, None, None, None], stay)
        rewards = np.broadcast_to(self.rewards[..., None], probabilities.shape)
        flat = (n, s, a, z * b)
        return MDP(successors.reshape(flat), probabilities.reshape(flat), rewards.reshape(flat), self.start,
                   np.zeros_like(self.terminal), self.discount, self.horizon, self.reward_noise)


def _read_only(array):
    array.flags.writeable = False
    return array


def _per_task(start, n, s):
    """A start state or distribution as (N, S)."""
    if np.ndim(start) == 0:
        if not np.isfinite(start) or start != int(start) or not 0 <= start < s:
            raise ValueError(f"start: state {start} outside 0..{s - 1}")
        start = np.arange(s) == int(start)
    return _broadcast("start", start, n, s).astype(float)


def _broadcast(name, array, n, s):
    if np.ndim(array) and np.shape(array) not in ((s,), (n, s)):
        raise ValueError(f"{name}: expected shape ({s},) or ({n}, {s}), got {np.shape(array)}")
    return np.broadcast_to(array, (n, s))
