"""A study gives the same bits wherever it runs, loses nothing to a failure, and goes on from disk.

The oracle is two plain loops over seeds and settings (`plainly`). Results are compared bit for bit.
"""

import functools
import importlib
import linecache
import os
import pathlib
import signal
import sys
import time
import types
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import pytest
from distributed import Client, LocalCluster

from metarl_np import checkpoint
from metarl_np.runs.study import study

SETTINGS = [dict(scale=1.5, size=3), dict(scale=0.1, size=40)]


# ---- experiments: functions of a module, so that other processes can import them


def walk(rng, scale, size):
    """Numbers whose every bit depends on the seed, arrays of several types, a nested dictionary."""
    steps = scale * rng.normal(size=(size, 2)).astype(np.float32)
    return dict(
        path=np.cumsum(steps, 0),
        last=float(steps[-1, 0]) / 3,
        size=size,
        nan=np.nan,
        spawned=rng.spawn(1)[0].random(2),
        nested=dict(counts=rng.integers(9, size=4)),
    )


class Unkind(Exception):
    """Cannot be unpickled, which breaks a process pool that meets it."""

    def __init__(self, one, two):
        super().__init__(one)


def fails_above(rng, limit, how):
    """An experiment that fails for some seeds, in one of four ways."""
    x = rng.random()
    if x <= limit:
        return dict(x=x)
    if how == "raise":
        raise IndexError("out of range")
    if how == "unkind":
        raise Unkind(1, 2)
    if how == "exit":
        sys.exit("enough")
    if how == "die":
        os._exit(1)


def noted(rng, folder):
    """Leaves a file for every call."""
    seed = rng.bit_generator.seed_seq.entropy
    begun = pathlib.Path(folder, f"{seed}")
    calls = begun.read_text() if begun.exists() else ""
    begun.write_text(calls + "x")
    if pathlib.Path(folder, f"fail {seed}").exists():
        raise OSError("not today")
    return dict(x=rng.random())


def mutates(rng, numbers):
    """Changes its own settings."""
    numbers.append(rng.random())
    return dict(total=sum(numbers))


def gated(rng, folder):
    """The first four go through; those after them wait until there is a file `gate`."""
    x = rng.random(3)
    number = len(os.listdir(folder))
    seed = rng.bit_generator.seed_seq.entropy
    pathlib.Path(folder, f"{os.getpid()} {seed} {time.monotonic_ns()}").touch()
    while number >= 4 and not pathlib.Path(folder, "gate").exists():
        time.sleep(0.01)
    return dict(x=x)


# ---- how results are compared


def bits(value):
    """A value as types, shapes and bytes."""
    if isinstance(value, dict):
        return {key: bits(x) for key, x in value.items()}
    array = np.asarray(value)
    return type(value), array.dtype, array.shape, array.tobytes()


def table(results):
    """{(seed, settings): bits}; fails if a result has an error or comes twice."""
    results = list(results)
    for result in results:
        assert result.error is None, result.error
    entries = {(result.seed, str(result.settings)): bits(result.value) for result in results}
    assert len(entries) == len(results)
    return entries


def plainly(experiment, seeds, settings):
    """What a study should return, by two loops."""
    return {
        (seed, str(options)): bits(experiment(np.random.default_rng(seed), **options))
        for seed in seeds
        for options in settings
    }


@pytest.fixture(scope="module")
def dask():
    """Two worker processes on this machine, and the client."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster, Client(cluster) as client:
        yield client


# ---- the same bits everywhere


SEEDS = [3, 0, 2**40, (7, 1), (7, 2)]
EXPECTED = plainly(walk, SEEDS, SETTINGS)


def test_every_seed_and_setting_gives_other_numbers():
    assert len(EXPECTED) == 10
    assert len(set(map(str, EXPECTED.values()))) == 10


@contextmanager
def executor_of_kind(kind, dask):
    """None (here), threads, processes, or Dask's workers."""
    if kind == "here":
        yield None
    else:
        pools = dict(
            threads=lambda: ThreadPoolExecutor(3),
            processes=lambda: ProcessPoolExecutor(2),
            dask=lambda: dask.get_executor(pure=False),
        )
        with pools[kind]() as pool:
            yield pool


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
@pytest.mark.parametrize("kind", ["here", "threads", "processes", "dask"])
def test_same_bits_in_every_executor_and_order(kind, order, dask):
    seeds = SEEDS
    settings = SETTINGS
    if order == "backwards":
        seeds = seeds[::-1]
        settings = settings[::-1]
    if order == "shuffled":
        seeds = np.random.default_rng(0).permutation(np.array(seeds, object))
    with executor_of_kind(kind, dask) as executor:
        assert table(study(walk, iter(seeds), iter(settings), executor=executor)) == EXPECTED


@pytest.mark.parametrize("kind", ["here", "dask"])
def test_same_bits_from_the_folder(kind, dask, tmp_path):
    with executor_of_kind(kind, dask) as executor:
        computed = list(study(walk, SEEDS, SETTINGS, executor=executor, folder=tmp_path))
    assert len(list(tmp_path.glob("*.npz"))) == 10
    found = list(study(walk, SEEDS, SETTINGS, folder=tmp_path))
    assert table(computed) == table(found) == EXPECTED
    assert not any(result.loaded for result in computed)
    assert all(result.loaded for result in found)


def test_a_file_of_changed_code_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    code = tmp_path / "my_module.py"
    code.write_text("def experiment(rng):\n    return dict(x=1)\n")
    import my_module

    folder = tmp_path / "results"
    list(study(my_module.experiment, [1], folder=folder))
    # where it stands in the module does not matter
    code.write_text("import os\n\n\ndef experiment(rng):\n    return dict(x=1)\n")
    importlib.reload(my_module)
    linecache.checkcache()
    assert next(study(my_module.experiment, [1], folder=folder)).loaded
    code.write_text("def experiment(rng):\n    return dict(x=23)\n")
    importlib.reload(my_module)
    linecache.checkcache()
    with pytest.raises(ValueError, match=r"1-.*\.npz: made by other code"):
        list(study(my_module.experiment, [1], folder=folder))


def closure(lr):
    def experiment(rng):
        return dict(lr=lr)

    return experiment


class Callable:
    def __call__(self, rng):
        return dict(x=1)

    run = __call__


def wrapped(function):
    @functools.wraps(function)
    def wrapper(rng):
        return function(rng)

    return wrapper


@wrapped
def decorated(rng):
    return dict(x=1)


UNNAMED = {
    "a closure": closure(0.1),
    "a lambda": lambda rng: dict(x=1),
    "a bound method": Callable().run,
    "a partial function": functools.partial(walk, scale=1.0, size=1),
    "a callable object": Callable(),
    "a decorated function": decorated,
    "a builtin": dict,
    "another function of its name": types.FunctionType(walk.__code__, {}, "walk"),
}


@pytest.mark.parametrize("kind", UNNAMED)
def test_with_a_folder_an_experiment_must_be_what_its_name_says(kind, tmp_path):
    with pytest.raises(ValueError, match="experiment: .* is (no function|a class)"):
        next(study(UNNAMED[kind], [0], folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_two_seeds_share_a_file(tmp_path):
    seeds = [1, (1,), (1, 2), 12, (12,)]
    settings = SETTINGS[:1]
    list(study(walk, seeds, settings, folder=tmp_path))
    assert len(list(tmp_path.iterdir())) == len(seeds)
    assert next(study(walk, [np.int64(1)], settings, folder=tmp_path)).loaded


def takes_anything(rng, x):
    return dict(kind=type(x).__name__)


def test_no_two_settings_share_a_file(tmp_path):
    settings = [dict(x=x) for x in (1, 1.0, True, "1", None, [1], [[1]], np.nan, {"1": 1}, {})]
    results = list(study(takes_anything, [1], settings, folder=tmp_path))
    assert len(list(tmp_path.iterdir())) == len(settings)
    for again, before in zip(study(takes_anything, [1], settings, folder=tmp_path), results):
        assert again.value == before.value


def test_settings_of_a_seed_never_share_state():
    numbers = [1.0]
    results = list(study(mutates, [5, 6, 7], [dict(numbers=numbers)]))
    totals = [result.value["total"] for result in results]
    assert numbers == [1.0]
    assert all(result.settings == dict(numbers=[1.0]) for result in results)
    drawn = [np.random.default_rng(seed).random() for seed in (5, 6, 7)]
    assert totals == [1 + x for x in drawn]


def test_who_changes_the_settings_of_a_result_changes_no_other():
    results = study(walk, [1, 2], SETTINGS[:1])
    next(results).settings.clear()
    assert next(results).settings == SETTINGS[0] != {}


def test_settings_of_a_seed_share_its_numbers():
    results = study(walk, [4], [dict(scale=1.0, size=3), dict(scale=2.0, size=3)])
    one, two = (result.value["path"] for result in results)
    np.testing.assert_array_equal(2 * one, two)


# ---- streaming


def test_in_this_process_a_task_runs_when_its_result_is_asked_for(tmp_path):
    results = study(noted, range(1000), [dict(folder=str(tmp_path))])
    assert not os.listdir(tmp_path)
    assert [next(results).seed for _ in range(3)] == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
    results.close()
    assert len(os.listdir(tmp_path)) == 3


def held_executor():
    """An executor whose futures end when the test says so, and what was submitted to it.

    That is a list of (future, function, arguments).
    """
    futures = []

    class Executor(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            future = Future()
            futures.append((future, function, arguments))
            return future

    return Executor(1), futures


def wait_for(futures, n):
    while len(futures) < n:
        time.sleep(0.001)


def test_results_come_in_the_order_they_finish_and_closing_cancels_the_rest(tmp_path):
    executor, futures = held_executor()
    with ThreadPoolExecutor(1) as pool:
        results = study(walk, range(4), SETTINGS[:1], executor=executor, folder=tmp_path)
        coming = pool.submit(next, results)
        wait_for(futures, 4)
        for seed in (2, 0):
            future, function, arguments = futures[seed]
            future.set_result(function(*arguments))
            if not wait([coming], 30).done:
                # so that nothing waits for ever when this fails
                futures[0][0].cancel()
            assert coming.result().seed == seed
            # written before the others are done
            assert len(list(tmp_path.glob(f"{seed}-*.npz"))) == 1
            if seed == 2:
                coming = pool.submit(next, results)
    results.close()
    assert [future.cancelled() for future, *_ in futures] == [False, True, False, True]


# ---- failure


FAILURES = {"raise": "IndexError", "unkind": "Unkind", "exit": "SystemExit: enough"}


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("kind", ["here", "processes", "dask"])
def test_a_failing_seed_is_reported_and_loses_no_other(kind, how, dask, tmp_path):
    settings = [dict(limit=0.5, how=how)]
    seeds = range(8)
    x = {seed: np.random.default_rng(seed).random() for seed in seeds}
    good = {seed for seed in seeds if x[seed] <= 0.5}
    with executor_of_kind(kind, dask) as executor:
        results = list(study(fails_above, seeds, settings, executor=executor, folder=tmp_path))
    assert sorted(result.seed for result in results) == list(seeds)
    for result in results:
        if result.seed in good:
            assert result.error is None
            assert result.value == dict(x=x[result.seed])
        else:
            assert result.value is None
            assert FAILURES[how] in result.error
            assert "in fails_above" in result.error
    assert {int(path.name.split("-")[0]) for path in tmp_path.glob("*.npz")} == good


@pytest.mark.parametrize("limit", [0.5, 0.0], ids=["some tasks die", "all die at once"])
def test_a_pool_whose_worker_dies_ends_in_results(limit):
    with ProcessPoolExecutor(1) as pool:
        settings = [dict(limit=limit, how="die")]
        results = list(study(fails_above, range(40), settings, executor=pool))
    assert sorted(result.seed for result in results) == list(range(40))
    assert any("BrokenProcessPool" in str(result.error) for result in results)
    for result in results:
        if result.error:
            assert result.value is None
        else:
            assert result.value == dict(x=np.random.default_rng(result.seed).random())


class KilledWorker(Exception):
    pass


def test_a_cancelled_task_and_a_dead_worker_are_results():
    executor, futures = held_executor()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(list, study(walk, range(3), SETTINGS[:1], executor=executor))
        wait_for(futures, 3)
        (cancelled, *_), (died, *_), (finished, function, arguments) = futures
        cancelled.cancel()
        cancelled.set_running_or_notify_cancel()
        died.set_exception(KilledWorker("four times"))
        finished.set_result(function(*arguments))
        by_seed = {result.seed: result for result in ended.result(60)}
    assert CancelledError.__name__ in by_seed[0].error
    assert "KilledWorker: four times" in by_seed[1].error
    assert by_seed[2].error is None


def test_a_broken_pool_is_in_the_results():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    results = list(study(walk, range(3), SETTINGS[:1], executor=pool))
    assert len(results) == 3
    assert all("RuntimeError" in result.error for result in results)


def test_a_dask_worker_that_is_killed_loses_nothing(dask, tmp_path):
    seeds = range(12)
    gate = tmp_path / "gate"
    settings = [dict(folder=str(tmp_path))]
    results = study(gated, seeds, settings, executor=dask.get_executor(pure=False))
    first = [next(results) for _ in range(4)]
    # until each worker holds a task that waits for the gate
    while len(begun := os.listdir(tmp_path)) < 6:
        time.sleep(0.01)
    latest = max(begun, key=lambda name: int(name.split()[2]))
    victim = int(latest.split()[0])
    assert victim in {nanny.pid for nanny in dask.cluster.workers.values()}
    os.kill(victim, signal.SIGKILL)
    gate.touch()
    arrived = table(first + list(results))
    names = [name for name in os.listdir(tmp_path) if name != "gate"]
    # what the victim held was begun again
    assert len(names) > len(seeds)
    assert {int(name.split()[1]) for name in names} == set(seeds)
    assert arrived == plainly(gated, seeds, settings)


# ---- on disk


def test_a_study_goes_on_from_what_is_on_disk(tmp_path):
    calls = tmp_path / "calls"
    folder = tmp_path / "results"
    calls.mkdir()
    settings = [dict(folder=str(calls))]
    (calls / "fail 1").touch()
    results = study(noted, range(6), settings, folder=folder)
    first = [next(results) for _ in range(4)]
    results.close()
    assert [result.error is None for result in first] == [True, False, True, True]
    (calls / "fail 1").unlink()
    with ThreadPoolExecutor(2) as pool:
        results = list(study(noted, range(6), settings, executor=pool, folder=folder))
    # those that were found come first
    assert [result.seed for result in results[:3]] == [0, 2, 3]
    assert [result.loaded for result in results] == [True] * 3 + [False] * 3
    # only the failed one was called twice
    times = [len((calls / str(seed)).read_text()) for seed in range(6)]
    assert times == [1, 2, 1, 1, 1, 1]
    expected = {}
    for seed in range(6):
        x = np.random.default_rng(seed).random()
        expected[seed, str(settings[0])] = bits(dict(x=x))
    assert table(results) == expected


def test_the_order_of_a_settings_entries_does_not_matter(tmp_path):
    list(study(walk, [1], SETTINGS, folder=tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reordered = [dict(reversed(options.items())) for options in SETTINGS]
    again = list(study(walk, [1], reordered, folder=tmp_path))
    assert [result.loaded for result in again] == [True, True]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def other(rng, scale, size):
    return dict(x=0)


def test_a_file_of_another_experiment_is_named(tmp_path):
    list(study(walk, [1], SETTINGS, folder=tmp_path))
    message = r"1-.*\.npz: .*test_study\.other, seed 1.*test_study\.walk, seed 1"
    with pytest.raises(ValueError, match=message):
        list(study(other, [1], SETTINGS, folder=tmp_path))


def other_settings(folder, one):
    one.write_bytes(max(folder.glob("1-*.npz")).read_bytes())


def other_seed(folder, one):
    one.write_bytes((folder / f"12{one.name[1:]}").read_bytes())


def half_of_it(folder, one):
    content = one.read_bytes()
    one.write_bytes(content[: len(content) // 2])


def other_kind(folder, one):
    checkpoint.save(one, "weights", theta=np.ones(3))


@pytest.mark.parametrize("damage", [other_settings, other_seed, half_of_it, other_kind])
def test_a_file_with_the_wrong_content_is_named(damage, tmp_path):
    list(study(walk, [1, 12, (1, 2)], SETTINGS, folder=tmp_path))
    assert len(list(tmp_path.glob("*.npz"))) == 6
    one = min(tmp_path.glob("1-*.npz"))
    damage(tmp_path, one)
    with pytest.raises(ValueError, match=one.name):
        list(study(walk, [1], SETTINGS, folder=tmp_path))


def gives_an_object(rng):
    return dict(x=object())


def test_what_cannot_be_written_is_an_error(tmp_path):
    (result,) = study(gives_an_object, [0], folder=tmp_path)
    assert result.value is None
    assert "object" in result.error
    assert not list(tmp_path.iterdir())


# ---- input


@pytest.mark.parametrize(
    "argument, change",
    [
        ("seeds", dict(seeds=[-1])),
        ("seeds", dict(seeds=[1.0])),
        ("seeds", dict(seeds=[None])),
        ("seeds", dict(seeds=["x"])),
        ("seeds", dict(seeds=[])),
        ("seeds", dict(seeds=[(1, -2)])),
        ("seeds", dict(seeds=[True])),
        ("seeds", dict(seeds=["1_2"])),
        ("seeds", dict(seeds=["1"])),
        ("seeds", dict(seeds=[()])),
        ("seeds", dict(seeds=[((1, 2), 3)])),
        ("settings", dict(settings=[dict(size=(1, 2))])),
        ("settings", dict(settings=[dict(size={1: 2})])),
        ("settings", dict(settings=[dict(size=np.float64(0.5))])),
        ("settings", dict(settings=[])),
        ("settings", dict(settings=dict(size=3))),
        ("settings", dict(settings=[dict(size=np.ones(3))])),
        ("executor", dict(executor=ThreadPoolExecutor)),
        ("executor", dict(executor=2)),
        ("experiment", dict(experiment=None)),
    ],
)
def test_bad_input_is_named(argument, change):
    with pytest.raises((ValueError, TypeError), match=argument):
        next(study(**(dict(experiment=walk, seeds=[0], settings=SETTINGS) | change)))


def test_an_experiment_that_returns_no_dict_is_an_error():
    (result,) = study(lambda rng: None, [0])
    assert result.value is None
    assert "TypeError" in result.error


def test_a_folder_that_is_a_file_is_told_before_anything_runs(tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="^folder: "):
        next(study(noted, [1], [dict(folder=str(calls))], folder=tmp_path / "file"))
    assert os.listdir(calls) == []


@pytest.mark.parametrize(
    "argument, bad",
    [
        *[("seeds", x) for x in (None, 3, "123", [], [-1], [True], [1.0], ["1"], [()], [None], {})],
        *[("settings", x) for x in (None, 3, "abc", [], {}, [3], [{"x": {1, 2}}], [{1: 2}])],
        *[("executor", x) for x in (3, "abc", ThreadPoolExecutor, np)],
        *[("folder", x) for x in (3, "", [])],
        *[("experiment", x) for x in (None, "abc", dict, np)],
    ],
)
def test_a_bad_argument_is_named_at_the_call(argument, bad):
    good = dict(experiment=walk, seeds=[1], settings=SETTINGS[:1])
    with pytest.raises(ValueError, match=f"^{argument}: "):
        study(**good | {argument: bad})


def test_seeds_and_folders_beyond_what_files_can_be_named(tmp_path):
    for seed in (10**300, (10**4000, 1)):
        for loaded in (False, True):
            (result,) = study(walk, [seed], SETTINGS[:1], folder=tmp_path)
            assert not result.error and result.loaded is loaded
    with pytest.raises(ValueError, match="^seeds: "):
        study(walk, np.array(5), SETTINGS)
    with pytest.raises(ValueError, match="^folder: "):
        study(walk, [1], SETTINGS, folder="a\0b")


# ---- what came out of one job is not changed by another


BUFFER = np.zeros(2)


def in_place(rng):
    BUFFER[:] = rng.random(2)
    return dict(numbers=BUFFER)


def test_an_experiment_that_fills_one_array_again_changes_no_earlier_result():
    one, two = study(in_place, [0, 1])
    np.testing.assert_array_equal(one.value["numbers"], np.random.default_rng(0).random(2))
    np.testing.assert_array_equal(two.value["numbers"], np.random.default_rng(1).random(2))


def test_a_file_edited_after_its_import_does_not_name_the_old_results(tmp_path, monkeypatch):
    text = "def experiment(rng):\n    return dict(number={})\n"
    file = tmp_path / "edited_after_import.py"
    file.write_text(text.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("edited_after_import")
    file.write_text(text.format(20))
    folder = tmp_path / "folder"
    (old,) = study(module.experiment, [0], folder=folder)
    assert old.value == dict(number=1)
    importlib.reload(module)
    with pytest.raises(ValueError, match="made by other code"):
        list(study(module.experiment, [0], folder=folder))
    (path,) = folder.iterdir()
    path.unlink()
    (new,) = study(module.experiment, [0], folder=folder)
    assert new.value == dict(number=20)
