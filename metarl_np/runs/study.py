"""One experiment over seeds and settings, through any concurrent.futures.Executor, with results that outlive a crash."""

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
    """One seed (an integer or a tuple of them) and settings, with the value that the experiment returned or the traceback of its error."""

    seed: int
    settings: dict
    value: dict  # None if it failed
    error: str  # None if it did not


def study(experiment, seeds, settings=({},), *, executor=None, folder=None):
    """Run experiment(default_rng(seed), **options) → dict of numbers and arrays for all seeds (≥ 0, or tuples of such), options of settings
    (dicts, passed as JSON; the rng is the same in each, so differences are paired): a generator of Result as they finish. executor: None is
    here, each when it is asked for; all give the same bits on one numpy, kind of CPU and number of BLAS threads (Dask: get_executor(pure=
    False)). What raises, or loses its worker, is a Result with an error; closing the generator cancels what has not begun. folder: keeps
    values; those found come first, not computed again even if the code has changed. ValueError on bad input and another study's file.
    """
    require(
        executor is None or isinstance(executor, Executor),
        "executor",
        f"{executor!r} is no concurrent.futures.Executor",
    )
    require(
        hasattr(experiment, "__qualname__"),
        "experiment",
        f"{experiment!r} is no function; what to call it with are settings",
    )
    seeds = {"_".join(map(str, np.ravel(seed))): seed for seed in seeds}
    settings = list(settings)
    jobs = {}
    require(
        "".join(seeds).replace("_", "").isdecimal(),
        "seeds",
        f"{list(seeds)}: expected integers ≥ 0, or tuples of such",
    )
    require(
        bool(settings) and all(isinstance(x, dict) for x in settings),
        "settings",
        f"{settings}: expected dicts",
    )
    texts = {
        json.dumps(
            x, sort_keys=True, default=lambda x: require(False, "settings", f"{x!r} is not JSON")
        ): x
        for x in settings
    }
    tasks = {
        Path(folder or "", f"{seed}-{sha256(text.encode()).hexdigest()[:12]}.npz"): (seed, text)
        for seed in seeds
        for text in texts
    }
    Path(folder or ".").mkdir(parents=True, exist_ok=True)
    study = f"{experiment.__module__}.{experiment.__qualname__}, seed %s, settings %s"
    for path in [path for path in tasks if folder and path.exists()]:
        seed, text = tasks.pop(path)
        stored = checkpoint.load(path, "result")
        require(
            stored["study"] == study % (seed, text),
            path,
            f"expected {study % (seed, text)}, found {stored['study']}",
        )
        yield Result(seeds[seed], texts[text], stored["value"], None)
    try:
        for path, (seed, text) in tasks.items():
            try:
                jobs[executor.submit(_run, experiment, seeds[seed], text) if executor else path] = (
                    path
                )
            except RuntimeError:  # a broken pool takes nothing more
                yield Result(seeds[seed], texts[text], None, format_exc())
        for job in as_completed(jobs) if executor else list(jobs):
            seed, text = tasks[path := jobs.pop(job)]
            try:
                value, error = job.result() if executor else _run(experiment, seeds[seed], text)
                if folder and not error:
                    checkpoint.save(path, "result", study=study % (seed, text), value=value)
            except Exception:  # its worker died, it was cancelled, or the disk is full
                value = None
                error = format_exc()
            yield Result(seeds[seed], texts[text], value, error)
    finally:
        for job in jobs if executor else ():
            job.cancel()


def _run(experiment, seed, text):
    """(value, None) or (None, traceback): as text, since an exception that cannot be unpickled would break a pool of processes."""
    try:
        return dict(experiment(np.random.default_rng(seed), **json.loads(text))), None
    except (Exception, SystemExit):
        return None, format_exc()
