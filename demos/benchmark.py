"""How fast it is, and how time and memory grow: rollouts, iterations of MAML and RL², the oracles.

Every number is the median of several runs on this machine now. Machines drift, so compare only
what ran in one sitting: with `--peers` the scripts that time JAX, C and others on the same work
are started too, and the ratios are printed.
"""

# %% What is timed
import errno
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from functools import lru_cache

# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser, some_path, some_text

import numpy as np

from metarl_np import bandits, exact, maml, meta_gradients, optim, plots, rl2
from metarl_np.learner.alias import sampling_tables
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.returns import time_mean_baseline
from metarl_np.learner.rollouts import rollout
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent
from metarl_np.tasks.gridworld import GridWorld

# Gymnasium's 4x4 map, slippery
FROZEN_LAKE = GridWorld("S... .O.O ...O O..G", discount=0.99, horizon=100, slip=2 / 3)

# side of the grid, tasks, episodes, steps
MAML = [(5, 40, 20, 20), (10, 40, 20, 100), (10, 40, 200, 100), (10, 200, 100, 100)]

# arms, pulls, trials, minibatches
RL2 = [(5, 10, 2000, 1), (5, 100, 1024, 8)]

# what: its sizes while one of them grows, and how far each grows, from a thousandth of that
AXES = ("tasks", "episodes", "horizon", "states")
SCALING = dict(
    rollout=((1, 100, 10, 25), (10_000, 100_000, 10_000, 10**6)),
    maml=((1, 10, 10, 25), (10_000, 10_000, 10_000, 40_000)),
    rl2=((10, 1, 5, 9), (10_000, 1_000, 1_000, 9_000)),
    policy_evaluation=((1, 0, 10, 100), (10_000, 0, 1_000, 10**6)),
    value_iteration=((1, 0, 10, 100), (10_000, 0, 1_000, 10**6)),
    exact_meta_gradient=((1, 0, 10, 25), (1_000, 0, 1_000, 40_000)),
)
LOOKS = dict(  # name, colour, marker
    rollout=("rollout", "blue", "o"),
    maml=("MAML iteration", "red", "s"),
    rl2=("RL² iteration", "green", "D"),
    policy_evaluation=("policy evaluation", "orange", "^"),
    value_iteration=("value iteration", "purple", "v"),
    exact_meta_gradient=("exact meta-gradient", "black", "X"),
)

# script with its arguments: what a line with a number looks like
PEERS = {
    "rollout_peers.py": r"^(\S.*?) +([\d.]+) M steps/s",
    "maml_peers.py": r"^(\S+ .*?) +([\d.]+) ms",
    "rl2_peer.py 5 10 20": r"() ([\d.]+) ms/iteration",
    "rl2_peer.py 5 100 12": r"() ([\d.]+) ms/iteration",
}


def median_seconds(run, repeats, warm_up=1):
    """Median wall time of `repeats` runs after a warm-up."""
    times = []
    for _ in range(repeats + warm_up):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times[warm_up:]))


# %% FrozenLake: states, actions and rewards of all environments x 100 steps, with auto-reset
def frozen_lake(rng, environments, threads, repeats):
    """Steps per second with the random policy of a softmax table."""
    mdps = FROZEN_LAKE.mdps().auto_reset()
    logits = rng.normal(size=(16, 4))
    log_pi = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    tables = sampling_tables(mdps, log_pi)

    def run():
        rollout(rng, mdps, tables, environments, threads=threads)

    return environments * mdps.horizon / median_seconds(run, repeats)


def measure_frozen_lake(rng, quick, progress):
    """{key of the JSON: steps per second} with one thread and with two, printed."""
    numbers = {}
    progress("FrozenLake")
    for threads, environments, suffix in ((1, 16_384, ""), (2, 131_072, "_threads")):
        environments = 1_000 if quick else environments
        rate = frozen_lake(rng, environments, threads, repeats=2 if quick else 15)
        numbers["frozen_lake_steps_per_s" + suffix] = rate
        progress.done()
        print(
            f"FrozenLake 4x4 slippery, {environments} environments x 100 steps, "
            f"{threads} thread{'s' * (threads > 1)}: {rate / 1e6:.1f} M steps/s"
        )
    return numbers


# %% A MAML meta-iteration: sample, adapt, sample, second-order meta-gradient
@lru_cache(maxsize=4)
def grid_tasks(side, tasks, horizon):
    """Goals anywhere on an open square."""
    goals = np.random.default_rng(0).integers(1, side * side, tasks)
    return GridWorld.open(side, side, discount=0.95, horizon=horizon).mdps(goals)


def maml_iteration(rng, side, tasks, episodes, steps):
    """The function that does one."""
    mdps = grid_tasks(side, tasks, steps)
    policy = SoftmaxPolicy(side * side, 4)
    iterations = maml.train(
        rng,
        lambda rng: mdps,
        policy,
        policy.init(),
        Reinforce(1.0, baseline=time_mean_baseline),
        steps=1,
        iterations=10**6,
        episodes=episodes,
        step_size=0.5,
        optimiser=optim.ascent,
    )
    return lambda: next(iterations)


def measure_maml(rng, quick):
    """A row of the JSON for each of the sizes in MAML, printed."""
    print("\nMAML meta-iteration")
    print(f"{'grid':>5s} {'tasks':>6s} {'episodes':>9s} {'steps':>6s} {'ms':>8s}")
    rows = []
    for side, tasks, episodes, steps in MAML[:1] if quick else MAML:
        run = maml_iteration(rng, side, tasks, episodes, steps)
        ms = 1e3 * median_seconds(run, repeats=3 if quick else 30, warm_up=3)
        rows.append(dict(grid=side, tasks=tasks, episodes=episodes, steps=steps, ms=ms))
        print(f"{side:5d} {tasks:6d} {episodes:9d} {steps:6d} {ms:8.2f}")
    return rows


# %% An iteration of recurrent RL²: sample a trial in each new task, then three epochs of PPO
def rl2_iteration(rng, sample_tasks, episodes, units, **settings):
    """The function that does one."""
    policy = rl2.RecurrentPolicy(*sample_tasks(rng).shape[1:], units)
    update = RecurrentPPO(**settings)
    theta = policy.init(rng)
    iterations = train_recurrent(
        rng, sample_tasks, policy, theta, update, iterations=10**6, episodes=episodes
    )
    return lambda: next(iterations)


def measure_rl2(rng, quick, progress):
    """A row of the JSON for each of the sizes in RL2, printed."""
    print("\nrecurrent RL² on bandits, GRU of 64 units")
    rows = []
    for k, n, trials, minibatches in [(5, 10, 200, 1)] if quick else RL2:
        progress("recurrent RL²")

        def sample_tasks(rng):
            return bandits.independent(rng, trials, k)

        run = rl2_iteration(rng, sample_tasks, n, 64, minibatches=minibatches)
        ms = 1e3 * median_seconds(run, repeats=2 if quick else 15 if n < 100 else 5)
        progress.done()
        rows.append(dict(k=k, n=n, trials=trials, ms_per_iteration=ms))
        print(f"k = {k}, n = {n}, {trials} trials: {ms:.0f} ms an iteration")
    return rows


# %% The oracles: a sweep over all states beside the time that copying the arrays it reads takes
def oracles(side, sweeps=10):
    """A row of the JSON for each kind of sweep, on one map of side · side states."""
    mdps = grid_tasks(side, 1, 10)
    pi = np.full((1, side * side, 4), 0.25)
    v = np.random.default_rng(0).random((1, side * side))
    read = [mdps.next_rows, mdps.expected_rewards, v]

    def row(method, sweep, arrays):
        targets = [np.empty_like(x) for x in arrays]

        def copy():
            for to, x in zip(targets, arrays):
                np.copyto(to, x)

        return dict(
            method=method,
            states=side * side,
            sweep_ms=1e3 * median_seconds(sweep, sweeps),
            copy_ms=1e3 * median_seconds(copy, sweeps),
        )

    return [
        row("value iteration", lambda: exact.optimal_backup(mdps, v), read),
        row("policy evaluation", lambda: exact.backup(mdps, pi, v), [*read, pi]),
    ]


def exact_meta_gradient(side, tasks, horizon):
    """The function that computes one, (a), of all tasks."""
    policy = SoftmaxPolicy(side * side, 4)
    mdps = grid_tasks(side, tasks, horizon)
    return lambda: meta_gradients.adapted_return_gradient(
        mdps, policy, policy.init(), step_size=1.0
    )


def measure_oracles(quick, progress):
    """(rows of the sweeps, seconds of an exact meta-gradient), printed."""
    progress("oracles")
    rows = oracles(100 if quick else 1000)
    seconds = median_seconds(exact_meta_gradient(10, 5 if quick else 100, 100), 2)
    progress.done()
    print("\nexact oracles")
    for row in rows:
        print(
            f"{row['method']}, {row['states']} states: {row['sweep_ms']:.2f} ms a sweep; "
            f"copying the arrays that it reads {row['copy_ms']:.2f} ms"
        )
    print(f"exact meta-gradient of 100 tasks x 100 states, 100 steps: {seconds:.2f} s")
    return rows, seconds


# %% Time and memory against tasks, episodes, horizon and states, over three decades each
def work(rng, name, tasks, episodes, horizon, states):
    """The function to time at these sizes; what it needs is made outside."""
    side = int(states**0.5)
    mdps = grid_tasks(side, tasks, horizon)
    log_pi = np.full((side * side, 4), -np.log(4))
    if name == "rl2":
        return rl2_iteration(rng, lambda rng: mdps, episodes, 16, epochs=1)
    if name == "maml":
        return maml_iteration(rng, side, tasks, episodes, horizon)
    if name == "exact_meta_gradient":
        return exact_meta_gradient(side, tasks, horizon)
    if name == "rollout":
        return lambda: rollout(rng, mdps, log_pi, episodes)
    if name == "policy_evaluation":
        return lambda: exact.values(mdps, log_pi)
    return lambda: exact.optimal_values(mdps)


def scaling(rng, name, axis, points):
    """A row per size: seconds, and megabytes at the peak, above what was there before."""
    base, ends = SCALING[name]
    for size in np.geomspace(ends[axis] / 1000, ends[axis], points).round().astype(int).tolist():
        sizes = list(base)
        sizes[axis] = size
        run = work(rng, name, *sizes)
        seconds = median_seconds(run, 2)
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield dict(
            zip(AXES, sizes),
            what=name,
            axis=AXES[axis],
            size=size,
            seconds=seconds,
            megabytes=peak / 1e6,
        )


def exponents(rows):
    """The slopes of log time and log memory against log size, over the upper half of the sizes.

    Below that, what every call costs hides the growth.
    """
    rows = rows[len(rows) // 2 - 1 :]
    x = np.log([r["size"] for r in rows])
    slopes = {}
    for key in ("seconds", "megabytes"):
        y = np.log([r[key] for r in rows])
        slopes[key] = float(np.polyfit(x, y, 1)[0])
    return slopes


def draw_growth(axes, name, axis, rows):
    """One curve of time in the upper row of the panels, and one of memory in the lower."""
    label, colour, marker = LOOKS[name]
    for ax, key in ((axes[axis], "seconds"), (axes[4 + axis], "megabytes")):
        ax.plot(
            [r["size"] for r in rows],
            [r[key] for r in rows],
            color=plots.COLOURS[colour],
            marker=marker,
            markersize=5,
            label=label,
        )


def draw_axes(axes):
    """Labels, and in each panel a line of slope one from its lower left corner."""
    for i, ax in enumerate(axes):
        ax.set(xscale="log", yscale="log", xlabel=AXES[i % 4])
        if i % 4 == 0:
            ax.set_ylabel(("seconds", "peak memory (MB)")[i // 4])
        low, high = ax.get_ylim()
        x = np.array(ax.get_xlim())
        linear = x * (low / x[0])
        grey = plots.COLOURS["grey"]
        ax.plot(x, linear, color=grey, linestyle=":", zorder=0, label="linear")
        ax.set(xlim=x, ylim=(low, high))


def measure_scaling(rng, quick, progress, out):
    """(rows of the JSON, exponents, the picture's name), printed as a table."""
    print("\ngrowth: exponents of time / memory over the upper decades")
    print(f"{'':20s}" + "".join(f"{axis:>14s}" for axis in AXES))
    every = []
    slopes = {}
    fig, axes = plots.figure(14.5, 6.2, columns=4, rows=2)
    for name in SCALING:
        label = LOOKS[name][0]
        line = f"{label:20s}"
        for i, axis in enumerate(AXES):
            if not SCALING[name][1][i]:
                line += f"{'–':>14s}"
                continue
            if quick and (name != "rollout" or i > 1):
                continue
            progress(f"{label} against {axis}")
            rows = list(scaling(rng, name, i, points=4 if quick else 7))
            every += rows
            slopes[f"{name}, {axis}"] = slope = exponents(rows)
            line += f"{slope['seconds']:7.2f} /{slope['megabytes']:5.2f}"
            draw_growth(axes, name, i, rows)
        progress.done()
        print(line)
    draw_axes(axes)
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside right center")
    return every, slopes, plots.save(fig, out, "scaling")


# %% Peers: the scripts that time what a user would run instead
def peers(folder, python):
    """{script, sizes and name: number} as the scripts print it; what is not installed they skip."""
    found = {}
    for script, pattern in PEERS.items():
        name, *sizes = script.split()
        command = [python, str(folder / name), *sizes]
        output = subprocess.run(command, capture_output=True, text=True).stdout
        for label, number in re.findall(pattern, output, re.MULTILINE):
            peer = " ".join([name.split("_")[0], *sizes[:2], *label.split()])
            found[peer] = float(number)
    return found


def ratios(found, numbers):
    """{peer: (its number, ours, how many times as fast ours is)}."""
    ours = {}
    for r in numbers["maml"]:
        sizes = f"n= {r['grid']} B= {r['tasks']} N= {r['episodes']} H= {r['steps']}"
        for kind in ("jax_jit", "torch_loop"):
            ours[normal(f"maml {kind} {sizes}")] = r["ms"]
    for r in numbers["rl2"]:
        ours[normal(f"rl2 {r['k']} {r['n']}")] = r["ms_per_iteration"]
    rate = numbers["frozen_lake_steps_per_s"] / 1e6
    threads = numbers["frozen_lake_steps_per_s_threads"] / 1e6
    result = {}
    for peer, number in found.items():
        ms = ours.get(normal(peer))
        if ms and number:
            result[peer] = number, ms, number / ms
    for peer, number in found.items():
        if peer.startswith("rollout"):
            result[peer] = number, rate, rate / number
            result[peer + ", our threads"] = number, threads, threads / number
    return result


def normal(peer):
    """The scripts pad their numbers: `n=  5` and `n= 5` are the same peer."""
    return re.sub(r"= *", "=", peer)


# %% The job
def options():
    """The command line."""
    p = parser(__doc__)
    p.add_argument(
        "--peers",
        nargs="?",
        type=some_path,
        metavar="DIR",
        const=pathlib.Path(__file__).resolve().parents[2] / "shared" / "peers",
        help="start the peer scripts in this folder too (some minutes; default: none)",
    )
    p.add_argument(
        "--peers-python",
        type=some_text,
        metavar="PYTHON",
        help="the Python in which the peers' packages are installed (default: this one)",
    )
    p.goes_with("--peers-python", "--peers")
    p.places["peers"] = require_peers
    p.places["peers_python"] = require_program
    return p.parse_args()


def require_peers(path, arguments):
    """OSError unless the scripts are in this folder."""
    if not (path / "maml_peers.py").is_file():
        raise FileNotFoundError(errno.ENOENT, "no peer scripts are there")


def require_program(name, arguments):
    """OSError unless there is such a program."""
    if shutil.which(name) is None:
        raise FileNotFoundError(errno.ENOENT, "no such program")


def main():
    arguments = options()
    quick = arguments.quick
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()

    numbers = measure_frozen_lake(rng, quick, progress)
    numbers["maml"] = measure_maml(rng, quick)
    numbers["rl2"] = measure_rl2(rng, quick, progress)
    numbers["oracle"], seconds = measure_oracles(quick, progress)
    numbers["exact_meta_gradient_seconds"] = seconds
    rows, slopes, picture = measure_scaling(rng, quick, progress, arguments.out)
    numbers |= dict(scaling=rows, exponents=slopes)

    if arguments.peers:
        progress("peers")
        python = arguments.peers_python or sys.executable
        numbers["peers"] = ratios(peers(arguments.peers, python), numbers)
        progress.done()
        print(f"\n{'peer':50s} {'its':>9s} {'ours':>9s} {'ours is':>9s}")
        for name, (its, ours, ratio) in numbers["peers"].items():
            print(f"{name:50s} {its:9.2f} {ours:9.2f} {ratio:7.2f} ×")
    finish(arguments, numbers | dict(seconds=progress.seconds), [picture])


if __name__ == "__main__":
    begin(main)
