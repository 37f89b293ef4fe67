"""Files that a kill leaves whole, and training that goes on from them to the same bits.

The oracle is the training that was never stopped. Files are damaged bit by bit, and processes
killed at random moments: run as a program, this file trains children to be killed.
"""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from helpers import random_tasks
from metarl_np import checkpoint, maml, ppo, reinforce, rl2_training, rl2_trpo, trpo
from metarl_np.learner.optim import adam, ascent
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.meta.rl2 import RecurrentPolicy
from metarl_np.runs.checkpoint import load, resumable, save
from metarl_np.tasks.bandits import independent

GENERATORS = [
    np.random.PCG64,
    np.random.PCG64DXSM,
    np.random.MT19937,
    np.random.Philox,
    np.random.SFC64,
]


# ---- entries


def same(x, y):
    """Equal in type and value, all the way down, arrays bit for bit."""
    if type(x) is not type(y):
        return False
    if isinstance(x, dict):
        types = list(map(type, x)) == list(map(type, y))
        return types and list(x) == list(y) and all(same(x[k], y[k]) for k in x)
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, np.ndarray):
        return (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    nan = x != x
    return x == y or (nan and y != y)


ENTRIES = {
    "numbers": [0, -1, 2**200, 0.1, -0.0, 1e-320, np.inf, -np.inf, np.nan, True, False, None],
    "numpy numbers": [
        np.float32(0.1),
        np.float64(0.1),
        np.int8(-3),
        np.bool_(True),
        np.uint64(2**64 - 1),
        np.complex64(1 - 2j),
    ],
    "strings": ["", "θ ← θ + α∇J", "two\nlines, a \0 and a \ud800", "dict", "array"],
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.float32([0.1, np.nan, -0.0]),
        np.zeros((0, 3)),
        np.array(1.5),
        np.array([], int),
        np.array([True]),
        np.array(["a", "bcd"]),
        np.arange(3, dtype=">i4"),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array([1j]),
        np.array(["2026-11-22"], "M8[D]"),
        np.arange(10)[::2],
    ],
    "empty": [{}, [], (), [[]], ((),)],
    "nested": {
        "a": ({"b": [(np.arange(3), 1), (None,)]}, [{}]),
        "c/d": np.ones(2),
        "c[0]": [np.zeros(1)],
        "array": {"array": "x"},
    },
    "keys": {1: "int", "1": np.arange(2), (1, "a"): "tuple", None: 0, 2.5: 0, np.int64(7): "numpy"},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_kind_of_entry_comes_back(name, tmp_path):
    path = tmp_path / "file.npz"
    save(path, "result", x=ENTRIES[name], **{"another name": 1})
    found = load(str(path), "result")
    assert same(found, {"x": ENTRIES[name], "another name": 1})
    # over itself
    save(path, "result", **found)
    assert same(load(path, "result"), found)
    assert os.listdir(tmp_path) == ["file.npz"]


NAMES = ["w", "W", "w.npy", "a[0]", "file", "allow_pickle", "metarl_np", "x\0y", " ", "/", "..", ""]


def test_no_name_of_an_entry_is_another_ones(tmp_path):
    entries = {name: np.full(2, i) for i, name in enumerate([*NAMES, "path", "kind", "0"])}
    entries["a"] = [np.full(2, -1.0)]
    save(tmp_path / "file", "result", **entries)
    assert same(load(tmp_path / "file", "result"), entries)


def test_a_file_whose_members_have_the_names_of_entries_is_read(tmp_path):
    """As they were written before, with the seed of a generator."""
    bits = np.random.default_rng(3).bit_generator
    arrays = {"theta[0]": np.arange(3)}
    state = json.dumps({"Generator": {"list": packed_old([bits.state, bits.seed_seq.state])}})
    text = '{"dict": [["theta", {"list": [{"array": "theta[0]"}]}], ["rng", %s]]}' % state
    with open(tmp_path / "file", "wb") as file:
        np.savez(file, metarl_np=f"result, version 1\n{text}", **arrays)
    found = load(tmp_path / "file", "result")
    assert same(found["theta"], [np.arange(3)])
    assert found["rng"].random() == np.random.default_rng(3).random()


def packed_old(parts):
    """Parts in which dictionaries are lists of pairs."""
    if isinstance(parts, dict):
        return {"dict": [[key, packed_old(x)] for key, x in parts.items()]}
    if isinstance(parts, (list, tuple)):
        return [packed_old(x) for x in parts]
    return parts


@pytest.mark.parametrize("bits", GENERATORS)
def test_generators_go_on(bits, tmp_path):
    rng = np.random.Generator(bits(5))
    rng.random(7)
    # half of a 64-bit number is left for the next one
    rng.integers(9, size=3, dtype=np.int32)
    save(tmp_path / "file", "result", rng=[rng])
    (again,) = load(tmp_path / "file", "result")["rng"]
    assert type(again.bit_generator) is bits
    for draw in (lambda x: x.integers(9, size=5, dtype=np.int32), lambda x: x.normal(size=1000)):
        np.testing.assert_array_equal(draw(again), draw(rng))


def test_a_generator_on_a_legacy_bit_generator_is_kept(tmp_path):
    rng = np.random.Generator(np.random.RandomState(3)._bit_generator)
    save(tmp_path / "file", "result", rng=rng)
    assert load(tmp_path / "file", "result")["rng"].random() == rng.random()


class PCG64(np.random.PCG64):
    """A foreign one of the same name."""


def test_foreign_generators_are_refused_by_name(tmp_path):
    rng = np.random.Generator(PCG64(3))
    with pytest.raises(TypeError, match="rng: expected a Generator on one of .*, got "):
        save(tmp_path / "file", "result", rng=rng)
    theta, train = RUNS["MAML"]
    with pytest.raises(TypeError, match="rng: expected a Generator"):
        next(resumable(tmp_path / "file", train, rng, theta))


class Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "bad",
    [
        Evil(),
        np.array([Evil()], object),
        {1, 2},
        b"bytes",
        1j,
        pathlib.Path("a"),
        np.ma.array([1]),
        print,
        np.random.RandomState(0),
        np.array([(None,)], [("a", object)]),
        np.str_("a\0"),
        np.bytes_(b"a\0"),
        np.array(["a"], np.dtypes.StringDType()),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_cannot_be_kept_is_named_and_the_old_file_stays(bad, tmp_path):
    save(tmp_path / "file", "result", x=1)
    with pytest.raises(TypeError, match=r"^x\['deep'\]\[1\]: expected .*, got "):
        save(tmp_path / "file", "result", x={"deep": [0, bad]})
    assert load(tmp_path / "file", "result") == {"x": 1}
    assert os.listdir(tmp_path) == ["file"]


# ---- files that are none


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "some run.npz"
    save(path, "training", theta=np.arange(12.0), rng=rng, iteration=3, words="abc")
    return path


def refused(path, kind="training", found=""):
    expected = f"{path.name}: expected a file of metarl_np: {kind}, version 1; found: .*{found}"
    with pytest.raises(ValueError, match=expected):
        load(path, kind)


def test_truncated_files_are_refused(file):
    good = file.read_bytes()
    for length in [*range(0, len(good), 97), *range(len(good) - 30, len(good))]:
        file.write_bytes(good[:length])
        refused(file)


def test_a_flipped_bit_is_refused_or_changes_nothing(file, rng):
    good = file.read_bytes()
    before = load(file, "training")
    places = range(0, len(good), 7)
    caught = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            found = load(file, "training")
        except ValueError as error:
            expected = f"{file}: expected a file of metarl_np: training, version 1; found: "
            assert str(error).startswith(expected)
            caught += 1
        else:
            # the bit is in what zip files say twice, or nobody reads: dates, permissions
            assert found["rng"].bit_generator.state == before["rng"].bit_generator.state
            del found["rng"]
            assert same(found, {key: x for key, x in before.items() if key != "rng"})
    assert caught > 0.9 * len(places)


def test_an_array_that_lost_an_entry_in_its_header_is_refused(file):
    good = file.read_bytes()
    assert good.count(b"(12,)") == 1
    file.write_bytes(good.replace(b"(12,)", b"(11,)"))
    refused(file, found="damaged: 0.npy")


THETA = np.arange(12.0)
OTHER_CALL = 'training, version 1\n{"Generator": [{"bit_generator": "seed"}, {}]}'


def an_array(path, file):
    with open(path, "wb") as other:
        np.save(other, THETA)


def a_pickle(path, file):
    with open(path, "wb") as other:
        np.save(other, np.array([Evil()], object), allow_pickle=True)


def another_zip(path, file):
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("metarl_np.npy", "nothing")


def with_a_pickle_in_it(path, file):
    members = dict(np.load(file)) | {"0": np.array([Evil()], object)}  # θ is the first array
    np.savez(path, **members)


FOREIGN = {
    "no header": lambda path, file: np.savez(path, theta=THETA),
    "a pickle as header": lambda path, file: np.savez(path, metarl_np=np.array(Evil(), object)),
    "a pickle as an array": with_a_pickle_in_it,
    "header only": lambda path, file: np.savez(path, metarl_np=np.load(file)["metarl_np"]),
    "no JSON": lambda path, file: np.savez(path, metarl_np="training, version 1\n{"),
    "another call": lambda path, file: np.savez(path, metarl_np=OTHER_CALL),
    "a list": lambda path, file: np.savez(path, metarl_np=["training, version 1", "{}"]),
    "an array": an_array,
    "a pickle": a_pickle,
    "text": lambda path, file: path.write_text("no file of numbers\n"),
    "another zip": another_zip,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused(name, file):
    path = file.with_name("foreign.npz")
    FOREIGN[name](path, file)
    refused(path)


def test_no_file_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere", "training")


def test_other_kinds_and_versions_are_refused(file, monkeypatch):
    refused(file, "weights", "training, version 1; damaged: None")
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    save(file, "training", theta=0)
    assert load(file, "training") == {"theta": 0}
    monkeypatch.undo()
    refused(file, found="training, version 2")


# ---- what goes wrong inside save


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(
    "place",
    [(os, "replace"), (os, "fsync"), (np, "savez"), (np.lib.format, "write_array")],
    ids=lambda p: p[1],
)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(file, place, error, monkeypatch):
    """While the new file is written, and after it; half of it is on disk already."""
    before = file.read_bytes()
    real = getattr(*place)

    def fail(target, *rest, **more):
        if hasattr(target, "write"):
            target.write(b"half of it")
        raise error

    monkeypatch.setattr(*place, fail)
    with pytest.raises(type(error)):
        save(file, "training", theta=np.ones(1000))
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
    monkeypatch.setattr(*place, real)
    save(file, "training", theta=1)
    assert load(file, "training") == {"theta": 1}


def test_what_a_kill_left_behind_does_not_pile_up(file):
    left = file.with_name("some run.npz.tmp")
    left.write_bytes(b"half of a file, longer than the next one" * 1000)
    assert load(file, "training")["words"] == "abc"
    save(file, "training", x=1)
    assert load(file, "training") == {"x": 1}
    assert os.listdir(file.parent) == [file.name]


# ---- training: run(2N) = run(N) + resume(N)


POOL = random_tasks(np.random.default_rng(0), 6, 4, 4, 2, horizon=4)
BATCH = dict(iterations=6, steps=1, episodes=6, step_size=0.05)
CRITIC = ActorCritic(SoftmaxPolicy(4, 4))
RECURRENT = RecurrentPolicy(1, 2, 4)


def tasks(rng):
    return POOL[rng.integers(6, size=3)]


def arms(rng):
    return independent(rng, 40, 2)


def outer(policy, inner, **options):
    """(θ, train) of MAML with this inner update."""
    settings = BATCH | options

    def train(rng, theta, **on):
        return maml.train(rng, tasks, policy, theta, inner, **settings, **on)

    return policy.init(), train


def multi_task():
    policy = SoftmaxPolicy(4, 4)
    settings = dict(iterations=6, episodes=6, step_size=0.05)

    def train(rng, theta, **on):
        return maml.train_multi_task(rng, tasks, policy, theta, **settings, **on)

    return policy.init(), train


def recurrent(update):
    theta = RECURRENT.init(np.random.default_rng(1))
    length = dict(iterations=6, episodes=4)

    def train(rng, theta, **on):
        return rl2_training.train_recurrent(rng, arms, RECURRENT, theta, update, **length, **on)

    return theta, train


SOFTMAX = SoftmaxPolicy(4, 4)
LOGISTIC = LogisticPolicy(4, 2)
REINFORCE = reinforce.Reinforce(0.5)
# {name: (θ, train)}; each has six iterations
RUNS = {
    "MAML": outer(SOFTMAX, REINFORCE, optimiser=adam),
    "MAML, plain ascent, score": outer(
        LOGISTIC, REINFORCE, optimiser=ascent, with_score=True, steps=2
    ),
    "multi-task": multi_task(),
    "two-level RL², PPO": outer(CRITIC, ppo.PPO(0.4, epochs=2, minibatches=2)),
    "two-level RL², TRPO": outer(CRITIC, trpo.TRPO(0.05, damping=0.01)),
    "recurrent RL², PPO": recurrent(rl2_training.RecurrentPPO(minibatches=3, epochs=2)),
    "recurrent RL², TRPO": recurrent(rl2_trpo.RecurrentTRPO(every=2)),
}


def bits(record):
    """A record's numbers, to compare with ==."""

    def flat(x):
        if isinstance(x, tuple):
            return [flat(y) for y in x]
        x = np.asarray(x)
        return x.dtype.str, x.tobytes()

    kept = {name: x for name, x in vars(record).items() if name not in ("rng", "configuration")}
    return {name: flat(x) for name, x in kept.items()}


@cache
def undisturbed(name, bit_generator=np.random.PCG64):
    """The records of a run that is never stopped, and the number that is drawn next."""
    theta, train = RUNS[name]
    rng = np.random.Generator(bit_generator(7))
    return list(map(bits, train(rng, theta))), rng.random()


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("bit_generator", [np.random.PCG64, np.random.MT19937])
def test_resuming_gives_the_same_bits(name, bit_generator, stop, tmp_path):
    theta, train = RUNS[name]
    whole, drawn_next = undisturbed(name, bit_generator)
    assert len({record["theta"] for record in whole}) == 6
    path = tmp_path / "file.npz"
    first = resumable(path, train, np.random.Generator(bit_generator(7)), theta)
    parts = [bits(record) for _, record in zip(range(stop), first)]
    first.close()
    # the second process comes with another generator, whose state is replaced
    mine = np.random.Generator(bit_generator(8))
    parts += [bits(record) for record in resumable(path, train, mine, theta)]
    assert parts == whole
    assert mine.random() == drawn_next


def resumed(path, name="MAML", seed=7, **options):
    """`resumable` of one of RUNS."""
    theta, train = RUNS[name]
    return resumable(path, train, np.random.default_rng(seed), theta, **options)


def test_without_a_file_it_is_the_training_itself(tmp_path):
    theta, train = RUNS["MAML"]
    whole, drawn_next = undisturbed("MAML")
    mine = np.random.default_rng(7)
    assert list(map(bits, resumable(tmp_path / "file", train, mine, theta))) == whole
    assert mine.random() == drawn_next
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_holds_what_was_promised(tmp_path):
    configuration = dict(seed=7, sizes=(4, 4))
    *_, record = resumed(tmp_path / "file", configuration=configuration)
    found = load(tmp_path / "file", "training")
    assert found["iteration"] == 5
    assert (found["theta"] == record.theta).all()
    assert same(found["state"], record.state)
    assert found["configuration"].items() >= configuration.items()
    assert isinstance(found["rng"], np.random.Generator)


def test_a_finished_run_gives_its_last_record_again(tmp_path):
    name = "recurrent RL², PPO"
    theta, train = RUNS[name]
    whole, drawn_next = undisturbed(name)
    list(resumed(tmp_path / "file", name))
    before = (tmp_path / "file").read_bytes()
    mine = np.random.default_rng(1)
    (record,) = resumable(tmp_path / "file", train, mine, theta)
    assert bits(record) == whole[-1]
    assert mine.random() == drawn_next
    assert (tmp_path / "file").read_bytes() == before


def test_a_file_of_a_longer_run_is_refused(tmp_path):
    list(resumed(tmp_path / "file"))
    theta, shorter = outer(SOFTMAX, REINFORCE, iterations=4)
    with pytest.raises(ValueError, match="first: 6 is outside 0..4"):
        next(resumable(tmp_path / "file", shorter, np.random.default_rng(7), theta))


class Interrupted(maml.Reinforce):
    """Ctrl-C in the middle of the n-th inner update from now, after the generator has moved on."""

    left = 10**9

    def __call__(self, policy, theta, data):
        Interrupted.left -= 1
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        return super().__call__(policy, theta, data)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_an_interrupt_in_the_middle_of_an_iteration(every, tmp_path, monkeypatch):
    theta, train = outer(SOFTMAX, Interrupted(0.5))
    rng = np.random.default_rng(7)
    whole = list(map(bits, train(rng, theta)))
    path = tmp_path / "file"
    parts = []
    # each process comes with another generator
    for seed in range(7, 20):
        # Each iteration calls it twice: here, and under autograd.
        monkeypatch.setattr(Interrupted, "left", 5 if seed == 9 else 3)
        mine = np.random.default_rng(seed)
        try:
            for record in resumable(path, train, mine, theta, every=every):
                parts.append(bits(record))
                if every == 1:
                    assert load(path, "training")["iteration"] == record.iteration
            break
        except KeyboardInterrupt:
            found = load(path, "training")
            assert found["theta"].tobytes() == record.theta.tobytes()
            assert found["iteration"] == record.iteration
            # the broken-off iteration had drawn
            assert found["rng"].bit_generator.state != mine.bit_generator.state
    assert parts == whole
    assert seed == 11
    assert mine.random() == rng.random()


def test_an_interrupt_before_the_first_record_leaves_no_file(tmp_path, monkeypatch):
    theta, train = outer(SOFTMAX, Interrupted(0.5))
    monkeypatch.setattr(Interrupted, "left", 1)
    with pytest.raises(KeyboardInterrupt):
        next(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_is_made_up_for(tmp_path, monkeypatch):
    calls = []
    real = os.replace

    def replace(*paths):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        list(resumed(tmp_path / "file"))
    assert len(calls) == 4
    assert load(tmp_path / "file", "training")["iteration"] == 2
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "every, stop, written",
    [
        (1, 9, [0, 1, 2, 3, 4, 5]),
        (2, 9, [1, 3, 5]),
        (4, 9, [3, 5]),
        (100, 9, [5]),
        (1, 3, [0, 1, 2]),
        (2, 3, [1, 2]),
        (100, 3, [2]),
    ],
)
def test_it_writes_every_so_often_and_at_the_end(every, stop, written, monkeypatch):
    seen = []

    def note(path, kind, **entries):
        seen.append((path, kind, entries["iteration"]))

    monkeypatch.setattr(checkpoint, "save", note)
    run = resumed("where", every=every)
    for _, _ in zip(range(stop), run):
        pass
    run.close()
    assert seen == [("where", "training", i) for i in written]


@pytest.mark.parametrize("every", [0, -1, 1.5, np.nan])
def test_bad_intervals_are_named(every, tmp_path):
    with pytest.raises(ValueError, match=f"every: {every} is not"):
        next(resumed(tmp_path / "file", every=every))


THIRDS = np.arange(2000.0) / 3
CONFIGURATION = dict(
    seed=1, step_size=0.1, tasks=dict(n=3, p=[0.5, np.nan]), grid=THIRDS, name=None
)


@pytest.mark.parametrize("asked_is_changed", [True, False], ids=["asked", "made"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", 2),
        ("step_size", np.nextafter(0.1, 1).item()),
        ("tasks", dict(n=3, p=[0.5, 0.6])),
        ("grid", np.where(THIRDS == THIRDS[1000], np.nextafter(THIRDS, 0), THIRDS)),
        ("name", "a"),
        ("grid", THIRDS.astype(np.float32)),
        ("new", 1),
    ],
    ids=repr,
)
def test_another_configuration_is_refused_by_name(key, value, asked_is_changed, tmp_path):
    theta, train = RUNS["MAML"]
    path = tmp_path / "some run.npz"
    made = CONFIGURATION
    asked = CONFIGURATION | {key: value}
    if not asked_is_changed:
        made, asked = asked, made
    next(resumed(path, configuration=made))
    rng = np.random.default_rng(8)
    with pytest.raises(ValueError, match=f"(?s)some run.npz: made with {key} = .*, not "):
        next(resumable(path, train, rng, theta, configuration=asked))
    # nothing was drawn, and the file is still good
    assert rng.random() == np.random.default_rng(8).random()
    assert load(path, "training")["iteration"] == 0
    assert next(resumed(path, configuration=dict(made))).iteration == 1


def test_other_generators_are_refused(tmp_path):
    theta, train = RUNS["MAML"]
    next(resumed(tmp_path / "file"))
    philox = np.random.Generator(np.random.Philox(7))
    with pytest.raises(ValueError, match="file: made with rng = 'PCG64', not 'Philox'"):
        next(resumable(tmp_path / "file", train, philox, theta))


def test_other_parameters_are_refused(tmp_path):
    theta, train = RUNS["MAML"]
    next(resumed(tmp_path / "file"))
    rng = np.random.default_rng(7)
    message = r"file: made with shape of theta = \(4, 4\), not \(5, 4\)"
    with pytest.raises(ValueError, match=message):
        next(resumable(tmp_path / "file", train, rng, np.zeros((5, 4))))


def test_a_file_without_a_configuration_is_refused(tmp_path):
    next(resumed(tmp_path / "file"))
    with pytest.raises(ValueError, match="file: made with seed = None, not 7"):
        next(resumed(tmp_path / "file", configuration=dict(seed=7)))


def test_a_file_of_another_kind_is_refused(tmp_path):
    save(tmp_path / "file", "weights", theta=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="file: expected a file of metarl_np: training, version 1"):
        next(resumed(tmp_path / "file"))


@dataclass(frozen=True)
class Mine:
    iteration: int
    theta: dict
    state: None
    note: str


def my_training(rng, theta, state, first):
    for i in range(first, 4):
        theta = {"w": theta["w"] + rng.random()}
        yield Mine(i, theta, state, f"number {i}")


def test_any_generator_of_such_records_will_do(tmp_path):
    theta = {"w": np.zeros(2)}

    def run(seed):
        return resumable(tmp_path / "file", my_training, np.random.default_rng(seed), theta)

    whole = my_training(np.random.default_rng(0), theta, None, 0)
    weights = [record.theta["w"].tolist() for record in whole]
    assert next(run(0)).note == "number 0"
    assert [record.theta["w"].tolist() for record in run(5)] == weights[1:]
    assert [record.note for record in run(5)] == ["number 3"]


def in_place(theta, gradient, state, *, step_size):
    """An optimiser that changes what it is given."""
    state = [0] if state is None else state
    state[0] += 1
    theta += step_size * gradient
    return theta, state


def test_an_optimiser_in_place_changes_no_earlier_record():
    theta, train = outer(SOFTMAX, REINFORCE, optimiser=in_place)
    start = theta.copy()
    records = list(train(np.random.default_rng(7), theta))
    assert (theta == start).all()
    assert [record.state for record in records] == [[i] for i in range(1, 7)]
    assert len({record.theta.tobytes() for record in records}) == 6


@dataclass
class Growing:
    iteration: int
    theta: np.ndarray
    state: list


def growing(rng, theta, state, first):
    """A training in place, which is interrupted in the middle of iteration 3."""
    for i in range(first, 5):
        theta += 1
        if i == 3:
            raise KeyboardInterrupt
        yield Growing(i, theta, [theta])


def test_the_file_holds_what_a_training_in_place_had_at_its_last_record(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        list(resumable(tmp_path / "f", growing, np.random.default_rng(0), np.zeros(2), every=9))
    found = load(tmp_path / "f", "training")
    assert found["iteration"] == 2
    assert found["theta"].tolist() == [3, 3] == found["state"][0].tolist()


# ---- SIGKILL at random moments


def kill_run(path):
    """What is killed: 200 iterations of MAML, a checkpoint after each."""
    theta, train = outer(SOFTMAX, REINFORCE, iterations=200)
    return resumable(path, train, np.random.default_rng(7), theta)


def nursery(path):
    """For each line of the input, a delay in ms, kills a child in training after so long.

    The delay counts from the child's first sign of life. Each time it says how the child ended: the
    signal, or 0 if it had finished. (A fork is faster than a new interpreter, and this one has a
    single thread.)
    """
    for line in sys.stdin:
        alive, birth = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(birth, b"!")
            for _ in kill_run(path):
                pass
            os._exit(0)
        os.read(alive, 1)
        os.close(alive)
        os.close(birth)
        time.sleep(float(line) / 1e3)
        # until it is waited for, the number is its own
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


@pytest.fixture
def kill_after(tmp_path):
    """A function of a delay in ms: the status of a child that trained and was killed then."""
    paths = os.pathsep.join(map(str, sys.path))
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "killed.npz")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as program:

        def status(delay):
            print(delay, file=program.stdin, flush=True)
            assert select.select([program.stdout], [], [], 60)[0], "the nursery hangs"
            return int(program.stdout.readline())

        yield status
        program.stdin.close()
    assert program.returncode == 0


def test_killed_at_random_moments_it_loses_nothing(kill_after, tmp_path, rng):
    """60 kills at least, from the first sign of life on, in one run or, if it is fast, several."""
    *_, last = kill_run(tmp_path / "undisturbed")
    path = tmp_path / "killed.npz"
    kills = 0
    finished = 0
    reached = -1  # the iteration of the file
    while kills < 60 or not finished:
        longest = rng.choice([5, 30, 100])
        status = kill_after(rng.uniform(0, longest) if kills < 60 else 5000)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        assert set(os.listdir(tmp_path)) <= {"undisturbed", "killed.npz", "killed.npz.tmp"}
        if not path.exists():
            assert reached == -1
            continue
        found = load(path, "training")
        assert found["iteration"] >= reached
        reached = found["iteration"]
        if reached == 199:
            assert found["theta"].tobytes() == last.theta.tobytes()
            assert same(found["state"], last.state)
            path.unlink()
            finished += 1
            reached = -1


if __name__ == "__main__":
    nursery(sys.argv[1])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files")
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no ordinary file"):
        checkpoint.save(path, "training", x=1)
    assert path.is_fifo()


@pytest.mark.parametrize("name", ["rng", "shape of theta"])
def test_a_setting_under_a_name_that_is_taken_is_refused(name, tmp_path):
    """It would be overwritten, and another run be taken for this one."""
    rng = np.random.default_rng(0)
    configuration = {name: 1}
    with pytest.raises(ValueError, match=f"configuration: .*{name}"):
        next(
            checkpoint.resumable(
                tmp_path / "file", growing, rng, np.zeros(2), configuration=configuration
            )
        )
