"""Files that a kill at any instant leaves whole, and training that goes on from such a file.

A training that goes on gives the same bits as one that was never stopped.
"""

import copy
import json
import os
import pathlib
from functools import partial
from types import SimpleNamespace

import numpy as np

from metarl_np.arguments import require, validate

VERSION = 1
GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")  # those of NumPy


# ---- one file


def save(path, kind, /, **entries):
    """Write the entries to one .npz file. A kill at any instant leaves the old file or the new one.

    The file is written as `path` + ".tmp" first, and then renamed. So only one process at a time
    may write to a path. Arrays are members of the .npz with the numbers 0, 1, …; the names, and all
    else, are JSON in the member `metarl_np`.

    path: a string or pathlib.Path.
    kind: what the file is for, a string: "training", "result" or "weights".
    entries: numbers, strings, bools, None, arrays, Generators, and dictionaries, lists and tuples
        of those, to any depth. TypeError names the place of anything else. Of a Generator, whose
        bits must come from one of GENERATORS, NumPy's `state` is kept: it draws the same numbers
        again. What it would `spawn` is not kept, so draw seeds from it instead.
    """
    validate(path=path)
    require(isinstance(kind, str), "kind", f"{kind!r:.99} is no string")
    there = pathlib.Path(path)
    device = there.exists() and not there.is_file() and not there.is_dir()
    require(not device, path, "no ordinary file, which the renamed file would replace")
    arrays = {}
    packed = [[name, _pack(x, name, arrays)] for name, x in entries.items()]
    text = json.dumps({"dict": packed})
    temporary = pathlib.Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, metarl_np=f"{_title(kind)}\n{text}", **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # It is still there only if something went wrong.
        temporary.unlink(missing_ok=True)


def load(path, kind):
    """The dictionary of the entries that `save` wrote; nothing is unpickled.

    FileNotFoundError is raised if there is no file. ValueError names the file, and what was
    expected, if it is truncated, damaged, foreign, or of another kind or version.
    """
    validate(path=path)
    with open(path, "rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                found, text = file["metarl_np"].item().rsplit("\n", 1)
                # the first member whose check sum is wrong, or None
                damaged = file.zip.testzip()
                if found != _title(kind) or damaged:
                    raise ValueError(f"{found}; damaged: {damaged}")
                return json.loads(text, object_hook=partial(_unpack, file))
        # On a damaged file numpy and zipfile may raise anything. All of it becomes one error.
        except Exception as error:
            expected = f"expected a file of metarl_np: {_title(kind)}"
            raise ValueError(f"{path}: {expected}; found: {error}") from error


def _title(kind):
    """What a file of this kind begins with."""
    return f"{kind}, version {VERSION}"


def _pack(x, name, arrays):
    """x, which stands at the place `name`, in a form that JSON can hold: {type: its parts}.

    Arrays are put into the dictionary `arrays` and numbered. Their names in the file are not the
    user's: two of those may become one member, or an argument of `numpy.savez`.
    """
    kind = type(x)
    if kind in (list, tuple):
        items = [_pack(item, f"{name}[{i}]", arrays) for i, item in enumerate(x)]
        return {kind.__name__: items}
    if kind is dict:
        keys = [_pack(key, f"{name} key {i}", arrays) for i, key in enumerate(x)]
        values = [_pack(x[key], f"{name}[{key!r}]", arrays) for key in x]
        return {"dict": list(zip(keys, values))}
    if kind is np.random.Generator:
        bits = type(x.bit_generator)
        if bits is not getattr(np.random, bits.__name__, None) or bits.__name__ not in GENERATORS:
            raise TypeError(f"{name}: expected a Generator on one of {GENERATORS}, got {bits}")
        return {"Generator": _pack([x.bit_generator.state], name, arrays)}
    if (kind is np.ndarray or isinstance(x, np.generic)) and _comes_back(x):
        number = str(len(arrays))
        arrays[number] = x
        return {"array" if kind is np.ndarray else "scalar": number}
    if x is not None and kind not in (bool, int, float, str):
        allowed = "numbers, strings, bools, None, arrays, Generators, dicts, lists and tuples"
        raise TypeError(f"{name}: expected {allowed}, got {kind}")
    return x


def _comes_back(x):
    """Does NumPy's file format, without pickles, give this array or scalar back as it is?"""
    if x.dtype.hasobject or x.dtype.kind == "T":  # "T": strings of any length
        return False
    if isinstance(x, (np.str_, np.bytes_)):  # an array drops the zeros at their ends
        return np.array(x)[()] == x
    described = np.lib.format.dtype_to_descr(x.dtype)
    return np.lib.format.descr_to_dtype(described) == x.dtype


def _unpack(file, packed):
    """What `_pack` made {type: parts} of; the parts are unpacked already."""
    ((kind, parts),) = packed.items()
    if kind == "Generator":
        return _generator(*parts)
    if kind == "array":
        return file[parts]
    if kind == "scalar":
        return file[parts][()]
    return {"dict": dict, "list": list, "tuple": tuple}[kind](parts)


def _generator(state, *seed):
    """A Generator in this state. Older files hold the seed of its SeedSequence as well."""
    name = state["bit_generator"]
    # so that a foreign file cannot name what is called
    require(name in GENERATORS, "bit_generator", f"{name!r:.99} is none of {GENERATORS}")
    bits = getattr(np.random, name)()
    bits.state = state
    return np.random.Generator(bits)


# ---- training that goes on


def resumable(path, train, rng, theta, *, every=1, configuration=None):
    """The records of a training, which goes on from the file if there is one.

    They are those of train(rng, theta, state=…, first=…). If there is a file, then θ, the
    optimiser's state and the iteration come from it, and rng is set, in place, to what it was. If
    nothing is left to do, the last record comes again.

    The file is written after each `every`-th record, at the end, and when the generator is
    interrupted or closed. It holds things as they were after the last record: what a broken-off
    iteration drew from rng is forgotten. So draw nothing else from this rng.

    path: of the file, a string or pathlib.Path; its folder must exist.
    train: a generator function whose records are dataclasses with the fields iteration, theta and
        state, and any others, all of types that `save` takes.
    rng: a numpy.random.Generator on one of GENERATORS. Its `state` is what is kept, so a training
        that spawns from rng does not go on to the same bits; it should draw seeds from rng.
    theta: the parameters to start from if there is no file.
    every: a number of records.
    configuration: a dictionary of the settings and the seed that make this training what it is.
        The names "rng" and "shape of theta" are taken.

    ValueError names the file and the key if the file was made with another configuration.
    """
    validate(path=path, train=train, rng=rng)
    every = validate(every=every)
    given = configuration or {}
    require(isinstance(given, dict), "configuration", f"{given!r:.99} is no dictionary")
    _pack(rng, "rng", {})  # refuses what no file could hold, before anything is trained
    generator = type(rng.bit_generator).__name__
    own = {"shape of theta": np.shape(theta), "rng": generator}
    taken = sorted(given.keys() & own.keys())
    require(not taken, "configuration", f"{taken} are kept here already: give another name")
    configuration = given | own
    last = None
    start = dict(state=None, first=0)
    if pathlib.Path(path).exists():
        last = load(path, "training")
        _require_same(path, last["configuration"], configuration)
        rng.bit_generator.state = last["rng"].bit_generator.state  # in place
        theta = last["theta"]
        start = dict(state=last["state"], first=last["iteration"] + 1)

    record = None
    unsaved = None
    try:
        for record in train(rng, theta, **start):
            kept = vars(record) | dict(rng=rng, configuration=configuration)
            unsaved = copy.deepcopy(kept)  # the training may go on in place
            if (record.iteration + 1) % every == 0:
                save(path, "training", **unsaved)
                unsaved = None
            yield record
    finally:
        if unsaved:
            save(path, "training", **unsaved)
    if last and not record:
        yield SimpleNamespace(**last)


def _require_same(path, there, here):
    """ValueError, naming file and key, unless two configurations are the same to the last bit."""
    with np.printoptions(threshold=np.inf, floatmode="unique"):
        for key in here | there:
            made = repr(there.get(key))
            asked = repr(here.get(key))
            require(made == asked, path, f"made with {key} = {made:.99}, not {asked:.99}")
