"""Over 20 seeds: MAML against fine-tuned multi-task training and learning from scratch.

Where goals lie on the far edges, one step on a new goal takes MAML .458 ± .014 of the optimum
further than fine-tuned multi-task training. Where they may be anywhere, learning from scratch is
level with it after one step, and ahead from the second on.

The experiment of maml_gridworld.py with every seed and both families of goals, on the executor
that --executor names; each number with its 95% interval over seeds (Student's t), and the
differences between the methods of a seed paired. One to three minutes on two cores.

With --folder DIR every result is kept as it finishes, and the same command goes on from there.
A file there is refused if the code of the experiment has changed; what the experiment calls is not
compared, so take another folder if that has changed. On the machines of a cluster: --executor dask
--scheduler tcp://HOST:8786, or mpiexec -n 9 python -m mpi4py.futures demos/study.py --executor mpi.
"""

# %% The study
import importlib
import multiprocessing
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

# before numpy, whose threads it sets
from _common import (
    Progress,
    begin,
    files_of,
    finish,
    for_the_shell,
    leave_signals_to_main,
    parser,
    require_folder,
    some_path,
    some_text,
)

import numpy as np

from maml_gridworld import METHODS, STEPS, experiment, families
from metarl_np import exact, plots
from metarl_np.runs.study import study

DEMOS = pathlib.Path(__file__).resolve().parent
TITLES = dict(edges="7x7, goals on the far edges", anywhere="5x5, goals anywhere")


# %% Where it runs
def needed(module, package):
    """Import what metarl_np itself does without, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        python = for_the_shell([sys.executable])
        get = f"{python} -m pip install '{package}'"
        sys.exit(f"this executor needs {module} ({error}); get it by\n{get}")


@contextmanager
def engine(name, scheduler=None):
    """The executor of that name.

    serial: None, here, one after the other; processes: one for each core; dask: the workers of the
    cluster at this address, or of a new one on this machine; mpi: MPI's processes.
    """
    if name == "serial":
        yield None
    elif name == "processes":
        with processes() as pool:
            yield pool
    elif name == "dask":
        with dask_client(scheduler) as client, client.get_executor(pure=False) as pool:
            yield pool
    else:
        with needed("mpi4py.futures", "mpi4py").MPIPoolExecutor(path=[str(DEMOS)]) as pool:
            yield pool


@contextmanager
def processes():
    """A pool of processes, one for each core; an error or Ctrl-C ends them, and nothing begins."""
    pool = ProcessPoolExecutor(initializer=leave_signals_to_main)
    try:
        yield pool
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # Of one that has finished there are none. Only this program's pool has such children.
        for process in multiprocessing.active_children():
            process.terminate()


def dask_client(scheduler):
    """A client of the cluster at this address; without one, of a new cluster on this machine."""
    distributed = needed("distributed", "dask[distributed]")
    if scheduler is None:
        return distributed.Client(threads_per_worker=1, dashboard_address=":0")
    try:
        client = distributed.Client(scheduler)
    except (OSError, ValueError) as error:
        sys.exit(f"--scheduler {scheduler}: {error}")
    # other machines have metarl_np, but not the demos
    for module in ("_common", "maml_gridworld"):
        client.upload_file(str(DEMOS / f"{module}.py"))
    return client


# %% Intervals
def student_t(dof, p=0.975):
    """The p-quantile of Student's t with ν = `dof` degrees of freedom.

    With t = √ν tan φ its density is ∝ cos^(ν−1) φ, which is summed here over φ in (−π/2, π/2).
    """
    edges = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = np.cumsum(np.cos(middles) ** (dof - 1))
    phi = np.interp(p, mass / mass[-1], edges[1:])
    return float(np.sqrt(dof) * np.tan(phi))


def interval(values):
    """Mean over seeds and half the width of its 95% interval: (seeds, …) → two arrays (…)."""
    n = len(values)
    half = student_t(n - 1) * values.std(0, ddof=1) / np.sqrt(n)
    return values.mean(0), half


# %% The picture
def smooth(curve, width):
    """Means over `width` iterations at a time: (seeds, iterations) → (seeds, points)."""
    seeds, iterations = curve.shape
    points = iterations // width
    return curve[:, : points * width].reshape(seeds, points, width).mean(2)


def draw(values, out):
    """Learning curves before and after adaptation, a panel for each family.

    They are fractions of the mean optimum of the training goals.
    """
    fig, axes = plots.figure(10, 4.2, columns=2)
    for ax, (family, methods) in zip(axes, values.items()):
        grid, goals, _ = families()[family]
        best = exact.optimal_return(grid.mdps(goals)).mean()
        for method, steps, label, colour in (
            ("maml", 1, "MAML, after one inner step", "blue"),
            ("maml", 0, "MAML, before", "sky"),
            ("multi_task", 0, "multi-task, no inner step", "orange"),
        ):
            curve = methods[method]["curve"][:, :, steps] / best
            width = max(1, curve.shape[1] // 40)
            points = smooth(curve, width)
            middles = (np.arange(points.shape[1]) + 0.5) * width
            plots.curve(ax, middles, *interval(points), label=label, colour=colour)
        plots.bound(ax, 1)
        ax.set(
            title=TITLES[family],
            xlabel="meta-iteration",
            ylim=(-0.03, 1.05),
            ylabel="sampled return on training goals\n(fraction of the optimum)",
        )
    axes[1].legend(loc="lower right")
    return plots.save(fig, out, "study")


# %% The job
def options():
    """The command line."""
    p = parser(__doc__)
    p.add_argument(
        "--executor",
        choices=("serial", "processes", "dask", "mpi"),
        default="processes",
        help="here one after the other, on all cores of this machine (default), or on the workers "
        "of Dask or MPI",
    )
    p.add_argument(
        "--scheduler",
        type=some_text,
        metavar="tcp://HOST:PORT",
        help="address of a running Dask cluster (default: a new one on the cores of this machine)",
    )
    p.add_argument(
        "--folder",
        type=some_path,
        metavar="DIR",
        help="keep every result there as it finishes, and go on from what is there (from another "
        "folder if the code of the experiment has changed; default: nothing is kept)",
    )
    p.places["folder"] = require_folder
    p.goes_with("--scheduler", "--executor", "dask")
    return p.parse_args()


def run_all(arguments, seeds, iterations, repeats, progress):
    """{family: {seed: what `experiment` gives}}; ends the program if any of it failed."""
    common = dict(policy="softmax", iterations=iterations, repeats=repeats)
    settings = [dict(common, family=family) for family in TITLES]
    found = {family: {} for family in TITLES}
    failures = []
    loaded = 0
    where = arguments.executor, arguments.scheduler
    with files_of(arguments.folder), engine(*where) as executor:
        results = study(experiment, seeds, settings, executor=executor, folder=arguments.folder)
        for i, result in enumerate(results):
            family = result.settings["family"]
            if result.error:
                failures.append(f"seed {result.seed}, {family}: {result.error}")
            found[family][result.seed] = result.value
            loaded += result.loaded
            progress(f"{i + 1} of {len(seeds) * len(settings)} runs done, {len(failures)} failed")
    progress.done()
    if loaded:
        print(f"{loaded} results are from {arguments.folder}, and were not computed again")
    if failures:
        failures.append(
            f"{len(failures)} runs failed; with --folder DIR the same command tries only those "
            "again"
        )
        sys.exit("\n".join(failures))
    return found


def over_seeds(by_seed, seeds):
    """{method: {name: array (seeds, …)}} of one family, from {seed: what `experiment` gives}."""
    values = {}
    for method in METHODS:
        values[method] = {}
        for key in ("curve", "held_out", "step_size"):
            values[method][key] = np.array([by_seed[seed][method][key] for seed in seeds])
    return values


def rows_of(methods):
    """(name, label, fractions of the optimum (seeds, 6)) of each row of one family's table."""
    rows = []
    for method, (label, _) in METHODS.items():
        rows.append((method, label, methods[method]["held_out"]))
    for other in ("multi_task", "scratch"):
        ahead = methods["maml"]["held_out"] - methods[other]["held_out"]
        rows.append((f"maml - {other}", f"MAML - {METHODS[other][0]}, paired", ahead))
    return rows


def print_family(family, methods, n_seeds, iterations):
    """The table of one family; returns its numbers for the JSON."""
    print(
        f"\n{TITLES[family]}: held-out goals, {iterations} meta-iterations, mean and 95% interval "
        f"over {n_seeds} seeds"
    )
    steps = "".join(f"{k:>7d} steps" for k in STEPS)
    print(f"{'fraction of the optimum after':38s}{steps}")
    numbers = {}
    for name, label, fractions in rows_of(methods):
        mean, half = interval(fractions)
        numbers[name] = dict(mean=mean.tolist(), half_width=half.tolist())
        cells = "".join(f"{m:7.3f}±{h:.3f}" for m, h in zip(mean, half)).replace("±0.", "±.")
        print(f"{label:38s}{cells}")
    return numbers


def main():
    arguments = options()
    n_seeds, iterations, repeats = (2, 10, 1) if arguments.quick else (20, 100, 10)
    seeds = [(arguments.seed, i) for i in range(n_seeds)]
    progress = Progress()
    found = run_all(arguments, seeds, iterations, repeats, progress)
    values = {family: over_seeds(by_seed, seeds) for family, by_seed in found.items()}
    numbers = dict(steps=STEPS, seeds=n_seeds, iterations=iterations, executor=arguments.executor)
    for family, methods in values.items():
        numbers[family] = print_family(family, methods, n_seeds, iterations)
    after_one_step = values["edges"]["maml"]["held_out"][:, STEPS.index(1)]
    numbers["worst"] = float(after_one_step.min())
    print(f"\nMAML after one step, goals on the far edges, worst seed: {numbers['worst']:.3f}")
    pictures = [draw(values, arguments.out)]
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
