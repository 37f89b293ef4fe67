"""What a door says to bad input: a ValueError that names the argument, before anything is sampled.

A *door* is a function that a user calls with his own data. It checks each argument once, by name.
What stands behind it, a *room*, trusts what it is given.
"""

import os
from functools import cached_property
from math import prod
from numbers import Integral

import numpy as np
from autograd import numpy as traced
from autograd.extend import notrace_primitive
from autograd.tracer import isbox

MAX_BYTES = 2**33  # 8 GiB; set arguments.MAX_BYTES to allow more or less


class NotFinite(ValueError, FloatingPointError):
    """Parameters that are NaN or infinite.

    They are bad input where a user gave them, and an accident of arithmetic where training made
    them: hence both kinds of error.
    """


def _whole(low):
    return lambda x: isinstance(x, Integral) and x >= low


def _number(low=-np.inf, high=np.inf, *, above=-np.inf, below=np.inf):
    """Is x a finite number in [low, high], and strictly between `above` and `below`?"""

    def good(x):
        is_number = np.ndim(x) == 0 and np.asarray(x).dtype.kind in "biuf"
        return is_number and bool(np.isfinite(x)) and low <= x <= high and above < x < below

    return good


def _has(attribute):
    return lambda x: hasattr(x, attribute)


# what an argument with one of these names is, everywhere in the package
_RULES = [
    ("a numpy.random.Generator", "rng", lambda x: isinstance(x, np.random.Generator)),
    ("an MDP", "mdps", _has("successors")),
    ("a policy", "policy", _has("n_actions")),
    ("an inner update", "inner", _has("prepare")),
    ("Trials", "trials", _has("outputs")),
    ("a path", "path", lambda x: isinstance(x, (str, os.PathLike))),
    ("a function", "sample_tasks optimiser update payoffs baseline train plan strategy", callable),
    (
        "a whole number of at least 1",
        "n_tasks n_states n_actions n_train arms units inputs outputs height width horizon "
        "episodes pulls threads every epochs minibatches samples "
        "max_sweeps max_episodes max_datasets max_states max_explanations",
        _whole(1),
    ),
    (
        "a whole number of at least 0",
        "steps iterations max_iterations first n_held_out max_backtracks",
        _whole(0),
    ),
    (
        "a finite number",
        "step_size inner_step_size step_reward pit_reward reward_mean",
        _number(),
    ),
    (
        "a finite number of at least 0",
        "bump_penalty reward_std ridge tolerance entropy value c beta scale",
        _number(0),
    ),
    ("a finite number of at least 1", "memory", _number(1)),
    ("a finite number above 0", "clip radius damping max_norm goal_reward", _number(above=0)),
    ("a number above 0", "target_kl", lambda x: x is np.inf or _number(above=0)(x)),
    ("a number in [0, 1]", "discount lam slip epsilon", _number(0, 1)),
    ("a number between 0 and 1", "shrink confidence", _number(above=0, below=1)),
]
RULES = {name: (what, good) for what, names, good in _RULES for name in names.split()}


def validate(**arguments):
    """Raise ValueError, naming the argument, unless each keeps the rule of its name in RULES.

    A door writes `validate(rng=rng, steps=steps)`, with its arguments' own names. A name without
    a rule is a mistake of the door's: TypeError.
    """
    for name, x in arguments.items():
        if name not in RULES:
            raise TypeError(f"arguments.RULES has no rule for {name!r}")
        what, good = RULES[name]
        if not good(x):
            raise ValueError(f"{name}: {x!r:.99} is not {what}")


def require(good, argument, why, axes=("task", "state", "action", "successor")):
    """Raise ValueError, naming the argument, unless `good` is True everywhere.

    good: a bool or an array of them, whose axes are named by `axes`: the error says where the
    first False stands.
    """
    good = np.asarray(good, bool)
    if not good.all():
        first = np.argwhere(~good)[0]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first))
        raise ValueError(f"{argument}: {why}" + (f" (at {where})" if where else ""))


def require_array(argument, x, *shapes, kinds="biuf"):
    """x as an array of numbers, of one of the shapes if any are given; raises ValueError.

    kinds: NumPy's letters of what is allowed, "iu" for integers, "f" for floats. What autograd
    traces is given back as it is.
    """
    try:
        x = x if isbox(x) else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    if x.dtype.kind not in kinds:
        expected = dict(iu="integers", f="floats").get(kinds, "numbers")
        raise ValueError(f"{argument}: expected {expected}, got {x.dtype}")
    require_shapes(*shapes, **{argument: x})
    return x


def require_shapes(*shapes, **arrays):
    """Raise ValueError unless each array, traced by autograd or not, has one of the shapes.

    Where no shape is given every one is allowed.
    """
    for name, x in arrays.items():
        if shapes and np.shape(x) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: expected shape {expected}, got {np.shape(x)}")


def require_flags(argument, x, *shapes, axes=("time", "task", "episode")):
    """x as booleans, numbers 0 and 1 for False and True; raises ValueError on other numbers."""
    x = require_array(argument, x, *shapes)
    if x.dtype != bool:
        require((x == 0) | (x == 1), argument, "expected true and false, or 1 and 0", axes)
        x = x == 1
    return x


def require_mask(mask, shape):
    """The mask (T, …) of recorded episodes as booleans: True while an episode goes on, then False.

    Raises ValueError on what are no flags, and where a step follows a masked one: that is no mask,
    but `dones`, or an inverted mask.
    """
    mask = require_flags("mask", mask, shape)
    dones = (
        "False before True, where a mask is True while an episode goes on, and False ever after; "
        "of `dones`, True at the last step of an episode, it is np.cumsum(dones, 0) - dones == 0"
    )
    require(mask[:-1] >= mask[1:], "mask", dones, ("time", "task", "episode"))
    return mask


def unmasked(x, mask, out=None):
    """x where the mask (…) is True and else 0, x and mask broadcast: (…).

    It lets no NaN through, and none into a derivative either. Where there is none it is a product,
    since that takes a fourth of the time. out: where the product may be written, x itself perhaps.
    """
    if isbox(x):
        return traced.where(mask, x, 0)
    with np.errstate(invalid="ignore"):
        product = np.multiply(x, mask, out=out)
    return product if np.isfinite(product).all() else np.where(mask, x, 0)


def harmless(x, mask):
    """x with 0 for what would do harm where it is masked; x itself where nothing would.

    Harm is done by floats that are not finite, and by integers, as they number states or actions,
    that are negative or above all unmasked ones: such a state may not exist. x and mask broadcast.
    """
    if mask.all() or isbox(x):
        return x
    if x.dtype.kind == "f":
        good = np.isfinite(x)
    else:
        good = (x >= 0) & (x <= x.max(where=mask, initial=0))
    good |= mask
    return x if good.all() else np.where(good, x, 0)


@notrace_primitive
def require_finite(x, quantity, why=""):
    """Raise NotFinite, naming the quantity, unless all of x, of any shape, is finite."""
    if not np.isfinite(x).all():
        raise NotFinite(f"{quantity} that are not finite{why}")


def require_memory(*factors):
    """Raise ValueError if the product of the factors, in bytes, is above MAX_BYTES.

    Asked at the doors where a size typed wrong would take the machine's memory, before anything
    is allocated.
    """
    size = prod(map(int, factors))
    why = f"{size:,} bytes asked for, above {MAX_BYTES:,}"
    require(size <= MAX_BYTES, "arguments.MAX_BYTES", why)


def set_fields(record, **values):
    """Set fields of a frozen dataclass while it is being made: in its `__post_init__` only."""
    vars(record).update(values)


def trusted(kind, **values):
    """A record of this kind with values that need no check, as a part of what was checked."""
    record = object.__new__(kind)
    set_fields(record, **values)
    return record


def read_only(array):
    """The array itself, which cannot be written to any more; what autograd traces never can."""
    if not isbox(array):
        array.flags.writeable = False
    return array


class Record:
    """A dataclass with arrays. What is read-only in it is so in its copies and pickles, too.

    NumPy itself forgets this. What a record can compute again, its cached properties, is left out.
    """

    def __getstate__(self):
        """The values of the fields, and the names of those that are read-only arrays."""
        values = {}
        locked = []
        for name, x in vars(self).items():
            if not isinstance(getattr(type(self), name, None), cached_property):
                values[name] = x
                if isinstance(x, np.ndarray) and not x.flags.writeable:
                    locked.append(name)
        return values, locked

    def __setstate__(self, state):
        values, locked = state
        set_fields(self, **values)
        for name in locked:
            read_only(values[name])
