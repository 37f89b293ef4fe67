"""Files that survive a crash, and training that goes on from one as if it had never stopped.

A kill at any instant leaves the last good file.
"""

import copy
import json
import os
import pathlib
from types import SimpleNamespace

import numpy as np

from metarl_np.arguments import require, validate

VERSION = 1


def save(path, kind, **entries):
    """Write one .npz of this kind ("training", "result", "weights") with these entries.

    An entry is a number, string, bool, None, array, Generator, or a (nested) dict, list or tuple of
    those; TypeError names another. It is written to path + ".tmp", which is then renamed; one
    process at a time may do so.
    """
    validate(path=path)
    require(isinstance(kind, str), "kind", f"expected a string, got {kind!r:.99}")
    arrays = {}
    text = json.dumps({"dict": [[name, _pack(x, name, arrays)] for name, x in entries.items()]})
    temporary = pathlib.Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, metarl_np=f"{_title(kind)}\n{text}", **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # left only by what went wrong


def _title(kind):
    return f"{kind}, version {VERSION}"


def _pack(x, name, arrays):
    """x as JSON, in which a dictionary of one entry is {what it is: its parts}.

    Arrays become members of the .npz, under the names of their places.
    """
    kind = type(x)
    if kind in (list, tuple):
        return {kind.__name__: [_pack(y, f"{name}[{i}]", arrays) for i, y in enumerate(x)]}
    if kind is dict:
        items = []
        for i, key in enumerate(x):
            packed_key = _pack(key, f"{name} key {i}", arrays)
            items.append([packed_key, _pack(x[key], f"{name}[{key!r}]", arrays)])
        return {"dict": items}
    if isinstance(x, np.random.Generator):
        bits = x.bit_generator
        if type(bits.seed_seq) is np.random.SeedSequence:
            return {"Generator": _pack([bits.state, bits.seed_seq.state], name, arrays)}
    if isinstance(x, np.generic) or kind is np.ndarray and not x.dtype.hasobject:
        arrays[name] = x
        return {"array" if kind is np.ndarray else "scalar": name}
    if x is None or kind in (bool, int, float, str):
        return x
    known = "numbers, strings, bools, None, arrays, Generators, dicts, lists and tuples"
    raise TypeError(f"{name}: expected {known}, got {kind}")


def load(path, kind):
    """The dictionary of the entries that `save` wrote, never unpickling.

    FileNotFoundError if there is no file. ValueError, naming the file and what was expected, if it
    is truncated, damaged, foreign, or of another kind or version.
    """
    validate(path=path)
    with open(path, "rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                title, text = file["metarl_np"].item().rsplit("\n", 1)
                damaged = file.zip.testzip()  # by the check sums of all members
                if title != _title(kind) or damaged:
                    raise ValueError(f"{title}; damaged: {damaged}")
                return json.loads(text, object_hook=_unpack_from(file))
        except Exception as error:  # damage may make numpy and zipfile raise anything
            expected = f"expected a file of metarl_np: {_title(kind)}"
            raise ValueError(f"{path}: {expected}; found: {error}") from error


def _unpack_from(file):
    """The function from {what it is: its parts} to x, with the arrays from this .npz."""
    make = dict(
        dict=dict,
        list=list,
        tuple=tuple,
        Generator=_generator,
        array=lambda name: file[name],
        scalar=lambda name: file[name][()],
    )

    def unpack(packed):
        ((kind, parts),) = packed.items()
        return make[kind](parts)

    return unpack


def _generator(states):
    """The Generator of a bit generator's state and its seed sequence's."""
    state, seed = states
    known = {bits.__name__: bits for bits in np.random.BitGenerator.__subclasses__()}
    bits = known[state["bit_generator"]]()
    bits.__setstate__((state, np.random.SeedSequence(**seed)))
    return np.random.Generator(bits)


def resumable(path, train, rng, theta, *, every=1, configuration=None):
    """The records of train(rng, theta, state=…, first=…), going on where the file `path` ends.

    If there is one, its θ, optimiser's state and iteration are taken, and rng is set, in place, to
    what it was; if nothing is left to do, the last record comes again. The file is written after
    each `every`-th record, at the end and when interrupted, as things were after the last record:
    what a broken-off iteration drew from rng is forgotten, so draw nothing else from it.

    Records are dataclasses with iteration, theta, state, and fields that `save` takes.
    configuration: a dict of settings, the seed for one; ValueError names the file and the key where
    it is not the file's.
    """
    validate(path=path, train=train, rng=rng, every=every)
    configuration = configuration or {}
    why = f"expected a dictionary, got {configuration!r:.99}"
    require(isinstance(configuration, dict), "configuration", why)
    kind_of_rng = type(rng.bit_generator).__name__
    configuration = configuration | {"shape of theta": np.shape(theta), "rng": kind_of_rng}
    first = 0
    state = None
    last = None
    if pathlib.Path(path).exists():
        last = load(path, "training")
        _require_same(path, last["configuration"], configuration)
        # as copying does; the property `state` has no count of spawned children
        rng.bit_generator.__setstate__(last["rng"].bit_generator.__getstate__())
        theta = last["theta"]
        state = last["state"]
        first = last["iteration"] + 1
    record = None
    unsaved = None
    try:
        for record in train(rng, theta, state=state, first=first):
            unsaved = dict(vars(record), rng=copy.deepcopy(rng), configuration=configuration)
            if (record.iteration + 1) % every == 0:
                save(path, "training", **unsaved)
                unsaved = None
            yield record
    finally:
        if unsaved:
            save(path, "training", **unsaved)
    if last and not record:
        yield SimpleNamespace(**last)


def _require_same(path, theirs, ours):
    """Raise ValueError, with the file and the key, unless the configurations are the same."""
    with np.printoptions(threshold=np.inf, floatmode="unique"):  # every number, to the last bit
        for key in ours | theirs:
            there = repr(theirs.get(key))
            here = repr(ours.get(key))
            require(there == here, path, f"made with {key} = {there:.99}, not {here:.99}")
