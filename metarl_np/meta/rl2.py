"""Recurrent RL²: a recurrent policy whose hidden state lives across the episodes of a trial.

Duan et al. (2016); Wang et al. (2016). A trial is n episodes in one task. At each of its steps the
policy sees the state, the previous action (or that there was none), the previous reward and
whether an episode has just ended. What it learns about the task stays in its hidden state, which
is zero at the start of the trial only. It is trained (`rl2_training`) by a standard algorithm to
maximise the trial's return, the sum over episodes of Σ_t γᵗ r_t, with the task's own γ.

Trials come last, so that operations run along them: inputs are (T, D, N), T counting the steps of
a trial.
"""

from dataclasses import dataclass, fields

import autograd.numpy as np

from metarl_np.arguments import (
    Record,
    defvjp,
    harmless,
    primitive,
    require,
    require_array,
    require_finite,
    require_floats,
    require_index,
    require_mask,
    require_memory,
    require_shapes,
    set_fields,
    trusted,
    unmasked,
    validate,
    validate_fields,
)
from metarl_np.learner.policies import log_softmax
from metarl_np.learner.rollouts import step, successor_table
from metarl_np.meta import gru
from metarl_np.tasks import exact


@dataclass(frozen=True, eq=False)
class Trials(Record):
    """N trials of n episodes, one in each task. Steps after a trial's last episode are masked.

    What stands there does not matter: NaN, −1 or a state that does not exist becomes 0. Raises
    ValueError on arrays that do not fit each other, and on what is no mask.
    """

    inputs: np.ndarray  # (T, D, N) what the policy saw; see RecurrentPolicy.observe
    outputs: np.ndarray  # (T, A + 1, N) what it answered: logits, and V of the rest of the trial
    states: np.ndarray  # (T, N)
    actions: np.ndarray  # (T, N)
    rewards: np.ndarray  # (T, N) r_t, as sampled and as shown to the policy
    episode: np.ndarray  # (T, N) which of the n episodes
    time: np.ndarray  # (T, N) t, the steps since the episode began
    mask: np.ndarray  # (T, N) bool: the step was really taken; numbers 0 and 1 will do

    def __post_init__(self):
        shape = np.shape(self.states)
        mask = require_mask(self.mask, shape)
        for name in ("states", "actions", "episode", "time"):
            numbers = require_array(name, getattr(self, name), shape, kinds="iu")
            set_fields(self, **{name: harmless(numbers, mask)})
        rewards = require_floats("rewards", self.rewards, shape, single=True)
        set_fields(self, mask=mask, rewards=harmless(rewards, mask))
        for name in ("inputs", "outputs"):
            if getattr(self, name) is not None:
                x = require_floats(name, getattr(self, name), single=True)
                of_steps = x.ndim == 3 and x.shape[::2] == shape
                require(of_steps, name, f"expected (T, ·, N) of steps {shape}, got {x.shape}")
                set_fields(self, **{name: harmless(x, mask[:, None])})

    def part(self, trials):
        """Only these of the N trials, a slice or an index array: Trials."""
        trials = require_index("trials", trials, self.states.shape[-1])
        return self._each(lambda x: np.ascontiguousarray(x[..., trials]))

    def first(self, steps):
        """Only the first so many steps: Trials."""
        validate(steps=steps)
        return self._each(lambda x: x[:steps])

    def _each(self, change):
        changed = {}
        for field in fields(self):
            x = getattr(self, field.name)
            changed[field.name] = None if x is None else change(x)
        return trusted(Trials, **changed)


@dataclass(frozen=True)
class RecurrentPolicy:
    """A GRU with a linear read-out for each state: log π(a|s, h) ∝ (V_s h + v_s)_a.

    One more row of V_s gives the value. What is remembered is about the task; what to do about it
    depends on the state, as in a table. With one state this is the usual read-out; with more, a
    single one would leave it to the GRU to multiply memory and state, which it learns slowly.
    """

    n_states: int  # S
    n_actions: int  # A
    units: int  # H

    def __post_init__(self):
        validate_fields(self)
        self.net  # refuses sizes above MAX_BYTES

    @property
    def net(self):
        """The GRU, with D = S + (A + 1) + 2 inputs and O = S·(A + 1) outputs."""
        inputs = self.n_states + self.n_actions + 3
        return gru.GRU(inputs, self.units, self.n_states * (self.n_actions + 1))

    def init(self, rng, dtype=np.float32, memory=1.0):
        """θ (P,) to start from; memory: for how many steps it remembers. See `gru.GRU.init`."""
        return self.net.init(rng, dtype, memory)

    def observe(self, x, state, previous, reward, ended):
        """Write what the policy sees into zeros x (D, N). The other arguments are (N,).

        It is the state, one-hot; the previous action, one-hot: `previous` is a + 1 for action a,
        and 0 for "none yet", since the first input of a trial is no action's; the previous reward;
        and whether an episode has just ended.
        """
        lanes = np.arange(x.shape[1])
        x[state, lanes] = 1
        x[self.n_states + np.asarray(previous, int), lanes] = 1
        x[-2] = reward
        x[-1] = ended

    def read_out(self, y, states):
        """The rows of the states: y (…, S·(A + 1), N), s (…, N) → (…, A + 1, N)."""
        by_state = y.reshape(states.shape[:-1] + (self.n_states, self.n_actions + 1, -1))
        chosen = states[..., None, None, :]  # (…, 1, 1, N): one of S rows, all A + 1 columns
        return np.take_along_axis(by_state, chosen, -3)[..., 0, :, :]

    def unroll(self, theta, trials):
        """What it answers on the inputs of Trials: outputs (T, A + 1, N), pull_back, h_1 … h_T.

        pull_back: ∂L/∂outputs (T, A + 1, N) → ∂L/∂θ (P,). The hidden states are (T, H, N).
        """
        y, trace = gru.forward(self.net, theta, trials.inputs)

        def pull_back(g):
            full = np.zeros((len(g), self.n_states) + g.shape[1:], y.dtype)
            np.put_along_axis(full, trials.states[:, None, None], g[:, None], 1)
            return gru.backward(self.net, theta, trials.inputs, trace, full.reshape(y.shape))

        hidden = trace[0][1:]
        return self.read_out(y, trials.states), pull_back, hidden


@primitive
def outputs(policy, theta, trials):
    """What the policy answers on Trials, (T, A + 1, N), as one function of θ (P,) for autograd."""
    return policy.unroll(theta, trials)[0]


def _outputs_theta_vjp(_, policy, theta, trials):
    """autograd does not keep what pull_back needs, so that is computed once more."""

    def vjp(g):
        _, pull_back, _ = policy.unroll(theta, trials)
        return pull_back(g)

    return vjp


defvjp(outputs, _outputs_theta_vjp, argnums=[1])


def log_probs(outputs):
    """log π (T, N, A) of outputs (T, A + 1, N)."""
    return log_softmax(np.swapaxes(outputs[:, :-1], 1, 2))


@np.errstate(over="ignore", invalid="ignore")  # outputs that are not finite raise
def sample_trials(rng, mdps, policy, theta, episodes, *, greedy=False):
    """Trials, one of n = `episodes` episodes in each of N tasks, T ≤ n · horizon.

    theta: (P,). greedy: take the likeliest actions. An episode ends in a terminal state or at the
    horizon; the first input of the next one holds its last action and reward, and the flag.
    """
    validate(rng=rng, mdps=mdps, policy=policy)
    episodes = validate(episodes=episodes)
    _require_fit(policy, mdps, episodes)
    theta = require_floats("theta", theta, single=True, traced=False)
    n_tasks = len(mdps)
    weights = policy.net.split(theta)
    W, _, b, _, V, v = weights
    lanes = np.arange(n_tasks)
    table = successor_table(mdps)
    starts = _starts(rng, mdps, episodes)
    trials = _blank(policy, n_tasks, episodes * mdps.horizon, theta.dtype)

    # of each lane: the policy's memory, where it is, and what it will be shown of the last step
    h = np.zeros((policy.units, n_tasks), theta.dtype)
    state = starts[0]
    episode = np.zeros(n_tasks, int)
    time = np.zeros(n_tasks, int)
    previous = np.zeros(n_tasks, int)  # action + 1
    reward = 0.0
    ended = False
    t = 0
    while (episode < episodes).any():
        policy.observe(trials.inputs[t], state, previous, reward, ended)
        h, _ = gru.step(weights, h, W @ trials.inputs[t] + b)
        trials.outputs[t] = policy.read_out(V @ h + v, state)
        logits = trials.outputs[t, :-1]
        action = logits.argmax(0) if greedy else _sample(rng, logits)
        reward, after = step(rng, mdps, table, state, action)
        live = episode < episodes

        trials.states[t] = state
        trials.actions[t] = action
        trials.rewards[t] = reward * live
        trials.episode[t] = episode
        trials.time[t] = time
        trials.mask[t] = live

        ended = mdps.terminal[lanes, after] | (time + 1 == mdps.horizon)
        episode = episode + (ended & live)
        next_start = starts[np.minimum(episode, episodes - 1), lanes]
        state = np.where(ended, next_start, after)
        time = np.where(ended, 0, time + 1)
        previous = action + 1
        t += 1
    trials = trials.first(t)
    require_finite(trials.outputs, "theta: parameters so large that they lead to outputs")
    return trials


def _require_fit(policy, mdps, episodes):
    """ValueError unless the policy is one for these tasks, and the trials are not too large."""
    sizes = mdps.shape[1:]
    fits = isinstance(policy, RecurrentPolicy) and (policy.n_states, policy.n_actions) == sizes
    require(fits, "policy", f"made for other than S, A = {sizes[0]}, {sizes[1]}: {policy!r:.99}")
    numbers = policy.net.inputs + policy.n_actions + 7  # of a step
    require_memory(8, numbers, len(mdps), episodes, mdps.horizon)


def _starts(rng, mdps, episodes):
    """The start state of each episode, by inversion: (n, N)."""
    chances = np.cumsum(mdps.start, 1)
    starts = []
    for _ in range(episodes):
        u = rng.random((len(mdps), 1)) * chances[:, -1:]
        starts.append((chances <= u).sum(1))
    return np.array(starts)


def _blank(policy, n_trials, steps, dtype):
    """Trials to write into."""

    def zeros(*rows, dtype):
        return np.zeros((steps, *rows, n_trials), dtype)

    return trusted(
        Trials,
        inputs=zeros(policy.net.inputs, dtype=dtype),
        outputs=zeros(policy.n_actions + 1, dtype=dtype),
        states=zeros(dtype=int),
        actions=zeros(dtype=int),
        rewards=zeros(dtype=float),
        episode=zeros(dtype=int),
        time=zeros(dtype=int),
        mask=zeros(dtype=bool),
    )


def _sample(rng, logits):
    """One action of each lane from logits (A, N), by inversion: (N,)."""
    p = np.cumsum(np.exp(logits - logits.max(0)), 0)
    u = rng.random(logits.shape[1], p.dtype) * p[-1]
    return np.minimum((p <= u).sum(0), len(p) - 1)


def expected_rewards(mdps, trials):
    """γᵗ R̄(s_t, a_t), the mean reward of what was done in place of the sampled one: (T, N).

    It has the same expectation and less noise.
    """
    validate(mdps=mdps, trials=trials)
    at_all_times = (mdps.horizon,) + mdps.shape
    return _along(mdps, trials, np.broadcast_to(mdps.expected_rewards, at_all_times))


def regrets(mdps, trials):
    """γᵗ A*_t(s_t, a_t) = γᵗ (Q*_t − V*_t) ≤ 0, how much worse than the best an action is: (T, N).

    The best one is that in the *known* task. By the performance-difference lemma (Kakade & Langford
    2002) E Σ γᵗ A*_t = J(π) − J* for any π, even with a memory. So in a loss it may replace the
    rewards: with γ = λ = 1 in GAE the gradient's mean stays, without the luck of start and
    transitions. With less than 1 the bias of GAE changes, as it does when rewards are shaped by V*.
    """
    validate(mdps=mdps, trials=trials)
    v = exact.optimal_values(mdps)
    gaps = [exact.action_values(mdps, after) - now[..., None] for now, after in zip(v, v[1:])]
    return _along(mdps, trials, np.array(gaps))


def _along(mdps, trials, table):
    """γᵗ times the entries of a table (t, N, S, A) that trials went through: (T, N)."""
    require_shapes((len(trials.states), len(mdps)), trials=trials.states)
    met = table[trials.time, np.arange(len(mdps)), trials.states, trials.actions]
    return unmasked(met * mdps.discount**trials.time, trials.mask)
