"""A GRU that learned to learn plays short Bernoulli bandits almost Bayes-optimally.

At 100 pulls it is about as good as UCB1 tuned for them. The table has each method's total beside
the optimum and what Duan et al. (2016), Table 1, and Mishra et al. (2018) print, on fresh tasks,
scored by the means of the arms that were pulled. Every hyperparameter, and whether RL² takes its
likeliest action or samples, is chosen on tuning tasks. Where arms depend on each other (Wang et al.
2016), RL² uses it and the indices, which are for independent arms, do not. `--train` makes the
weights anew; any `--pulls N --arms K` will do.
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
    rl2_parser,
    trained_policy,
)

import numpy as np
from _scoreboard import (
    add_shares,
    lines_of,
    mean_best_arm,
    measure,
    measure_all,
    pairs,
    print_table,
    print_ties,
    published,
    rl2_minus,
    tuning_of_rl2,
)
from maml_bandits import Setting, grid_of, maml_play, sizes_of, tuned_step

from metarl_np import bandits, exact, plots, rl2
from metarl_np.compare.bayes import bayes_optimal, dependent_optimal
from metarl_np.compare.strategies import BANDITS, play_bandits

SHORT = dict(
    units=64,
    memory=10,
    trials=1000,
    iterations=400,
    step_size=0.006,
    minibatches=4,
    discount=1.0,
    lam=0.95,
)
LONG = dict(
    units=64,
    memory=100,
    trials=512,
    iterations=800,
    step_size=0.006,
    minibatches=8,
    discount=0.995,
    lam=0.95,
)
SMALL_STEPS = dict(iterations=400, step_size=0.002)
# with less bias, on more trials: what is found now may pay in a hundred pulls
FARTHER = dict(trials=1024, iterations=300, step_size=0.003, discount=0.999, lam=0.97)
LONGER = dict(FARTHER, iterations=500, step_size=0.004)
# at the end a bonus for entropy only takes back what was learned
AT_LAST = dict(FARTHER, entropy=0.0)
FIVE_HUNDRED = LONG | AT_LAST | dict(trials=256, iterations=100)
SETTINGS = {  # by pulls and arms
    (10, 5): SHORT,
    (10, 10): SHORT,
    (10, 50): dict(SHORT, trials=2000, iterations=800, then=[SMALL_STEPS]),
    (100, 5): dict(LONG, then=[FARTHER]),
    (100, 10): dict(
        LONG, iterations=1400, then=[{}, FARTHER, dict(AT_LAST, trials=2000, iterations=200)]
    ),
    (100, 50): dict(LONG, start="bandits_n10_k50", iterations=600, then=[LONGER, LONGER, AT_LAST]),
    (500, 5): dict(FIVE_HUNDRED, start="bandits_n100_k5", iterations=150, entropy=0.01),
    (500, 10): dict(FIVE_HUNDRED, start="bandits_n100_k10", iterations=120, entropy=0.01),
    (500, 50): dict(FIVE_HUNDRED, start="bandits_n100_k50"),
}
# two arms with means p and 1 − p
DEPENDENT_PULLS = 100
DEPENDENT = dict(LONG, units=48, iterations=300)


def training_settings(pulls, arms):
    """Those of SETTINGS; for another n and k those of the nearest n; for dependent arms theirs."""
    if arms is None:
        return DEPENDENT
    if (pulls, arms) in SETTINGS:
        return SETTINGS[pulls, arms]
    nearest = min(SETTINGS, key=lambda nk: (abs(np.log(nk[0] / pulls)), abs(nk[1] - arms)))
    settings = dict(SETTINGS[nearest], memory=pulls)
    if nearest[1] != arms:
        settings.pop("start", None)  # weights play as many arms as they were trained on
    return settings


def task_family(arms, difficulty="uniform"):
    """tasks(rng, N) → MDP: independent arms, or for arms = None two dependent ones."""

    def tasks(rng, n):
        if arms is None:
            return bandits.dependent(rng, n, difficulty)
        return bandits.independent(rng, n, arms)

    return tasks


# %% Methods
METHODS = dict(
    random="random",
    ts="Thompson",
    ots="OTS",
    egreedy="ε-greedy",
    greedy="greedy",
    ucb1="UCB1",
    gittins="Gittins",
    maml="MAML",
    rl2="RL²",
)
LOOKS = dict(
    ts=("Thompson", "sky", "-"),
    greedy=("greedy", "grey", "-"),
    egreedy=("ε-greedy", "orange", "--"),
    ots=("OTS", "purple", "-"),
    ucb1=("UCB1", "green", "-"),
    gittins=("Gittins", "blue", "--"),
    maml=("MAML", "black", ":"),
    rl2=("RL²", "red", "-"),
)
FAMILIES = dict(easy="green", medium="orange", uniform="red", hard="purple")  # of dependent arms


def rl2_play(pulls, policy, theta):
    """The function that plays RL², for `measure`: it acts by its likeliest action or samples."""

    def play(rng, mdps, value):
        greedy = value == "greedy"
        trials = rl2.sample_trials(rng, mdps, policy, theta, pulls, greedy=greedy)
        return rl2.expected_rewards(mdps, trials)

    return play


def strategy_play(pulls, method):
    """The function that plays a classical strategy, for `measure`."""
    strategy = BANDITS[method][0]

    def play(rng, mdps, value):
        return play_bandits(rng, mdps.expected_rewards[:, 0], pulls, strategy, value)

    return play


def numbers_of_tasks(pulls, method):
    """How many tasks to tune on and to test on, and how many to play at a time."""
    if method == "maml":
        return sizes_of(Setting(pulls, 2))
    if pulls > 100:
        return dict(n_tuning=500, n_test=20_000, chunk=500)
    if pulls <= 20:
        return dict(n_tuning=20_000, n_test=200_000 if method == "rl2" else 40_000)
    if method == "ots":  # it is slow
        return dict(n_tuning=1_000, n_test=20_000)
    return dict(n_tuning=5_000, n_test=100_000 if method == "rl2" else 40_000)


def run(job):
    """`_scoreboard.measure` of one method; trained is (policy, θ) for RL²."""
    (pulls, arms, family), method, trained, seed, quick = job
    if method == "rl2":
        play = rl2_play(pulls, *trained)
        grid = ("greedy", "sampled")
    elif method == "maml":
        play = maml_play(pulls)
        grid = grid_of(Setting(pulls, arms))
    else:
        play = strategy_play(pulls, method)
        grid = BANDITS[method][1]
    sizes = numbers_of_tasks(pulls, method)
    if quick:
        grid = grid[:3]
        sizes = dict(n_tuning=50, n_test=200)
    tasks = task_family(arms, family)
    mean_best = mean_best_arm(arms, family)
    return measure(tasks, play, grid, exact.optimal_return, mean_best, seed, **sizes)


def name_of(pulls, arms, family):
    """What a setting is called in the table and in the JSON."""
    return f"n={pulls} k={arms}" if arms else f"n={pulls} dependent {family}"


def optimum(pulls, arms, family):
    """The exact Bayes-optimal expected total, or None.

    It is None where there are too many states, and of dependent arms that RL² was not trained on:
    nobody told it which difficulty it meets.
    """
    if arms is None:
        return float(dependent_optimal(family, pulls).sum()) if family == "uniform" else None
    try:
        return bayes_optimal(arms, pulls)
    except ValueError:
        return None


# %% Rows, tables and pictures
def rows_of(setting, measured):
    """Rows of the JSON of one setting: measured is {method: Measured}."""
    pulls, arms, family = setting
    name = name_of(*setting)
    in_print = published(pulls, arms) if arms else {}
    rows = []
    for method, result in measured.items():
        row = dict(setting=name, method=method, **result.row())
        if method == "maml":
            row |= tuned_step(result)
        if method in in_print:
            row["published"] = in_print[method]
        rows.append(row)
    known = pulls * mean_best_arm(arms, family)[0]
    best = optimum(*setting)
    if best is not None:
        rows.append(dict(setting=name, method="optimum", mean=best, sem=0.0))
    rows.append(dict(setting=name, method="known", mean=known, sem=0.0))
    add_shares(rows, "known" if best is None else "optimum")
    return rows


def regrets_of(setting, measured):
    """{method: regret so far after each pull}, and the optimum's if it is known."""
    pulls, arms, family = setting
    best, _ = mean_best_arm(arms, family)
    regrets = {
        method: np.cumsum(best - result.episode).tolist() for method, result in measured.items()
    }
    if family == "uniform":
        regrets["optimum"] = np.cumsum(best - dependent_optimal(family, pulls)).tolist()
    return regrets


def print_settings(rows, compared, measured):
    """The table, a few lines a setting. measured: {setting: {method: Measured}}."""
    columns = [m for m in METHODS if any(row["method"] == m for row in rows)]
    lines = []
    for setting in measured:
        mine = {row["method"]: row for row in rows if row["setting"] == name_of(*setting)}
        pulls, arms, family = setting
        label = f"{pulls}, {arms}" if arms else f"{pulls}, {family}"
        minus = rl2_minus(compared, name_of(*setting))
        of_setting = lines_of(label, mine, minus, columns)
        in_print = ["", "in print", *[str(mine.get(m, {}).get("published", "")) for m in columns]]
        if any(in_print[2:]):
            of_setting.append(in_print)
        of = mine["rl2"]["share_of"]
        best = f"{mine[of]['mean']:.3f} {'Bayes' if of == 'optimum' else 'known'}"
        lines += [[*line, cell] for line, cell in zip(of_setting, [best, "", "", ""])]
    print_table(["n, k", "", *[METHODS[m] for m in columns], "optimum"], lines)


def draw_independent(ax, regret):
    """Regret of one setting of independent arms, {method: (n,)} for its name."""
    independent = [name for name in regret if "dependent" not in name]
    name = "n=100 k=5" if "n=100 k=5" in independent else independent[-1]
    plots.regret(ax, regret[name], LOOKS)
    ax.set_title(f"independent arms, {name}")


def draw_dependent(ax, regret):
    """Regret in the four families of dependent arms: a colour a family, a line a method."""
    lines = dict(
        rl2=("RL² (trained on uniform)", "-"), gittins=("Gittins", "--"), ts=("Thompson", ":")
    )
    for family, colour in FAMILIES.items():
        looks = {method: (None, colour, line) for method, (_, line) in lines.items()}
        plots.regret(ax, regret[name_of(DEPENDENT_PULLS, None, family)], looks)
        plots.curve(ax, [], [], label=family, colour=colour, marker=None)
    for label, line in lines.values():
        plots.curve(ax, [], [], label=label, colour="black", line=line, marker=None)
    uniform = regret[name_of(DEPENDENT_PULLS, None, "uniform")]
    plots.regret(ax, uniform, dict(optimum=("optimum, uniform", "black", "-.")))
    ax.set_title("two dependent arms, p and 1 − p")


def draw(regret, out):
    """Cumulative regret: {setting: {method: (n,)}}, a panel for either kind of arms."""
    panels = []
    if any("dependent" not in name for name in regret):
        panels.append(draw_independent)
    if any("dependent" in name for name in regret):
        panels.append(draw_dependent)
    fig, axes = plots.figure(5.2 * len(panels) + 0.8, 4.6, columns=len(panels))
    for ax, panel in zip(axes, panels):
        panel(ax, regret)
        ax.legend(loc="upper left", ncols=2, fontsize=9)
    return plots.save(fig, out, "rl2_bandits")


# %% The job
def options():
    """The command line, and the settings (n, k) that it asks for; k is None for dependent arms."""
    p = rl2_parser(__doc__)
    only = "this setting only, with {} (default: the settings of the table up to 100 pulls)"
    p.add_argument("--pulls", type=at_least_1, metavar="N", help=only.format("--arms"))
    p.add_argument("--arms", type=at_least_1, metavar="K", help=only.format("--pulls"))
    p.add_argument(
        "--dependent", action="store_true", help="two dependent arms, means p and 1 − p, only"
    )

    p.add_argument("--all", action="store_true", help="with the settings of 500 pulls")

    def sizes_go_together(arguments):
        given = arguments.pulls is not None, arguments.arms is not None
        if any(given) and not all(given):
            return "--pulls and --arms go together"
        if all(given) + arguments.dependent + arguments.all > 1:
            return "--pulls and --arms, --dependent, and --all exclude each other"

    p.rules.append(sizes_go_together)
    arguments = p.parse_args()
    if arguments.pulls:
        return arguments, [(arguments.pulls, arguments.arms)]
    most = 0 if arguments.dependent else 500 if arguments.all else 100
    independent = [(n, k) for n, k in SETTINGS if n <= most]
    return arguments, [*independent, (DEPENDENT_PULLS, None)]


def main():
    arguments, chosen = options()
    paths = {}
    for n, k in chosen:
        paths[n, k] = arguments.weights / (f"bandits_n{n}_k{k}.npz" if k else "dependent.npz")
    if arguments.train:
        trained = [
            make_weights(paths[n, k], task_family(k), n, training_settings(n, k), arguments)
            for n, k in chosen
        ]
        return finish(arguments, dict(trained=trained), [])

    progress = Progress()
    jobs = []
    for n, k in chosen:
        sizes = ["--pulls", str(n), "--arms", str(k)] if k else ["--dependent"]
        trained = trained_policy(paths[n, k], one_of(task_family(k)), *sizes)
        for family in (None,) if k else FAMILIES:
            for method in METHODS if k else ("random", "gittins", "ts", "rl2"):
                jobs.append(((n, k, family), method, trained, arguments.seed, arguments.quick))
    measured = measure_all(run, jobs, progress)
    rows = [row for setting in measured for row in rows_of(setting, measured[setting])]
    compared = [row for setting in measured for row in pairs(name_of(*setting), measured[setting])]
    regret = {name_of(*setting): regrets_of(setting, measured[setting]) for setting in measured}
    print_settings(rows, compared, measured)
    print(
        "\nMean total reward ± standard error on test tasks, corrected for how good these tasks\n"
        "happen to be (a control variate: E of the best arm is known), and its share of the\n"
        "optimum: the Bayes-optimal learner's, exactly, where it can be computed, else that of\n"
        'one who knows the task. "RL² minus it" is paired, on the tasks that both played; ? where\n'
        "it is within two standard errors. In print: Duan et al. (2016), with an error of .07\n"
        "(n = 10), .3 to .5 (n = 100), 1 to 2.4 (n = 500); MAML Mishra et al. (2018), with .05\n"
        "(n = 10), .2 to .6 (n = 100)."
    )
    print_ties(compared)
    pictures = [draw(regret, arguments.out)]
    print(f"{tuning_of_rl2(rows)}\n{progress.seconds:.0f} s.")
    numbers = dict(rows=rows, pairs=compared, regret=regret, seconds=progress.seconds)
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
