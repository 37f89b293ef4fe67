"""What a user has recorded, from PyTorch, JAX or anything else, as arrays that `check` takes."""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import (
    harmless,
    require,
    require_array,
    require_flags,
    require_floats,
    require_mask,
    set_fields,
    unmasked,
)
from metarl_np.learner.rollouts import Episodes

GIVEN = ("rewards", "log_probs", "baseline", "advantages", "values")  # a number for each step


@dataclass(frozen=True, eq=False)
class RecordedEpisodes(Episodes):
    """Episodes of a user's, and what else he may have kept of them, None where he has not.

    Where lanes held several episodes these are cut apart and stand side by side, padded: `lanes`
    and `terminated` say where they come from, and `count` how many there are.
    """

    log_probs: np.ndarray = None  # (T, N, K) log π(a_t|s_t) when it was sampled
    baseline: np.ndarray = None  # (T, N, K) b_t
    advantages: np.ndarray = None  # (T, N, K) Â_t, as the loss has them
    values: np.ndarray = None  # (T, N, K) V(s_t)
    last_values: np.ndarray = None  # (N, K) V(s_T)
    terminated: np.ndarray = None  # (N, K) bool: `dones` was true at the last step
    lanes: np.ndarray = None  # (N, K) the lane in which the episode was recorded; −1: padding
    # (N, K) all True where states or actions are not given, or are no indices; None where they are
    # known. It is an array only so that `part` can cut it
    unknown: np.ndarray = None

    def __post_init__(self):
        super().__post_init__()
        for name in GIVEN[1:]:
            x = getattr(self, name)
            if x is not None:
                x = require_floats(name, x, self.mask.shape)
                set_fields(self, **{name: harmless(x, self.mask)})

    @property
    def count(self):
        """Episodes in each task, (N,): K, or fewer where some are padding."""
        n_tasks, k = self.mask.shape[1:]
        return np.full(n_tasks, k) if self.lanes is None else (self.lanes >= 0).sum(1)

    @property
    def discrete(self):
        """Are states and actions known, as indices?"""
        return self.unknown is None


def record(
    states,
    actions,
    rewards,
    mask=None,
    log_probs=None,
    baseline=None,
    *,
    advantages=None,
    values=None,
    last_values=None,
    dones=None,
):
    """One data set for `check`, of arrays (T, K) for one task or (T, N, K) for N.

    states, actions: integers; or None, or anything with more axes at the end, where the policy is
    one of your own (see `estimators`). mask: true for steps that were really
    taken; all by default. What stands in another place does not matter, and becomes 0. log_probs:
    log π(a_t|s_t) of your policy when it acted. baseline: b_t. advantages: Â_t as they stand in
    your loss; `diagnose` uses them only if all data sets have them. values: V(s_t) as your critic
    or baseline had it, last_values (K,) or (N, K): V(s_T). One NaN at an unmasked step of values
    drops all of them without a word, as if they were not given; so does one anywhere in
    last_values. dones: true at the last step of an episode,
    where a lane goes on with the next one; such lanes are cut into episodes. A lane is one column
    (task, k) of the arrays, as from one copy of a vectorised environment; with dones it holds
    several episodes, one after the other.

    Returns RecordedEpisodes. Raises ValueError, naming the argument, on other shapes, on what is
    not finite in unmasked places, and on tensors that are not plain arrays yet.
    """
    rewards = require_floats("rewards", rewards, traced=False)
    shape = rewards.shape
    fits = len(shape) in (2, 3) and rewards.size
    require(fits, "rewards", f"expected shape (T, K) or (T, N, K), not empty, got {shape}")
    mask = np.ones(shape, bool) if mask is None else require_array("mask", mask)
    require(mask.shape == shape, "mask", f"{mask.shape} is not the shape of rewards, {shape}")
    mask = require_mask(mask, shape)
    require(mask.any(), "mask", "false everywhere: it is true for steps that were really taken")
    given = [rewards, log_probs, baseline, advantages, values]
    steps = {name: _numbers(name, x, mask) for name, x in zip(GIVEN, given)}
    steps["mask"] = _three_axes(mask)
    states = _indices("states", states, mask)
    actions = _indices("actions", actions, mask)
    nothing = np.zeros(steps["mask"].shape, int)
    steps["states"] = nothing if states is None else states
    steps["actions"] = nothing if actions is None else actions
    if last_values is not None:
        last_values = require_floats("last_values", last_values, shape[1:], traced=False)
        last_values = last_values.reshape(-1, shape[-1])
        require(~np.isinf(last_values), "last_values", "not finite", ("task", "episode"))
        last_values = None if np.isnan(last_values).any() else last_values
    ends = dict(last_values=last_values)
    if dones is not None:
        dones = require_flags("dones", require_array("dones", dones), shape)
        steps, ends = _cut(steps, _three_axes(dones), last_values)
    if states is None or actions is None:
        ends["unknown"] = np.ones(steps["mask"].shape[1:], bool)
    return RecordedEpisodes(log_pi=None, last_states=None, truncated=None, **steps, **ends)


def _three_axes(x):
    """What has a task's axis or none as (T, N, K)."""
    return x.reshape(len(x), -1, x.shape[-1])


def _numbers(name, x, mask):
    """A number for each step, 0 where masked: (T, N, K).

    None if x is, or has a NaN where values may.
    """
    if x is None:
        return None
    x = require_floats(name, x, traced=False)
    why = f"{x.shape} is not the shape of rewards, {mask.shape}"
    require(x.shape == mask.shape, name, why)
    if name == "values" and np.isnan(x[mask]).any():
        return None
    x = unmasked(x, mask)
    require(np.isfinite(x).all(), name, "not finite")
    return _three_axes(x)


def _indices(name, x, mask):
    """States or actions as indices, 0 where masked: (T, N, K). None where they are none."""
    if x is None:
        return None
    x = require_array(name, x)
    fits = x.shape[: mask.ndim] == mask.shape
    require(fits, name, f"{x.shape} does not begin with the shape of rewards, {mask.shape}")
    if x.shape != mask.shape:
        return None
    require(x.dtype.kind in "iu", name, f"expected integers, got {x.dtype}; or {name}=None")
    x = np.where(mask, x, 0).astype(int)
    return _three_axes(x) if (x >= 0).all() else None


def _cut(steps, dones, last_values):
    """Lanes cut behind each of their dones: steps (T, N, K) → those of episodes, side by side.

    Episodes are numbered within their task, lane by lane and then in order of time.
    """
    shape = steps["mask"].shape
    task, lane, time = np.nonzero(np.moveaxis(steps["mask"], 0, 2))  # all steps, lane after lane
    begins = (time == 0) | np.roll(dones[time, task, lane], 1)
    start = np.flatnonzero(begins)
    episode = np.cumsum(begins) - 1
    since = np.arange(len(time)) - start[episode]  # t within the episode
    episode = episode - np.searchsorted(task[start], task)
    new_shape = since.max(initial=0) + 1, shape[1], episode.max(initial=0) + 1

    def cut(x):
        """What each step or each lane has → what each step of the episodes has, 0 where none is."""
        result = np.zeros(new_shape, x.dtype)
        result[since, task, episode] = np.broadcast_to(x, shape)[time, task, lane]
        return result

    steps = {name: None if x is None else cut(x) for name, x in steps.items()}
    terminated = cut(dones).any(0)
    if last_values is not None:
        last_values = np.where(terminated, 0.0, cut(last_values)[0])
    lanes = cut(np.arange(1, shape[2] + 1))[0] - 1
    return steps, dict(last_values=last_values, terminated=terminated, lanes=lanes)
