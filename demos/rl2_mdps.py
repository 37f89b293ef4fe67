"""A GRU that learned to learn explores random MDPs better than the classical strategies.

That is so for trials of 10 and 25 episodes, with the priors that give the published table; in
longer ones the planners catch up. The table has each method's total beside what one gets who knows
the MDP and what Duan et al. (2016), Table 2, print: n episodes of 10 steps in an MDP of 10 states
and 5 actions, scored by the expected rewards of the steps that were taken. The published figures
come out when model-based methods do not know the mean of the rewards; those that do are shown
beside them ("true prior"), and BEB and greedy are then much better. Every hyperparameter, and
whether RL² takes its likeliest action or samples, is chosen on tuning tasks. `--train` makes the
weights anew; any `--episodes N` will do.
"""

# %% What is trained
# before numpy, whose threads it sets
from _common import (
    Progress,
    at_least_1,
    begin,
    finish,
    make_weights,
    one_of,
    options_for,
    rl2_parser,
    trained_policy,
)

import numpy as np
from _scoreboard import (
    add_shares,
    lines_of,
    mean_optimum,
    measure,
    measure_all,
    number,
    pairs,
    print_table,
    print_ties,
    published,
    rl2_minus,
    tuning_of_rl2,
)
from maml_bandits import Setting, grid_of, maml_play, sizes_of, tuned_step

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
LONGER_VIEW = dict(step_size=0.003, discount=0.998, lam=0.95)
TWENTY_FIVE = (
    TEN
    | FARTHER
    | dict(
        start="mdps_n10",
        iterations=350,
        then=[LAST_STAGE, dict(LONGER_VIEW, trials=512, iterations=300)],
    )
)
FIFTY = TEN | LONGER_VIEW | dict(start="mdps_n25", iterations=150, entropy=0.0, then=[])
SETTINGS = {10: TEN, 25: TWENTY_FIVE, 50: FIFTY}  # by the number of episodes n


def training_settings(episodes):
    """Those of SETTINGS, or for another number of episodes those of the nearest."""
    nearest = min(SETTINGS, key=lambda n: abs(np.log(n / episodes)))
    return SETTINGS[nearest]


# settings of the published table for which there are no weights: those for 50 episodes play them
LONGEST = (75, 100)


def weights_for(n, folder):
    """The file of weights that plays n episodes."""
    path = folder / f"mdps_n{n}.npz"
    if n in LONGEST and not path.exists():
        return folder / "mdps_n50.npz"
    return path


# %% Methods
METHODS = dict(
    random="random",
    psrl="PSRL",
    opsrl="OPSRL",
    ucrl2="UCRL2",
    beb="BEB",
    egreedy="ε-greedy",
    greedy="greedy",
    maml="MAML",
    rl2="RL²",
)
TRUE_PRIOR = " true prior"  # what the name of a planner that is told it ends in
PLANNERS = [method for method in METHODS if method in MDPS and method != "random"]
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
    """`_scoreboard.measure` of one method; trained is RL²'s (policy, θ).

    "beb true prior" is BEB with the prior that the tasks are drawn from.
    """
    episodes, method, trained, mean_best, seed, quick = job
    sizes = sizes_of(Setting(episodes))
    if method == "rl2":
        play = rl2_play(episodes, *trained)
        grid = ("greedy", "sampled")
        sizes["n_test"] = 10_000
    elif method == "maml":
        play = maml_play(episodes)
        grid = grid_of(Setting(episodes))
    else:
        name = method.removesuffix(TRUE_PRIOR)
        play = planner_play(episodes, name, true_prior=name != method)
        grid = MDPS[name][1]
    if quick:
        grid = grid[:2]
        sizes |= dict(n_tuning=10, n_test=40)
    return measure(random_mdps, play, grid, exact.optimal_return, mean_best, seed, **sizes)


# %% Rows, tables and pictures
def rows_of(n, measured, mean_best):
    """Rows of the JSON of one setting: measured is {method: Measured}.

    mean_best: what one who knows the MDP gets in an episode, and the error of that.
    """
    setting = f"n={n}"
    in_print = published(n)
    rows = []
    for method, result in measured.items():
        row = dict(setting=setting, method=method, **result.row())
        row["episode"] = result.episode.tolist()
        if method == "maml":
            row |= tuned_step(result)
        if method in in_print:
            row["published"] = in_print[method]
        rows.append(row)
    best, error = mean_best
    rows.append(dict(setting=setting, method="optimum", mean=n * best, sem=n * error))
    add_shares(rows, "optimum")
    return rows


def print_settings(rows, compared, measured):
    """The table, a few lines a setting. measured: {n: {method: Measured}}."""
    lines = []
    for n in measured:
        mine = {row["method"]: row for row in rows if row["setting"] == f"n={n}"}
        minus = rl2_minus(compared, f"n={n}")
        best = number(mine["optimum"]["mean"], mine["optimum"]["sem"])
        of_setting = [
            *lines_of(str(n), mine, minus, METHODS),
            *lines_of(f"{n}, true prior", mine, minus, METHODS, TRUE_PRIOR),
        ]
        in_print = [str(mine[m].get("published", "")) for m in METHODS]
        if any(in_print):
            of_setting.append([f"{n}, in print", "mean", *in_print])
        lines += [[*line, ""] for line in of_setting]
        lines[-len(of_setting)][-1] = best
    print_table(["n", "", *METHODS.values(), "known"], lines)


def draw_episodes(ax, n, rows):
    """Reward of each episode of a trial."""
    x = np.arange(1, n + 1)
    for method, (colour, line) in CURVES.items():
        name = method.removesuffix(TRUE_PRIOR)
        label = METHODS[name] + (", true prior" if name != method else "")
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
    methods = sorted(METHODS, key=lambda m: rows[n, m]["mean"])
    classical = [m for m in methods if m not in ("rl2", "maml")]

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
    marks(classical, TRUE_PRIOR, "orange", "s", "true prior")
    marks(["rl2", "maml"], "", "red", "D", "meta-learned")
    black = plots.COLOURS["black"]
    in_print = [(rows[n, m].get("published"), y) for y, m in enumerate(methods)]
    if any(mean for mean, _ in in_print):
        means, places = zip(*[(mean, y) for mean, y in in_print if mean])
        ax.plot(means, places, "x", color=black, markersize=8, label="in print")
    best = rows[n, "optimum"]["mean"]
    ax.axvline(best, color=black, linestyle=":", label="optimum, MDP known")
    ax.set(
        yticks=range(len(methods)),
        yticklabels=[METHODS[m] for m in methods],
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
def main():
    p = rl2_parser(__doc__)
    p.add_argument(
        "--episodes",
        type=at_least_1,
        metavar="N",
        help="of a trial: this setting only (default: 10 and 25)",
    )
    p.add_argument("--all", action="store_true", help="with 50, 75 and 100 episodes a trial")
    p.rules.append(
        lambda arguments: (
            "--episodes and --all exclude each other"
            if arguments.episodes and arguments.all
            else None
        )
    )
    arguments = p.parse_args()
    if arguments.episodes:
        chosen = [arguments.episodes]
    else:
        chosen = [10, 25, 50, *LONGEST] if arguments.all else [10, 25]
    if arguments.train:
        trained = []
        for n in chosen:
            path = arguments.weights / f"mdps_n{n}.npz"
            trained.append(make_weights(path, random_mdps, n, training_settings(n), arguments))
        return finish(arguments, dict(trained=trained), [])

    progress = Progress()
    progress("what one who knows the MDP gets")
    mean_best = mean_optimum(arguments.seed, arguments.quick)
    methods = [*METHODS, *[m + TRUE_PRIOR for m in PLANNERS]]
    jobs = []
    for n in chosen:
        path = weights_for(n, arguments.weights)
        trained = trained_policy(path, one_of(random_mdps), *options_for(path.stem))
        if n in LONGEST:
            print(f"n={n} is played by {path.name}")
        for method in methods:
            jobs.append((n, method, trained, mean_best, arguments.seed, arguments.quick))
    measured = measure_all(run, jobs, progress)
    rows = [row for n in chosen for row in rows_of(n, measured[n], mean_best)]
    compared = [row for n in chosen for row in pairs(f"n={n}", measured[n])]
    print_settings(rows, compared, measured)
    print(
        "\nMean total reward ± standard error on test tasks, corrected for how good these tasks\n"
        "happen to be (a control variate: the mean optimum is that of 200,000 others), and its\n"
        'share of what one gets who knows the MDP. "RL² minus it" is paired, on the tasks that\n'
        "both played; ? where it is within two standard errors. The planners' priors are those\n"
        "that give the published table, or the one that tasks are drawn from. In print: Duan et\n"
        "al. (2016); MAML is a printed share (Mishra et al. 2018) of 20.76 an episode."
    )
    print_ties(compared)
    by_method = {(int(row["setting"][2:]), row["method"]): row for row in rows}
    pictures = [draw(25 if 25 in chosen else chosen[-1], by_method, arguments.out)]
    print(f"{tuning_of_rl2(rows)}\n{progress.seconds:.0f} s.")
    finish(arguments, dict(rows=rows, pairs=compared, seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
