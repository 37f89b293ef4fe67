"""RL² explores a GridWorld in a trial's first episode and goes straight to the goal in the next.

The goal is anywhere on an open 5x5 grid and stays there for a trial of three episodes. The GRU is
trained here, in about a minute; it must find out by itself what searching is. Posterior sampling
knows the rules of the grid and has the exact posterior of the goal, but looks for it in one place
an episode; the plan for the posterior mean does not foresee what it will learn on its way. Nobody
who does not know the goal can get more than the Bayes optimum, which is computed exactly, from the
million posteriors that can be met (3 GiB of memory).
"""

# %% The tasks, and what is compared
from dataclasses import replace

# before numpy, whose threads it sets
from _common import (
    TEST,
    TUNING,
    Progress,
    begin,
    finish,
    parser,
    train_rl2,
    workers,
)

import numpy as np
from _scoreboard import number, print_table

from metarl_np import beliefs, exact, planners, plots, rl2
from metarl_np.compare.bayes import optimal_returns
from metarl_np.tasks.gridworld import GridWorld

GRID = GridWorld.open(5, 5, discount=0.95, horizon=15)
EPISODES = 3
GOALS = GRID.free_cells
SETTINGS = dict(
    units=64,
    memory=30,
    trials=512,
    iterations=250,
    step_size=0.006,
    minibatches=4,
    discount=0.99,
    lam=0.95,
    entropy=0.05,
)
METHODS = dict(
    bayes="Bayes optimum, exact",
    rl2="RL²",
    posterior_sampling="posterior sampling",
    posterior_mean="posterior mean plan",
    optimum="optimum, goal known",
)


def sample_tasks(rng, n):
    """n tasks with a goal anywhere."""
    return GRID.mdps(rng.choice(GOALS, n))


# %% A trial in every task: returns (EPISODES, N) and visits of each cell (EPISODES, N, S)
# the returns are expected and discounted, the visits count entering the goal too
def play_rl2(rng, mdps, policy, theta, greedy):
    """The trained policy."""
    trials = rl2.sample_trials(rng, mdps, policy, theta, EPISODES, greedy=greedy)
    step, task = np.nonzero(trials.mask)
    episode = trials.episode[step, task]
    state = trials.states[step, task]
    payoff = rl2.expected_rewards(mdps, trials)[step, task]
    returns = np.zeros((EPISODES, len(mdps)))
    np.add.at(returns, (episode, task), payoff)
    visits = np.zeros((EPISODES,) + mdps.shape[:2])
    np.add.at(visits, (episode, task, state), 1)
    for e in range(EPISODES):
        found = ((trials.rewards > 0) & (trials.episode == e)).sum(0)
        visits[e] += mdps.terminal * found[:, None]
    return returns, visits


def play_planner(rng, mdps, plan):
    """Planning in the exact posterior, anew before each episode.

    Every number is an exact expectation given the plan.
    """
    prior = np.full((len(mdps), len(GOALS)), 1 / len(GOALS))
    belief = beliefs.FiniteBelief(GRID.mdps(GOALS), prior)
    timed = replace(mdps.with_time(), discount=1.0)
    by_time = (len(mdps), -1, mdps.shape[1])
    returns = []
    visits = []
    for value, log_pi, _ in planners.act(rng, mdps, belief, episodes=EPISODES, plan=plan):
        alive = (exact.occupancy(timed, log_pi) * ~timed.terminal).sum(0)
        reached = exact.expected_return(timed, log_pi)  # the goal pays 1 and is entered once
        visits.append(alive.reshape(by_time).sum(1) + mdps.terminal * reached[:, None])
        returns.append(value)
    return np.array(returns), np.array(visits)


# %% The picture
def found_last(returns):
    """The goal that was found last of those found in episode 1, and of those in episode 2."""
    first, second = returns[:2]
    in_first = np.where(first > 0, first, np.inf)
    in_second = np.where((first == 0) & (second > 0), second, np.inf)
    return in_first.argmin(), in_second.argmin()


def draw(returns, visits, out):
    """Two goals and the mean over goals, a row each; an episode a column, of either method.

    visits: {name: (EPISODES, goals, S)} of RL² and posterior sampling. The goals are those that
    RL², with returns (EPISODES, goals), found last in episode 1, and last in episode 2.
    """
    late = found_last(returns)
    rows = ("goal found\nlate in episode 1", "goal found\nlate in episode 2", "mean over all goals")
    columns = [(name, e) for name in visits for e in range(EPISODES)]
    fig, axes = plots.figure(13, 7.6, columns=len(columns), rows=3)
    for i, ax in enumerate(axes):
        row, column = divmod(i, len(columns))
        name, e = columns[column]
        goal = late[row] if row < 2 else None
        cells = visits[name][e].mean(0) if goal is None else visits[name][e, goal]
        star = None if goal is None else GOALS[goal]
        last = column == len(columns) - 1
        plots.visits(ax, GRID, cells, star, label="visits per episode" if last else None)
        if row == 0:
            ax.set_title(f"{METHODS[name]},\nepisode {e + 1}", fontsize=11)
        if column == 0:
            ax.set_ylabel(rows[row], fontsize=10)
    return plots.save(fig, out, "rl2_gridworld")


# %% The job
def likeliest_or_sampled(seed, policy, theta, repeats):
    """{greedy: mean return of a trial on tuning tasks}, for RL² acting either way."""
    totals = {}
    for greedy in (True, False):
        rng = np.random.default_rng((seed, TUNING))
        mdps = GRID.mdps(np.repeat(GOALS, repeats))
        returns, _ = play_rl2(rng, mdps, policy, theta, greedy)
        totals[greedy] = returns.sum(0).mean()
    return totals


def solve(episodes):
    """The Bayes-optimal return of each episode: (n,)."""
    return optimal_returns(GRID.mdps(GOALS), episodes)


def play_all(rng, mdps, policy, theta, greedy):
    """{method: (returns, visits)}; the optimum for a known goal has no visits."""
    best = exact.optimal_return(mdps)
    return dict(
        rl2=play_rl2(rng, mdps, policy, theta, greedy),
        posterior_sampling=play_planner(rng, mdps, planners.sample_plan),
        posterior_mean=play_planner(rng, mdps, planners.mean_plan),
        optimum=(np.array([best] * EPISODES), None),
    )


def rows_of(method, returns, repeats):
    """Rows of the JSON, one for each episode and one for the trial: returns (n, goals · repeats).

    The goals are all there are: only what happens at each of them is left to chance.
    """
    rows = []
    settings = [f"episode {e + 1}" for e in range(EPISODES)] + ["trial"]
    for setting, x in zip(settings, [*returns, returns.sum(0)]):
        by_goal = x.reshape(len(GOALS), repeats)
        sem = np.sqrt(by_goal.var(1, ddof=1).mean() / x.size).round(9)
        rows.append(dict(setting=setting, method=method, mean=float(x.mean()), sem=float(sem)))
    return rows


def rows_of_bayes(best):
    """The same of the Bayes optimum: best (n,). If quick it is of fewer episodes, and no trial."""
    rows = []
    settings = [f"episode {e + 1}" for e in range(len(best))]
    if len(best) == EPISODES:
        settings.append("trial")
        best = np.append(best, best.sum())
    for setting, mean in zip(settings, best):
        rows.append(dict(setting=setting, method="bayes", mean=float(mean), sem=0.0))
    return rows


def print_rows(rows, repeats):
    """A line a method, a column an episode, and the trial as a share of the Bayes optimum."""
    print(
        f"mean discounted return ± standard error; every one of the {len(GOALS)} goals, "
        f"{repeats} trials each"
    )
    titles = ["", *[f"episode {e + 1}" for e in range(EPISODES)], "trial", "of the optimum"]
    means = {(r["setting"], r["method"]): r["mean"] for r in rows}
    best = means.get(("trial", "bayes"))
    lines = []
    for method, name in METHODS.items():
        shown = [number(r["mean"], r["sem"]) for r in rows if r["method"] == method]
        if best:
            shown.append(f"{means['trial', method] / best:.1%}")
        unknown = [""] * (len(titles) - 1 - len(shown))
        lines.append([name, *shown, *unknown])
    print_table(titles, lines)


def main():
    arguments = parser(__doc__, trains=True).parse_args()
    short = dict(SETTINGS, iterations=5, trials=64)
    settings, repeats = (short, 2) if arguments.quick else (SETTINGS, 50)
    seed = arguments.seed
    progress = Progress()
    with workers() as pool:
        best = pool.apply_async(solve, [1 if arguments.quick else EPISODES])
        policy, theta, _ = train_rl2(
            sample_tasks, EPISODES, settings, seed, progress, path=arguments.checkpoint
        )
        seconds = progress.seconds
        totals = likeliest_or_sampled(seed, policy, theta, repeats)
        greedy = max(totals, key=totals.get)
        mdps = GRID.mdps(np.repeat(GOALS, repeats))
        played = play_all(np.random.default_rng((seed, TEST)), mdps, policy, theta, greedy)
        progress("the Bayes optimum is computed")
        rows = rows_of_bayes(best.get())
    progress.done()

    rows += [row for name, (x, _) in played.items() for row in rows_of(name, x, repeats)]
    print_rows(rows, repeats)

    def mean_of_repeats(x):
        return x.reshape(EPISODES, len(GOALS), repeats, *x.shape[2:]).mean(2)

    shown = ("rl2", "posterior_sampling")
    visits = {name: mean_of_repeats(played[name][1]) for name in shown}
    picture = draw(mean_of_repeats(played["rl2"][0]), visits, arguments.out)
    print(
        f"RL² takes its likeliest action ({totals[True]:.3f} a trial on tuning tasks) "
        f"or samples ({totals[False]:.3f}): the better one, "
        f"{'likeliest' if greedy else 'sampled'}.\n"
        f"Trained for {settings['iterations']} iterations in {seconds:.0f} s; "
        f"{progress.seconds:.0f} s in all."
    )
    actions = "greedy" if greedy else "sampled"
    numbers = dict(rows=rows, actions=actions, seconds=progress.seconds)
    finish(arguments, numbers, [picture])


if __name__ == "__main__":
    begin(main)
