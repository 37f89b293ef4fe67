"""How fast it is, and how time and memory grow: rollouts, iterations of MAML and RL², the exact oracles.

Every number is the median of several runs on this machine now; machines drift, so compare only what ran in one sitting: with `--peers` the
scripts that time JAX, C and others on the same work are started too, and the ratios printed.
"""

# %% What is timed
import pathlib
import re
import subprocess
import sys
import time
import tracemalloc
from functools import lru_cache

from _common import Progress, begin, finish, parser  # before numpy, whose threads it sets

import numpy as np

from metarl_np import bandits, exact, maml, meta_gradients, optim, plots, rl2
from metarl_np.learner.alias import sampling_tables
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.returns import time_mean_baseline
from metarl_np.learner.rollouts import rollout
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent
from metarl_np.tasks.gridworld import GridWorld

FROZEN_LAKE = GridWorld(
    "S... .O.O ...O O..G", discount=0.99, horizon=100, slip=2 / 3
)  # Gymnasium's 4x4, slippery
MAML = [
    (5, 40, 20, 20),
    (10, 40, 20, 100),
    (10, 40, 200, 100),
    (10, 200, 100, 100),
]  # side of the grid, tasks, episodes, steps
RL2 = [(5, 10, 2000, 1), (5, 100, 1024, 8)]  # arms, pulls, trials, minibatches
AXES = ("tasks", "episodes", "horizon", "states")
SCALING = dict(  # what: its sizes while one of them grows, and how far each grows, from a thousandth of that
    rollout=((1, 100, 10, 25), (10_000, 100_000, 10_000, 10**6)),
    maml=((1, 10, 10, 25), (10_000, 10_000, 10_000, 40_000)),
    rl2=((10, 1, 5, 9), (10_000, 1_000, 1_000, 9_000)),
    policy_evaluation=((1, 0, 10, 100), (10_000, 0, 1_000, 10**6)),
    value_iteration=((1, 0, 10, 100), (10_000, 0, 1_000, 10**6)),
    exact_meta_gradient=((1, 0, 10, 25), (1_000, 0, 1_000, 40_000)),
)
NAMES = dict(
    rollout="rollout",
    maml="MAML iteration",
    rl2="RL² iteration",
    policy_evaluation="policy evaluation",
    value_iteration="value iteration",
    exact_meta_gradient="exact meta-gradient",
)


def median_seconds(run, repeats, warm_up=1):
    """Median wall time of `repeats` runs after a warm-up."""
    times = []
    for _ in range(repeats + warm_up):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times[warm_up:]))


# %% FrozenLake: states, actions and rewards of all environments x 100 steps, a softmax table's random policy, auto-reset
def frozen_lake(rng, environments, threads, repeats):
    mdps = FROZEN_LAKE.mdps().auto_reset()
    logits = rng.normal(size=(16, 4))
    tables = sampling_tables(mdps, logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    return (
        environments
        * mdps.horizon
        / median_seconds(lambda: rollout(rng, mdps, tables, environments, threads=threads), repeats)
    )


# %% A MAML meta-iteration: sample, adapt, sample, second-order meta-gradient
@lru_cache(maxsize=4)
def grid_tasks(side, tasks, horizon):
    return GridWorld.open(side, side, discount=0.95, horizon=horizon).mdps(
        np.random.default_rng(0).integers(1, side * side, tasks)
    )


def maml_iteration(rng, side, tasks, episodes, steps):
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


# %% An iteration of recurrent RL²: sample a trial in each new task, then three epochs of PPO, GRU of 64 units
def rl2_iteration(rng, sample_tasks, episodes, units, **settings):
    policy = rl2.RecurrentPolicy(*sample_tasks(rng).shape[1:], units)
    iterations = train_recurrent(
        rng,
        sample_tasks,
        policy,
        policy.init(rng),
        RecurrentPPO(**settings),
        iterations=10**6,
        episodes=episodes,
    )
    return lambda: next(iterations)


# %% The oracles on one big map: a sweep over all states beside the time that copying the arrays which it reads takes
def oracles(side, sweeps=10):
    mdps = grid_tasks(side, 1, 10)
    pi = np.full((1, side * side, 4), 0.25)
    v = np.random.default_rng(0).random((1, side * side))
    rows = []
    read = [mdps.next_rows, mdps.expected_rewards, v]
    for name, sweep, arrays in (
        ("value iteration", lambda: exact.optimal_backup(mdps, v), read),
        ("policy evaluation", lambda: exact.backup(mdps, pi, v), read + [pi]),
    ):
        targets = [np.empty_like(x) for x in arrays]
        times = dict(
            sweep_ms=sweep, copy_ms=lambda: [np.copyto(to, x) for to, x in zip(targets, arrays)]
        )
        rows.append(
            dict(method=name, states=side * side)
            | {key: 1e3 * median_seconds(run, sweeps) for key, run in times.items()}
        )
    return rows


def exact_meta_gradient(side, tasks, horizon):
    policy = SoftmaxPolicy(side * side, 4)
    return lambda: meta_gradients.adapted_return_gradient(
        grid_tasks(side, tasks, horizon), policy, policy.init(), step_size=1.0
    )


# %% Time and memory against tasks, episodes, horizon and states, over three decades each
def work(rng, name, tasks, episodes, horizon, states):
    """The function to time at these sizes; what it needs is made outside."""
    side = int(states**0.5)
    if name == "rl2":
        return rl2_iteration(
            rng, lambda rng: grid_tasks(side, tasks, horizon), episodes, 16, epochs=1
        )
    if name == "maml":
        return maml_iteration(rng, side, tasks, episodes, horizon)
    if name == "exact_meta_gradient":
        return exact_meta_gradient(side, tasks, horizon)
    mdps = grid_tasks(side, tasks, horizon)
    log_pi = np.full((side * side, 4), -np.log(4))
    return dict(
        rollout=lambda: rollout(rng, mdps, log_pi, episodes),
        policy_evaluation=lambda: exact.values(mdps, log_pi),
        value_iteration=lambda: exact.optimal_values(mdps),
    )[name]


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
            size=int(sizes[axis]),
            seconds=seconds,
            megabytes=peak / 1e6,
        )


def exponents(rows):
    """The slopes of log time and log memory over the upper half of the sizes: below, what every call costs hides the growth."""
    rows = rows[len(rows) // 2 - 1 :]
    x = np.log([r["size"] for r in rows])
    return {
        key: float(np.polyfit(x, np.log([r[key] for r in rows]), 1)[0])
        for key in ("seconds", "megabytes")
    }


# %% Peers: the scripts that time what a user would run instead
def peers(folder, python):
    """{(script, name or size): number} of what the scripts print; what is not installed they skip."""
    found = {}
    for script, pattern in (
        ("rollout_peers.py", r"^(\S.*?) +([\d.]+) M steps/s"),
        ("maml_peers.py", r"^(\S+ .*?) +([\d.]+) ms"),
        ("rl2_peer.py 5 10 20", r"() ([\d.]+) ms/iteration"),
        ("rl2_peer.py 5 100 12", r"() ([\d.]+) ms/iteration"),
    ):
        name, *sizes = script.split()
        output = subprocess.run(
            [python, str(folder / name), *sizes], capture_output=True, text=True
        ).stdout
        for label, number in re.findall(pattern, output, re.MULTILINE):
            found[" ".join([name.split("_")[0], *sizes[:2], *label.split()])] = float(number)
    return found


def ratios(found, numbers):
    """{peer: (its number, ours, how many times as fast ours is)}."""
    ours = {
        f"maml jax_jit n={r['grid']:3d} B={r['tasks']:4d} N={r['episodes']:4d} H={r['steps']:4d}": r[
            "ms"
        ]
        for r in numbers["maml"]
    }
    ours |= {key.replace("jax_jit", "torch_loop"): ms for key, ms in ours.items()}
    ours = {" ".join(key.split()): ms for key, ms in ours.items()}
    ours |= {f"rl2 {r['k']} {r['n']}": r["ms_per_iteration"] for r in numbers["rl2"]}
    rate, threads = (
        numbers[key] / 1e6 for key in ("frozen_lake_steps_per_s", "frozen_lake_steps_per_s_threads")
    )
    result = {
        peer: (number, ours[peer], number / ours[peer])
        for peer, number in found.items()
        if ours.get(peer) and number
    }
    for peer, number in found.items():
        if peer.startswith("rollout"):
            result[peer] = number, rate, rate / number
            result[peer + ", our threads"] = number, threads, threads / number
    return result


# %% The job
def main():
    p = parser(__doc__)
    p.add_argument(
        "--peers",
        nargs="?",
        type=pathlib.Path,
        const=pathlib.Path(__file__).resolve().parents[2] / "shared" / "peers",
        help="start the peer scripts in this folder too (some minutes)",
    )
    p.add_argument(
        "--peers-python",
        default=sys.executable,
        help="the Python in which the peers' packages are installed",
    )
    arguments = p.parse_args()
    if arguments.peers and not (arguments.peers / "maml_peers.py").exists():
        p.error(f"--peers: no peer scripts in {arguments.peers}")
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    quick = arguments.quick
    numbers = {}

    progress("FrozenLake")
    for key, environments, threads in (("", 16_384, 1), ("_threads", 131_072, 2)):
        environments = 1_000 if quick else environments
        numbers["frozen_lake_steps_per_s" + key] = rate = frozen_lake(
            rng, environments, threads, 2 if quick else 15
        )
        progress.done()
        print(
            f"FrozenLake 4x4 slippery, {environments} environments x 100 steps, {threads} thread{'s' * (threads > 1)}: "
            f"{rate / 1e6:.1f} M steps/s"
        )

    print(
        f"\nMAML meta-iteration\n{'grid':>5s} {'tasks':>6s} {'episodes':>9s} {'steps':>6s} {'ms':>8s}"
    )
    numbers["maml"] = []
    for side, tasks, episodes, steps in MAML[:1] if quick else MAML:
        ms = 1e3 * median_seconds(
            maml_iteration(rng, side, tasks, episodes, steps), 3 if quick else 30, 3
        )
        numbers["maml"].append(dict(grid=side, tasks=tasks, episodes=episodes, steps=steps, ms=ms))
        print(f"{side:5d} {tasks:6d} {episodes:9d} {steps:6d} {ms:8.2f}")

    print("\nrecurrent RL² on bandits, GRU of 64 units")
    numbers["rl2"] = []
    for k, n, trials, minibatches in [(5, 10, 200, 1)] if quick else RL2:
        progress("recurrent RL²")
        run = rl2_iteration(
            rng, lambda rng: bandits.independent(rng, trials, k), n, 64, minibatches=minibatches
        )
        ms = 1e3 * median_seconds(run, 2 if quick else 15 if n < 100 else 5)
        progress.done()
        numbers["rl2"].append(dict(k=k, n=n, trials=trials, ms_per_iteration=ms))
        print(f"k = {k}, n = {n}, {trials} trials: {ms:.0f} ms an iteration")

    progress("oracles")
    numbers["oracle"] = oracles(100 if quick else 1000)
    numbers["exact_meta_gradient_seconds"] = median_seconds(
        exact_meta_gradient(10, 5 if quick else 100, 100), 2
    )
    progress.done()
    print("\nexact oracles")
    for row in numbers["oracle"]:
        print(
            "{method}, {states} states: {sweep_ms:.2f} ms a sweep; copying the arrays that it reads {copy_ms:.2f} ms".format(
                **row
            )
        )
    print(
        f"exact meta-gradient of 100 tasks x 100 states, 100 steps: {numbers['exact_meta_gradient_seconds']:.2f} s"
    )

    print(
        f"\ngrowth: exponents of time / memory over the upper decades\n{'':20s}"
        + "".join(f"{axis:>14s}" for axis in AXES)
    )
    numbers["scaling"], numbers["exponents"] = [], {}
    fig, axes = plots.figure(14.5, 6.2, columns=4, rows=2)
    for (name, colour), marker in zip(
        zip(SCALING, ("blue", "red", "green", "orange", "purple", "black")), "osD^vX"
    ):
        line = f"{NAMES[name]:20s}"
        for i, axis in enumerate(AXES):
            if not SCALING[name][1][i]:
                line += f"{'–':>14s}"
                continue
            if quick and (name != "rollout" or i > 1):
                continue
            progress(f"{NAMES[name]} against {axis}")
            rows = list(scaling(rng, name, i, 4 if quick else 7))
            numbers["scaling"] += rows
            numbers["exponents"][f"{name}, {axis}"] = slope = exponents(rows)
            line += f"{slope['seconds']:7.2f} /{slope['megabytes']:5.2f}"
            for ax, key in ((axes[i], "seconds"), (axes[4 + i], "megabytes")):
                ax.plot(
                    [r["size"] for r in rows],
                    [r[key] for r in rows],
                    color=plots.COLOURS[colour],
                    marker=marker,
                    markersize=5,
                    label=NAMES[name],
                )
        progress.done()
        print(line)
    for i, ax in enumerate(axes):
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=AXES[i % 4],
            ylabel=("" if i % 4 else ("seconds", "peak memory (MB)")[i // 4]),
        )
        low, high = ax.get_ylim()
        x = np.array(ax.get_xlim())
        ax.plot(
            x,
            x * (low / x[0]),
            color=plots.COLOURS["grey"],
            linestyle=":",
            zorder=0,
            label="linear",
        )
        ax.set(xlim=x, ylim=(low, high))
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside right center")
    pictures = [plots.save(fig, arguments.out, "scaling")]

    if arguments.peers:
        progress("peers")
        numbers["peers"] = ratios(peers(arguments.peers, arguments.peers_python), numbers)
        progress.done()
        print(
            f"\n{'peer':50s} {'its':>9s} {'ours':>9s} {'ours is':>9s}\n"
            + "\n".join(
                f"{name:50s} {its:9.2f} {mine:9.2f} {ratio:7.2f} ×"
                for name, (its, mine, ratio) in numbers["peers"].items()
            )
        )
    finish(arguments, numbers | dict(seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
