"""What functions say to bad input: ValueError with the argument's name, as the caller typed it, before the rest."""

import os
from math import prod
from numbers import Integral

import numpy as np
from autograd.extend import notrace_primitive
from autograd.tracer import isbox

MAX_BYTES = 2**33  # 8 GiB; set arguments.MAX_BYTES to allow more or less


class NotFinite(ValueError, FloatingPointError):
    """Parameters that are NaN or infinite: bad input where a user gave them, an accident of arithmetic where training made them."""


def _number(low=-np.inf, high=np.inf, beyond=-np.inf):
    return (
        lambda x: np.ndim(x) == 0
        and np.asarray(x).dtype.kind in "biuf"
        and bool(np.isfinite(x))
        and low <= x <= high
        and x > beyond
    )


RULES = {
    names: (what, good)
    for what, names, good in (  # of what an argument with one of these names is, everywhere
        ("a numpy.random.Generator", "rng", lambda x: isinstance(x, np.random.Generator)),
        ("an MDP", "mdps", lambda x: hasattr(x, "successors")),
        ("a policy", "policy", lambda x: hasattr(x, "n_actions")),
        ("an inner update", "inner", lambda x: hasattr(x, "prepare")),
        ("Trials", "trials", lambda x: hasattr(x, "outputs")),
        ("a path", "path", lambda x: isinstance(x, (str, os.PathLike))),
        ("a function", "sample_tasks optimiser update payoffs baseline train", callable),
        (
            "a whole number of at least 1",
            "n_tasks n_states n_actions units arms height width horizon n_train episodes threads inputs outputs "
            "pulls every epochs minibatches max_sweeps max_episodes max_datasets",
            lambda x: isinstance(x, Integral) and x >= 1,
        ),
        (
            "a whole number of at least 0",
            "steps first iterations n_held_out max_backtracks",
            lambda x: isinstance(x, Integral) and x >= 0,
        ),
        ("a finite number", "step_size step_reward pit_reward reward_mean", _number()),
        (
            "a finite number of at least 0",
            "bump_penalty reward_std ridge tolerance entropy value",
            _number(0),
        ),
        ("a finite number above 0", "clip radius damping max_norm goal_reward", _number(beyond=0)),
        ("a number above 0", "target_kl", lambda x: x is np.inf or _number(beyond=0)(x)),
        ("a number in [0, 1]", "discount lam slip", _number(0, 1)),
        ("a number between 0 and 1", "shrink confidence", lambda x: _number(0, 1, 0)(x) and x < 1),
        ("a finite number of at least 1", "memory", _number(1)),
    )
    for names in names.split()
}


def validate(**arguments):
    """Raise ValueError, naming the argument, unless each keeps the rule that RULES has for its name.

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
    """Raise ValueError naming `argument`, and the first place where `good` (N, S, …) is False, unless it is True everywhere."""
    good = np.asarray(good, bool)
    if not good.all():
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, np.argwhere(~good)[0]))
        raise ValueError(f"{argument}: {why}" + (f" (at {where})" if where else ""))


def require_array(argument, x, *shapes, kinds="biuf"):
    """x, unless autograd traces it, as an array of numbers (kinds="iu": integers, "f": floats), of one of the shapes if any are given."""
    try:
        x = x if isbox(x) else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    if x.dtype.kind not in kinds:  # (to write a dtype out takes longer than all the rest)
        raise ValueError(
            f"{argument}: expected {dict(iu='integers', f='floats').get(kinds, 'numbers')}, got {x.dtype}"
        )
    require_shapes(*shapes, **{argument: x})
    return x


def require_shapes(*shapes, **arrays):
    """Raise ValueError unless each array, traced by autograd or not, has one of the shapes (if any are given)."""
    for name, x in arrays.items():
        if shapes and np.shape(x) not in shapes:
            raise ValueError(
                f"{name}: expected shape {' or '.join(map(str, shapes))}, got {np.shape(x)}"
            )


@notrace_primitive
def require_finite(x, quantity, why=""):
    """Raise NotFinite, naming the quantity, unless all of x (…), of any shape, is finite."""
    if not np.isfinite(x).all():
        raise NotFinite(f"{quantity} that are not finite{why}")


def require_memory(*factors):
    """Raise ValueError if the product of the factors, in bytes, is above MAX_BYTES.

    Asked at the doors where a size typed wrong would take the machine's memory, before anything
    is allocated.
    """
    size = prod(map(int, factors))
    require(
        size <= MAX_BYTES, "arguments.MAX_BYTES", f"{size:,} bytes asked for, above {MAX_BYTES:,}"
    )
