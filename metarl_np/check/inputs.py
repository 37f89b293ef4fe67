"""What a recurrent policy is shown, and when it forgets.

RL² (Duan et al. 2016; Wang et al. 2016) shows a recurrent policy at each step of a trial the state
and the last action, reward and end of an episode, also where that was in the episode before. Each
column of the inputs is compared with what it may be, times a factor, of one step or another.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from metarl_np.arguments import require, require_array

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
LAST = ("action", "reward", "end")  # of the last step: what is not known before
# What may be found; and what that is. The keys are of four kinds: (kind, delay) of a column,
# (kind, "lost") of a column and (kind, "missing") or (kind, "not found") of them all,
# ("null action", is there one?), and ("hidden", how it is kept)
FINDINGS = {
    **{
        (kind, 0): f"A mistake: the {kind} is not known yet when the policy acts: show that of the "
        "step before."
        for kind in LAST
    },
    **{
        (kind, 2): f"A mistake: the {kind} comes a step too late: show it at the very next step."
        for kind in LAST
    },
    **{
        ("state", delay): "A mistake: the state has passed when the policy acts: show the new one."
        for delay in (1, 2)
    },
    **{
        (kind, "lost"): f"A mistake: the {kind} of an episode's last step is never shown, since a "
        "reset emits zeros: show it at the next episode's first step."
        for kind in ("action", "reward")
    },
    **{
        (kind, "not found"): f"No column shows the {kind}, unless one of those that are none of "
        "what was tried does."
        for kind in ("state", *LAST)
    },
    ("state", "missing"): "No column shows the state, which is right in a bandit only.",
    ("action", "missing"): "No column shows the last action, a mistake: what was it that paid?",
    ("reward", "missing"): "No column shows the last reward, a mistake: what is there to learn "
    "from?",
    ("end", "missing"): "No column shows that an episode ended: harmless if state or time show it; "
    "if not, give the flag at the next episode's first step.",
    ("null action", True): "The first input says that there was no action yet, as it should.",
    ("null action", False): "The first input says that an action was taken, as arm 0 that paid 0, "
    "a mistake: let a null action of its own stand there.",
    ("hidden", "all the same"): "The hidden state never changes: does the network reach it?",
    ("hidden", "kept"): "The hidden state lives through all episodes of a trial, as it should.",
    ("hidden", "cleared at some"): "The hidden state is cleared at some of the episodes, a mistake:"
    " clear it at a trial's start only.",
    ("hidden", "cleared at all"): "The hidden state is cleared at each episode, a mistake: clear it"
    " at a trial's start only, or nothing is learned of the task.",
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
    given = {name: number_a_step(name, x, shape) for name, x in given.items()}
    require(np.isin(given["dones"], (0, 1)), "dones", "not booleans", axes=("step", "trial"))
    x = vector_a_step("inputs", inputs, given["states"])
    restarts = _before(given["dones"], 1) > 0
    signals = _signals(restarts, **given)
    columns = tuple(_column(column, signals, restarts) for column in np.moveaxis(x, 2, 0))

    facts = _facts(columns)
    null_action = None
    if ("action", 1) in facts:
        shown = x[:, :, [column.kind in ("action", "start") for column in columns]]
        as_later = (shown[1:] == shown[0]).all(2) & ~restarts[1:]
        null_action = not as_later.any()
        facts.add(("null action", null_action))
    if hidden is not None:
        hidden = vector_a_step("hidden", hidden, given["states"])
        cleared = (hidden == hidden[0]).all(2)[restarts]
        where = "cleared at all" if cleared.all() else "cleared at some"
        where = where if cleared.any() else "kept"
        facts.add(("hidden", where if (hidden != hidden[0]).any() else "all the same"))
    findings = [f"Column {i} is {column}." for i, column in enumerate(columns)]
    said = [sentence for fact, sentence in FINDINGS.items() if fact in facts]
    findings += dict.fromkeys(said)  # each once
    return InputsExplanation(columns, null_action, tuple(findings))


def _facts(columns):
    """What FINDINGS says of columns: their delays, and what is lost or missing."""
    facts = {(column.kind, column.delay) for column in columns}
    facts |= {(column.kind, "lost") for column in columns if not column.carried}
    kinds = {column.kind for column in columns}
    missing = "not found" if "unknown" in kinds else "missing"
    return facts | {(kind, missing) for kind in ("state", *LAST) if kind not in kinds}


def number_a_step(name, x, shape):
    """An argument of one number a step, (T, N) or for one trial (T,), as (T, N)."""
    require(len(shape) in (1, 2), name, f"expected shape (T,) or (T, N), got {shape}")
    x = require_array(name, x, shape) * 1.0
    require(np.isfinite(x).all(), name, "not finite")
    return x.reshape(shape[0], -1)


def vector_a_step(name, x, like):
    """An argument of D numbers a step, (T, D, N), (T, N, D) or (T, D), as (T, N, D).

    like: of shape (T, N).
    """
    given = require_array(name, x)
    require(np.isfinite(given).all(), name, "not finite")
    x = np.atleast_3d(given) * 1.0
    if x.shape[2] == like.shape[1]:
        x = np.swapaxes(x, 1, 2)
    fits = x.shape[:2] == like.shape
    require(fits, name, f"expected (T, D, N) with T, N = {like.shape}, got {given.shape}")
    return x


def _before(x, delay):
    """x_{t − delay}, 0 where there is none."""
    return np.concatenate([np.zeros_like(x[:delay]), x[: len(x) - delay]])


def _signals(restarts, states, actions, rewards, dones):
    """(Column, x (T, N)) for all that a column may be, the likeliest first."""
    steps = np.arange(len(states))[:, None] + np.zeros(states.shape)
    first = steps == 0
    now = [
        ("constant", "constant", np.ones(states.shape)),
        ("start", "no action yet", first),
        ("start", "the first step of an episode", first | restarts),
        ("time", "the time in the trial", steps),
        ("time", "the time in the episode", steps - np.maximum.accumulate(steps * restarts)),
    ]
    at_any_delay = [
        *(("state", f"state {s:g}, one-hot", states == s) for s in np.unique(states)),
        *(("action", f"action {a:g}, one-hot", actions == a) for a in np.unique(actions)),
        ("end", "the end of an episode", dones),
        ("end", "1 - done (or else dones was given inverted)", 1 - dones),
        ("reward", "the reward", rewards),
        ("state", "the number of the state", states),
        ("action", "the number of the action", actions),
        ("action", "the number of the action + 1", actions + 1),
    ]
    likeliest_first = [(now, 0), (at_any_delay, 1), (at_any_delay, 0), (at_any_delay, 2)]
    signals = []
    for rows, delay in likeliest_first:
        for kind, name, x in rows:
            signals.append((Column(kind, name, delay), _before(x * 1.0, delay)))
    return signals


def _column(x, signals, restarts):
    """What a column x (T, N) is: at all steps, or else at all but the first of each episode."""
    if not x.any():
        return Column("constant", "0 everywhere")
    for (form, is_form), carried in product(FORMS.items(), (True, False)):
        for column, signal in signals:
            used = carried | ~restarts
            used[: column.delay] = False
            if x[used].any() and is_form(x[used], signal[used], column.kind):
                return replace(column, name=form.format(column.name), carried=carried)
    return Column("unknown", "none of what was tried")


def _is_times(y, x, kind):
    """Is y (M,) a multiple of x?"""
    return not compare(y[:, None], x[:, None])[1].any()


def _grows(y, x, kind):
    """Is y (M,) a function of the rewards x that grows with them?"""
    order = np.argsort(x)
    steps = np.diff(y[order]) / abs(y).max()
    same = np.diff(x[order]) == 0
    enough = kind == "reward" and steps.size > 9 and steps.any()
    return enough and (steps >= -FITS).all() and (steps[same] <= FITS).all()


FORMS = {"{}": _is_times, "a function that grows with {}, as clipped or standardised": _grows}


def compare(y, x):
    """What y (…, D) is times x at most steps, and at which it is not: a number, (…) bool."""
    size = (x * x).sum(-1)
    factors = (x * y).sum(-1)[size > 0] / size[size > 0]
    # the median, so that a few steps that differ do not spoil the factor of the others
    factor = np.median(factors) if factors.size else 0.0
    error = abs(y - factor * x).max(-1)
    return factor, error > FITS * abs(y).max(initial=0)
