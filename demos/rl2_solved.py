"""In two published families that can be solved, RL² gets all or almost all of the Bayes optimum.

In Wang et al. (2016) one of eleven arms pays least and tells which of the others pays most. On the
grid of VariBAD (Zintgraf et al. 2020) a goal that is somewhere pays for every step on it. A trial's
exact Bayes optimum is computed, and what methods get is printed as a share of it. Thompson (or
posterior) sampling acts as if a task drawn from the exact posterior were the true one: so it never
pulls an arm that only tells, and searches in one place an episode. `--train` makes the weights
anew.
"""

# %% The families, and what is trained
from typing import Callable, NamedTuple

# before numpy, whose threads it sets
from _common import (
    TEST,
    TUNING,
    Progress,
    begin,
    finish,
    make_weights,
    rl2_parser,
    trained_policy,
)

import numpy as np
from _scoreboard import number, print_table, tuning_of_rl2

from metarl_np import bandits, beliefs, exact, gridworld, planners, rl2
from metarl_np.compare.bayes import optimal_returns
from metarl_np.compare.strategies import tune


class Solved(NamedTuple):
    """A family of C tasks, all as likely, and how RL² is trained on it."""

    title: str
    mdps: Callable  # mdps() → MDP of the C tasks
    episodes: int  # of a trial
    settings: dict


FAMILIES = dict(
    informative=Solved(
        title="eleven arms, one of which tells (Wang et al. 2016)",
        mdps=bandits.informative,
        episodes=5,
        settings=dict(
            units=32,
            memory=5,
            trials=1000,
            iterations=800,
            step_size=0.006,
            minibatches=4,
            discount=1.0,
            lam=0.95,
            entropy=0.3,  # with less it is content to try arm after arm
        ),
    ),
    varibad=Solved(
        title="VariBAD's grid (Zintgraf et al. 2020)",
        mdps=gridworld.varibad,
        episodes=4,
        settings=dict(
            units=64,
            memory=60,
            trials=512,
            iterations=500,
            step_size=0.006,
            minibatches=4,
            discount=0.99,
            lam=0.95,
            entropy=0.1,
        ),
    ),
)
METHODS = dict(
    optimum="Bayes optimum, exact",
    rl2="RL²",
    thompson="Thompson sampling",
    posterior_mean="posterior mean plan",
    known="optimum, task known",
)


def task_family(solved):
    """tasks(rng, N) → MDP, N tasks of the family."""
    mdps = solved.mdps()
    return lambda rng, n: mdps[rng.integers(len(mdps), size=n)]


# %% The expected return of each episode in each task, (n, N)
def play_rl2(rng, mdps, episodes, policy, theta, greedy):
    """The trained policy; what is expected of each step that it took."""
    trials = rl2.sample_trials(rng, mdps, policy, theta, episodes, greedy=greedy)
    earned = rl2.expected_rewards(mdps, trials)
    return np.array([(earned * (trials.episode == e)).sum(0) for e in range(episodes)])


def play_planner(rng, mdps, episodes, candidates, plan):
    """Planning in the exact posterior, anew before each episode; expected given the plan."""
    prior = np.full((len(mdps), len(candidates)), 1 / len(candidates))
    belief = beliefs.FiniteBelief(candidates, prior)
    acted = planners.act(rng, mdps, belief, episodes=episodes, plan=plan)
    return np.array([returns for returns, _, _ in acted])


def measure(every, episodes, trained, seed, repeats):
    """{method: a part of its row of the JSON}, in the tasks `every`, each met `repeats` times.

    trained: (policy, θ) of RL².
    """
    mdps = every[np.repeat(np.arange(len(every)), repeats)]

    def trial(rng, value):
        return play_rl2(rng, mdps, episodes, *trained, value == "greedy")

    value, tuning = tune(np.random.default_rng((seed, TUNING)), trial, ("greedy", "sampled"))
    rng = np.random.default_rng((seed, TEST))
    results = dict(
        optimum=exactly(optimal_returns(every, episodes)),
        rl2=sampled(trial(rng, value), repeats),
        thompson=sampled(play_planner(rng, mdps, episodes, every, planners.sample_plan), repeats),
        posterior_mean=sampled(
            play_planner(rng, mdps, episodes, every, planners.mean_plan), repeats
        ),
        known=exactly(np.full(episodes, exact.optimal_return(every).mean())),
    )
    results["rl2"] |= dict(hyperparameter=value, tuning=tuning)
    return results


def sampled(returns, repeats):
    """Means of the episodes and of the trial, whose standard error is sem: returns (n, N).

    All tasks of the family are met as often: only what happens in each is left to chance.
    """
    totals = returns.sum(0)
    sem = np.sqrt(totals.reshape(-1, repeats).var(1, ddof=1).mean() / len(totals)).round(9)
    return dict(episodes=returns.mean(1).tolist(), mean=float(totals.mean()), sem=float(sem))


def exactly(returns):
    """The same of exact expected returns (n,)."""
    return dict(episodes=returns.tolist(), mean=float(returns.sum()), sem=0.0)


# %% The table
def rows_of(name, results):
    """Rows of the JSON: what `measure` returned, with the share of the optimum."""
    best = results["optimum"]["mean"]
    rows = []
    for method in METHODS:
        row = dict(setting=name, method=method, **results[method])
        rows.append(row | dict(share=row["mean"] / best))
    return rows


def print_rows(solved, rows):
    """A line a method: the return of each episode, of the trial, and the share of the optimum."""
    n = solved.episodes
    print(f"\n{solved.title}: mean return ± standard error")
    titles = ["", *[f"episode {e + 1}" for e in range(n)], "trial", "of the optimum"]
    lines = []
    for row in rows:
        shown = [f"{x:.3f}" for x in row["episodes"]]
        shown += [number(row["mean"], row["sem"]), f"{row['share']:.1%}"]
        lines.append([METHODS[row["method"]], *shown])
    print_table(titles, lines)


# %% The job
def main():
    p = rl2_parser(__doc__)
    p.add_argument("--family", choices=FAMILIES, help="this one only (default: both)")
    arguments = p.parse_args()
    chosen = [arguments.family] if arguments.family else list(FAMILIES)
    paths = {name: arguments.weights / f"{name}.npz" for name in chosen}
    if arguments.train:
        trained = []
        for name in chosen:
            solved = FAMILIES[name]
            tasks = task_family(solved)
            made = make_weights(paths[name], tasks, solved.episodes, solved.settings, arguments)
            trained.append(made)
        return finish(arguments, dict(trained=trained), [])

    progress = Progress()
    few, repeats = (5, 2) if arguments.quick else (None, 200)  # the tasks of a family; all
    rows = []
    for name in chosen:
        solved = FAMILIES[name]
        trained = trained_policy(paths[name], solved.mdps()[:1], "--family", name)
        progress(f"{name}: solved and measured")
        every = solved.mdps()[:few]
        results = measure(every, solved.episodes, trained, arguments.seed, repeats)
        rows += rows_of(name, results)
    progress.done()
    for name in chosen:
        print_rows(FAMILIES[name], [row for row in rows if row["setting"] == name])
    print(
        f"\nEvery task of a family, {repeats} trials each; the optima are exact.\n"
        f"{tuning_of_rl2(rows)}\n{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=rows, seconds=progress.seconds), [])


if __name__ == "__main__":
    begin(main)
