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
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps

# Gymnasium's 4x4 map, slippery
FROZEN_LAKE = GridWorld("S... .O.O ...O O..G", discount=0.99, horizon=100, slip=2 / 3)

INNER = Reinforce(1.0, baseline=time_mean_baseline)
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
# states, actions and successors of one task; the first of each line grows up to this size
TABLES = dict(
    states=dict(states=30_000, actions=4, successors=32),
    actions=dict(actions=100_000, states=4, successors=8),
    successors=dict(successors=100_000, states=4, actions=8),
    arms=dict(actions=10**6, states=1, successors=2),
)
# dense tasks: states, actions; the first is as large as Jack's car rental (Sutton & Barto, ex. 4.2)
DENSE = [(441, 11), (400, 5)]
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


# %% Dense tasks: every state may follow every other, so that a step has A·S outcomes
def measure_dense(rng, quick, progress):
    """A row of the JSON for each of the sizes in DENSE, printed."""
    print("\ndense tasks, 16384 lanes x 100 steps")
    rows = []
    for n_states, n_actions in [(40, 5)] if quick else DENSE:
        progress("dense tasks")
        mdps = random_mdps(rng, 1, n_states, n_actions, horizon=100, reward_noise=0.0)
        policy = SoftmaxPolicy(n_states, n_actions)
        log_pi = policy.log_pi(policy.init())

        def sample(episodes):
            return lambda: rollout(rng, mdps, log_pi, episodes)

        first = median_seconds(sample(1), repeats=1, warm_up=0)
        again = median_seconds(sample(1), repeats=5)
        episodes = 1_000 if quick else 16_384
        rate = episodes * mdps.horizon / median_seconds(sample(episodes), repeats=5)
        progress.done()
        row = dict(states=n_states, actions=n_actions, first_seconds=first)
        rows.append(row | dict(seconds=again, steps_per_s=rate))
        print(
            f"{n_states} states, {n_actions} actions: the first episode after {first:.3f} s, "
            f"with another policy after {again * 1e3:.1f} ms; {rate / 1e6:.1f} M steps/s"
        )
    return rows


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
        INNER,
        steps=1,
        iterations=10**6,
        episodes=episodes,
        step_size=0.5,
        optimiser=optim.ascent,
    )
    return lambda: next(iterations)


def maml_parts(rng, side, tasks, episodes, steps):
    """{part: (how often an iteration does it, the function that does it once)}."""
    mdps = grid_tasks(side, tasks, steps)
    policy = SoftmaxPolicy(side * side, 4)
    path = maml.adapt(rng, mdps, policy, policy.init(), INNER, steps=1, episodes=episodes)
    theta = path.thetas[-1]
    query = path.episodes[-1]
    return dict(
        sampling=(2, lambda: rollout(rng, mdps, policy.log_pi(theta), episodes)),
        folding=(2, lambda: INNER.prepare(policy, theta, query, mdps.discount)),
        gradient=(1, lambda: maml.meta_gradient(policy, path, INNER)),
    )


def measure_maml(rng, quick):
    """A row of the JSON for each of the sizes in MAML, printed."""
    print("\nMAML meta-iteration, and the shares of its parts (the rest is checks and sums)")
    print(
        f"{'grid':>5s} {'tasks':>6s} {'episodes':>9s} {'steps':>6s} {'ms':>8s} "
        f"{'sampling':>9s} {'folding':>8s} {'gradient':>9s}"
    )
    rows = []
    repeats = 3 if quick else 30
    for sizes in MAML[:1] if quick else MAML:
        seconds = median_seconds(maml_iteration(rng, *sizes), repeats, warm_up=3)
        shares = {}
        for part, (times, run) in maml_parts(rng, *sizes).items():
            shares[part] = times * median_seconds(run, repeats) / seconds
        row = dict(zip(("grid", "tasks", "episodes", "steps"), sizes))
        rows.append(row | dict(ms=1e3 * seconds, shares=shares))
        side, tasks, episodes, steps = sizes
        print(
            f"{side:5d} {tasks:6d} {episodes:9d} {steps:6d} {1e3 * seconds:8.2f} "
            f"{shares['sampling']:9.0%} {shares['folding']:8.0%} {shares['gradient']:9.1%}"
        )
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


def three_decades(end, points):
    """Sizes from a thousandth of the end, evenly on a logarithmic scale."""
    return np.geomspace(end / 1000, end, points).round().astype(int).tolist()


def time_and_memory(run):
    """Seconds, and megabytes at the peak, above what was there before."""
    seconds = median_seconds(run, 2)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return dict(seconds=seconds, megabytes=peak / 1e6)


def scaling(rng, name, axis, points):
    """A row per size."""
    base, ends = SCALING[name]
    for size in three_decades(ends[axis], points):
        sizes = list(base)
        sizes[axis] = size
        row = dict(zip(AXES, sizes), what=name, axis=AXES[axis], size=size)
        yield row | time_and_memory(work(rng, name, *sizes))


def table_scaling(rng, axis, points):
    """A row per size: what the tables of a policy cost in a task that is new."""
    sizes = dict(TABLES[axis])
    grows, end = next(iter(sizes.items()))
    for size in three_decades(end, points):
        sizes[grows] = size
        shape = (1, sizes["states"], sizes["actions"], sizes["successors"])
        p = rng.random(shape)
        mdps = MDP(
            successors=rng.integers(sizes["states"], size=shape),
            probabilities=p / p.sum(-1, keepdims=True),
            rewards=p,
            start=np.eye(1, sizes["states"]),
            terminal=np.zeros(shape[:2]),
            discount=1.0,
            horizon=1,
        )
        log_pi = np.full(shape[1:3], -np.log(sizes["actions"]))
        new_tasks = iter([mdps[:] for _ in range(4)])  # so often it is run
        row = dict(sizes, what="tables", axis=axis, size=size)
        yield row | time_and_memory(lambda: sampling_tables(next(new_tasks), log_pi))


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


def measure_tables(rng, quick, progress):
    """(rows of the JSON, exponents), printed as a table."""
    print("\ntables of a policy in a new task: exponents, and seconds at the largest size")
    every = []
    slopes = {}
    for axis in TABLES:
        if quick and axis != "states":
            continue
        progress(f"tables against {axis}")
        rows = list(table_scaling(rng, axis, points=4 if quick else 7))
        progress.done()
        every += rows
        slopes[f"tables, {axis}"] = slope = exponents(rows)
        last = rows[-1]
        print(
            f"{axis:12s}{slope['seconds']:7.2f} /{slope['megabytes']:5.2f}"
            f"{last['size']:12d}: {last['seconds']:.2f} s, {last['megabytes']:.0f} MB"
        )
    return every, slopes


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
    numbers["dense"] = measure_dense(rng, quick, progress)
    numbers["maml"] = measure_maml(rng, quick)
    numbers["rl2"] = measure_rl2(rng, quick, progress)
    numbers["oracle"], seconds = measure_oracles(quick, progress)
    numbers["exact_meta_gradient_seconds"] = seconds
    rows, slopes, picture = measure_scaling(rng, quick, progress, arguments.out)
    table_rows, table_slopes = measure_tables(rng, quick, progress)
    numbers |= dict(scaling=rows + table_rows, exponents=slopes | table_slopes)

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
