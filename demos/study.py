"""Over 20 seeds: where goals lie on the far edges, one step on a new goal takes MAML .42 ± .06 of the optimum further than fine-tuned
multi-task training; where they may be anywhere, learning from scratch is level with it after one step, and ahead from the second on.

The experiment of maml_gridworld.py with every seed and both families of goals, on the executor that --executor names; each number with its
95% interval over seeds (Student's t), and the differences between the methods of a seed paired. One to three minutes on two cores. With
--folder DIR every result is kept as it finishes, and the same command goes on from there. On the machines of a cluster: --executor dask
--scheduler tcp://HOST:8786, or mpiexec -n 9 python -m mpi4py.futures demos/study.py --executor mpi.
"""

# %% The study
import importlib
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np

from _common import Progress, begin, finish, parser
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
        sys.exit(f"this executor needs {module} ({error}); get it by `pip install '{package}'`")


@contextmanager
def engine(name, scheduler=None):
    """The executor of that name: None (here, one after the other), a process for each core, Dask's workers, or MPI's processes."""
    if name == "serial":
        yield None
    elif name == "processes":
        with ProcessPoolExecutor() as pool:
            yield pool
    elif name == "dask":
        local = {} if scheduler else dict(threads_per_worker=1, dashboard_address=":0")
        with needed("distributed", "metarl_np[distributed]").Client(
            scheduler, **local
        ) as client, client.get_executor(pure=False) as pool:
            # other machines have metarl_np, not the demos
            for module in (
                ("model_based", "baselines", "common", "maml_gridworld") if scheduler else ()
            ):
                client.upload_file(str(DEMOS / f"{module}.py"))
            yield pool
    else:
        with needed("mpi4py.futures", "mpi4py").MPIPoolExecutor(path=[str(DEMOS)]) as pool:
            yield pool


# %% Intervals
def student_t(dof, p=0.975):
    """The p-quantile of Student's t: with t = √ν tan φ its density is ∝ cos^(ν−1) φ, summed here over φ in (−π/2, π/2)."""
    edges = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (dof - 1))
    return float(np.sqrt(dof) * np.tan(np.interp(p, mass / mass[-1], edges[1:])))


def interval(values):
    """Mean over seeds and half the width of its 95% interval: (seeds, …) → two arrays (…)."""
    return values.mean(0), student_t(len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))


# %% The picture
def smooth(curve, width):
    """Means over `width` iterations at a time: (seeds, iterations) → (seeds, iterations // width)."""
    points = curve.shape[1] // width
    return curve[:, : points * width].reshape(len(curve), points, width).mean(2)


def draw(values, out):
    """Learning curves before and after adaptation, as a fraction of the mean optimum of the training goals; a panel for each family."""
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
            plots.curve(
                ax,
                (np.arange(points.shape[1]) + 0.5) * width,
                *interval(points),
                label=label,
                colour=colour,
            )
        ax.axhline(1, color=plots.COLOURS["black"], linestyle="--", linewidth=1, label="optimum")
        ax.set(
            title=TITLES[family],
            xlabel="meta-iteration",
            ylim=(-0.03, 1.05),
            ylabel="sampled return on training goals\n(fraction of the optimum)",
        )
    axes[1].legend(loc="lower right")
    return plots.save(fig, out, "study")


# %% The job
def main():
    p = parser(__doc__)
    p.add_argument(
        "--executor",
        choices=("serial", "processes", "dask", "mpi"),
        default="processes",
        help="here one after the other, on all cores of this machine (default), or on the workers of Dask or MPI",
    )
    p.add_argument(
        "--scheduler",
        help="address of a running Dask cluster (default: a new one on the cores of this machine)",
    )
    p.add_argument(
        "--folder",
        type=pathlib.Path,
        help="keep every result there as it finishes, and go on from what is there",
    )
    arguments = p.parse_args()
    n_seeds, iterations, repeats = (3, 10, 1) if arguments.quick else (20, 400, 10)
    seeds = [(arguments.seed, i) for i in range(n_seeds)]
    settings = [
        dict(family=family, policy="softmax", iterations=iterations, repeats=repeats)
        for family in TITLES
    ]
    progress = Progress()
    found = {family: {} for family in TITLES}
    failures = []
    with engine(arguments.executor, arguments.scheduler) as executor:
        for i, result in enumerate(
            study(experiment, seeds, settings, executor=executor, folder=arguments.folder)
        ):
            if result.error:
                failures.append(f"seed {result.seed}, {result.settings['family']}: {result.error}")
            else:
                found[result.settings["family"]][result.seed] = result.value
            progress(f"{i + 1} of {len(seeds) * len(settings)} runs done, {len(failures)} failed")
    progress.done()
    if failures:
        sys.exit(
            "\n".join(failures)
            + f"\n{len(failures)} runs failed; with --folder DIR the same command tries only those again"
        )

    values = {
        family: {
            method: {
                key: np.array([by_seed[seed][method][key] for seed in seeds])
                for key in ("curve", "held_out", "step_size")
            }
            for method in METHODS
        }
        for family, by_seed in found.items()
    }
    numbers = dict(steps=STEPS, seeds=n_seeds, iterations=iterations, executor=arguments.executor)
    for family, methods in values.items():
        print(
            f"\n{TITLES[family]}: held-out goals, {iterations} meta-iterations, mean and 95% interval over {n_seeds} seeds"
        )
        print(f"{'fraction of the optimum after':38s}" + "".join(f"{k:>7d} steps" for k in STEPS))
        rows = [
            (method, label, methods[method]["held_out"]) for method, (label, _) in METHODS.items()
        ]
        rows += [
            (
                f"maml - {name}",
                f"MAML - {METHODS[name][0]}, paired",
                methods["maml"]["held_out"] - methods[name]["held_out"],
            )
            for name in ("multi_task", "scratch")
        ]
        numbers[family] = {}
        for name, label, fractions in rows:
            mean, half = interval(fractions)
            numbers[family][name] = dict(mean=mean.tolist(), half_width=half.tolist())
            print(
                f"{label:38s}"
                + "".join(f"{m:7.3f}±{h:.3f}" for m, h in zip(mean, half)).replace("±0.", "±.")
            )
    pictures = [draw(values, arguments.out)]
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
