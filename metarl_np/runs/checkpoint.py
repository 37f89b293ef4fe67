"""Files of which a kill at any instant leaves the last good one, and training that goes on from such a file as if it had never stopped."""

import copy
import json
import os
import pathlib
from types import SimpleNamespace

import numpy as np

from metarl_np.arguments import require, validate

VERSION = 1


def save(path, kind, **entries):
    """Write one .npz of this kind ("training", "result", "weights") to path + ".tmp" and rename that to `path`; one process at a time may.
    An entry is a number, string, bool, None, array, Generator, or (nested) dict, list or tuple of those; TypeError names another.
    """
    validate(path=path)

    def pack(
        x, name
    ):  # as JSON; arrays become members of the .npz, under the names of their places
        if type(x) in (list, tuple):
            return {type(x).__name__: [pack(y, f"{name}[{i}]") for i, y in enumerate(x)]}
        if type(x) is dict:
            return {
                "dict": [
                    [pack(k, f"{name} key {i}"), pack(x[k], f"{name}[{k!r}]")]
                    for i, k in enumerate(x)
                ]
            }
        if (
            isinstance(x, np.random.Generator)
            and type(x.bit_generator.seed_seq) is np.random.SeedSequence
        ):
            return {
                "Generator": pack([x.bit_generator.state, x.bit_generator.seed_seq.state], name)
            }
        if isinstance(x, np.generic) or type(x) is np.ndarray and not x.dtype.hasobject:
            arrays[name] = x
            return {"array" if type(x) is np.ndarray else "scalar": name}
        if x is not None and type(x) not in (bool, int, float, str):
            raise TypeError(
                f"{name}: expected numbers, strings, bools, None, arrays, Generators, dicts, lists and tuples, got {type(x)}"
            )
        return x

    require(isinstance(kind, str), "kind", f"expected a string, got {kind!r:.99}")
    arrays = {}
    temporary = pathlib.Path(f"{path}.tmp")
    text = json.dumps({"dict": [[name, pack(x, name)] for name, x in entries.items()]})
    try:
        with open(temporary, "wb") as file:
            np.savez(file, metarl_np=f"{kind}, version {VERSION}\n{text}", **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # left only by what went wrong


def load(path, kind):
    """The dictionary of the entries that `save` wrote, never unpickling. FileNotFoundError if there is no file; ValueError, naming the file
    and what was expected, if it is truncated, damaged, foreign, of another kind or version."""
    validate(path=path)

    def generator(state):
        bits = {b.__name__: b for b in np.random.BitGenerator.__subclasses__()}[
            state[0]["bit_generator"]
        ]()
        bits.__setstate__((state[0], np.random.SeedSequence(**state[1])))
        return np.random.Generator(bits)

    make = dict(
        dict=dict,
        list=list,
        tuple=tuple,
        Generator=generator,
        array=lambda name: file[name],
        scalar=lambda name: file[name][()],
    )
    with open(path, "rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                found, text = file["metarl_np"].item().rsplit("\n", 1)
                if (
                    found != f"{kind}, version {VERSION}" or file.zip.testzip()
                ):  # check sums, of all members
                    raise ValueError(f"{found}; damaged: {file.zip.testzip()}")
                return json.loads(
                    text, object_hook=lambda x: next(make[tag](value) for tag, value in x.items())
                )
        except (
            Exception
        ) as error:  # damage may make numpy and zipfile raise anything; nothing is swallowed
            raise ValueError(
                f"{path}: expected a file of metarl_np: {kind}, version {VERSION}; found: {error}"
            ) from error


def resumable(path, train, rng, theta, *, every=1, configuration=None):
    """The records of train(rng, theta, state=…, first=…), going on where the file at `path` ends, if there is one: with its θ, optimiser's
    state and iteration, rng being set, in place, to what it was. If nothing is left to do, the last record comes again. Writes the file
    after each `every`-th record, at the end and when interrupted, as things were after the last record: what a broken-off iteration drew
    from rng is forgotten, so draw nothing else from it. Records: dataclasses with iteration, theta, state, of fields that `save` takes.
    ValueError names the file and the key if `configuration` (a dict: settings, seed) is not the file's.
    """
    validate(path=path, train=train, rng=rng, every=every)
    require(
        isinstance(configuration or {}, dict),
        "configuration",
        f"expected a dictionary, got {configuration!r:.99}",
    )
    configuration = (configuration or {}) | {
        "shape of theta": np.shape(theta),
        "rng": type(rng.bit_generator).__name__,
    }
    first = 0
    state = None
    last = None
    record = None
    now = None
    if pathlib.Path(path).exists():
        last = load(path, "training")
        with np.printoptions(
            threshold=np.inf, floatmode="unique"
        ):  # every number of an array, to the last bit
            for key in configuration | last["configuration"]:
                there, here = (repr(c.get(key)) for c in (last["configuration"], configuration))
                require(there == here, path, f"made with {key} = {there:.99}, not {here:.99}")
        rng.bit_generator.__setstate__(
            last["rng"].bit_generator.__getstate__()
        )  # as copying does; .state has no count of children
        theta = last["theta"]
        state = last["state"]
        first = last["iteration"] + 1
    try:
        for record in train(rng, theta, state=state, first=first):
            now = dict(vars(record), rng=copy.deepcopy(rng), configuration=configuration)
            if (record.iteration + 1) % every == 0:
                now = save(path, "training", **now)  # None: nothing is left to save
            yield record
    finally:
        if now:
            save(path, "training", **now)
    if last and not record:
        yield SimpleNamespace(**last)
