"""A GRU that learned to learn plays short Bernoulli bandits almost Bayes-optimally.

At 100 pulls it is about as good as the best index. The columns are those of Duan et al. (2016),
Table 1, on fresh tasks, scored by the means of the arms that were pulled. Every hyperparameter,
and whether RL² takes its likeliest action or samples, is chosen on tuning tasks. Where arms
depend on each other (Wang et al. 2016), RL² uses it and the indices, which are for independent
arms, do not. `--train` makes the weights anew; any `--pulls N --arms K` will do.
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

from metarl_np import bandits, plots, rl2
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
SETTINGS = {  # by pulls and arms
    (10, 5): SHORT,
    (10, 10): SHORT,
    (10, 50): dict(SHORT, trials=2000, iterations=800, then=[SMALL_STEPS]),
    (100, 5): LONG,
    (100, 10): dict(LONG, iterations=1400, then=[{}]),
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
    return dict(SETTINGS[nearest], memory=pulls)


def task_family(arms, difficulty="uniform"):
    """tasks(rng, N) → MDP: independent arms, or for arms = None two dependent ones."""

    def tasks(rng, n):
        if arms is None:
            return bandits.dependent(rng, n, difficulty)
        return bandits.independent(rng, n, arms)

    return tasks


# %% Methods
# columns of the published table
COLUMNS = ("random", "gittins", "ts", "ots", "ucb1", "egreedy", "greedy", "rl2")
PUBLISHED = {
    (10, 5): (5.0, 6.6, 5.7, 6.5, 6.7, 6.6, 6.6, 6.7),
    (10, 10): (5.0, 6.6, 5.5, 6.2, 6.7, 6.6, 6.6, 6.7),
    (10, 50): (5.1, 6.5, 5.2, 5.5, 6.6, 6.5, 6.5, 6.8),
    (100, 5): (49.9, 78.3, 74.7, 77.9, 78.0, 75.4, 74.8, 78.7),
    (100, 10): (49.9, 82.8, 76.7, 81.4, 82.4, 77.4, 77.1, 83.5),
    (100, 50): (49.8, 85.2, 64.5, 67.7, 84.3, 78.3, 78.0, 84.9),
    (500, 5): (249.8, 405.8, 402.0, 406.7, 405.8, 388.2, 380.6, 401.6),
    (500, 50): (249.6, 463.7, 427.2, 437.6, 457.6, 413.6, 402.8, 438.9),
    (500, 10): (249.0, 437.8, 429.5, 438.9, 437.1, 408.0, 395.0, 432.5),
}
LOOKS = dict(
    ts=("Thompson", "sky", "-"),
    greedy=("greedy", "grey", "-"),
    egreedy=("ε-greedy", "orange", "--"),
    ots=("OTS", "purple", "-"),
    ucb1=("UCB1", "green", "-"),
    gittins=("Gittins", "blue", "--"),
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


def numbers_of_tasks(pulls, arms, method):
    """How many tasks to tune on and to test on; OTS is slow."""
    short = pulls <= 20
    n_tuning = 20_000 if short else 1_000 if method == "ots" else 5_000
    if arms is None:
        n_test = 100_000
    elif method == "rl2":
        n_test = 200_000 if short else 100_000
    else:
        n_test = 4_000 if method == "ots" else 40_000
    return dict(n_tuning=n_tuning, n_test=n_test)


def best_arm(mdps):
    """The mean of each task's best arm: (N,)."""
    return mdps.expected_rewards.max((1, 2))


def run(job):
    """`_common.measure` of one method; trained is (policy, θ) for RL²."""
    (pulls, arms, family), method, trained, seed, quick = job
    if method == "rl2":
        play = rl2_play(pulls, *trained)
        grid = ("greedy", "sampled")
    else:
        play = strategy_play(pulls, method)
        grid = BANDITS[method][1]
    sizes = numbers_of_tasks(pulls, arms, method)
    if quick:
        grid = grid[:3]
        sizes = dict(n_tuning=50, n_test=200)
    return measure(task_family(arms, family), play, grid, best_arm, seed, **sizes)


def name_of(pulls, arms, family):
    """What a setting is called in the table and in the JSON."""
    return f"n={pulls} k={arms}" if arms else f"n={pulls} dependent {family}"


def optimum(pulls, arms, family):
    """The exact Bayes-optimal expected total, or None where there are too many states."""
    if arms is None:
        return float(dependent_optimal(family, pulls).sum()) if family == "uniform" else None
    try:
        return bayes_optimal(arms, pulls)
    except ValueError:
        return None


# %% Tables and pictures
def print_settings(rows, settings):
    """Ours, the published figure and the hyperparameter: a column a method."""
    methods = [m for m in (*COLUMNS, "optimum") if any(r["method"] == m for r in rows)]
    print(f"\n{'':26s}" + "".join(f"{m:>13s}" for m in methods))
    for name in settings:
        mine = {r["method"]: r for r in rows if r["setting"] == name}
        found = [mine.get(m, {}) for m in methods]
        means = [number(r["mean"], r["sem"]) if r else "" for r in found]
        published = [r.get("published", "") for r in found]
        tuned = [r.get("hyperparameter", "") for r in found]
        for label, cells in ((name, means), ("  published", published), ("  tuned", tuned)):
            if any(cell != "" for cell in cells):
                print(f"{label:26s}" + "".join(f"{cell:>13}" for cell in cells))


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
    only = "this setting only, with {} (default: the settings of the table)"
    p.add_argument("--pulls", type=at_least_1, metavar="N", help=only.format("--arms"))
    p.add_argument("--arms", type=at_least_1, metavar="K", help=only.format("--pulls"))
    p.add_argument(
        "--dependent", action="store_true", help="two dependent arms, means p and 1 − p, only"
    )

    def sizes_go_together(arguments):
        given = arguments.pulls is not None, arguments.arms is not None
        if any(given) and (not all(given) or arguments.dependent):
            return "--pulls and --arms go together, and without --dependent"

    p.rules.append(sizes_go_together)
    arguments = p.parse_args()
    if arguments.pulls:
        return arguments, [(arguments.pulls, arguments.arms)]
    independent = [] if arguments.dependent else list(SETTINGS)
    return arguments, [*independent, (DEPENDENT_PULLS, None)]


def trained_policy(pulls, arms, path):
    """(policy, θ) from the file of weights for this setting, with a line on what made them."""
    sizes = ["--pulls", str(pulls), "--arms", str(arms)] if arms else ["--dependent"]
    task = task_family(arms)(np.random.default_rng(0), 1)
    policy, theta, facts = read_weights(path, task, *sizes)
    made = f"{facts['seconds']:.0f} s by `{facts['command']}`, seed {facts['seed']}"
    print(f"{path.name}: {made}")
    return policy, theta


def rows_of(setting, method, result):
    """Rows of the JSON of what `run` returned; RL²'s is followed by the optimum's, if known."""
    pulls, arms, _ = setting
    name = name_of(*setting)
    row = dict(setting=name, method=method)
    row |= {key: result[key] for key in ("mean", "sem", "tasks")}
    if (pulls, arms) in PUBLISHED:
        row["published"] = PUBLISHED[pulls, arms][COLUMNS.index(method)]
    if result["tuning"]:
        row |= dict(hyperparameter=result["value"], tuning=result["tuning"])
    best = optimum(*setting) if method == "rl2" else None
    if best is None:
        return [row]
    return [row, dict(setting=name, method="optimum", mean=best, sem=0.0)]


def regrets_of(setting, method, result):
    """{method: regret so far after each pull}; with that of RL² the optimum's, if known."""
    pulls, arms, family = setting
    regrets = {method: np.cumsum(result["best"] / pulls - np.array(result["episode"])).tolist()}
    if method == "rl2" and family == "uniform":
        mean_best_arm = 0.75  # E max(p, 1 − p)
        regrets["optimum"] = np.cumsum(mean_best_arm - dependent_optimal(family, pulls)).tolist()
    return regrets


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
        trained = trained_policy(n, k, paths[n, k])
        for family in (None,) if k else FAMILIES:
            for method in COLUMNS if k else ("random", "gittins", "ts", "rl2"):
                jobs.append(((n, k, family), method, trained, arguments.seed, arguments.quick))
    rows = []
    regret = {}
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            setting, method = job[:2]
            rows += rows_of(setting, method, result)
            of_setting = regret.setdefault(name_of(*setting), {})
            of_setting |= regrets_of(setting, method, result)
    progress.done()
    print_settings(rows, regret)
    pictures = [draw(regret, arguments.out)]
    print(
        "\nMean total reward ± standard error on test tasks. optimum: exact, of a Bayes-optimal "
        "learner, where it can be computed.\n"
        "The published means carry an error of about .07 (n = 10), .5 (n = 100).\n"
        f"{tuning_of_rl2(rows)}\n{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=rows, regret=regret, seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
