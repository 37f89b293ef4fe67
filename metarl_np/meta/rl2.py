"""Recurrent RL² (Duan et al. 2016; Wang et al. 2016): a recurrent policy whose hidden state lives across the episodes of a trial.
A trial is n episodes in one task. At each of its steps the policy sees the state, the previous action (or that there was none), the
previous reward and whether an episode has just ended; what it learns about the task stays in its hidden state, which is zero at the
start of the trial only. It is trained (`rl2_training`) by a standard algorithm to maximise the trial's return, the sum over episodes of
Σ_t γᵗ r_t with the task's own γ. Trials come last, so that operations run along them: inputs are (T, D, N), T counting a trial's steps.
"""

from dataclasses import dataclass, fields

import autograd.numpy as np
from autograd.extend import defvjp, primitive

from metarl_np.arguments import (
    require,
    require_array,
    require_finite,
    require_memory,
    require_shapes,
    validate,
)
from metarl_np.learner.policies import log_softmax
from metarl_np.learner.rollouts import step, successor_table
from metarl_np.meta import gru
from metarl_np.tasks import exact


@dataclass(frozen=True, eq=False)
class Trials:
    """N trials of n episodes, one in each task. Steps after a trial's last episode are masked."""

    inputs: np.ndarray  # (T, D, N) what the policy saw; see RecurrentPolicy.observe
    outputs: (
        np.ndarray
    )  # (T, A + 1, N) what it answered: logits, and the value V of the rest of the trial
    states: np.ndarray  # (T, N)
    actions: np.ndarray  # (T, N)
    rewards: np.ndarray  # (T, N) r_t, as sampled and as shown to the policy
    episode: np.ndarray  # (T, N) which of the n episodes
    time: np.ndarray  # (T, N) t, the steps since the episode began
    mask: np.ndarray  # (T, N) bool: the step was really taken

    def __post_init__(self):
        require_shapes(
            np.shape(self.states),
            **{k: getattr(self, k) for k in ("actions", "rewards", "episode", "time", "mask")},
        )

    def part(self, trials):
        """Only these of the N trials, a slice or an index array: Trials."""
        return Trials(
            *(np.ascontiguousarray(getattr(self, f.name)[..., trials]) for f in fields(self))
        )


@dataclass(frozen=True)
class RecurrentPolicy:
    """A GRU with one linear read-out for each state: log π(a|s, h) ∝ (V_s h + v_s)_a, and one more row of V_s for the value.
    What is remembered is about the task; what to do about it depends on the state, as in a table. With one state this is the usual
    read-out; with more, a single one would leave it to the GRU to multiply memory and state, which it learns slowly.
    """

    n_states: int  # S
    n_actions: int  # A
    units: int  # H
    # the GRU, with D = S + (A + 1) + 2 inputs and O = S·(A + 1) outputs
    net = property(
        lambda self: gru.GRU(
            self.n_states + self.n_actions + 3, self.units, self.n_states * (self.n_actions + 1)
        )
    )

    def __post_init__(self):
        validate(n_states=self.n_states, n_actions=self.n_actions, units=self.units)
        self.net  # sizes above MAX_BYTES are refused there

    def init(self, rng, dtype=np.float32, memory=1.0):
        """θ (P,): see `gru.GRU.init`."""
        return self.net.init(rng, dtype, memory)

    def observe(self, x, state, previous, reward, ended):
        """Write what the policy sees into zeros x (D, N): one-hot state, one-hot previous action, previous reward, did an episode just end.
        All four are (N,); previous is a + 1 for action a and 0 for "none yet": the first input of a trial is no action's.
        """
        lanes = np.arange(x.shape[1])
        x[state, lanes] = x[self.n_states + previous, lanes] = 1
        x[-2], x[-1] = reward, ended

    def read_out(self, y, states):
        """The rows of the states: y (…, S·(A + 1), N), s (…, N) → (…, A + 1, N)."""
        y = y.reshape(states.shape[:-1] + (self.n_states, self.n_actions + 1, -1))
        return np.take_along_axis(y, states[..., None, None, :], -3)[..., 0, :, :]

    def unroll(self, theta, trials):
        """Outputs (T, A + 1, N) on the inputs of Trials, the function from ∂L/∂outputs to ∂L/∂θ (P,), and h_1 … h_T (T, H, N)."""
        y, trace = gru.forward(self.net, theta, trials.inputs)

        def pull_back(g):
            full = np.zeros((len(g), self.n_states) + g.shape[1:], y.dtype)
            np.put_along_axis(full, trials.states[:, None, None], g[:, None], 1)
            return gru.backward(self.net, theta, trials.inputs, trace, full.reshape(y.shape))

        return self.read_out(y, trials.states), pull_back, trace[0][1:]


@primitive
def outputs(policy, theta, trials):
    """RecurrentPolicy.unroll's outputs (T, A + 1, N) as one function of θ (P,) for autograd."""
    return policy.unroll(theta, trials)[0]


defvjp(
    outputs,
    lambda y, policy, theta, trials: lambda g: policy.unroll(theta, trials)[1](g),
    argnums=[1],
)


def log_probs(y):
    """log π (T, N, A) of outputs (T, A + 1, N)."""
    return log_softmax(np.swapaxes(y[:, :-1], 1, 2))


@np.errstate(over="ignore", invalid="ignore")  # outputs that are not finite raise
def sample_trials(rng, mdps, policy, theta, episodes, *, greedy=False):
    """Sample one trial of `episodes` = n episodes in each of N tasks, by θ (P,) (greedy: the likeliest actions): Trials, T ≤ n · horizon.
    An episode ends in a terminal state or at the horizon; the next one's first input holds its last action and reward, and the flag.
    """
    validate(rng=rng, mdps=mdps, episodes=episodes)
    n, s, a = mdps.shape
    fits = isinstance(policy, RecurrentPolicy) and (policy.n_states, policy.n_actions) == (s, a)
    require(fits, "policy", f"made for other than S, A = {s}, {a}: {policy!r:.99}")
    theta = require_array("theta", theta, kinds="f")
    require_memory(policy.net.inputs + a + 7, 8, n, episodes, mdps.horizon)
    W, _, b, V, v = weights = policy.net.split(theta)
    chances = np.cumsum(mdps.start, 1)
    longest = episodes * mdps.horizon
    starts = np.array(
        [(chances <= rng.random((n, 1)) * chances[:, -1:]).sum(1) for _ in range(episodes)]
    )  # by inversion
    inputs, outputs = (
        np.zeros((longest, rows, n), theta.dtype) for rows in (policy.net.inputs, a + 1)
    )
    states, actions, rewards, episode, time, mask = record = [
        np.zeros((longest, n), kind) for kind in (int, int, float, int, int, bool)
    ]
    h = np.zeros((policy.units, n), theta.dtype)
    state = starts[0]
    count = np.zeros(n, int)
    t = np.zeros(n, int)
    table = successor_table(mdps)
    lanes = np.arange(n)
    previous = np.zeros(n, int)
    reward = 0.0
    ended = False
    used = 0
    while (count < episodes).any():
        policy.observe(inputs[used], state, previous, reward, ended)
        h, _ = gru.step(weights, h, W @ inputs[used] + b)
        outputs[used] = policy.read_out(V @ h + v, state)
        action = outputs[used, :-1].argmax(0) if greedy else _sample(rng, outputs[used, :-1])
        reward, after = step(rng, mdps, table, state, action)
        live = count < episodes
        for row, x in zip(record, (state, action, reward * live, count, t, live)):
            row[used] = x
        ended = mdps.terminal[lanes, after] | (t + 1 == mdps.horizon)
        count = count + (ended & live)
        state = np.where(ended, starts[np.minimum(count, episodes - 1), lanes], after)
        t = np.where(ended, 0, t + 1)
        previous = action + 1
        used = used + 1
    require_finite(outputs[:used], "theta: parameters so large that they lead to outputs")
    return Trials(*(x[:used] for x in (inputs, outputs, *record)))


def _sample(rng, logits):
    """One action of each lane from logits (A, N), by inversion: (N,)."""
    p = np.cumsum(np.exp(logits - logits.max(0)), 0)
    return np.minimum((p <= rng.random(logits.shape[1], p.dtype) * p[-1]).sum(0), len(p) - 1)


def expected_rewards(mdps, trials):
    """γᵗ R̄(s_t, a_t), the mean reward of what was done in place of the sampled one: (T, N). The same expectation, less noise."""
    validate(mdps=mdps, trials=trials)
    return _taken(
        mdps, trials, np.broadcast_to(mdps.expected_rewards, (mdps.horizon,) + mdps.shape)
    )


def regrets(mdps, trials):
    """γᵗ A*_t(s_t, a_t) = γᵗ (Q*_t − V*_t) ≤ 0, by how much what was done is worse than the best in the *known* task: (T, N).
    By the performance-difference lemma (Kakade & Langford 2002) E Σ γᵗ A*_t = J(π) − J* for any π, even with a memory. It may replace the
    rewards: with GAE's γ = λ = 1 the gradient's mean stays, without the luck of start and transitions; else biased as if shaped by V*.
    """
    validate(mdps=mdps, trials=trials)
    v = exact.optimal_values(mdps)
    return _taken(
        mdps,
        trials,
        np.array(
            [exact.action_values(mdps, after) - now[..., None] for now, after in zip(v, v[1:])]
        ),
    )


def _taken(mdps, trials, table):
    """γᵗ times the entries of a table (t, N, S, A) that trials went through: (T, N)."""
    require_shapes((len(trials.states), len(mdps)), trials=trials.states)
    return (
        table[trials.time, np.arange(len(mdps)), trials.states, trials.actions]
        * mdps.discount**trials.time
        * trials.mask
    )
