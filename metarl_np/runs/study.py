"""One experiment over seeds and settings, on any executor, with results that outlive a crash."""

import json
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from traceback import format_exc

import numpy as np

from metarl_np.arguments import require
from metarl_np.runs import checkpoint


@dataclass(frozen=True, eq=False)
class Result:
    """What the experiment returned for one seed and settings, or the traceback of its error."""

    seed: int  # or a tuple of integers
    settings: dict
    value: dict  # None if it failed
    error: str  # None if it did not
    loaded: bool = False  # it was found in the folder, and not computed now


@dataclass(frozen=True, eq=False)
class _Job:
    """One run of the experiment."""

    experiment: str  # its name
    seed: int
    seed_text: str
    settings: dict
    settings_text: str  # as JSON

    @property
    def title(self):
        """What is written into the file of its result."""
        return f"{self.experiment}, seed {self.seed_text}, settings {self.settings_text}"

    @property
    def file(self):
        """The name of that file."""
        digest = sha256(self.settings_text.encode()).hexdigest()[:12]
        return f"{self.seed_text}-{digest}.npz"

    def result(self, value, error, loaded=False):
        """Its Result."""
        return Result(self.seed, self.settings, value, error, loaded)


def study(experiment, seeds, settings=({},), *, executor=None, folder=None):
    """Run an experiment for all seeds and settings: a generator of Result, as they finish.

    Called is experiment(default_rng(seed), **options), which returns a dict of numbers and arrays.
    seeds: integers ≥ 0, or tuples of such. settings: the options, dicts that JSON can hold; the rng
    is the same in each, so that differences are paired. executor: a concurrent.futures.Executor, or
    None for here, each when it is asked for. All give the same bits on one numpy, kind of CPU and
    number of BLAS threads (for Dask: client.get_executor(pure=False)).

    What raises, or loses its worker, is a Result with an error; closing the generator cancels what
    has not begun. folder: each value is kept there, and a value that is found there comes first and
    is not computed again, *even if the experiment's code has changed since*: then give another
    folder. Raises ValueError on bad input and on another study's file.
    """
    of_executor = executor is None or isinstance(executor, Executor)
    require(of_executor, "executor", f"{executor!r} is no concurrent.futures.Executor")
    no_function = f"{experiment!r} is no function; what to call it with are settings"
    require(hasattr(experiment, "__qualname__"), "experiment", no_function)
    waiting = _jobs(experiment, seeds, settings)
    folder = None if folder is None else Path(folder)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for job in [job for job in waiting if (folder / job.file).exists()]:
            waiting.remove(job)
            yield job.result(_load(folder, job), None, loaded=True)

    if executor is None:
        for job in waiting:
            yield _finish(job, folder, lambda: _run(experiment, job.seed, job.settings_text))
        return
    futures = {}
    try:
        for job in waiting:
            try:
                future = executor.submit(_run, experiment, job.seed, job.settings_text)
                futures[future] = job
            except RuntimeError:  # a broken pool takes nothing more
                yield job.result(None, format_exc())
        for future in as_completed(futures):
            yield _finish(futures.pop(future), folder, future.result)
    finally:
        for future in futures:
            future.cancel()


def _jobs(experiment, seeds, settings):
    """The list of _Job, without repetitions: for each seed all settings."""
    name = f"{experiment.__module__}.{experiment.__qualname__}"
    seeds = {"_".join(map(str, np.ravel(seed))): seed for seed in seeds}
    whole = "".join(seeds).replace("_", "").isdecimal()
    require(whole, "seeds", f"{list(seeds)}: expected integers ≥ 0, or tuples of such")
    settings = list(settings)
    dicts = bool(settings) and all(isinstance(x, dict) for x in settings)
    require(dicts, "settings", f"{settings}: expected dicts")
    texts = {json.dumps(x, sort_keys=True, default=_no_json): x for x in settings}
    jobs = []
    for seed_text, seed in seeds.items():
        for text, options in texts.items():
            jobs.append(_Job(name, seed, seed_text, options, text))
    return jobs


def _no_json(x):
    require(False, "settings", f"{x!r} is not JSON")


def _load(folder, job):
    """The value that is kept in the folder."""
    path = folder / job.file
    stored = checkpoint.load(path, "result")
    other = f"expected {job.title}, found {stored['study']}"
    require(stored["study"] == job.title, path, other)
    return stored["value"]


def _finish(job, folder, outcome):
    """Its Result, written to the folder if there is one and it did not fail."""
    try:
        value, error = outcome()
        if folder and not error:
            checkpoint.save(folder / job.file, "result", study=job.title, value=value)
    except Exception:  # its worker died, it was cancelled, or the disk is full
        value = None
        error = format_exc()
    return job.result(value, error)


def _run(experiment, seed, settings_text):
    """(value, None) or (None, traceback).

    The traceback is text: an exception that cannot be unpickled would break a pool of processes.
    """
    try:
        options = json.loads(settings_text)
        return dict(experiment(np.random.default_rng(seed), **options)), None
    except (Exception, SystemExit):
        return None, format_exc()
