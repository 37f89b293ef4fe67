"""What a door says to bad input: a ValueError that names the argument, before anything is sampled.

A *door* is a function that a user calls with his own data. It checks each argument once, by name.
What stands behind it, a *room*, trusts what it is given.
"""

import inspect
import os
from functools import cached_property, wraps
from itertools import count
from math import prod
from types import ModuleType

import numpy as np
from autograd import extend
from autograd import numpy as autograd_numpy
from autograd.tracer import isbox

NO_TRACE = (
    "autograd cannot go through it. What can be differentiated are theta and log_pi, in the exact "
    "functions of a finite horizon, the surrogates and the inner updates"
)
MAX_BYTES = 2**33  # 8 GiB; set arguments.MAX_BYTES to allow more or less
LARGEST_FLOAT = float(np.finfo(float).max)  # as NumPy's own it could not meet long integers
LARGEST_INT = int(np.iinfo(int).max)
# of arrays, in the machine's own byte order
TYPES = {np.dtype(x) for x in ("bool", "int32", "int64", "float16", "float32", "float64")}


class NotFinite(ValueError, FloatingPointError):
    """Parameters that are NaN or infinite.

    They are bad input where a user gave them, and an accident of arithmetic where training made
    them: hence both kinds of error.
    """


class OutOfRange(ValueError, IndexError):
    """An index of what is not there: an IndexError too, by which a `for` loop finds the end."""


# ---- what an argument is


def plain_number(x):
    """The bool, int or float that a number is; None if x is none.

    Numbers are Python's, NumPy's scalars, and arrays without axes, but for masked ones.
    """
    if not hasattr(x, "__array__"):
        return x if isinstance(x, (bool, int, float)) else None
    if np.ma.is_masked(x):
        return None
    x = np.asarray(x)
    # (NumPy's own `item` gives a longdouble back as it is.)
    plain = dict(b=bool, i=int, u=int, f=float).get(x.dtype.kind)
    return plain(x) if plain and x.ndim == 0 else None


# What follows reads an argument: it gives the value to be used, or None if the argument is bad.


def _whole(low):
    """An int of at least `low`. True and False are no numbers of things."""

    def read(x):
        number = plain_number(x)
        good = isinstance(number, int) and not isinstance(number, bool) and number >= low
        return int(number) if good else None

    return read


def _number(low=-np.inf, high=np.inf, *, above=-np.inf, below=np.inf):
    """A finite float in [low, high], and strictly between `above` and `below`."""

    def read(x):
        number = plain_number(x)
        good = number is not None and low <= number <= high and above < number < below
        return float(number) if good and abs(number) <= LARGEST_FLOAT else None

    return read


def _positive_or_infinite(x):
    return np.inf if plain_number(x) == np.inf else _number(above=0)(x)


def _if(good):
    return lambda x: x if good(x) else None


def _has(attribute):
    return _if(lambda x: hasattr(x, attribute))


def _is_path(x):
    """A path that is not empty, and has no zero byte, which no system takes."""
    return isinstance(x, (str, os.PathLike)) and str(x) and "\0" not in str(x)


# what an argument with one of these names is, everywhere in the package
_RULES = [
    ("a numpy.random.Generator", "rng", _if(lambda x: isinstance(x, np.random.Generator))),
    ("an MDP", "mdps candidates like", _has("successors")),
    ("a belief", "belief", _has("update")),
    ("a Prior", "prior", _has("concentration")),
    ("a policy", "policy", _has("n_actions")),
    ("an inner update", "inner", _has("prepare")),
    ("Trials", "trials", _has("outputs")),
    ("a path", "path folder", _if(_is_path)),
    (
        "a function",
        "sample_tasks optimiser update payoffs baseline train plan strategy play matvec",
        _if(callable),
    ),
    (
        "a whole number of at least 1",
        "n_tasks n_states n_actions n_train arms units inputs outputs height width horizon "
        "length episodes pulls threads every epochs minibatches samples "
        "max_sweeps max_episodes max_datasets max_states max_posteriors "
        "max_explanations",
        _whole(1),
    ),
    (
        "a whole number of at least 0",
        "t steps iterations max_iterations first n_held_out max_backtracks",
        _whole(0),
    ),
    (
        "a finite number",
        "step_size inner_step_size step_reward pit_reward reward_mean mean",
        _number(),
    ),
    (
        "a finite number of at least 0",
        "bump_penalty reward_std ridge tolerance entropy value c beta scale",
        _number(0),
    ),
    ("a finite number of at least 1", "memory", _number(1)),
    (
        "a finite number above 0",
        "clip radius damping max_norm goal_reward concentration std noise eps",
        _number(above=0),
    ),
    ("a number above 0", "target_kl", _positive_or_infinite),
    ("a number in [0, 1]", "discount lam slip epsilon", _number(0, 1)),
    ("a number between 0 and 1", "shrink confidence delta", _number(above=0, below=1)),
]
# what an array may hold, in words, by NumPy's letters
KINDS = dict(biuf="real numbers", iu="integers", f="floats", biu="integers or booleans")
RULES = {name: (what, read) for what, names, read in _RULES for name in names.split()}


def validate(**arguments):
    """Raise ValueError, naming the argument, unless each keeps the rule of its name in RULES.

    A door writes `steps, every = validate(steps=steps, every=every)`, with its arguments' own
    names. Returned are the values in this order, of one argument the value alone: numbers as
    Python's own, so that no NumPy type of an option decides the type of a result. A name without a
    rule is a mistake of the door's: TypeError.
    """
    values = []
    for name, x in arguments.items():
        if name not in RULES:
            raise TypeError(f"arguments.RULES has no rule for {name!r}")
        require_plain(**{name: x})
        what, read = RULES[name]
        value = read(x)
        if value is None:
            raise ValueError(f"{name}: {x!r:.99} is not {what}")
        values.append(value)
    return values if len(values) > 1 else values[0]


def validate_fields(record, *names):
    """`validate` the fields of a frozen dataclass while it is being made: these, or all."""
    for name in names or vars(record):
        set_fields(record, **{name: validate(**{name: getattr(record, name)})})


def misplaced(x):
    """Why x can stand for no object, number or array of ours, "" if it may."""
    if isinstance(x, (type, ModuleType)):
        kind = "class" if isinstance(x, type) else "module"
        return f"{x!r:.99} is a {kind}, where an object belongs"
    if isbox(x) or (isinstance(x, (list, tuple)) and any(map(isbox, x))):
        return NO_TRACE
    return ""


def require_plain(**arguments):
    """Raise ValueError, naming it, if one is a class or a module, or is traced by autograd."""
    for name, x in arguments.items():
        why = misplaced(x)
        if why:
            raise ValueError(f"{name}: {why}")


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


def require_array(argument, x, *shapes, kinds="biuf", traced=False):
    """x as an array of numbers, of one of the shapes if any are given; raises ValueError.

    kinds: NumPy's letters of what is allowed, a key of KINDS. The array is of one of TYPES: other
    integers become int64, other floats float64. What no int64 can hold stays uint64 where floats
    are allowed too; else it is an index, which becomes the largest int64, one of nothing. A masked
    array is refused if anything in it is masked. traced: what autograd traces is given back as it
    is; else it is refused.
    """
    is_traced = traced and isbox(x)
    if type(x) is not np.ndarray and not is_traced:
        x = _as_array(argument, x)
    if x.dtype.kind not in kinds:
        raise ValueError(f"{argument}: expected {KINDS[kinds]}, got {x.dtype}")
    too_large = x.dtype.kind == "u" and x.max(initial=0) > LARGEST_INT
    if too_large and "f" in kinds:
        x = x.astype(np.uint64)
    elif too_large:  # it must not become -1, the last one
        x = np.minimum(x, LARGEST_INT).astype(int)
    elif x.dtype not in TYPES and not is_traced:
        with np.errstate(over="ignore"):  # a longdouble may become infinite
            x = x.astype(float if x.dtype.kind == "f" else int)
    require_shapes(*shapes, **{argument: x})
    return x


def _as_array(argument, x):
    """What is no plain array yet as one; ValueError if it is nothing that can be one."""
    require_plain(**{argument: x})
    rows = x if isinstance(x, (list, tuple)) else [x]
    masked = any(isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row) for row in rows)
    require(not masked, argument, "has masked entries: fill them in first")
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    except (TypeError, RuntimeError) as error:  # of a framework's tensor
        hint = "no plain array; of a tensor hand in x.detach().cpu().numpy()"
        raise ValueError(f"{argument}: {hint} ({error})") from error


def require_floats(argument, x, *shapes, single=False, traced=True):
    """x as a float64 array, else as `require_array`. single: a float32 array stays one.

    Floats may be traced by autograd, unless traced is False.
    """
    x = require_array(argument, x, *shapes, traced=traced)
    stays = x.dtype == float or isbox(x) or (single and x.dtype == np.float32)
    return x if stays else x.astype(float)


def require_index(argument, index, size):
    """Which of `size` things an index means: a slice as it is, else integers of 0 … size − 1.

    index: an integer, a slice, an array of integers or a mask (size,). Negative integers
    count from the end. Raises ValueError, OutOfRange where there is no such thing.
    """
    expected = "expected an integer, a slice, a list of integers or a mask"
    if isinstance(index, slice):
        try:
            range(size)[index]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{argument}: {index}: {error}") from error
        return index
    if isinstance(index, tuple):  # an index of several axes, as in NumPy
        raise ValueError(f"{argument}: {expected}, got the tuple {index!r:.99}")
    if isinstance(index, list) and not index:
        return np.zeros(0, int)  # NumPy would make floats of it
    chosen = require_array(argument, index, kinds="biu")
    if chosen.dtype == bool:
        is_mask = np.shape(index) == (size,)
        require(is_mask, argument, f"expected a mask ({size},), got shape {np.shape(index)}")
        return np.flatnonzero(chosen)
    outside = (chosen < -size) | (chosen >= size)
    if outside.any():
        raise OutOfRange(f"{argument}: {chosen[outside][0]} is outside 0..{size - 1}")
    chosen = chosen.astype(int)  # in uint8 a sum with the size might not fit
    return np.where(chosen < 0, chosen + size, chosen)


def require_shapes(*shapes, **arrays):
    """Raise ValueError unless each array, traced by autograd or not, has one of the shapes.

    Where no shape is given every one is allowed.
    """
    for name, x in arrays.items():
        if shapes and np.shape(x) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: expected shape {expected}, got {np.shape(x)}")


def require_flags(argument, x, *shapes, axes=("time", "task", "episode")):
    """x (…) as booleans, 1 and 0 being True and False; raises ValueError on other numbers."""
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
        return autograd_numpy.where(mask, x, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.multiply(x, mask, out=out)
        total = np.sum(product)  # in which a NaN or an infinity is not lost
    return product if np.isfinite(total) else np.where(mask, x, 0)


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


def digits(number):
    """A whole number for an error, in groups of three digits, or as a power if it is very long.

    (Python refuses to write out more than 4300 digits.)
    """
    if number < 10**99:
        return f"{number:,}"
    return f"about 10^{int(number.bit_length() * np.log10(2))}"


def require_memory(*factors):
    """Raise ValueError if the product of the factors, in bytes, is above MAX_BYTES.

    Asked at the doors where a size typed wrong would take the machine's memory, before anything
    is allocated.
    """
    size = prod(map(int, factors))
    why = f"{digits(size)} bytes asked for, above {MAX_BYTES:,}"
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
        """The values of the fields, and which of the arrays in them are read-only."""
        values = {}
        for name, x in vars(self).items():
            if not isinstance(getattr(type(self), name, None), cached_property):
                values[name] = x
        return values, [not array.flags.writeable for array in _arrays_in(values)]

    def __setstate__(self, state):
        values, locked = state
        set_fields(self, **values)
        for array, is_locked in zip(_arrays_in(values), locked):
            if is_locked:
                read_only(array)


def _arrays_in(x):
    """The arrays in dictionaries, lists and tuples, to any depth; a Record looks after its own."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, (dict, list, tuple)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _arrays_in(part)


# ---- what autograd is to know of a function
#
# autograd looks for what it traces among positional arguments only. So a traced array that is given
# by its name gets into the function as it is: `stop(x=x)` would stop nothing. These three are
# autograd's own, for functions that may be called either way.


def primitive(function):
    """autograd's: a function whose derivatives are told by `defvjp`."""
    return _by_position(function, extend.primitive(function))


def notrace_primitive(function):
    """autograd's: a function of plain arrays, whose result is a constant to every derivative."""
    return _by_position(function, extend.notrace_primitive(function))


def _by_position(function, traced):
    """`traced`, what autograd made of the function, with keywords put into their positions."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*arguments, **keywords):
        if keywords:
            bound = signature.bind(*arguments, **keywords)
            bound.apply_defaults()
            arguments = bound.args
        return traced(*arguments)

    call.traced = traced
    return call


def defvjp(function, *vjps, argnums=None):
    """autograd's: the rules of a `primitive`; an argument without one is refused by its name."""
    rules = dict(zip(count() if argnums is None else argnums, vjps))
    names = inspect.signature(function).parameters
    every = [rules.get(i, _no_rule(name)) for i, name in enumerate(names)]
    extend.defvjp(function.traced, *every)


def _no_rule(name):
    def refuse(result, *arguments):
        raise ValueError(f"{name}: {NO_TRACE}")

    return refuse


@notrace_primitive
def require_finite(x, quantity, why=""):
    """Raise NotFinite, naming the quantity, unless all of x, of any shape, is finite."""
    if not np.isfinite(x).all():
        raise NotFinite(f"{quantity} that are not finite{why}")
