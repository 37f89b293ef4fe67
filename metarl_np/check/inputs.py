"""What a recurrent policy is shown, when it forgets, and what its clipped gradient is.

RL² (Duan et al. 2016; Wang et al. 2016) shows a recurrent policy at each step of a trial the state
and the last action, reward and end of an episode, also where that was in the episode before. Each
column of the inputs is compared with what it may be, times a factor, of one step or another.
"""

from dataclasses import dataclass, replace

import numpy as np

from metarl_np.arguments import require, require_array, require_shapes, validate
from metarl_np.learner.policies import log_softmax

FITS = 1e-5  # relative: float32 numbers are off by up to 1e-6


@dataclass(frozen=True)
class Column:
    """What one of the D inputs is; `str` says it."""

    kind: str  # "state", "action", "reward", "end", "start", "time", "constant" or "unknown"
    name: str
    delay: int = 0  # it is that of so many steps before
    carried: bool = True  # is it shown at the first step of an episode as at others?

    def __str__(self):
        return self.name + AGO[self.delay]


AGO = ("", ", of the step before", ", of two steps before")
# of which kinds of columns, what may be true of one, and what that is
MISTAKES = [
    (
        ("action", "reward", "end"),
        lambda column: column.delay == 0,
        "is not known yet when the policy acts: show that of the step before",
    ),
    (
        ("action", "reward", "end"),
        lambda column: column.delay == 2,
        "comes a step too late: show it at the very next step",
    ),
    (("state",), lambda column: column.delay, "has passed when the policy acts: show the new one"),
    (
        ("action", "reward"),
        lambda column: not column.carried,
        "of an episode's last step is never shown, since a reset emits zeros: show it at the next "
        "episode's first step",
    ),
]
MISSING = {
    "state": "No column shows the state, which is right in a bandit only.",
    "action": "No column shows the last action, a mistake: what was it that paid?",
    "reward": "No column shows the last reward, a mistake: what is there to learn from?",
    "end": "No column shows that an episode ended: harmless if state or time show it; if not, give "
    "the flag at the next episode's first step.",
}
NULL_ACTION = {
    True: "The first input says that there was no action yet, as it should.",
    False: "The first input says that an action was taken, as arm 0 that paid 0, a mistake: let a "
    "null action of its own stand there.",
}
CLEARED = {  # (at one of the episodes, at all)
    (False, False): "The hidden state lives through all episodes of a trial, as it should.",
    (True, False): "The hidden state is cleared at some of the episodes, a mistake: clear it at a "
    "trial's start only.",
    (True, True): "The hidden state is cleared at each episode, a mistake: clear it at a trial's "
    "start only, or nothing is learned of the task.",
}


@dataclass(frozen=True)
class InputsExplanation:
    """What a policy's inputs are; `str` says it in whole sentences."""

    columns: tuple  # a Column for each of D
    null_action: bool  # does the first input say that there was no action yet?
    findings: tuple  # sentences: what it is, whether that is a mistake, and what is right

    def __str__(self):
        return " ".join(self.findings)


def explain_inputs(inputs, states, actions, rewards, dones, *, hidden=None):
    """What each column of a recurrent policy's inputs is, and what is wrong with it.

    inputs: (T, D, N) for N trials of T steps, as in `rl2`, or (T, N, D) if D and N differ; (T, D)
    for one trial. states, actions, rewards, dones: (T, N), or (T,); dones are true at the last step
    of each of a trial's episodes. hidden: the policy's state *before* each step, shaped as inputs
    are, with H for D. Returns an InputsExplanation. Raises ValueError on other shapes and on what
    is not finite.
    """
    shape = require_array("states", states, kinds="iu").shape
    given = dict(states=states, actions=actions, rewards=rewards, dones=dones)
    given = {name: _along_trials(name, x, shape) for name, x in given.items()}
    require(np.isin(given["dones"], (0, 1)).all(), "dones", "not booleans")
    x = _lanes_last("inputs", inputs, given["states"])
    starts = _before(given["dones"], 1) > 0
    signals = _signals(starts, **given)
    columns = tuple(_column(x[:, i], signals, starts) for i in range(x.shape[1]))

    findings = [f"Column {i} is {column}." for i, column in enumerate(columns)]
    for kinds, wrong, sentence in MISTAKES:
        for kind in kinds:
            if any(wrong(column) for column in columns if column.kind == kind):
                findings.append(f"A mistake: the {kind} {sentence}.")
    found = {column.kind for column in columns}
    findings += [sentence for kind, sentence in MISSING.items() if kind not in found]
    null_action = None
    if any(column.kind == "action" and column.delay == 1 for column in columns):
        shown = x[:, [column.kind in ("action", "start") for column in columns]]
        as_later = (shown[1:] == shown[0]).all(1) & ~starts[1:]
        null_action = not as_later.any()
        findings.append(NULL_ACTION[null_action])
    if hidden is not None:
        hidden = _lanes_last("hidden", hidden, given["states"])
        cleared = (hidden == hidden[0]).all(1)[starts]
        findings.append(CLEARED[bool(cleared.any()), bool(cleared.any() and cleared.all())])
    return InputsExplanation(columns, null_action, tuple(findings))


def _along_trials(name, x, shape):
    """(T, N) of an argument of that shape, (T, N) or (T,)."""
    require(len(shape) in (1, 2), name, f"expected shape (T,) or (T, N), got {shape}")
    x = require_array(name, x, shape) * 1.0
    require(np.isfinite(x).all(), name, "not finite")
    return x.reshape(shape[0], -1)


def _lanes_last(name, x, like):
    """(T, D, N) of an argument that may be (T, N, D) or, for one trial, (T, D); like: (T, N)."""
    x = np.atleast_3d(require_array(name, x)) * 1.0
    require(np.isfinite(x).all(), name, "not finite")
    if x.shape[2] != like.shape[1]:
        x = np.swapaxes(x, 1, 2)
    fits = x.shape[::2] == like.shape
    require(fits, name, f"expected (T, D, N) with T, N = {like.shape}, got {np.shape(x)}")
    return x


def _before(x, delay):
    """x_{t − delay}, 0 where there is none."""
    return np.concatenate([np.zeros_like(x[:delay]), x[: len(x) - delay]])


def _signals(starts, states, actions, rewards, dones):
    """(Column, x (T, N)) for all that a column may be, the likeliest first."""
    steps = np.arange(len(states))[:, None] + np.zeros(states.shape)
    first = steps == 0
    now = [
        ("constant", "constant", np.ones(states.shape)),
        ("start", "no action yet", first),
        ("start", "the first step of an episode", first | starts),
        ("time", "the time in the trial", steps),
        ("time", "the time in the episode", steps - np.maximum.accumulate(steps * starts)),
    ]
    at_any_delay = [
        *(("state", f"state {s:g}, one-hot", states == s) for s in np.unique(states)),
        *(("action", f"action {a:g}, one-hot", actions == a) for a in np.unique(actions)),
        ("end", "the end of an episode", dones),
        ("reward", "the reward", rewards),
        ("state", "the number of the state", states),
        ("action", "the number of the action", actions),
        ("action", "the number of the action + 1", actions + 1),
    ]
    signals = [(Column(kind, name), x * 1.0) for kind, name, x in now]
    for delay in (1, 0, 2):
        for kind, name, x in at_any_delay:
            signals.append((Column(kind, name, delay), _before(x * 1.0, delay)))
    return signals


def _column(x, signals, starts):
    """What a column x (T, N) is: at all steps, or else at all but the first of each episode."""
    if not x.any():
        return Column("constant", "0 everywhere")
    for carried in (True, False):
        for column, signal in signals:
            used = carried | ~starts
            used[: column.delay] = False
            y = x[used]
            fitted = signal[used] * _factor(y, signal[used])
            if y.any() and abs(y - fitted).max() <= FITS * abs(y).max():
                return replace(column, carried=carried)
    return Column("unknown", "none of what was tried")


def _factor(y, x):
    """The factor of x that comes nearest to y."""
    return np.vdot(x, y) / max(np.vdot(x, x), 1e-300)


@dataclass(frozen=True, eq=False)
class ClippedExplanation:
    """What the gradient of a clipped surrogate is; `str` says it in whole sentences."""

    name: str  # one of CLIPS, or "unknown"
    factor: float  # the gradient is factor × that of the sum over steps
    differs: object  # (T, N) bool: the steps where it is not PPO's
    findings: tuple  # sentences

    def __str__(self):
        return " ".join(self.findings)


# power of ρ in w; where the clip acts, beyond it in Â's direction or in the other; and what that is
CLIPS = {
    "ppo": (1, True, False, "This is PPO's clipped surrogate, as it should be."),
    "unclipped": (
        1,
        False,
        False,
        "The ratio is not clipped: a mistake, if it is meant to be PPO.",
    ),
    "clipped on both sides": (
        1,
        True,
        True,
        "It is clipped on both sides whatever the advantage's sign, a mistake: take the minimum of "
        "the clipped and the unclipped term.",
    ),
    "clipped on the wrong side": (
        1,
        False,
        True,
        "It is clipped on the wrong side, a mistake: take the minimum of the two terms where they "
        "are maximised, the maximum of their negatives in a loss.",
    ),
    "no ratio": (
        0,
        False,
        False,
        "The ratio is missing, a mistake: the gradient of log_pi has to be multiplied by "
        "exp(log_pi - old_log_probs).",
    ),
    "no ratio, clipped": (0, True, False, "The clip acts, but the ratio is missing, a mistake."),
}


def explain_clipped(gradient, logits, actions, advantages, old_log_probs, *, clip):
    """Whether a gradient with respect to the logits is PPO's, step by step, and what else it is.

    PPO's is w (1[a = a_t] − π(a)), with w = ρ Â where the clip does not act and 0 elsewhere, and
    ρ = π(a_t)/π_old(a_t). Schulman et al. (2017), eq. 7. gradient, logits: (T, A, N), or (T, A).
    actions, advantages, old_log_probs: (T, N), or (T,). clip: ε. Bonuses for entropy must be off.
    Returns a ClippedExplanation. Raises ValueError on other shapes and on what is not finite.
    """
    validate(clip=clip)
    given = dict(actions=actions, advantages=advantages, old_log_probs=old_log_probs)
    shape = require_array("actions", actions, kinds="iu").shape
    actions, advantages, old = (_along_trials(name, x, shape) for name, x in given.items())
    logits = _lanes_last("logits", logits, advantages)
    gradient = _lanes_last("gradient", gradient, advantages)
    require_shapes(logits.shape, gradient=gradient)
    taken = actions[:, None] == np.arange(logits.shape[1])[:, None]
    require(taken.any(1), "actions", f"not in 0..{logits.shape[1] - 1}", ("step", "trial"))

    log_pi = np.swapaxes(log_softmax(np.swapaxes(logits, 1, 2)), 1, 2)
    score = taken - np.exp(log_pi)
    ratio = np.exp((log_pi * taken).sum(1) - old)
    above = ratio >= 1 + clip
    below = ratio <= 1 - clip
    beyond = np.where(advantages > 0, above, below)
    behind = np.where(advantages > 0, below, above)
    factors = {}
    differs = {}
    for name, (power, one, other, _) in CLIPS.items():
        cut = (beyond & one) | (behind & other)
        x = (ratio**power * advantages * ~cut)[:, None] * score
        size = (x * x).sum(1)
        # the median, so that a few steps that differ do not spoil the factor of the others
        factors[name] = np.median((gradient * x).sum(1)[size > 0] / size[size > 0])
        error = abs(gradient - factors[name] * x).max(1)
        differs[name] = error > FITS * abs(gradient).max()
    name = min(CLIPS, key=lambda name: differs[name].sum())
    factor = factors[name]
    findings = [CLIPS[name][-1]]
    if differs[name].any():
        findings = [
            f"At {differs[name].sum()} steps it is none of what was tried; nearest: {name}."
        ]
        name = "unknown"
    wrong = differs["ppo"]
    findings += [
        f"It differs from PPO's at {wrong.sum()} of {wrong.size} steps.",
        f"It is {factor:.6g} times the sum's over steps, where a mean's is {1 / wrong.size:.6g}: a "
        "convention, as the minus sign of a loss is.",
    ]
    return ClippedExplanation(name, factor, wrong, tuple(findings))
