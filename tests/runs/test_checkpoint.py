"""Files that a kill leaves whole, and training that goes on from them to the same bits. As a
program, it trains children to be killed.
"""

import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass

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
    if isinstance(x, dict):
        return (
            type(y) is dict
            and list(x) == list(y)
            and all(type(a) is type(b) for a, b in zip(x, y))
            and all(same(x[k], y[k]) for k in x)
        )
    if isinstance(x, (list, tuple)):
        return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, np.ndarray):
        return type(y) is np.ndarray and (x.dtype, x.shape, x.tobytes()) == (
            y.dtype,
            y.shape,
            y.tobytes(),
        )
    return type(x) is type(y) and (x == y or x != x and y != y)


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
    save(path, "result", **found)  # over itself
    assert same(load(path, "result"), found) and os.listdir(tmp_path) == ["file.npz"]


def test_arrays_are_found_under_their_names_by_numpy_alone(tmp_path):
    save(tmp_path / "file", "result", theta=np.arange(3), state=(np.ones(2), {"m": np.zeros(1)}))
    with np.load(tmp_path / "file", allow_pickle=False) as file:
        assert (
            set(file.files) == {"metarl_np", "theta", "state[0]", "state[1]['m']"}
            and (file["theta"] == np.arange(3)).all()
        )


@pytest.mark.parametrize("seed", [5, (3, 2**100), np.arange(4), None], ids=str)
@pytest.mark.parametrize("bits", GENERATORS)
def test_generators_go_on_and_spawn_on(bits, seed, tmp_path):
    parent = np.random.Generator(bits(np.random.SeedSequence(seed, pool_size=5)))
    for rng in (parent, parent.spawn(3)[1]):  # a child has a spawn key
        rng.spawn(2)
        # half of a 64-bit number is left for the next one
        rng.random(7), rng.integers(9, size=3, dtype=np.int32)
        save(tmp_path / "file", "result", rng=[rng])
        (again,) = load(tmp_path / "file", "result")["rng"]
        assert type(again.bit_generator) is bits
        np.testing.assert_array_equal(
            again.integers(9, size=5, dtype=np.int32), rng.integers(9, size=5, dtype=np.int32)
        )
        np.testing.assert_array_equal(again.normal(size=1000), rng.normal(size=1000))
        for _ in range(2):
            for mine, theirs in zip(again.spawn(2), rng.spawn(2)):
                np.testing.assert_array_equal(mine.random(5), theirs.random(5))
                np.testing.assert_array_equal(
                    mine.spawn(1)[0].random(5), theirs.spawn(1)[0].random(5)
                )


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
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_cannot_be_kept_is_named_and_the_old_file_stays(bad, tmp_path):
    save(tmp_path / "file", "result", x=1)
    with pytest.raises(TypeError, match=r"^x\['deep'\]\[1\]: expected .*, got "):
        save(tmp_path / "file", "result", x={"deep": [0, bad]})
    assert load(tmp_path / "file", "result") == {"x": 1} and os.listdir(tmp_path) == ["file"]


# ---- files that are none


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "some run.npz"
    save(path, "training", theta=np.arange(12.0), rng=rng, iteration=3, words="abc")
    return path


def refused(path, kind="training", found=""):
    with pytest.raises(
        ValueError,
        match=f"{path.name}: expected a file of metarl_np: {kind}, version 1; found: .*{found}",
    ) as raised:
        load(path, kind)
    return raised


def test_truncated_files_are_refused(file):
    good = file.read_bytes()
    for length in [*range(0, len(good), 97), *range(len(good) - 30, len(good))]:
        file.write_bytes(good[:length])
        refused(file)


def test_a_flipped_bit_is_refused_or_changes_nothing(file, rng):
    good = file.read_bytes()
    before = load(file, "training")
    caught = 0
    for place in range(0, len(good), 7):
        file.write_bytes(
            good[:place] + bytes([good[place] ^ 1 << int(rng.integers(8))]) + good[place + 1 :]
        )
        try:
            found = load(file, "training")
        except ValueError as error:
            assert str(error).startswith(
                f"{file}: expected a file of metarl_np: training, version 1; found: "
            )
            caught += 1
        else:  # in what zip files say twice, or nobody reads: dates, permissions
            assert (
                found["theta"].tobytes() == before["theta"].tobytes()
                and found["words"] == "abc"
                and found["iteration"] == 3
            )
            assert found["rng"].bit_generator.state == before["rng"].bit_generator.state
    assert caught > 0.9 * len(range(0, len(good), 7))


def test_an_array_that_lost_an_entry_in_its_header_is_refused(file):
    good = file.read_bytes()
    assert good.count(b"(12,)") == 1
    file.write_bytes(good.replace(b"(12,)", b"(11,)"))
    refused(file, found="damaged: theta.npy")


def test_foreign_files_are_refused(file, tmp_path):
    theta = np.arange(12.0)
    np.savez(tmp_path / "foreign.npz", theta=theta)
    np.savez(tmp_path / "object.npz", metarl_np=np.array(Evil(), object))
    np.savez(tmp_path / "pickled.npz", **dict(np.load(file), theta=np.array([Evil()], object)))
    np.savez(tmp_path / "header only.npz", metarl_np=np.load(file)["metarl_np"])
    np.savez(tmp_path / "no JSON.npz", metarl_np="training, version 1\n{")
    np.savez(
        tmp_path / "other call.npz",
        metarl_np='training, version 1\n{"Generator": [{"bit_generator": "seed"}, {}]}',
    )
    np.savez(tmp_path / "list.npz", metarl_np=["training, version 1", "{}"])
    np.save(tmp_path / "array.npy", theta)
    np.save(tmp_path / "pickle.npy", np.array([Evil()], object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no file of numbers\n")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("metarl_np.npy", "nothing")
    others = [p for p in tmp_path.iterdir() if p != file]
    assert len(others) == 11
    for path in others:
        refused(path)
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
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]
    monkeypatch.setattr(*place, real)
    save(file, "training", theta=1)
    assert load(file, "training") == {"theta": 1}


def test_what_a_kill_left_behind_does_not_pile_up(file):
    (file.parent / "some run.npz.tmp").write_bytes(
        b"half of a file, longer than the next one" * 1000
    )
    assert load(file, "training")["words"] == "abc"
    save(file, "training", x=1)
    assert load(file, "training") == {"x": 1} and os.listdir(file.parent) == [file.name]


# ---- training: run(2N) = run(N) + resume(N)


POOL = random_tasks(np.random.default_rng(0), 6, 4, 4, 2, horizon=4)
BATCH = dict(iterations=6, steps=1, episodes=6, step_size=0.05)
CRITIC = ActorCritic(SoftmaxPolicy(4, 4))
RECURRENT = RecurrentPolicy(1, 2, 4)


def tasks(rng):
    return POOL[rng.spawn(1)[0].integers(6, size=3)]  # so that the count of children matters


def arms(rng):
    return independent(rng.spawn(1)[0], 40, 2)


def outer(policy, inner, train=maml.train, **options):
    return policy.init(), lambda rng, theta, **on: train(
        rng, tasks, policy, theta, inner, **BATCH | options, **on
    )


def recurrent(update):
    theta = RECURRENT.init(np.random.default_rng(1))
    return theta, lambda rng, theta, **on: rl2_training.train_recurrent(
        rng, arms, RECURRENT, theta, update, iterations=6, episodes=4, **on
    )


RUNS = {
    "MAML": outer(SoftmaxPolicy(4, 4), reinforce.Reinforce(0.5), optimiser=adam),
    "MAML, plain ascent, score": outer(
        LogisticPolicy(4, 2), reinforce.Reinforce(0.5), optimiser=ascent, with_score=True, steps=2
    ),
    "multi-task": (
        np.zeros((4, 4)),
        lambda rng, theta, **on: maml.train_multi_task(
            rng, tasks, SoftmaxPolicy(4, 4), theta, iterations=6, episodes=6, step_size=0.05, **on
        ),
    ),
    "two-level RL², PPO": outer(CRITIC, ppo.PPO(0.4, epochs=2, minibatches=2)),
    "two-level RL², TRPO": outer(CRITIC, trpo.TRPO(0.05, damping=0.01)),
    "recurrent RL², PPO": recurrent(rl2_training.RecurrentPPO(minibatches=3, epochs=2)),
    "recurrent RL², TRPO": recurrent(rl2_trpo.RecurrentTRPO(every=2)),
}


def bits(record):
    """A record's numbers, to compare with ==."""

    def flat(x):
        return (
            [flat(y) for y in x]
            if isinstance(x, tuple)
            else (np.asarray(x).dtype.str, np.asarray(x).tobytes())
        )

    return {
        name: flat(x) for name, x in vars(record).items() if name not in ("rng", "configuration")
    }


def undisturbed(name):
    theta, train = RUNS[name]
    rng = np.random.default_rng(7)
    return list(map(bits, train(rng, theta))), rng


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("bit_generator", [np.random.PCG64, np.random.MT19937])
def test_resuming_gives_the_same_bits(name, bit_generator, tmp_path):
    theta, train = RUNS[name]
    rng = np.random.Generator(bit_generator(7))
    whole = list(map(bits, train(rng, theta)))
    assert len({w["theta"] for w in whole}) == 6
    for stop in (1, 3, 5):
        path = tmp_path / f"{stop}.npz"
        parts = []
        for seed in (
            7,
            8,
        ):  # the second process comes with another generator, whose state is replaced
            mine = np.random.Generator(bit_generator(seed))
            run = resumable(path, train, mine, theta)
            parts += [bits(record) for _, record in zip(range(stop if seed == 7 else 6), run)]
            run.close()
        assert parts == whole
        assert (
            mine.random() == rng.random() and mine.spawn(1)[0].random() == rng.spawn(1)[0].random()
        )
        rng = np.random.Generator(bit_generator(7))
        list(train(rng, theta))


def test_without_a_file_it_is_the_training_itself(tmp_path):
    theta, train = RUNS["MAML"]
    whole, rng = undisturbed("MAML")
    mine = np.random.default_rng(7)
    assert [
        bits(record) for record in resumable(tmp_path / "file", train, mine, theta)
    ] == whole and mine.random() == rng.random()
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_holds_what_was_promised(tmp_path):
    theta, train = RUNS["MAML"]
    *_, record = resumable(
        tmp_path / "file",
        train,
        np.random.default_rng(7),
        theta,
        configuration=dict(seed=7, sizes=(4, 4)),
    )
    found = load(tmp_path / "file", "training")
    assert (
        found["iteration"] == 5
        and (found["theta"] == record.theta).all()
        and same(found["state"], record.state)
    )
    assert found["configuration"].items() >= dict(seed=7, sizes=(4, 4)).items() and isinstance(
        found["rng"], np.random.Generator
    )


def test_a_finished_run_gives_its_last_record_again(tmp_path):
    theta, train = RUNS["recurrent RL², PPO"]
    whole, rng = undisturbed("recurrent RL², PPO")
    list(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    before = (tmp_path / "file").read_bytes()
    mine = np.random.default_rng(1)
    (record,) = resumable(tmp_path / "file", train, mine, theta)
    assert (
        bits(record) == whole[-1]
        and mine.random() == rng.random()
        and (tmp_path / "file").read_bytes() == before
    )


def test_a_file_of_a_longer_run_is_refused(tmp_path):
    theta, train = RUNS["MAML"]
    list(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    shorter = outer(SoftmaxPolicy(4, 4), reinforce.Reinforce(0.5), iterations=4)[1]
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
    theta, train = outer(SoftmaxPolicy(4, 4), Interrupted(0.5))
    rng = np.random.default_rng(7)
    whole = list(map(bits, train(rng, theta)))
    path = tmp_path / "file"
    parts = []
    for seed in range(7, 20):
        # each iteration calls it twice: here, and under autograd
        monkeypatch.setattr(Interrupted, "left", 3 + 2 * (seed == 9))
        mine = np.random.default_rng(seed)
        try:
            for record in resumable(path, train, mine, theta, every=every):
                parts.append(bits(record))
                assert every > 1 or load(path, "training")["iteration"] == record.iteration
            break
        except KeyboardInterrupt:
            found = load(path, "training")
            assert (
                found["theta"].tobytes() == record.theta.tobytes()
                and found["iteration"] == record.iteration
            )
            # the broken-off iteration had drawn
            assert found["rng"].bit_generator.state != mine.bit_generator.state
    assert parts == whole and seed == 11 and mine.random() == rng.random()


def test_an_interrupt_before_the_first_record_leaves_no_file(tmp_path, monkeypatch):
    theta, train = outer(SoftmaxPolicy(4, 4), Interrupted(0.5))
    monkeypatch.setattr(Interrupted, "left", 1)
    with pytest.raises(KeyboardInterrupt):
        next(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_is_made_up_for(tmp_path, monkeypatch):
    theta, train = RUNS["MAML"]
    calls = []
    real = os.replace

    def replace(*paths):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        list(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    assert (
        len(calls) == 4
        and load(tmp_path / "file", "training")["iteration"] == 2
        and os.listdir(tmp_path) == ["file"]
    )


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
def test_it_writes_every_so_often_and_at_the_end(every, stop, written, tmp_path, monkeypatch):
    theta, train = RUNS["MAML"]
    seen = []
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda path, kind, **entries: seen.append((path, kind, entries["iteration"])),
    )
    for count, _ in enumerate(
        resumable("where", train, np.random.default_rng(7), theta, every=every), 1
    ):
        if count == stop:
            break
    assert seen == [("where", "training", i) for i in written]


@pytest.mark.parametrize("every", [0, -1, 1.5, np.nan])
def test_bad_intervals_are_named(every, tmp_path):
    theta, train = RUNS["MAML"]
    with pytest.raises(ValueError, match=f"every: {every} is not"):
        next(resumable(tmp_path / "file", train, np.random.default_rng(7), theta, every=every))


THIRDS = np.arange(2000.0) / 3
CONFIGURATION = dict(
    seed=1, step_size=0.1, tasks=dict(n=3, p=[0.5, np.nan]), grid=THIRDS, name=None
)


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
def test_another_configuration_is_refused_by_name(key, value, tmp_path):
    theta, train = RUNS["MAML"]
    path = tmp_path / "some run.npz"
    next(resumable(path, train, np.random.default_rng(7), theta, configuration=CONFIGURATION))
    before = path.read_bytes()
    for made, asked in (
        (CONFIGURATION, CONFIGURATION | {key: value}),
        (CONFIGURATION | {key: value}, CONFIGURATION),
    ):
        path.unlink()
        next(resumable(path, train, np.random.default_rng(7), theta, configuration=made))
        rng = np.random.default_rng(8)
        with pytest.raises(ValueError, match=f"(?s)some run.npz: made with {key} = .*, not "):
            next(resumable(path, train, rng, theta, configuration=asked))
        assert (
            rng.random() == np.random.default_rng(8).random()
            and load(path, "training")["iteration"] == 0
        )
    path.write_bytes(before)
    assert (
        next(
            resumable(
                path, train, np.random.default_rng(7), theta, configuration=dict(CONFIGURATION)
            )
        ).iteration
        == 1
    )


def test_other_generators_and_parameters_are_refused(tmp_path):
    theta, train = RUNS["MAML"]
    next(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))
    with pytest.raises(ValueError, match="file: made with rng = 'PCG64', not 'Philox'"):
        next(resumable(tmp_path / "file", train, np.random.Generator(np.random.Philox(7)), theta))
    with pytest.raises(
        ValueError, match=r"file: made with shape of theta = \(4, 4\), not \(5, 4\)"
    ):
        next(resumable(tmp_path / "file", train, np.random.default_rng(7), np.zeros((5, 4))))
    with pytest.raises(ValueError, match="file: made with seed = None, not 7"):
        next(
            resumable(
                tmp_path / "file",
                train,
                np.random.default_rng(7),
                theta,
                configuration=dict(seed=7),
            )
        )
    save(tmp_path / "file", "weights", theta=theta)
    with pytest.raises(ValueError, match="file: expected a file of metarl_np: training, version 1"):
        next(resumable(tmp_path / "file", train, np.random.default_rng(7), theta))


def test_any_generator_of_such_records_will_do(tmp_path):
    @dataclass(frozen=True)
    class Mine:
        iteration: int
        theta: dict
        state: None
        note: str

    def train(rng, theta, state, first):
        for i in range(first, 4):
            theta = {"w": theta["w"] + rng.random()}
            yield Mine(i, theta, state, f"number {i}")

    rng = np.random.default_rng(0)
    theta = {"w": np.zeros(2)}
    whole = [r.theta["w"].tolist() for r in train(np.random.default_rng(0), theta, None, 0)]
    assert next(resumable(tmp_path / "file", train, rng, theta)).note == "number 0"
    assert [
        r.theta["w"].tolist()
        for r in resumable(tmp_path / "file", train, np.random.default_rng(5), theta)
    ] == whole[1:]
    assert [
        r.note for r in resumable(tmp_path / "file", train, np.random.default_rng(5), theta)
    ] == ["number 3"]


# ---- SIGKILL at random moments


def kill_run(path):
    """What is killed: 200 iterations of MAML, a checkpoint after each."""
    policy = SoftmaxPolicy(4, 4)
    inner = reinforce.Reinforce(0.5)
    return resumable(
        path,
        lambda rng, theta, **on: maml.train(
            rng, tasks, policy, theta, inner, **BATCH | dict(iterations=200), **on
        ),
        np.random.default_rng(7),
        policy.init(),
    )


def nursery(path):
    """For each line, a delay in ms, forks a child that trains, kills it so long after its first
    sign of life, and says how it ended: the signal, or 0 if it had finished. (A fork is faster than
    a new interpreter, and this one has a single thread.)
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
        os.close(alive), os.close(birth)
        time.sleep(float(line) / 1e3)
        os.kill(pid, signal.SIGKILL)  # until it is waited for, the number is its own
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def test_killed_at_random_moments_it_loses_nothing(tmp_path, rng):
    """60 kills at least, at moments from the first sign of life on, in one run or, on a fast
    machine, several.
    """
    *_, last = kill_run(tmp_path / "undisturbed")
    path = tmp_path / "killed.npz"
    kills = 0
    finished = 0
    seen = []
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }
    with subprocess.Popen(
        [sys.executable, __file__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as helper:
        while kills < 60 or not finished:
            delay = (
                rng.choice([rng.uniform(0, 5), rng.uniform(0, 30), rng.uniform(0, 100)])
                if kills < 60
                else 5000
            )
            print(delay, file=helper.stdin, flush=True)
            assert select.select([helper.stdout], [], [], 60)[0], "the helper hangs"
            status = int(helper.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            assert set(os.listdir(tmp_path)) <= {"undisturbed", "killed.npz", "killed.npz.tmp"}
            if not path.exists():
                assert not seen
                continue
            found = load(path, "training")
            assert not seen or found["iteration"] >= seen[-1]
            seen.append(found["iteration"])
            if seen[-1] == 199:
                assert found["theta"].tobytes() == last.theta.tobytes() and same(
                    found["state"], last.state
                )
                path.unlink()
                finished = finished + 1
                seen = []
        helper.stdin.close()
    assert helper.returncode == 0 and kills >= 60


if __name__ == "__main__":
    nursery(sys.argv[1])
