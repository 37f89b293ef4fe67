"""RL² explores a GridWorld in the first episode of a trial and goes straight to the goal in the next, as nearly as can be, with no model.

The goal is anywhere on an open 5x5 grid and stays there for a trial of three episodes. The GRU is trained here, in about a minute; it must
find out by itself what searching is. Posterior sampling knows the rules of the grid and has the exact posterior of the goal, but looks for
it in one place an episode; the plan for the posterior mean does not foresee what it will learn on its way. The optimum knows the goal. In
the first episode nobody can do better than to enter a new cell at each step, which is the bound in the table.
"""

# %% The tasks, and what is compared
from dataclasses import replace

from _common import (
    TEST,
    TUNING,
    Progress,
    begin,
    finish,
    number,
    parser,
    train_rl2,
)  # before numpy, whose threads it sets

import numpy as np

from metarl_np import beliefs, exact, planners, plots, rl2
from metarl_np.tasks.gridworld import GridWorld

GRID = GridWorld.open(5, 5, discount=0.95, horizon=15)
EPISODES = 3
GOALS = GRID.free_cells
SETTINGS = dict(
    units=64,
    memory=30,
    trials=256,
    iterations=250,
    step_size=0.006,
    minibatches=4,
    discount=0.99,
    lam=0.9,
)
METHODS = dict(
    rl2="RL²",
    posterior_sampling="posterior sampling",
    posterior_mean="posterior mean plan",
    optimum="optimum, goal known",
)
BOUND = (GRID.discount ** np.arange(GRID.horizon)).sum() / len(
    GOALS
)  # of episode 1: a new cell at each step


def sample_tasks(rng, n):
    """n tasks with a goal anywhere."""
    return GRID.mdps(rng.choice(GOALS, n))


# %% A trial in every task: expected discounted returns (EPISODES, N), visits (EPISODES, N, S), the goal's own entry included
def play_rl2(rng, mdps, policy, theta, greedy):
    """The trained policy."""
    trials = rl2.sample_trials(rng, mdps, policy, theta, EPISODES, greedy=greedy)
    returns = np.zeros((EPISODES, len(mdps)))
    visits = np.zeros((EPISODES,) + mdps.shape[:2])
    step, task = np.nonzero(trials.mask)
    episode = trials.episode[step, task]
    state = trials.states[step, task]
    np.add.at(returns, (episode, task), rl2.expected_rewards(mdps, trials)[step, task])
    np.add.at(visits, (episode, task, state), 1)
    visits += (
        mdps.terminal
        * ((trials.rewards > 0) & (trials.episode == np.arange(EPISODES)[:, None, None])).sum(1)[
            ..., None
        ]
    )
    return returns, visits


def play_planner(rng, mdps, plan):
    """Planning in the exact posterior, anew before each episode: every number is an exact expectation given the plan."""
    prior = np.full((len(mdps), len(GOALS)), 1 / len(GOALS))
    timed = replace(mdps.with_time(), discount=1.0)
    returns = []
    visits = []
    for value, log_pi, _ in planners.act(
        rng, mdps, beliefs.FiniteBelief(GRID.mdps(GOALS), prior), episodes=EPISODES, plan=plan
    ):
        alive = (
            (exact.occupancy(timed, log_pi) * ~timed.terminal)
            .sum(0)
            .reshape(len(mdps), -1, mdps.shape[1])
            .sum(1)
        )
        visits.append(
            alive + mdps.terminal * exact.expected_return(timed, log_pi)[:, None]
        )  # the goal pays 1 and is entered once
        returns.append(value)
    return np.array(returns), np.array(visits)


# %% The picture
def draw(returns, visits, out):
    """Visits of RL² and posterior sampling, {name: (EPISODES, goals, S)}: two goals and the mean over goals; a column an episode.
    The goals are those that RL², with returns (EPISODES, goals), found last in episode 1, and last in episode 2.
    """
    first, second = returns[:2]
    late = [
        np.argmin(np.where(found, r, np.inf))
        for found, r in ((first > 0, first), ((first == 0) & (second > 0), second))
    ]
    fig, axes = plots.figure(13, 7.6, columns=2 * EPISODES, rows=3)
    labels = "goal found late in episode 1", "goal found late in episode 2", "mean over all goals"
    columns = [(name, e) for name in visits for e in range(EPISODES)]
    for i, ax in enumerate(axes):
        row = i // len(columns)
        name, e = columns[i % len(columns)]
        cells = visits[name][e, late[row]] if row < 2 else visits[name][e].mean(0)
        plots.visits(
            ax,
            GRID,
            cells,
            GOALS[late[row]] if row < 2 else None,
            label="visits per episode" if i % len(columns) == len(columns) - 1 else None,
        )
        if row == 0:
            ax.set_title(f"{METHODS[name]},\nepisode {e + 1}", fontsize=11)
        if i % len(columns) == 0:
            ax.set_ylabel(labels[row].replace(" late", "\nlate"), fontsize=10)
    return plots.save(fig, out, "rl2_gridworld")


# %% The job
def main():
    arguments = parser(__doc__, trains=True).parse_args()
    settings, repeats = (
        (dict(SETTINGS, iterations=5, trials=64), 2) if arguments.quick else (SETTINGS, 50)
    )
    progress = Progress()
    policy, theta, _ = train_rl2(
        sample_tasks, EPISODES, settings, arguments.seed, progress, path=arguments.checkpoint
    )
    seconds = progress.seconds
    totals = {
        greedy: play_rl2(
            np.random.default_rng((arguments.seed, TUNING)),
            GRID.mdps(np.repeat(GOALS, repeats)),
            policy,
            theta,
            greedy,
        )[0]
        .sum(0)
        .mean()
        for greedy in (True, False)
    }
    greedy = max(totals, key=totals.get)

    rng = np.random.default_rng((arguments.seed, TEST))
    mdps = GRID.mdps(np.repeat(GOALS, repeats))
    best = exact.optimal_return(mdps)
    played = dict(
        rl2=play_rl2(rng, mdps, policy, theta, greedy),
        posterior_sampling=play_planner(rng, mdps, planners.sample_plan),
        posterior_mean=play_planner(rng, mdps, planners.mean_plan),
        optimum=(np.array([best] * EPISODES), None),
    )
    progress.done()

    rows = []
    print(
        f"mean discounted return ± standard error; every one of the {len(GOALS)} goals, {repeats} trials each"
    )
    print(f"{'':28s}" + "".join(f"   episode {e + 1}" for e in range(EPISODES)))
    for name, (returns, _) in played.items():
        each = returns.reshape(
            EPISODES, len(GOALS), repeats
        )  # the goals are all there are: only what happens at each is left to chance
        sems = np.sqrt(each.var(2, ddof=1).mean(1) / returns.shape[1]).round(9)
        rows += [
            dict(setting=f"episode {e + 1}", method=name, mean=float(m), sem=float(s))
            for e, (m, s) in enumerate(zip(returns.mean(1), sems))
        ]
        print(
            f"{METHODS[name]:28s}"
            + "".join(f"{number(r['mean'], r['sem']):>12s}" for r in rows[-EPISODES:])
        )
    print(f"{'bound, goal unknown':28s}{BOUND:12.3f}")
    by_goal = {
        name: [x.reshape(EPISODES, len(GOALS), repeats, *x.shape[2:]).mean(2) for x in played[name]]
        for name in ("rl2", "posterior_sampling")
    }
    pictures = [
        draw(
            by_goal["rl2"][0],
            {name: visits for name, (_, visits) in by_goal.items()},
            arguments.out,
        )
    ]
    print(
        f"RL² takes its likeliest action ({totals[True]:.3f} a trial on tuning tasks) or samples ({totals[False]:.3f}): the better one, "
        f"{'likeliest' if greedy else 'sampled'}.\nTrained for {settings['iterations']} iterations in {seconds:.0f} s; "
        f"{progress.seconds:.0f} s in all."
    )
    finish(
        arguments,
        dict(
            rows=rows,
            bound=BOUND,
            actions="greedy" if greedy else "sampled",
            seconds=progress.seconds,
        ),
        pictures,
    )


if __name__ == "__main__":
    begin(main)
