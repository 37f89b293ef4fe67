"""One experiment over seeds and settings, on any executor, with results that outlive a crash."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from traceback import format_exc

import numpy as np

from metarl_np.arguments import Record, require
from metarl_np.runs import checkpoint


@dataclass(frozen=True, eq=False)
class Result(Record):
    """What came out of one seed and one dictionary of settings."""

    seed: int  # or a tuple of them
    settings: dict
    value: dict = None  # what the experiment returned; None if it failed
    error: str = None  # the traceback of its error; None if it did not fail
    loaded: bool = False  # the value was computed before, and comes from the folder


def study(experiment, seeds, settings=({},), *, executor=None, folder=None):
    """Results of experiment(rng, **options) for all seeds and settings, as they finish.

    A generator of `Result`. Each seed starts anew, with rng = default_rng(seed), for every
    dictionary of settings. So all settings see the same random numbers, and their differences are
    paired. All executors give the same bits, with one version of NumPy, one kind of processor and
    one number of BLAS threads. An experiment that raises an error, or loses its worker, is a Result
    with `error`, and the others go on. Closing the generator cancels what has not begun.

    **A folder gives the old results even after the experiment's code has changed.** A file is found
    by the experiment's name, the seed and the settings, and nothing looks at the code. Results from
    the folder come first and have `loaded` = True. When the code has changed, use another folder.

    experiment: a function that returns a dictionary of numbers and arrays. Processes and machines
        import it by its name, so it must stand in a module.
    seeds: integers of at least 0, or tuples of such.
    settings: dictionaries of options that JSON can hold: numbers, strings, lists, dictionaries.
    executor: any concurrent.futures.Executor: processes, mpi4py's MPIPoolExecutor, or Dask's
        client.get_executor(pure=False). With None each runs here, when its result is asked for.
    folder: where each value is kept, in one file, and found again by the same call.

    ValueError names the argument that is bad, and a file in the folder that is damaged or another
    study's.
    """
    require(isinstance(executor, Executor | None), "executor", f"{executor!r} is no Executor")
    require(hasattr(experiment, "__qualname__"), "experiment", f"{experiment!r} is no function")
    jobs = _jobs(experiment, list(seeds), list(settings), folder)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    missing = []
    for job in jobs:
        if job.path and job.path.exists():
            yield job.load()
        else:
            missing.append(job)
    if executor:
        yield from _submit(executor, missing)
    else:
        for job in missing:
            yield job.finish(job.run)


def _jobs(experiment, seeds, settings, folder):
    """A job for each seed and each dictionary of settings; both are given as lists.

    Each job has settings of its own: whoever changes those of a result changes no other job.
    """
    names = ["_".join(map(str, np.ravel(seed))) for seed in seeds]
    digits = "".join(names).replace("_", "")
    require(digits.isdecimal(), "seeds", f"{seeds}: expected integers ≥ 0, or tuples of such")
    dicts = [isinstance(options, dict) for options in settings]
    require(bool(dicts) and all(dicts), "settings", f"{settings}: expected dicts")
    code = f"{experiment.__module__}.{experiment.__qualname__}"
    jobs = []
    for seed, name in zip(seeds, names):
        for options in settings:
            text = json.dumps(options, sort_keys=True, default=_refuse)
            title = f"{code}, seed {name}, settings {text}"
            digest = sha256(text.encode()).hexdigest()[:12]
            path = Path(folder, f"{name}-{digest}.npz") if folder else None
            jobs.append(_Job(experiment, seed, deepcopy(options), title, path))
    return jobs


def _refuse(x):
    raise ValueError(f"settings: {x!r} is not JSON")


def _submit(executor, jobs):
    """Results of the jobs as they finish; closing the generator cancels what has not begun."""
    pending = {}
    try:
        for job in jobs:
            try:
                pending[executor.submit(job.run)] = job
            except RuntimeError:  # a broken pool takes nothing more
                yield job.failed()
        for future in as_completed(pending):
            job = pending.pop(future)
            yield job.finish(future.result)
    finally:
        for future in pending:
            future.cancel()


@dataclass(frozen=True, eq=False)
class _Job:
    """One seed with one dictionary of settings."""

    experiment: Callable
    seed: int  # or a tuple of them
    settings: dict
    title: str  # the experiment, the seed and the settings, as they stand in the job's file
    path: Path  # of its file; None without a folder

    def run(self):
        """The Result of the experiment, wherever it runs.

        An error becomes text here: an exception that cannot be unpickled would break a pool of
        processes. What the experiment changes in its settings is not seen in the Result.
        """
        try:
            rng = np.random.default_rng(self.seed)
            value = dict(self.experiment(rng, **deepcopy(self.settings)))
            return Result(self.seed, self.settings, value)
        except (Exception, SystemExit):
            return self.failed()

    def failed(self):
        """A Result with the traceback of the exception that is being handled."""
        return Result(self.seed, self.settings, error=format_exc())

    def finish(self, outcome):
        """The Result outcome(), its value being written to the job's file if there is a folder."""
        try:
            result = outcome()
            if self.path and not result.error:
                checkpoint.save(self.path, "result", study=self.title, value=result.value)
            return result
        # its worker died, it was cancelled, the disk is full, or no file can hold such a value
        except Exception:
            return self.failed()

    def load(self):
        """The Result whose value is in the job's file; ValueError if that is another study's."""
        stored = checkpoint.load(self.path, "result")
        title = stored["study"]
        require(title == self.title, self.path, f"expected {self.title}, found {title}")
        return Result(self.seed, self.settings, stored["value"], loaded=True)
