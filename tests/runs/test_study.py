"""A study gives the same bits wherever and in whatever order it runs, loses nothing to a failure or
a kill, and goes on from disk.
"""

import os
import pathlib
import signal
import sys
import time
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait

import numpy as np
import pytest
from distributed import Client, LocalCluster

from metarl_np import checkpoint
from metarl_np.runs.study import study

SETTINGS = [dict(scale=1.5, size=3), dict(scale=0.1, size=40)]


# ---- experiments: functions of a module, so that other processes can import them


def walk(rng, scale, size):
    """Numbers whose every bit depends on the seed, arrays of several types, and a nested
    dictionary.
    """
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
    x = rng.random()
    if x > limit:
        {
            "raise": lambda: [][1],
            "unkind": lambda: unkind(),
            "exit": lambda: sys.exit("enough"),
            "die": lambda: os._exit(1),
        }[how]()
    return dict(x=x)


def unkind():
    raise Unkind(1, 2)


def noted(rng, folder):
    """Leaves a file for every call."""
    seed = rng.bit_generator.seed_seq.entropy
    begun = pathlib.Path(folder, f"{seed}")
    begun.write_text(begun.read_text() + "x" if begun.exists() else "x")
    if pathlib.Path(folder, f"fail {seed}").exists():
        raise OSError("not today")
    return dict(x=rng.random())


def mutates(rng, numbers):
    numbers.append(rng.random())
    return dict(total=sum(numbers))


def gated(rng, folder):
    """The first four go through; those after them wait until there is a file `gate`."""
    x = rng.random(3)
    number = len(os.listdir(folder))
    pathlib.Path(
        folder, f"{os.getpid()} {rng.bit_generator.seed_seq.entropy} {time.monotonic_ns()}"
    ).touch()
    while number >= 4 and not pathlib.Path(folder, "gate").exists():
        time.sleep(0.01)
    return dict(x=x)


# ---- how results are compared


def bits(value):
    """A value as types, shapes and bytes."""
    if isinstance(value, dict):
        return {key: bits(x) for key, x in value.items()}
    return type(value), np.asarray(value).dtype, np.shape(value), np.asarray(value).tobytes()


def table(results):
    """{(seed, settings): bits}, once every result has been found to be without an error and there
    once.
    """
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


def test_same_bits_in_every_executor_and_order(dask, tmp_path):
    seeds = [3, 0, 2**40, (7, 1), (7, 2)]
    expected = plainly(walk, seeds, SETTINGS)
    assert table(study(walk, seeds, SETTINGS)) == expected
    assert table(study(walk, seeds[::-1], SETTINGS[::-1], folder=tmp_path)) == expected
    with ThreadPoolExecutor(3) as pool:
        assert (
            table(
                study(
                    walk,
                    np.random.default_rng(0).permutation(np.array(seeds, object)),
                    SETTINGS,
                    executor=pool,
                )
            )
            == expected
        )
    with ProcessPoolExecutor(2) as pool:
        assert table(study(walk, iter(seeds), iter(SETTINGS), executor=pool)) == expected
    with dask.get_executor(pure=False) as pool:
        assert (
            table(study(walk, seeds, SETTINGS, executor=pool, folder=tmp_path / "dask")) == expected
        )
    for folder in (tmp_path, tmp_path / "dask"):
        assert table(study(walk, seeds, SETTINGS, folder=folder)) == expected  # read back
        assert len(list(folder.glob("*.npz"))) == 10
    assert len(set(map(str, expected.values()))) == 10


def test_settings_of_a_seed_share_its_numbers_and_never_each_others_state():
    numbers = [1.0]
    totals = [
        result.value["total"] for result in study(mutates, [5, 6, 7], [dict(numbers=numbers)])
    ]
    assert numbers == [1.0] and totals == [
        1 + np.random.default_rng(seed).random() for seed in (5, 6, 7)
    ]
    one, two = (
        result.value["path"]
        for result in study(walk, [4], [dict(scale=s, size=3) for s in (1.0, 2.0)])
    )
    np.testing.assert_array_equal(2 * one, two)


# ---- streaming


def test_in_this_process_a_task_runs_when_its_result_is_asked_for(tmp_path):
    results = study(noted, range(1000), [dict(folder=str(tmp_path))])
    assert not os.listdir(tmp_path)
    assert [next(results).seed for _ in range(3)] == [0, 1, 2] and sorted(os.listdir(tmp_path)) == [
        "0",
        "1",
        "2",
    ]
    results.close()
    assert len(os.listdir(tmp_path)) == 3


def held_executor():
    """An executor whose futures end when the test says so, and the list of (future, function,
    arguments).
    """

    class Executor(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            futures.append((Future(), function, arguments))
            return futures[-1][0]

    futures = []
    return Executor(1), futures


def test_results_come_in_the_order_they_finish_and_closing_cancels_the_rest(tmp_path):
    executor, futures = held_executor()
    with ThreadPoolExecutor(1) as pool:
        results = study(walk, range(4), SETTINGS[:1], executor=executor, folder=tmp_path)
        first = pool.submit(next, results)
        while len(futures) < 4:
            time.sleep(0.001)
        for i in (2, 0):
            future, function, arguments = futures[i]
            future.set_result(function(*arguments))
            if not wait([first], 30).done:
                futures[0][0].cancel()  # so that nothing waits for ever when this fails
            assert first.result().seed == i
            assert len(list(tmp_path.glob(f"{i}-*.npz"))) == 1  # written before the others are done
            if i:
                first = pool.submit(next, results)
    results.close()
    assert [future.cancelled() for future, *_ in futures] == [False, True, False, True]


# ---- failure


@pytest.mark.parametrize(
    "how, words", [("raise", "IndexError"), ("unkind", "Unkind"), ("exit", "SystemExit: enough")]
)
@pytest.mark.parametrize("kind", ["here", "processes", "dask"])
def test_a_failing_seed_is_reported_and_loses_no_other(kind, how, words, dask, tmp_path):
    settings = [dict(limit=0.5, how=how)]
    seeds = range(8)
    x = {seed: np.random.default_rng(seed).random() for seed in seeds}
    pool = dict(
        here=lambda: None,
        processes=lambda: ProcessPoolExecutor(2),
        dask=lambda: dask.get_executor(pure=False),
    )[kind]()
    results = list(study(fails_above, seeds, settings, executor=pool, folder=tmp_path))
    assert sorted(result.seed for result in results) == list(seeds)
    for result in results:
        if x[result.seed] > 0.5:
            assert (
                result.value is None and words in result.error and "in fails_above" in result.error
            )
        else:
            assert result.error is None and result.value == dict(x=x[result.seed])
    assert {int(path.name.split("-")[0]) for path in tmp_path.glob("*.npz")} == {
        seed for seed in seeds if x[seed] <= 0.5
    }
    if pool:
        pool.shutdown()


def test_a_pool_whose_worker_dies_ends_in_results():
    for limit in (0.5, 0.0):  # some tasks die, all of them die at once
        with ProcessPoolExecutor(1) as pool:
            results = list(
                study(fails_above, range(40), [dict(limit=limit, how="die")], executor=pool)
            )
        assert sorted(result.seed for result in results) == list(range(40))
        assert any("BrokenProcessPool" in str(result.error) for result in results)
        for result in results:
            assert (result.value is None) != (result.error is None)
            assert result.error or result.value == dict(
                x=np.random.default_rng(result.seed).random()
            )


def test_a_cancelled_task_a_dead_worker_and_a_broken_pool_are_results():
    executor, futures = held_executor()

    class KilledWorker(Exception):
        pass

    with ThreadPoolExecutor(1) as pool:
        results = study(walk, range(3), SETTINGS[:1], executor=executor)
        ended = pool.submit(list, results)
        while len(futures) < 3:
            time.sleep(0.001)
        futures[0][0].cancel()
        futures[0][0].set_running_or_notify_cancel()
        futures[1][0].set_exception(KilledWorker("four times"))
        futures[2][0].set_result(futures[2][1](*futures[2][2]))
        by_seed = {result.seed: result for result in ended.result(60)}
    assert (
        CancelledError.__name__ in by_seed[0].error
        and "KilledWorker: four times" in by_seed[1].error
        and by_seed[2].error is None
    )
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    assert all(
        "RuntimeError" in result.error
        for result in study(walk, range(3), SETTINGS[:1], executor=pool)
    )


def test_a_dask_worker_that_is_killed_loses_nothing(dask, tmp_path):
    seeds = range(12)
    gate = tmp_path / "gate"
    settings = [dict(folder=str(tmp_path))]
    results = study(gated, seeds, settings, executor=dask.get_executor(pure=False))
    first = [next(results) for _ in range(4)]
    while (
        len(begun := os.listdir(tmp_path)) < 6
    ):  # until each worker holds a task that waits for the gate
        time.sleep(0.01)
    victim = int(max(begun, key=lambda name: int(name.split()[2])).split()[0])
    assert victim in {nanny.pid for nanny in dask.cluster.workers.values()}
    os.kill(victim, signal.SIGKILL)
    gate.touch()
    arrived = table(first + list(results))
    names = [name for name in os.listdir(tmp_path) if name != "gate"]
    # what the victim held was begun again
    assert len(names) > len(seeds) and {int(name.split()[1]) for name in names} == set(seeds)
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
    assert [result.seed for result in results[:3]] == [0, 2, 3]
    # only the failed one twice
    assert [(calls / str(seed)).read_text() for seed in range(6)] == ["x", "xx", "x", "x", "x", "x"]
    assert table(results) == {
        (seed, str(settings[0])): bits(dict(x=np.random.default_rng(seed).random()))
        for seed in range(6)
    }


def test_the_order_of_a_settings_entries_does_not_matter(tmp_path):
    list(study(walk, [1], SETTINGS, folder=tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = study(
        walk, [1], [dict(reversed(options.items())) for options in SETTINGS], folder=tmp_path
    )
    assert (
        len(list(again)) == 2
        and {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    )


def other(rng, scale, size):
    return dict(x=0)


def test_a_file_of_another_study_or_a_broken_one_is_named(tmp_path):
    list(study(walk, [1, 12, (1, 2)], SETTINGS, folder=tmp_path))
    assert len(list(tmp_path.glob("*.npz"))) == 6
    with pytest.raises(
        ValueError, match=r"1-.*\.npz: .*test_study\.other, seed 1.*test_study\.walk, seed 1"
    ):
        list(study(other, [1], SETTINGS, folder=tmp_path))
    one, two = sorted(tmp_path.glob("1-*.npz"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())  # the other settings
    with pytest.raises(ValueError, match=one.name):
        list(study(walk, [1], SETTINGS, folder=tmp_path))
    one.write_bytes(next(tmp_path.glob(f"12{one.name[1:]}")).read_bytes())  # the other seed
    with pytest.raises(ValueError, match=one.name):
        list(study(walk, [1], SETTINGS, folder=tmp_path))
    one.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=one.name):
        list(study(walk, [1], SETTINGS, folder=tmp_path))
    checkpoint.save(one, "weights", theta=np.ones(3))
    with pytest.raises(ValueError, match=one.name):
        list(study(walk, [1], SETTINGS, folder=tmp_path))


def test_what_cannot_be_written_is_an_error(tmp_path):
    (result,) = study(lambda rng: dict(x=object()), [0], folder=tmp_path)
    assert result.value is None and "object" in result.error and not list(tmp_path.iterdir())


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
        next(study(**dict(dict(experiment=walk, seeds=[0], settings=SETTINGS), **change)))


def test_an_experiment_that_returns_no_dict_is_an_error():
    (result,) = study(lambda rng: None, [0])
    assert result.value is None and "TypeError" in result.error


def test_a_folder_that_is_a_file_is_told_before_anything_runs(tmp_path):
    (tmp_path / "calls").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        next(study(noted, [1], [dict(folder=str(tmp_path / "calls"))], folder=tmp_path / "file"))
    assert os.listdir(tmp_path / "calls") == []
