"""A GRU that learned to learn plays short Bernoulli bandits almost Bayes-optimally, and 100 pulls about as well as the best index.

The columns of Duan et al. (2016), Table 1, on fresh tasks, scored by the means of the arms that were pulled. Every hyperparameter, and
whether RL² takes its likeliest action or samples, is chosen on tuning tasks. Where arms depend on each other (Wang et al. 2016), RL²
uses it and the indices, which are for independent arms, do not. `--train` makes the weights anew; any `--pulls N --arms K` will do.
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
SETTINGS = {
    "n=10 k=5": SHORT,
    "n=10 k=10": SHORT,
    "n=100 k=5": LONG,
    "n=100 k=10": dict(LONG, iterations=1400, then=[{}]),
}
DEPENDENT_PULLS = 100
DEPENDENT = dict(LONG, units=48, iterations=300)  # two arms with means p and 1 − p


def training_settings(pulls, arms):
    """Those of SETTINGS, or for another n and k those of the nearest n."""
    known = {
        tuple(int(x.split("=")[1]) for x in name.split()): settings
        for name, settings in SETTINGS.items()
    }
    nearest = min(known, key=lambda nk: (abs(np.log(nk[0] / pulls)), abs(nk[1] - arms)))
    return known[nearest] if (pulls, arms) in known else dict(known[nearest], memory=pulls)


def task_family(arms):
    """tasks(rng, N) → MDP: independent arms, or for arms = None dependent ones."""
    return (lambda rng, n: bandits.independent(rng, n, arms)) if arms else bandits.dependent


# %% Methods
COLUMNS = (
    "random",
    "gittins",
    "ts",
    "ots",
    "ucb1",
    "egreedy",
    "greedy",
    "rl2",
)  # of the published table
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


def run(job):
    """`_common.measure` of one method; trained is (policy, θ) for RL²."""
    (pulls, arms, family), method, trained, seed, quick = job

    def play(rng, mdps, value):
        if method == "rl2":
            return rl2.expected_rewards(
                mdps, rl2.sample_trials(rng, mdps, *trained, pulls, greedy=value == "greedy")
            )
        return play_bandits(rng, mdps.expected_rewards[:, 0], pulls, BANDITS[method][0], value)

    def tasks(rng, n):
        return bandits.independent(rng, n, arms) if arms else bandits.dependent(rng, n, family)

    grid = ("greedy", "sampled") if method == "rl2" else BANDITS[method][1]
    short = pulls <= 20
    n_test = (
        100_000
        if not arms
        else (
            (200_000 if short else 100_000)
            if method == "rl2"
            else 4_000 if method == "ots" else 40_000
        )
    )
    n_tuning = 20_000 if short else 1_000 if method == "ots" else 5_000
    if quick:
        n_test = 200
        n_tuning = 50
        grid = grid[:3]
    return measure(
        tasks,
        play,
        grid,
        lambda mdps: mdps.expected_rewards.max((1, 2)),
        seed,
        n_tuning=n_tuning,
        n_test=n_test,
    )


def name_of(pulls, arms, family):
    return f"n={pulls} k={arms}" if arms else f"n={pulls} dependent {family}"


def optimum(pulls, arms, family):
    """The exact Bayes-optimal expected total, or None where there are too many states."""
    if not arms:
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
        lines = {
            name: lambda r: number(r["mean"], r["sem"]),
            "  published": lambda r: r.get("published"),
            "  tuned": lambda r: r.get("hyperparameter"),
        }
        for label, cell in lines.items():
            cells = [cell(mine[m]) if m in mine else None for m in methods]
            if any(c is not None for c in cells):
                print(f"{label:26s}" + "".join(f"{'' if c is None else c:>13}" for c in cells))


def draw(regret, out):
    """Cumulative regret of one setting of independent arms, and of the four dependent families."""
    independent, dependent = (
        [name for name in regret if ("dependent" in name) == d] for d in (False, True)
    )
    fig, axes = plots.figure(
        5.2 * (bool(independent) + bool(dependent)) + 0.8,
        4.6,
        columns=bool(independent) + bool(dependent),
    )
    if independent:
        name = "n=100 k=5" if "n=100 k=5" in independent else independent[-1]
        plots.regret(axes[0], regret[name], LOOKS)
        axes[0].set_title(f"independent arms, {name}")
    if dependent:
        lines = dict(
            rl2=("RL² (trained on uniform)", "-"), gittins=("Gittins", "--"), ts=("Thompson", ":")
        )
        for family, colour in FAMILIES.items():
            looks = {method: (None, colour, line) for method, (_, line) in lines.items()}
            plots.regret(axes[-1], regret[f"n={DEPENDENT_PULLS} dependent {family}"], looks)
            plots.curve(axes[-1], [], [], label=family, colour=colour, marker=None)
        for label, line in lines.values():
            plots.curve(axes[-1], [], [], label=label, colour="black", line=line, marker=None)
        plots.regret(
            axes[-1],
            regret[f"n={DEPENDENT_PULLS} dependent uniform"],
            dict(optimum=("optimum, uniform", "black", "-.")),
        )
        axes[-1].set_title("two dependent arms, p and 1 − p")
    for ax in axes:
        ax.legend(loc="upper left", ncols=2, fontsize=9)
    return plots.save(fig, out, "rl2_bandits")


# %% The job
def main():
    p = rl2_parser(__doc__)
    p.add_argument("--pulls", type=positive, help="n: this setting only, with --arms")
    p.add_argument("--arms", type=positive, help="k: this setting only, with --pulls")
    p.add_argument(
        "--dependent", action="store_true", help="two dependent arms, means p and 1 − p, only"
    )
    arguments = p.parse_args()
    check_options(p, arguments)
    if (arguments.pulls is None) != (arguments.arms is None) or (
        arguments.dependent and arguments.pulls
    ):
        p.error("--pulls and --arms go together, and without --dependent")
    if arguments.pulls:
        chosen = [(arguments.pulls, arguments.arms)]
    else:
        chosen = ([] if arguments.dependent else [(10, 5), (10, 10), (100, 5), (100, 10)]) + [
            (DEPENDENT_PULLS, None)
        ]
    paths = {
        (n, k): arguments.weights / (f"bandits_n{n}_k{k}.npz" if k else "dependent.npz")
        for n, k in chosen
    }
    if arguments.train:
        rows = [
            make_weights(
                paths[n, k],
                task_family(k),
                n,
                training_settings(n, k) if k else DEPENDENT,
                arguments,
            )
            for n, k in chosen
        ]
        return finish(arguments, dict(trained=rows), [])

    progress = Progress()
    rows = []
    regret = {}
    jobs = []
    done = []
    for n, k in chosen:
        command = "python demos/rl2_bandits.py --train " + (
            f"--pulls {n} --arms {k}" if k else "--dependent"
        )
        policy, theta, facts = read_weights(
            paths[n, k], task_family(k)(np.random.default_rng(0), 1), command
        )
        print(
            f"{paths[n, k].name}: {facts['seconds']:.0f} s by `{facts['command']}`, seed {facts['seed']}"
        )
        for family in (None,) if k else FAMILIES:
            methods = COLUMNS if k else ("random", "gittins", "ts", "rl2")
            jobs += [
                ((n, k, family), m, (policy, theta), arguments.seed, arguments.quick)
                for m in methods
            ]
    with workers() as pool:
        for i, result in enumerate(pool.imap(run, jobs)):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            done.append(result)
    for (setting, method, *_), r in zip(jobs, done):
        n, k, family = setting
        name = name_of(*setting)
        published = PUBLISHED.get((n, k), {})
        rows.append(
            dict(setting=name, method=method, mean=r["mean"], sem=r["sem"], tasks=r["tasks"])
        )
        if published:
            rows[-1]["published"] = published[COLUMNS.index(method)]
        if r["tuning"]:
            rows[-1].update(hyperparameter=r["value"], tuning=r["tuning"])
        regret.setdefault(name, {})[method] = np.cumsum(
            r["best"] / n - np.array(r["episode"])
        ).tolist()
        if method == "rl2" and (best := optimum(*setting)):
            rows.append(dict(setting=name, method="optimum", mean=best, sem=0.0))
            if not k:
                regret[name]["optimum"] = np.cumsum(
                    0.75 - dependent_optimal(family, n)
                ).tolist()  # E max(p, 1 − p) = ¾
    progress.done()
    print_settings(rows, regret)
    pictures = [draw(regret, arguments.out)]
    print(
        f"\nMean total reward ± standard error on test tasks. optimum: exact, of a Bayes-optimal learner, where it can be computed.\n"
        f"The published means carry an error of about .07 (n = 10), .5 (n = 100).\n{tuning_of_rl2(rows)}\n{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=rows, regret=regret, seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
