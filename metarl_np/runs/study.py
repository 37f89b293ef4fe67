"""One experiment over seeds and settings, on any executor, with results that outlive a crash."""

import inspect
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from traceback import format_exc
from types import CodeType, FunctionType

import numpy as np

from metarl_np.arguments import Record, require, require_plain, validate
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

    Results from the folder come first and have `loaded` = True. A file is found by the experiment's
    name, the seed and the settings, and it holds a digest of the experiment's source text and of
    what this version of Python has compiled from it: where one has changed, the file is refused.
    The functions and globals that the experiment uses, and its default arguments, are not compared.
    When they have changed, use another folder.

    experiment: a function that returns a dictionary of numbers and arrays. Processes and machines
        import it by its name, so it must stand in a module. With a folder everything else is
        refused: closures, lambdas, methods, partial functions. Their names do not say what they
        hold, and settings do.
    seeds: integers of at least 0, or tuples of such.
    settings: dictionaries of options that JSON gives back as they are: numbers, strings, bools,
        None, lists, dictionaries with strings as keys.
    executor: any concurrent.futures.Executor: processes, mpi4py's MPIPoolExecutor, or Dask's
        client.get_executor(pure=False). With None each runs here, when its result is asked for.
    folder: where each value is kept, in one file, and found again by the same call.

    ValueError names the argument that is bad, and a file in the folder that is damaged, another
    study's, or made by other code.
    """
    require_plain(experiment=experiment, executor=executor)
    require(isinstance(executor, Executor | None), "executor", f"{executor!r} is no Executor")
    is_function = callable(experiment) and hasattr(experiment, "__qualname__")
    require(is_function, "experiment", f"{experiment!r:.99} is no function with a name")
    seeds = _listed("seeds", seeds)
    settings = _listed("settings", settings)
    if folder is not None:
        validate(folder=folder)
    jobs = _jobs(experiment, seeds, settings, folder)
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder: {error}") from error
    return _results(jobs, executor)


def _listed(name, x):
    """The list of an iterable that is no single thing; ValueError names the argument."""
    require_plain(**{name: x})
    several = isinstance(x, Iterable) and not isinstance(x, (str, bytes, dict))
    several = several and getattr(x, "shape", None) != ()  # an array without axes is one thing
    require(several, name, f"{x!r:.99} is not a list")
    return list(x)


def _results(jobs, executor):
    """The generator of `study`, whose arguments are checked by now."""
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
    names = [_seed_name(seed) for seed in seeds]
    require(bool(names), "seeds", "there are none")
    dicts = [isinstance(options, dict) for options in settings]
    require(bool(dicts) and all(dicts), "settings", f"{settings}: expected dicts")
    where = f"{experiment.__module__}.{experiment.__qualname__}"
    code = _digest_of_code(experiment) if folder is not None else None
    jobs = []
    for seed, name in zip(seeds, names):
        for options in settings:
            text = _settings_text(options)
            title = f"{where}, seed {name}, settings {text}"
            path = Path(folder, _file_name(name, text)) if folder is not None else None
            jobs.append(_Job(experiment, seed, deepcopy(options), title, code, path))
    return jobs


def _seed_name(seed):
    """A seed as it stands in the name of a file: 7, or 7_1 for (7, 1), or 7_ for (7,)."""
    single = isinstance(seed, Integral) or getattr(seed, "shape", None) == ()
    parts = [seed] if single else list(seed) if isinstance(seed, (tuple, list, np.ndarray)) else []
    whole = [isinstance(x, Integral) and not isinstance(x, bool) and x >= 0 for x in parts]
    good = bool(whole) and all(whole)
    require(good, "seeds", f"{seed!r:.99}: expected integers ≥ 0, or tuples of such")
    name = "_".join(str(int(x)) for x in parts)
    return name if single or len(parts) > 1 else name + "_"


def _file_name(name, text):
    """The name of the file of a seed of this name and settings of this text.

    A seed whose name is longer than those of files may be is named by its digest.
    """
    if len(name) > 150:
        name = "seed-" + sha256(name.encode()).hexdigest()
    digest = sha256(text.encode()).hexdigest()[:12]
    return f"{name}-{digest}.npz"


def _settings_text(options):
    """Settings as JSON; ValueError unless JSON gives them back, to the type of each entry."""
    try:
        back = json.loads(json.dumps(options))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"settings: {options!r:.99} is not JSON: {error}") from error
    # their representations tell 1, 1.0, True and np.float64(1) apart, tuples from lists, and keys
    why = f"JSON gives {back!r:.99} for {options!r:.99}"
    require(repr(back) == repr(options), "settings", why)
    return json.dumps(options, sort_keys=True)


def _digest_of_code(experiment):
    """A digest of the experiment's code; ValueError if its name does not say what it is.

    The text alone will not do: after an import a file may be edited, and its text is not what runs.
    """
    named = sys.modules.get(experiment.__module__)
    for part in experiment.__qualname__.split("."):
        named = getattr(named, part, None)
    plain = isinstance(experiment, FunctionType) and experiment.__closure__ is None
    why = (
        f"{experiment!r:.99} is no function that a module holds under its name. With a folder it "
        "must be one, and what distinguishes two experiments must be in their settings"
    )
    require(plain and named is experiment, "experiment", why)
    try:
        source = inspect.getsource(experiment)
    except (OSError, TypeError) as error:
        raise ValueError(f"experiment: its source cannot be read: {error}") from error
    return sha256(f"{source}{_compiled(experiment.__code__)}".encode()).hexdigest()


def _compiled(code):
    """What Python runs, without the lines and the file that it comes from, as text."""
    constants = []
    for x in code.co_consts:
        if isinstance(x, CodeType):
            constants.append(_compiled(x))
        else:  # the order of a set differs from process to process
            constants.append(sorted(map(repr, x)) if isinstance(x, frozenset) else repr(x))
    return repr((code.co_code, code.co_names, code.co_varnames, constants))


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
    code: str  # a digest of the experiment's source; None without a folder
    path: Path  # of its file; None without a folder

    def run(self):
        """The Result of the experiment, wherever it runs.

        An error becomes text here: an exception that cannot be unpickled would break a pool of
        processes. What the experiment changes in its settings is not seen in the Result, nor what
        it writes later into the arrays that it gave.
        """
        try:
            rng = np.random.default_rng(self.seed)
            value = dict(self.experiment(rng, **deepcopy(self.settings)))
            return Result(self.seed, self.settings, deepcopy(value))
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
                entries = dict(study=self.title, code=self.code, value=result.value)
                checkpoint.save(self.path, "result", **entries)
            return result
        # its worker died, it was cancelled, the disk is full, or no file can hold such a value
        except Exception:
            return self.failed()

    def load(self):
        """The Result whose value is in the job's file; ValueError if that is of another study."""
        stored = checkpoint.load(self.path, "result")
        title = stored["study"]
        require(title == self.title, self.path, f"expected {self.title}, found {title}")
        changed = "made by other code of the experiment: delete the file or give another folder"
        require(stored.get("code") == self.code, self.path, changed)
        return Result(self.seed, self.settings, stored["value"], loaded=True)
