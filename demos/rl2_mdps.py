"""A GRU that learned to learn explores random MDPs better than the classical strategies do with the priors of the published table.

The columns of Duan et al. (2016), Table 2: n episodes of 10 steps in an MDP of 10 states and 5 actions, scored by the expected rewards of
the steps that were taken. The published figures come out when model-based methods do not know the mean of the rewards ("as published");
those that do are shown beside them ("true prior"), and BEB and greedy are then much better. Every hyperparameter, and whether RL² takes its
likeliest action or samples, is chosen on tuning tasks. `--train` makes the weights anew; any `--episodes N` will do.
"""

# %% What is trained
# before numpy, whose threads it sets
from _common import (
    Progress,
    begin,
    check_options,
    finish,
    make_weights,
    measure,
    number,
    positive,
    read_weights,
    rl2_parser,
    tuning_of_rl2,
    workers,
)

import numpy as np

from metarl_np import exact, plots, rl2
from metarl_np.compare.beliefs import DirichletBelief
from metarl_np.compare.planners import MDPS, TRUE, play_mdps
from metarl_np.tasks.random_mdps import random_mdps

FARTHER = dict(
    step_size=0.005, discount=0.98, lam=0.7
)  # exploration pays late: it is learned last, when there is something to explore for
SETTINGS = {
    10: dict(
        units=96,
        memory=100,
        trials=256,
        iterations=1500,
        step_size=0.01,
        minibatches=4,
        discount=0.9,
        lam=0.3,
        then=[dict(FARTHER, iterations=300)],
    )
}
SETTINGS[25] = (
    SETTINGS[10]
    | FARTHER
    | dict(start="mdps_n10", iterations=350, then=[dict(iterations=400, discount=0.99, lam=0.9)])
)


def training_settings(episodes):
    """Those of SETTINGS, or for another number of episodes those of the nearest."""
    nearest = min(SETTINGS, key=lambda n: abs(np.log(n / episodes)))
    return SETTINGS[nearest]


# %% Methods
COLUMNS = (
    "random",
    "psrl",
    "opsrl",
    "ucrl2",
    "beb",
    "egreedy",
    "greedy",
    "rl2",
)  # of the published table
PUBLISHED = {
    10: (100.1, 138.1, 144.1, 146.6, 150.2, 132.8, 134.8, 156.2),
    25: (250.2, 408.8, 425.2, 424.1, 427.8, 377.3, 368.8, 445.7),
    50: (499.7, 904.4, 930.7, 918.9, 917.8, 823.3, 769.3, 936.1),
    75: (749.9, 1417.1, 1449.2, 1427.6, 1422.6, 1293.9, 1172.9, 1428.8),
    100: (999.4, 1939.5, 1973.9, 1942.1, 1935.1, 1778.2, 1578.5, 1913.7),
}
NAMES = dict(
    random="random",
    psrl="PSRL",
    opsrl="OPSRL",
    ucrl2="UCRL2",
    beb="BEB",
    egreedy="ε-greedy",
    greedy="greedy",
    rl2="RL²",
)
CURVES = {
    "rl2": ("red", "-"),
    "beb": ("blue", "-"),
    "beb true prior": ("blue", "--"),
    "psrl": ("green", "-"),
    "greedy": ("orange", "-"),
    "greedy true prior": ("orange", "--"),
    "random": ("grey", "-"),
}


def run(job):
    """`_common.measure` of one method, of "beb true prior" with the prior that the tasks are drawn from; trained is RL²'s (policy, θ)."""
    episodes, method, trained, seed, quick = job
    name = method.split()[0]

    def play(rng, mdps, value):
        if method == "rl2":
            trials = rl2.sample_trials(rng, mdps, *trained, episodes, greedy=value == "greedy")
            return rl2.expected_rewards(mdps, trials).reshape(episodes, mdps.horizon, -1).sum(1)
        plan, _, prior = MDPS[name]
        return play_mdps(
            rng,
            mdps,
            DirichletBelief(TRUE if name != method else prior, mdps),
            episodes,
            plan,
            value,
        )

    grid = ("greedy", "sampled") if method == "rl2" else MDPS[name][1]
    n_tuning = 500
    n_test = 10_000 if method == "rl2" else 2_000
    if quick:
        grid = grid[:2]
        n_tuning = 10
        n_test = 40
    return measure(
        random_mdps,
        play,
        grid,
        exact.optimal_return,
        seed,
        n_tuning=n_tuning,
        n_test=n_test,
        chunk=1000,
    )


# %% Tables and pictures
def print_setting(n, rows):
    """Ours with both priors, the published figures and the hyperparameters: a column a method."""
    print(f"\n{f'n={n}':26s}" + "".join(f"{m:>11s}" for m in (*COLUMNS, "optimum")))
    for suffix, label in (("", "prior as published"), (" true prior", "true prior")):
        mine = [rows.get((n, m + suffix)) for m in (*COLUMNS, "optimum")]
        print(
            f"  {label:24s}"
            + "".join(f"{number(r['mean'], r['sem']) if r else '':>11s}" for r in mine)
        )
        print(
            f"  {'  tuned':24s}"
            + "".join(f"{(r or {}).get('hyperparameter', ''):>11}" for r in mine)
        )
    if n in PUBLISHED:
        print(f"  {'published':24s}" + "".join(f"{x:11.1f}" for x in PUBLISHED[n]))


def draw(n, rows, out):
    """Reward of each episode of a trial, and the totals."""
    fig, (left, right) = plots.figure(12, 4.8, columns=2)
    x = np.arange(1, n + 1)
    best = rows[n, "optimum"]["mean"] / n
    for method, (colour, line) in CURVES.items():
        label = NAMES[method.split()[0]] + (", true prior" if " " in method else "")
        plots.curve(
            left,
            x,
            rows[n, method]["episode"],
            label=label,
            colour=colour,
            line=line,
            marker=None,
            width=2.5 if method == "rl2" else 1.5,
        )
    left.axhline(best, color=plots.COLOURS["black"], linestyle=":", label="optimum, MDP known")
    left.set(
        xlabel="episode of the trial",
        ylabel="expected reward per episode (10 steps)",
        title=f"learning within a trial of n = {n}",
    )
    left.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    methods = sorted(COLUMNS, key=lambda m: rows[n, m]["mean"])
    for suffix, label, colour, marker in (
        ("", "prior as published", "blue", "o"),
        (" true prior", "true prior", "orange", "s"),
    ):
        shown = [
            (rows[n, m + suffix], y)
            for y, m in enumerate(methods)
            if (n, m + suffix) in rows and m != "rl2"
        ]
        right.errorbar(
            [r["mean"] for r, _ in shown],
            [y for _, y in shown],
            xerr=[2 * r["sem"] for r, _ in shown],
            fmt=marker,
            color=plots.COLOURS[colour],
            label=label,
        )
    r = rows[n, "rl2"]
    y = methods.index("rl2")
    right.errorbar(
        [r["mean"]], [y], xerr=[2 * r["sem"]], fmt="D", color=plots.COLOURS["red"], label="RL²"
    )
    if n in PUBLISHED:
        right.plot(
            [PUBLISHED[n][COLUMNS.index(m)] for m in methods],
            range(len(methods)),
            "x",
            color=plots.COLOURS["black"],
            markersize=8,
            label="Duan et al. (2016)",
        )
    right.axvline(best * n, color=plots.COLOURS["black"], linestyle=":", label="optimum, MDP known")
    right.set(
        yticks=range(len(methods)),
        yticklabels=[NAMES[m] for m in methods],
        title=f"totals, n = {n}",
        xlabel="total reward of a trial (bars: 2 standard errors)",
    )
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return plots.save(fig, out, "rl2_mdps")


# %% The job
def main():
    p = rl2_parser(__doc__)
    p.add_argument("--episodes", type=positive, help="n: this setting only")
    arguments = p.parse_args()
    check_options(p, arguments)
    chosen = [arguments.episodes] if arguments.episodes else list(SETTINGS)
    paths = {n: arguments.weights / f"mdps_n{n}.npz" for n in chosen}
    if arguments.train:
        rows = [
            make_weights(paths[n], random_mdps, n, training_settings(n), arguments) for n in chosen
        ]
        return finish(arguments, dict(trained=rows), [])

    progress = Progress()
    jobs = []
    rows = {}
    for n in chosen:
        command = f"python demos/rl2_mdps.py --train --episodes {n}"
        policy, theta, facts = read_weights(
            paths[n], random_mdps(np.random.default_rng(0), 1), command
        )
        print(
            f"{paths[n].name}: {facts['seconds']:.0f} s by `{facts['command']}`, seed {facts['seed']}"
        )
        methods = [*COLUMNS, *(m + " true prior" for m in COLUMNS if m not in ("random", "rl2"))]
        jobs += [
            (n, method, (policy, theta), arguments.seed, arguments.quick) for method in methods
        ]
    with workers() as pool:
        for i, ((n, method, *_), r) in enumerate(zip(jobs, pool.imap(run, jobs))):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            rows[n, method] = dict(
                setting=f"n={n}",
                method=method,
                **{x: r[x] for x in ("mean", "sem", "tasks", "episode")},
            )
            if n in PUBLISHED and method in COLUMNS:
                rows[n, method]["published"] = PUBLISHED[n][COLUMNS.index(method)]
            if r["tuning"]:
                rows[n, method].update(hyperparameter=r["value"], tuning=r["tuning"])
            if method == "rl2":
                rows[n, "optimum"] = dict(
                    setting=f"n={n}",
                    method="optimum",
                    mean=r["best"],
                    sem=r["best_sem"],
                    tasks=r["tasks"],
                )
    progress.done()
    for n in chosen:
        print_setting(n, rows)
    pictures = [draw(chosen[-1], rows, arguments.out)]
    print(
        f"\nMean total reward ± standard error on test tasks. optimum: of one who knows the MDP.\n"
        f"{tuning_of_rl2(rows.values())}\n{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=list(rows.values()), seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
