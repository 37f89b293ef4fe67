"""A GRU that learned to learn explores random MDPs better than the classical strategies.

That is so with the priors that give the published table. Its columns are those of Duan et al.
(2016), Table 2: n episodes of 10 steps in an MDP of 10 states and 5 actions, scored by the
expected rewards of the steps that were taken. The published figures come out when model-based
methods do not know the mean of the rewards ("as published"); those that do are shown beside them
("true prior"), and BEB and greedy are then much better. Every hyperparameter, and whether RL²
takes its likeliest action or samples, is chosen on tuning tasks. `--train` makes the weights
anew; any `--episodes N` will do.
"""

# %% What is trained
# before numpy, whose threads it sets
from _common import (
    Progress,
    at_least_1,
    begin,
    finish,
    make_weights,
    measure,
    number,
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

# exploration pays late: it is learned last, when there is something to explore for
FARTHER = dict(step_size=0.005, discount=0.98, lam=0.7)
LONG_VIEW = dict(step_size=0.004, discount=0.99, lam=0.9, trials=512, iterations=700)
TEN = dict(
    units=96,
    memory=100,
    trials=256,
    iterations=1500,
    step_size=0.01,
    minibatches=4,
    discount=0.9,
    lam=0.3,
    then=[dict(FARTHER, iterations=300), LONG_VIEW],
)
LAST_STAGE = dict(iterations=400, discount=0.99, lam=0.9)
TWENTY_FIVE = TEN | FARTHER | dict(start="mdps_n10", iterations=350, then=[LAST_STAGE])
SETTINGS = {10: TEN, 25: TWENTY_FIVE}  # by the number of episodes n


def training_settings(episodes):
    """Those of SETTINGS, or for another number of episodes those of the nearest."""
    nearest = min(SETTINGS, key=lambda n: abs(np.log(n / episodes)))
    return SETTINGS[nearest]


# %% Methods
# columns of the published table
COLUMNS = ("random", "psrl", "opsrl", "ucrl2", "beb", "egreedy", "greedy", "rl2")
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


def rl2_play(episodes, policy, theta):
    """The function that plays RL², for `measure`: it acts by its likeliest action or samples."""

    def play(rng, mdps, value):
        greedy = value == "greedy"
        trials = rl2.sample_trials(rng, mdps, policy, theta, episodes, greedy=greedy)
        payoffs = rl2.expected_rewards(mdps, trials)
        return payoffs.reshape(episodes, mdps.horizon, -1).sum(1)

    return play


def planner_play(episodes, name, true_prior):
    """The function that plays a planner, for `measure`."""
    plan, _, prior = MDPS[name]

    def play(rng, mdps, value):
        belief = DirichletBelief(TRUE if true_prior else prior, mdps)
        return play_mdps(rng, mdps, belief, episodes, plan, value)

    return play


def run(job):
    """`_common.measure` of one method; trained is RL²'s (policy, θ).

    "beb true prior" is BEB with the prior that the tasks are drawn from.
    """
    episodes, method, trained, seed, quick = job
    if method == "rl2":
        play = rl2_play(episodes, *trained)
        grid = ("greedy", "sampled")
        n_test = 10_000
    else:
        name = method.removesuffix(" true prior")
        play = planner_play(episodes, name, true_prior=name != method)
        grid = MDPS[name][1]
        n_test = 2_000
    sizes = dict(n_tuning=500, n_test=n_test, chunk=1000)
    if quick:
        grid = grid[:2]
        sizes |= dict(n_tuning=10, n_test=40)
    return measure(random_mdps, play, grid, exact.optimal_return, seed, **sizes)


# %% Tables and pictures
def print_setting(n, rows):
    """Ours with both priors, the published figures and the hyperparameters: a column a method."""
    columns = (*COLUMNS, "optimum")
    print(f"\n{f'n={n}':26s}" + "".join(f"{m:>11s}" for m in columns))
    for suffix, label in (("", "prior as published"), (" true prior", "true prior")):
        mine = [rows.get((n, m + suffix), {}) for m in columns]
        means = [number(r["mean"], r["sem"]) if r else "" for r in mine]
        tuned = [r.get("hyperparameter", "") for r in mine]
        print(f"  {label:24s}" + "".join(f"{x:>11s}" for x in means))
        print(f"  {'  tuned':24s}" + "".join(f"{x:>11}" for x in tuned))
    if n in PUBLISHED:
        print(f"  {'published':24s}" + "".join(f"{x:11.1f}" for x in PUBLISHED[n]))


def draw_episodes(ax, n, rows):
    """Reward of each episode of a trial."""
    x = np.arange(1, n + 1)
    for method, (colour, line) in CURVES.items():
        name = method.removesuffix(" true prior")
        label = NAMES[name] + (", true prior" if name != method else "")
        look = dict(label=label, colour=colour, line=line, marker=None)
        width = 2.5 if method == "rl2" else 1.5
        plots.curve(ax, x, rows[n, method]["episode"], width=width, **look)
    best = rows[n, "optimum"]["mean"] / n
    ax.axhline(best, color=plots.COLOURS["black"], linestyle=":", label="optimum, MDP known")
    ax.set(
        xlabel="episode of the trial",
        ylabel="expected reward per episode (10 steps)",
        title=f"learning within a trial of n = {n}",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def draw_totals(ax, n, rows):
    """Total reward of a trial, a line a method, the best on top."""
    methods = sorted(COLUMNS, key=lambda m: rows[n, m]["mean"])
    classical = [m for m in methods if m != "rl2"]

    def marks(names, suffix, colour, marker, label):
        shown = [(rows[n, m + suffix], methods.index(m)) for m in names if (n, m + suffix) in rows]
        ax.errorbar(
            [r["mean"] for r, _ in shown],
            [y for _, y in shown],
            xerr=[2 * r["sem"] for r, _ in shown],
            fmt=marker,
            color=plots.COLOURS[colour],
            label=label,
        )

    marks(classical, "", "blue", "o", "prior as published")
    marks(classical, " true prior", "orange", "s", "true prior")
    marks(["rl2"], "", "red", "D", "RL²")
    black = plots.COLOURS["black"]
    if n in PUBLISHED:
        published = [PUBLISHED[n][COLUMNS.index(m)] for m in methods]
        places = range(len(methods))
        ax.plot(published, places, "x", color=black, markersize=8, label="Duan et al. (2016)")
    best = rows[n, "optimum"]["mean"]
    ax.axvline(best, color=black, linestyle=":", label="optimum, MDP known")
    ax.set(
        yticks=range(len(methods)),
        yticklabels=[NAMES[m] for m in methods],
        title=f"totals, n = {n}",
        xlabel="total reward of a trial (bars: 2 standard errors)",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def draw(n, rows, out):
    """Reward of each episode of a trial, and the totals."""
    fig, (left, right) = plots.figure(12, 4.8, columns=2)
    draw_episodes(left, n, rows)
    draw_totals(right, n, rows)
    return plots.save(fig, out, "rl2_mdps")


# %% The job
def trained_policy(n, path):
    """(policy, θ) from the file of weights for n episodes, with a line on what made them."""
    task = random_mdps(np.random.default_rng(0), 1)
    policy, theta, facts = read_weights(path, task, "--episodes", str(n))
    made = f"{facts['seconds']:.0f} s by `{facts['command']}`, seed {facts['seed']}"
    print(f"{path.name}: {made}")
    return policy, theta


def rows_of(n, method, result):
    """{(n, method): row of the JSON} of what `run` returned; RL²'s tasks give the optimum too."""
    setting = f"n={n}"
    row = dict(setting=setting, method=method)
    row |= {key: result[key] for key in ("mean", "sem", "tasks", "episode")}
    if n in PUBLISHED and method in COLUMNS:
        row["published"] = PUBLISHED[n][COLUMNS.index(method)]
    if result["tuning"]:
        row |= dict(hyperparameter=result["value"], tuning=result["tuning"])
    rows = {(n, method): row}
    if method == "rl2":
        best = dict(mean=result["best"], sem=result["best_sem"], tasks=result["tasks"])
        rows[n, "optimum"] = dict(setting=setting, method="optimum", **best)
    return rows


def main():
    p = rl2_parser(__doc__)
    p.add_argument(
        "--episodes",
        type=at_least_1,
        metavar="N",
        help="of a trial: this setting only (default: 10 and 25, the settings of the table)",
    )
    arguments = p.parse_args()
    chosen = [arguments.episodes] if arguments.episodes else list(SETTINGS)
    paths = {n: arguments.weights / f"mdps_n{n}.npz" for n in chosen}
    if arguments.train:
        trained = [
            make_weights(paths[n], random_mdps, n, training_settings(n), arguments) for n in chosen
        ]
        return finish(arguments, dict(trained=trained), [])

    progress = Progress()
    true_prior = [m + " true prior" for m in COLUMNS if m not in ("random", "rl2")]
    jobs = []
    for n in chosen:
        trained = trained_policy(n, paths[n])
        for method in [*COLUMNS, *true_prior]:
            jobs.append((n, method, trained, arguments.seed, arguments.quick))
    rows = {}
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            n, method = job[:2]
            rows |= rows_of(n, method, result)
    progress.done()
    for n in chosen:
        print_setting(n, rows)
    pictures = [draw(chosen[-1], rows, arguments.out)]
    print(
        "\nMean total reward ± standard error on test tasks. optimum: of one who knows the MDP.\n"
        f"{tuning_of_rl2(rows.values())}\n{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=list(rows.values()), seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
